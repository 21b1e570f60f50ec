//! Tests of the command line: every verb, every flag, and what a mistake is told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::audit::Sink;
use crate::config::{Config, Disk, SETTINGS, Shape, Source};
use crate::id::AccountId;
use crate::payment::Month;
use crate::policy::{AddressRules, Catalogue, known_token_endpoints};
use crate::seal::Keyring;
use crate::session::{Options, Sessions};
use crate::store::Memory;

/// Makes sessions in memory, without a tenant.
pub(super) fn sessions(keyring: Keyring) -> Arc<Sessions> {
    let options = Options {
        catalogue: Arc::new(Catalogue::builtin()),
        token_endpoints: known_token_endpoints(),
        unscoped_secrets: false,
        any_port: false,
    };
    let rules = Arc::new(AddressRules::new(Vec::new(), false));
    let store = Arc::new(Memory::new());
    Arc::new(Sessions::new(
        store,
        keyring,
        options,
        rules,
        Sink::discard(),
    ))
}

fn parse(line: &str) -> Result<Verb, Exit> {
    let words = std::iter::once("oshu-vault").chain(line.split_whitespace());
    Cli::parse_from(words).map(|cli| cli.verb)
}

fn refused(line: &str) -> String {
    let exit = parse(line)
        .map(|verb| panic!("{line}: {verb:?}"))
        .unwrap_err();
    assert_eq!(
        (exit.code, exit.to_stdout),
        (64, false),
        "{line}: {}",
        exit.text
    );
    exit.text
}

fn session_id(digit: char) -> String {
    format!("sess_{}", digit.to_string().repeat(32))
}

#[test]
fn help_and_version_are_answers() {
    for line in [
        "--help",
        "--version",
        "help",
        "serve --help",
        "session create --help",
    ] {
        let exit = parse(line).unwrap_err();
        assert_eq!((exit.code, exit.to_stdout), (0, true), "{line}");
        assert!(!exit.text.is_empty(), "{line}");
    }
    let help = parse("--help").unwrap_err().text;
    for verb in [
        "serve",
        "demo",
        "run",
        "env",
        "doctor",
        "session",
        "ca",
        "seal",
        "accounts",
        "token",
        "audit",
        "check-config",
        "healthcheck",
        "version",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} in {help}");
    }
    assert!(!help.contains("openapi"), "openapi in {help}");
    assert!(matches!(parse("version"), Ok(Verb::Version)));
    assert!(matches!(parse("demo"), Ok(Verb::Demo)));
}

#[test]
fn later_verbs_are_refused_by_name() {
    for line in ["openapi", "openapi --out x"] {
        let name = line.split(' ').next().unwrap();
        let expected = format!("error: {name}: not available in this version");
        assert_eq!(refused(line), expected, "{line}");
    }
}

#[test]
fn mistakes_name_what_they_are_about() {
    for (line, part) in [
        ("", "Usage"),
        ("nonsense", "nonsense"),
        ("serve --nonsense", "--nonsense"),
        ("serve --listen", "--listen"),
        ("serve --listen a --listen b", "--listen"),
        ("serve --dev=true", "--dev"),
        ("serve extra", "extra"),
        ("session", "Usage"),
        ("session show", "<ID>"),
        ("session show sess_1", "ID expects"),
        ("session list --server vault.example", "--server expects"),
        ("accounts", "Usage"),
        ("accounts set 1", "--paid"),
        ("accounts set 1 --paid maybe", "--paid"),
        ("accounts set a/b --paid true", "ID expects"),
        ("accounts show", "<ID>"),
        ("accounts usage 1 --month 2026-13", "--month expects"),
        ("token", "Usage"),
        ("token mint --user-id 1", "--sandbox"),
        ("token mint --user-id / --sandbox a", "--user-id expects"),
        ("token mint --user-id 1 --sandbox /", "--sandbox expects"),
        (
            "token mint --user-id 1 --sandbox a --ttl 86401",
            "--ttl expects",
        ),
        (
            "token mint --user-id 1 --sandbox a --ttl 0",
            "--ttl expects",
        ),
        ("run", "<CMD>"),
        ("run --", "<CMD>"),
        ("run claude", "claude"),
        ("run --secret", "--secret"),
        ("run --secret 1 -- x", "--secret (the 1. of them)"),
        ("run --scope A=b.example -- x", "--scope (the 1. of them)"),
        ("run --allow * -- x", "--allow (the 1. of them)"),
        ("run --allow-cidr x -- y", "--allow-cidr"),
        ("run --listen 127.0.0.1:1 -- x", "--listen"),
        ("run --server x -- y", "--server expects"),
        ("run --ca f -- x", "--server"),
        (
            "run --server http://a --resolve a=127.0.0.1 -- x",
            "--resolve",
        ),
        ("run --server http://a --audit f -- x", "--audit"),
        ("ca generate --nonsense", "--nonsense"),
        ("env --nonsense", "--nonsense"),
        ("env --format yaml", "--format"),
        ("env --proxy-url http://a", "--proxy-url expects"),
        ("env --proxy-url http://a:b@c --server http://d", "--server"),
        ("env --secret 1", "--secret (the 1. of them)"),
        ("env extra", "extra"),
        ("doctor --nonsense", "--nonsense"),
        ("doctor --format shell", "--format"),
        ("doctor --url http://plain.example", "--url expects"),
        ("doctor --proxy-url b", "--proxy-url expects"),
        ("doctor curl", "curl"),
        ("healthcheck --api-key-file f", "--api-key-file"),
    ] {
        let text = refused(line);
        assert!(text.contains(part), "{line}: {text}");
    }
    let text = refused("run --secret 1 --scope A --allow * --resolve x --server y -- z");
    for flag in ["--secret", "--scope", "--allow"] {
        assert!(text.contains(flag), "{flag} in {text}");
    }
}

