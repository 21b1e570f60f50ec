//! `session create`, `list`, `show`, `delete`: the session API of a running server, by hand.
//!
//! Answers go to stdout as JSON, as the server gave them; a problem document becomes one line of
//! stderr for each bad field. A request is checked to be JSON before anything is sent.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::args::{SessionAction, SessionCalls};
use super::target::Target;
use super::{Exit, STARTUP, client, print, serve};
use crate::config::{Flags, Source};

/// The most bytes of a request: what the server takes.
const REQUEST_LIMIT_BYTES: u64 = 1024 * 1024;
/// How many sessions are asked for at once: pages stay far below the limit of an answer.
const PAGE: usize = 50;
/// The most pages of a list: a server that never ends must not fill this process.
const PAGES_LIMIT: usize = 2000;
/// The longest line of a complaint that a server is allowed, in characters.
const LINE_LIMIT_CHARS: usize = 1024;

/// Makes one call of the session API.
pub(super) async fn session(calls: &SessionCalls) -> Result<(), Exit> {
    // The key and perhaps secrets pass through this process.
    serve::protect_process();
    let target = calls.server.target(&Source::process(Flags::default()))?;
    match &calls.action {
        SessionAction::Create { file } => create(&target, file.as_deref()).await,
        SessionAction::Delete(id) => ask(&target, "DELETE", &format!("/v1/sessions/{id}"), None)
            .await
            .map(drop),
        SessionAction::List => list(&target).await,
        SessionAction::Show(id) => {
            pretty(&ask(&target, "GET", &format!("/v1/sessions/{id}"), None).await?)
        }
    }
}

async fn create(target: &Target, file: Option<&Path>) -> Result<(), Exit> {
    let body = match file {
        Some(path) => {
            let name = format!("--file: {}", path.display());
            let file = File::open(path)
                .map_err(|error| Exit::usage(format!("error: {name} cannot be read: {error}")))?;
            request(file, &name)?
        }
        None => request(std::io::stdin().lock(), "stdin")?,
    };
    pretty(&ask(target, "POST", "/v1/sessions", Some(body)).await?)
}

/// Reads a request and checks that it is JSON. What it holds is never quoted: it has secrets.
fn request(from: impl Read, name: &str) -> Result<Vec<u8>, Exit> {
    let bad = |text: String| Exit::usage(format!("error: {name} {text}"));
    let mut body = Zeroizing::new(Vec::new());
    from.take(REQUEST_LIMIT_BYTES + 1)
        .read_to_end(&mut body)
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    if body.len() as u64 > REQUEST_LIMIT_BYTES {
        return Err(bad("has more than 1 MiB".to_owned()));
    }
    serde_json::from_slice::<IgnoredAny>(&body).map_err(|error| {
        bad(format!(
            "is not JSON: line {}, column {}",
            error.line(),
            error.column()
        ))
    })?;
    Ok(std::mem::take(&mut *body))
}

/// Prints all sessions in one list, whatever the pages of the server are.
async fn list(target: &Target) -> Result<(), Exit> {
    let (mut sessions, mut cursor) = (Vec::new(), String::new());
    for _ in 0..PAGES_LIMIT {
        let path = format!("/v1/sessions?limit={PAGE}{cursor}");
        let mut page = ask(target, "GET", &path, None).await?;
        let Some(Value::Array(found)) = page.get_mut("sessions").map(Value::take) else {
            return Err(odd(target, "is not a list of sessions"));
        };
        let none = found.is_empty();
        sessions.extend(found);
        let next = page.get("next_cursor").and_then(Value::as_str);
        match next.filter(|next| !none && next.bytes().all(|one| one.is_ascii_graphic())) {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pretty(&json!({ "sessions": sessions })),
        }
    }
    Err(odd(target, "has a list without an end"))
}

/// Makes a call and reads the answer; nothing is `null`.
pub(super) async fn ask(
    target: &Target,
    method: &str,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Value, Exit> {
    let (status, answer) = client::call(target, method, path, body).await?;
    let answer = Zeroizing::new(answer);
    let parsed = serde_json::from_slice(&answer);
    match (status, parsed) {
        (204, _) => Ok(Value::Null),
        (200..=299, Ok(answer)) => Ok(answer),
        (200..=299, Err(_not_json)) => Err(odd(target, "is not JSON")),
        (_, problem) => Err(
            complaint(&problem.unwrap_or(Value::Null)).unwrap_or_else(|| {
                odd(
                    target,
                    &format!("has status {status} and is no problem document"),
                )
            }),
        ),
    }
}

/// Turns a problem document (RFC 9457) into lines; nothing where it is none.
fn complaint(problem: &Value) -> Option<Exit> {
    let text = |value: &Value, name: &str| {
        let text = value.get(name)?.as_str()?;
        let plain = text.chars().filter(|one| !one.is_control());
        Some(plain.take(LINE_LIMIT_CHARS).collect::<String>())
    };
    let fields = problem.get("errors").and_then(Value::as_array);
    let mut lines: Vec<String> = fields
        .into_iter()
        .flatten()
        .filter_map(|error| {
            let (field, message) = (text(error, "field")?, text(error, "message")?);
            Some(format!("error: {field}: {message}"))
        })
        .collect();
    if lines.is_empty() {
        lines.push(format!("error: {}", text(problem, "detail")?));
    }
    Some(Exit {
        code: STARTUP,
        text: lines.join("\n"),
        to_stdout: false,
    })
}

fn odd(target: &Target, what: &str) -> Exit {
    Exit::failed(&format!("{}: the answer {what}", target.url))
}

fn pretty(answer: &Value) -> Result<(), Exit> {
    print(&format!("{answer:#}\n"))
}
