//! `doctor`: it finds the clients that would fail, says why, and what it says to type mends them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oshu_vault_sdk::CreateSession;
use serde_json::Value;

use super::Home;
use crate::support::clients::{Said, client, project_file, run as finish};
use crate::support::{Origin, Vault, program};

const HOST: &str = "api.example.com";

/// A vault, a session that may reach one host, and a machine of its own.
struct Place {
    home: Home,
    origin: Origin,
    vault: Vault,
    url: String,
    url_tls: String,
    token: String,
}

impl Place {
    async fn new() -> Self {
        let origin = Origin::echo_ok().await;
        let vault = Vault::builder().resolve(HOST, origin.addr()).start().await;
        let session = vault
            .session(&CreateSession::new().allowed_egress([HOST]))
            .await;
        Self {
            home: Home::new(),
            origin,
            url: vault.proxy_url(&session),
            url_tls: vault.proxy_url_tls(&session),
            token: session.token.clone(),
            vault,
        }
    }

    /// Runs a line of a shell that finds this program first, with these variables.
    async fn sh(&self, line: &str, variables: &BTreeMap<String, String>) -> Said {
        let own = Path::new(env!("CARGO_BIN_EXE_oshu-vault"))
            .parent()
            .expect("a folder");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(PathBuf::from(own)).chain(std::env::split_paths(&path));
        let mut sh = client("sh", &self.home.path("."));
        sh.env("PATH", std::env::join_paths(path).expect("a search path"));
        sh.env("PYTHONPATH", project_file("tests/fixtures/clients/python"));
        sh.args(["-c", line]).envs(variables);
        let said = finish(line, &mut sh).await;
        for text in [&said.stdout, &said.stderr] {
            assert!(!text.contains(&self.token), "the credential in {text}");
        }
        said
    }

    /// Returns the whole environment that `env` prints.
    async fn environment(&self) -> BTreeMap<String, String> {
        let line = ["env", "--format", "json", "--proxy-url", "env:PROXY"];
        let path = std::env::var("PATH").unwrap_or_default();
        let variables = [("PROXY", self.url.as_str()), ("PATH", path.as_str())];
        let printed = self.home.run_with(&line, &variables, "").await.expect(0);
        serde_json::from_str(&printed.stdout).expect("an object")
    }

    /// Returns half of it; one file is the root alone, and one is not there.
    async fn half_an_environment(&self) -> BTreeMap<String, String> {
        let mut variables = self.environment().await;
        let root = variables["NODE_EXTRA_CA_CERTS"].clone();
        for gone in [
            "https_proxy",
            "http_proxy",
            "all_proxy",
            "NODE_OPTIONS",
            "NODE_USE_ENV_PROXY",
            "GIT_SSL_CAINFO",
            "JAVA_TOOL_OPTIONS",
        ] {
            variables.remove(gone);
        }
        variables.insert("CURL_CA_BUNDLE".to_owned(), root);
        variables.insert(
            "REQUESTS_CA_BUNDLE".to_owned(),
            "/does/not/exist.pem".to_owned(),
        );
        variables
    }
}

