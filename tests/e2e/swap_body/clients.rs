//! Bodies as real programs send them: forms, JSON, files, and what waits to be asked for.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::support::clients::{client, project_file, run};
use crate::support::{Request, missing, program};

/// What a form gives a meaning to.
const VALUE: &str = "a&b=c\"\\+/ 0123456789";
const IN_A_FORM: &str = "a%26b%3Dc%22%5C%2B%2F%20";

/// Answers with the length of the body; asks for one that waits.
async fn counting() -> Origin {
    Origin::script(|request: Request, conn| async move {
        let length = request.body.len().to_string();
        conn.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}",
            length.len()
        ))
        .await;
    })
    .await
}

async fn client_scene() -> Scene {
    let session = |session| in_bodies(session).secret("EXAMPLE_KEY", VALUE);
    Scene::with_good(counting().await, |vault| vault, session).await
}

#[tokio::test]
async fn curl_posts_forms_json_files_and_multipart() {
    let scene = client_scene().await;
    let Some(curl) = program("curl") else {
        return;
    };
    let home = tempfile::tempdir().expect("a folder");
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, scene.vault.ca_pem()).expect("a file");
    let token = scene.token();
    let large = home.path().join("large");
    let lines = "line\n".repeat(400_000);
    std::fs::write(&large, format!("{token}{lines}{token}")).expect("a file");
    let form = format!("token={token}&x=1");
    let json = format!("{{\"k\":\"{token}\"}}");
    let part = format!("token={token}");
    let file = format!("file=@{};type=text/plain", large.display());
    let data = format!("@{}", large.display());
    let is_json = |body: &str| {
        let value: Value = serde_json::from_str(body).expect("JSON");
        value["k"] == VALUE
    };
    for version in ["--http1.1", "--http2"] {
        for (arguments, right) in [
            (
                &["--data", &form][..],
                Box::new(|body: &str| body == format!("token={IN_A_FORM}0123456789&x=1"))
                    as Box<dyn Fn(&str) -> bool>,
            ),
            (&["--json", &json], Box::new(is_json)),
            (
                &["--form", &part, "--form", &file],
                Box::new(|body: &str| {
                    body.contains(&format!("\r\n\r\n{VALUE}\r\n--"))
                        && body.contains(&format!("\r\n\r\n{VALUE}{lines}{VALUE}\r\n--"))
                }),
            ),
            (
                // Over a megabyte: curl asks first.
                &[
                    "--header",
                    "Content-Type: text/plain",
                    "--data-binary",
                    &data,
                ],
                Box::new(|body: &str| body == format!("{VALUE}{lines}{VALUE}")),
            ),
            (
                // Small, and asks all the same.
                &["--header", "Expect: 100-continue", "--data", &form],
                Box::new(|body: &str| body == format!("token={IN_A_FORM}0123456789&x=1")),
            ),
        ] {
            scene.good.forget();
            let mut command = client(&curl, home.path());
            command
                .args([
                    "--silent",
                    "--show-error",
                    "--disable",
                    "--max-time",
                    "60",
                    version,
                ])
                .args([Path::new("--cacert"), &ca])
                .args(["--proxy", &scene.vault.proxy_url(&scene.session)])
                .args(arguments)
                .arg("https://good.example.com/v1");
            let said = run("curl", &mut command).await;
            said.expect_success("curl");
            let (head, body, _) = apart(&scene.good.bytes());
            let body = String::from_utf8(body).expect("text");
            assert_eq!(said.stdout, body.len().to_string(), "{head}");
            assert!(
                right(&body) && !body.contains(token),
                "{version} {arguments:?}: {head}"
            );
        }
    }
}

#[tokio::test]
async fn requests_posts_forms_json_and_multipart() {
    let scene = client_scene().await;
    let packages = project_file("tests/fixtures/clients/python");
    let Some(python) = program("python3") else {
        return;
    };
    if !packages.join("requests").exists() {
        return missing("requests is not installed, tests/prepare.sh does that");
    }
    let home = tempfile::tempdir().expect("a folder");
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, scene.vault.ca_pem()).expect("a file");
    let text = "import os, requests\n\
        url, key = 'https://good.example.com/v1', os.environ['KEY']\n\
        for body in (dict(data={'k': key}), dict(json={'k': key}), dict(files={'k': key}),\n\
        \x20            dict(data=iter([key[:9].encode(), key[9:].encode()]))):\n\
        \x20   print(requests.post(url, **body).text)\n";
    let mut command = client(python, home.path());
    command
        .env("PYTHONPATH", packages)
        .env("HTTPS_PROXY", scene.vault.proxy_url(&scene.session))
        .env("REQUESTS_CA_BUNDLE", &ca)
        .env("KEY", scene.token())
        .args(["-c", text]);
    let said = run("requests", &mut command).await;
    said.expect_success("requests");
    let arrived = String::from_utf8(scene.good.bytes()).expect("text");
    for expected in [
        format!("k={IN_A_FORM}0123456789"),
        "{\"k\": \"a&b=c\\\"\\\\+/ 0123456789\"}".to_owned(),
        format!("filename=\"k\"\r\n\r\n{VALUE}\r\n--"),
        format!("\r\n{:x}\r\n{VALUE}\r\n0\r\n\r\n", VALUE.len()),
    ] {
        assert!(arrived.contains(&expected), "{expected} in {arrived}");
    }
    assert!(!arrived.contains(scene.token()), "{arrived}");
    assert_eq!(said.stdout.lines().count(), 4, "{}", said.stdout);
}
