//! `env`: what it prints is read back by those it is for, whatever the values are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Ended, Home, mode_of};
use crate::support::clients::{client, expect_not_under, run as finish};
use crate::support::{API_KEY, Origin, Vault, program};

const SECRET: &str = "CANARY_KEY";
const VALUE: &str = "canary-real-0123456789";
const HOST: &str = "api.example.com";
/// Options that a JVM has already, with everything that a careless quoting breaks on.
const HOSTILE: &str = "-Da=b 'c \"d\" $HOME $(touch hacked) \\n #e\n-Df=g; touch hacked & *";

type Variables = BTreeMap<String, String>;

/// Returns the search path of this machine.
fn path() -> String {
    std::env::var("PATH").expect("a search path")
}

/// Runs `env` for a new session of the vault.
async fn made(home: &Home, vault: &Vault, more: &[&str], variables: &[(&str, &str)]) -> Ended {
    let url = format!("http://{}", vault.plain_addr());
    let scope = format!("{SECRET}={HOST}");
    let line = [
        "env", "--server", &url, "--secret", SECRET, "--scope", &scope,
    ];
    let line = [&line[..], &["--allow", HOST], more].concat();
    let path = path();
    let base = [
        (SECRET, VALUE),
        ("SECRETS_PROXY_API_KEY", API_KEY),
        ("PATH", path.as_str()),
    ];
    let ended = home
        .run_with(&line, &[&base[..], variables].concat(), "")
        .await;
    for text in [&ended.stdout, &ended.stderr] {
        assert!(!text.contains(VALUE) && !text.contains(API_KEY), "{text}");
    }
    ended.expect(0)
}

/// Runs `env` for the proxy of a variable, which is the same session every time.
async fn printed(home: &Home, proxy: &str, form: &str, folder: &str) -> String {
    let path = path();
    let line = ["env", "--format", form, "--ca-dir", folder];
    let variables = [
        ("HTTPS_PROXY", proxy),
        ("PATH", path.as_str()),
        ("JAVA_TOOL_OPTIONS", HOSTILE),
        ("SSL_CERT_DIR", "/certs"),
    ];
    home.run_with(&line, &variables, "").await.expect(0).stdout
}

fn json(text: &str) -> Variables {
    serde_json::from_str(text).expect("an object of texts")
}

