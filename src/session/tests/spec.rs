//! What a form may say: every limit with its neighbours, every bad field by its path.

use super::*;
use crate::session::{BAD_FIELDS_LIMIT, FieldError, SecretSpec, Spec};

pub(super) fn parse(form: &Form) -> Result<Spec, Vec<FieldError>> {
    Spec::parse(form, &options())
}

/// Lists what is bad about a form as `field code`.
pub(super) fn faults(form: &Form) -> Vec<String> {
    let errors = parse(form).err().unwrap_or_default();
    let shown = errors.iter().map(|e| format!("{} {}", e.field, e.code));
    shown.collect()
}

/// A form with a secret that has nothing wrong, after a change.
pub(super) fn with(change: impl FnOnce(&mut SecretForm)) -> Form {
    let mut it = scoped(CANARY, &["api.example.com"]);
    change(&mut it);
    form([("X", it)])
}

/// A form without secrets, after a change.
pub(super) fn bare(change: impl FnOnce(&mut Form)) -> Form {
    let mut form = Form::default();
    change(&mut form);
    form
}

/// Parses a form of one secret that has nothing wrong.
pub(super) fn only(form: &Form, options: &Options) -> (SecretSpec, Vec<&'static str>) {
    let mut spec = Spec::parse(form, options).unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(spec.secrets.len(), 1);
    let warnings = spec.warnings.iter().map(|warning| warning.code).collect();
    (spec.secrets.remove(0), warnings)
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("h{n}.example.com")).collect()
}

