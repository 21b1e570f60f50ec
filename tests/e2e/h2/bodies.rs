//! Bodies arrive byte for byte, both ways, whatever is spoken on either side.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::OK;
use crate::support::{Conn, GOOD, H2Origin, H2Scene, Origin, TWO, program, sha256};

/// A body and the fields that go with it.
pub(crate) struct Payload {
    pub(crate) name: &'static str,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) bytes: Vec<u8>,
}

fn random(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
    bytes
}

fn finish(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    output
}

/// Makes a pack of a repository with one commit, as a push would send it.
fn pack(folder: &Path) -> Option<Vec<u8>> {
    let git = program("git")?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&git);
        command
            .current_dir(folder)
            .env("HOME", folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(arguments);
        finish(&mut command).stdout
    };
    run(&["init", "--quiet"]);
    std::fs::write(folder.join("random"), random(300_000)).expect("a file");
    std::fs::write(folder.join("text"), "line\n".repeat(5_000)).expect("a file");
    run(&["add", "."]);
    run(&["commit", "--quiet", "--message", "all"]);
    Some(run(&["pack-objects", "--all", "--stdout", "--quiet"]))
}

fn gzip(folder: &Path) -> Option<Vec<u8>> {
    let gzip = program("gzip")?;
    let file = folder.join("text-to-zip");
    std::fs::write(&file, "{\"some\": \"json\"}\n".repeat(20_000)).expect("a file");
    Some(finish(Command::new(gzip).arg("--stdout").arg(&file)).stdout)
}

