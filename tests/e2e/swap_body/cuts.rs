//! Tokens that are cut: by chunks, by writes, by frames. And what is no content cuts nothing.

use bytes::Bytes;

use super::*;
use crate::support::REAL;

const BEFORE: &[u8] = b"{\"k\":\"";
const BEHIND: &[u8] = b"\"}";

#[tokio::test]
async fn case_06_a_token_cut_by_chunks_or_writes_is_swapped_once() {
    let scene = scene().await;
    let token = scene.token().as_bytes().to_owned();
    for cut in 1..token.len() {
        let (one, two) = token.split_at(cut);
        let first = chunk(&[BEFORE, one].concat());
        let second = [chunk(&[two, BEHIND].concat()), b"0\r\n\r\n".to_vec()].concat();
        let value = [REAL.as_bytes(), BEHIND].concat();
        let expected = chunked(JSON, &[BEFORE, &value]);
        let sent = chunked(JSON, &[&[BEFORE, one].concat(), &[two, BEHIND].concat()]);
        arrives(&scene, &format!("chunks, {cut}"), &sent, &expected).await;
        // The same in two writes, the second once the first has arrived: and nothing that may be
        // the beginning of a token has.
        scene.good.forget();
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send([head(&format!("{JSON}{CHUNKED}")).as_bytes(), &first].concat())
            .await;
        let start = expected.len() - chunk(&value).len() - 5;
        let there = |all: &[Vec<u8>]| all.concat().len() >= start;
        scene.good.wait("what is no token", there).await;
        assert_eq!(show(&scene.good.bytes()), show(&expected[..start]), "{cut}");
        conn.send(&second).await;
        assert_eq!(conn.answer().await.status, 200, "{cut}");
        assert_eq!(show(&scene.good.bytes()), show(&expected), "writes, {cut}");
        // And with a length, in two writes.
        scene.good.forget();
        let sent = post(JSON, [BEFORE, &token, BEHIND].concat());
        let (one, two) = sent.split_at(sent.len() - BEHIND.len() - cut);
        conn.send(one).await;
        conn.send(two).await;
        assert_eq!(conn.answer().await.status, 200, "{cut}");
        let expected = post(JSON, [BEFORE, REAL.as_bytes(), BEHIND].concat());
        assert_eq!(show(&scene.good.bytes()), show(&expected), "length, {cut}");
    }
    // A chunk for each byte, each in a write of its own.
    let body = [BEFORE, &token, BEHIND, &token, b"SEALED_0S"].concat();
    let mut conn = scene.workload.connect(TARGET).await;
    scene.good.forget();
    conn.send(head(&format!("{JSON}{CHUNKED}"))).await;
    for byte in body.chunks(1) {
        conn.send(chunk(byte)).await;
    }
    conn.send("0\r\n\r\n").await;
    assert_eq!(conn.answer().await.status, 200);
    let (_, arrived, trailers) = apart(&scene.good.bytes());
    let expected = [
        BEFORE,
        REAL.as_bytes(),
        BEHIND,
        REAL.as_bytes(),
        b"SEALED_0S",
    ]
    .concat();
    assert_eq!(
        (show(&arrived), trailers.as_str()),
        (show(&expected), "\r\n")
    );
    scene.alive("cut tokens").await;
}

#[tokio::test]
async fn case_07_what_frames_chunks_is_no_part_of_a_token() {
    let scene = scene().await;
    let token = scene.token();
    // Two digits of the token are the size of the chunk that follows, and so no content.
    let size = |at: usize| usize::from_str_radix(&token[at..at + 2], 16).expect("a size");
    let at = (7..token.len() - 2)
        .find(|at| size(*at) >= token.len())
        .expect("one of thirty");
    let rest = format!("{:-<1$}", &token[at + 2..], size(at));
    let (one, two) = (format!("{{\"k\":\"{}", &token[..at]), rest.as_str());
    let sent = chunked(JSON, &[one.as_bytes(), two.as_bytes(), BEHIND]);
    let framed = format!(
        "{}\r\n{}\r\n{}",
        &token[..at],
        &token[at..at + 2],
        &token[at + 2..]
    );
    assert!(contains(&sent, framed));
    let arrived = received(&scene, &sent).await;
    let content = [one.as_bytes(), two.as_bytes(), BEHIND].concat();
    assert_eq!(show(&apart(&arrived).1), show(&content));
    // In an extension, and in the line behind it: no content, and not passed on.
    let with = |extension: &str, rest: &str| {
        let chunks = format!("1;{extension}\r\n{rest}\r\n0\r\n\r\n");
        format!("{}{chunks}", head(&format!("{JSON}{CHUNKED}")))
    };
    let (start, end) = token.split_at(12);
    for (sent, body) in [
        (with(&format!("a={token}"), "1"), "1"),
        (with(&format!("a=\"{start}"), &end[..1]), &end[..1]),
    ] {
        let expected = chunked(JSON, &[body.as_bytes()]);
        arrives(&scene, "an extension", sent.as_bytes(), &expected).await;
    }
    // Between the content of two chunks stands nothing at all.
    let sent = chunked(JSON, &[b"\"", start.as_bytes(), end.as_bytes(), b"\""]);
    let expected = chunked(JSON, &[b"\"", REAL.as_bytes(), b"\""]);
    arrives(&scene, "two chunks", &sent, &expected).await;
    // Nor does a token go on in the next request: its beginning leaves with the end of this one.
    let mut conn = scene.workload.connect(TARGET).await;
    scene.good.forget();
    for half in [start, end] {
        conn.send(chunked(JSON, &[half.as_bytes()])).await;
        assert_eq!(conn.answer().await.status, 200);
    }
    let expected = [start, end]
        .map(|half| chunked(JSON, &[half.as_bytes()]))
        .concat();
    assert_eq!(show(&scene.good.bytes()), show(&expected));
    scene.alive("framing").await;
}

