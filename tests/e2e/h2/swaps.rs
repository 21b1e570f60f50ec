//! The swap on streams: the same places, the same scope and the same literals as over HTTP/1.1.
//!
//! To an h2 origin the fields count as they arrived, to an h1 origin the whole raw bytes.

use super::head_lines;
use crate::support::{GOOD, H2Client, H2Scene, REAL, SIDE, Scene, TWO, basic, contains, show};

/// Sends one field on a stream to each kind of upstream, and compares what arrived.
async fn compare(
    play: &H2Scene,
    clients: &[H2Client; 2],
    (name, sent): (&str, &str),
    arrives: &str,
) {
    let [two, good] = clients;
    let before = play.two.requests().len();
    let answer = two.ask(("GET", "/1"), &[(name, sent)], b"").await;
    assert_eq!(answer.status, 200, "{name}: {sent}");
    let seen = play.two.requests().remove(before);
    let expected = [(name.to_owned(), arrives.to_owned())];
    assert_eq!(seen.fields, expected, "{name}: {sent}");
    play.scene.good.forget();
    let answer = good.ask(("GET", "/1"), &[(name, sent)], b"").await;
    assert_eq!(answer.status, 200, "{name}: {sent}");
    let bytes = play.scene.good.bytes();
    let mut expected = vec![("host", GOOD), (name, arrives)];
    let mut lines = head_lines(&bytes);
    lines.sort();
    expected.sort_unstable();
    let lines: Vec<_> = lines
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    assert_eq!(lines, expected, "{}", show(&bytes));
    let whole = bytes.starts_with(b"GET /1 HTTP/1.1\r\n") && bytes.ends_with(b"\r\n\r\n");
    assert!(whole, "{}", show(&bytes));
}

#[tokio::test]
async fn case_01_a_field_is_swapped_over_http_2_as_over_http_1() {
    let play = H2Scene::new().await;
    let token = play.scene.token().to_owned();
    let clients = [play.h2().await, play.h2_to_h1().await];
    let digits = token.trim_start_matches("SEALED_");
    let other = play
        .scene
        .vault
        .session(&H2Scene::open(Scene::request()))
        .await;
    let theirs = &other.sealed_secrets["EXAMPLE_KEY"];
    let swapped = |text: &str| text.replace(&token, REAL);
    for text in [
        token.clone(),
        format!("Bearer {token}"),
        format!("x{token}a"),
        format!("{token}{token},{token}"),
        format!("SEALED_{token}"),
        // None of these is a token of this session.
        format!("SEALED_{}", &digits[..31]),
        format!("sealed_{digits}"),
        format!("SEALED_{}", "0".repeat(32)),
        theirs.clone(),
        format!("{theirs} {token}"),
    ] {
        compare(&play, &clients, ("x-api-key", &text), &swapped(&text)).await;
        compare(&play, &clients, ("authorization", &text), &swapped(&text)).await;
        compare(&play, &clients, ("cookie", &text), &text).await;
        compare(&play, &clients, ("user-agent", &text), &text).await;
    }
    for text in [format!("x-access-token:{token}"), format!("{token}:")] {
        let (user, password) = text.split_once(':').expect("a colon");
        let (sent, arrives) = (
            basic(user, password),
            basic(&swapped(user), &swapped(password)),
        );
        compare(&play, &clients, ("authorization", &sent), &arrives).await;
        compare(&play, &clients, ("x-basic", &sent), &sent).await;
        let unpadded = sent.trim_end_matches('=');
        if unpadded != sent {
            compare(&play, &clients, ("authorization", unpadded), unpadded).await;
        }
    }
    play.alive("fields over HTTP/2").await;
}

#[tokio::test]
async fn case_02_a_host_outside_the_scope_gets_the_token_over_http_2() {
    let play = H2Scene::new().await;
    let token = play.scene.token();
    let credential = basic("u", token);
    let side = play.scene.workload.h2("side.example.com:443").await;
    let fields = [("x-api-key", token), ("authorization", credential.as_str())];
    let path = format!("/{token}?{token}");
    let answer = side.ask(("POST", &path), &fields, token.as_bytes()).await;
    assert_eq!(answer.status, 200);
    let bytes = play.scene.side.bytes();
    let line = format!("POST {path} HTTP/1.1\r\n");
    assert!(bytes.starts_with(line.as_bytes()), "{}", show(&bytes));
    let lines = head_lines(&bytes);
    for (name, value) in fields.into_iter().chain([("host", SIDE)]) {
        assert!(
            lines.contains(&(name.to_owned(), value.to_owned())),
            "{lines:?}"
        );
    }
    let body = format!("27\r\n{token}\r\n0\r\n\r\n");
    assert!(bytes.ends_with(body.as_bytes()), "{}", show(&bytes));
    assert!(!contains(&bytes, REAL));
    play.alive("out of scope").await;
}

