//! curl as a real process: both listeners, both schemes, and what a refusal looks like to it.

use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;

use crate::support::{GOOD, Origin, REAL, Scene, contains, program, within};

struct Curl {
    program: PathBuf,
    ca: PathBuf,
    _folder: tempfile::TempDir,
}

impl Curl {
    /// Finds curl and writes the vault's CA where it can read it.
    fn new(scene: &Scene) -> Option<Self> {
        let program = program("curl")?;
        let folder = tempfile::tempdir().expect("a directory");
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, scene.vault.ca_pem()).expect("a file");
        Some(Self {
            program,
            ca,
            _folder: folder,
        })
    }

    async fn run(&self, proxy: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .args(["--silent", "--show-error", "--max-time", "20", "--disable"])
            .args([
                Path::new("--cacert"),
                &self.ca,
                Path::new("--proxy-cacert"),
                &self.ca,
            ])
            .args(["--proxy", proxy])
            .args(arguments)
            .kill_on_drop(true);
        within("curl", command.output()).await.expect("curl runs")
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn both_listeners_carry_https_with_the_secret() {
    let scene = Scene::new().await;
    let Some(curl) = Curl::new(&scene) else {
        return;
    };
    let header = format!("Authorization: Bearer {}", scene.token());
    let url = "https://good.example.com/v1/models?limit=1";
    for (proxy, version, name) in [
        (
            scene.vault.proxy_url(&scene.session),
            "--http1.1",
            "Authorization",
        ),
        (
            scene.vault.proxy_url_tls(&scene.session),
            "--http1.1",
            "Authorization",
        ),
        // The names of HTTP/2 have no capitals.
        (
            scene.vault.proxy_url(&scene.session),
            "--http2",
            "authorization",
        ),
        (
            scene.vault.proxy_url_tls(&scene.session),
            "--http2",
            "authorization",
        ),
    ] {
        scene.good.forget();
        let output = curl.run(&proxy, &[version, "--header", &header, url]).await;
        assert!(output.status.success(), "{proxy}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "ok");
        let received = String::from_utf8(scene.good.bytes()).expect("text");
        assert!(
            received.starts_with("GET /v1/models?limit=1 HTTP/1.1\r\nHost: good.example.com\r\n")
        );
        assert!(
            received.contains(&format!("{name}: Bearer {REAL}\r\n")),
            "{received}"
        );
        assert!(!received.to_lowercase().contains("proxy"), "{received}");
    }
}

#[tokio::test]
async fn user_and_password_of_a_url_are_swapped() {
    let scene = Scene::new().await;
    let Some(curl) = Curl::new(&scene) else {
        return;
    };
    let proxy = scene.vault.proxy_url(&scene.session);
    let user = format!("x-access-token:{}", scene.token());
    let output = curl
        .run(&proxy, &["--user", &user, "https://good.example.com/"])
        .await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected = crate::support::basic("x-access-token", REAL);
    assert!(contains(
        &scene.good.bytes(),
        format!("uthorization: {expected}\r\n")
    ));
}

#[tokio::test]
async fn peer_67_a_proxy_url_may_have_its_credentials_escaped() {
    let scene = Scene::new().await;
    let Some(curl) = Curl::new(&scene) else {
        return;
    };
    let proxy = scene.vault.proxy_url(&scene.session);
    let escaped = proxy
        .replace("sess_", "%73ess%5F")
        .replace("tok_", "tok%5f");
    assert_ne!(proxy, escaped);
    let header = format!("X-Api-Key: {}", scene.token());
    let arguments = ["--header", &header, "https://good.example.com/"];
    let output = curl.run(&escaped, &arguments).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(contains(&scene.good.bytes(), REAL));
    scene.alive("an escaped URL").await;
}

#[tokio::test]
async fn uploads_with_and_without_a_length_arrive_whole() {
    let origin = Origin::script(|request, conn| async move {
        if request.header("expect").is_some() {
            conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        let length = request.body.len();
        let answer = length.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        conn.send(head + &answer).await;
    })
    .await;
    let scene = Scene::around(origin).await;
    let Some(curl) = Curl::new(&scene) else {
        return;
    };
    let proxy = scene.vault.proxy_url_tls(&scene.session);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![b'x'; 300_000]).expect("a file");
    let data = format!("@{}", file.path().display());
    for more in [
        &["--header", "Expect:"][..],
        &[
            "--header",
            "Transfer-Encoding: chunked",
            "--header",
            "Expect:",
        ],
    ] {
        let fixed = ["--data-binary", &data, "https://good.example.com/"];
        let output = curl.run(&proxy, &[&fixed, more].concat()).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "300000", "{more:?}");
    }
}

#[tokio::test]
async fn plain_http_goes_through_without_the_secret() {
    let scene = Scene::around(Origin::builder().plain().echo_ok().await).await;
    let Some(curl) = Curl::new(&scene) else {
        return;
    };
    let header = format!("X-Key: {}", scene.token());
    for proxy in [
        scene.vault.proxy_url(&scene.session),
        scene.vault.proxy_url_tls(&scene.session),
    ] {
        scene.good.forget();
        let output = curl
            .run(&proxy, &["--header", &header, &format!("http://{GOOD}/")])
            .await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(contains(&scene.good.bytes(), &header));
    }
}

#[tokio::test]
async fn refusals_are_told_in_terms_that_curl_knows() {
    let scene = Scene::new().await;
    let Some(curl) = Curl::new(&scene) else {
        return;
    };
    let good = scene.vault.proxy_url(&scene.session);
    let bad = good.replace("tok_", "tok_0");
    let code = ["--write-out", "%{http_connect}", "--output", "/dev/null"];
    for (proxy, url, connect) in [
        (&bad, "https://good.example.com/", "407"),
        (&good, "https://evil.example.net/", "403"),
    ] {
        let output = curl.run(proxy, &[&code[..], &[url]].concat()).await;
        assert_eq!(output.status.code(), Some(56), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), connect, "{url}");
        assert!(
            text(&output.stderr).contains(connect),
            "{}",
            text(&output.stderr)
        );
    }
    scene.nothing_arrived("refusals to curl").await;
}
