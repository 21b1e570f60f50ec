//! The API key of the configuration, and that of the operator: whence, how long, and whose.

use super::*;

#[test]
fn the_api_key_comes_from_one_place_and_has_a_length() {
    let variable = "SECRETS_PROXY_API_KEY_FILE";
    for (variables, file, expected) in [
        (&[HOME, KEY][..], None, Ok("canary-0123456789")),
        (&[HOME, (variable, "/key")], None, Ok("canary-from-a-file")),
        (
            &[HOME],
            Some("api_key_file = '/key'"),
            Ok("canary-from-a-file"),
        ),
        (
            &[HOME],
            None,
            Err(
                "api_key: expects SECRETS_PROXY_API_KEY with at least 16 characters, or api_key_file, or --dev (not set)",
            ),
        ),
        (
            &[HOME, ("SECRETS_PROXY_API_KEY", "canary")],
            None,
            Err(
                "api_key: expects 16 to 512 visible ASCII characters without blanks (from SECRETS_PROXY_API_KEY)",
            ),
        ),
        (
            &[HOME, (variable, "/none")],
            None,
            Err(
                "api_key_file: names a file that cannot be read: entity not found (from SECRETS_PROXY_API_KEY_FILE)",
            ),
        ),
        (
            &[HOME],
            Some("api_key_file = '/open'"),
            Err(
                "api_key_file: names a file that others than its owner may use: chmod 600 (from /c.toml:1)",
            ),
        ),
    ] {
        let loaded = Given {
            variables,
            file,
            ..Given::default()
        }
        .load();
        match (loaded, expected) {
            (Ok(config), Ok(key)) => assert_eq!(config.api_key.unwrap().expose(), key.as_bytes()),
            (loaded, expected) => {
                assert_eq!(
                    loaded.err(),
                    expected.err().map(|text| vec![text.to_owned()])
                );
            }
        }
    }
}

#[test]
fn the_operator_s_key_is_long_and_nobody_else_s() {
    const ADMIN: &str = "canary-of-the-operator-0123456789";
    const VARIABLE: &str = "OSHU_VAULT_ADMIN_KEY";
    for (variables, file, expected) in [
        (&[KEY, HOME][..], "", Ok(false)),
        (&[KEY, HOME, (VARIABLE, ADMIN)], "", Ok(true)),
        (
            &[KEY, HOME, (VARIABLE, "canary-of-one-too-short-0123456")],
            "",
            Err("admin_key: expects at least 32 characters (from OSHU_VAULT_ADMIN_KEY)"),
        ),
        (
            &[("SECRETS_PROXY_API_KEY", ADMIN), HOME, (VARIABLE, ADMIN)],
            "",
            Err("admin_key: expects another key than api_key (from OSHU_VAULT_ADMIN_KEY)"),
        ),
        (
            &[KEY, HOME],
            "admin_key_file = '/key'",
            Err("admin_key_file: expects at least 32 characters (from /c.toml:1)"),
        ),
        (
            &[KEY, HOME],
            "admin_key_file = '/open'",
            Err(
                "admin_key_file: names a file that others than its owner may use: chmod 600 (from /c.toml:1)",
            ),
        ),
        (
            &[KEY, HOME, (VARIABLE, ADMIN)],
            "admin_key_file = '/key'",
            Err(
                "admin_key_file: is given beside the key itself (from OSHU_VAULT_ADMIN_KEY) (from /c.toml:1)",
            ),
        ),
        (
            &[KEY, HOME],
            "admin_key = 'canary-0123456789'",
            Err(
                "admin_key: must not be given here: set OSHU_VAULT_ADMIN_KEY or admin_key_file (from /c.toml:1)",
            ),
        ),
    ] {
        let loaded = Given {
            variables,
            file: Some(file),
            ..Given::default()
        }
        .load();
        match (loaded, expected) {
            (Ok(config), Ok(is_set)) => {
                assert_eq!(config.admin_key.is_some(), is_set);
                let printed = format!("{}{config:?}", config.redacted());
                assert_eq!(printed.contains("# admin_key: set (redacted)"), is_set);
                assert!(!printed.contains("canary"), "{printed}");
            }
            (Err(problems), Err(expected)) => assert_eq!(problems, [expected]),
            (loaded, _) => panic!("{expected:?}: {loaded:?}"),
        }
    }
}
