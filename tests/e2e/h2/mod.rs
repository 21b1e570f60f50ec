//! HTTP/2 on the intercepted side: requests and answers pass as they are, to either kind of
//! upstream.

mod answers;
pub(crate) mod bodies;
mod clients;
mod limits;
mod records;
mod streams;
mod swaps;
mod upstreams;

use crate::support::{GOOD, H2Scene, Origin, REAL, SIDE, Scene, TWO, basic, contains, show};

/// An answer that HTTP/1.1 origins of these tests give.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Returns the lines of a raw head in lower-case names, without the request line.
fn head_lines(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    let lines = head
        .split("\r\n")
        .skip(1)
        .map(|line| line.split_once(": ").expect("a line"));
    lines
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect()
}

#[tokio::test]
async fn the_workload_chooses_its_protocol_and_learns_the_limits() {
    let play = H2Scene::new().await;
    let client = play.h2().await;
    assert_eq!(client.get("/").await.text(), "ok");
    assert_eq!(client.max_streams(), 100);
    assert!(
        !client.has_extended_connect(),
        "WebSockets are asked for on HTTP/1.1"
    );
    // One that cannot or does not say speaks HTTP/1.1 as before.
    for alpn in [&["http/1.1"][..], &[]] {
        let tunnel = play.scene.workload.tunnel("good.example.com:443").await;
        let name = GOOD.try_into().expect("a name");
        let tls = play
            .scene
            .workload
            .handshake(tunnel.into_io(), name, alpn)
            .await
            .expect("TLS");
        let agreed = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(agreed, alpn.first().map(|name| name.as_bytes().to_vec()));
        let mut conn = crate::support::Conn::new(tls);
        conn.send(format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "ok");
    }
}

#[tokio::test]
async fn an_h1_workload_has_an_h1_upstream() {
    let origin = Origin::builder().alpn(&["h2", "http/1.1"]).answer(OK).await;
    let scene = Scene::around(origin).await;
    let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    assert_eq!(scene.ask(GOOD, &head).await.text(), "ok");
    assert_eq!(scene.good.bytes(), head.as_bytes());
}

#[tokio::test]
async fn a_request_reaches_an_h2_origin_as_it_was_sent() {
    let play = H2Scene::new().await;
    let client = play.h2().await;
    let fields = [
        ("x-first", "1"),
        ("user-agent", "agent/1.0"),
        ("accept", "*/*"),
        ("x-many", "a"),
        ("x-many", "b, c"),
        ("x-empty", ""),
        ("te", "trailers"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-forwarded-for", "192.0.2.1"),
    ];
    let path = "/a/./b/../%2e?q=%20&r=a+b";
    let answer = client.ask(("PATCH", path), &fields, b"hello").await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    let seen = play.two.request();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("PATCH", path));
    assert_eq!(seen.authority.as_deref(), Some(TWO));
    assert_eq!(seen.scheme.as_deref(), Some("https"));
    assert_eq!((seen.body.as_slice(), seen.whole), (&b"hello"[..], true));
    assert_eq!(seen.all("cookie").join("; "), "a=1; b=2");
    assert_eq!(seen.all("x-many").join(", "), "a, b, c");
    for (name, value) in fields {
        if !matches!(name, "cookie" | "x-many") {
            assert_eq!(seen.all(name), [value], "{name}");
        }
    }
    let known: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    for (name, value) in &seen.fields {
        let ours = known.contains(&name.as_str()) || name == "content-length";
        assert!(ours, "{name}: {value} was added");
    }
    // Without a body there is none: no DATA, no length.
    client.get("/empty").await;
    let seen = play.two.requests().remove(1);
    assert_eq!((seen.body.len(), seen.whole), (0, true));
    assert!(seen.fields.is_empty(), "{seen:?}");
}

