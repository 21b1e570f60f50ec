//! Which values are looked for in whose answers, and until when.

use std::time::Instant;

use super::*;
use crate::session::live::retire;

const OLD: &str = "old-value-0123456789abcdef";
const NEW: &str = "new-value-0123456789abcdef";
const HOUR: Duration = Duration::from_hours(1);

/// Returns what a host's answer of these values becomes.
fn scrubbed(handle: &SessionHandle, host: &str, text: &str) -> String {
    let view = handle.host_view(&target(host), Scheme::Https).unwrap();
    let scrubbed = view
        .scrubber()
        .and_then(|it| it.scrub_value(text.as_bytes()));
    scrubbed.map_or_else(|| text.to_owned(), |text| String::from_utf8(text).unwrap())
}

fn two() -> Form {
    form([
        ("A", scoped(OLD, &["a.example.com"])),
        ("B", scoped(CANARY, &["b.example.com", "c.example.com:80"])),
    ])
}

#[tokio::test]
async fn a_host_s_answers_are_searched_for_its_own_secrets_only() {
    let world = World::new();
    let created = world.create(two()).await;
    let [a, b] = ["A", "B"].map(|name| &created.sealed_secrets[name]);
    let text = format!("{OLD} {CANARY}");
    let cases = [
        ("a.example.com:443", format!("{a} {CANARY}")),
        ("b.example.com:443", format!("{OLD} {b}")),
        ("c.example.com:80", format!("{OLD} {b}")),
        ("c.example.com:443", text.clone()),
        ("d.example.com:443", text.clone()),
    ];
    for (host, expected) in cases {
        assert_eq!(scrubbed(&created.handle, host, &text), expected, "{host}");
    }
    let view = |host, scheme| created.handle.host_view(&target(host), scheme).unwrap();
    assert!(
        view("d.example.com:443", Scheme::Https)
            .scrubber()
            .is_none()
    );
    // No token opens in the clear here; what the host knows it may say all the same.
    let clear = view("a.example.com:80", Scheme::Http);
    assert_eq!(open(&clear, a, KEY), None);
    assert!(clear.scrubber().is_some());
}

#[tokio::test]
async fn hosts_of_the_same_secrets_share_one_search() {
    let world = World::new();
    let created = world.create(two()).await;
    let search = |host| {
        let view = created.handle.host_view(&target(host), Scheme::Https);
        Arc::clone(view.unwrap().scrubber().unwrap())
    };
    assert!(Arc::ptr_eq(
        &search("b.example.com:443"),
        &search("c.example.com:80")
    ));
    assert!(!Arc::ptr_eq(
        &search("b.example.com:443"),
        &search("a.example.com:443")
    ));
}

#[tokio::test]
async fn nothing_is_searched_for_where_the_session_does_not_want_it() {
    let world = World::new();
    let created = world
        .create(Form {
            scrub_responses: Some(false),
            ..two()
        })
        .await;
    assert_eq!(scrubbed(&created.handle, "a.example.com:443", OLD), OLD);
    world
        .patch(&created.handle, |form| form.scrub_responses = None)
        .await;
    let token = &created.sealed_secrets["A"];
    assert_eq!(&scrubbed(&created.handle, "a.example.com:443", OLD), token);
}

#[tokio::test]
async fn short_values_are_left_and_told_of() {
    let world = World::new();
    for (value, warned) in [("0123456789abcde", true), ("0123456789abcdef", false)] {
        let created = world
            .create(form([("A", scoped(value, &["a.example.com"]))]))
            .await;
        let codes: Vec<_> = created.warnings.iter().map(|it| it.code).collect();
        let expected: &[&str] = if warned {
            &["secret_not_scrubbed"]
        } else {
            &[]
        };
        assert_eq!(codes, expected, "{value}");
        let left = scrubbed(&created.handle, "a.example.com:443", value) == value;
        assert_eq!(left, warned, "{value}");
        let quiet = Form {
            scrub_responses: Some(false),
            ..form([("A", scoped(value, &["a.example.com"]))])
        };
        assert!(world.create(quiet).await.warnings.is_empty());
    }
}

