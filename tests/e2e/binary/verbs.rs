//! The verbs beside `serve`: `session`, `ca`, `healthcheck`, `version`.

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{CANARY, Home, get, mode, mode_of};

fn request() -> Value {
    json!({
        "secrets": { "ANTHROPIC_API_KEY": CANARY },
        "allowed_egress": ["api.anthropic.com"],
        "metadata": { "sandbox": "sb_1" },
    })
}

#[tokio::test]
async fn a_session_is_created_listed_shown_and_deleted() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let url = server.url();
    let file = home.write("request.json", request().to_string());
    let session = |words: &[&str]| {
        let line: Vec<String> = ["session"]
            .iter()
            .chain(words)
            .map(|w| (*w).to_owned())
            .collect();
        let (home, url) = (&home, url.clone());
        async move {
            let mut line: Vec<&str> = line.iter().map(String::as_str).collect();
            line.extend(["--server", &url]);
            home.run_with(&line, &[], &request().to_string()).await
        }
    };
    let mut ids = Vec::new();
    for words in [
        &["create"][..],
        &["create", "--file", "-"],
        &["create", "--file", &file],
    ] {
        let ended = session(words).await.expect(0);
        assert_eq!(ended.stderr, "");
        assert!(
            ended.stdout.starts_with("{\n  \""),
            "pretty: {}",
            ended.stdout
        );
        let created = ended.json();
        let token = created["token"].as_str().unwrap();
        let sealed = created["sealed_secrets"]["ANTHROPIC_API_KEY"]
            .as_str()
            .unwrap();
        assert!(
            token.starts_with("tok_") && sealed.contains("SEALED_"),
            "{created}"
        );
        let id = created["session_id"].as_str().unwrap().to_owned();
        for words in [&["show", &id][..], &["list"]] {
            let shown = session(words).await.expect(0);
            for hidden in [token, sealed] {
                assert!(!shown.stdout.contains(hidden), "{}", shown.stdout);
            }
            assert!(shown.stdout.contains(&id), "{}", shown.stdout);
        }
        ids.push(id);
    }
    let shown = session(&["show", &ids[0]]).await.expect(0).json();
    assert_eq!(shown["metadata"], json!({ "sandbox": "sb_1" }));
    let listed = session(&["list"]).await.expect(0).json();
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 3);
    let deleted = session(&["delete", &ids[0]]).await.expect(0);
    assert_eq!((deleted.stdout.as_str(), deleted.stderr.as_str()), ("", ""));
    for words in [["show", &ids[0]], ["delete", &ids[0]]] {
        let ended = session(&words).await.complains(1, &[]);
        assert_eq!(ended.stderr, "error: there is nothing here by this name\n");
    }
    assert_eq!(
        session(&["list"]).await.json()["sessions"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    server.stop().await;
}

#[tokio::test]
async fn a_list_has_every_page() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let sdk = oshu_vault_sdk::Client::builder(server.url(), server.api_key())
        .build()
        .unwrap();
    for _ in 0..101 {
        sdk.create_session(&oshu_vault_sdk::CreateSession::new())
            .await
            .unwrap();
    }
    let line = ["session", "list", "--server", &server.url()];
    let listed = home.run(&line).await.expect(0).json();
    let sessions = listed["sessions"].as_array().unwrap();
    let ids = sessions
        .iter()
        .map(|session| session["session_id"].as_str().unwrap());
    assert_eq!(ids.collect::<std::collections::HashSet<_>>().len(), 101);
    server.stop().await;
}