/// Reads what `env -0` prints.
fn zero_ended(text: &str) -> Variables {
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[tokio::test]
async fn every_form_is_read_back_by_its_reader() {
    let (home, vault) = (Home::new(), Vault::builder().start().await);
    let session = vault.session(&oshu_vault_sdk::CreateSession::new()).await;
    let proxy = vault.proxy_url(&session);
    let folder = home.text("it's $HOME *");
    let expected = json(&printed(&home, &proxy, "json", &folder).await);
    assert_eq!(expected["HTTPS_PROXY"], proxy);
    assert!(expected["JAVA_TOOL_OPTIONS"].starts_with(HOSTILE));
    assert_eq!(expected["SSL_CERT_FILE"], format!("{folder}/bundle.pem"));

    let shell = printed(&home, &proxy, "shell", &folder).await;
    let mut sh = client("sh", &home.path("."));
    let harmful = [
        "SSL_CERT_DIR",
        "NODE_TLS_REJECT_UNAUTHORIZED",
        "GIT_SSL_NO_VERIFY",
    ];
    sh.args(["-euc", "eval \"$1\"; env -0", "sh", &shell]);
    let said = finish("sh", sh.envs(harmful.map(|name| (name, "1")))).await;
    said.expect_success(&shell);
    let read = zero_ended(&said.stdout);
    for (name, value) in &expected {
        assert_eq!(read.get(name), Some(value), "{name} in {shell}");
    }
    for name in harmful {
        assert!(!read.contains_key(name), "{name} in {shell}");
    }
    assert!(!home.path("hacked").exists());

    // What is there is that of this machine, and no container's.
    let docker = printed(&home, &proxy, "docker", &folder).await;
    let read: Variables = docker
        .lines()
        .map(|line| line.split_once('=').expect("a variable a line"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert!(read["JAVA_TOOL_OPTIONS"].starts_with("-Dhttps.proxyHost="));
    assert_eq!(
        read["NODE_OPTIONS"],
        format!("--require \"{folder}/preload.cjs\"")
    );
    for (name, value) in expected
        .iter()
        .filter(|(name, _)| !name.ends_with("_OPTIONS"))
    {
        assert_eq!(read.get(name), Some(value), "{name} in {docker}");
    }

    let dotenv = printed(&home, &proxy, "dotenv", &folder).await;
    if program("node").is_none() {
        return;
    }
    let file = home.write("dotenv", &dotenv);
    let mut node = client("node", &home.path("."));
    node.arg(format!("--env-file={file}"));
    node.args(["-e", "process.stdout.write(JSON.stringify(process.env))"]);
    let said = finish("node", &mut node).await;
    said.expect_success(&dotenv);
    let read: Value = serde_json::from_str(&said.stdout).expect("JSON");
    for (name, value) in &expected {
        assert_eq!(read[name], value.as_str(), "{name} in {dotenv}");
    }
}

#[tokio::test]
async fn a_shell_that_evaluates_it_reaches_the_origin_with_the_real_value() {
    if program("curl").is_none() {
        return;
    }
    let origin = Origin::echo_ok().await;
    let vault = Vault::builder().resolve(HOST, origin.addr()).start().await;
    let home = Home::new();
    let script = format!(
        "eval \"$({} env --server http://{} --secret {SECRET} --scope {SECRET}={HOST})\"\n\
         env | grep -c canary-[r]eal; curl -sS https://{HOST}/ -H \"X-Api-Key: ${SECRET}\"",
        env!("CARGO_BIN_EXE_oshu-vault"),
        vault.plain_addr(),
    );
    let mut sh = client("sh", &home.path("."));
    sh.args(["-c", &script])
        .env(SECRET, VALUE)
        .env("SECRETS_PROXY_API_KEY", API_KEY);
    let said = finish("sh", &mut sh).await;
    assert_eq!(said.stdout, "0\nok", "{}", said.stderr);
    let seen = String::from_utf8(origin.bytes()).expect("a text");
    assert!(
        seen.to_lowercase()
            .contains(&format!("x-api-key: {VALUE}\r\n")),
        "{seen}"
    );
}

#[tokio::test]
async fn the_files_are_public_and_lie_by_their_root() {
    let (home, vault) = (Home::new(), Vault::builder().start().await);
    let first = json(&made(&home, &vault, &["--format", "json"], &[]).await.stdout);
    let again = json(&made(&home, &vault, &["--format", "json"], &[]).await.stdout);
    assert_ne!(first["HTTPS_PROXY"], again["HTTPS_PROXY"], "a session each");
    assert_eq!(first["SSL_CERT_FILE"], again["SSL_CERT_FILE"]);
    assert!(first[SECRET].starts_with("SEALED_") && first[SECRET] != again[SECRET]);
    let bundle = PathBuf::from(&first["SSL_CERT_FILE"]);
    let folder = bundle.parent().expect("a folder");
    assert!(
        folder.starts_with(home.state("clients")),
        "{}",
        folder.display()
    );
    for (variable, count) in [("SSL_CERT_FILE", 51..), ("NODE_EXTRA_CA_CERTS", 1..)] {
        let path = Path::new(&first[variable]);
        assert_eq!(mode_of(path), 0o644, "{}", path.display());
        let text = std::fs::read_to_string(path).expect("a file");
        assert!(text.contains(vault.ca_pem()), "{}", path.display());
        let found = text.matches("BEGIN CERTIFICATE").count();
        assert!(count.contains(&found), "{variable}: {found}");
        assert!(!text.contains("PRIVATE"), "{}", path.display());
    }
    expect_not_under(folder, VALUE);
    // The bundle that is there is what clients trust today: it is taken over, and does not grow.
    let before = std::fs::read(&bundle).expect("a bundle");
    let inherited = [("SSL_CERT_FILE", first["SSL_CERT_FILE"].as_str())];
    made(&home, &vault, &[], &inherited).await;
    assert_eq!(std::fs::read(&bundle).expect("a bundle"), before);
    let other = Vault::builder().start().await;
    let third = json(&made(&home, &other, &["--format", "json"], &[]).await.stdout);
    assert_ne!(
        third["SSL_CERT_FILE"], first["SSL_CERT_FILE"],
        "another root"
    );
}

#[tokio::test]
async fn only_what_was_asked_for_is_printed() {
    let (home, vault) = (Home::new(), Vault::builder().start().await);
    let only = format!("{SECRET},NO_PROXY,SSL_CERT_DIR");
    let ended = made(&home, &vault, &["--only", &only], &[]).await;
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ended.stdout);
    assert_eq!(
        lines[..2],
        [
            "unset SSL_CERT_DIR",
            "export NO_PROXY='localhost,127.0.0.1,::1'"
        ]
    );
    assert!(
        ended.stderr.contains("oshu-vault session delete sess_"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn mistakes_leave_no_session_behind() {
    let (home, vault) = (Home::new(), Vault::builder().start().await);
    let url = format!("http://{}", vault.plain_addr());
    let scope = format!("{SECRET}={HOST}");
    let base = [
        "env", "--server", &url, "--secret", SECRET, "--scope", &scope,
    ];
    let variables = [(SECRET, VALUE), ("SECRETS_PROXY_API_KEY", API_KEY)];
    for (more, part) in [
        (
            ["--only", "NONSENSE"],
            "--only: NONSENSE is none of the variables",
        ),
        (["--ca-dir", "a\"b"], "--ca-dir expects"),
        (["--ca-dir", "a\nb"], "--ca-dir expects"),
        (
            ["--secret", "NOT_SET"],
            "--secret NOT_SET: the variable is not set",
        ),
    ] {
        let line = [&base[..], &more].concat();
        home.run_with(&line, &variables, "")
            .await
            .complains(64, &[part]);
    }
    let all = oshu_vault_sdk::ListSessions::default();
    let left = vault.sdk().list_sessions(all).await.expect("a list");
    assert!(left.sessions.is_empty(), "{}", left.sessions.len());
    home.run(&["env"])
        .await
        .complains(64, &["no proxy: none of HTTPS_PROXY"]);
    let dead = [(
        "HTTPS_PROXY",
        "http://a:canary-0123456789abcdef@127.0.0.1:9",
    )];
    let ended = home.run_with(&["env"], &dead, "").await;
    ended.complains(1, &["http://127.0.0.1:9: nothing can be reached there"]);
}
