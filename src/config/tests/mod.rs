//! Tests of the whole configuration: sources, order, rules, and what problems say.

mod audit;
mod gateway;
mod keys;
mod printed;
mod store;
mod upstream;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::*;

const KEY: (&str, &str) = ("SECRETS_PROXY_API_KEY", "canary-0123456789");
const HOME: (&str, &str) = ("HOME", "/home/somebody");

/// Stands in for the disk: text and mode by path.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, (String, u32)>);

impl Files for Memory {
    fn read(&self, path: &Path, _limit: u64) -> io::Result<FileContent> {
        let (text, mode) = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(FileContent {
            bytes: text.clone().into_bytes().into(),
            mode: *mode,
        })
    }
}

/// What one test gives: variables, the file's text, flags by key.
#[derive(Default)]
struct Given<'a> {
    variables: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
    flags: &'a [(&'static str, &'a str)],
}

impl Given<'_> {
    fn load(&self) -> Result<Config, Vec<String>> {
        let mut files = Memory::default();
        files
            .0
            .insert("/key".into(), ("canary-from-a-file\n".to_owned(), 0o600));
        files
            .0
            .insert("/open".into(), ("canary-from-a-file\n".to_owned(), 0o644));
        let url = "http://canary:canary@p.example:3128\n".to_owned();
        files.0.insert("/proxy".into(), (url, 0o600));
        let url = "rediss://user:canary@cache.example.com:7000/2\n".to_owned();
        files.0.insert("/store".into(), (url, 0o600));
        let mut flags = Flags::new(self.file.map(|_| "/c.toml".into()));
        if let Some(text) = self.file {
            files.0.insert("/c.toml".into(), (text.to_owned(), 0o644));
        }
        for (key, value) in self.flags {
            flags = flags.with(key, vec![(*value).to_owned()]);
        }
        let variables = self
            .variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let source = Source::new(variables.collect(), Box::new(files), flags);
        Config::load(&source).map_err(|problems| {
            let text = problems.to_string();
            assert!(!text.contains("canary"), "a value in: {text}");
            assert_eq!(text.lines().count(), problems.iter().count(), "{text}");
            text.lines().map(str::to_owned).collect()
        })
    }
}

fn with_file(text: &str) -> Result<Config, Vec<String>> {
    Given {
        variables: &[KEY, HOME],
        file: Some(text),
        ..Given::default()
    }
    .load()
}

#[test]
fn without_anything_said_the_defaults_stand() {
    let config = Given {
        variables: &[KEY, HOME],
        ..Given::default()
    }
    .load()
    .unwrap();
    assert_eq!(config.proxy, Proxy::default());
    assert_eq!(config.proxy.listen, Some("127.0.0.1:8080".parse().unwrap()));
    assert_eq!(config.proxy.tls_listen, None);
    assert_eq!(config.admin.listen, Some("127.0.0.1:9090".parse().unwrap()));
    assert_eq!(config.upstream, Upstream::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(
        config.state_dir,
        Path::new("/home/somebody/.local/state/oshu-vault")
    );
    assert_eq!(config.api_key.unwrap().expose(), KEY.1.as_bytes());
    assert!(!config.dev && !config.danger_unscoped_secrets && !config.danger_plaintext_management);
}

#[test]
fn later_sources_win() {
    let file = "[proxy]\nlisten = '127.0.0.1:1'\ntls_listen = 'none'\n\
                [upstream]\nresolve = ['a.example=127.0.0.1', 'b.example=127.0.0.2']\n\
                [limits]\ndns_timeout_ms = 1\nconnections = 1\n";
    let config = Given {
        variables: &[
            KEY,
            ("OSHU_VAULT__PROXY__LISTEN", "127.0.0.1:2"),
            ("OSHU_VAULT__ADMIN__LISTEN", "none"),
            ("OSHU_VAULT__LIMITS__CONNECTIONS", "2"),
            ("OSHU_VAULT__UPSTREAM__RESOLVE", "c.example=127.0.0.3"),
            ("XDG_STATE_HOME", "/state"),
        ],
        file: Some(file),
        flags: &[("proxy.listen", "[::1]:0"), ("log", "text")],
    }
    .load()
    .unwrap();
    assert_eq!(config.proxy.listen, Some("[::1]:0".parse().unwrap()));
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.limits.dns_timeout, Duration::from_millis(1));
    assert_eq!(config.limits.connections, 2);
    assert_eq!(config.upstream.resolve.len(), 1);
    assert_eq!(
        config.upstream.resolve[0].to_string(),
        "c.example=127.0.0.3"
    );
    assert_eq!(config.log, LogFormat::Text);
    assert_eq!(config.state_dir, Path::new("/state/oshu-vault"));
}

