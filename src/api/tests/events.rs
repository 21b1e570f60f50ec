//! The stream of a session's records, where nothing comes.

use std::time::Duration;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_is_alive() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let request = http::Request::get(format!("{path}/events"))
        .header("x-api-key", ONE)
        .extension(connection(false, "127.0.0.1:8080"))
        .body(Body::empty())
        .unwrap();
    let response = api.router.clone().call(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let began = tokio::time::Instant::now();
    for comment in 0..4 {
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), ":\n\n");
        assert_eq!(began.elapsed().as_secs(), 15 * comment);
    }
    // Cut, and no last record comes: it is not waited for long.
    let deleted = api.call(ONE, Method::DELETE, &path, &Value::Null).await;
    assert_eq!(deleted.status, 204);
    assert!(body.frame().await.is_none());
    assert_eq!(began.elapsed(), Duration::from_secs(50));
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
