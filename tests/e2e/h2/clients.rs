//! Real clients that choose HTTP/2 by themselves, given only the proxy and the CA.

use tempfile::TempDir;
use tokio::process::Command;

use crate::support::clients::{client, project_file, run};
use crate::support::{H2Scene, REAL, TWO, contains, missing, program};

/// Prepares a client that knows the proxy, the CA and the sealed token from its environment.
fn prepare(play: &H2Scene, name: &str) -> Option<(Command, TempDir)> {
    let program = program(name)?;
    let home = tempfile::tempdir().expect("a folder");
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, play.scene.vault.ca_pem()).expect("a file");
    let mut command = client(program, home.path());
    let proxy = play.scene.vault.proxy_url(&play.scene.session);
    command
        .env("HTTPS_PROXY", &proxy)
        .env("https_proxy", &proxy)
        .env("SSL_CERT_FILE", &ca)
        .env("CURL_CA_BUNDLE", &ca)
        .env("KEY", play.scene.token());
    Some((command, home))
}

#[tokio::test]
async fn curl() {
    let play = H2Scene::new().await;
    let Some((mut command, home)) = prepare(&play, "curl") else {
        return;
    };
    let file = home.path().join("body");
    std::fs::write(&file, vec![b'x'; 300_000]).expect("a file");
    command
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--disable",
            "--http2",
        ])
        .args(["--write-out", " %{http_version} %{http_code}\\n"])
        .args(["--header", &format!("X-Api-Key: {}", play.scene.token())])
        .args([
            "--cookie",
            "a=1",
            "--data-binary",
            &format!("@{}", file.display()),
        ])
        .args([
            "https://two.example.com/first",
            "https://two.example.com/second",
        ])
        .arg("https://good.example.com/third");
    let said = run("curl", &mut command).await;
    said.expect_success("curl");
    assert_eq!(said.stdout, "ok 2 200\n".repeat(3), "{}", said.stderr);
    let seen = play.two.requests();
    assert_eq!(seen.len(), 2);
    for seen in seen {
        assert_eq!(
            (seen.all("x-api-key"), seen.body.len()),
            (vec![REAL], 300_000)
        );
        assert!(!seen.mentions("roxy"), "{seen:?}");
    }
    let bytes = play.scene.good.bytes();
    assert!(bytes.starts_with(b"POST /third HTTP/1.1\r\n") && contains(&bytes, REAL));
    assert!(!contains(&bytes, "roxy"));
}

#[tokio::test]
async fn httpx() {
    let play = H2Scene::new().await;
    let Some((mut command, _home)) = prepare(&play, "python3") else {
        return;
    };
    let packages = project_file("tests/fixtures/clients/python");
    if !packages.join("httpx").exists() {
        return missing("httpx is not installed, tests/prepare.sh does that");
    }
    let script = format!(
        "import asyncio, os, httpx\n\
         async def main():\n\
         \x20   headers = {{'x-api-key': os.environ['KEY']}}\n\
         \x20   async with httpx.AsyncClient(http2=True, headers=headers, timeout=30) as client:\n\
         \x20       first = await client.get('https://{TWO}/')\n\
         \x20       many = [client.post('https://{TWO}/', content=b'x' * 50_000) for _ in range(30)]\n\
         \x20       answers = await asyncio.gather(*many)\n\
         \x20       for answer in [first, *answers]:\n\
         \x20           print(answer.http_version, answer.status_code, answer.text)\n\
         asyncio.run(main())\n"
    );
    command.env("PYTHONPATH", packages).args(["-c", &script]);
    let said = run("httpx", &mut command).await;
    said.expect_success("httpx");
    assert_eq!(said.stdout, "HTTP/2 200 ok\n".repeat(31), "{}", said.stderr);
    let seen = play.two.requests();
    assert_eq!((seen.len(), play.two.connections()), (31, 1));
    for seen in &seen {
        assert_eq!(seen.all("x-api-key"), [REAL]);
    }
    assert!(seen[1..].iter().all(|seen| seen.body.len() == 50_000));
}