#[test]
fn a_value_in_the_wrong_place_is_not_repeated() {
    for line in [
        "run --secret KEY=canary -- x",
        "run --secret KEY=canary:x -- x",
        "run --scope KEY=canary/x -- x",
        "run --api-key=canary -- x",
        "session list --api-key=canary",
        "session list --server https://canary@vault.example",
        "session show canary",
        "env --proxy-url http://canary@vault.example",
        "env --secret KEY=canary",
        "doctor --proxy-url canary",
        "doctor --url https://canary@vault.example",
        "serve --api-key=canary",
        "serve --dev=canary",
    ] {
        let text = refused(line);
        assert!(!text.contains("canary"), "{line}: {text}");
    }
}

#[test]
fn every_flag_of_the_table_reaches_its_setting() {
    for verb in ["serve", "check-config"] {
        for setting in SETTINGS {
            let Some(flag) = setting.flag else { continue };
            let line = match setting.shape {
                Shape::Switch => format!("{verb} --{flag}"),
                Shape::One => format!("{verb} --{flag} value"),
                Shape::Many => format!("{verb} --{flag} one --{flag} two"),
            };
            let (Verb::Serve { flags, .. } | Verb::CheckConfig(flags)) = parse(&line).unwrap()
            else {
                panic!("{line}");
            };
            let values = match setting.shape {
                Shape::Switch => vec![],
                Shape::One => vec!["value".to_owned()],
                Shape::Many => vec!["one".to_owned(), "two".to_owned()],
            };
            assert_eq!(
                flags,
                crate::config::Flags::default().with(setting.key, values)
            );
        }
    }
    let flags: Vec<_> = SETTINGS.iter().filter_map(|setting| setting.flag).collect();
    assert_eq!(
        flags,
        [
            "dev",
            "state-dir",
            "log",
            "listen",
            "tls-listen",
            "tls-cert",
            "tls-key",
            "public-url",
            "upstream-ca",
            "resolve",
            "allow-cidr",
            "upstream-proxy",
            "upstream-proxy-file",
            "admin-listen",
            "store",
            "store-file",
        ]
    );
}

#[test]
fn serve_reads_its_flags_into_a_configuration() {
    let line = "serve --dev --listen 127.0.0.1:0 --state-dir /s --resolve a.example=127.0.0.1:1 \
                --resolve b.example=::1 --allow-cidr 10.0.0.0/8 --log text --upstream-ca /r.pem";
    let Verb::Serve { flags, takes_over } = parse(line).unwrap() else {
        panic!("serve");
    };
    let source = Source::new(Vec::new(), Box::new(Disk), flags);
    let config = Config::load(&source).unwrap();
    assert!(config.dev);
    assert_eq!(config.proxy.listen, Some("127.0.0.1:0".parse().unwrap()));
    assert_eq!(config.upstream.resolve.len(), 2);
    assert_eq!(config.state_dir, Path::new("/s"));
    assert!(!takes_over);
    let Verb::Serve { flags, takes_over } = parse("serve --config /f --take-over").unwrap() else {
        panic!("serve");
    };
    assert!(takes_over);
    assert_eq!(flags.config(), Some(Path::new("/f")));
}

