//! Captured tokens: whose they are, where they open, what replaces them, and what ends them.

use zeroize::Zeroizing;

use super::restarts::{keys, proven};
use super::*;
use crate::policy::TokenEndpoint;
use crate::seal::KeyId;
use crate::session::CAPTURED_LIMIT;
use crate::session::Error as SessionError;
use crate::swap::TokenAnswer;

const TOKEN: &[u8] = b"/v1/oauth/token";
const CLAUDE: &str = "platform.claude.com:443";
const BEARER: Place<'static> = Place::Header(b"authorization");

fn named(entries: &[(&str, Option<&[&str]>)]) -> Vec<CaptureForm> {
    let entry = |(url, hosts): &(&str, Option<&[&str]>)| CaptureForm {
        url: (*url).to_owned(),
        hosts: hosts.map(texts),
    };
    entries.iter().map(entry).collect()
}

fn watching(capture: impl Into<Option<Vec<CaptureForm>>>) -> Form {
    Form {
        capture: capture.into(),
        ..one_secret()
    }
}

/// Finds the endpoint that may answer a request.
fn endpoint(handle: &SessionHandle, host: &str, path: &[u8]) -> Option<Arc<TokenEndpoint>> {
    let view = handle.host_view(&target(host), Scheme::Https).unwrap();
    view.endpoint(path).map(Arc::clone)
}

fn answer(body: &str) -> TokenAnswer {
    TokenAnswer::read(None, Zeroizing::new(body.into())).unwrap()
}

impl World {
    /// Captures an answer of an endpoint and returns the sealed tokens.
    async fn try_capture(
        &self,
        handle: &SessionHandle,
        (host, path): (&str, &[u8]),
        body: &str,
    ) -> Result<Vec<String>, SessionError> {
        let endpoint = endpoint(handle, host, path).expect("an endpoint");
        let answer = answer(body);
        self.sessions
            .capture(handle, &endpoint, answer.tokens())
            .await
    }

    async fn capture(&self, handle: &SessionHandle, host: &str, body: &str) -> Vec<String> {
        let taken = self.try_capture(handle, (host, TOKEN), body).await;
        taken.unwrap()
    }
}

/// Opens a token in the body of a request for a path.
fn open_in_body(handle: &SessionHandle, host: &str, path: &[u8], token: &str) -> Option<String> {
    let view = handle.host_view(&target(host), Scheme::Https).unwrap();
    let (before, digits) = token.split_once("SEALED_")?;
    let id = TokenId::read(digits.as_bytes())?;
    let view = view.body_of(path)?;
    let opening = view.open(id, before.as_bytes(), Place::Body)?;
    Some(String::from_utf8(opening.secret.expose().to_vec()).unwrap())
}

fn open_at(handle: &SessionHandle, host: &str, place: Place<'_>, token: &str) -> Option<String> {
    let view = handle.host_view(&target(host), Scheme::Https).unwrap();
    open(&view, token, place)
}

const BODY: &str = r#"{"access_token":"sk-ant-oat01-one","refresh_token":"sk-ant-ort01-two",
    "id_token":"id-three-0123456789"}"#;

