//! Which certificates an upstream may show, and which it may not.

use std::net::{IpAddr, Ipv4Addr};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    date_time_ymd,
};

use super::Stage;
use super::issue::{Authority, Shown, by_openssl, dns, rsa_key, self_signed};
use super::versions::Server;
use crate::support::{GOOD, TestCa};

/// What must not be believed: why, for which target, and what is shown.
type Refused = (&'static str, &'static str, Shown);

fn named(name: &str) -> impl FnOnce(&mut CertificateParams) {
    let name = dns(name);
    move |params: &mut CertificateParams| params.subject_alt_names = vec![name]
}

/// Leaves of the trusted root with something wrong in them.
fn bad_leaves(root: &Authority) -> Vec<Refused> {
    let leaf = |change: fn(&mut CertificateParams)| root.leaf(change);
    vec![
        (
            "expired",
            GOOD,
            leaf(|params| {
                params.not_before = date_time_ymd(2019, 1, 1);
                params.not_after = date_time_ymd(2020, 1, 1);
            }),
        ),
        (
            "not valid yet",
            GOOD,
            leaf(|params| params.not_before = date_time_ymd(2900, 1, 1)),
        ),
        (
            "for clients only",
            GOOD,
            leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ),
        (
            "for something else only",
            GOOD,
            leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ),
        (
            "a CA as the leaf",
            GOOD,
            leaf(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ),
        (
            "a critical extension that nobody knows",
            GOOD,
            leaf(|params| {
                let mut extension =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions = vec![extension];
            }),
        ),
    ]
}

/// Names that are not the target's: why, for which target, and the name.
const NAMES: &[(&str, &str, &str)] = &[
    ("wrong host", GOOD, "other.example.com"),
    ("the parent's name", GOOD, "example.com"),
    ("a child's name", GOOD, "a.good.example.com"),
    ("a wildcard for everything", GOOD, "*"),
    ("a wildcard for .com", GOOD, "*.com"),
    // One label above the target, where it would match if it were allowed to.
    ("a wildcard for the top", "good.example", "*.example"),
    ("a wildcard that ends the name", GOOD, "good.example.*"),
    ("a wildcard in the middle", GOOD, "good.*.com"),
    ("two wildcards", GOOD, "*.*.com"),
    ("part of a label", GOOD, "g*d.example.com"),
    ("the end of a label", GOOD, "*d.example.com"),
    ("the start of a label", GOOD, "g*.example.com"),
    (
        "a wildcard of two labels",
        "a.good.example.com",
        "*.example.com",
    ),
    ("a wildcard at its own name", GOOD, "*.good.example.com"),
    (
        "NUL in the name",
        GOOD,
        "good.example.com\0.evil.example.net",
    ),
    ("NUL behind the name", GOOD, "good.example.com\0"),
    ("a blank before the name", GOOD, " good.example.com"),
    ("an address as a name", "127.0.0.1", "127.0.0.1"),
];

/// Leaves of the trusted root with other names than the target's.
fn bad_names(root: &Authority) -> Vec<Refused> {
    let leaf = |change: fn(&mut CertificateParams)| root.leaf(change);
    let other = vec![
        (
            "no name",
            GOOD,
            leaf(|params| params.subject_alt_names.clear()),
        ),
        (
            "the common name alone",
            GOOD,
            leaf(|params| {
                params.subject_alt_names.clear();
                params.distinguished_name.push(DnType::CommonName, GOOD);
            }),
        ),
        (
            "the common name beside another name",
            GOOD,
            leaf(|params| {
                params.subject_alt_names = vec![dns("other.example.com")];
                params.distinguished_name.push(DnType::CommonName, GOOD);
            }),
        ),
        (
            "another address",
            "127.0.0.1",
            leaf(|params| {
                let other = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
                params.subject_alt_names = vec![SanType::IpAddress(other)];
            }),
        ),
        ("no address", "127.0.0.1", root.leaf(|_params| {})),
    ];
    let named = NAMES
        .iter()
        .map(|(case, host, name)| (*case, *host, root.leaf(named(name))));
    named.chain(other).collect()
}

/// Chains that do not lead to the trusted root, or not as they should.
fn bad_chains(root: &Authority) -> Vec<Refused> {
    let stranger = Authority::root("a stranger");
    let namesake = Authority::root("the root");
    let middle = root.under("a middle one", |_params| {});
    let is_no_ca = root.under("no CA", |params| params.is_ca = IsCa::ExplicitNoCa);
    let says_nothing = root.under("says nothing", |params| params.is_ca = IsCa::NoCa);
    let short = root.under("a short one", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = short.under("below", |_params| {});
    let old = root.under("an old one", |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let clients = root.under("for clients", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let constrained = |permitted: &[&str], excluded: &[&str]| {
        let subtrees = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            names.map(GeneralSubtree::DnsName).collect()
        };
        root.under("constrained", |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: subtrees(permitted),
                excluded_subtrees: subtrees(excluded),
            });
        })
    };
    let elsewhere = constrained(&["example.net"], &[]);
    let not_here = constrained(&[], &["example.com"]);
    let from = |issuer: &Authority| issuer.leaf(|_params| {});
    vec![
        ("self-signed", GOOD, self_signed(|_params| {})),
        (
            "self-signed, as a CA",
            GOOD,
            self_signed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ),
        ("an unknown root", GOOD, from(&stranger)),
        (
            "an unknown root that is shown",
            GOOD,
            from(&stranger).with(&[&stranger]),
        ),
        (
            "an unknown root of the same name",
            GOOD,
            from(&namesake).with(&[&namesake]),
        ),
        ("a missing intermediate", GOOD, from(&middle)),
        ("another intermediate", GOOD, from(&middle).with(&[&short])),
        (
            "a name outside of those permitted",
            GOOD,
            from(&elsewhere).with(&[&elsewhere]),
        ),
        ("an excluded name", GOOD, from(&not_here).with(&[&not_here])),
        (
            "a leaf as the issuer",
            GOOD,
            from(&is_no_ca).with(&[&is_no_ca]),
        ),
        (
            "an issuer that does not say so",
            GOOD,
            from(&says_nothing).with(&[&says_nothing]),
        ),
        (
            "a path too long",
            GOOD,
            from(&below).with(&[&below, &short]),
        ),
        ("an expired intermediate", GOOD, from(&old).with(&[&old])),
        (
            "an intermediate for clients",
            GOOD,
            from(&clients).with(&[&clients]),
        ),
    ]
}