#[test]
fn run_takes_a_command_as_it_is() {
    let line = "run --secret A --secret B=file:/b --scope A=a.example,b.example --allow *.a.example \
                --audit /log --allow-cidr 10.0.0.0/8 --resolve a.example=10.0.0.1 \
                -- claude --secret X -- --help";
    let Verb::Run(run) = parse(line).unwrap() else {
        panic!("run");
    };
    assert_eq!(run.command, ["claude", "--secret", "X", "--", "--help"]);
    assert_eq!(run.secrets.len(), 2);
    assert_eq!(run.secrets[0].from, SecretFrom::Env("A".to_owned()));
    assert_eq!(run.secrets[0].hosts.len(), 2);
    assert_eq!(run.allow.len(), 1);
    assert_eq!(run.audit.as_deref(), Some(Path::new("/log")));
    assert_eq!(run.upstream.allow_cidrs.len(), 1);
    assert_eq!(run.upstream.resolve.len(), 1);
    assert!(run.server.is_none() && run.upstream.proxy.is_none());
    let Verb::Run(run) =
        parse("run --upstream-proxy http://canary:canary@p.example:1 -- sh").unwrap()
    else {
        panic!("run");
    };
    assert_eq!(
        run.upstream.proxy.as_ref().unwrap().to_string(),
        "http://[redacted]@p.example:1"
    );
    assert!(!format!("{run:?}").contains("canary"));
    let Verb::Run(run) = parse("run --upstream-proxy-file /p -- sh").unwrap() else {
        panic!("run");
    };
    assert_eq!(run.upstream_proxy_file.as_deref(), Some(Path::new("/p")));
    for (bad, expected) in [
        (
            "--upstream-proxy http://canary@p.example",
            "upstream.proxy: expects http://[",
        ),
        (
            "--upstream-proxy http://p:1 --upstream-proxy-file /p",
            "cannot be used with",
        ),
        (
            "--server http://a --upstream-proxy http://p:1",
            "cannot be used with",
        ),
        (
            "--server http://a --upstream-proxy-file /p",
            "cannot be used with",
        ),
    ] {
        let exit = parse(&format!("run {bad} -- sh")).unwrap_err();
        assert!(exit.text.contains(expected), "{bad}: {}", exit.text);
        assert!(!exit.text.contains("canary"), "{}", exit.text);
    }
    let Verb::Run(run) = parse("run --server https://v.example --ca /r.pem -- sh").unwrap() else {
        panic!("run");
    };
    let server = run.server.unwrap();
    assert_eq!(server.url.unwrap().to_string(), "https://v.example");
    assert_eq!(server.ca.as_deref(), Some(Path::new("/r.pem")));
}

#[test]
fn an_environment_is_that_of_a_proxy_or_of_a_new_session() {
    for (line, is_session) in [
        ("env", false),
        (
            "env --format json --only A,B --ca-dir /d --state-dir /s --ca /c",
            false,
        ),
        ("env --proxy-url env:P", false),
        ("env --secret A --scope A=a.example", true),
        ("env --allow a.example", true),
        ("env --server http://a.example", true),
        ("env --api-key-file /k", true),
    ] {
        let Verb::Env(env) = parse(line).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(
            matches!(env.way, EnvWay::Session { .. }),
            is_session,
            "{line}"
        );
    }
    for (form, expected) in [
        ("shell", EnvFormat::Shell),
        ("dotenv", EnvFormat::Dotenv),
        ("json", EnvFormat::Json),
        ("docker", EnvFormat::Docker),
    ] {
        let line = format!("env --format {form} --only A,B --only C --ca-dir /d");
        let Verb::Env(env) = parse(&line).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(env.format, expected);
        assert_eq!(env.only, ["A", "B", "C"]);
        assert_eq!(env.ca_dir.as_deref(), Some(Path::new("/d")));
    }
}