#[test]
fn dev_opens_what_it_says_and_loopback_alone() {
    let dev = |flags: &[(&'static str, &str)], file: Option<&str>| {
        let mut all = vec![("dev", "")];
        all.extend(flags);
        Given {
            variables: &[HOME],
            file,
            flags: &all,
        }
        .load()
    };
    let config = dev(&[], None).unwrap();
    assert!(config.dev && config.api_key.is_none() && config.danger_unscoped_secrets);
    assert_eq!(
        config.proxy.tls_listen,
        Some("127.0.0.1:8443".parse().unwrap())
    );
    let config = dev(
        &[("proxy.tls_listen", "none")],
        Some("danger_unscoped_secrets = 'refuse'"),
    )
    .unwrap();
    assert!(config.proxy.tls_listen.is_none() && !config.danger_unscoped_secrets);
    for (key, flag) in [
        ("proxy.listen", "--listen"),
        ("proxy.tls_listen", "--tls-listen"),
        ("admin.listen", "--admin-listen"),
    ] {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert_eq!(
                dev(&[(key, address)], None).unwrap_err(),
                [format!(
                    "{key}: expects a loopback address with --dev (from {flag})"
                )]
            );
        }
        assert!(dev(&[(key, "[::ffff:127.0.0.1]:1")], None).is_ok());
    }
}