#[tokio::test]
async fn case_70_an_upstream_that_is_not_verified_gets_nothing() {
    let root = Authority::root("the root");
    let roots = [root.pem.clone()];
    let mut cases = bad_leaves(&root);
    cases.extend(bad_names(&root));
    cases.extend(bad_chains(&root));
    for (case, host, shown) in cases {
        let stage = Stage::set(shown.origin().await, host, &roots).await;
        stage.is_refused(case, "tls_certificate_error").await;
        // The TLS of both connections is over, and no byte came out of it.
        stage.scene.good.wait_ended(2).await;
        stage.scene.good.expect_nothing(case);
    }
}

#[tokio::test]
async fn case_70_weak_signatures_and_keys_get_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let curve = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
    let root = Authority::root_with("the root", rsa_key(2048), |_params| {});
    let elliptic = Authority::root("the elliptic root");
    let roots = [root.pem.clone(), elliptic.pem.clone()];
    for (case, issuer, digest) in [
        ("RSA with SHA-1", &root, "sha1"),
        ("RSA with MD5", &root, "md5"),
        ("ECDSA with SHA-1", &elliptic, "sha1"),
    ] {
        let Some(shown) = by_openssl(issuer, folder.path(), curve, digest) else {
            return;
        };
        let stage = Stage::set(shown.origin().await, GOOD, &roots).await;
        stage.is_refused(case, "tls_certificate_error").await;
        stage.scene.good.wait_ended(2).await;
        stage.scene.good.expect_nothing(case);
    }
    // The same by the same hand is believed where the digest is of this century.
    let shown = by_openssl(&root, folder.path(), curve, "sha256").expect("openssl");
    let stage = Stage::set(shown.origin().await, GOOD, &roots).await;
    stage.is_answered("RSA with SHA-256").await;
    // A key of 1,024 bits; openssl has to serve it as well.
    let short = "-algorithm RSA -pkeyopt rsa_keygen_bits:1024";
    by_openssl(&root, folder.path(), short, "sha256").expect("openssl");
    for options in ["-tls1_2", "-tls1_3"] {
        let case = format!("RSA of 1024 bits with {options}");
        let server = Server::start(folder.path(), options).await;
        let stage = server.stage(&roots).await;
        stage.is_refused(&case, "tls_certificate_error").await;
        server.received_nothing(&case);
    }
}

