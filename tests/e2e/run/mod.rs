//! `run` as a process: what the command is given, what it is not, and how the two end.

mod clients;
mod signals;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use oshu_vault_sdk::ListSessions;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::clients::{Said, client, run as finish};
use crate::support::{API_KEY, Origin, TestCa, Vault, program};

const SECRET: &str = "CANARY_KEY";
const VALUE: &str = "canary-real-0123456789";
const HOST: &str = "api.example.com";

/// A home for one run, with the origins' CA in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["home", "tmp"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        std::fs::write(folder.path().join("ca.pem"), TestCa::shared().pem()).expect("a file");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Prepares `run` with these flags; the secret stands in its environment.
    fn run(&self, flags: &[&str]) -> Command {
        let mut command = client(env!("CARGO_BIN_EXE_oshu-vault"), &self.path("home"));
        command.env("TMPDIR", self.path("tmp")).env(SECRET, VALUE);
        command.arg("run").args(flags);
        command
    }

    /// Prepares `run` with the secret, towards an origin.
    fn towards(&self, origin: &Origin) -> Command {
        let resolve = format!("{HOST}={}", origin.addr());
        let ca = self.path("ca.pem");
        let mut command = self.run(&["--secret", SECRET, "--scope"]);
        command.arg(format!("{SECRET}={HOST}"));
        command.args(["--allow", HOST, "--allow-cidr", "127.0.0.0/8"]);
        command
            .args(["--resolve", &resolve, "--upstream-ca"])
            .arg(ca);
        command
    }

    /// Tells what is left in the folder of temporary files.
    fn left_behind(&self) -> usize {
        std::fs::read_dir(self.path("tmp"))
            .expect("a folder")
            .count()
    }
}

fn scoped() -> [String; 4] {
    ["--secret", SECRET, "--scope", &format!("{SECRET}={HOST}")].map(str::to_owned)
}

/// Reads the output of `env`, whose values here have one line each.
fn variable<'a>(said: &'a Said, name: &str) -> Option<&'a str> {
    let mut lines = said.stdout.lines().filter_map(|line| line.split_once('='));
    lines
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