#[tokio::test]
async fn each_kind_opens_in_its_place_at_its_hosts_and_nowhere_else() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let handle = &created.handle;
    let tokens = world.capture(handle, CLAUDE, BODY).await;
    let [access, refresh, id] = &tokens[..] else {
        panic!("{tokens:?}");
    };
    assert!(access.starts_with("sk-ant-oat01-SEALED_"), "{access}");
    assert!(refresh.starts_with("sk-ant-ort01-SEALED_"), "{refresh}");
    assert!(id.starts_with("SEALED_"), "{id}");
    let hosts = ["api.anthropic.com:443", "console.anthropic.com:443", CLAUDE];
    for host in hosts {
        for (token, value) in [(access, "sk-ant-oat01-one"), (id, "id-three-0123456789")] {
            let opened = open_at(handle, host, BEARER, token);
            assert_eq!(opened.as_deref(), Some(value), "{host}");
            for place in [
                KEY,
                Place::Query,
                Place::Path,
                Place::Body,
                Place::Header(b"x-api-key"),
            ] {
                assert_eq!(
                    open_at(handle, host, place, token),
                    None,
                    "{host} {place:?}"
                );
            }
            assert_eq!(open_in_body(handle, host, TOKEN, token), None, "{host}");
        }
        for place in [BEARER, KEY, Place::Query, Place::Path, Place::Body] {
            assert_eq!(
                open_at(handle, host, place, refresh),
                None,
                "{host} {place:?}"
            );
        }
    }
    for (host, path, opens) in [
        (CLAUDE, TOKEN, true),
        (CLAUDE, b"/v1/oauth/token/".as_slice(), false),
        (CLAUDE, b"/v1/oauth/Token", false),
        (CLAUDE, b"/v1/oauth/%74oken", false),
        (CLAUDE, b"/v1/messages", false),
        (CLAUDE, b"", false),
        ("console.anthropic.com:443", TOKEN, false),
        ("api.anthropic.com:443", TOKEN, false),
        ("api.example.com:443", TOKEN, false),
    ] {
        let opened = open_in_body(handle, host, path, refresh);
        let expected = opens.then_some("sk-ant-ort01-two");
        assert_eq!(opened.as_deref(), expected, "{host} {path:?}");
    }
    // In the clear there is no endpoint, and nothing opens.
    let clear = handle.host_view(&target("platform.claude.com:80"), Scheme::Http);
    assert!(clear.unwrap().endpoint(TOKEN).is_none());
    assert_eq!(open_at(handle, "api.example.com:443", BEARER, access), None);
    let other = world.create(one_secret()).await;
    assert_eq!(open_at(&other.handle, CLAUDE, BEARER, access), None);
    assert_eq!(open_in_body(&other.handle, CLAUDE, TOKEN, refresh), None);
}

#[tokio::test]
async fn a_session_watches_the_known_endpoints_and_its_own() {
    let world = World::new();
    let created = world
        .create(watching(named(&[
            ("https://idp.example.com/token", None),
            (
                "https://idp.example.com:8443/t",
                Some(&["a.example.com", "b.example.com"]),
            ),
            (
                "https://oauth2.googleapis.com/token",
                Some(&["run.googleapis.com"]),
            ),
        ])))
        .await;
    let handle = &created.handle;
    let hosts = |host: &str, path: &str| {
        let found = endpoint(handle, host, path.as_bytes());
        found.map(|it| it.hosts().join(" "))
    };
    for (host, path, expected) in [
        ("idp.example.com:443", "/token", Some("idp.example.com")),
        ("idp.example.com:443", "/Token/", Some("idp.example.com")),
        ("idp.example.com:443", "/t", None),
        (
            "oauth2.googleapis.com:443",
            "/token",
            Some("run.googleapis.com"),
        ),
        ("api.example.com:443", "/token", None),
    ] {
        assert_eq!(hosts(host, path).as_deref(), expected, "{host}{path}");
    }
    let known = [
        ("platform.claude.com:443", "/v1/oauth/token"),
        ("console.anthropic.com:443", "/v1/oauth/token"),
        ("github.com:443", "/login/oauth/access_token"),
        ("accounts.google.com:443", "/o/oauth2/token"),
    ];
    for (host, path) in known {
        assert!(hosts(host, path).is_some(), "{host}{path}");
    }
    // None can be left out.
    for capture in [None, Some(Vec::new())] {
        let created = world.create(watching(capture)).await;
        assert!(endpoint(&created.handle, CLAUDE, TOKEN).is_some());
    }
}

