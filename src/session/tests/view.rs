//! A sealed token opens in its session, for its hosts, in its places, with its prefix, or not.

use super::*;
use crate::policy::Denial;
use crate::sealed_token::SealedToken;

const ALL_PLACES: [Place<'static>; 6] = [
    KEY,
    Place::Header(b"authorization"),
    Place::Header(b"cookie"),
    Place::Query,
    Place::Path,
    Place::Body,
];

fn view(created: &Created, host: &str, scheme: Scheme) -> HostView {
    let view = created.handle.host_view(&target(host), scheme).unwrap();
    Arc::into_inner(view).unwrap()
}

#[tokio::test]
async fn a_token_opens_for_its_hosts_only() {
    let world = World::new();
    let created = world
        .create(form([
            ("A", scoped("value-of-a", &["a.example.com"])),
            (
                "B",
                scoped("value-of-b", &["b.example.com", "c.example.com:80"]),
            ),
        ]))
        .await;
    let [a, b] = ["A", "B"].map(|name| &created.sealed_secrets[name]);
    let cases = [
        ("a.example.com:443", Some("value-of-a"), None),
        ("A.EXAMPLE.COM.:443", Some("value-of-a"), None),
        ("a.example.com:80", Some("value-of-a"), None),
        ("b.example.com:443", None, Some("value-of-b")),
        ("c.example.com:80", None, Some("value-of-b")),
        ("c.example.com:443", None, None),
        ("d.example.com:443", None, None),
        ("x.a.example.com:443", None, None),
        ("example.com:443", None, None),
        ("1.2.3.4:443", None, None),
    ];
    for (host, from_a, from_b) in cases {
        let view = view(&created, host, Scheme::Https);
        assert_eq!(open(&view, a, KEY).as_deref(), from_a, "{host}");
        assert_eq!(open(&view, b, KEY).as_deref(), from_b, "{host}");
    }
}

#[tokio::test]
async fn a_token_opens_in_its_session_only() {
    let world = World::new();
    let (one, two) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
    );
    for (session, own, other) in [(&one, &one, &two), (&two, &two, &one)] {
        let view = view(session, "api.example.com:443", Scheme::Https);
        assert_eq!(
            open(&view, &own.sealed_secrets["OWN"], KEY).as_deref(),
            Some(CANARY)
        );
        assert_eq!(open(&view, &other.sealed_secrets["OWN"], KEY), None);
        let unknown = SealedToken::generate(None).to_string();
        assert_eq!(open(&view, &unknown, KEY), None);
    }
}

