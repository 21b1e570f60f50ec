//! Leaves themselves: their fields, their life, how many are minted and kept.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::{TestClock, authority, authority_at, chain, host, longest_name, verify};
use crate::authority::cache::{HOST_LIMIT, LeafCache};
use crate::authority::{CertificateAuthority, Error, Root};

const DAY: Duration = Duration::from_hours(24);

fn parse(der: &[u8]) -> X509Certificate<'_> {
    let (rest, cert) = x509_parser::parse_x509_certificate(der).unwrap();
    assert!(rest.is_empty());
    cert
}

/// Returns the alternative names, whether they are critical, and the common name.
fn names(cert: &X509Certificate<'_>) -> (String, bool, Option<String>) {
    let extension = cert.subject_alternative_name().unwrap().unwrap();
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => format!("dns {name}"),
        GeneralName::IPAddress(bytes) => format!("ip {bytes:?}"),
        other => panic!("{other:?}"),
    };
    let all = extension.value.general_names.iter();
    let name = all.map(name).collect::<Vec<_>>().join(", ");
    let common_name = cert.subject().iter_common_name().next();
    let common_name = common_name.map(|found| found.as_str().unwrap().to_owned());
    (name, extension.critical, common_name)
}

#[tokio::test]
async fn case_81_leaves_name_their_host_and_nothing_else() {
    let authority = authority();
    let longest = longest_name();
    let (fits, over) = ("b".repeat(60) + ".com", "b".repeat(61) + ".com");
    let v6 = "ip [32, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]";
    for (text, name, common_name) in [
        (
            "api.example.com",
            "dns api.example.com",
            Some("api.example.com"),
        ),
        (
            "Under_Score.Example",
            "dns under_score.example",
            Some("under_score.example"),
        ),
        ("192.0.2.7", "ip [192, 0, 2, 7]", Some("192.0.2.7")),
        ("[2001:db8::1]", v6, Some("2001:db8::1")),
        (&fits, &format!("dns {fits}"), Some(fits.as_str())),
        (&over, &format!("dns {over}"), None),
        (&longest, &format!("dns {longest}"), None),
    ] {
        let chain = chain(&authority, text).await;
        assert_eq!(chain.len(), 1, "the root itself is not sent");
        let critical = common_name.is_none();
        let expected = (name.to_owned(), critical, common_name.map(str::to_owned));
        assert_eq!(names(&parse(&chain[0])), expected, "{text}");
        let trusted = authority.root().cert_der();
        verify(trusted, &chain, text, SystemTime::now()).unwrap();
        verify(trusted, &chain, "other.example", SystemTime::now()).unwrap_err();
    }
}

/// A client that dials `localhost` without a server name gets the leaf of an address, and looks
/// for the name in it.
#[tokio::test]
async fn peer_69_leaves_of_this_machine_have_all_its_names() {
    let authority = authority();
    let all = ["localhost", "127.0.0.1", "[::1]"];
    for text in [&all[..], &["127.0.0.9"]].concat() {
        let chain = chain(&authority, text).await;
        for name in all.iter().chain([&text]) {
            let trusted = authority.root().cert_der();
            verify(trusted, &chain, name, SystemTime::now()).unwrap();
        }
        let (_, _, common_name) = names(&parse(&chain[0]));
        assert_eq!(common_name.as_deref(), Some(text.trim_matches(['[', ']'])));
        let trusted = authority.root().cert_der();
        verify(trusted, &chain, "127.0.0.8", SystemTime::now()).unwrap_err();
    }
}

