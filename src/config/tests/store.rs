//! Tests of the store and of the keys that seal it: forms that are taken, and places that exclude
//! each other.

use super::*;
use crate::store::Address;

fn load(variables: &[(&str, &str)], file: &str) -> Result<Config, Vec<String>> {
    let all: Vec<_> = [KEY, HOME].iter().chain(variables).copied().collect();
    let given = Given {
        variables: &all,
        file: Some(file),
        ..Given::default()
    };
    given.load()
}

#[test]
fn the_store_is_a_file_or_memory() {
    for (text, expected) in [
        ("redb", Some("/s/sessions.redb")),
        ("redb:/elsewhere/rows", Some("/elsewhere/rows")),
        ("memory", None),
    ] {
        let config = load(&[], &format!("store.url = '{text}'")).unwrap();
        let file = config.store.file(Path::new("/s"));
        assert_eq!(file.as_deref(), expected.map(Path::new));
        assert!(config.redacted().contains(&format!("url = \"{text}\"\n")));
    }
    let bare = load(&[], "").unwrap();
    assert_eq!(bare.store, Store::Redb, "what nobody says is kept");
    for text in ["redb:", "sqlite", "", "REDB"] {
        load(&[], &format!("store.url = '{text}'")).unwrap_err();
    }
}

#[test]
fn a_shared_store_is_a_url_whose_password_is_never_shown() {
    const VARIABLE: &str = "OSHU_VAULT__STORE__URL";
    let url = "rediss://user:canary@cache.example.com:7000/2";
    let shown = "url = \"rediss://[redacted]@cache.example.com:7000/2\"\n";
    for (variables, file) in [
        (&[(VARIABLE, url)][..], String::new()),
        (&[], format!("store.url = '{url}'")),
        (&[], "store.url_file = '/store'".to_owned()),
    ] {
        let config = load(variables, &file).unwrap();
        assert_eq!(config.store, Store::Shared(Address::parse(url).unwrap()));
        assert_eq!(config.store.file(Path::new("/s")), None);
        let beside = config.store.beside(Path::new("/s"));
        assert_eq!(beside.as_deref(), Some(Path::new("/s/sessions.shared")));
        let text = config.redacted();
        assert!(text.contains(shown), "{text}");
        assert!(!format!("{config:?}{text}").contains("canary"));
        // What was printed is not taken for a password.
        load(&[], &format!("store.{shown}")).unwrap_err();
    }
    let expects = "redis://[USER:PASSWORD@]HOST:PORT/DB or rediss://…";
    for (variables, file, expected) in [
        (
            &[(VARIABLE, url)][..],
            "store.url_file = '/store'",
            format!("store.url_file: is given beside store.url (from {VARIABLE}) (from /c.toml:1)"),
        ),
        (
            &[],
            "store.url_file = '/open'",
            "store.url_file: names a file that others than its owner may use: chmod 600 \
             (from /c.toml:1)"
                .to_owned(),
        ),
        (
            &[],
            "store.url_file = '/key'",
            format!("store.url_file: names a file that should hold {expects} (from /c.toml:1)"),
        ),
        (
            &[],
            "store.url = 'redis://canary:x@'",
            format!(
                "store.url: expects redb, redb:PATH, memory, or a URL such as {expects} \
                 (from /c.toml:1)"
            ),
        ),
        (
            &[],
            "store.prefix = 'a b'",
            "store.prefix: expects 1 to 64 letters, digits, and -_.: (from /c.toml:1)".to_owned(),
        ),
    ] {
        assert_eq!(load(variables, file).unwrap_err(), [expected], "{file}");
    }
    let config = load(&[], "store = { prefix = 'a.b', max_stale_ms = 50 }").unwrap();
    assert_eq!(config.shared.prefix.as_str(), "a.b");
    assert_eq!(config.shared.max_stale.as_millis(), 50);
}

#[test]
fn sealing_keys_come_from_one_place_and_are_never_shown() {
    const KEYS: (&str, &str) = ("OSHU_VAULT_SEAL_KEY", "canary-0123456789abcdef");
    let config = load(&[KEYS], "").unwrap();
    assert!(config.seal.key.is_some());
    assert!(!format!("{config:?}{}", config.redacted()).contains("canary"));
    let file = "seal.key_file = '/k'";
    let command = "seal.key_command = 'print-keys'";
    assert_eq!(
        load(&[], file).unwrap().seal.key_file.unwrap(),
        Path::new("/k")
    );
    assert_eq!(
        load(&[], command).unwrap().seal.key_command.unwrap(),
        "print-keys"
    );
    for (variables, file, expected) in [
        (
            &[KEYS][..],
            file.to_owned(),
            "seal.key_file: is given beside seal.key (from OSHU_VAULT_SEAL_KEY) (from /c.toml:1)",
        ),
        (
            &[],
            format!("{file}\n{command}"),
            "seal.key_command: is given beside seal.key_file (from /c.toml:1) (from /c.toml:2)",
        ),
        (
            &[],
            "seal.key = 'canary'".to_owned(),
            "seal.key: must not be given here: set OSHU_VAULT_SEAL_KEY or seal.key_file (from \
             /c.toml:1)",
        ),
        (
            &[],
            "seal.key_command = ' '".to_owned(),
            "seal.key_command: expects a shell command (from /c.toml:1)",
        ),
    ] {
        assert_eq!(load(variables, &file).unwrap_err(), [expected]);
    }
}
