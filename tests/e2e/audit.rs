//! Audit: one record for each exchange, tunnel and change, failures included, and no value in it.

use oshu_vault::config::{Config, OnFull};
use oshu_vault_sdk::UpdateSession;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};

use crate::support::{
    EVIL, GOOD, H2Origin, H2Scene, Origin, REAL, SIDE, Scene, TWO, VaultBuilder, contains, within,
};

const TARGET: &str = "good.example.com:443";

/// Tells whether a record has all the members of a pattern.
fn matches(record: &Value, pattern: &Value) -> bool {
    let members = pattern.as_object().expect("an object");
    members.iter().all(|(name, value)| match value {
        Value::Null => record.get(name).is_none(),
        value => record.get(name) == Some(value),
    })
}

/// Fails unless exactly one record matches.
fn one<'a>(lines: &'a [Value], pattern: &Value) -> &'a Value {
    let found: Vec<_> = lines.iter().filter(|line| matches(line, pattern)).collect();
    assert_eq!(found.len(), 1, "{pattern} in {lines:#?}");
    found[0]
}

async fn origin() -> Origin {
    Origin::script(|request, conn| async move {
        let path = request
            .line()
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        if path.starts_with("/bad-answer") {
            conn.send("HTTP/1.1 200 OK\nContent-Length: 0\n\n").await;
        } else if path.starts_with("/no-answer") {
            conn.close().await;
        } else if path.starts_with("/cut") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
                .await;
            conn.close().await;
        } else if path.starts_with("/left") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
                .await;
            conn.wait_end().await;
        } else if path.starts_with("/500") {
            conn.send("HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops")
                .await;
        } else {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await
}

/// The exchanges of [`play`] by their paths, and what their records must say.
const EXCHANGES: &[(&str, &str)] = &[
    (
        "/plain",
        r#"{"method": "GET", "host": "good.example.com", "port": 443, "status": 200,
        "decision": "allowed", "reason": "ok", "swapped": null, "bytes_up": 0, "bytes_down": 2}"#,
    ),
    (
        "/swapped",
        r#"{"method": "POST", "decision": "allowed", "status": 200, "bytes_up": 5,
        "swapped": ["EXAMPLE_KEY"], "tokens_left": 1}"#,
    ),
    (
        "/500",
        r#"{"decision": "allowed", "status": 500, "bytes_down": 4}"#,
    ),
    (
        "/misdirected",
        r#"{"decision": "denied", "reason": "another_authority", "status": 421,
        "host": "good.example.com"}"#,
    ),
    (
        "/bad-answer",
        r#"{"decision": "failed", "reason": "http_response_invalid", "status": 502}"#,
    ),
    (
        "/no-answer",
        r#"{"decision": "failed", "reason": "http_response_incomplete",
        "status": 502}"#,
    ),
    (
        "/trace",
        r#"{"decision": "denied", "reason": "method_not_allowed", "status": 405}"#,
    ),
    (
        "/cut",
        r#"{"decision": "failed", "reason": "upstream_cut", "status": 200, "bytes_down": 5}"#,
    ),
    (
        "/left",
        r#"{"decision": "aborted", "reason": "client_gone", "status": 200, "bytes_down": 5}"#,
    ),
    (
        "/plain-refused",
        r#"{"decision": "denied", "reason": "host_not_allowed", "status": 403, "port": 80,
        "host": "evil.example.net"}"#,
    ),
    (
        "/side",
        r#"{"decision": "allowed", "host": "side.example.com", "swapped": [],
        "tokens_left": 1}"#,
    ),
];

/// Makes one exchange of every kind; each has a query, which no record may show.
async fn play(scene: &Scene) {
    let token = scene.token();
    let query = "?q=query-value";
    let mut conn = scene.workload.connect(TARGET).await;
    let fields =
        format!("X-Key: {token}\r\nX-B: {token}\r\nCookie: {token}\r\nContent-Length: 5\r\n");
    for (method, path, host, fields, body) in [
        ("GET", "/plain", GOOD, "", ""),
        ("POST", "/swapped", GOOD, fields.as_str(), "hello"),
        ("GET", "/500", GOOD, "", ""),
        ("GET", "/misdirected", EVIL, "", ""),
    ] {
        let head = format!("{method} {path}{query} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n{body}");
        conn.send(head).await;
        conn.answer().await;
    }
    drop(conn);
    let get = |path: &str| format!("GET {path}{query} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    for (request, status) in [
        (get("/bad-answer"), 502),
        (get("/no-answer"), 502),
        (get("/trace").replace("GET", "TRACE"), 405),
        ("G\"T /unread HTTP/1.1\r\n\r\n".to_owned(), 400),
    ] {
        assert_eq!(scene.ask(GOOD, &request).await.status, status, "{request}");
    }
    for path in ["/cut", "/left"] {
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(get(path)).await;
        conn.take_until(b"hello").await;
        if path == "/cut" {
            // What is left is the end of a chunk at most.
            assert!(conn.rest().await.len() <= 2, "a cut");
        }
    }
    let scoped = format!("GET /side HTTP/1.1\r\nHost: {SIDE}\r\nX-Key: {token}\r\n\r\n");
    assert_eq!(scene.ask(SIDE, scoped).await.status, 200);
    let url = format!("http://{EVIL}/plain-refused");
    assert_eq!(scene.workload.get(&url, &[]).await.status, 403);
}