#[tokio::test]
async fn a_request_is_translated_for_an_h1_origin() {
    let play = H2Scene::new().await;
    let client = play.h2_to_h1().await;
    let fields = [
        ("x-first", "1"),
        ("te", "trailers"),
        // Interim answers are absorbed, so that nobody may wait for one.
        ("expect", "100-continue"),
        ("cookie", "a=1"),
        ("x-many", "a"),
        ("cookie", "b=2; c=3"),
        ("x-many", "b"),
        ("cookie", "d=4"),
        ("content-length", "5"),
    ];
    let answer = client.ask(("PUT", "/p?q"), &fields, b"hello").await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    let bytes = play.scene.good.bytes();
    assert!(
        bytes.starts_with(b"PUT /p?q HTTP/1.1\r\n"),
        "{}",
        show(&bytes)
    );
    assert!(bytes.ends_with(b"\r\n\r\nhello"), "{}", show(&bytes));
    let mut lines = head_lines(&bytes);
    lines.sort();
    let expected = [
        ("content-length", "5"),
        ("cookie", "a=1; b=2; c=3; d=4"),
        ("host", GOOD),
        ("x-first", "1"),
        ("x-many", "a"),
        ("x-many", "b"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(lines, expected);
    // Without a body there is no framing either.
    play.scene.good.forget();
    client.get("/").await;
    let expected = [("host".to_owned(), GOOD.to_owned())];
    assert_eq!(head_lines(&play.scene.good.bytes()), expected);
    // The asterisk form stays one.
    play.scene.good.forget();
    let request = client.request("OPTIONS", "*", &[]);
    let answer = client.open(request, true).await.expect("a stream");
    assert_eq!(answer.answer().await.expect("an answer").status, 200);
    let bytes = play.scene.good.bytes();
    assert!(
        bytes.starts_with(b"OPTIONS * HTTP/1.1\r\n"),
        "{}",
        show(&bytes)
    );
}

#[tokio::test]
async fn tokens_are_swapped_in_their_places_and_nowhere_else() {
    let play = H2Scene::new().await;
    let token = play.scene.token().to_owned();
    let credentials = basic("x-access-token", &token);
    let bearer = format!("Bearer {token}");
    let crumb = format!("session={token}");
    let query = format!("/p/{token}?key={token}");
    let fields = [
        ("x-api-key", token.as_str()),
        ("authorization", &bearer),
        ("x-basic", &credentials),
        ("cookie", "a=1"),
        ("cookie", &crumb),
        ("referer", &token),
    ];
    let expected = [
        ("x-api-key", REAL.to_owned()),
        ("authorization", format!("Bearer {REAL}")),
        ("x-basic", credentials.clone()),
        ("referer", token.clone()),
    ];
    let client = play.h2().await;
    let answer = client
        .ask(("POST", &query), &fields, token.as_bytes())
        .await;
    assert_eq!(answer.status, 200);
    let seen = play.two.request();
    for (name, value) in &expected {
        assert_eq!(seen.all(name), [value.as_str()], "{name}");
    }
    assert_eq!(seen.all("cookie").join("; "), format!("a=1; {crumb}"));
    assert_eq!(
        (seen.path.as_str(), seen.body),
        (query.as_str(), token.clone().into_bytes())
    );
    let answer = play.h2_to_h1().await;
    let answer = answer
        .ask(("POST", &query), &fields, token.as_bytes())
        .await;
    assert_eq!(answer.status, 200);
    let bytes = play.scene.good.bytes();
    let lines = head_lines(&bytes);
    for (name, value) in expected {
        assert!(
            lines.contains(&(name.to_owned(), value.clone())),
            "{name}: {lines:#?}"
        );
    }
    assert!(
        lines.contains(&("cookie".to_owned(), format!("a=1; {crumb}"))),
        "{lines:#?}"
    );
    assert!(bytes.starts_with(format!("POST {query} HTTP/1.1\r\n").as_bytes()));
    assert!(contains(&bytes, &token), "the body keeps it");
}

#[tokio::test]
async fn basic_credentials_are_swapped_and_other_hosts_get_the_token() {
    let play = H2Scene::new().await;
    let token = play.scene.token().to_owned();
    let sent = basic("x-access-token", &token);
    let fields = [("authorization", sent.as_str()), ("x-key", &token)];
    let real = basic("x-access-token", REAL);
    assert_eq!(
        play.h2().await.ask(("GET", "/"), &fields, b"").await.status,
        200
    );
    assert_eq!(play.two.request().all("authorization"), [real.as_str()]);
    assert_eq!(
        play.h2_to_h1()
            .await
            .ask(("GET", "/"), &fields, b"")
            .await
            .status,
        200
    );
    assert!(contains(&play.scene.good.bytes(), &real));
    let side = play.scene.workload.h2("side.example.com:443").await;
    assert_eq!(side.ask(("GET", "/"), &fields, b"").await.status, 200);
    let bytes = play.scene.side.bytes();
    assert!(
        contains(&bytes, &sent) && contains(&bytes, &token),
        "{}",
        show(&bytes)
    );
    assert!(contains(&bytes, SIDE) && !contains(&bytes, REAL));
    // Methods that reflect get none; another session's token opens nothing.
    let before = play.two.requests().len();
    let answer = play.h2().await.ask(("OPTIONS", "/"), &fields, b"").await;
    assert_eq!(answer.status, 200);
    let other = play
        .scene
        .vault
        .session(&H2Scene::open(Scene::request()))
        .await;
    let other = play
        .scene
        .vault
        .workload(&other)
        .h2("two.example.com:443")
        .await;
    assert_eq!(other.ask(("GET", "/"), &fields, b"").await.status, 200);
    for seen in &play.two.requests()[before..] {
        assert_eq!(seen.all("x-key"), [token.as_str()], "{}", seen.method);
        assert_eq!(
            seen.all("authorization"),
            [sent.as_str()],
            "{}",
            seen.method
        );
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_to_an_h2_origin() {
    let play = H2Scene::script(|mut exchange| async move {
        exchange.read_all().await;
        if exchange.path() == "/only" {
            // What gRPC calls trailers-only: one block that ends the stream.
            return exchange.answer_head(200, &[("grpc-status", "5")], true);
        }
        exchange.answer_head(200, &[("trailer", "x-end")], false);
        exchange.send("body").await;
        let trailers = [("x-end", "1"), ("x-many", "a"), ("x-many", "b")];
        exchange.trailers(&trailers);
    })
    .await;
    let client = play.h2().await;
    let token = play.scene.token().to_owned();
    let mut stream = client.upload("/", &[]).await;
    assert!(stream.push("hello").await);
    stream.trailers(&[("x-sum", "42"), ("x-token", &token)]);
    let answer = stream.answer().await.expect("an answer");
    assert_eq!(answer.text(), "body");
    let expected = [("x-end", "1"), ("x-many", "a"), ("x-many", "b")];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(answer.trailers, expected);
    let seen = play.two.request();
    assert!(seen.whole);
    assert!(
        seen.trailers
            .contains(&("x-sum".to_owned(), "42".to_owned())),
        "{seen:?}"
    );
    assert!(!seen.mentions(REAL), "trailers are no place: {seen:?}");
    let answer = client.get("/only").await;
    assert_eq!(
        (answer.header("grpc-status"), answer.body.len()),
        (Some("5"), 0)
    );
}

#[tokio::test]
async fn trailers_pass_both_ways_to_an_h1_origin() {
    let origin = Origin::script(|_request, conn| async move {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        conn.send(format!("{head}4\r\nbody\r\n0\r\nX-End: 1\r\n\r\n"))
            .await;
    })
    .await;
    let play = H2Scene::around_good(origin).await;
    let client = play.h2_to_h1().await;
    let mut stream = client.upload("/", &[]).await;
    assert!(stream.push("hello").await);
    stream.trailers(&[("x-sum", "42")]);
    let answer = stream.answer().await.expect("an answer");
    assert_eq!(answer.text(), "body");
    assert_eq!(answer.trailers, [("x-end".to_owned(), "1".to_owned())]);
    assert!(answer.header("transfer-encoding").is_none(), "{answer:?}");
    let bytes = play.scene.good.bytes();
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    assert!(
        text.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{text}"
    );
    assert!(text.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{text}");
}
