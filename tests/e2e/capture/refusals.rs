//! What cannot be captured from does not pass: no part of such an answer reaches the workload.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oshu_vault::store::{
    BoxFuture, Error, Memory, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store,
};

use super::*;
use crate::scrub::encode;

/// A store that fails on demand.
#[derive(Debug, Default)]
struct Brittle {
    rows: Memory,
    fails: AtomicBool,
}

impl Store for Brittle {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        if self.fails.load(Ordering::SeqCst) {
            return Box::pin(async { Err(Error::Unavailable("broken by the test".into())) });
        }
        self.rows.put(key, row)
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        self.rows.get(key)
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        self.rows.delete(key)
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        self.rows.touch(used)
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        self.rows.load()
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        self.rows.put_record(key, sealed)
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        self.rows.record(key)
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        self.rows.delete_record(key)
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        self.rows.load_records(kind)
    }
}

/// Fails unless an answer is one of our own, with this code, and nothing of the origin's.
fn assert_refused(case: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (status, code),
        "{case}"
    );
    assert_clean(case, &answer.raw);
    assert!(
        !contains(&answer.raw, "X-Origin"),
        "{case}: {}",
        answer.head
    );
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_strictly_is_refused_whole() {
    let scene = scene().await;
    let kind = |it: &str| format!("X-Origin: 1\r\nContent-Type: {it}\r\n");
    let type_json = kind("application/json");
    let type_form = kind("application/x-www-form-urlencoded");
    let coded = |coding: &str| format!("{type_json}Content-Encoding: {coding}\r\n");
    let standard = standard();
    let cut = &standard.as_bytes()[..standard.len() - 1];
    let twice = format!("{{\"access_token\":\"{ACCESS}\",\"acc\\u0065ss_token\":\"{REFRESH}\"}}");
    let list = format!("[{standard}]");
    let nested = format!("{{\"access_token\":{{\"value\":\"{ACCESS}\"}}}}");
    let xml = format!("<OAuth><access_token>{ACCESS}</access_token></OAuth>");
    let form = format!("access_token={ACCESS}");
    let split = format!("scope=a;access_token={ACCESS}");
    let form_twice = format!("{form}&access%5Ftoken={REFRESH}");
    let padded = format!("{}{}", " ".repeat(256 * 1024), standard);
    let long_zip = encode("gzip", padded.as_bytes());
    let zip = encode("gzip", standard.as_bytes());
    let unreadable = "token_answer_unreadable";
    let cases: [(&str, &[u8], &str); 15] = [
        (&type_json, cut, unreadable),
        (&type_json, twice.as_bytes(), unreadable),
        (&type_json, list.as_bytes(), unreadable),
        (&type_json, nested.as_bytes(), unreadable),
        (&type_json, form.as_bytes(), unreadable),
        ("X-Origin: 1\r\n", form.as_bytes(), unreadable),
        (&kind("application/xml"), xml.as_bytes(), unreadable),
        (&type_form, standard.as_bytes(), unreadable),
        (&type_form, split.as_bytes(), unreadable),
        (&type_form, form_twice.as_bytes(), unreadable),
        (&type_json, padded.as_bytes(), "token_answer_too_large"),
        (&coded("gzip"), &long_zip, "token_answer_too_large"),
        (&coded("exi"), standard.as_bytes(), "content_coding_unknown"),
        (&coded("gzip"), standard.as_bytes(), "http_response_invalid"),
        (
            &coded("gzip"),
            &zip[..zip.len() - 1],
            "http_response_invalid",
        ),
    ];
    for (number, (fields, body, code)) in cases.into_iter().enumerate() {
        let pieces: Vec<&[u8]> = body.chunks(50_000).collect();
        for said in [
            message("200 OK", fields, body),
            chunked(fields, &pieces, ""),
        ] {
            let mut conn = scene.workload.connect(TARGET).await;
            let answer = told(&mut conn, PATH, &said).await;
            assert_refused(&format!("{number} {code}"), &answer, 502, code);
            conn.expect_end().await;
        }
    }
    let list = scene
        .vault
        .sdk()
        .get_session(&scene.session.session_id)
        .await;
    assert!(list.expect("the session").captured.is_empty());
    scene.alive("refused answers").await;
}

