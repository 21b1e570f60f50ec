//! A root follows another: in memory at its time, in the files through every crash.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{TestClock, chain, verify};
use crate::authority::{CertificateAuthority, Error, KEPT, Root, cancel, look, plan, written};

const HOUR: Duration = Duration::from_hours(1);
const NEARLY: Duration = Duration::from_secs(3599);
const HOST: &str = "api.example.com";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Root::generate_into(folder.path(), "First root").unwrap();
    folder
}

fn load(folder: &Path) -> Root {
    Root::load(&folder.join("ca.pem"), &folder.join("ca.key")).unwrap()
}

/// What a process does when it starts.
fn start(folder: &Path, clock: &TestClock) -> CertificateAuthority {
    look(folder, clock.read()).unwrap();
    let clock = clock.clone();
    let authority = CertificateAuthority::with_clock(load(folder), move || clock.read()).unwrap();
    authority.refresh(folder).unwrap();
    authority
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Checks which of two roots signs, and which are published.
async fn stands(
    authority: &CertificateAuthority,
    clock: &TestClock,
    signs: &[u8],
    trusted: &[&[u8]],
) {
    let leaf = chain(authority, HOST).await;
    assert!(verify(signs, &leaf, HOST, clock.read()).is_ok(), "it signs");
    assert_eq!(authority.signing_root().cert_der(), signs);
    assert_eq!(authority.trusted(), trusted);
}

#[tokio::test]
async fn the_next_root_is_published_at_once_and_signs_from_its_time_on() {
    let (folder, clock) = (folder(), TestClock::now());
    let folder = folder.path();
    let first = load(folder).cert_der().to_vec();
    // One process that is there from the beginning, and one that starts before each step.
    let lasting = start(folder, &clock);
    stands(&lasting, &clock, &first, &[&first]).await;
    let planned = plan(folder, "Next root", clock.read() + HOUR, clock.read()).unwrap();
    let next = planned.next.unwrap();
    assert_eq!(next.at, clock.read() + HOUR);
    let next = next.root.cert_der().to_vec();
    let mode = fs::metadata(folder.join("ca.next")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    lasting.refresh(folder).unwrap();
    for _ in 0..2 {
        let fresh = start(folder, &clock);
        for authority in [&lasting, &fresh] {
            stands(authority, &clock, &first, &[&first, &next]).await;
        }
        assert_eq!(
            load(folder).cert_der(),
            first,
            "ca.pem is the one that signs"
        );
        clock.advance(NEARLY);
        stands(&lasting, &clock, &first, &[&first, &next]).await;
        clock.set_back(NEARLY);
    }
    clock.advance(HOUR);
    // By its own clock, whether or not it has looked at the files.
    stands(&lasting, &clock, &next, &[&next, &first]).await;
    assert!(
        verify(&first, &chain(&lasting, HOST).await, HOST, clock.read()).is_err(),
        "no leaf of the root before is shown any more"
    );
    assert_eq!(load(folder).cert_der(), first);
    lasting.refresh(folder).unwrap();
    assert_eq!(load(folder).cert_der(), next);
    assert_eq!(names(folder), ["ca.key", "ca.old.pem", "ca.pem"]);
    let nearly_kept = KEPT.checked_sub(Duration::from_secs(1)).unwrap();
    for _ in 0..2 {
        let fresh = start(folder, &clock);
        for authority in [&lasting, &fresh] {
            stands(authority, &clock, &next, &[&next, &first]).await;
        }
        clock.advance(nearly_kept);
        stands(&lasting, &clock, &next, &[&next, &first]).await;
        clock.set_back(nearly_kept);
    }
    clock.advance(KEPT);
    for authority in [&lasting, &start(folder, &clock)] {
        stands(authority, &clock, &next, &[&next]).await;
    }
}

#[tokio::test]
async fn a_process_learns_what_another_did_to_the_files() {
    let (folder, clock) = (folder(), TestClock::now());
    let folder = folder.path();
    let first = load(folder).cert_der().to_vec();
    let authority = start(folder, &clock);
    let limit = 16;
    authority.keep_leaves(limit);
    // At once: it never knew of the plan.
    plan(folder, "Second root", clock.read(), clock.read()).unwrap();
    let second = load(folder).cert_der().to_vec();
    assert_ne!(second, first);
    authority.refresh(folder).unwrap();
    stands(&authority, &clock, &second, &[&second, &first]).await;
    // Taken back before its time.
    let third = plan(folder, "Third root", clock.read() + HOUR, clock.read()).unwrap();
    let third = third.next.unwrap().root.cert_der().to_vec();
    authority.refresh(folder).unwrap();
    stands(&authority, &clock, &second, &[&second, &third, &first]).await;
    assert!(cancel(folder, clock.read()).unwrap());
    assert!(!cancel(folder, clock.read()).unwrap());
    authority.refresh(folder).unwrap();
    stands(&authority, &clock, &second, &[&second, &first]).await;
    clock.advance(2 * HOUR);
    stands(&authority, &clock, &second, &[&second, &first]).await;
    for number in 0..100 {
        chain(&authority, &format!("host{number}.example.com")).await;
    }
    assert!(
        authority.cached() <= limit,
        "the limit holds for every root"
    );
}

#[test]
fn whatever_a_crash_leaves_is_finished() {
    let clock = TestClock::now();
    let at = clock.read() + HOUR;
    let original = folder();
    let first = load(original.path()).cert_der().to_vec();
    let planned = plan(original.path(), "Next root", at, clock.read()).unwrap();
    let next = planned.next.unwrap().root.cert_der().to_vec();
    let done = tempfile::tempdir().unwrap();
    copy(original.path(), done.path());
    look(done.path(), at).unwrap();
    // The steps in their order; each crash leaves those before it done.
    let steps = ["ca.old.pem", "ca.key", "ca.pem"];
    for count in 0..=steps.len() {
        let folder = tempfile::tempdir().unwrap();
        copy(original.path(), folder.path());
        for name in &steps[..count] {
            fs::copy(done.path().join(name), folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join(".ca.rotation.new"), "half a fi").unwrap();
        let others = look(folder.path(), at).unwrap();
        assert!(others.next.is_none(), "{count}");
        let old = others.old.unwrap();
        assert_eq!(
            (old.cert.as_ref(), old.until),
            (first.as_slice(), at + KEPT),
            "{count}"
        );
        assert_eq!(load(folder.path()).cert_der(), next, "{count}");
        let key = fs::metadata(folder.path().join("ca.key"))
            .unwrap()
            .permissions();
        assert_eq!(key.mode() & 0o777, 0o600);
        let old = fs::read_to_string(folder.path().join("ca.old.pem")).unwrap();
        assert!(!old.contains("PRIVATE"), "{count}");
    }
}

#[test]
fn what_a_crash_left_of_a_key_is_removed_by_the_next_look() {
    let (folder, clock) = (folder(), TestClock::now());
    let first = load(folder.path()).cert_der().to_vec();
    let left = folder.path().join(".ca.rotation.new");
    fs::write(&left, "half a key").unwrap();
    let others = look(folder.path(), clock.read()).unwrap();
    assert!(others.next.is_none() && others.old.is_none());
    assert_eq!(names(folder.path()), ["ca.key", "ca.pem"]);
    // What cannot be removed keeps nobody from a start.
    fs::create_dir(&left).unwrap();
    look(folder.path(), clock.read()).unwrap();
    assert_eq!(load(folder.path()).cert_der(), first);
}

fn copy(from: &Path, to: &Path) {
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[tokio::test]
async fn a_plan_that_cannot_be_read_changes_nothing() {
    let (folder, clock) = (folder(), TestClock::now());
    let folder = folder.path();
    let first = load(folder).cert_der().to_vec();
    let authority = start(folder, &clock);
    plan(folder, "Next root", clock.read() + HOUR, clock.read()).unwrap();
    let path = folder.join("ca.next");
    let whole = fs::read_to_string(&path).unwrap();
    let (time, rest) = whole.split_once('\n').unwrap();
    let (cert, key) = rest.split_at(rest.find("-----BEGIN PRIVATE").unwrap());
    let other = tempfile::tempdir().unwrap();
    Root::generate_into(other.path(), "Other root").unwrap();
    let other = fs::read_to_string(other.path().join("ca.key")).unwrap();
    for (text, mode) in [
        (whole.clone(), 0o644),
        (String::new(), 0o600),
        (rest.to_owned(), 0o600),
        (format!("# signs from tomorrow\n{rest}"), 0o600),
        (format!("{time}\n{cert}"), 0o600),
        (format!("{time}\n{key}"), 0o600),
        (format!("{time}\n{cert}{other}"), 0o600),
    ] {
        fs::write(&path, &text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = authority.refresh(folder).unwrap_err();
        assert!(!format!("{refused:?}").contains("PRIVATE"), "{refused:?}");
        stands(&authority, &clock, &first, &[&first]).await;
        assert!(
            look(folder, clock.read() + HOUR).is_err(),
            "nothing of it is done"
        );
        assert_eq!(load(folder).cert_der(), first);
    }
    fs::write(&path, &whole).unwrap();
    authority.refresh(folder).unwrap();
    assert_eq!(authority.trusted().len(), 2, "a good one is taken up again");
}

#[test]
fn one_plan_at_a_time_and_not_too_far_ahead() {
    let (folder, clock) = (folder(), TestClock::now());
    let (folder, now) = (folder.path(), clock.read());
    let plan = |at: SystemTime| plan(folder, "Next root", at, now);
    let far = plan(now + Duration::from_hours(367 * 24));
    assert!(matches!(far, Err(Error::TooFar)), "{far:?}");
    plan(now + HOUR).unwrap();
    let again = plan(now + 2 * HOUR).unwrap_err();
    let text = again.to_string();
    assert!(text.contains(&written(now + HOUR).unwrap()), "{text}");
    assert!(text.contains("--cancel"), "{text}");
    assert!(cancel(folder, now).unwrap());
    let end = load(folder).end();
    let gap = crate::authority::plan(folder, "Next root", end, end - HOUR);
    assert!(matches!(gap, Err(Error::Unsigned { .. })), "{gap:?}");
    crate::authority::plan(folder, "Next root", end - HOUR / 2, end - HOUR).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let none = crate::authority::plan(empty.path(), "Next root", now, now);
    assert!(matches!(none, Err(Error::NoRoot { .. })), "{none:?}");
}

#[tokio::test]
async fn a_process_signs_with_the_root_of_the_folder_whatever_it_missed() {
    let (folder, clock) = (folder(), TestClock::now());
    let folder = folder.path();
    let authority = start(folder, &clock);
    // Two at once between two looks: of the one that signs here nothing is left.
    for name in ["Second root", "Third root"] {
        plan(folder, name, clock.read(), clock.read()).unwrap();
    }
    authority.refresh(folder).unwrap();
    let third = load(folder).cert_der().to_vec();
    assert_eq!(authority.signing_root().cert_der(), third);
    assert_eq!(authority.trusted()[0], third);
    // A plan that is taken back by one whose clock is behind, when it signs here already.
    plan(folder, "Fourth root", clock.read() + HOUR, clock.read()).unwrap();
    authority.refresh(folder).unwrap();
    let early = clock.read() + NEARLY;
    clock.advance(HOUR);
    assert_ne!(authority.signing_root().cert_der(), third);
    assert!(cancel(folder, early).unwrap());
    authority.refresh(folder).unwrap();
    let leaf = chain(&authority, HOST).await;
    assert!(
        verify(&third, &leaf, HOST, clock.read()).is_ok(),
        "it signs"
    );
    assert_eq!(authority.signing_root().cert_der(), third);
}