#[tokio::test]
async fn a_bad_request_is_told_field_by_field() {
    let home = Home::new();
    let config = home.write("vault.toml", "danger_unscoped_secrets = 'refuse'");
    let server = home.serve_dev(&["--config", &config]).await;
    let url = server.url();
    let line = ["session", "create", "--server", &url];
    for (body, code, parts) in [
        ("", 64, &["stdin is not JSON: line 1"][..]),
        (
            "{\"secrets\": {\"A\": \"canary-0123456789abcdef}",
            64,
            &["stdin is not JSON: line 1"],
        ),
        ("{} {}", 64, &["stdin is not JSON"]),
        ("[]", 1, &["error: "]),
        (
            "{\"secrets\":{\"A\":\"x\"},\"secrets\":{}}",
            1,
            &["error: secrets: "],
        ),
        (
            "{\"allowed_egres\":[\"*\"],\"ttl_seconds\":1,\"secrets\":{\"A\":\"canary\",\
             \"MY_KEY\":\"canary-0123456789abcdef\",\"B\":\"canary-\\n0123456789\",\
             \"C\":{\"value\":\"canary-0123456789abcdef\",\"hosts\":[\"*.com\"],\"host\":1}},\
             \"allowed_egress\":[\"*\",\"10.0.0.0/8\"],\"inject\":[\"header:Host\"]}",
            1,
            &[
                "error: allowed_egres: ",
                "error: ttl_seconds: ",
                "error: secrets.A: ",
                "error: secrets.B: ",
                "error: secrets.C.hosts[0]: ",
                "error: secrets.C.host: ",
                "error: allowed_egress[0]: ",
                "error: allowed_egress[1]: ",
                "error: inject[0]: ",
            ],
        ),
        (
            "{\"secrets\":{\"MY_KEY\":\"canary-0123456789abcdef\"}}",
            1,
            &["error: secrets.MY_KEY: "],
        ),
        (
            "{\"secrets\":{\"AWS_SECRET_ACCESS_KEY\":\"canary-0123456789abcdef\"}}",
            1,
            &["error: secrets.AWS_SECRET_ACCESS_KEY: "],
        ),
    ] {
        let ended = home.run_with(&line, &[], body).await.complains(code, parts);
        assert!(
            ended.stderr.lines().all(|line| line.starts_with("error: ")),
            "{}",
            ended.stderr
        );
        assert_eq!(get(server.plain(), "/healthz").await.status, 200);
    }
    let long = format!("\"{}\"", "x".repeat(1024 * 1024));
    home.run_with(&line, &[], &long)
        .await
        .complains(64, &["stdin has more than 1 MiB"]);
    let missing = home.text("missing.json");
    let line = [&line[..], &["--file", &missing]].concat();
    home.run(&line)
        .await
        .complains(64, &["--file", &missing, "cannot be read"]);
    server.stop().await;
}

#[tokio::test]
async fn the_server_and_the_key_are_found_and_refusals_name_them() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let (url, key) = (server.url(), server.api_key());
    let wrong = home.write("wrong.key", CANARY);
    let list = ["session", "list"];
    let good = home.write("good.key", &key);
    for variables in [
        &[("OSHU_VAULT_SERVER", url.as_str())][..],
        &[
            ("OSHU_VAULT_SERVER", url.as_str()),
            ("SECRETS_PROXY_API_KEY", key.as_str()),
        ],
        &[
            ("OSHU_VAULT_SERVER", url.as_str()),
            ("SECRETS_PROXY_API_KEY_FILE", good.as_str()),
        ],
    ] {
        home.run_with(&list, variables, "").await.expect(0);
    }
    let line = [&list[..], &["--server", &url, "--api-key-file", &wrong]].concat();
    home.run(&line)
        .await
        .complains(1, &["error: an API key is needed"]);
    mode(&home.path("wrong.key"), 0o644);
    home.run(&line)
        .await
        .complains(64, &["--api-key-file", "chmod 600"]);
    let other = Home::new();
    let line = [&list[..], &["--server", &url]].concat();
    other
        .run(&line)
        .await
        .complains(64, &["SECRETS_PROXY_API_KEY", "--api-key-file", "api.key"]);

    let tls = format!("https://{}", server.address("tls_listen"));
    let ca = home.state("ca.pem").display().to_string();
    let line = [&list[..], &["--server", &tls, "--ca", &ca]].concat();
    home.run(&line).await.expect(0);
    home.run(&[&list[..], &["--server", &tls]].concat())
        .await
        .complains(1, &[&tls, "--ca"]);
    server.stop().await;

    // A listener that takes the connection and hangs up.
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", closing.local_addr().unwrap());
    tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    for (server, part) in [
        (&url, "nothing can be reached"),
        (&address, "the connection"),
    ] {
        let line = [&list[..], &["--server", server]].concat();
        home.run(&line).await.complains(1, &[server, part]);
    }
}

