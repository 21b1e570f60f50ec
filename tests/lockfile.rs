//! Holds `Cargo.lock` to the bans of `deny.toml` and to the lowest versions that advisories leave.
//!
//! It runs in every `make check`, where `cargo deny` may be absent. A floor binds a package only
//! while it is in the lock. The last tests run the same rules on made-up locks.
#![allow(
    clippy::expect_used,
    reason = "a test helper that fails should say so and stop"
)]

use std::process::Command;

use serde::Deserialize;

/// Packages that may not be in the tree at all, with the reason.
const BANNED: &[(&str, &str)] = &[
    ("openssl", "TLS is rustls, and only rustls"),
    ("openssl-sys", "TLS is rustls, and only rustls"),
    ("native-tls", "TLS is rustls, and only rustls"),
    (
        "rustls-pemfile",
        "archived, RUSTSEC-2025-0134; rustls-pki-types reads PEM",
    ),
];

/// Packages that only the named ones may depend on, with the reason. Cargo writes an optional
/// dependency into the lock although nothing turns it on; `ring_is_not_built` looks at the build.
const HELD_BY: &[(&str, &[&str], &str)] = &[
    (
        "reqwest",
        &["oshu-vault-sdk"],
        "a second way out of the process",
    ),
    (
        "ring",
        &["hickory-proto", "quinn-proto", "rustls-webpki"],
        "the provider is aws-lc-rs",
    ),
];

/// The lowest version of a package, or of a family `name-*`, and the advisory that asks for it.
const FLOORS: &[(&str, Version, &str)] = &[
    ("aes-gcm", (0, 10, 3), "RUSTSEC-2023-0096"),
    ("aws-lc-sys", (0, 39, 0), "RUSTSEC-2026-0044 to 0048"),
    ("bytes", (1, 11, 1), "RUSTSEC-2026-0007"),
    ("h2", (0, 4, 16), "RUSTSEC-2026-0258"),
    ("hickory-*", (0, 26, 1), "RUSTSEC-2026-0118 to 0120"),
    ("hyper", (1, 5, 1), "the limit on reset streams"),
    ("idna", (1, 0, 0), "RUSTSEC-2024-0421"),
    ("quinn-proto", (0, 11, 15), "an advisory of 2026"),
    ("rand", (0, 9, 4), "RUSTSEC-2026-0097"),
    ("ring", (0, 17, 12), "RUSTSEC-2025-0009"),
    ("rustls", (0, 23, 45), "RUSTSEC-2026-0285"),
    (
        "rustls-webpki",
        (0, 103, 13),
        "RUSTSEC-2026-0049, 0098, 0099, 0104",
    ),
    ("time", (0, 3, 47), "RUSTSEC-2026-0009"),
    ("tokio", (1, 54, 1), "1.54.0 was yanked"),
    ("tungstenite", (0, 20, 1), "RUSTSEC-2023-0065"),
];

type Version = (u64, u64, u64);

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Package {
    /// A dependency line is a name, followed by a version where the lock holds several.
    fn names(&self, dependency: &str) -> bool {
        self.dependencies
            .iter()
            .any(|line| line.split(' ').next() == Some(dependency))
    }
}

/// Reads `major.minor.patch`; a pre-release comes before its release and is not accepted.
fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('+').next()?.split('.').map(str::parse);
    match (parts.next()?, parts.next()?, parts.next()?, parts.next()) {
        (Ok(major), Ok(minor), Ok(patch), None) => Some((major, minor, patch)),
        _ => None,
    }
}

fn belongs(name: &str, family: &str) -> bool {
    family
        .strip_suffix('*')
        .map_or(name == family, |prefix| name.starts_with(prefix))
}

fn faults(lock: &str) -> Vec<String> {
    let lock: Lock = toml::from_str(lock).expect("a lock file");
    let mut faults = Vec::new();
    let registry = lock
        .package
        .iter()
        .find_map(|package| package.source.as_deref());
    for package in &lock.package {
        let name = &package.name;
        for (_, reason) in BANNED.iter().filter(|(banned, _)| banned == name) {
            faults.push(format!("{name} is banned: {reason}"));
        }
        for (held, holders, reason) in HELD_BY {
            if package.names(held) && !holders.contains(&name.as_str()) {
                faults.push(format!("{name} depends on {held}: {reason}"));
            }
        }
        for (_, floor, reason) in FLOORS.iter().filter(|(family, ..)| belongs(name, family)) {
            if version(&package.version).is_none_or(|version| version < *floor) {
                let found = &package.version;
                faults.push(format!("{name} {found} is below {floor:?}: {reason}"));
            }
        }
        let standard = package
            .source
            .as_deref()
            .is_none_or(|source| source.starts_with("registry+") && Some(source) == registry);
        if !standard {
            faults.push(format!("{name} does not come from the standard registry"));
        }
    }
    faults
}