#[track_caller]
fn each_has(cases: impl IntoIterator<Item = (Form, &'static str)>) {
    for (at, (form, expected)) in cases.into_iter().enumerate() {
        assert_eq!(faults(&form).join(", "), expected, "case {at}");
    }
}

#[test]
fn an_empty_form_is_a_session_without_secrets() {
    let spec = parse(&Form::default()).unwrap();
    assert!(spec.secrets.is_empty() && spec.warnings.is_empty());
    assert_eq!(spec.ttl.as_secs(), 86_400);
    assert_eq!(spec.max_lifetime.as_secs(), 604_800);
    assert!(!spec.allow_plaintext);
}

#[test]
fn values_have_a_least_and_a_most_length() {
    let long = |bytes| with(|it| it.value = Secret::new(vec![b'x'; bytes]));
    each_has([
        (long(0), "secrets.X.value secret_too_short"),
        (long(7), "secrets.X.value secret_too_short"),
        (long(8), ""),
        (long(8192), ""),
        (long(8193), "secrets.X.value secret_too_long"),
    ]);
}

#[test]
fn peer_27_values_have_no_control_character() {
    for byte in 0..=u8::MAX {
        let value = [b"canary-".as_slice(), &[byte], b"-canary"].concat();
        let faults = faults(&with(|it| it.value = Secret::new(value)));
        let bad = byte != b'\t' && byte.is_ascii_control();
        let expected = ["secrets.X.value secret_has_control_character"];
        assert_eq!(faults, expected[..usize::from(bad)], "{byte:#04x}");
    }
    let both = with(|it| it.value = Secret::new(b"a\r\n".to_vec()));
    let expected = [
        "secrets.X.value secret_too_short",
        "secrets.X.value secret_has_control_character",
    ];
    assert_eq!(faults(&both), expected);
}

#[test]
fn names_are_plain_and_short() {
    let long = "x".repeat(128);
    let longer = "x".repeat(129);
    let cases = [
        ("A", true),
        ("a-b_c.D9", true),
        (&*long, true),
        (&*longer, false),
        ("", false),
        ("a b", false),
        ("a/b", false),
        ("a\n", false),
        ("\u{e9}", false),
        ("a\"", false),
    ];
    for (name, ok) in cases {
        let found = faults(&form([(name, scoped(CANARY, &["a.example"]))]));
        let expected = (!ok).then(|| format!("secrets.{name} bad_name"));
        assert_eq!(found, Vec::from_iter(expected), "{name}");
    }
}

#[test]
fn prefixes_are_plain_and_short() {
    let long = "x".repeat(64);
    let longer = "x".repeat(65);
    let cases = [
        ("g", true),
        ("ghp_", true),
        ("A.b~c-9_", true),
        (&*long, true),
        (&*longer, false),
        ("", false),
        ("a b", false),
        ("a:b", false),
        ("a/", false),
        ("\u{e9}", false),
    ];
    for (prefix, ok) in cases {
        let form = with(|it| it.prefix = Some(prefix.to_owned()));
        let expected = ["secrets.X.prefix bad_prefix"];
        assert_eq!(faults(&form), expected[usize::from(ok)..], "{prefix}");
        if ok {
            let (it, _) = only(&form, &options());
            assert_eq!(it.prefix.unwrap().as_str(), prefix);
        }
    }
}

#[test]
fn there_are_at_most_a_hundred_secrets() {
    let many = |count: usize| Form {
        secrets: (0..count)
            .map(|n| (format!("S{n}"), scoped(CANARY, &["a.example"])))
            .collect(),
        ..Form::default()
    };
    each_has([(many(100), ""), (many(101), "secrets too_many")]);
    assert_eq!(parse(&many(100)).unwrap().secrets.len(), 100);
}

#[test]
fn all_lists_together_have_at_most_a_thousand_hosts() {
    let spread = |own: usize, session: usize, egress: usize| Form {
        secret_hosts: Some(numbered(session)),
        allowed_egress: Some(numbered(egress)),
        ..with(|it| it.hosts = Some(numbered(own)))
    };
    let passed = |count: usize, name: &str| Form {
        passthrough_hosts: (0..count).map(|n| format!("p{n}.{name}")).collect(),
        ..with(|it| it.hosts = Some(vec!["p0.meets.example".to_owned()]))
    };
    let too_many = "allowed_egress too_many";
    each_has([
        (spread(1000, 0, 0), ""),
        (spread(1001, 0, 0), too_many),
        (spread(1, 999, 0), ""),
        (spread(1, 1000, 0), too_many),
        (spread(1, 0, 999), ""),
        (spread(1, 0, 1000), too_many),
        (spread(300, 300, 400), ""),
        (spread(300, 301, 400), too_many),
        (passed(999, "other.example"), ""),
        (
            passed(999, "meets.example"),
            "passthrough_hosts[0] overlaps_secret",
        ),
        // What is too much is not compared.
        (passed(1000, "meets.example"), too_many),
    ]);
}

#[test]
fn a_list_has_at_most_a_hundred_places() {
    let places = |count: usize| Some((0..count).map(|n| format!("header:X-{n}")).collect());
    // What is beyond the limit is not looked at.
    let mut last_is_bad: Vec<String> = places(100).unwrap();
    last_is_bad.push("cookie".to_owned());
    each_has([
        (
            bare(|form| form.inject = Some(last_is_bad)),
            "inject too_many",
        ),
        (with(|it| it.inject = places(100)), ""),
        (
            with(|it| it.inject = places(101)),
            "secrets.X.inject too_many",
        ),
        (bare(|form| form.inject = places(100)), ""),
        (bare(|form| form.inject = places(101)), "inject too_many"),
    ]);
}

#[test]
fn lifetimes_have_a_range() {
    let lives = |ttl: Option<u64>, most: Option<u64>| {
        bare(|form| {
            form.ttl_seconds = ttl;
            form.max_lifetime_seconds = most;
        })
    };
    let ttl = "ttl_seconds out_of_range";
    let most = "max_lifetime_seconds out_of_range";
    let both = "ttl_seconds out_of_range, max_lifetime_seconds out_of_range";
    each_has([
        (lives(Some(0), None), ttl),
        (lives(Some(59), None), ttl),
        (lives(Some(60), None), ""),
        (lives(Some(604_800), None), ""),
        (lives(Some(604_801), None), ttl),
        (lives(Some(2_592_000), Some(2_592_000)), ""),
        (lives(Some(2_592_001), Some(2_592_000)), ttl),
        (lives(Some(u64::MAX), Some(2_592_000)), ttl),
        (lives(None, Some(59)), most),
        (lives(None, Some(60)), ""),
        (lives(None, Some(2_592_000)), ""),
        (lives(None, Some(2_592_001)), most),
        (lives(None, Some(u64::MAX)), most),
        (lives(Some(120), Some(120)), ""),
        (lives(Some(121), Some(120)), ttl),
        (lives(Some(60), Some(59)), most),
        (lives(Some(59), Some(59)), both),
    ]);
}

#[test]
fn lifetimes_that_are_not_given_are_the_usual_ones() {
    let cases = [
        (None, None, 86_400, 604_800),
        (None, Some(3600), 3600, 3600),
        (None, Some(86_401), 86_400, 86_401),
        (Some(60), None, 60, 604_800),
        (Some(90_000), Some(100_000), 90_000, 100_000),
    ];
    for (ttl_seconds, max_lifetime_seconds, ttl, most) in cases {
        let spec = parse(&Form {
            ttl_seconds,
            max_lifetime_seconds,
            ..Form::default()
        });
        let spec = spec.unwrap();
        assert_eq!(spec.ttl, Duration::from_secs(ttl));
        assert_eq!(spec.max_lifetime, Duration::from_secs(most));
    }
}

#[test]
fn metadata_is_small() {
    let entries = |entries: usize, key: usize, value: usize| {
        bare(|form| {
            form.metadata = (0..entries)
                .map(|n| (format!("{n:0key$}"), "x".repeat(value)))
                .collect();
        })
    };
    let too_large = "metadata too_large";
    each_has([
        (entries(50, 1024, 1024), ""),
        (entries(51, 2, 0), too_large),
        (entries(1, 1025, 0), too_large),
        (entries(1, 1, 1025), too_large),
        (entries(1, 0, 0), ""),
    ]);
}

#[test]
fn every_bad_host_is_named_by_its_place() {
    let bad = [
        "",
        "*",
        "a b.example",
        "a..example",
        "10.0.0.0/8",
        "127.1",
        "a.example:0",
        "a.example:",
        "https://a.example",
        "\u{e9}.example",
    ];
    for text in bad {
        let list = Some(texts(&["a.example", text, "b.example"]));
        each_has([
            (
                with(|it| it.hosts.clone_from(&list)),
                "secrets.X.hosts[1] bad_host",
            ),
            (
                bare(|form| form.secret_hosts.clone_from(&list)),
                "secret_hosts[1] bad_host",
            ),
            (
                bare(|form| form.allowed_egress.clone_from(&list)),
                "allowed_egress[1] bad_host",
            ),
        ]);
    }
    // A wildcard is for what may be reached, never for where a secret goes.
    let wild = Some(texts(&["*.b.example"]));
    each_has([
        (
            with(|it| it.hosts.clone_from(&wild)),
            "secrets.X.hosts[0] bad_host",
        ),
        (
            bare(|form| form.secret_hosts.clone_from(&wild)),
            "secret_hosts[0] bad_host",
        ),
        (bare(|form| form.allowed_egress.clone_from(&wild)), ""),
    ]);
    let tld = Some(texts(&["*.example", "a.example", "*"]));
    let found = faults(&bare(|form| form.allowed_egress = tld));
    let expected = ["allowed_egress[0] bad_host", "allowed_egress[2] bad_host"];
    assert_eq!(found, expected);
}

#[test]
fn a_bad_list_of_the_session_is_told_once() {
    let form = Form {
        secret_hosts: Some(texts(&["*"])),
        inject: Some(texts(&["cookie"])),
        ..form([("A", secret(CANARY)), ("B", secret(CANARY))])
    };
    let expected = ["secret_hosts[0] bad_host", "inject[0] bad_place"];
    assert_eq!(faults(&form), expected);
}

#[test]
fn places_are_the_four_that_there_are() {
    let cases: [(&[&str], &[&str]); 14] = [
        (&["header"], &[]),
        (&["query", "path"], &[]),
        (&["header", "header:X-Own", "query", "path"], &[]),
        (&["header:Cookie"], &[]),
        (&["header:!#$%&'*+-.^_`|~9"], &[]),
        (&[], &["empty_list"]),
        (&["header", "body"], &[]),
        (&["Header"], &["[0] bad_place"]),
        (&["", "cookie"], &["[0] bad_place", "[1] bad_place"]),
        (&["header:"], &["[0] bad_header"]),
        (&["header: X"], &["[0] bad_header"]),
        (&["header:X:Y"], &["[0] bad_header"]),
        (&["header:X\r\n"], &["[0] bad_header"]),
        (&["header:Host", "query"], &["[0] header_not_allowed"]),
    ];
    for (list, expected) in cases {
        let at = |path: &str| -> Vec<String> {
            let gap = |fault: &&str| if fault.starts_with('[') { "" } else { " " };
            let faults = expected.iter();
            faults
                .map(|fault| format!("{path}{}{fault}", gap(fault)))
                .collect()
        };
        let own = with(|it| it.inject = Some(texts(list)));
        assert_eq!(faults(&own), at("secrets.X.inject"), "{list:?}");
        let session = bare(|form| form.inject = Some(texts(list)));
        assert_eq!(faults(&session), at("inject"), "{list:?}");
    }
}

#[test]
fn names_of_fields_are_short() {
    let named =
        |length: usize| with(|it| it.inject = Some(vec![format!("header:{}", "x".repeat(length))]));
    each_has([
        (named(128), ""),
        (named(129), "secrets.X.inject[0] bad_header"),
    ]);
}

#[test]
fn fields_that_route_or_frame_hold_no_secret() {
    let refused = [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "HTTP2-Settings",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "Proxy-Connection",
        "Proxy-Anything",
    ];
    for name in refused {
        for name in [name.to_lowercase(), name.to_uppercase(), name.to_owned()] {
            let form = with(|it| it.inject = Some(vec![format!("header:{name}")]));
            let expected = ["secrets.X.inject[0] header_not_allowed"];
            assert_eq!(faults(&form), expected, "{name}");
        }
    }
    for name in ["Authorization", "X-Host", "Proxy", "Hosts", "Cookie"] {
        let form = with(|it| it.inject = Some(vec![format!("header:{name}")]));
        assert!(faults(&form).is_empty(), "{name}");
    }
}

#[test]
fn all_that_is_bad_is_told_at_once() {
    let bad = SecretForm {
        hosts: Some(texts(&["ok.example", "*"])),
        inject: Some(texts(&["body", "header:Host"])),
        prefix: Some("a b".to_owned()),
        ..secret("short")
    };
    let unscoped = SecretForm {
        inject: Some(texts(&["nowhere"])),
        prefix: Some(String::new()),
        ..secret("short")
    };
    let form = Form {
        secret_hosts: None,
        allowed_egress: Some(texts(&["*"])),
        inject: Some(Vec::new()),
        ttl_seconds: Some(1),
        max_lifetime_seconds: Some(2),
        metadata: [("x".repeat(1025), String::new())].into(),
        ..form([
            ("A B", bad.clone()),
            ("AWS_SECRET_ACCESS_KEY", bad),
            ("UNSCOPED", unscoped),
        ])
    };
    let mut found = faults(&form);
    found.sort_unstable();
    let mut expected = [
        "allowed_egress[0] bad_host",
        "inject empty_list",
        "max_lifetime_seconds out_of_range",
        "metadata too_large",
        "secrets.A B bad_name",
        "secrets.A B.hosts[1] bad_host",
        "secrets.A B.inject[1] header_not_allowed",
        "secrets.A B.prefix bad_prefix",
        "secrets.A B.value secret_too_short",
        "secrets.AWS_SECRET_ACCESS_KEY secret_signs",
        "secrets.AWS_SECRET_ACCESS_KEY.hosts[1] bad_host",
        "secrets.AWS_SECRET_ACCESS_KEY.inject[1] header_not_allowed",
        "secrets.AWS_SECRET_ACCESS_KEY.prefix bad_prefix",
        "secrets.AWS_SECRET_ACCESS_KEY.value secret_too_short",
        "secrets.UNSCOPED secret_unscoped",
        "secrets.UNSCOPED.inject[0] bad_place",
        "secrets.UNSCOPED.prefix bad_prefix",
        "secrets.UNSCOPED.value secret_too_short",
        "ttl_seconds out_of_range",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn the_list_of_bad_fields_has_an_end_and_begins_with_the_counts() {
    let form = Form {
        secret_hosts: Some(vec!["*".to_owned(); 5000]),
        ..Form::default()
    };
    let found = faults(&form);
    assert_eq!(found.len(), BAD_FIELDS_LIMIT);
    assert_eq!(found[0], "allowed_egress too_many");
    assert_eq!(found[1], "secret_hosts[0] bad_host");
}

#[test]
fn no_error_and_no_warning_repeats_a_value() {
    let bad = SecretForm {
        value: Secret::new(b"canary\r\n".to_vec()),
        hosts: Some(texts(&["canary/8", "*.canary", "canary canary"])),
        inject: Some(texts(&["canary", "header:canary canary", "header:"])),
        prefix: Some("canary canary".to_owned()),
    };
    let form = Form {
        allowed_egress: Some(texts(&["canary canary"])),
        secret_hosts: Some(texts(&["canary canary"])),
        metadata: [("canary".to_owned(), "canary".repeat(1000))].into(),
        ..form([("X", bad)])
    };
    let errors = parse(&form).unwrap_err();
    assert!(errors.len() >= 10, "{errors:?}");
    assert!(!format!("{errors:?}").contains("canary"), "{errors:?}");
    let danger = Options {
        unscoped_secrets: true,
        ..options()
    };
    let spec = Spec::parse(&super::form([("X", secret(CANARY))]), &danger).unwrap();
    assert!(!format!("{spec:?}").contains("canary"), "{spec:?}");
}