/// Tells whether a program is on the search path; the tests of others need it, these do not.
fn is_here(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Reads the lines about clients: name, state, text.
fn lines(text: &str) -> Vec<(&str, &str, &str)> {
    let until_advice = text.lines().take_while(|line| !line.is_empty());
    let words = until_advice.map(|line| {
        let (name, rest) = line.split_once(' ').expect("a name");
        let rest = rest.trim_start();
        let (state, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        (name, state, rest.trim_start())
    });
    words.collect()
}

/// Returns what is to be typed, as it stands at the end.
fn advice(text: &str) -> &str {
    let (_, advice) = text.split_once("\n\n# ").expect("advice");
    let (_, advice) = advice.split_once('\n').expect("lines");
    for line in advice.lines() {
        let mut known = ["export ", "unset ", "eval "].iter();
        assert!(known.any(|word| line.starts_with(word)), "{line}");
    }
    advice
}

#[tokio::test]
async fn what_it_says_to_type_mends_what_it_finds() {
    for needed in ["curl", "python3", "git", "node"] {
        if program(needed).is_none() {
            return;
        }
    }
    let place = Place::new().await;
    let variables = place.half_an_environment().await;
    let requests = project_file("tests/fixtures/clients/python/requests").exists();
    let expected = [
        ("curl", "FAIL", "takes it in place of all others", true),
        (
            "wget",
            "FAIL",
            "it reads https_proxy alone, which is not set",
            is_here("wget"),
        ),
        ("git", "FAIL", "GIT_SSL_CAINFO is not set", true),
        ("urllib", "ok", "got status 200", true),
        (
            "requests",
            "FAIL",
            "/does/not/exist.pem cannot be read",
            requests,
        ),
        ("node", "FAIL", "node", true),
        ("npm", "ok", "got an answer", is_here("npm")),
        (
            "java",
            "FAIL",
            "JAVA_TOOL_OPTIONS is not set",
            is_here("java"),
        ),
    ];
    let names = expected.map(|(name, ..)| name).join(",");
    // What Python itself has is not known here.
    let names = if requests {
        names
    } else {
        names.replace("requests,", "")
    };
    let said = place
        .sh(&format!("oshu-vault doctor --only {names}"), &variables)
        .await;
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    let found = lines(&said.stdout);
    assert_eq!(found[0].0, "proxy");
    assert_eq!(found[0].1, "ok", "{}", said.stdout);
    for (name, state, part, is_here) in expected {
        let line = found.iter().find(|line| line.0 == name);
        match line {
            Some(line) if is_here => {
                assert_eq!(line.1, state, "{}", said.stdout);
                assert!(line.2.contains(part), "{part} in {}", said.stdout);
            }
            Some(line) => assert_eq!(line.1, "absent", "{}", said.stdout),
            None => assert_eq!(name, "requests"),
        }
    }
    let advice = advice(&said.stdout);
    let line = format!("{advice}oshu-vault doctor --only {names}");
    let said = place.sh(&line, &variables).await;
    assert_eq!(said.code, Some(0), "{advice}{}{}", said.stdout, said.stderr);
    for (name, state, _) in lines(&said.stdout) {
        assert!(["ok", "absent"].contains(&state), "{name}: {}", said.stdout);
    }
    place.origin.expect_nothing("the proxy answers by itself");
}

#[tokio::test]
async fn with_nothing_but_a_proxy_the_files_are_written_and_named() {
    if program("curl").is_none() || program("python3").is_none() {
        return;
    }
    let place = Place::new().await;
    let variables = BTreeMap::from([("ALL_PROXY".to_owned(), place.url.clone())]);
    let doctor = "oshu-vault doctor --ca-dir 'a b' --only curl,urllib";
    let said = place.sh(doctor, &variables).await;
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    let bundle = place.home.path("./a b/bundle.pem");
    let text = std::fs::read_to_string(&bundle).expect("a bundle");
    assert!(text.contains(place.vault.ca_pem()));
    for line in [
        "export CURL_CA_BUNDLE='",
        "export SSL_CERT_FILE='",
        "export HTTPS_PROXY=\"$ALL_PROXY\"",
    ] {
        assert!(
            said.stdout.contains(&format!("\n{line}")),
            "{line} in {}",
            said.stdout
        );
    }
    let (_, advice) = said.stdout.split_once("\n\n").expect("advice");
    let said = place.sh(&format!("{advice}{doctor}"), &variables).await;
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
}

#[tokio::test]
async fn a_proxy_that_speaks_tls_is_not_for_every_client() {
    if program("python3").is_none() {
        return;
    }
    let place = Place::new().await;
    std::fs::write(place.home.path("ca.pem"), place.vault.ca_pem()).expect("a file");
    let variables = BTreeMap::from([("HTTPS_PROXY".to_owned(), place.url_tls.clone())]);
    let doctor = "oshu-vault doctor --format json --only urllib";
    let said = place.sh(&format!("{doctor} --ca ca.pem"), &variables).await;
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    let report: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(report["proxy"]["state"], "ok");
    assert_eq!(report["clients"][0]["state"], "cannot");
    assert_eq!(report["advice"], serde_json::json!([]));
    // Nothing says whom to trust.
    let said = place.sh(doctor, &variables).await;
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    let report: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let text = report["proxy"]["text"].as_str().expect("a text");
    assert!(
        text.contains("does not verify; --ca names the root"),
        "{text}"
    );
}

#[tokio::test]
async fn another_url_is_asked_for_where_the_session_may_go() {
    if program("curl").is_none() {
        return;
    }
    let place = Place::new().await;
    let mut variables = place.environment().await;
    let doctor = |host: &str| format!("oshu-vault doctor --only curl --url https://{host}");
    let said = place.sh(&doctor(HOST), &variables).await;
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(!place.origin.bytes().is_empty(), "the origin was asked");
    let said = place.sh(&doctor("evil.example.net"), &variables).await;
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(said.stdout.contains("proxy    FAIL"), "{}", said.stdout);
    assert!(
        said.stdout.contains("policy does not allow this host"),
        "{}",
        said.stdout
    );
    // An exception takes the host out of the proxy's hands.
    variables.insert("no_proxy".to_owned(), format!(".example.com,{HOST}"));
    let said = place.sh(&doctor(HOST), &variables).await;
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    let advice = "\nexport no_proxy=localhost,127.0.0.1,::1\n";
    assert!(said.stdout.contains(advice), "{}", said.stdout);
}

#[tokio::test]
async fn a_session_that_is_over_is_told_before_any_client_is_run() {
    let place = Place::new().await;
    let url = place.url.replace("tok_", "tok_0");
    let variables = BTreeMap::from([("HTTPS_PROXY".to_owned(), url)]);
    let said = place.sh("oshu-vault doctor", &variables).await;
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert_eq!(lines(&said.stdout).len(), 1, "{}", said.stdout);
    assert!(
        said.stdout.contains("not accepted (407)"),
        "{}",
        said.stdout
    );
    for (line, part) in [
        (
            "oshu-vault doctor --only curl,nonsense",
            "--only names a client that is not known",
        ),
        (
            "oshu-vault doctor --proxy-url env:NOT_SET",
            "the variable NOT_SET",
        ),
        ("oshu-vault doctor --nonsense", "--nonsense"),
        ("unset HTTPS_PROXY; oshu-vault doctor", "no proxy: none of"),
    ] {
        let said = place.sh(line, &variables).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(64), ""), "{line}");
        assert!(said.stderr.contains(part), "{line}: {}", said.stderr);
    }
}
