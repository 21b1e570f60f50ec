//! Start, restart, drain and end of the server; what it prints, and where.

use oshu_vault_sdk::{Client, CreateSession};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Home, dial, get, mode_of};
use crate::support::{Origin, TestCa, Workload, basic, contains, program, within};

#[tokio::test]
async fn case_82_the_first_start_prints_its_key_and_a_second_keeps_everything() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    assert_eq!(server.events.len(), 1, "{:?}", server.events);
    let key = server.api_key();
    assert!(
        key.starts_with("ovk_") && key.len() == 68,
        "the form of {key}"
    );
    assert_eq!(server.ready["ca"], json!(home.state("ca.pem")));
    for name in ["listen", "tls_listen", "admin_listen"] {
        assert_ne!(server.address(name).port(), 0, "{name}");
    }
    for name in ["ca.key", "api.key"] {
        assert_eq!(mode_of(&home.state(name)), 0o600, "{name}");
    }
    assert_eq!(mode_of(home.state("").as_path()), 0o700);
    let ca = std::fs::read_to_string(home.state("ca.pem")).unwrap();
    assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), ca);
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!((code, events.len()), (Some(0), 0), "{events:?}");
    assert!(log.contains("drained"), "{log}");
    assert!(!log.contains(&key), "the key is in the log");

    let server = home.serve_dev(&[]).await;
    assert_eq!(
        server.events,
        Vec::<Value>::new(),
        "the key is printed once"
    );
    assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), ca);
    let sdk = |key: &str| Client::builder(server.url(), key).build().unwrap();
    sdk(&key)
        .create_session(&CreateSession::new())
        .await
        .unwrap();
    let wrong = sdk(&key.replace("ovk_", "ovk-"))
        .create_session(&CreateSession::new())
        .await;
    assert_eq!(wrong.unwrap_err().status(), Some(401));
    let (code, _events, log) = server.end(Signal::INT).await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_configured_key_wins_and_is_never_printed() {
    let home = Home::new();
    home.run(&["ca", "generate"]).await.expect(0);
    home.run(&["seal", "generate"]).await.expect(0);
    let key = super::CANARY;
    let line = ["serve", "--listen=127.0.0.1:0", "--admin-listen=none"];
    let server = home.serve(&line, &[("SECRETS_PROXY_API_KEY", key)]).await;
    assert_eq!(server.events, Vec::<Value>::new());
    assert_eq!(server.ready["tls_listen"], Value::Null);
    assert_eq!(server.ready["admin_listen"], Value::Null);
    assert!(!home.state("api.key").exists());
    let sdk = Client::builder(server.url(), key).build().unwrap();
    sdk.create_session(&CreateSession::new()).await.unwrap();
    let (code, _events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0));
    assert!(!log.contains(key), "{log}");
}