#[tokio::test]
async fn case_81_leaves_have_the_extensions_that_strict_clients_demand() {
    let authority = authority();
    let chain = chain(&authority, "api.example.com").await;
    let (leaf, root) = (parse(&chain[0]), parse(authority.root().cert_der()));
    assert_eq!(leaf.issuer().as_raw(), root.subject().as_raw());
    assert!(subject_key(&root).is_some());
    assert_eq!(authority_key(&leaf), subject_key(&root));
    assert_eq!(subject_key(&leaf).unwrap().len(), 20);
    assert_ne!(subject_key(&leaf), subject_key(&root));

    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert_eq!(usage.value.flags, 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(!extended.critical && extended.value.server_auth && !extended.value.any);
    assert!(!extended.value.client_auth && extended.value.other.is_empty());
    assert_ne!(leaf.public_key().raw, root.public_key().raw);
}

fn subject_key(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions()
        .iter()
        .find_map(|found| match (found.parsed_extension(), found.critical) {
            (ParsedExtension::SubjectKeyIdentifier(id), false) => Some(id.0.to_vec()),
            _ => None,
        })
}

fn authority_key(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions()
        .iter()
        .find_map(|found| match (found.parsed_extension(), found.critical) {
            (ParsedExtension::AuthorityKeyIdentifier(id), false) => {
                Some(id.key_identifier.as_ref()?.0.to_vec())
            }
            _ => None,
        })
}

#[tokio::test]
async fn case_81_leaves_live_a_week_at_most_and_start_an_hour_ago() {
    let clock = TestClock::now();
    let chain = chain(&authority_at(&clock), "a.example").await;
    let validity = parse(&chain[0]).validity().clone();
    let now = clock.seconds();
    assert_eq!(validity.not_before.timestamp(), now - 3600);
    // Both ends count (RFC 5280 §4.1.2.5).
    let life = validity.not_after.timestamp() - validity.not_before.timestamp() + 1;
    assert_eq!(life, 7 * 86_400);
}

#[tokio::test]
async fn leaves_never_outlive_their_root() {
    let clock = TestClock::now();
    let authority = authority_at(&clock);
    let end = parse(authority.root().cert_der()).validity().not_after;
    let left = end.timestamp() - clock.seconds();
    clock.advance(Duration::from_secs(left.unsigned_abs() - 2 * 86_400));
    let leaf = chain(&authority, "a.example").await;
    assert_eq!(
        parse(&leaf[0]).validity().not_after.timestamp(),
        end.timestamp()
    );
    verify(
        authority.root().cert_der(),
        &leaf,
        "a.example",
        clock.read(),
    )
    .unwrap();

    clock.advance(2 * DAY);
    let error = authority
        .certified_key(&host("a.example"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::RootExpired), "{error}");
    assert_eq!(authority.minted(), 1);
}

#[tokio::test]
async fn case_81_serial_numbers_are_random_positive_and_distinct() {
    let authority = authority();
    let mut seen = HashSet::new();
    for number in 0..500 {
        let chain = chain(&authority, &format!("h{number}.example")).await;
        let cert = parse(&chain[0]);
        let serial = cert.raw_serial().to_vec();
        assert_eq!(serial.len(), 16);
        assert!((0x40..0x80).contains(&serial[0]), "{serial:?}");
        assert!(seen.insert(serial));
    }
}

#[tokio::test]
async fn case_81_a_host_is_minted_once_and_again_before_its_end() {
    let clock = TestClock::now();
    let authority = authority_at(&clock);
    let first = chain(&authority, "a.example").await;
    clock.advance(5 * DAY);
    assert_eq!(chain(&authority, "A.example.").await, first);
    assert_eq!(authority.minted(), 1);

    // A quarter of the week is left: minted anew while the old one is still good.
    clock.advance(DAY / 4 + Duration::from_hours(1));
    verify(
        authority.root().cert_der(),
        &first,
        "a.example",
        clock.read(),
    )
    .unwrap();
    let second = chain(&authority, "a.example").await;
    assert_ne!(second, first);
    assert_eq!((authority.minted(), authority.cached()), (2, 1));
    verify(
        authority.root().cert_der(),
        &second,
        "a.example",
        clock.read(),
    )
    .unwrap();
}

#[tokio::test]
async fn peer_73_a_clock_that_is_moved_leaves_no_leaf_of_another_time() {
    let clock = TestClock::now();
    let authority = authority_at(&clock);
    let first = chain(&authority, "a.example").await;
    clock.set_back(Duration::from_mins(30));
    assert_eq!(chain(&authority, "a.example").await, first);
    clock.set_back(Duration::from_hours(1));
    let second = chain(&authority, "a.example").await;
    assert_ne!(second, first);
    verify(
        authority.root().cert_der(),
        &second,
        "a.example",
        clock.read(),
    )
    .unwrap();
    // Weeks of a process, and a day to either side.
    let verified = async || {
        let chain = chain(&authority, "a.example").await;
        let trusted = authority.root().cert_der();
        verify(trusted, &chain, "a.example", clock.read()).unwrap();
    };
    for _ in 0..28 {
        clock.advance(DAY);
        verified().await;
    }
    for _ in 0..3 {
        clock.set_back(DAY);
        verified().await;
        clock.advance(2 * DAY);
        verified().await;
    }
}

#[tokio::test]
async fn peer_70_no_leaf_has_the_root_s_key() {
    let authority = authority();
    let root = parse(authority.root().cert_der());
    for name in ["a.example", "127.0.0.1"] {
        let chain = chain(&authority, name).await;
        let leaf = parse(&chain[0]);
        assert_ne!(leaf.public_key().raw, root.public_key().raw, "{name}");
        assert!(!leaf.is_ca(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_first_requests_mint_one_leaf() {
    let clock = TestClock::now();
    let authority = Arc::new(authority_at(&clock));
    for round in 1..=2 {
        let gate = Arc::new(tokio::sync::Barrier::new(1000));
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let (authority, gate) = (Arc::clone(&authority), Arc::clone(&gate));
            requests.spawn(async move {
                gate.wait().await;
                chain(&authority, "a.example").await
            });
        }
        let leaves: HashSet<_> = requests.join_all().await.into_iter().collect();
        assert_eq!(leaves.len(), 1);
        assert_eq!(authority.minted(), round, "also when the leaf is renewed");
        clock.advance(6 * DAY);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_the_mint_in_progress() {
    let authority = Arc::new(authority());
    let cache = Arc::new(LeafCache::new());
    let (name, now) = (host("a.example"), SystemTime::now());
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (finish, finishes) = std::sync::mpsc::channel();
    let first = tokio::spawn({
        let (authority, cache, name) = (Arc::clone(&authority), Arc::clone(&cache), name.clone());
        async move {
            let mint = move || {
                begun.send(()).unwrap();
                finishes.recv().unwrap();
                authority.mint(authority.root(), &host("a.example"), now)
            };
            cache.leaf_for(&name, now, mint).await.unwrap()
        }
    });
    begins.await.unwrap();
    let second = || panic!("a second mint for the same host");
    let mut waiting: Vec<_> = (0..10)
        .map(|_| Box::pin(cache.leaf_for(&name, now, second)))
        .collect();
    for request in &mut waiting {
        let pending = poll_fn(|context| Poll::Ready(request.as_mut().poll(context).is_pending()));
        assert!(pending.await);
    }
    // Whoever gives up waiting takes no one with them.
    drop(waiting.pop());
    finish.send(()).unwrap();
    let minted = first.await.unwrap();
    for request in waiting {
        assert!(Arc::ptr_eq(&request.await.unwrap(), &minted));
    }
    assert_eq!(authority.minted(), 1);
}

#[tokio::test]
async fn a_mint_that_fails_or_is_dropped_blocks_no_one() {
    let clock = TestClock::now();
    let authority = authority_at(&clock);
    clock.advance(4000 * DAY);
    for _ in 0..3 {
        authority
            .certified_key(&host("a.example"))
            .await
            .unwrap_err();
    }
    clock.set_back(4000 * DAY);
    drop(authority.certified_key(&host("a.example")));
    authority.certified_key(&host("a.example")).await.unwrap();
    assert_eq!((authority.minted(), authority.cached()), (1, 1));
}

/// Bounded means that what goes is given back, and that who is asked for all along does not go.
#[tokio::test]
async fn peer_71_twenty_thousand_hosts_leave_the_cache_at_its_bound() {
    let authority = authority();
    let busy = host("busy.example");
    let first = authority.certified_key(&busy).await.unwrap();
    let mut given = Vec::with_capacity(20_000);
    for number in 0..20_000 {
        let name = host(&format!("h{number}.example"));
        let leaf = authority.certified_key(&name).await.unwrap();
        given.push(Arc::downgrade(&leaf));
        assert!(authority.cached() <= HOST_LIMIT);
        if number % 50 == 0 {
            let again = authority.certified_key(&busy).await.unwrap();
            assert!(Arc::ptr_eq(&first, &again), "at {number}");
        }
    }
    assert_eq!(authority.cached(), HOST_LIMIT);
    assert_eq!(authority.minted(), 20_001);
    // No leaf outlives its place: all but one of the places are of the flood.
    let alive = |given: &[Weak<_>]| given.iter().filter(|leaf| leaf.strong_count() > 0).count();
    assert_eq!(alive(&given), HOST_LIMIT - 1);
    // One that went comes back, by one mint.
    let gone = given.iter().position(|leaf| leaf.strong_count() == 0);
    let gone = host(&format!("h{}.example", gone.unwrap()));
    authority.certified_key(&gone).await.unwrap();
    assert_eq!(authority.minted(), 20_002);
    assert_eq!(authority.cached(), HOST_LIMIT);
}

#[tokio::test]
async fn two_authorities_over_one_root_mint_leaves_of_the_same_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::generate_into(folder.path(), "Shared root").unwrap();
    let trusted = root.cert_der().to_vec();
    let again = Root::load_or_generate(folder.path()).unwrap();
    for root in [root, again] {
        let authority = CertificateAuthority::new(root).unwrap();
        let chain = chain(&authority, "a.example").await;
        verify(&trusted, &chain, "a.example", SystemTime::now()).unwrap();
    }
}