#[test]
fn doctor_takes_a_proxy_clients_and_a_url() {
    let line = "doctor --proxy-url http://a:b@c:1 --format json --only curl,git --url \
                https://d.example:8443 --ca /c --ca-dir /d --state-dir /s";
    let Verb::Doctor(doctor) = parse(line).unwrap() else {
        panic!("{line}");
    };
    assert!(matches!(doctor.proxy, ProxyFrom::Url(_)) && doctor.json);
    assert_eq!(doctor.only, ["curl", "git"]);
    assert_eq!(doctor.url.unwrap().to_string(), "https://d.example:8443");
    let Verb::Doctor(doctor) = parse("doctor").unwrap() else {
        panic!("doctor");
    };
    assert_eq!(doctor.proxy, ProxyFrom::Environment);
    assert!(!doctor.json && doctor.only.is_empty() && doctor.url.is_none());
}

#[test]
fn sessions_and_authorities_have_their_calls() {
    let id = session_id('a');
    let file = |name: Option<&str>| SessionAction::Create {
        file: name.map(Into::into),
    };
    let known = crate::id::SessionId::parse(&id).unwrap();
    for (line, expected) in [
        ("session create".to_owned(), file(None)),
        ("session create --file -".to_owned(), file(None)),
        (
            "session create --file /r.json".to_owned(),
            file(Some("/r.json")),
        ),
        ("session list".to_owned(), SessionAction::List),
        (
            format!("session show {id}"),
            SessionAction::Show(known.clone()),
        ),
        (format!("session delete {id}"), SessionAction::Delete(known)),
    ] {
        let Verb::Session(calls) = parse(&line).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(calls.action, expected);
        assert_eq!(calls.server, ServerFlags::default());
    }
    let line = "session list --server http://a.example:81 --api-key-file /k --ca /c --state-dir /s";
    let Verb::Session(calls) = parse(line).unwrap() else {
        panic!("{line}");
    };
    assert_eq!(calls.server.url.unwrap().to_string(), "http://a.example:81");
    assert_eq!(calls.server.api_key_file.as_deref(), Some(Path::new("/k")));
    assert_eq!(calls.server.ca.as_deref(), Some(Path::new("/c")));
    assert_eq!(calls.server.state_dir.as_deref(), Some(Path::new("/s")));
    for (line, expected) in [
        ("ca show", CaAction::Show),
        ("ca export", CaAction::Export { out: None }),
        (
            "ca export --out c.pem",
            CaAction::Export {
                out: Some("c.pem".into()),
            },
        ),
        ("ca generate", CaAction::Generate { out: None }),
        (
            "ca generate --out certs/",
            CaAction::Generate {
                out: Some("certs/".into()),
            },
        ),
    ] {
        let Verb::Ca(ca) = parse(&format!("{line} --state-dir /s")).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(ca.action, expected);
        assert_eq!(ca.state_dir.as_deref(), Some(Path::new("/s")));
    }
    assert!(matches!(
        parse("healthcheck --server http://a"),
        Ok(Verb::Healthcheck(_))
    ));
}

#[test]
fn sealing_keys_are_made_and_rotated() {
    assert!(matches!(
        parse("seal generate --out k --state-dir /s").unwrap(),
        Verb::Seal(Seal::Generate { out: Some(out), state_dir: Some(dir) })
            if out == Path::new("k") && dir == Path::new("/s")
    ));
    let Verb::Seal(Seal::Rotate { flags, new_key }) =
        parse("seal rotate --new-key --config c --store redb:/r --state-dir /s").unwrap()
    else {
        panic!("another verb");
    };
    assert!(new_key);
    assert_eq!(flags.config(), Some(Path::new("c")));
    let config = Config::from_flags(&flags).unwrap();
    let store = config.store.file(&config.state_dir);
    assert_eq!(store.as_deref(), Some(Path::new("/r")));
    for line in ["seal", "seal rotate --listen a", "seal generate --new-key"] {
        assert_eq!(parse(line).unwrap_err().code, 64, "{line}");
    }
}