/// Returns the bodies that arrived at an origin for a path.
fn bodies(play: &H2Scene, to_h1: bool, path: &str) -> Vec<Vec<u8>> {
    if to_h1 {
        let all = play.scene.good.received().into_iter();
        let all = all.filter(|one| !one.is_empty());
        return all.map(|one| apart(&one).1).collect();
    }
    let all = play.two.requests().into_iter();
    let all = all.filter(|seen| seen.path == path && seen.whole);
    all.map(|seen| seen.body).collect()
}

/// Waits until something of a body has arrived, and returns it.
async fn first_piece(play: &H2Scene, to_h1: bool, path: &str) -> Vec<u8> {
    if to_h1 {
        let there = |all: &[Vec<u8>]| {
            let all = all.concat();
            contains(&all, BEFORE) && all.ends_with(b"\r\n")
        };
        play.scene.good.wait("what is no token", there).await;
        let all = play.scene.good.bytes();
        return all[all.len() - chunk(BEFORE).len() + 3..all.len() - 2].to_owned();
    }
    let is = |seen: &H2Seen| seen.path == path && !seen.body.is_empty();
    let there = |all: &[H2Seen]| all.iter().any(is);
    let all = play.two.wait("what is no token", there).await;
    all.into_iter().find(is).expect("the request").body
}

#[tokio::test]
async fn case_19_a_token_cut_by_frames_is_swapped() {
    let play = h2_scene().await;
    let token = play.scene.token().as_bytes().to_owned();
    let expected = [BEFORE, REAL.as_bytes(), BEHIND].concat();
    let fields = [("content-type", "application/json")];
    for (client, to_h1) in [(play.h2().await, false), (play.h2_to_h1().await, true)] {
        for cut in 1..token.len() {
            play.scene.good.forget();
            let (one, two) = token.split_at(cut);
            let path = format!("/{to_h1}/{cut}");
            let mut stream = client.upload(&path, &fields).await;
            assert!(stream.push([BEFORE, one].concat()).await);
            assert!(stream.push(Bytes::new()).await);
            // The rest comes once this has arrived, and nothing that may be a token has.
            let first = first_piece(&play, to_h1, &path).await;
            assert_eq!(show(&first), show(BEFORE), "{cut}, to h1 {to_h1}");
            assert!(stream.end([two, BEHIND].concat()).await);
            assert_eq!(stream.answer().await.expect("an answer").status, 200);
            let bodies = bodies(&play, to_h1, &path);
            let there = bodies.contains(&expected);
            assert!(there, "{cut}, to h1 {to_h1}: {bodies:?}");
        }
        // A frame for each byte.
        play.scene.good.forget();
        let mut stream = client.upload("/bytes", &fields).await;
        for byte in [BEFORE, &token, BEHIND].concat() {
            assert!(stream.push(vec![byte]).await);
        }
        assert!(stream.end("").await);
        assert_eq!(stream.answer().await.expect("an answer").status, 200);
        assert!(bodies(&play, to_h1, "/bytes").contains(&expected));
        play.scene.good.forget();
    }
    play.alive("cut frames").await;
}

/// Waits until so many bodies have begun to arrive: what was sent of each has been looked at.
async fn begun(play: &H2Scene, to_h1: bool, count: usize) {
    let has_begun = |body: &[u8]| contains(body, BEFORE);
    if to_h1 {
        let there = |all: &[Vec<u8>]| all.iter().filter(|one| has_begun(one)).count() == count;
        play.scene.good.wait("what is no token", there).await;
    } else {
        let there =
            |all: &[H2Seen]| all.iter().filter(|seen| has_begun(&seen.body)).count() == count;
        play.two.wait("what is no token", there).await;
    }
}

#[tokio::test]
async fn case_19_halves_on_two_streams_are_no_token() {
    let play = h2_scene().await;
    let token = play.scene.token().as_bytes().to_owned();
    let (one, two) = token.split_at(20);
    for (client, to_h1) in [(play.h2().await, false), (play.h2_to_h1().await, true)] {
        play.scene.good.forget();
        let mut first = client.upload("/left", &[]).await;
        let mut second = client.upload("/left", &[]).await;
        assert!(first.push([BEFORE, one].concat()).await);
        begun(&play, to_h1, 1).await;
        assert!(second.push([BEFORE, two].concat()).await);
        begun(&play, to_h1, 2).await;
        assert!(first.push(BEHIND).await);
        assert!(second.push(one.to_owned()).await);
        assert!(first.end(token.clone()).await);
        assert!(second.end([two, BEHIND].concat()).await);
        for stream in [first, second] {
            assert_eq!(stream.answer().await.expect("an answer").status, 200);
        }
        let mut found = bodies(&play, to_h1, "/left");
        found.sort();
        let mut expected = [
            [BEFORE, one, BEHIND, REAL.as_bytes()].concat(),
            [BEFORE, two, REAL.as_bytes(), BEHIND].concat(),
        ];
        expected.sort();
        assert_eq!(found, expected, "to h1 {to_h1}");
    }
    play.scene.good.forget();
    play.alive("streams beside each other").await;
}