#[tokio::test]
async fn every_exchange_has_exactly_one_record() {
    let mut scene = Scene::around(origin().await).await;
    play(&scene).await;
    let log = scene.vault.audit_log().clone();
    scene.vault.drain().await.expect("drained");
    let lines = log.lines();
    for (path, members) in EXCHANGES {
        let id = &scene.session.session_id;
        let record = one(
            &lines,
            &json!({ "event": "exchange", "path": path, "session": id }),
        );
        let members = serde_json::from_str(members).expect("JSON");
        assert!(
            matches(record, &members),
            "{path}: {members} against {record}"
        );
        let took = record["duration_ms"].as_f64();
        assert!(took.is_some_and(|took| took > 0.0), "{record}");
        let time = record["time"].as_str();
        assert!(time.is_some_and(|time| time.len() == 24), "{record}");
    }
    one(
        &lines,
        &json!({ "event": "exchange", "reason": "bad_request_line", "status": 400, "path": null }),
    );
    let exchanges = lines.iter().filter(|line| line["event"] == "exchange");
    assert_eq!(exchanges.count(), 12, "one each: {lines:#?}");
    let raw = log.raw();
    let hidden = [
        REAL,
        scene.token(),
        &scene.session.token,
        "query-value",
        "SEALED_",
        "hello",
        "?",
    ];
    for hidden in hidden {
        assert!(!contains(&raw, hidden), "{hidden}");
    }
}

#[tokio::test]
async fn every_tunnel_has_exactly_one_record() {
    let mut scene = Scene::new().await;
    let id = scene.session.session_id.clone();
    let line = scene.workload.authorization();
    // Refused before it opened.
    for (target, credentials) in [
        ("evil.example.net:443", line.as_str()),
        ("good.example.com:443", ""),
        ("good.example.com", &line),
    ] {
        let mut conn = scene.workload.plain().await;
        conn.send(format!("CONNECT {target} HTTP/1.1\r\n{credentials}\r\n"))
            .await;
        assert_ne!(conn.answer().await.status, 200);
    }
    // Opened and used.
    scene.alive("a tunnel").await;
    // Another name, another protocol, no certificate that the client knows.
    let other = ServerName::try_from("side.example.com").expect("a name");
    let tunnel = scene.workload.tunnel(TARGET).await;
    assert!(
        scene
            .workload
            .handshake(tunnel.into_io(), other, &[])
            .await
            .is_err()
    );
    let mut tunnel = scene.workload.tunnel(TARGET).await;
    tunnel.send(b"\0").await;
    tunnel.expect_end().await;
    let mut tunnel = scene.workload.tunnel("side.example.com:443").await;
    let patch = UpdateSession::new().allowed_egress([GOOD]);
    scene
        .vault
        .sdk()
        .update_session(&id, &patch)
        .await
        .expect("a patch");
    tunnel.expect_end().await;

    let log = scene.vault.audit_log().clone();
    scene.vault.drain().await.expect("drained");
    let lines = log.lines();
    for pattern in [
        json!({ "decision": "denied", "reason": "host_not_allowed", "status": 403, "host": EVIL, "session": id }),
        json!({ "decision": "denied", "reason": "proxy_authentication_required", "status": 407, "session": null }),
        json!({ "decision": "denied", "reason": "bad_connect_target", "status": 400, "session": id }),
        json!({ "decision": "allowed", "reason": "ok", "status": 200, "host": GOOD, "port": 443 }),
        json!({ "decision": "denied", "reason": "another_server_name", "host": GOOD }),
        json!({ "decision": "denied", "reason": "unknown_protocol", "host": GOOD }),
        json!({ "decision": "aborted", "reason": "session_cut", "host": SIDE }),
    ] {
        let mut pattern = pattern;
        pattern["event"] = json!("tunnel");
        let record = one(&lines, &pattern);
        assert!(record["peer"].is_string(), "{record}");
    }
    let tunnels = lines
        .iter()
        .filter(|line| line["event"] == "tunnel")
        .count();
    assert_eq!(tunnels, 7, "one each: {lines:#?}");
    assert!(!contains(&log.raw(), &scene.session.token));
}

