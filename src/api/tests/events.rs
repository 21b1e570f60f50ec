//! The stream of a session's records, where nothing comes.

use std::time::Duration;

use super::*;
use crate::audit::{Kind, Record, capture};
use crate::host::HostPort;
use crate::id::SessionId;

/// Asks for the events of the first tenant's session, and returns the stream behind its first
/// comment.
async fn stream(api: &Api, path: &str) -> Body {
    let request = http::Request::get(format!("{path}/events"))
        .header("x-api-key", ONE)
        .extension(connection(false, "127.0.0.1:8080"))
        .body(Body::empty())
        .unwrap();
    let response = api.router.clone().call(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    assert_eq!(part(&mut body).await.as_deref(), Some(":\n\n"));
    body
}

/// Reads the next part of a stream; nothing at its end.
async fn part(body: &mut Body) -> Option<String> {
    let frame = body.frame().await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_is_alive() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let began = tokio::time::Instant::now();
    let mut body = stream(&api, &path).await;
    for comment in 1..4 {
        assert_eq!(part(&mut body).await.as_deref(), Some(":\n\n"));
        assert_eq!(began.elapsed().as_secs(), 15 * comment);
    }
    // Cut, and no last record comes: it is not waited for long.
    let deleted = api.call(ONE, Method::DELETE, &path, &Value::Null).await;
    assert_eq!(deleted.status, 204);
    assert!(part(&mut body).await.is_none());
    assert_eq!(began.elapsed(), Duration::from_secs(55));
}

#[tokio::test]
async fn what_a_session_had_open_is_told_after_its_end() {
    let (sink, _captured) = capture();
    let api = Api::over(audited(sink.clone()), Some(ADMIN), router);
    let path = api.session(&two_secrets()).await;
    // That it was created is written before anybody reads along.
    sink.flush();
    let mut body = stream(&api, &path).await;
    let id = SessionId::parse(path.rsplit('/').next().unwrap()).unwrap();
    let handle = api.sessions.find(&TenantId::new("one"), &id).unwrap();
    let target = HostPort::parse("api.example.com:443").unwrap();
    let guard = handle.tunnel(&target).unwrap();
    let mut record = Record::begin(&sink, Kind::Tunnel);
    record.session(&id);
    let deleted = api.call(ONE, Method::DELETE, &path, &Value::Null).await;
    assert_eq!(deleted.status, 204);
    let told = part(&mut body).await.expect("the session's record");
    assert!(told.contains("\"action\":\"deleted\""), "{told}");
    // Looked at several times, and not ended, while something is open.
    let early = tokio::time::timeout(Duration::from_millis(100), part(&mut body)).await;
    assert!(early.is_err(), "{early:?}");
    drop(record);
    drop(guard);
    let told = part(&mut body).await.expect("the tunnel's record");
    assert!(told.contains("{\"event\":\"tunnel\""), "{told}");
    assert!(part(&mut body).await.is_none());
    assert_eq!(sink.stats().readers, 0);
}

#[tokio::test]
async fn another_tenants_stream_is_not_there() {
    let api = Api::new();
    let path = format!("{}/events", api.session(&two_secrets()).await);
    let get = async |key| api.call(key, Method::GET, &path, &Value::Null).await;
    get(TWO).await.is_problem(404, "not_found");
    get("").await.is_problem(401, "unauthenticated");
    let unknown = format!("/v1/sessions/sess_{}/events", "0".repeat(32));
    let answer = api.call(ONE, Method::GET, &unknown, &Value::Null).await;
    answer.is_problem(404, "not_found");
    api.drain.start();
    get(ONE).await.is_problem(503, "draining");
}
