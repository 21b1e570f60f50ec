//! A crash of the process, and a panic in one of its tasks: neither shows what the program holds.

use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use oshu_vault::serve::{Config, Door, Handler, Room};
use oshu_vault::shutdown::Drain;
use oshu_vault::telemetry::{self, LogFormat};
use oshu_vault_sdk::{Client, CreateSession};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Needles, VALUE};
use crate::binary::Home;
use crate::support::clients::{files_under, run};
use crate::support::within;

/// Tells the child of the test below that it is the child.
const CHILD: &str = "OSHU_VAULT_TEST_PANICS";

#[tokio::test]
async fn case_79_a_crash_leaves_no_core() {
    let home = Home::new();
    // Core files of any size, in the working directory: so it would be without the program's doing.
    let shell = "ulimit -c unlimited; exec \"$0\" \"$@\"";
    let program = env!("CARGO_BIN_EXE_oshu-vault");
    let line = [
        "serve",
        "--dev",
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
    ];
    let mut command = tokio::process::Command::new("/bin/sh");
    command
        .args(["-c", shell, program])
        .args(line)
        .env_clear()
        .env("HOME", home.path(""))
        .current_dir(home.path(""));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().expect("the program");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut key = String::new();
    let address = loop {
        let line = within("a line", lines.next_line()).await.expect("stdout");
        let event: serde_json::Value =
            serde_json::from_str(&line.expect("the program is ready")).expect("JSON");
        match event["event"].as_str() {
            Some("api_key") => event["api_key"]
                .as_str()
                .unwrap_or_default()
                .clone_into(&mut key),
            _ => break event["listen"].as_str().expect("an address").to_owned(),
        }
    };
    let sdk = Client::builder(format!("http://{address}"), key.as_str());
    let request = CreateSession::new()
        .secret("K", VALUE)
        .secret_hosts(["a.example.com"]);
    let created = sdk
        .build()
        .expect("a client")
        .create_session(&request)
        .await;
    let session = created.expect("a session");

    let id = child.id().expect("a running program");
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).expect("its limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{core:?}");
    let id = Pid::from_raw(id.try_into().expect("an id")).expect("an id");
    // The runtime takes the first such signal for a stack that has grown too far, and looks.
    let end = async {
        loop {
            kill_process(id, Signal::SEGV).expect("a signal");
            let wait = tokio::time::timeout(Duration::from_millis(200), child.wait());
            if let Ok(status) = wait.await {
                return status.expect("a status");
            }
        }
    };
    let status = within("the end", end).await;
    assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()));
    assert!(!status.core_dumped(), "a core file was written");
    let needles = Needles::new([
        ("the value", VALUE),
        ("the credential", session.token.as_str()),
    ]);
    for (path, bytes) in files_under(&home.path("")) {
        needles.expect_none(&path.display().to_string(), bytes);
    }
}

#[tokio::test]
async fn case_79_a_panic_in_a_task_shows_nothing_and_others_live_on() {
    for format in ["json", "text", "none"] {
        let mut command = tokio::process::Command::new(std::env::current_exe().expect("this test"));
        command
            .args([
                "--exact",
                "leak::crash::panics_in_a_process_of_its_own",
                "--ignored",
            ])
            .arg("--nocapture")
            .env(CHILD, format);
        let said = run("the child", &mut command).await;
        said.expect_success("the child");
        assert!(
            said.stdout.contains("the others lived on"),
            "{}",
            said.stdout
        );
        let told = [&said.stdout, &said.stderr].map(String::as_str).concat();
        // The place is told, so that somebody can mend it; twice a request.
        let told_of = told.matches("tests/e2e/leak/crash.rs:").count();
        assert!(told_of >= 3, "{told}");
        assert!(told.contains("of its own text"), "{told}");
        Needles::new([("the value", VALUE)]).expect_none(format, told);
    }
}

/// Panics in the tasks of some connections and serves the others. Only ever run by the test above:
/// the hook is the whole process's.
#[tokio::test]
#[ignore = "the child of another test"]
async fn panics_in_a_process_of_its_own() {
    let Ok(format) = std::env::var(CHILD) else {
        return;
    };
    telemetry::hush_panics();
    match format.as_str() {
        "json" => telemetry::init(LogFormat::Json, "trace").expect("a log"),
        "text" => telemetry::init(LogFormat::Text, "trace").expect("a log"),
        _ => {}
    }
    let limits = Config {
        first_byte_timeout: Duration::from_mins(1),
        handshake_timeout: Duration::from_mins(1),
        connections: 4,
        workloads: 4,
        newcomers: 4,
    };
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let door = Door::bind(address, None, limits, Room::new(&limits));
    let door = door.await.expect("a listener");
    let address = door.address();
    let drain = Drain::new();
    let handler: Handler = Arc::new(|mut io, _peer| {
        Box::pin(async move {
            let mut order = [0];
            while io.read_exact(&mut order).await.is_ok() {
                match order[0] {
                    b'f' => panic!("the value is {VALUE}"),
                    b'e' => drop(VALUE.parse::<u64>().expect(VALUE)),
                    b'c' => drop(String::from(VALUE).replace('/', "é").split_off(10)),
                    b't' => panic!("of its own text"),
                    _ => io.write_all(b"ok").await.expect("somebody reads"),
                }
            }
        })
    });
    let served = tokio::spawn(door.run(handler, drain.clone()));
    let mut beside = TcpStream::connect(address).await.expect("a connection");
    let alive = async |conn: &mut TcpStream| {
        let mut answer = [0; 2];
        conn.write_all(b"a").await.expect("a connection");
        within("an answer", conn.read_exact(&mut answer))
            .await
            .expect("an answer");
    };
    alive(&mut beside).await;
    // More than there are permits: each comes back.
    for order in ["f", "e", "c", "t", "f", "e", "c", "t"] {
        let mut conn = TcpStream::connect(address).await.expect("a connection");
        alive(&mut conn).await;
        conn.write_all(order.as_bytes())
            .await
            .expect("a connection");
        let mut rest = Vec::new();
        let end = within("the end", conn.read_to_end(&mut rest)).await;
        assert_eq!(end.unwrap_or_default(), 0);
        alive(&mut beside).await;
    }
    served.abort();
    println!("the others lived on");
}