#[tokio::test]
async fn the_command_gets_the_whole_block_and_no_real_value() {
    let place = Place::new();
    let mut command = place.run(&[]);
    command
        .args(scoped())
        .env("COPY", format!("Bearer {VALUE}"))
        .env("SSL_CERT_DIR", "/nowhere")
        .env("SECRETS_PROXY_API_KEY", API_KEY)
        .env("JAVA_TOOL_OPTIONS", "-Xmx1g")
        .env("HARMLESS", "kept")
        .args(["--", "env"]);
    let said = finish("run", &mut command).await;
    said.expect_success("env");
    assert!(!said.stdout.contains(VALUE), "{}", said.stdout);
    assert!(!said.stderr.contains(VALUE), "{}", said.stderr);
    assert!(
        said.stderr.contains("COPY is not passed on"),
        "{}",
        said.stderr
    );
    for gone in ["COPY", "SSL_CERT_DIR", "SECRETS_PROXY_API_KEY"] {
        assert_eq!(variable(&said, gone), None, "{gone}");
    }
    assert_eq!(variable(&said, "HARMLESS"), Some("kept"));
    let token = variable(&said, SECRET).expect("a sealed token");
    assert!(token.starts_with("SEALED_") && token.len() == 39, "{token}");
    let url = variable(&said, "HTTPS_PROXY").expect("a proxy");
    assert!(
        url.starts_with("http://sess_") && url.contains("@127.0.0.1:"),
        "{url}"
    );
    for name in [
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        assert_eq!(variable(&said, name), Some(url), "{name}");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        assert_eq!(variable(&said, name), Some("localhost,127.0.0.1,::1"));
    }
    let bundle = variable(&said, "SSL_CERT_FILE").expect("a bundle");
    for name in [
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "GIT_PROXY_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
        "AWS_CA_BUNDLE",
        "NPM_CONFIG_CAFILE",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "NIX_SSL_CERT_FILE",
        "BUNDLE_SSL_CA_CERT",
        "HTTPLIB2_CA_CERTS",
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    ] {
        assert_eq!(variable(&said, name), Some(bundle), "{name}");
    }
    let ca = variable(&said, "NODE_EXTRA_CA_CERTS").expect("a root");
    assert_eq!(variable(&said, "DENO_CERT"), Some(ca));
    for (name, value) in [
        ("NODE_USE_ENV_PROXY", "1"),
        ("NODE_USE_SYSTEM_CA", "1"),
        ("DENO_TLS_CA_STORE", "system,mozilla"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ] {
        assert_eq!(variable(&said, name), Some(value), "{name}");
    }
    let java = variable(&said, "JAVA_TOOL_OPTIONS").expect("options");
    assert!(
        java.starts_with("-Xmx1g -Dhttps.proxyHost=127.0.0.1 "),
        "{java}"
    );
    assert_eq!(place.left_behind(), 0, "the folder is gone");
}

#[tokio::test]
async fn the_files_are_private_and_there_while_the_command_runs() {
    let place = Place::new();
    // Modes, then the count of certificates; the search finds files that hold the value.
    let script = r#"
        for file in "$SSL_CERT_FILE" "$NODE_EXTRA_CA_CERTS" "$WGETRC"; do test -r "$file" || echo "no $file"; done
        stat -c %a "$(dirname "$SSL_CERT_FILE")" "$SSL_CERT_FILE"
        grep -c BEGIN "$NODE_EXTRA_CA_CERTS"
        test "$(grep -c BEGIN "$SSL_CERT_FILE")" -gt 50 && echo full
        grep -c "ca_certificate = $SSL_CERT_FILE" "$WGETRC"
        grep -rlE 'PRIVATE|canary-real' "$(dirname "$SSL_CERT_FILE")"
        exit 0
    "#;
    let mut command = place.run(&[]);
    let said = finish(
        "run",
        command.args(scoped()).args(["--", "sh", "-c", script]),
    )
    .await;
    said.expect_success("sh");
    assert_eq!(said.stdout, "700\n600\n1\nfull\n1\n", "{}", said.stderr);
}

#[tokio::test]
async fn values_come_from_where_the_flag_says() {
    let place = Place::new();
    std::fs::write(place.path("value"), format!("{VALUE}\n")).expect("a file");
    for source in [
        format!("=env:{SECRET}"),
        format!("=file:{}", place.path("value").display()),
        format!("=cmd:echo {VALUE}"),
    ] {
        let origin = Origin::echo_ok().await;
        let mut command = place.run(&[]);
        command.args(["--secret", &format!("OTHER{source}")]);
        command.args([
            "--scope",
            &format!("OTHER={HOST}"),
            "--allow-cidr",
            "127.0.0.1/32",
        ]);
        command
            .arg("--resolve")
            .arg(format!("{HOST}={}", origin.addr()));
        command.arg("--upstream-ca").arg(place.path("ca.pem"));
        // The variable that the value was read from holds it no more.
        command.args(["--", "sh", "-c"]).arg(format!(
            "env | grep -c 'canary-[r]eal'; curl -sS https://{HOST}/ -H \"X-Api-Key: $OTHER\""
        ));
        if program("curl").is_none() {
            return;
        }
        let said = finish("run", &mut command).await;
        assert_eq!(said.stdout, "0\nok", "{source}: {}", said.stderr);
        let seen = String::from_utf8(origin.bytes()).expect("a text");
        assert!(
            seen.to_lowercase()
                .contains(&format!("x-api-key: {VALUE}\r\n")),
            "{source}: {seen}"
        );
    }
}

#[tokio::test]
async fn the_exit_code_is_the_commands() {
    let place = Place::new();
    let plain_file = place.path("ca.pem").display().to_string();
    for (command, expected) in [
        (vec!["true"], 0),
        (vec!["sh", "-c", "exit 7"], 7),
        (vec!["sh", "-c", "exit 255"], 255),
        (vec!["sh", "-c", "kill -TERM $$"], 143),
        (vec!["sh", "-c", "kill -KILL $$"], 137),
        (vec!["no-such-command-anywhere"], 127),
        (vec![plain_file.as_str()], 126),
    ] {
        let said = finish("run", place.run(&["--"]).args(&command)).await;
        assert_eq!(said.code, Some(expected), "{command:?}: {}", said.stderr);
        assert_eq!(place.left_behind(), 0, "{command:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_flag_is_told_by_its_name() {
    let place = Place::new();
    let scope = format!("{SECRET}={HOST}");
    for (flags, expected) in [
        (
            vec!["--secret", "NOT_SET_AT_ALL"],
            "--secret NOT_SET_AT_ALL: the variable is not set",
        ),
        (
            vec!["--secret", SECRET],
            "--secret CANARY_KEY: the name is not in the catalogue",
        ),
        (
            vec!["--secret", "AWS_SECRET_ACCESS_KEY=env:CANARY_KEY"],
            "--secret AWS_SECRET_ACCESS_KEY: ",
        ),
        (vec!["--secret", "X=cmd:echo short"], "--secret X: "),
        (
            vec!["--secret", "X=file:/does/not/exist"],
            "--secret X: the file cannot be read",
        ),
        (vec!["--scope", &scope], "--scope (the 1. of them)"),
        (vec!["--allow", "*"], "--allow (the 1. of them)"),
        (vec!["--audit", "/does/not/exist"], "--audit: "),
        (vec!["--upstream-ca", "/does/not/exist"], "/does/not/exist"),
    ] {
        let said = finish("run", place.run(&flags).args(["--", "echo", "ran"])).await;
        assert_ne!(said.code, Some(0), "{flags:?}");
        assert!(said.stderr.contains(expected), "{flags:?}: {}", said.stderr);
        assert!(!said.stderr.contains(VALUE), "{flags:?}: {}", said.stderr);
        assert_eq!(said.stdout, "", "{flags:?}: the command must not run");
    }
    let said = finish(
        "run",
        place.run(&[]).args(scoped()).args(["--", "echo", VALUE]),
    )
    .await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(64), ""),
        "{}",
        said.stderr
    );
    assert!(!said.stderr.contains(VALUE), "{}", said.stderr);
}

#[tokio::test]
async fn records_are_written_for_the_owner_alone_and_only_when_asked_for() {
    if program("curl").is_none() {
        return;
    }
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let file = place.path("audit.log");
    let script = format!("curl -sS https://{HOST}/a -H \"X-Api-Key: ${SECRET}\"");
    let mut command = place.towards(&origin);
    command
        .arg("--audit")
        .arg(&file)
        .args(["--", "sh", "-c", &script]);
    let said = finish("run", &mut command).await;
    assert_eq!(said.stdout, "ok", "{}", said.stderr);
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).expect("lines");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    let exchange = lines
        .iter()
        .find(|line| line["event"] == "exchange")
        .expect("an exchange");
    assert_eq!(exchange["swapped"], serde_json::json!([SECRET]));
    let deleted = lines.iter().any(|line| line["action"] == "deleted");
    assert!(deleted, "the session ends with the command: {text}");
    assert!(!text.contains(VALUE));
}