#[tokio::test]
async fn peer_75_a_root_is_shown_with_its_fingerprint_and_without_its_key() {
    let home = Home::new();
    std::fs::create_dir(home.path("certs")).unwrap();
    std::fs::write(home.path("certs/README.md"), "").unwrap();
    for (words, folder) in [
        (&[][..], home.state("")),
        (&["--state-dir", "named"], home.path("named")),
        (&["--out", "certs/"], home.path("certs")),
    ] {
        let line = [&["ca", "generate"], words].concat();
        let made = home.run(&line).await.expect(0);
        let (cert, key) = (folder.join("ca.pem"), folder.join("ca.key"));
        assert_eq!((mode_of(&key), mode_of(&cert)), (0o600, 0o644));
        let before = std::fs::read(&key).unwrap();
        home.run(&line).await.complains(1, &["already holds"]);
        assert_eq!(
            std::fs::read(&key).unwrap(),
            before,
            "nothing is overwritten"
        );

        let state = folder.display().to_string();
        let shown = home
            .run(&["ca", "show", "--state-dir", &state])
            .await
            .expect(0);
        for name in ["subject:", "not before:", "not after:", "sha-256:", "file:"] {
            assert!(shown.stdout.contains(name), "{}", shown.stdout);
        }
        let printed = |stdout: &str| {
            let line = stdout
                .lines()
                .find_map(|line| line.strip_prefix("sha-256:"));
            line.expect("a fingerprint").trim().to_owned()
        };
        let pem = std::fs::read_to_string(&cert).unwrap();
        assert_eq!(printed(&shown.stdout), fingerprint(&pem));
        assert_eq!(printed(&made.stdout), fingerprint(&pem));
        let exported = home
            .run(&["ca", "export", "--state-dir", &state])
            .await
            .expect(0);
        assert_eq!(exported.stdout, pem);
        let out = home.text("out.pem");
        let line = ["ca", "export", "--state-dir", &state, "--out", &out];
        assert_eq!(home.run(&line).await.expect(0).stdout, "");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), pem);
        for ended in [&made, &shown, &exported] {
            assert!(!ended.stdout.contains("PRIVATE"), "{}", ended.stdout);
        }
    }
}

#[tokio::test]
async fn a_root_that_is_not_there_or_broken_is_told() {
    let home = Home::new();
    for verb in ["show", "export"] {
        home.run(&["ca", verb]).await.complains(1, &["ca generate"]);
    }
    home.run(&["ca", "generate"]).await.expect(0);
    let state = home.state("ca.pem");
    let pem = std::fs::read_to_string(&state).unwrap();
    let key = std::fs::read_to_string(home.state("ca.key")).unwrap();
    // Somebody keeps both in one file: only the certificate leaves it.
    std::fs::write(&state, format!("{key}{pem}")).unwrap();
    assert_eq!(home.run(&["ca", "export"]).await.expect(0).stdout, pem);
    let not_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for content in [
        "",
        CANARY,
        "-----BEGIN canary-0123456789abcdef\n",
        &pem.repeat(2),
    ] {
        std::fs::write(&state, content).unwrap();
        for verb in ["show", "export"] {
            home.run(&["ca", verb])
                .await
                .complains(1, &["ca.pem", "one certificate"]);
        }
    }
    std::fs::write(&state, not_x509).unwrap();
    home.run(&["ca", "show"])
        .await
        .complains(1, &["ca.pem", "X.509"]);
    std::fs::write(&state, &pem).unwrap();
    let nowhere = home.text("no/such/folder.pem");
    home.run(&["ca", "export", "--out", &nowhere])
        .await
        .complains(1, &["--out", &nowhere]);
}

#[tokio::test]
async fn a_healthcheck_needs_no_key() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let url = server.url();
    let other = Home::new();
    let ended = other
        .run(&["healthcheck", "--server", &url])
        .await
        .expect(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    let by_name = url.replace("127.0.0.1", "localhost");
    other
        .run(&["healthcheck", "--server", &by_name])
        .await
        .expect(0);
    let variable = [("OSHU_VAULT_SERVER", url.as_str())];
    other
        .run_with(&["healthcheck"], &variable, "")
        .await
        .expect(0);
    server.stop().await;
    other
        .run(&["healthcheck", "--server", &url])
        .await
        .complains(1, &[&url]);
    other
        .run_with(&["healthcheck"], &[("OSHU_VAULT_SERVER", CANARY)], "")
        .await
        .complains(64, &["OSHU_VAULT_SERVER"]);
}

#[tokio::test]
async fn the_version_is_printed() {
    let home = Home::new();
    let version = home.run(&["version"]).await.expect(0).stdout;
    let first = format!("oshu-vault {}\n", env!("CARGO_PKG_VERSION"));
    assert!(
        version.starts_with(&first) && version.contains("aws-lc-rs"),
        "{version}"
    );
    assert_eq!(home.run(&["--version"]).await.expect(0).stdout, first);
    assert!(
        home.run(&["--help"])
            .await
            .expect(0)
            .stdout
            .contains("healthcheck")
    );
}

fn fingerprint(pem: &str) -> String {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    let pairs: Vec<String> = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    pairs.join(":")
}
