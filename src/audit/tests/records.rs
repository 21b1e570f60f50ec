//! Records: what each holds, and that each is written once.

use crate::audit::*;

const NAME: &str = "ANTHROPIC_API_KEY";

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().copied().map(Arc::from).collect()
}

#[test]
fn a_full_record_has_every_field_in_order() {
    let (sink, captured) = capture();
    let session = SessionId::generate();
    let mut record = Record::begin(&sink, Kind::Exchange);
    record.tenant(&TenantId::new("acme"));
    record.session(&session);
    record.target(&HostPort::parse("api.anthropic.com:443").unwrap());
    record.request("POST", "/v1/messages");
    record.decision(Decision::Allowed, "allowed");
    record.status(200);
    record.swapped(&names(&[NAME]), 0);
    record.bytes_up(12);
    record.bytes_down(3456);
    record.peer("127.0.0.1:5000".parse().unwrap());
    record.address("[2001:db8::1]:443".parse().unwrap());
    drop(record);
    let text = captured.text();
    let (start, rest) = text.split_at(text.find(",\"tenant\"").unwrap());
    let (middle, end) = rest.split_at(rest.find(",\"duration_ms\"").unwrap());
    assert!(
        start.starts_with(r#"{"event":"exchange","time":"2"#),
        "{start}"
    );
    let expected = format!(
        r#","tenant":"acme","session":"{session}","host":"api.anthropic.com","port":443,"#,
    ) + r#""method":"POST","path":"/v1/messages","decision":"allowed","#
        + r#""reason":"allowed","status":200,"swapped":["ANTHROPIC_API_KEY"],"#
        + r#""tokens_left":0,"bytes_up":12,"bytes_down":3456,"#
        + r#""peer":"127.0.0.1:5000","address":"[2001:db8::1]:443""#;
    assert_eq!(middle, expected);
    assert!(end.ends_with("}\n"), "{end}");
}

#[test]
fn what_was_never_set_is_absent() {
    let (sink, captured) = capture();
    drop(Record::begin(&sink, Kind::Tunnel));
    let mut record = Record::begin(&sink, Kind::Session);
    record.action("expired");
    drop(record);
    let lines = captured.lines();
    let keys = |at: usize| {
        let object = lines[at].as_object().unwrap();
        object.keys().map(String::as_str).collect::<Vec<_>>()
    };
    assert_eq!(lines.len(), 2);
    let always = ["decision", "duration_ms", "event", "reason", "time"];
    assert_eq!(keys(0), always);
    assert_eq!(keys(1), [&["action"], &always[..]].concat());
    assert_eq!(lines[0]["event"], "tunnel");
    assert_eq!(lines[0]["decision"], "aborted");
    assert_eq!(lines[0]["reason"], INCOMPLETE);
    assert_eq!(lines[1]["event"], "session");
}

#[test]
fn decisions_are_written_as_words() {
    for (decision, word) in [
        (Decision::Aborted, "aborted"),
        (Decision::Allowed, "allowed"),
        (Decision::Denied, "denied"),
        (Decision::Failed, "failed"),
    ] {
        let (sink, captured) = capture();
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.decision(Decision::Allowed, "first");
        record.decision(decision, "last");
        drop(record);
        assert_eq!(captured.lines()[0]["decision"], word);
        assert_eq!(captured.lines()[0]["reason"], "last");
    }
}

#[test]
fn swaps_of_head_and_body_add_up() {
    let (sink, captured) = capture();
    let mut record = Record::begin(&sink, Kind::Exchange);
    record.swapped(&names(&["A", "B"]), 1);
    record.swapped(&names(&["B", "C"]), 2);
    drop(record);
    let line = &captured.lines()[0];
    assert_eq!(line["swapped"], serde_json::json!(["A", "B", "C"]));
    assert_eq!(line["tokens_left"], 3);
}

#[test]
fn what_a_body_had_is_known_at_the_end() {
    let (sink, captured) = capture();
    let body = Arc::new(BodySwaps::default());
    let mut record = Record::begin(&sink, Kind::Exchange);
    record.body(&body);
    record.swapped(&names(&["A"]), 1);
    body.add(&names(&["A", "B"]), 2);
    body.add(&names(&["B"]), 0);
    drop(record);
    let mut record = Record::begin(&sink, Kind::Exchange);
    record.body(&Arc::default());
    drop(record);
    let lines = captured.lines();
    assert_eq!(lines[0]["swapped"], serde_json::json!(["A", "B"]));
    assert_eq!(lines[0]["swapped_in_body"], serde_json::json!(["A", "B"]));
    assert_eq!(lines[0]["tokens_left"], 3);
    assert!(lines[1].get("swapped").is_none());
}

#[test]
fn a_query_is_never_kept() {
    for path in ["/a?key=canary", "/a#canary", "/a?x#canary", "/a?"] {
        let (sink, captured) = capture();
        Record::begin(&sink, Kind::Exchange).request("GET", path);
        assert!(!captured.text().contains("canary"), "{path}");
        assert_eq!(captured.lines()[0]["path"], "/a", "{path}");
    }
}

#[test]
fn long_and_odd_texts_are_cut_and_escaped() {
    // The limit falls into the middle of a character.
    let long = format!("/{}", "é".repeat(PATH_LIMIT_BYTES));
    let (sink, captured) = capture();
    Record::begin(&sink, Kind::Exchange).request(&"M".repeat(100), &long);
    Record::begin(&sink, Kind::Exchange).request("GET\r\n", "/\"\n{\"event\":\u{0}\u{1b}[2J");
    assert_eq!(captured.text().lines().count(), 2);
    assert!(!captured.text().contains('\u{1b}'));
    let lines = captured.lines();
    let path = lines[0]["path"].as_str().unwrap();
    assert_eq!(path.len(), PATH_LIMIT_BYTES - 1);
    assert!(long.starts_with(path));
    assert_eq!(
        lines[0]["method"].as_str().unwrap().len(),
        METHOD_LIMIT_BYTES
    );
    assert_eq!(lines[1]["path"], "/\"\n{\"event\":\u{0}\u{1b}[2J");
}

#[test]
fn the_clock_runs_until_the_drop() {
    let (sink, captured) = capture();
    let record = Record::begin(&sink, Kind::Exchange);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2) {
        std::hint::spin_loop();
    }
    drop(record);
    let took = captured.lines()[0]["duration_ms"].as_f64().unwrap();
    assert!((2.0..60_000.0).contains(&took), "{took}");
}

#[test]
fn a_panic_emits_the_record_once() {
    let (sink, captured) = capture();
    let work = std::thread::spawn(move || {
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.request("GET", "/boom");
        panic!("made by the test");
    });
    assert!(work.join().is_err());
    let lines = captured.lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["path"], "/boom");
    assert_eq!(lines[0]["decision"], "aborted");
}

#[tokio::test]
async fn an_aborted_task_emits_the_record_once() {
    let (sink, captured) = capture();
    let (begun, waiting) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.request("GET", "/slow");
        begun.send(()).unwrap();
        std::future::pending::<()>().await;
        record.decision(Decision::Allowed, "allowed");
    });
    waiting.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let lines = captured.lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["path"], "/slow");
    assert_eq!(lines[0]["reason"], INCOMPLETE);
}

#[test]
fn a_discarding_sink_costs_nothing_and_writes_nothing() {
    let sink = Sink::discard();
    let mut record = Record::begin(&sink, Kind::Exchange);
    record.request("GET", "/");
    record.swapped(&names(&[NAME]), 0);
    assert!(record.data.is_none());
    drop(record);
    sink.event(serde_json::json!({"event": "ready"}));
    sink.flush();
}