#[tokio::test]
async fn loopback_stays_shut_unless_it_is_opened() {
    if program("curl").is_none() {
        return;
    }
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let mut command = place.run(&[]);
    command
        .args(scoped())
        .arg("--upstream-ca")
        .arg(place.path("ca.pem"));
    command
        .arg("--resolve")
        .arg(format!("{HOST}={}", origin.addr()));
    command.args(["--", "curl", "-sS", &format!("https://{HOST}/")]);
    let said = finish("run", &mut command).await;
    assert!(
        said.stdout.contains("destination_ip_prohibited"),
        "{} {}",
        said.stdout,
        said.stderr
    );
    origin.expect_nothing("loopback is shut");
}

#[tokio::test]
async fn a_proxy_of_the_operator_s_is_used_and_not_shown() {
    if program("curl").is_none() {
        return;
    }
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let proxy = Origin::builder().plain().connect_proxy().await;
    let file = place.path("proxy-url");
    let url = format!("http://user:canary-password@{}\n", proxy.addr());
    std::fs::write(&file, url).expect("a file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("a mode");
    let script = format!("env; curl -sS https://{HOST}/ -H \"X-Api-Key: ${SECRET}\"");
    let mut command = place.towards(&origin);
    command.arg("--upstream-proxy-file").arg(&file);
    let said = finish("run", command.args(["--", "sh", "-c", &script])).await;
    assert!(
        said.stdout.ends_with("ok"),
        "{} {}",
        said.stdout,
        said.stderr
    );
    assert!(!said.stdout.contains("canary-password"), "{}", said.stdout);
    let head = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\nProxy-Auth",
        origin.addr()
    );
    assert!(proxy.bytes().starts_with(head.as_bytes()));
    assert_eq!((proxy.connections(), origin.connections()), (1, 1));

    std::fs::write(&file, "http://user:canary-password@").expect("a file");
    let mut command = place.towards(&origin);
    command.arg("--upstream-proxy-file").arg(&file);
    let said = finish("run", command.args(["--", "true"])).await;
    assert_eq!(said.code, Some(64));
    assert!(
        said.stderr
            .contains("--upstream-proxy-file names a file that should hold")
    );
    assert!(!said.stderr.contains("canary"), "{}", said.stderr);
}