#[tokio::test]
async fn a_token_opens_in_its_places_only() {
    let cases: [(&[&str], &[Place<'_>]); 6] = [
        (&["header"], &ALL_PLACES[..2]),
        (&["body"], &[Place::Body]),
        (&["header:Cookie"], &ALL_PLACES[2..3]),
        (&["query"], &[Place::Query]),
        (&["path"], &[Place::Path]),
        (&["query", "header:X-Key"], &[KEY, Place::Query]),
    ];
    for (inject, allowed) in cases {
        let mut it = scoped(CANARY, &["api.example.com"]);
        it.inject = Some(texts(inject));
        let created = World::new().create(form([("OWN", it)])).await;
        let view = view(&created, "api.example.com:443", Scheme::Https);
        for place in ALL_PLACES {
            let opened = open(&view, &created.sealed_secrets["OWN"], place);
            let expected = allowed.contains(&place);
            assert_eq!(opened.is_some(), expected, "{inject:?} {place:?}");
        }
        let body = Arc::new(view).body_of(b"/");
        assert_eq!(body.is_some(), allowed.contains(&Place::Body));
    }
}

#[tokio::test]
async fn only_prefixes_of_tokens_that_may_stand_in_a_body_are_told() {
    let with = |prefix: Option<&str>, place: &str, host: &str| {
        let mut it = scoped(CANARY, &[host]);
        it.inject = Some(texts(&[place]));
        it.prefix = prefix.map(str::to_owned);
        it
    };
    let here = "api.example.com";
    let created = World::new()
        .create(form([
            ("A", with(Some("b_"), "body", here)),
            ("B", with(Some("b_"), "body", here)),
            ("C", with(None, "body", here)),
            ("D", with(Some("a_"), "body", here)),
            ("E", with(Some("header_"), "header", here)),
            ("F", with(Some("other_"), "body", "other.example.com")),
        ]))
        .await;
    let prefixes = |host: &str, scheme| {
        let view = Arc::new(view(&created, host, scheme)).body_of(b"/any/path")?;
        let prefixes = view.body_prefixes().iter();
        Some(
            prefixes
                .map(|it| it.escape_ascii().to_string())
                .collect::<Vec<_>>(),
        )
    };
    let expected = Some(vec!["a_".to_owned(), "b_".to_owned()]);
    assert_eq!(prefixes("api.example.com:443", Scheme::Https), expected);
    for (host, scheme) in [
        ("else.example.com:443", Scheme::Https),
        ("api.example.com:80", Scheme::Http),
    ] {
        assert_eq!(prefixes(host, scheme), None, "{host}");
    }
}

#[tokio::test]
async fn a_prefix_belongs_to_its_token() {
    let mut it = scoped(CANARY, &["api.example.com"]);
    it.prefix = Some("ghp_".to_owned());
    let created = World::new().create(form([("OWN", it)])).await;
    let token = &created.sealed_secrets["OWN"];
    let bare = token.strip_prefix("ghp_").unwrap();
    assert!(bare.starts_with("SEALED_"));
    let view = view(&created, "api.example.com:443", Scheme::Https);
    for (before, opens) in [
        ("ghp_", true),
        ("x ghp_", true),
        ("ghp_ghp_", true),
        ("", false),
        ("ghp", false),
        ("GHP_", false),
        ("ghp_ ", false),
        ("ghp_x", false),
    ] {
        let opened = open(&view, &format!("{before}{bare}"), KEY);
        assert_eq!(opened.is_some(), opens, "{before:?}");
    }
    let id = TokenId::read(&bare.as_bytes()[MARKER.len()..]).unwrap();
    let opening = view.open(id, b"token ghp_", KEY).unwrap();
    assert_eq!(opening.prefix_length, 4);
    assert_eq!(&**opening.name, "OWN");
}

#[tokio::test]
async fn a_token_without_a_prefix_opens_behind_anything() {
    let created = World::new().create(one_secret()).await;
    let view = view(&created, "api.example.com:443", Scheme::Https);
    for before in ["", "Bearer ", "ghp_", "SEALED_"] {
        let bare = created.sealed_secrets["OWN"].strip_prefix("SEALED_");
        let id = TokenId::read(bare.unwrap().as_bytes()).unwrap();
        let opening = view.open(id, before.as_bytes(), KEY).unwrap();
        assert_eq!(opening.prefix_length, 0, "{before}");
    }
}

#[tokio::test]
async fn plain_http_opens_nothing_unless_the_session_says_so() {
    for (allow_plaintext, opens) in [(None, false), (Some(false), false), (Some(true), true)] {
        let created = World::new()
            .create(Form {
                allow_plaintext,
                ..one_secret()
            })
            .await;
        let token = &created.sealed_secrets["OWN"];
        let plain = view(&created, "api.example.com:80", Scheme::Http);
        assert_eq!(plain.grant().scheme(), Scheme::Http);
        for place in ALL_PLACES {
            let allowed = opens && ALL_PLACES[..2].contains(&place);
            assert_eq!(open(&plain, token, place).is_some(), allowed, "{place:?}");
        }
        let tls = view(&created, "api.example.com:443", Scheme::Https);
        assert_eq!(tls.grant().scheme(), Scheme::Https);
        assert!(open(&tls, token, KEY).is_some());
    }
}

#[tokio::test]
async fn an_unscoped_secret_opens_wherever_egress_leads() {
    let options = Options {
        unscoped_secrets: true,
        ..options()
    };
    let world = World::with(options, Keyring::generate(), Sink::discard());
    let created = world
        .create(Form {
            allowed_egress: Some(texts(&["*.example.com"])),
            ..form([("OWN", secret(CANARY))])
        })
        .await;
    assert_eq!(created.warnings.len(), 1);
    let token = &created.sealed_secrets["OWN"];
    let opened = open_for(&created.handle, "any.example.com:443", token);
    assert_eq!(opened.as_deref(), Some(CANARY));
    let elsewhere = target("any.example.org:443");
    let denial = created.handle.host_view(&elsewhere, Scheme::Https);
    assert_eq!(denial.unwrap_err(), Denial::HostNotAllowed);
}

#[tokio::test]
async fn there_is_no_view_of_what_may_not_be_reached() {
    let created = World::new()
        .create(Form {
            allowed_egress: Some(texts(&["api.example.com", "10.0.0.1"])),
            ..one_secret()
        })
        .await;
    for (host, code) in [
        ("api.example.com:8443", "port_not_allowed"),
        ("b.example.com:443", "host_not_allowed"),
        ("10.0.0.1:443", "destination_ip_prohibited"),
    ] {
        for scheme in [Scheme::Http, Scheme::Https] {
            let denial = created.handle.host_view(&target(host), scheme);
            assert_eq!(denial.unwrap_err().code(), code, "{host}");
        }
    }
    let view = view(&created, "api.example.com:443", Scheme::Https);
    assert_eq!(view.grant().target(), &target("api.example.com:443"));
    assert_eq!(view.version(), 1);
}
