//! Tokens in the bodies of requests: left unless the session asks for it, swapped where it does.
//!
//! What counts is the raw bytes that the origins received: the body, its framing, and the head that
//! says how long it is.

mod clients;
mod codings;
mod cuts;
mod limits;
mod places;
mod streams;
mod writing;

use oshu_vault_sdk::CreateSession;

use crate::support::{Answer, GOOD, H2Origin, H2Scene, H2Seen, Origin, Scene, contains, show};

const TARGET: &str = "good.example.com:443";
const JSON: &str = "Content-Type: application/json\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
/// More than is read whole before its head leaves, in bytes.
const LARGE: usize = 100_000;

/// Lets the secret stand in bodies, and in headers.
fn in_bodies(session: CreateSession) -> CreateSession {
    session.inject(["header", "body"])
}

/// Sets the scene with a session whose secret may stand in bodies.
async fn scene() -> Scene {
    Scene::session(in_bodies).await
}

/// Sets the scene with a value of the test's choice.
async fn scene_with(value: &str) -> Scene {
    Scene::session(|session| in_bodies(session).secret("EXAMPLE_KEY", value)).await
}

/// Sets the scene with an h2 origin, and a session whose secret may stand in bodies.
pub(crate) async fn h2_scene() -> H2Scene {
    let two = H2Origin::echo_ok().await;
    let address = two.addr();
    let scene = Scene::with(
        |vault| vault.resolve(crate::support::TWO, address),
        |session| in_bodies(H2Scene::open(session)),
    )
    .await;
    H2Scene { scene, two }
}

/// Writes a POST with a length.
fn post(fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = format!("{fields}Content-Length: {}\r\n", body.len());
    [head(&length).as_bytes(), body].concat()
}

/// Writes the head of a POST.
fn head(fields: &str) -> String {
    format!("POST /v1 HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n")
}

/// Writes a POST of these chunks.
fn chunked(fields: &str, chunks: &[&[u8]]) -> Vec<u8> {
    let mut text = head(&format!("{fields}{CHUNKED}")).into_bytes();
    for piece in chunks {
        text.extend_from_slice(&chunk(piece));
    }
    text.extend_from_slice(b"0\r\n\r\n");
    text
}

/// Writes a chunk.
fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// Sends bytes to the good origin, which must answer; returns all that it received.
async fn received(scene: &Scene, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    scene.good.forget();
    let answer = scene.ask(GOOD, bytes).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    scene.good.bytes()
}

/// Fails unless the origin received what was sent, with the value in the place of the token, byte
/// for byte.
async fn arrives(scene: &Scene, case: &str, sent: &[u8], expected: &[u8]) {
    let received = received(scene, sent).await;
    let same = received == expected;
    assert!(
        same,
        "{case}: {}\ninstead of {}",
        show(&received),
        show(expected)
    );
}

/// Ends a case whose secret has another value: the next request must go through with it.
async fn alive_with(scene: &Scene, value: &str) {
    let request =
        |key: &str| format!("GET /alive HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {key}\r\n\r\n");
    let (sent, expected) = (request(scene.token()), request(value));
    arrives(scene, "alive", sent.as_bytes(), expected.as_bytes()).await;
}

/// Returns the last request that the h2 origin saw.
fn last_of(play: &H2Scene) -> H2Seen {
    play.two.requests().pop().expect("a request")
}

/// Takes a request apart: its head, its body without chunks, and its trailers.
fn apart(request: &[u8]) -> (String, Vec<u8>, String) {
    let at = request
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8(request[..at + 2].to_vec()).expect("text");
    let mut rest = &request[at + 4..];
    if !head.contains("chunked\r\n") {
        return (head, rest.to_vec(), String::new());
    }
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n");
        let (line, behind) = rest.split_at(end.expect("a size"));
        let size = usize::from_str_radix(std::str::from_utf8(line).expect("text"), 16);
        let size = size.expect("a size");
        if size == 0 {
            let trailers = String::from_utf8(behind[2..].to_vec()).expect("text");
            return (head, body, trailers);
        }
        body.extend_from_slice(&behind[2..2 + size]);
        assert_eq!(&behind[2 + size..4 + size], b"\r\n");
        rest = &behind[4 + size..];
    }
}

/// Fails unless nothing of a refused request arrived, and the next one goes through.
async fn refused(scene: &Scene, case: &str, sent: &[u8], (status, code): (u16, &str)) -> Answer {
    scene.good.forget();
    let answer = scene.ask(GOOD, sent).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (status, code),
        "{case}"
    );
    assert!(!contains(&answer.raw, scene.token()), "{case}");
    scene.nothing_arrived(case).await;
    answer
}
