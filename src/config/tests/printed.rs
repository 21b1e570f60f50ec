//! The configuration as text: the documented defaults, the examples, and what `check-config` prints.

use super::*;
use crate::config::show::tests::documented;

#[test]
fn the_default_file_is_the_table_and_changes_nothing() {
    assert_eq!(
        DEFAULT_TOML,
        documented(),
        "write this text to src/config/default.toml"
    );
    let config = with_file(DEFAULT_TOML).unwrap();
    let bare = Given {
        variables: &[KEY, HOME],
        ..Given::default()
    };
    assert_eq!(config.redacted(), bare.load().unwrap().redacted());
    let dev = |file| Given {
        variables: &[HOME],
        file,
        flags: &[("dev", "")],
    };
    assert_eq!(
        dev(Some(DEFAULT_TOML)).load().unwrap().redacted(),
        dev(None).load().unwrap().redacted()
    );
    let operations = include_str!("../../../docs/operations.md");
    assert!(
        operations.contains(&format!("```toml\n{DEFAULT_TOML}```\n")),
        "docs/operations.md must embed src/config/default.toml"
    );
}

#[test]
fn examples_are_right() {
    let without_comments: String = DEFAULT_TOML
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(example) if example.contains(" = ") => format!("{example}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let problems = with_file(&without_comments).err().unwrap_or_default();
    // The files of the examples are what is not there.
    assert_eq!(problems.len(), 13, "{problems:?}");
    for (problem, expected) in problems.iter().zip([
        "api_key_file: is given beside",
        "admin_key_file: names a file that cannot be read",
        "upstream.proxy_file: names a file that cannot be read",
        "store.url_file: names a file that cannot be read",
        "gateway.api_key_file: names a file that cannot be read",
        "gateway.jwt_secret_file: names a file that cannot be read",
        "gateway.jwt_secret_previous_file: names a file that cannot be read",
        "payment.workos.api_key_file: names a file that cannot be read",
        "payment.stripe.webhook_secret_file: names a file that cannot be read",
        "payment.stripe.webhook_secret_previous_file: names a file that cannot be read",
        "github.client_secret_file: names a file that cannot be read",
        "seal.key_command: is given beside seal.key_file (from /c.toml",
        "audit.file: has no use without audit.sink = \"file\" (from /c.toml",
    ]) {
        assert!(problem.starts_with(expected), "{problems:?}");
    }
}

#[test]
fn the_effective_configuration_can_be_given_back() {
    let file = "log = 'text'\n[proxy]\nlisten = '0.0.0.0:0'\npublic_url = 'https://v.example:8443'\n\
                [upstream]\nca_files = ['/a \"b\".pem']\nresolve = ['a.example=[::1]:8443']\n\
                allow_cidrs = ['10.0.0.0/8', 'fd00::/8']\ntrust = 'system'\n\
                proxy = 'https://proxy.example:3128'\n";
    let config = with_file(file).unwrap();
    let printed = config.redacted();
    assert!(printed.contains("# api_key: set (redacted)"), "{printed}");
    assert!(!printed.contains("canary"), "{printed}");
    assert!(!format!("{config:?}").contains("canary"));
    assert_eq!(with_file(&printed).unwrap().redacted(), printed);
    for setting in SETTINGS.iter().filter(|setting| setting.in_file()) {
        let unset = [
            "api_key_file",
            "admin_key_file",
            "proxy.tls_cert",
            "proxy.tls_key",
            "upstream.proxy_file",
            "store.url_file",
            "seal.key_file",
            "seal.key_command",
            "audit.file",
            "gateway.api_key_file",
            "gateway.jwt_secret_file",
            "gateway.jwt_secret_previous_file",
            "gateway.payment_url",
            "payment.workos.api_key_file",
            "payment.stripe.webhook_secret_file",
            "payment.stripe.webhook_secret_previous_file",
            "github.client_id",
            "github.client_secret_file",
        ]
        .contains(&setting.key);
        let name = setting.key.split_once('.');
        let name = name.map_or(setting.key, |(_, name)| name);
        assert_eq!(printed.contains(&format!("\n{name} = ")), !unset, "{name}");
    }
}
