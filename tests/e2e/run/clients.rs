//! Real clients behind `run`, unchanged: each reaches the origin with the real value.

use super::{HOST, Place, SECRET, VALUE};
use crate::support::clients::{project_file, run as finish};
use crate::support::{Origin, missing, program};

/// Runs one client on a program text and checks what the origin saw.
async fn expect_swapped(name: &str, command: &[&str], requests: usize) {
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let mut run = place.towards(&origin);
    run.env("PYTHONPATH", project_file("tests/fixtures/clients/python"));
    run.env(
        "NODE_PATH",
        project_file("tests/fixtures/clients/node_modules"),
    );
    let said = finish(name, run.arg("--").args(command)).await;
    said.expect_success(name);
    assert_eq!(
        said.stdout,
        "ok".repeat(requests),
        "{name}: {}",
        said.stderr
    );
    let seen = String::from_utf8(origin.bytes())
        .expect("a text")
        .to_ascii_lowercase();
    let swapped = seen.matches(&format!("x-api-key: {VALUE}\r\n")).count();
    assert_eq!(swapped, requests, "{name}: {seen}");
    assert!(!seen.contains("sealed_"), "{name}: {seen}");
    assert!(!seen.contains("proxy-authorization"), "{name}: {seen}");
}

#[tokio::test]
async fn curl() {
    if program("curl").is_none() {
        return;
    }
    let script = format!("curl -sS https://{HOST}/ -H \"X-Api-Key: ${SECRET}\"");
    expect_swapped("curl", &["sh", "-c", &script], 1).await;
}

#[tokio::test]
async fn python() {
    if program("python3").is_none() {
        return;
    }
    let urllib = format!(
        "import os, urllib.request as u\n\
         r = u.Request('https://{HOST}/', headers={{'X-Api-Key': os.environ['{SECRET}']}})\n\
         print(u.urlopen(r).read().decode(), end='')"
    );
    expect_swapped("urllib", &["python3", "-c", &urllib], 1).await;
    if !project_file("tests/fixtures/clients/python/requests").exists() {
        missing("requests is not installed, tests/prepare.sh does that");
        return;
    }
    let requests = format!(
        "import os, requests\n\
         r = requests.get('https://{HOST}/', headers={{'X-Api-Key': os.environ['{SECRET}']}})\n\
         print(r.text, end='')"
    );
    expect_swapped("requests", &["python3", "-c", &requests], 1).await;
}

/// Node has many ways out. The last three see the proxy only through the default agents that the
/// preload patches in old releases and that newer ones set up themselves.
#[tokio::test]
async fn node() {
    if program("node").is_none() {
        return;
    }
    let start = format!(
        "const url = 'https://{HOST}/', headers = {{ 'X-Api-Key': process.env.{SECRET} }};\n\
         const print = (text) => process.stdout.write(text);\n"
    );
    for (name, script) in [
        (
            "fetch",
            "fetch(url, { headers }).then((r) => r.text()).then(print)",
        ),
        (
            "fetch, a body",
            "fetch(url, { method: 'POST', headers, body: 'x'.repeat(100000) })\
             .then((r) => r.text()).then(print)",
        ),
        (
            "https.get",
            "require('https').get(url, { headers }, (r) => r.pipe(process.stdout))",
        ),
        (
            "https.request without an agent",
            "require('https').request(url, { headers, agent: false }, \
             (r) => r.pipe(process.stdout)).end()",
        ),
    ] {
        expect_swapped(name, &["node", "-e", &format!("{start}{script}")], 1).await;
    }
    if !project_file("tests/fixtures/clients/node_modules/undici").exists() {
        missing("undici is not installed, tests/prepare.sh does that");
        return;
    }
    let undici = "const { request, fetch: other } = require('undici');\n\
                  request(url, { headers }).then((r) => r.body.text()).then(print)\
                  .then(() => other(url, { headers })).then((r) => r.text()).then(print)";
    expect_swapped("undici", &["node", "-e", &format!("{start}{undici}")], 2).await;
}

#[tokio::test]
async fn node_is_told_why_a_tunnel_was_refused() {
    if program("node").is_none() {
        return;
    }
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let script = "const told = (e) => console.log((e.cause || e).message);\n\
                  fetch('https://evil.example/').catch(told);\n\
                  require('https').get('https://evil.example/').on('error', told);";
    let mut run = place.towards(&origin);
    let said = finish("node", run.args(["--", "node", "-e", script])).await;
    said.expect_success("node");
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stderr);
    for line in lines {
        assert!(line.contains("403"), "{line}");
    }
    origin.expect_nothing("a host that is not allowed");
}

#[tokio::test]
async fn this_machine_is_reached_without_the_proxy() {
    if program("node").is_none() {
        return;
    }
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let local = Origin::builder().plain().echo_ok().await;
    let script = format!(
        "fetch('http://{0}/').then((r) => r.text()).then((t) => {{ process.stdout.write(t);\n\
         require('http').get('http://{0}/', (r) => r.pipe(process.stdout)); }})",
        local.addr()
    );
    let mut run = place.towards(&origin);
    let said = finish("node", run.args(["--", "node", "-e", &script])).await;
    said.expect_success("node");
    assert_eq!(said.stdout, "okok", "{}", said.stderr);
}