#[tokio::test]
async fn what_is_given_anew_replaces_what_was_given_before() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let handle = &created.handle;
    let first = world.capture(handle, CLAUDE, BODY).await;
    let version = handle.version();
    // No refresh token this time: the one there is stays.
    let body = r#"{"access_token":"sk-ant-oat01-four","id_token":"id-three-0123456789"}"#;
    let second = world.capture(handle, CLAUDE, body).await;
    assert_eq!(handle.version(), version + 1);
    assert_ne!(first[0], second[0]);
    assert_eq!(first[2], second[1], "the same value keeps its token");
    assert_eq!(open_at(handle, CLAUDE, BEARER, &first[0]), None);
    let opened = open_at(handle, CLAUDE, BEARER, &second[0]);
    assert_eq!(opened.as_deref(), Some("sk-ant-oat01-four"));
    assert!(open_at(handle, CLAUDE, BEARER, &first[2]).is_some());
    assert!(open_in_body(handle, CLAUDE, TOKEN, &first[1]).is_some());
    // Another endpoint's are its own.
    let console = "console.anthropic.com:443";
    let third = world
        .capture(handle, console, r#"{"access_token":"five"}"#)
        .await;
    assert!(open_at(handle, CLAUDE, BEARER, &second[0]).is_some());
    assert!(open_at(handle, CLAUDE, BEARER, &third[0]).is_some());
    let names = handle.captured();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    assert_eq!(
        names,
        [
            "refresh_token@platform.claude.com/v1/oauth/token",
            "access_token@platform.claude.com/v1/oauth/token",
            "id_token@platform.claude.com/v1/oauth/token",
            "access_token@console.anthropic.com/v1/oauth/token",
        ]
    );
}

/// Tells whether a value is taken out of the answers of a host.
fn scrubs(handle: &SessionHandle, host: &str, value: &str) -> bool {
    let view = handle.host_view(&target(host), Scheme::Https).unwrap();
    let scrubber = view.scrubber();
    scrubber.is_some_and(|it| it.scrub_value(value.as_bytes()).is_some())
}

#[tokio::test]
async fn captured_values_are_scrubbed_where_they_are_known() {
    let world = World::new();
    let entry: (_, Option<&[&str]>) = (
        "https://idp.example.com/v1/oauth/token",
        Some(&["a.example.com"]),
    );
    let created = world.create(watching(named(&[entry]))).await;
    let handle = &created.handle;
    let scrubs = |host: &str, value: &str| scrubs(handle, host, value);
    let (one, two) = ("access-0123456789-one", "refresh-0123456789-two");
    let body = format!("{{\"access_token\":\"{one}\",\"refresh_token\":\"{two}\"}}");
    let idp = "idp.example.com:443";
    world.capture(handle, idp, &body).await;
    // The endpoint knows both, although the access token may not go there.
    for (host, value, expected) in [
        (idp, one, true),
        (idp, two, true),
        ("a.example.com:443", one, true),
        ("a.example.com:443", two, false),
        ("b.example.com:443", one, false),
    ] {
        assert_eq!(scrubs(host, value), expected, "{host} {value}");
    }
    let new = r#"{"access_token":"access-0123456789-new"}"#;
    world.capture(handle, idp, new).await;
    assert!(scrubs(idp, one), "for an hour");
    // Whose endpoint is not watched any more, is gone.
    world.patch(handle, |form| form.capture = None).await;
    assert!(handle.captured().is_empty());
    assert!(scrubs(idp, one) && scrubs(idp, two) && scrubs(idp, "access-0123456789-new"));
}

