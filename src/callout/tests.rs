//! Calls through real sockets: answers of every framing, and every way of having none.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;

use super::stand::{Says, Stand, upstream};
use super::{Answer, Callout, Error, Limits, Request};
use crate::policy::{AddressRules, Denial};
use crate::upstream;

/// Tells an error from others.
type Expected = fn(&Error) -> bool;

const GET: Request<'static> = Request {
    method: "GET",
    path: "/a?b=1",
    fields: &[("authorization", b"Bearer canary")],
    body: None,
};

fn limits() -> Limits {
    Limits {
        deadline: Duration::from_mins(1),
        answer_bytes: 1000,
    }
}

async fn ask(says: impl Fn(usize, &str) -> Says + Send + Sync + 'static) -> Result<Answer, Error> {
    let stand = Stand::start(says).await;
    let callout = Callout::new(upstream(), &stand.url, limits()).unwrap();
    callout.call(&GET).await
}

#[tokio::test]
async fn answers_of_every_framing_are_read() {
    for (raw, status, body) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, "ok"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            200,
            "ok",
        ),
        ("HTTP/1.1 200 OK\r\n\r\nok", 200, "ok"),
        ("HTTP/1.0 404 Not Found\r\n\r\n", 404, ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        (
            "HTTP/1.1 302 Found\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n",
            302,
            "",
        ),
        (
            "HTTP/1.1 103 x\r\n\r\nHTTP/1.1 500 x\r\ncontent-length: 1\r\n\r\nx",
            500,
            "x",
        ),
    ] {
        let answer = ask(move |_, _| Says::Last(raw.to_owned())).await.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..]),
            (status, body.as_bytes()),
            "{raw}"
        );
    }
}

#[tokio::test]
async fn what_is_no_whole_answer_is_an_error() {
    let interim = "HTTP/1.1 103 x\r\n\r\n".repeat(11);
    let cases: [(&str, Expected); 10] = [
        ("", |error| matches!(error, Error::Cut)),
        ("HTTP/1.1 200 OK\r\ncon", |error| {
            matches!(error, Error::Cut)
        }),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", |error| {
            matches!(error, Error::Cut)
        }),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n",
            |error| matches!(error, Error::Cut),
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n", |error| {
            matches!(error, Error::TooLong)
        }),
        ("SSH-2.0-x\r\n\r\n", |error| {
            matches!(error, Error::Malformed(_))
        }),
        ("HTTP/1.1 200 OK\ncontent-length: 0\n\n", |error| {
            matches!(error, Error::Malformed(_))
        }),
        ("HTTP/1.1 101 x\r\n\r\n", |error| {
            matches!(error, Error::Malformed(_))
        }),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
            |error| matches!(error, Error::Malformed(_)),
        ),
        (&interim, |error| matches!(error, Error::TooLong)),
    ];
    for (raw, expected) in cases {
        let raw = raw.to_owned();
        let sent = raw.clone();
        let error = ask(move |_, _| Says::Last(sent.clone())).await.unwrap_err();
        assert!(expected(&error), "{raw:?}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1001));
    let error = ask(move |_, _| Says::Last(long.clone())).await.unwrap_err();
    assert!(matches!(error, Error::TooLong), "{error:?}");
}

#[tokio::test]
async fn a_service_that_is_silent_is_given_up_in_time() {
    for raw in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
    ] {
        let stand = Stand::start(move |number, _| match (number, raw) {
            (_, "") => Says::Nothing,
            _ => Says::Bytes(raw.to_owned()),
        });
        let stand = stand.await;
        let limits = Limits {
            deadline: Duration::from_millis(100),
            ..limits()
        };
        let callout = Callout::new(upstream(), &stand.url, limits).unwrap();
        let error = callout.call(&GET).await.unwrap_err();
        assert!(matches!(error, Error::Late), "{raw}: {error:?}");
    }
}

#[tokio::test]
async fn the_wire_has_the_request_and_nothing_else() {
    let stand = Stand::start(|_, _| Says::json(200, "{}")).await;
    let callout = Callout::new(upstream(), &format!("{}/v1/", stand.url), limits()).unwrap();
    callout.call(&GET).await.unwrap();
    let post = Request {
        method: "POST",
        path: "/c",
        fields: &[],
        body: Some(("application/x-www-form-urlencoded", b"a=1")),
    };
    callout.call(&post).await.unwrap();
    let authority = stand.url.strip_prefix("http://").unwrap();
    let common =
        format!("host: {authority}\r\nuser-agent: oshu-vault\r\naccept-encoding: identity\r\n");
    let expected = [
        format!("GET /v1/a?b=1 HTTP/1.1\r\n{common}authorization: Bearer canary\r\n\r\n"),
        format!(
            "POST /v1/c HTTP/1.1\r\n{common}content-type: application/x-www-form-urlencoded\r\n\
             content-length: 3\r\n\r\na=1"
        ),
    ];
    assert_eq!(stand.heard(), expected);
}

/// The first answer keeps the connection, which the service then closes unasked, after it read the
/// next request: it may be sent again only without a body.
#[tokio::test]
async fn a_stale_connection_is_tried_anew_once() {
    let stand = Stand::start(|number, _| match number {
        1 | 2 => Says::Last(String::new()),
        _ => Says::json(200, "{}"),
    });
    let stand = stand.await;
    let callout = Callout::new(upstream(), &stand.url, limits()).unwrap();
    callout.call(&GET).await.unwrap();
    let error = callout.call(&GET).await.unwrap_err();
    assert!(matches!(error, Error::Cut), "{error:?}");
    assert_eq!(stand.heard().len(), 3);
    callout.call(&GET).await.unwrap();
    assert_eq!(stand.heard().len(), 4);

    let stand = Stand::start(|number, _| match number {
        1 => Says::Last(String::new()),
        _ => Says::json(200, "{}"),
    });
    let stand = stand.await;
    let callout = Callout::new(upstream(), &stand.url, limits()).unwrap();
    callout.call(&GET).await.unwrap();
    let body = Some(("application/json", b"{}".as_slice()));
    let post = Request { body, ..GET };
    assert!(matches!(callout.call(&post).await, Err(Error::Cut)));
    assert_eq!(stand.heard().len(), 2);
}

#[tokio::test]
async fn the_gates_of_the_proxy_hold_here_too() {
    let closed = upstream::Upstream::new(upstream::Config {
        overrides: Vec::new(),
        roots: Arc::new(RootCertStore::empty()),
        rules: Arc::new(AddressRules::new(Vec::new(), false)),
        proxy: None,
        dns_timeout: Duration::from_mins(1),
        connect_timeout: Duration::from_mins(1),
        handshake_timeout: Duration::from_mins(1),
    });
    let closed = Arc::new(closed.unwrap());
    for url in [
        "http://127.0.0.1:1",
        "https://10.0.0.1",
        "https://169.254.169.254",
    ] {
        let refused = Callout::new(Arc::clone(&closed), url, limits());
        let literal = matches!(refused, Err(Error::Denied(Denial::LiteralRefused(_))));
        assert!(literal, "{url}: {refused:?}");
    }
    let local = Callout::new(Arc::clone(&closed), "http://localhost:1", limits());
    assert!(
        matches!(local, Err(Error::Denied(Denial::LocalName))),
        "{local:?}"
    );
    let bad = Callout::new(closed, "http://example.com", limits());
    assert!(matches!(bad, Err(Error::BadUrl)), "{bad:?}");
}

#[tokio::test]
async fn nobody_there_is_an_error() {
    let nobody = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let callout = Callout::new(upstream(), &nobody, limits()).unwrap();
    let error = callout.call(&GET).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
}