#[tokio::test]
async fn what_a_patch_takes_out_of_use_is_still_scrubbed() {
    let world = World::new();
    let created = world.create(two()).await;
    let [a, b] = ["A", "B"].map(|name| &created.sealed_secrets[name]);
    let handle = &created.handle;
    world
        .patch(handle, |form| {
            form.secrets.get_mut("A").unwrap().value = Secret::new(NEW.as_bytes().to_vec());
            form.secrets.remove("B");
        })
        .await;
    let text = format!("{OLD} {NEW} {CANARY}");
    let cases = [
        ("a.example.com:443", format!("{a} {a} {CANARY}")),
        ("b.example.com:443", format!("{OLD} {NEW} {b}")),
        ("d.example.com:443", text.clone()),
    ];
    for (host, expected) in cases {
        assert_eq!(scrubbed(handle, host, &text), expected, "{host}");
    }
    // A patch that changes no secret forgets none.
    world
        .patch(handle, |form| form.ttl_seconds = Some(90))
        .await;
    assert_eq!(&scrubbed(handle, "a.example.com:443", OLD), a);
    assert_eq!(handle.standing().view.retired.len(), 2);
}

#[tokio::test]
async fn a_host_that_left_the_scope_may_not_say_what_it_was_sent() {
    let world = World::new();
    let created = world.create(two()).await;
    let handle = &created.handle;
    world
        .patch(handle, |form| {
            form.secrets.get_mut("B").unwrap().hosts = Some(texts(&["c.example.com"]));
        })
        .await;
    let b = &created.sealed_secrets["B"];
    for host in ["b.example.com:443", "c.example.com:80", "c.example.com:443"] {
        assert_eq!(&scrubbed(handle, host, CANARY), b, "{host}");
    }
    assert_eq!(open_for(handle, "b.example.com:443", b), None);
}

#[tokio::test]
async fn a_value_is_forgotten_after_an_hour() {
    let world = World::new();
    let created = world.create(two()).await;
    let handle = &created.handle;
    let change = |form: &mut Form| {
        form.secrets.get_mut("A").unwrap().value = Secret::new(NEW.as_bytes().to_vec());
    };
    let before = Instant::now();
    world.patch(handle, change).await;
    let after = Instant::now();
    let standing = handle.standing();
    let (view, here) = (&standing.view, target("a.example.com:443"));
    let found = |now| {
        let scrubber = view.scrubber(&here, now).unwrap();
        [OLD, NEW].map(|value| scrubber.scrub_value(value.as_bytes()).is_some())
    };
    let nearly = before + Duration::from_mins(59);
    assert_eq!(found(nearly), [true, true]);
    assert_eq!(found(after + HOUR), [false, true]);
    assert_eq!(retire(view, &standing.spec, nearly).len(), 1);
    assert_eq!(retire(view, &standing.spec, after + HOUR).len(), 0);
}

#[tokio::test]
async fn endless_rotations_are_bounded_and_the_youngest_kept() {
    let world = World::new();
    let created = world.create(two()).await;
    let handle = &created.handle;
    let value = |round: usize| format!("value-of-a-rotation-{round:04}");
    for round in 0..110 {
        world
            .patch(handle, |form| {
                let secret = Secret::new(value(round).into_bytes());
                form.secrets.get_mut("A").unwrap().value = secret;
            })
            .await;
    }
    assert_eq!(handle.standing().view.retired.len(), 100);
    let a = &created.sealed_secrets["A"];
    for (round, known) in [(109, true), (108, true), (9, true), (8, false)] {
        let text = scrubbed(handle, "a.example.com:443", &value(round));
        assert_eq!(&text == a, known, "{round}");
    }
}
