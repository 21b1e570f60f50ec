//! What a form means: which hosts and places a secret has, and where a session may go.

use super::spec::{bare, faults, only, parse, with};
use super::*;
use crate::policy::{Denial, Entry};
use crate::session::{FieldError, Spec};

#[test]
fn places_mean_what_they_say() {
    let cookie = Place::Header(b"Cookie");
    let cases: [(&[&str], &[Place<'_>]); 6] = [
        (&["header"], &[KEY]),
        (&["header:Cookie"], &[cookie]),
        (&["header", "header:COOKIE"], &[KEY, cookie]),
        (&["query"], &[Place::Query]),
        (&["path"], &[Place::Path]),
        (
            &["path", "query", "header"],
            &[KEY, Place::Query, Place::Path],
        ),
    ];
    for (list, allowed) in cases {
        let own = with(|it| it.inject = Some(texts(list)));
        let session = Form {
            inject: Some(texts(list)),
            ..with(|_| ())
        };
        let wins = Form {
            inject: Some(texts(&["query", "path", "header", "header:Cookie"])),
            ..own.clone()
        };
        for form in [own, session, wins] {
            let (it, _) = only(&form, &options());
            for place in [KEY, cookie, Place::Query, Place::Path, Place::Body] {
                let expected = allowed.contains(&place);
                assert_eq!(it.places.allow(place), expected, "{list:?} {place:?}");
            }
            assert_eq!(*it.inject, texts(list));
        }
    }
    let (it, _) = only(&with(|_| ()), &options());
    assert!(it.places.allow(KEY) && !it.places.allow(Place::Query));
    assert_eq!(*it.inject, ["header"]);
}

#[test]
fn the_catalogue_narrows_any_header_to_its_own() {
    let named = |inject: Option<&[&str]>| SecretForm {
        inject: inject.map(texts),
        ..secret(CANARY)
    };
    let cases: [(Option<&[&str]>, &[&str]); 5] = [
        (None, &["authorization", "x-api-key"]),
        (Some(&["header"]), &["authorization", "x-api-key"]),
        (Some(&["header:X-Key"]), &["x-key"]),
        (
            Some(&["header", "header:X-Key"]),
            &["authorization", "x-api-key", "x-key"],
        ),
        (Some(&["query"]), &[]),
    ];
    for (inject, allowed) in cases {
        // A scope of its own does not widen it.
        for hosts in [None, Some(texts(&["own.example"]))] {
            let it = SecretForm {
                hosts,
                ..named(inject)
            };
            let (it, _) = only(&form([("ANTHROPIC_API_KEY", it)]), &options());
            for name in ["authorization", "x-api-key", "x-key", "x-other", "cookie"] {
                let expected = allowed.contains(&name);
                let place = Place::Header(name.as_bytes());
                assert_eq!(it.places.allow(place), expected, "{inject:?} {name}");
            }
        }
    }
    // The list of the session is narrowed for this secret, and for no other.
    let two = form([
        ("ANTHROPIC_API_KEY", secret(CANARY)),
        ("OWN", scoped(CANARY, &["a.example"])),
    ]);
    let spec = parse(&two).unwrap();
    let allows = |at: usize| spec.secrets[at].places.allow(KEY);
    assert_eq!([allows(0), allows(1)], [false, true]);
}

/// Who gives a scope: the secret's own list, then the session's, then the catalogue.
#[test]
fn the_nearest_scope_counts_alone() {
    let hosts = ["own.example", "session.example", "api.anthropic.com"];
    let cases = [
        ("OWN", true, true, Some("own.example")),
        ("OWN", true, false, Some("own.example")),
        ("OWN", false, true, Some("session.example")),
        ("OWN", false, false, None),
        ("ANTHROPIC_API_KEY", true, true, Some("own.example")),
        ("ANTHROPIC_API_KEY", false, true, Some("session.example")),
        ("ANTHROPIC_API_KEY", false, false, Some("api.anthropic.com")),
    ];
    for (name, own, session, expected) in cases {
        let it = SecretForm {
            hosts: own.then(|| texts(&["own.example"])),
            ..secret(CANARY)
        };
        let form = Form {
            secret_hosts: session.then(|| texts(&["session.example"])),
            // What may be reached never says where a secret may go.
            allowed_egress: Some(texts(&hosts)),
            ..form([(name, it)])
        };
        let Some(expected) = expected else {
            assert_eq!(faults(&form), [format!("secrets.{name} secret_unscoped")]);
            continue;
        };
        let (it, warnings) = only(&form, &options());
        for host in hosts {
            let covered = it.scope.covers(&target(&format!("{host}:443")));
            assert_eq!(covered, host == expected, "{name} {own} {session} {host}");
        }
        assert_eq!(*it.hosts, [expected]);
        assert!(warnings.is_empty());
    }
}

#[test]
fn a_similar_name_is_not_a_known_name() {
    for name in [
        "anthropic_api_key",
        "ANTHROPIC_API_KEY_2",
        "ANTHROPIC-API-KEY",
    ] {
        let found = faults(&form([(name, secret(CANARY))]));
        assert_eq!(found, [format!("secrets.{name} secret_unscoped")]);
    }
}

#[test]
fn scopes_ignore_case_and_ports_that_are_not_written() {
    let (it, _) = only(
        &with(|it| it.hosts = Some(texts(&["API.Example.com.", "b.example:8443"]))),
        &options(),
    );
    let cases = [
        ("api.example.com:443", true),
        ("api.example.com:9000", true),
        ("x.api.example.com:443", false),
        ("example.com:443", false),
        ("b.example:8443", true),
        ("b.example:443", false),
    ];
    for (text, expected) in cases {
        assert_eq!(it.scope.covers(&target(text)), expected, "{text}");
    }
}

#[test]
fn an_empty_list_never_allows() {
    let danger = Options {
        unscoped_secrets: true,
        any_port: true,
        ..options()
    };
    for name in ["OWN", "ANTHROPIC_API_KEY"] {
        for options in [options(), danger.clone()] {
            let own = form([(name, scoped(CANARY, &[]))]);
            let session = Form {
                secret_hosts: Some(Vec::new()),
                ..form([(name, secret(CANARY))])
            };
            let beside = Form {
                secret_hosts: Some(texts(&["a.example"])),
                ..own.clone()
            };
            let path = format!("secrets.{name}.hosts");
            for (form, field) in [(own, &*path), (beside, &path), (session, "secret_hosts")] {
                let errors = Spec::parse(&form, &options).unwrap_err();
                assert_eq!(errors.len(), 1, "{errors:?}");
                let FieldError {
                    field: found, code, ..
                } = &errors[0];
                assert_eq!((found.as_str(), *code), (field, "secret_unscoped"));
            }
        }
    }
    // Where no secret depends on it, an empty list of the session is nothing but empty.
    let idle = Form {
        secret_hosts: Some(Vec::new()),
        ..with(|_| ())
    };
    assert!(faults(&idle).is_empty());
    let none = parse(&bare(|form| form.allowed_egress = Some(Vec::new()))).unwrap();
    let denial = none.egress.decide(&target("a.example:443"), &closed());
    assert_eq!(denial, Err(Denial::HostNotAllowed));
}

#[test]
fn the_danger_setting_opens_only_what_nothing_else_scopes() {
    let danger = Options {
        unscoped_secrets: true,
        ..options()
    };
    let (it, warnings) = only(&form([("OWN", secret(CANARY))]), &danger);
    assert!(it.scope.is_any_host());
    assert_eq!(*it.hosts, ["*"]);
    assert_eq!(warnings, ["secret_unscoped"]);
    for form in [
        form([("OWN", scoped(CANARY, &["a.example"]))]),
        form([("ANTHROPIC_API_KEY", secret(CANARY))]),
        Form {
            secret_hosts: Some(texts(&["a.example"])),
            ..form([("OWN", secret(CANARY))])
        },
    ] {
        let (it, warnings) = only(&form, &danger);
        assert!(!it.scope.is_any_host());
        assert!(warnings.is_empty());
    }
}

#[test]
fn names_that_sign_are_refused_whatever_they_bring() {
    let options = Options {
        unscoped_secrets: true,
        ..options()
    };
    let catalogue = Arc::clone(&options.catalogue);
    let mut signs = 0;
    for (name, entry) in catalogue.iter() {
        let Entry::Signs { reason } = entry else {
            continue;
        };
        signs += 1;
        for it in [secret(CANARY), scoped(CANARY, &["a.example"])] {
            let errors = Spec::parse(&form([(name, it)]), &options).unwrap_err();
            let expected = FieldError::new(format!("secrets.{name}"), "secret_signs", &**reason);
            assert_eq!(errors, [expected]);
        }
    }
    assert!(signs > 0);
    assert!(catalogue.lookup("AWS_SECRET_ACCESS_KEY").is_some());
}

#[test]
fn egress_is_what_was_listed() {
    let dev = Options {
        any_port: true,
        ..options()
    };
    let listed = Some(texts(&["a.example", "*.b.example", "c.example:8443"]));
    // The list, the target, whether it may be reached, and whether it may with any port.
    let cases = [
        (None, "a.example:443", true, true),
        (None, "a.example:80", true, true),
        (None, "a.example:8443", false, true),
        (None, "10.0.0.1:443", false, false),
        (listed.clone(), "a.example:443", true, true),
        (listed.clone(), "a.example:22", false, true),
        (listed.clone(), "x.a.example:443", false, false),
        (listed.clone(), "b.example:443", true, true),
        (listed.clone(), "x.y.b.example:80", true, true),
        (listed.clone(), "c.example:8443", true, true),
        (listed.clone(), "c.example:443", false, false),
        (listed, "d.example:443", false, false),
    ];
    for (list, host, usual, any_port) in cases {
        let form = bare(|form| form.allowed_egress = list);
        for (options, expected) in [(options(), usual), (dev.clone(), any_port)] {
            let spec = Spec::parse(&form, &options).unwrap();
            let decided = spec.egress.decide(&target(host), &closed());
            assert_eq!(decided.is_ok(), expected, "{host} {options:?}");
        }
    }
}

#[test]
fn what_is_passed_through_lies_in_the_egress_and_meets_no_secret() {
    let asked = |egress: Option<&[&str]>, hosts: &[&str]| Form {
        allowed_egress: egress.map(texts),
        passthrough_hosts: texts(hosts),
        secret_hosts: Some(texts(&["shared.example.com"])),
        ..form([
            ("A", scoped(CANARY, &["a.example.com:8443"])),
            ("B", secret(CANARY)),
            ("C", secret(CANARY)),
        ])
    };
    let within: &[&str] = &["*.example.com", "a.example.com:8443"];
    let cases: [(_, &[&str], _); 11] = [
        (None, &[], ""),
        (None, &["pinned.example.com", "*.pinned.org"], ""),
        (
            Some(within),
            &["pinned.example.com", "*.p.example.com:443"],
            "",
        ),
        (
            Some(within),
            &["pinned.org"],
            "passthrough_hosts[0] not_in_allowed_egress",
        ),
        (
            Some(within),
            &["*.org.uk"],
            "passthrough_hosts[0] not_in_allowed_egress",
        ),
        (
            None,
            &["pinned.org:8443"],
            "passthrough_hosts[0] not_in_allowed_egress",
        ),
        (
            None,
            &["x.org", "shared.example.com"],
            "passthrough_hosts[1] overlaps_secret",
        ),
        (
            None,
            &["*.example.com"],
            "passthrough_hosts[0] overlaps_secret",
        ),
        (None, &["a.example.com:443"], ""),
        (
            Some(within),
            &["a.example.com:8443"],
            "passthrough_hosts[0] overlaps_secret",
        ),
        (
            None,
            &["x.org", "*", "10.0.0.0/8"],
            "passthrough_hosts[1] bad_host, passthrough_hosts[2] bad_host",
        ),
    ];
    for (egress, hosts, expected) in cases {
        let faults = faults(&asked(egress, hosts)).join(", ");
        assert_eq!(faults, expected, "{egress:?} {hosts:?}");
    }
    // What may go everywhere meets everything, and the catalogue's hosts count as well.
    let unscoped = Options {
        unscoped_secrets: true,
        ..options()
    };
    for (name, hosts, unscoped, expected) in [
        ("NEW", "pinned.org", &unscoped, true),
        ("ANTHROPIC_API_KEY", "pinned.org", &options(), false),
        ("ANTHROPIC_API_KEY", "*.anthropic.com", &options(), true),
    ] {
        let form = Form {
            passthrough_hosts: texts(&[hosts]),
            ..form([(name, secret(CANARY))])
        };
        let errors = Spec::parse(&form, unscoped).err().unwrap_or_default();
        let overlaps = errors.iter().any(|error| error.code == "overlaps_secret");
        assert_eq!(overlaps, expected, "{name} {hosts}");
    }
}