/// What must be believed: why, for which target, and what is shown.
fn good_leaves(
    root: &Authority,
    rsa_root: &Authority,
    old: &Authority,
) -> Vec<(&'static str, &'static str, Shown)> {
    let crossed = old.under_with("the root", root.key(), |params| {
        params.not_after = date_time_ymd(2019, 1, 1);
    });
    let middle = root.under("a middle one", |_params| {});
    let constrained = root.under("constrained", |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let short = root.under("a short one", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let right = |_params: &mut CertificateParams| {};
    let keyed = |key: &KeyPair| root.leaf_with(key, |_params| {});
    let generated = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
    vec![
        ("P-256", GOOD, root.leaf(right)),
        ("P-384", GOOD, keyed(&generated(&PKCS_ECDSA_P384_SHA384))),
        ("Ed25519", GOOD, keyed(&generated(&PKCS_ED25519))),
        ("RSA of 2048 bits", GOOD, keyed(&rsa_key(2048))),
        ("RSA of 3072 bits", GOOD, keyed(&rsa_key(3072))),
        ("an RSA root", GOOD, rsa_root.leaf(right)),
        (
            "a wildcard of one label",
            GOOD,
            root.leaf(named("*.example.com")),
        ),
        (
            "another case of letters",
            GOOD,
            root.leaf(named("GOOD.Example.COM")),
        ),
        (
            "one name of many",
            GOOD,
            root.leaf(|params| params.subject_alt_names = vec![dns("a.example"), dns(GOOD)]),
        ),
        (
            "an address",
            "127.0.0.1",
            root.leaf(|params| {
                let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
                params.subject_alt_names = vec![SanType::IpAddress(address)];
            }),
        ),
        ("an intermediate", GOOD, middle.leaf(right).with(&[&middle])),
        (
            "more certificates than needed",
            GOOD,
            middle.leaf(right).with(&[&short, &middle, root, old]),
        ),
        (
            "a name that is permitted",
            GOOD,
            constrained.leaf(right).with(&[&constrained]),
        ),
        (
            "a path that is long enough",
            GOOD,
            short.leaf(right).with(&[&short]),
        ),
        (
            "a cross-signed root whose elder has expired",
            GOOD,
            middle.leaf(right).with(&[&middle, &crossed, old]),
        ),
        (
            "for servers and clients",
            GOOD,
            root.leaf(|params| {
                params.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
            }),
        ),
    ]
}

#[tokio::test]
async fn case_71_an_upstream_that_is_verified_is_served() {
    let root = Authority::root("the root");
    let rsa_root = Authority::root_with("the RSA root", rsa_key(2048), |_params| {});
    // A root whose time is over and that vouched for the one that followed it.
    let old = Authority::root_with(
        "the old root",
        KeyPair::generate().expect("a key"),
        |params| {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        },
    );
    let roots = [root.pem.clone(), rsa_root.pem.clone(), old.pem.clone()];
    for (case, host, shown) in good_leaves(&root, &rsa_root, &old) {
        let stage = Stage::set(shown.origin().await, host, &roots).await;
        stage.is_answered(case).await;
    }
    // And the suite's own CA is not what makes the difference.
    assert!(!roots.iter().any(|pem| pem == TestCa::shared().pem()));
}