#[tokio::test]
async fn an_exchange_in_flight_ends_before_the_server_does() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = origin.local_addr().unwrap();
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let sdk = Client::builder(server.url(), server.api_key())
        .build()
        .unwrap();
    let session = sdk.create_session(&CreateSession::new()).await.unwrap();
    let credential = basic(&session.session_id, &session.token);

    let mut conn = dial(server.plain()).await;
    let head = format!(
        "GET http://{target}/slow HTTP/1.1\r\nHost: {target}\r\n\
         Proxy-Authorization: {credential}\r\n\r\n"
    );
    conn.send(head).await;
    let (mut upstream, _) = within("the request", origin.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(
            within("the head", upstream.read_buf(&mut head))
                .await
                .unwrap(),
            0
        );
    }
    server.signal(Signal::TERM);
    // The listener goes first: nobody new is taken while the exchange goes on.
    within("a closed listener", async {
        while TcpStream::connect(server.plain()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Whoever is impatient hurries nobody: the drain has an end of its own, and this is not it.
    server.signal(Signal::TERM);
    server.signal(Signal::INT);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    upstream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        .await
        .unwrap();
    let answer = conn.answer().await;
    assert_eq!((answer.status, answer.text()), (200, "late"));
    drop(conn);
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let exchange = events
        .iter()
        .find(|event| event["event"] == "exchange")
        .expect("a record");
    assert!(
        exchange["path"].as_str().unwrap().ends_with("/slow"),
        "{exchange}"
    );
    assert_eq!(exchange["status"], 200);
}

/// Stops the program in the middle of whatever it does, and waits until none of its threads runs.
#[cfg(target_os = "linux")]
async fn freeze(server: &super::Server) {
    server.signal(Signal::STOP);
    let id = server.child.id().expect("a running server");
    let is_stopped = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.expect("a thread").path().join("stat"));
        // One that ended meanwhile runs no more than others.
        let stat = stat.unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    within("no thread that runs", async {
        loop {
            let mut threads = std::fs::read_dir(format!("/proc/{id}/task")).expect("it lives");
            if threads.all(is_stopped) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_program_that_was_stopped_goes_on_where_it_was() {
    let origin = Origin::patient().await;
    let home = Home::new();
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let resolve = format!("--resolve=api.example.com={}", origin.addr());
    let server = home
        .serve_dev(&[&format!("--upstream-ca={roots}"), &resolve])
        .await;
    let sdk = Client::builder(server.url(), server.api_key());
    let sdk = sdk.build().unwrap();
    let session = sdk.create_session(&CreateSession::new()).await.unwrap();
    let exported = home.run(&["ca", "export"]).await.expect(0).stdout;
    let addresses = (Some(server.plain()), None);
    let (id, token) = (&session.session_id, &session.token);
    let workload = Workload::at(addresses, &exported, id, token);
    let target = "api.example.com:443";
    let mut open = workload.open_all(target).await;
    let [kept, _stream, _socket, _untouched] = &mut open[..] else {
        panic!("all four");
    };
    freeze(&server).await;
    origin.forget();
    let head = "GET /late HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
    kept.send(head).await;
    // The system takes connections in its place; nothing passes unseen meanwhile.
    let mut fresh = workload.plain().await;
    let authorization = workload.authorization();
    let connect = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    fresh.send(connect).await;
    origin.expect_nothing("a program that is stopped");
    server.signal(Signal::CONT);
    assert_eq!(kept.answer().await.status, 200);
    assert_eq!(fresh.answer_head().await.status, 200);
    let mut fresh = workload.encrypt(fresh, target).await;
    fresh.send(head).await;
    assert_eq!(fresh.answer().await.status, 200);
    sdk.get_session(id).await.unwrap();
    // What was open is so still, and ends with its session.
    sdk.delete_session(id).await.unwrap();
    for mut conn in open {
        let _ended = conn.rest_and_end().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = origin.local_addr().unwrap();
    let home = Home::new();
    let config = home.write("vault.toml", "[limits]\ndrain_timeout_ms = 1\n");
    let server = home.serve_dev(&["--config", &config]).await;
    let sdk = Client::builder(server.url(), server.api_key())
        .build()
        .unwrap();
    let session = sdk.create_session(&CreateSession::new()).await.unwrap();
    let credential = basic(&session.session_id, &session.token);
    let mut conn = dial(server.plain()).await;
    conn.send(format!(
        "GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\
         Proxy-Authorization: {credential}\r\n\r\n"
    ))
    .await;
    let (_upstream, _) = within("the request", origin.accept()).await.unwrap();
    let (code, _events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_secret_travels_as_the_readme_says() {
    let origin = Origin::echo_ok().await;
    let home = Home::new();
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let resolve = format!("api.example.com={}", origin.addr());
    let server = home
        .serve_dev(&["--upstream-ca", &roots, "--resolve", &resolve])
        .await;
    let request = json!({
        "secrets": { "EXAMPLE_KEY": super::CANARY },
        "secret_hosts": ["api.example.com"],
        "allowed_egress": ["api.example.com"],
    });
    let line = ["session", "create", "--server", &server.url()];
    let created = home
        .run_with(&line, &[], &request.to_string())
        .await
        .expect(0)
        .json();
    let exported = home.run(&["ca", "export"]).await.expect(0).stdout;
    let text = |name: &str| created[name].as_str().unwrap_or_else(|| panic!("{name}"));
    let sealed = created["sealed_secrets"]["EXAMPLE_KEY"].as_str().unwrap();
    let url = text("proxy_url");
    assert!(
        url.starts_with("https://sess_")
            && url.ends_with(&server.address("tls_listen").to_string())
    );
    let addresses = (Some(server.plain()), Some(server.address("tls_listen")));
    let workload = Workload::at(addresses, &exported, text("session_id"), text("token"));
    let mut conn = workload.connect_secure("api.example.com:443").await;
    let head = format!("GET /v1 HTTP/1.1\r\nHost: api.example.com\r\nX-Api-Key: {sealed}\r\n\r\n");
    conn.send(head).await;
    assert_eq!(conn.answer().await.status, 200);
    assert!(
        contains(&origin.bytes(), super::CANARY),
        "the secret arrives"
    );
    assert_eq!(workload.refused("evil.example:443").await.status, 403);
    drop(conn);
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let exchange = events
        .iter()
        .find(|event| event["event"] == "exchange")
        .expect("a record");
    assert_eq!(exchange["host"], "api.example.com");
    let printed = format!("{events:?}{log}");
    for hidden in [super::CANARY, sealed, text("token")] {
        assert!(!printed.contains(hidden), "{hidden} in {printed}");
    }
}

#[tokio::test]
async fn readme_block_works() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, rest) = readme.split_once("readme_block_works").expect("the mark");
    let block = rest
        .split("```")
        .nth(1)
        .and_then(|block| block.strip_prefix("sh\n"))
        .unwrap();
    for name in ["bash", "curl", "python3"] {
        if program(name).is_none() {
            return;
        }
    }
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert!(
        block.contains("127.0.0.1:8080") && block.contains("9999"),
        "{block}"
    );
    let block = block
        .replace("127.0.0.1:8080", &server.plain().to_string())
        .replace("9999", &free.port().to_string());
    // What the block leaves running ends with it.
    let script = format!("trap 'kill $(jobs -p)' EXIT\n{block}");
    let mut bash = tokio::process::Command::new("bash");
    let path = std::env::var_os("PATH").unwrap_or_default();
    bash.args(["-c", &script])
        .env_clear()
        .env("HOME", home.path("."))
        .env("PATH", path);
    let output = within("the block", bash.kill_on_drop(true).output())
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        stdout.contains("the upstream received the-real-value-1234\n"),
        "{stdout}{stderr}"
    );
    assert!(stdout.contains("x-api-key: SEALED_"), "{stdout}{stderr}");
    assert_eq!(
        stdout.matches("the-real-value-1234").count(),
        1,
        "{stdout}{stderr}"
    );
    server.stop().await;
}

#[tokio::test]
async fn the_log_is_on_stderr_in_the_form_asked_for() {
    for (form, is_json) in [("json", true), ("text", false)] {
        let home = Home::new();
        let server = home.serve_dev(&["--log", form]).await;
        let (_code, _events, log) = server.end(Signal::TERM).await;
        assert!(log.contains("draining"), "{log}");
        for line in log.lines() {
            let parsed = serde_json::from_str::<Value>(line);
            assert_eq!(parsed.is_ok(), is_json, "{form}: {line}");
        }
    }
}