#[tokio::test]
async fn a_patch_moves_the_scope_and_keeps_the_tokens() {
    let world = World::new();
    let url = "https://idp.example.com/v1/oauth/token";
    let created = world
        .create(watching(named(&[(url, Some(&["a.example.com"]))])))
        .await;
    let handle = &created.handle;
    let idp = "idp.example.com:443";
    let tokens = world
        .capture(handle, idp, r#"{"access_token":"a","refresh_token":"r"}"#)
        .await;
    let fresh = world
        .patch(handle, |form| {
            form.capture = Some(named(&[(url, Some(&["b.example.com"]))]));
            form.secrets.remove("OWN");
        })
        .await;
    assert!(fresh.is_empty());
    assert_eq!(
        open_at(handle, "a.example.com:443", BEARER, &tokens[0]),
        None
    );
    assert!(open_at(handle, "b.example.com:443", BEARER, &tokens[0]).is_some());
    assert!(open_in_body(handle, idp, TOKEN, &tokens[1]).is_some());
    // A secret of the tenant's cannot have such a name.
    let name = handle.captured()[0].to_string();
    let change = |mut form: Form| {
        form.secrets
            .insert(name, scoped("value-of-mine", &["a.example.com"]));
        Ok(form)
    };
    let patched = world
        .sessions
        .patch(&world.tenant, handle.id(), change)
        .await;
    assert!(matches!(patched, Err(SessionError::Invalid(errors)) if errors[0].code == "bad_name"));
}

#[tokio::test]
async fn captured_tokens_outlive_a_restart_and_those_they_replaced_do_not() {
    let world = proven().await;
    let (url, idp) = (
        "https://idp.example.com/v1/oauth/token",
        "idp.example.com:443",
    );
    let form = watching(named(&[(
        url,
        Some(&["a.example.com", "[2606:4700::1]:443"]),
    )]));
    let created = world.create(form).await;
    let first = world.capture(&created.handle, idp, BODY).await;
    let body = r#"{"access_token":"access-four-0123456789","id_token":"id-three-0123456789"}"#;
    let second = world.capture(&created.handle, idp, body).await;
    let claude = world.capture(&created.handle, CLAUDE, BODY).await;
    let other = || Keyring::from_keys(vec![(KeyId::new(2), [8; 32])], KeyId::new(2)).unwrap();
    let both = || {
        let keys = vec![(KeyId::new(2), [8; 32]), (KeyId::new(1), [7; 32])];
        Keyring::from_keys(keys, KeyId::new(2)).unwrap()
    };
    // The second time under another key, which sealed everything anew.
    for rotated in [false, true] {
        if rotated {
            world.sessions.rotate(both()).await.unwrap();
        }
        let after = world.restarted(if rotated { other() } else { keys() });
        assert_eq!(after.sessions.load().await.unwrap().live, 1);
        let handle = &after.live(&created).unwrap();
        assert_eq!(handle.captured(), created.handle.captured());
        for host in ["a.example.com:443", "[2606:4700::1]:443"] {
            let opened = open_at(handle, host, BEARER, &second[0]);
            assert_eq!(opened.as_deref(), Some("access-four-0123456789"), "{host}");
            assert_eq!(open_at(handle, host, KEY, &second[0]), None);
            assert_eq!(open_at(handle, host, BEARER, &first[0]), None, "replaced");
            assert!(open_at(handle, host, BEARER, &first[2]).is_some());
            assert!(scrubs(handle, host, "sk-ant-oat01-one"), "for an hour");
        }
        assert_eq!(open_at(handle, idp, BEARER, &second[0]), None);
        assert_eq!(
            open_at(handle, "b.example.com:443", BEARER, &second[0]),
            None
        );
        for (path, opens) in [(TOKEN, true), (b"/v1/oauth/token/", false), (b"", false)] {
            let opened = open_in_body(handle, idp, path, &first[1]);
            assert_eq!(opened.as_deref(), opens.then_some("sk-ant-ort01-two"));
            assert_eq!(open_in_body(handle, CLAUDE, path, &first[1]), None);
        }
        assert!(open_at(handle, "api.anthropic.com:443", BEARER, &claude[0]).is_some());
        assert!(open_in_body(handle, CLAUDE, TOKEN, &claude[1]).is_some());
        // The endpoint knows what it gave, also what may not go there.
        for value in [
            "sk-ant-oat01-one",
            "sk-ant-ort01-two",
            "access-four-0123456789",
        ] {
            assert!(scrubs(handle, idp, value), "{value}");
        }
    }
}

#[tokio::test]
async fn captured_tokens_go_on_after_a_restart_as_before_it() {
    let world = proven().await;
    let created = world.create(one_secret()).await;
    let first = world.capture(&created.handle, CLAUDE, BODY).await;
    let after = world.restarted(keys());
    after.sessions.load().await.unwrap();
    let handle = &after.live(&created).unwrap();
    let body = r#"{"access_token":"sk-ant-oat01-one","refresh_token":"sk-ant-ort01-five"}"#;
    let second = after.capture(handle, CLAUDE, body).await;
    assert_eq!(first[0], second[0], "the same value keeps its token");
    assert_eq!(open_in_body(handle, CLAUDE, TOKEN, &first[1]), None);
    assert!(open_in_body(handle, CLAUDE, TOKEN, &second[1]).is_some());
    assert_eq!(handle.captured().len(), 3);
    // An endpoint that is known no more: its tokens open nothing, and are still scrubbed.
    let unknown = Options {
        token_endpoints: Arc::from([]),
        ..options()
    };
    let last = world.restarted_with(unknown, keys());
    last.sessions.load().await.unwrap();
    let handle = &last.live(&created).unwrap();
    assert!(handle.captured().is_empty());
    let api = "api.anthropic.com:443";
    assert_eq!(open_at(handle, api, BEARER, &second[0]), None);
    assert_eq!(open_in_body(handle, CLAUDE, TOKEN, &second[1]), None);
    assert!(scrubs(handle, api, "sk-ant-oat01-one"));
    for value in ["sk-ant-oat01-one", "sk-ant-ort01-two", "sk-ant-ort01-five"] {
        assert!(scrubs(handle, CLAUDE, value), "{value}");
    }
}

#[tokio::test]
async fn there_are_at_most_so_many() {
    let world = World::new();
    let urls: Vec<String> = (0..19)
        .map(|n| format!("https://idp.example.com/{n}"))
        .collect();
    let entries: Vec<(&str, Option<&[&str]>)> =
        urls.iter().map(|url| (url.as_str(), None)).collect();
    let created = world.create(watching(named(&entries))).await;
    let handle = &created.handle;
    let capture = async |number: usize, body: &str| {
        let path = format!("/{number}");
        let at = ("idp.example.com:443", path.as_bytes());
        world.try_capture(handle, at, body).await
    };
    let body = r#"{"access_token":"a"}"#;
    for number in 0..19 {
        capture(number, body).await.unwrap();
    }
    let version = handle.version();
    let two = capture(
        0,
        r#"{"access_token":"b","refresh_token":"r","id_token":"i"}"#,
    )
    .await;
    assert!(matches!(two, Err(SessionError::CaptureLimit)), "{two:?}");
    assert_eq!(handle.version(), version, "nothing changed");
    capture(0, r#"{"access_token":"b","refresh_token":"r"}"#)
        .await
        .unwrap();
    assert_eq!(handle.captured().len(), CAPTURED_LIMIT);
    let one_more = capture(1, r#"{"refresh_token":"r"}"#).await;
    assert!(
        matches!(one_more, Err(SessionError::CaptureLimit)),
        "{one_more:?}"
    );
    capture(1, r#"{"access_token":"c"}"#).await.unwrap();
}

#[tokio::test]
async fn nothing_is_live_before_it_is_durable() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let handle = &created.handle;
    let first = world.capture(handle, CLAUDE, BODY).await;
    world.store.fail(true);
    let version = handle.version();
    let body = r#"{"access_token":"another"}"#;
    let failed = world.try_capture(handle, (CLAUDE, TOKEN), body).await;
    assert!(matches!(failed, Err(SessionError::Store(_))), "{failed:?}");
    assert_eq!(handle.version(), version);
    assert!(open_at(handle, CLAUDE, BEARER, &first[0]).is_some());
    world.store.fail(false);
    // Deleted while it is at the store: it does not come back.
    world.store.hold();
    let held = async {
        let taken = world.try_capture(handle, (CLAUDE, TOKEN), body).await;
        assert!(matches!(taken, Err(SessionError::NotFound)), "{taken:?}");
    };
    let deleted = async {
        world.store.holding().await;
        let delete = world.sessions.delete(&world.tenant, handle.id());
        let (gone, ()) = tokio::join!(delete, async { world.store.release() });
        gone.unwrap();
    };
    tokio::join!(held, deleted);
    assert_eq!(world.rows().await, 0);
    let endpoint = TokenEndpoint::parse("https://platform.claude.com/v1/oauth/token").unwrap();
    let (endpoint, answer) = (Arc::new(endpoint), answer(body));
    let over = world.sessions.capture(handle, &endpoint, answer.tokens());
    assert!(matches!(over.await, Err(SessionError::NotFound)));
}

#[tokio::test]
async fn a_token_of_an_endpoint_that_is_not_watched_is_not_kept() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let strange = TokenEndpoint::parse("https://idp.example.com/token").unwrap();
    let taken = world
        .sessions
        .capture(&created.handle, &Arc::new(strange), answer(BODY).tokens())
        .await;
    assert!(matches!(taken, Err(SessionError::NotFound)), "{taken:?}");
    assert_eq!(created.handle.version(), 1);
}

#[test]
fn bad_endpoints_are_told_by_their_place() {
    let bad = |capture, passthrough: &[&str]| {
        let form = Form {
            passthrough_hosts: texts(passthrough),
            ..watching(capture)
        };
        let errors = crate::session::Spec::parse(&form, &options()).unwrap_err();
        let told = errors.iter().map(|it| format!("{} {}", it.field, it.code));
        told.collect::<Vec<_>>().join(", ")
    };
    let url = "https://idp.example.com/token";
    for (capture, passthrough, expected) in [
        (
            named(&[("http://a.example/t", None)]),
            &[][..],
            "capture[0].url bad_url",
        ),
        (
            named(&[(url, None), (url, None)]),
            &[],
            "capture[1] duplicate",
        ),
        (
            named(&[(url, Some(&[]))]),
            &[],
            "capture[0].hosts secret_unscoped",
        ),
        (
            named(&[(url, Some(&["a.example", "*.b.example", "c/d"]))]),
            &[],
            "capture[0].hosts[1] bad_host, capture[0].hosts[2] bad_host",
        ),
        (
            named(&[(url, None)]),
            &["idp.example.com"],
            "capture[0] overlaps_passthrough",
        ),
        (
            named(&[(url, Some(&["a.example.com"]))]),
            &["*.example.com"],
            "passthrough_hosts[0] overlaps_secret, capture[0] overlaps_passthrough",
        ),
        (named(&vec![(url, None); 21]), &[], "capture too_many"),
    ] {
        assert_eq!(bad(capture, passthrough), expected);
    }
}

#[tokio::test]
async fn a_patch_passes_nothing_through_where_a_captured_token_may_go() {
    let world = World::new();
    let early = &["console.anthropic.com"];
    let form = Form {
        passthrough_hosts: texts(early),
        ..watching(None)
    };
    let handle = world.create(form).await.handle;
    let faults = async |change: &dyn Fn(&mut Form)| {
        let change = |mut form| {
            change(&mut form);
            Ok(form)
        };
        let patched = world.sessions.patch(&world.tenant, handle.id(), change);
        match patched.await {
            Ok(_) => String::new(),
            Err(SessionError::Invalid(bad)) => {
                let told = bad.iter().map(|it| format!("{} {}", it.field, it.code));
                told.collect::<Vec<_>>().join(", ")
            }
            Err(other) => panic!("{other}"),
        }
    };
    let claude = &["x.example", "*.claude.com", "api.anthropic.com:443"];
    // Nothing was captured yet, and nobody named the endpoint.
    let passes =
        |hosts: &'static [&str]| move |form: &mut Form| form.passthrough_hosts = texts(hosts);
    assert_eq!(faults(&passes(claude)).await, "");
    assert_eq!(faults(&passes(early)).await, "");
    world.capture(&handle, CLAUDE, BODY).await;
    let version = handle.version();
    assert_eq!(
        faults(&passes(claude)).await,
        "passthrough_hosts[1] overlaps_secret, passthrough_hosts[2] overlaps_secret"
    );
    assert_eq!(handle.version(), version, "nothing changed");
    // What is no host of the tokens may, and what stood when they came is no fault of the patch.
    assert_eq!(
        faults(&passes(&["x.example", "console.anthropic.com"])).await,
        ""
    );
    assert_eq!(faults(&passes(&["x.example"])).await, "");
    assert_eq!(
        faults(&passes(early)).await,
        "passthrough_hosts[0] overlaps_secret"
    );
}
