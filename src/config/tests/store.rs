//! Tests of the store and of the keys that seal it: forms that are taken, and places that exclude
//! each other.

use super::*;

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