fn lock_text() -> &'static str {
    include_str!("../Cargo.lock")
}

/// Prints who depends on `package` in a build for this machine; nothing if it is not built.
fn dependents(package: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--locked",
            "--offline",
            "--invert",
            package,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_lock_keeps_bans_and_floors() {
    let found = faults(lock_text());
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_lock_holds_what_the_rules_speak_of() {
    let lock: Lock = toml::from_str(lock_text()).expect("a lock file");
    for name in [
        "rustls",
        "rustls-webpki",
        "aws-lc-sys",
        "hickory-resolver",
        "oshu-vault-sdk",
    ] {
        assert!(
            lock.package.iter().any(|package| package.name == name),
            "{name} is not there"
        );
    }
}

#[test]
fn ring_is_not_built() {
    assert!(
        dependents("aws-lc-rs").contains("oshu-vault"),
        "cargo tree shows nothing at all"
    );
    assert_eq!(
        dependents("ring"),
        "",
        "two crypto providers in one process"
    );
}

/// A lock that names where a package was fetched from would bind every user to that mirror.
#[test]
fn npm_locks_name_no_registry() {
    let clients = include_str!("fixtures/clients/package-lock.json");
    assert!(
        clients.contains("\"integrity\""),
        "no checksums in the lock of the test clients"
    );
    assert!(
        !clients.contains("\"resolved\""),
        "run npm with --omit-lockfile-registry-resolved"
    );
}

#[test]
fn what_breaks_a_rule_is_found_and_named() {
    let entry = |name: &str, version: &str, rest: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{rest}\n")
    };
    let cases = [
        (entry("openssl-sys", "0.9.1", ""), "openssl-sys is banned"),
        (entry("native-tls", "0.2.1", ""), "native-tls is banned"),
        (
            entry("rustls-pemfile", "2.2.0", ""),
            "rustls-pemfile is banned",
        ),
        (
            entry("oshu-vault", "0.1.0", "dependencies = [\"reqwest\"]"),
            "depends on reqwest",
        ),
        (
            entry("other", "0.1.0", "dependencies = [\"reqwest 0.13.5\"]"),
            "depends on reqwest",
        ),
        (
            entry("rustls", "0.23.46", "dependencies = [\"ring\"]"),
            "rustls depends on ring",
        ),
        (entry("rustls", "0.23.44", ""), "rustls 0.23.44 is below"),
        (entry("h2", "0.4.9", ""), "h2 0.4.9 is below"),
        (
            entry("hickory-proto", "0.26.0", ""),
            "hickory-proto 0.26.0 is below",
        ),
        (entry("rand", "0.8.5", ""), "rand 0.8.5 is below"),
        (
            entry("aes-gcm", "0.11.0-rc.1", ""),
            "aes-gcm 0.11.0-rc.1 is below",
        ),
        (
            entry("a", "1.0.0", "source = \"git+https://example.invalid/a\""),
            "standard registry",
        ),
    ];
    for (lock, expected) in cases {
        let found = faults(&lock);
        assert_eq!(found.len(), 1, "{lock}: {found:?}");
        assert!(found.concat().contains(expected), "{lock}: {found:?}");
    }
    let mirrors = entry("a", "1.0.0", "source = \"registry+one\"")
        + &entry("b", "1.0.0", "source = \"registry+two\"");
    assert_eq!(
        faults(&mirrors),
        ["b does not come from the standard registry"]
    );
    let good = entry("rustls", "0.23.45", "dependencies = [\"reqwest-like\"]")
        + &entry("oshu-vault-sdk", "0.1.0", "dependencies = [\"reqwest\"]")
        + &entry("aws-lc-sys", "0.40.0+fips", "");
    assert_eq!(faults(&good), Vec::<String>::new());
}