fn multipart() -> Vec<u8> {
    let part = |head: &str, bytes: &[u8]| {
        let head = format!("--cut\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        [head.as_bytes(), bytes, b"\r\n"].concat()
    };
    let file = part("name=\"file\"; filename=\"f.bin\"", &random(100_000));
    [part("name=\"a\"", b"1"), file, b"--cut--\r\n".to_vec()].concat()
}

/// Makes bodies of the kinds that proxies like to break.
pub(crate) fn payloads() -> Vec<Payload> {
    let folder = tempfile::tempdir().expect("a folder");
    let payload = |name, fields: &[(&'static str, &str)], bytes| Payload {
        name,
        fields: fields
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
        bytes,
    };
    let kind = "content-type";
    let mut all = vec![
        payload(
            "random",
            &[(kind, "application/octet-stream")],
            random(5 << 20),
        ),
        payload(
            "multipart",
            &[(kind, "multipart/form-data; boundary=cut")],
            multipart(),
        ),
        payload("one byte", &[], vec![b'x']),
    ];
    let json = [(kind, "application/json"), ("content-encoding", "gzip")];
    all.extend(gzip(folder.path()).map(|bytes| payload("gzip", &json, bytes)));
    let git = [(kind, "application/x-git-receive-pack-request")];
    all.extend(pack(folder.path()).map(|bytes| payload("git pack", &git, bytes)));
    all
}

/// Sends back what came, with its type.
async fn mirrors() -> (Origin, H2Origin) {
    let h1 = Origin::script(|request, conn| async move {
        if request.line().contains("/alive") {
            return conn.send(OK).await;
        }
        let encoding = request.header("content-encoding");
        let line = encoding.map_or_else(String::new, |it| format!("Content-Encoding: {it}\r\n"));
        let body = &request.body;
        if request.line().contains("/chunked") {
            let head = format!("HTTP/1.1 200 OK\r\n{line}Transfer-Encoding: chunked\r\n\r\n");
            conn.send(head).await;
            for piece in body.chunks(70_001) {
                let size = format!("{:x}\r\n", piece.len());
                conn.send([size.as_bytes(), piece, b"\r\n"].concat()).await;
            }
            conn.send("0\r\n\r\n").await;
        } else {
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\n{line}Content-Length: {length}\r\n\r\n");
            conn.send([head.as_bytes(), body].concat()).await;
        }
    })
    .await;
    let h2 = H2Origin::script(|mut exchange| async move {
        let mut body = Vec::new();
        while let Some(piece) = exchange.read().await {
            body.extend_from_slice(&piece);
        }
        let encoding = exchange.head.all("content-encoding").join(", ");
        let length = body.len().to_string();
        let mut fields = vec![];
        if !encoding.is_empty() {
            fields.push(("content-encoding", encoding.as_str()));
        }
        if exchange.path() != "/chunked" {
            fields.push(("content-length", &length));
        }
        exchange.answer_head(200, &fields, false);
        exchange.end(body).await;
    })
    .await;
    (h1, h2)
}

#[tokio::test]
async fn bodies_are_the_same_through_every_pair_of_protocols() {
    let (h1, h2) = mirrors().await;
    let play = H2Scene::unscrubbed(h1, h2).await;
    for payload in payloads() {
        for sized in [true, false] {
            let path = if sized { "/sized" } else { "/chunked" };
            let length = payload.bytes.len().to_string();
            let mut fields: Vec<(&str, &str)> = payload
                .fields
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            if sized {
                fields.push(("content-length", &length));
            }
            for (pair, client) in [
                ("h2 to h2", play.h2().await),
                ("h2 to h1", play.h2_to_h1().await),
            ] {
                let case = format!("{pair}, {}, {path}", payload.name);
                let before = play.two.requests().len();
                let answer = client.ask(("POST", path), &fields, &payload.bytes).await;
                assert_eq!(answer.status, 200, "{case}");
                assert_eq!(
                    sha256(&answer.body),
                    sha256(&payload.bytes),
                    "{case}: the answer"
                );
                let encoding = fields.iter().find(|(name, _)| *name == "content-encoding");
                assert_eq!(
                    answer.header("content-encoding"),
                    encoding.map(|it| it.1),
                    "{case}"
                );
                if pair == "h2 to h2" {
                    let seen = play.two.requests().remove(before);
                    assert_eq!(
                        sha256(&seen.body),
                        sha256(&payload.bytes),
                        "{case}: the request"
                    );
                    assert_eq!(seen.authority.as_deref(), Some(TWO));
                    let stated = seen.all("content-length");
                    assert_eq!(
                        stated,
                        if sized { vec![length.as_str()] } else { vec![] },
                        "{case}"
                    );
                }
            }
            let case = format!("h1 to h1, {}, {path}", payload.name);
            let body = h1_to_h1(&play, path, &fields, &payload.bytes).await;
            assert_eq!(sha256(&body), sha256(&payload.bytes), "{case}");
        }
    }
    play.alive("bodies").await;
}

async fn h1_to_h1(play: &H2Scene, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut lines = String::new();
    for (name, value) in fields {
        lines.extend([name, ": ", value, "\r\n"]);
    }
    let sized = fields.iter().any(|(name, _)| *name == "content-length");
    if !sized {
        lines.push_str("Transfer-Encoding: chunked\r\n");
    }
    let head = format!("POST {path} HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n");
    let mut conn: Conn = play.scene.workload.connect("good.example.com:443").await;
    conn.send(head).await;
    if sized {
        conn.send(body).await;
    } else {
        for piece in body.chunks(100_003) {
            let size = format!("{:x}\r\n", piece.len());
            conn.send([size.as_bytes(), piece, b"\r\n"].concat()).await;
        }
        conn.send("0\r\n\r\n").await;
    }
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{path}");
    answer.body
}

#[tokio::test]
async fn pieces_pass_when_they_come() {
    // A handshake and no clock: each side sends only when the other's piece has arrived.
    let h2 = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            exchange.read_all().await;
            return exchange.answer(200, "ok").await;
        }
        exchange.answer_head(200, &[("content-type", "text/event-stream")], false);
        while let Some(piece) = exchange.read().await {
            if piece.is_empty() {
                continue;
            }
            let text = String::from_utf8_lossy(&piece).into_owned();
            exchange.send(format!("data: {text}\n\n")).await;
        }
        exchange.end("").await;
    })
    .await;
    let h1 = Origin::raw(|conn| async move {
        let Some(head) = conn.read_head().await else {
            return;
        };
        if head.contains("/alive") {
            return conn.send(OK).await;
        }
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        for index in 0..50 {
            // "2\r\n" and two digits and "\r\n", as one chunk each.
            let chunk = conn.read_exactly(7).await.expect("a chunk");
            assert!(chunk.starts_with(b"2\r\n"), "chunk {index}");
            let text = String::from_utf8_lossy(&chunk[3..5]).into_owned();
            conn.send(format!("a\r\ndata: {text}\n\n\r\n")).await;
        }
        conn.read_exactly(5).await;
        conn.send("0\r\n\r\n").await;
    })
    .await;
    let play = H2Scene::with_good(h1, h2, |vault| vault).await;
    for client in [play.h2().await, play.h2_to_h1().await] {
        let mut stream = client.upload("/events", &[]).await;
        for index in 10..60 {
            assert!(stream.push(index.to_string()).await);
            if index == 10 {
                assert_eq!(stream.head().await.expect("a head").status, 200);
            }
            stream.expect_piece(&format!("data: {index}\n\n")).await;
        }
        assert!(stream.end("").await);
        stream.expect_end().await;
    }
    play.alive("events").await;
}
