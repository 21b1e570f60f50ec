//! Floods of HTTP/2 at the real program: what they cost it is over when they are.
//!
//! The same floods are judged one by one in `h2_rules`; here only memory is looked at, in a process
//! that does nothing else.

use oshu_vault_sdk::{Client, CreateSession};
use serde_json::{Value, json};

use super::{Home, get};
use crate::h2_rules::{Hostile, base};
use crate::support::{H2Origin, TWO, TestCa, Workload};

/// How much more memory the program may keep after a flood than before, in KiB.
const GROWTH_KIB: u64 = 8 * 1024;
/// How much more it may have while the connection of a flood is open, in KiB.
const OPEN_GROWTH_KIB: u64 = 24 * 1024;

fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    let status = status.expect("the program runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().next());
    size.expect("a size").parse().expect("a number")
}

/// The floods, by the number of their case.
fn floods() -> Vec<(&'static str, Vec<Value>)> {
    let request = base(TWO, "GET", "/flood");
    let open = json!(["headers", 1, request, false]);
    let streams = |steps: Value| vec![json!(["flood", 10_000, 1, steps])];
    let frames =
        |kind: u8, stream: u32, payload: &str| json!(["raw", kind, 0, stream, payload, 50_000]);
    let field = format!("0001780c{}", "76".repeat(12));
    // Of sixteen kilobytes each: eighty megabytes of a head, if it were kept.
    let large = format!("0001787f817e{}", "76".repeat(16_256));
    let entry = format!("4001787fbd1d{}", "76".repeat(3900));
    let bomb = format!(
        "828784410f{}{entry}{}",
        "74776f2e6578616d706c652e636f6d",
        "be".repeat(16_000)
    );
    vec![
        (
            "73: resets",
            streams(json!([["headers", "$", request], ["reset", "$"]])),
        ),
        (
            "73: resets of ours",
            streams(json!([
                ["headers", "$", request, false],
                ["window", "$", 0]
            ])),
        ),
        (
            "74: CONTINUATION",
            vec![json!(["raw", 1, 0, 1, "82"]), frames(9, 1, &field)],
        ),
        (
            "74: a head without end",
            vec![
                json!(["raw", 1, 0, 1, "82"]),
                json!(["raw", 9, 0, 1, large, 5_000]),
            ],
        ),
        ("74: a header bomb", vec![json!(["block", 1, bomb])]),
        ("75: SETTINGS", vec![frames(4, 0, "000400010000")]),
        ("75: PING", vec![frames(6, 0, "0000000000000000")]),
        ("75: PRIORITY", vec![frames(2, 1, "0000000010")]),
        ("75: empty DATA", vec![open.clone(), frames(0, 1, "")]),
        (
            "75: empty HEADERS",
            vec![json!(["raw", 1, 0, 1, ""]), frames(9, 1, "")],
        ),
        ("75: WINDOW_UPDATE", vec![open, frames(8, 1, "00000001")]),
    ]
}

#[tokio::test]
async fn case_75_floods_leave_no_memory_behind() {
    let origin = H2Origin::echo_ok().await;
    let home = Home::new();
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let (roots, resolve) = (
        format!("--upstream-ca={roots}"),
        format!("--resolve={TWO}={}", origin.addr()),
    );
    let mut server = home.serve_dev(&[&roots, &resolve]).await;
    let sdk = Client::builder(server.url(), server.api_key())
        .build()
        .expect("a client");
    let session = sdk
        .create_session(&CreateSession::new())
        .await
        .expect("a session");
    let ca = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
    let (id, token) = (&session.session_id, &session.token);
    let workload = Workload::at((Some(server.plain()), None), &ca, id, token);
    let process = server.child.id().expect("a process");
    let Some(mut hostile) = Hostile::at(server.plain(), &ca, &workload).await else {
        return;
    };
    // The records are read and dropped, so that the pipe never fills.
    server.ignore_events();
    let _child = server.child;
    // Once for what is made once: buffers of the allocator, the leaf, the pool.
    for (_, steps) in floods() {
        hostile.play(TWO, &steps).await;
    }
    let base = resident_kib(process);
    for (case, steps) in floods() {
        let look = || resident_kib(process);
        let open = hostile.play_and_look(TWO, &steps, look).await;
        assert!(
            open <= base + OPEN_GROWTH_KIB,
            "{case}: {base} KiB before, {open} in it"
        );
        let client = workload.h2("two.example.com:443").await;
        assert_eq!(client.get("/alive").await.status, 200, "after {case}");
        client.vanish().await;
        let now = resident_kib(process);
        println!("{case}: {base} KiB, {open} in it, then {now}");
        assert!(
            now <= base + GROWTH_KIB,
            "{case}: {base} KiB before, {now} after"
        );
    }
}