#[tokio::test]
async fn changes_of_sessions_are_recorded() {
    let mut scene = Scene::new().await;
    let (sdk, id) = (scene.vault.sdk(), scene.session.session_id.clone());
    let rotate = UpdateSession::new().secret("EXAMPLE_KEY", "rotated-value-0123456789");
    sdk.update_session(&id, &rotate).await.expect("a patch");
    let bad = UpdateSession::new().ttl_seconds(1);
    sdk.update_session(&id, &bad)
        .await
        .expect_err("a bad patch");
    sdk.delete_session(&id).await.expect("deleted");
    let log = scene.vault.audit_log().clone();
    scene.vault.drain().await.expect("drained");
    let lines = log.lines();
    for (action, decision) in [
        ("created", "allowed"),
        ("patched", "allowed"),
        ("patched", "failed"),
        ("deleted", "allowed"),
    ] {
        let pattern = json!({
            "event": "session", "action": action, "decision": decision, "session": id,
            "tenant": "default",
        });
        one(&lines, &pattern);
    }
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(!contains(&log.raw(), "rotated-value"));
}

/// Asks whether new work is taken.
async fn ready(scene: &Scene) -> (u16, String) {
    let mut conn = scene.workload.plain().await;
    conn.send("GET /readyz HTTP/1.1\r\nHost: v\r\n\r\n").await;
    let answer = conn.answer().await;
    (answer.status, answer.code())
}

/// Has what is new refused while the sink is full.
fn refuse(config: &mut Config) {
    config.audit.on_full = OnFull::Refuse;
}

#[tokio::test]
async fn a_full_sink_refuses_what_is_new_where_the_operator_says_so() {
    let set = |vault: VaultBuilder| vault.config(refuse);
    let world = H2Scene::with(H2Origin::echo_ok().await, set).await;
    let scene = &world.scene;
    let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
    let doomed = scene.vault.session(&Scene::request()).await;
    let mut open = scene.workload.connect(TARGET).await;
    let two = scene.workload.h2(&format!("{TWO}:443")).await;
    scene.alive("before").await;
    two.get("/alive").await;
    let log = scene.vault.audit_log();
    log.fill();
    let head = scene.fill("GET /full HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    open.send(&head).await;
    let answer = open.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "audit_full"));
    assert_eq!(answer.header("retry-after"), Some("5"));
    let answer = two.get("/full").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "audit_full"));
    for target in [TARGET, "evil.example.net:443"] {
        let answer = scene.workload.refused(target).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "audit_full"));
    }
    let url = format!("http://{SIDE}/full");
    let answer = scene.workload.get(&url, &[]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "audit_full"));
    let refused = sdk.create_session(&Scene::request()).await.err();
    assert_eq!(refused.expect("a refusal").status(), Some(503));
    let patch = UpdateSession::new().ttl_seconds(600);
    let refused = sdk.update_session(id, &patch).await.err();
    assert_eq!(refused.expect("a refusal").status(), Some(503));
    sdk.get_session(id)
        .await
        .expect("nothing is recorded of it");
    sdk.delete_session(&doomed.session_id)
        .await
        .expect("taken away all the same");
    for origin in [&scene.good, &scene.side, &scene.evil] {
        assert!(!contains(&origin.bytes(), "/full"), "nothing arrived");
    }
    assert_eq!(ready(scene).await, (503, "audit_full".to_owned()));
    log.hold(false);
    let gone = json!({ "event": "session", "action": "deleted", "decision": "allowed",
        "session": doomed.session_id });
    let is_gone =
        |line: &Value| line["action"] == gone["action"] && line["session"] == gone["session"];
    // The gap comes first of what was held, and the deletion among the last.
    let told = |lines: &[Value]| {
        let has_gap = lines.iter().any(|line| line["event"] == "audit_gap");
        has_gap && lines.iter().any(is_gone)
    };
    let lines = log.wait("the gap of the refusals", told).await;
    one(&lines, &gone);
    assert_eq!(ready(scene).await.0, 200);
    scene.alive("a full sink").await;
    open.send(&head).await;
    assert_eq!(open.answer().await.status, 200, "the same tunnel");
}

#[tokio::test]
async fn a_full_sink_leaves_a_gap_where_nothing_else_is_said() {
    let scene = Scene::new().await;
    let log = scene.vault.audit_log();
    log.fill();
    let before = log.sink().stats().lost;
    scene.alive("a full sink").await;
    let lost = |at_least| async move {
        // The tunnel's own record comes when its connection has ended.
        within("lost records", async {
            while log.sink().stats().lost < at_least {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    lost(before + 2).await;
    log.hold(false);
    let told = |lines: &[Value]| lines.iter().any(|line| line["event"] == "audit_gap");
    let lines = log.wait("the gap", told).await;
    let gaps = lines.iter().filter(|line| line["event"] == "audit_gap");
    let sum: u64 = gaps.filter_map(|line| line["lost"].as_u64()).sum();
    assert_eq!(sum, log.sink().stats().lost, "the count is exact");
    assert!(sum >= 3);
}