#[tokio::test]
async fn case_08_streams_side_by_side_are_swapped_one_by_one() {
    let play = H2Scene::new().await;
    let token = play.scene.token();
    let (begin, end) = token.split_at(20);
    for client in [play.h2().await, play.h2_to_h1().await] {
        let mut streams = Vec::new();
        for number in 0..30 {
            let value = match number % 3 {
                0 => token,
                1 => begin,
                _ => end,
            };
            let path = format!("/{number}");
            let mut stream = client.upload(&path, &[("x-key", value)]).await;
            assert!(stream.push(begin.to_owned()).await);
            streams.push(stream);
        }
        for stream in &mut streams {
            assert!(stream.end(end.to_owned()).await);
        }
        for stream in streams {
            assert_eq!(stream.answer().await.expect("an answer").status, 200);
        }
    }
    let seen = play.two.requests();
    assert_eq!(seen.len(), 30);
    for request in seen {
        let number: usize = request.path[1..].parse().expect("a number");
        let expected = [REAL, begin, end][number % 3];
        assert_eq!(request.all("x-key"), [expected], "{number}");
        assert_eq!(
            request.body,
            token.as_bytes(),
            "{number}: a body is no place"
        );
    }
    let bytes = play.scene.good.bytes();
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.matches(REAL).count(), 10, "{text}");
    assert_eq!(text.matches(&format!("x-key: {begin}\r\n")).count(), 10);
    assert_eq!(text.matches(&format!("x-key: {end}\r\n")).count(), 10);
    play.alive("streams side by side").await;
}

#[tokio::test]
async fn case_10_path_and_query_are_no_places_over_http_2_unless_asked_for() {
    let play = H2Scene::new().await;
    let token = play.scene.token();
    for path in [
        format!("/p?key={token}"),
        format!("/p/{token}/x"),
        format!("/p?key={}", token.replace('_', "%5F")),
    ] {
        play.scene.good.forget();
        for client in [play.h2().await, play.h2_to_h1().await] {
            assert_eq!(client.get(&path).await.status, 200, "{path}");
        }
        let seen = play.two.requests().pop().expect("a request");
        assert_eq!(seen.path, path);
        let head = format!("GET {path} HTTP/1.1\r\nhost: {GOOD}\r\n\r\n");
        let bytes = play.scene.good.bytes();
        let bytes = String::from_utf8_lossy(&bytes).replace("Host:", "host:");
        assert_eq!(bytes, head);
    }
    play.alive("path and query").await;
}

#[tokio::test]
async fn case_14_a_token_in_a_trailer_stays_over_http_2() {
    let play = H2Scene::new().await;
    let token = play.scene.token().to_owned();
    for client in [play.h2().await, play.h2_to_h1().await] {
        let mut stream = client.upload("/trailers", &[("x-key", &token)]).await;
        assert!(stream.push("hello").await);
        stream.trailers(&[("x-key", &token), ("authorization", &basic("u", &token))]);
        assert_eq!(stream.answer().await.expect("an answer").status, 200);
    }
    let seen = play.two.request();
    let expected = [
        ("x-key".to_owned(), token.clone()),
        ("authorization".to_owned(), basic("u", &token)),
    ];
    assert_eq!(
        (seen.trailers.as_slice(), seen.whole),
        (&expected[..], true)
    );
    assert_eq!(seen.all("x-key"), [REAL]);
    let bytes = play.scene.good.bytes();
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(REAL), "{text}");
    let trailers = format!(
        "0\r\nx-key: {token}\r\nauthorization: {}\r\n\r\n",
        basic("u", &token)
    );
    assert!(body.ends_with(&trailers), "{text}");
    play.alive("trailers").await;
}

#[tokio::test]
async fn case_24_methods_that_echo_are_not_swapped_over_http_2() {
    let play = H2Scene::new().await;
    let token = play.scene.token();
    let fields = [("x-key", token), ("max-forwards", "0")];
    for target in ["two.example.com:443", "good.example.com:443"] {
        let client = play.scene.workload.h2(target).await;
        let before = (play.two.requests().len(), play.scene.good.bytes());
        for method in ["TRACE", "trace"] {
            let answer = client.ask((method, "/"), &fields, b"").await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (405, "method_not_allowed")
            );
            assert!(!answer.text().contains(token), "{}", answer.text());
        }
        let after = (play.two.requests().len(), play.scene.good.bytes());
        assert_eq!(before, after, "nothing was forwarded");
        for method in ["OPTIONS", "options"] {
            assert_eq!(client.ask((method, "/"), &fields, b"").await.status, 200);
        }
    }
    for seen in play.two.requests() {
        assert_eq!(
            (seen.all("x-key"), seen.authority.as_deref()),
            (vec![token], Some(TWO))
        );
    }
    let bytes = play.scene.good.bytes();
    assert!(!contains(&bytes, REAL), "{}", show(&bytes));
    assert_eq!(String::from_utf8_lossy(&bytes).matches(token).count(), 2);
    play.alive("methods that echo").await;
}

/// Padding moves the token over the border of the first frame of a head, bit by bit of its coding.
#[tokio::test]
async fn peer_24_a_token_cut_by_the_border_of_two_frames_of_a_head_is_swapped() {
    let play = H2Scene::new().await;
    let token = play.scene.token();
    for client in [play.h2().await, play.h2_to_h1().await] {
        // A character that HPACK writes in eight bits (RFC 7541, appendix B).
        for pad in (16_330..=16_384).step_by(3) {
            let pad = "&".repeat(pad);
            let name = format!("x-key-{}", pad.len());
            let before = play.two.requests().len();
            play.scene.good.forget();
            let fields = [("x-pad", pad.as_str()), (name.as_str(), token)];
            assert_eq!(client.ask(("GET", "/"), &fields, b"").await.status, 200);
            let arrived = play.two.requests()[before..]
                .iter()
                .any(|seen| seen.all(&name) == [REAL] && seen.all("x-pad") == [pad.as_str()]);
            let line = format!("{name}: {REAL}\r\n");
            assert!(
                arrived || contains(&play.scene.good.bytes(), line),
                "{name}"
            );
        }
    }
    play.alive("heads in two frames").await;
}