#[tokio::test]
async fn a_part_of_an_answer_is_refused_whole() {
    let scene = scene().await;
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let range = format!("{form}Content-Range: bytes 13-99/100\r\n");
    let body = format!("{ACCESS}&scope=a");
    for (status, fields) in [("206 Partial Content", form), ("200 OK", &range)] {
        let mut conn = scene.workload.connect(TARGET).await;
        let said = message(status, fields, body.as_bytes());
        let answer = told(&mut conn, PATH, said).await;
        assert_refused(status, &answer, 502, "token_answer_unreadable");
    }
    scene.alive("a part of an answer").await;
}

#[tokio::test]
async fn an_answer_that_is_cut_is_refused_whole() {
    let good = Origin::script(|request, conn| async move {
        if !request.line().starts_with("POST ") {
            return say(request, conn).await;
        }
        let whole = json(&standard());
        conn.send(&whole[..whole.len() - 3]).await;
        conn.abort().await;
    });
    let scene = Scene::with_good(good.await, |vault| vault, watching).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let answer = told(&mut conn, PATH, b"x").await;
    assert_refused("a cut", &answer, 502, "http_response_invalid");
    scene.alive("a cut answer").await;
}

#[tokio::test]
async fn what_the_store_does_not_take_does_not_reach_the_workload() {
    let store = Arc::new(Brittle::default());
    let shared: Arc<dyn Store> = Arc::clone(&store) as _;
    let good = Origin::script(say).await;
    let scene = Scene::with_good(good, |vault| vault.store(shared), watching).await;
    let before = captured(&scene).await;
    store.fails.store(true, Ordering::SeqCst);
    let mut conn = scene.workload.connect(TARGET).await;
    let answer = told(&mut conn, PATH, json(&standard().replace("value", "other"))).await;
    assert_refused("a store that fails", &answer, 503, "tokens_not_kept");
    assert!(
        !contains(&answer.raw, "access-other"),
        "{}",
        show(&answer.raw)
    );
    // What was there before is still there.
    assert!(bearer(&scene, &before[0]).await.contains(ACCESS));
    store.fails.store(false, Ordering::SeqCst);
    let again = captured(&scene).await;
    assert!(bearer(&scene, &again[0]).await.contains(ACCESS));
    scene.alive("a store that failed").await;
}

#[tokio::test]
async fn the_twenty_first_token_is_refused_and_the_others_stay() {
    let paths: Vec<String> = (0..7).map(|number| format!("/token/{number}")).collect();
    let urls = paths.iter().map(|path| format!("https://{GOOD}{path}"));
    let good = Origin::script(say).await;
    let scene = Scene::with_good(good, |vault| vault, |it| it.capture(urls)).await;
    let mut first = None;
    for path in &paths[..6] {
        let mut conn = scene.workload.connect(TARGET).await;
        let answer = told(&mut conn, path, json(&standard())).await;
        first.get_or_insert(sealed(&answer.body));
    }
    let mut conn = scene.workload.connect(TARGET).await;
    let answer = told(&mut conn, &paths[6], json(&standard())).await;
    assert_refused("21 tokens", &answer, 502, "too_many_captured_tokens");
    let first = first.expect("tokens");
    assert!(bearer(&scene, &first[0]).await.contains(ACCESS));
    // Two more there may be, and what replaces others.
    for (path, body) in [
        (
            &paths[6],
            format!("{{\"access_token\":\"{ACCESS}\",\"id_token\":\"{ID}\"}}"),
        ),
        (&paths[0], standard()),
    ] {
        let mut conn = scene.workload.connect(TARGET).await;
        assert_eq!(told(&mut conn, path, json(&body)).await.status, 200);
    }
    scene.alive("as many tokens as there may be").await;
}