#[test]
fn rules_between_settings_are_held() {
    for (file, expected) in [
        (
            "proxy.listen = '0.0.0.0:8080'",
            &[
                "proxy.public_url: expects the URL that workloads use, since proxy.listen is not on loopback (not set)",
            ][..],
        ),
        (
            "proxy.listen = '0.0.0.0:8080'\nproxy.public_url = 'https://v.example'",
            &[],
        ),
        (
            "proxy.tls_listen = '127.0.0.1:0'",
            &[
                "proxy.tls_cert: expects a file, since proxy.tls_listen is set without --dev (not set)",
                "proxy.tls_key: expects a file, since proxy.tls_listen is set without --dev (not set)",
            ],
        ),
        (
            "proxy.tls_listen = '127.0.0.1:0'\nproxy.tls_key = '/k'",
            &["proxy.tls_cert: expects a file beside proxy.tls_key (not set)"],
        ),
        (
            "proxy.tls_listen = '127.0.0.1:0'\nproxy.tls_key = '/k'\nproxy.tls_cert = '/c'",
            &[],
        ),
        (
            "proxy.tls_key = '/k'\nproxy.tls_cert = '/c'",
            &[
                "proxy.tls_cert: has no use without proxy.tls_listen (from /c.toml:2)",
                "proxy.tls_key: has no use without proxy.tls_listen (from /c.toml:1)",
            ],
        ),
        (
            "proxy.listen = 'none'",
            &["proxy.listen: expects an address where tls_listen has none (from /c.toml:1)"],
        ),
        (
            "[admin]\nlisten = '0.0.0.0:9090'",
            &[
                "admin.listen: expects a loopback address; others are not available in this version: they need the admin key (from /c.toml:2)",
            ],
        ),
        (
            "api_key_file = '/key'",
            &[
                "api_key_file: is given beside the key itself (from SECRETS_PROXY_API_KEY) (from /c.toml:1)",
            ],
        ),
    ] {
        let problems = with_file(file).err().unwrap_or_default();
        assert_eq!(problems, expected, "{file}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_its_full_path() {
    for (file, expected) in [
        (
            "[proxy]\nlistn = 1",
            "proxy.listn: unknown setting, did you mean proxy.listen? (from /c.toml:2)",
        ),
        (
            "[prox]\nlisten = 1",
            "prox.listen: unknown setting, did you mean proxy.listen? (from /c.toml:2)",
        ),
        (
            "[a.b]\nc.d = 1",
            "a.b.c.d: unknown setting (from /c.toml:2)",
        ),
        ("[nothing]", "nothing: unknown setting (from /c.toml:1)"),
        (
            "'proxy.listen' = '127.0.0.1:1'",
            "\"proxy.listen\": unknown setting, did you mean proxy.listen? (from /c.toml:1)",
        ),
        (
            "\"a\\u001b\" = 1",
            "\"a\\u{1b}\": unknown setting (from /c.toml:1)",
        ),
        ("proxy = 1", "proxy: expects a table (from /c.toml:1)"),
        (
            "[[proxy]]\nlisten = '127.0.0.1:1'",
            "proxy: expects a table (from /c.toml:1)",
        ),
        (
            "proxy.listen.x = 1",
            "proxy.listen: expects an address and port such as 127.0.0.1:8080, or none (from /c.toml:1)",
        ),
        (
            "api_key = 'canary-0123456789'",
            "api_key: must not be given here: set SECRETS_PROXY_API_KEY or api_key_file (from /c.toml:1)",
        ),
        (
            "dev = true",
            "dev: can only be given on the command line, as --dev (from /c.toml:1)",
        ),
        (
            "[api]\nlisten = 'x'",
            "api: not available in this version (from /c.toml:1)",
        ),
        (
            "[audit]\non_fall = 'refuse'",
            "audit.on_fall: unknown setting, did you mean audit.on_full? (from /c.toml:2)",
        ),
        (
            "[gateway]\ndanger_extra_paths = ['/canary']",
            "gateway.danger_extra_paths: entry 1 expects a path such as /v1/files that is not forwarded already: letters, digits and ._:@~- between slashes, without pattern, escape, query, '.' and '..' (from /c.toml:2)",
        ),
        (
            "[gateway]\napi_key = 'canary'",
            "gateway.api_key: must not be given here: set OSHU_VAULT__GATEWAY__API_KEY or gateway.api_key_file (from /c.toml:2)",
        ),
        (
            "[payment.workos]\napi_key = 'canary'",
            "payment.workos.api_key: must not be given here: set OSHU_VAULT__PAYMENT__WORKOS__API_KEY or payment.workos.api_key_file (from /c.toml:2)",
        ),
        (
            "github.api_url = 'canary'",
            "github.api_url: not available in this version (from /c.toml:1)",
        ),
    ] {
        assert_eq!(with_file(file).unwrap_err(), [expected], "{file}");
    }
}

#[test]
fn variables_that_set_nothing_are_refused() {
    for (variable, expected) in [
        (
            "OSHU_VAULT__PROXY__LISTN",
            "proxy.listn: unknown setting, did you mean OSHU_VAULT__PROXY__LISTEN? (from OSHU_VAULT__PROXY__LISTN)",
        ),
        (
            "OSHU_VAULT__NONSENSE",
            "nonsense: unknown setting (from OSHU_VAULT__NONSENSE)",
        ),
        ("OSHU_VAULT__", ": unknown setting (from OSHU_VAULT__)"),
        (
            "OSHU_VAULT__API_KEY",
            "api_key: must not be given here: set SECRETS_PROXY_API_KEY or api_key_file (from OSHU_VAULT__API_KEY)",
        ),
        (
            "OSHU_VAULT__API_KEY_FILE",
            "api_key_file: is not given under this name: set SECRETS_PROXY_API_KEY_FILE (from OSHU_VAULT__API_KEY_FILE)",
        ),
        (
            "OSHU_VAULT__DEV",
            "dev: can only be given on the command line, as --dev (from OSHU_VAULT__DEV)",
        ),
        (
            "OSHU_VAULT__proxy__listen",
            "proxy.listen: is not given under this name: set OSHU_VAULT__PROXY__LISTEN (from OSHU_VAULT__proxy__listen)",
        ),
        (
            "OSHU_VAULT__GATEWAY__DANGER_EXTRA_PATHS",
            "gateway.danger_extra_paths: entry 1 expects a path such as /v1/files that is not forwarded already: letters, digits and ._:@~- between slashes, without pattern, escape, query, '.' and '..' (from OSHU_VAULT__GATEWAY__DANGER_EXTRA_PATHS)",
        ),
        (
            "OSHU_VAULT_ADMIN_KEY",
            "admin_key: expects at least 32 characters (from OSHU_VAULT_ADMIN_KEY)",
        ),
    ] {
        let variables = &[KEY, HOME, (variable, "canary-0123456789")];
        let problems = Given {
            variables,
            ..Given::default()
        }
        .load()
        .unwrap_err();
        assert_eq!(problems, [expected], "{variable}");
    }
    // Not ours alone: Kubernetes makes these for a service of this name.
    let variables = &[KEY, HOME, ("OSHU_VAULT_PORT", "tcp://10.0.0.1:8080")];
    assert!(
        Given {
            variables,
            ..Given::default()
        }
        .load()
        .is_ok()
    );
}

#[test]
fn all_problems_of_all_sources_are_reported_at_once() {
    let problems = Given {
        variables: &[
            ("SECRETS_PROXY_API_KEY", "canary"),
            ("OSHU_VAULT__LIMITS__CONNECTIONS", "0"),
            ("OSHU_VAULT__UPSTREAM__ALLOW_CIDRS", "10.0.0.0/8,canary"),
        ],
        file: Some("log = 'canary'\n[upstream]\nca_files = '/a'\ntrust = 1\n[limits]\ndns_timeout_ms = '5'"),
        flags: &[("proxy.listen", "canary"), ("upstream.resolve", "canary")],
    }
    .load()
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "limits.dns_timeout_ms: expects a whole number of milliseconds from 1 to 86400000 (from /c.toml:6)",
            "log: expects json or text (from /c.toml:1)",
            "upstream.ca_files: expects a list, each entry a path (from /c.toml:3)",
            "upstream.trust: expects public or system (from /c.toml:4)",
            "api_key: expects 16 to 512 visible ASCII characters without blanks (from SECRETS_PROXY_API_KEY)",
            "upstream.allow_cidrs: entry 2 expects an address range such as 10.0.0.0/8, with no bit set after the prefix (IPv4 in IPv4 form) (from OSHU_VAULT__UPSTREAM__ALLOW_CIDRS)",
            "limits.connections: expects a whole number from 1 to 1000000 (from OSHU_VAULT__LIMITS__CONNECTIONS)",
            "proxy.listen: expects an address and port such as 127.0.0.1:8080, or none (from --listen)",
            "upstream.resolve: entry 1 expects HOST=IP or HOST=IP:PORT with a name as HOST (IPv6 in brackets before a port) (from --resolve)",
            "state_dir: expects a path, since neither XDG_STATE_HOME nor HOME is an absolute one (not set)",
        ]
    );
}

