//! Package managers against a registry of one package that asks for a token.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER;
use serde_json::json;

use super::row::row;
use super::stage::{Stage, finish, fixture, installed};
use crate::support::clients::{client, run};
use crate::support::{Origin, program};

const HOST: &str = "https://api.clients.test";

/// Starts a registry for all of them.
async fn registry(python: &Path) -> Origin {
    let folder = tempfile::tempdir().expect("a folder");
    let mut make = client(python, folder.path());
    make.arg(fixture("programs/packages.py")).arg(folder.path());
    run("packages.py", &mut make)
        .await
        .expect_success("packages.py");
    let read = |name: &str| std::fs::read(folder.path().join(name)).expect("a package");
    let (wheel, tarball, krate) = (
        read("probe-1.0.0-py3-none-any.whl"),
        read("probe-1.0.0.tgz"),
        read("probe.crate"),
    );
    let sha256 = |bytes: &[u8]| HEXLOWER.encode(digest(&SHA256, bytes).as_ref());
    let page = format!(
        "<a href=\"/files/probe-1.0.0-py3-none-any.whl#sha256={}\">probe</a>",
        sha256(&wheel)
    );
    let integrity = STANDARD.encode(digest(&SHA512, &tarball));
    let tarball_url = format!("{HOST}/probe/-/probe-1.0.0.tgz");
    let dist = json!({ "tarball": tarball_url, "integrity": format!("sha512-{integrity}") });
    let version = json!({ "name": "probe", "version": "1.0.0", "dist": dist });
    let packument = json!({
        "name": "probe",
        "dist-tags": { "latest": "1.0.0" },
        "versions": { "1.0.0": version },
    });
    let index = json!({ "dl": format!("{HOST}/dl"), "auth-required": true });
    let entry = json!({
        "name": "probe",
        "vers": "1.0.0",
        "deps": [],
        "cksum": sha256(&krate),
        "features": {},
        "yanked": false,
    });
    serve([
        ("/simple/probe/", "text/html", page.into_bytes()),
        (
            "/files/probe-1.0.0-py3-none-any.whl",
            "application/zip",
            wheel,
        ),
        ("/probe", "application/json", packument.to_string().into()),
        ("/probe/-/probe-1.0.0.tgz", "application/gzip", tarball),
        (
            "/index/config.json",
            "application/json",
            index.to_string().into(),
        ),
        ("/index/pr/ob/probe", "text/plain", entry.to_string().into()),
        ("/dl/probe/1.0.0/download", "application/gzip", krate),
    ])
    .await
}

/// Starts an origin with these files, for callers with any credential.
async fn serve<const N: usize>(files: [(&'static str, &'static str, Vec<u8>); N]) -> Origin {
    let files = files.map(|(path, kind, bytes)| (path, (kind, bytes)));
    let files = Arc::new(HashMap::from(files));
    Origin::script(move |request, conn| {
        let files = Arc::clone(&files);
        async move {
            let path = request.line().split(' ').nth(1).unwrap_or_default();
            let (status, kind, bytes) = match files.get(path) {
                _ if request.header("authorization").is_none() => ("401 Unauthorized", "", &[][..]),
                Some((kind, bytes)) => ("200 OK", *kind, &bytes[..]),
                None => ("404 Not Found", "", &[][..]),
            };
            let length = bytes.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nWWW-Authenticate: Basic realm=\"probe\"\r\n\
                 Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            );
            conn.send(head).await;
            conn.send(bytes).await;
        }
    })
    .await
}

fn index_of(stage: &Stage) -> String {
    format!("https://user:{}@api.clients.test/simple/", stage.sealed())
}

#[tokio::test]
async fn pip() {
    let Some(python) = program("python3") else {
        return;
    };
    let client = async |stage: &Stage| {
        let mut pip = stage.command(&python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--no-cache-dir",
            "--no-deps",
            "--retries=0",
        ]);
        pip.args(["--index-url", &index_of(stage), "probe"]);
        let said = finish(&mut pip).await;
        expect_file(stage, "probe-1.0.0-py3-none-any.whl", &said.stderr);
        ok(said)
    };
    let origin = async || registry(&python).await;
    row("pip").check(origin, client).await;
}

#[tokio::test]
async fn uv() {
    let (Some(python), Some(uv)) = (program("python3"), installed("python/bin/uv")) else {
        return;
    };
    let client = async |stage: &Stage| {
        let mut command = stage.command(&uv);
        command.args(["pip", "install", "--no-cache", "--target=out", "--python"]);
        command
            .arg(&python)
            .args(["--index-url", &index_of(stage), "probe"]);
        let said = finish(&mut command).await;
        expect_file(stage, "out/probe.py", &said.stderr);
        ok(said)
    };
    let origin = async || registry(&python).await;
    row("uv").check(origin, client).await;
}

#[tokio::test]
async fn npm() {
    let (Some(python), Some(_npm)) = (program("python3"), program("npm")) else {
        return;
    };
    let client = async |stage: &Stage| {
        let lines = "registry=https://api.clients.test/\n\
                     //api.clients.test/:_authToken=${CLIENT_KEY}\nfetch-retries=0\n";
        stage.write(".npmrc", lines);
        stage.write("package.json", r#"{"name":"consumer","version":"1.0.0"}"#);
        let seen = finish(stage.command("npm").args(["view", "probe", "version"])).await;
        assert_eq!(seen.stdout.trim(), "1.0.0", "{}", seen.stderr);
        let mut install = stage.command("npm");
        let said = finish(install.args(["install", "--no-audit", "--no-fund", "probe"])).await;
        expect_file(stage, "node_modules/probe/package.json", &said.stderr);
        ok(said)
    };
    let origin = async || registry(&python).await;
    row("npm").check(origin, client).await;
}

#[tokio::test]
async fn cargo() {
    let Some(python) = program("python3") else {
        return;
    };
    // The one that runs these tests: the one on the path may look into the home of its user.
    let cargo = PathBuf::from(env!("CARGO"));
    let client = async |stage: &Stage| {
        let registries = "[registry]\nglobal-credential-providers = [\"cargo:token\"]\n\
                          [registries.probe]\nindex = \"sparse+https://api.clients.test/index/\"\n";
        stage.write(".cargo/config.toml", registries);
        let manifest = "[package]\nname = \"consumer\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\
                        [dependencies]\nprobe = { version = \"1\", registry = \"probe\" }\n";
        stage.write("Cargo.toml", manifest);
        stage.write("src/lib.rs", "");
        let mut fetch = stage.command(&cargo);
        fetch
            .arg("fetch")
            .env("CARGO_REGISTRIES_PROBE_TOKEN", stage.sealed());
        fetch.env("RUSTC", cargo.with_file_name("rustc"));
        let said = finish(&mut fetch).await;
        expect_file(stage, "Cargo.lock", &said.stderr);
        ok(said)
    };
    let origin = async || registry(&python).await;
    row("cargo").check(origin, client).await;
}

/// Fails unless the package manager brought a file into its home.
fn expect_file(stage: &Stage, path: &str, told: &str) {
    assert!(stage.home().join(path).exists(), "no {path}: {told}");
}

/// Adds the word that rows look for; what package managers print themselves changes.
fn ok(mut said: crate::support::clients::Said) -> crate::support::clients::Said {
    said.stdout.push_str("ok");
    said
}