#[test]
fn keys_of_tenants_are_created_listed_and_revoked() {
    let id = "key_0123456789abcdef0123456789abcdef";
    let acme = crate::id::TenantId::new("acme");
    for (line, expected) in [
        (
            "keys create".to_owned(),
            KeysAction::Create {
                tenant: crate::id::TenantId::new("default"),
                label: String::new(),
                new_tenant: false,
            },
        ),
        (
            "keys create --tenant acme --label ci --new-tenant".to_owned(),
            KeysAction::Create {
                tenant: acme.clone(),
                label: "ci".to_owned(),
                new_tenant: true,
            },
        ),
        ("keys list".to_owned(), KeysAction::List { tenant: None }),
        (
            "keys list --tenant acme".to_owned(),
            KeysAction::List {
                tenant: Some(acme.clone()),
            },
        ),
        (
            format!("keys revoke {id} --tenant acme"),
            KeysAction::Revoke {
                tenant: acme,
                key: crate::id::ApiKeyId::parse(id).unwrap(),
            },
        ),
    ] {
        for (way, is_remote) in [
            ("--state-dir /s --store redb:/r --config c", false),
            ("--server http://a --admin-key-file k --ca r", true),
        ] {
            let Verb::Keys(keys) = parse(&format!("{line} {way}")).unwrap() else {
                panic!("{line}");
            };
            assert_eq!(keys.action, expected, "{line}");
            assert_eq!(keys.server.url.is_some(), is_remote, "{line} {way}");
        }
    }
    for line in [
        "keys",
        "keys create --tenant A",
        "keys create --new-tenant",
        "keys create --server http://a --state-dir /s",
        "keys create --admin-key-file k",
        "keys revoke",
        "keys revoke key_1",
        "keys list --listen a",
    ] {
        assert_eq!(parse(line).unwrap_err().code, 64, "{line}");
    }
}

#[test]
fn audit_lines_are_verified_whole_or_by_file() {
    let Verb::Audit(verify) = parse("audit verify --closed --config c --state-dir /s").unwrap()
    else {
        panic!("another verb");
    };
    assert!(verify.closed && verify.files.is_empty());
    assert_eq!(verify.flags.config(), Some(Path::new("c")));
    let Verb::Audit(verify) = parse("audit verify a b").unwrap() else {
        panic!("another verb");
    };
    assert_eq!(verify.files, [Path::new("a"), Path::new("b")]);
    for line in [
        "audit",
        "audit verify --closed a",
        "audit verify --listen a",
    ] {
        assert_eq!(parse(line).unwrap_err().code, 64, "{line}");
    }
}

#[test]
fn a_root_is_rotated_at_a_time() {
    let rotate = |line: &str| match parse(line) {
        Ok(Verb::Ca(Ca {
            action: CaAction::Rotate(what),
            ..
        })) => what,
        other => panic!("{line}: {other:?}"),
    };
    let at = std::time::UNIX_EPOCH + Duration::from_secs(1_935_630_181);
    assert_eq!(
        rotate("ca rotate --at 2031-05-04T03:03:01Z"),
        Rotate::At(at)
    );
    assert_eq!(
        rotate("ca rotate --at 2031-05-04T05:03:01+02:00 --state-dir /s"),
        Rotate::At(at)
    );
    assert_eq!(rotate("ca rotate --at now"), Rotate::Now);
    assert_eq!(rotate("ca rotate --cancel"), Rotate::Cancel);
    for line in [
        "ca rotate",
        "ca rotate --at tomorrow",
        "ca rotate --at 2031-05-04",
        "ca rotate --at 2031-05-04T03:03:01",
        "ca rotate --at 2031-13-04T03:03:01Z",
        "ca rotate --at 1935630181",
    ] {
        let text = refused(line);
        assert!(
            text.contains("2031-05-04T03:02:01Z (RFC 3339), or now"),
            "{line}: {text}"
        );
    }
    assert!(refused("ca rotate --at now --cancel").contains("--cancel"));
}

#[test]
fn accounts_and_tokens_are_asked_for_by_id() {
    let account = AccountId::parse("583231").unwrap();
    let action = |line: &str| match parse(line) {
        Ok(Verb::Accounts(calls)) => calls.action,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(action("accounts list"), AccountAction::List);
    assert_eq!(
        action("accounts set 583231 --paid false"),
        AccountAction::Set {
            account: account.clone(),
            paid: false
        }
    );
    assert_eq!(
        action("accounts usage 583231 --month 2026-11"),
        AccountAction::Usage {
            account: account.clone(),
            month: Month::parse("2026-11"),
        }
    );
    let Ok(Verb::Token(token)) = parse("token mint --user-id 583231 --sandbox b --ttl 60") else {
        panic!("a token");
    };
    assert_eq!((token.account, token.sandbox.as_str()), (account, "b"));
    assert_eq!(token.life, Duration::from_mins(1));
}