#[tokio::test]
async fn the_proxy_is_gone_when_the_command_is() {
    let place = Place::new();
    let said = finish(
        "run",
        place.run(&["--"]).args(["sh", "-c", "echo $HTTPS_PROXY"]),
    )
    .await;
    let (_, address) = said.stdout.trim().rsplit_once('@').expect("a URL");
    let dialled = tokio::net::TcpStream::connect(address).await;
    assert!(dialled.is_err(), "{address} still listens");
}

#[tokio::test]
async fn a_running_server_serves_the_command_too() {
    if program("curl").is_none() {
        return;
    }
    let (place, origin) = (Place::new(), Origin::echo_ok().await);
    let vault = Vault::builder().resolve(HOST, origin.addr()).start().await;
    let server = format!("http://{}", vault.plain_addr());
    let script =
        format!("env | grep -c 'ovk_[0]123'; curl -sS https://{HOST}/ -H \"X-Api-Key: ${SECRET}\"");
    let run = |key: &'static str| {
        let mut command = place.run(&["--server", &server]);
        command.args(scoped()).env("SECRETS_PROXY_API_KEY", key);
        command.env("COPY_OF_THE_API_KEY", key);
        command.args(["--", "sh", "-c", &script]);
        command
    };
    let said = finish("run", &mut run(API_KEY)).await;
    assert_eq!(said.stdout, "0\nok", "{}", said.stderr);
    let seen = String::from_utf8(origin.bytes()).expect("a text");
    assert!(
        seen.to_lowercase()
            .contains(&format!("x-api-key: {VALUE}\r\n")),
        "{seen}"
    );
    let left = vault
        .sdk()
        .list_sessions(ListSessions::default())
        .await
        .expect("a list");
    assert!(
        left.sessions.is_empty(),
        "the session ended with the command"
    );
    let mut told = run(API_KEY);
    let said = finish("run", told.arg(API_KEY)).await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(64), ""),
        "{}",
        said.stderr
    );
    assert!(!said.stderr.contains(API_KEY), "{}", said.stderr);
    let said = finish("run", &mut run("ovk_of_somebody_else_0123456789")).await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(1), ""),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("401"), "{}", said.stderr);
}