#[test]
fn limits_that_one_cannot_have_are_refused() {
    for (text, expected) in [
        ("reserved_percent = 90", None),
        (
            "reserved_percent = 91",
            Some("limits.reserved_percent: expects a whole number from 1 to 90 (from /c.toml:2)"),
        ),
        ("session_tunnels = 512", None),
        (
            "session_tunnels = 513",
            Some(
                "limits.session_tunnels: expects at most limits.session_connections (by default) (from /c.toml:2)",
            ),
        ),
        ("session_tunnels = 513\nsession_connections = 513", None),
        (
            "session_connections = 255",
            Some(
                "limits.session_connections: expects at least limits.session_tunnels (by default) (from /c.toml:2)",
            ),
        ),
        (
            "session_connections = 512\nsession_tunnels = 513",
            Some(
                "limits.session_connections: expects at least limits.session_tunnels (from /c.toml:3) (from /c.toml:2)",
            ),
        ),
        ("head_fields = 10000", None),
        (
            "head_fields = 10001",
            Some("limits.head_fields: expects a whole number from 1 to 10000 (from /c.toml:2)"),
        ),
        ("session_requests_per_second = 1000000", None),
        (
            "session_requests_per_second = 1000001",
            Some(
                "limits.session_requests_per_second: expects a whole number from 1 to 1000000, or none (from /c.toml:2)",
            ),
        ),
        ("h2_stream_window_bytes = 131072", None),
        (
            "h2_stream_window_bytes = 131073",
            Some(
                "limits.h2_stream_window_bytes: expects at most 1/16 of limits.h2_connection_window_bytes (by default) (from /c.toml:2)",
            ),
        ),
        (
            "h2_stream_window_bytes = 131073\nh2_connection_window_bytes = 2097168",
            None,
        ),
        (
            "h2_stream_window_bytes = 131073\nh2_connection_window_bytes = 2097167",
            Some(
                "limits.h2_connection_window_bytes: expects at least 16 times limits.h2_stream_window_bytes (from /c.toml:2) (from /c.toml:3)",
            ),
        ),
    ] {
        let loaded = with_file(&format!("[limits]\n{text}")).map(drop);
        let expected = expected.map_or(Ok(()), |one| Err(vec![one.to_owned()]));
        assert_eq!(loaded, expected, "{text}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_reported_without_its_text() {
    for file in [
        "api_key = canary\nx",
        "\n\napi_key = \"canary",
        "canary canary",
        "canary = 1\ncanary = 2",
        "[proxy]\nlisten = \"\\canary\"",
    ] {
        let problems = with_file(file).unwrap_err();
        for problem in &problems {
            assert!(problem.starts_with("config: is not TOML: "), "{problem}");
            assert!(problem.contains("(from /c.toml:"), "{problem}");
        }
    }
    let flags = Flags::new(Some("/none.toml".into()));
    let source = Source::new(Vec::new(), Box::new(Memory::default()), flags);
    let problems = Config::load(&source).unwrap_err().to_string();
    assert!(
        problems.starts_with("config: cannot be read: entity not found (from /none.toml)"),
        "{problems}"
    );
    assert!(
        !problems.contains("api_key"),
        "it may be in the file: {problems}"
    );
}

#[test]
fn flags_alone_have_no_rules_of_a_server() {
    let flags = Flags::default().with("upstream.allow_cidrs", vec!["10.0.0.0/8".to_owned()]);
    let config = Config::from_flags(&flags).unwrap();
    assert_eq!(config.upstream.allow_cidrs.len(), 1);
    let flags = Flags::default().with("upstream.allow_cidrs", vec!["x".to_owned()]);
    assert!(
        Config::from_flags(&flags)
            .unwrap_err()
            .to_string()
            .contains("--allow-cidr")
    );
}
