//! Roots that are accepted: generated ones and their files, and brought ones of every name and key.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{
    chain, installed, longest_name, openssl, openssl_with, root_params, self_signed, verify,
};
use crate::authority::{CertificateAuthority, Error, Root};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn case_82_a_root_is_generated_once_and_only_its_owner_reads_the_key() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("state/ca");
    let root = Root::load_or_generate(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("ca.key")), 0o600);
    assert_eq!(mode(&folder.join("ca.pem")), 0o644);
    assert_eq!(entries(&folder), ["ca.key", "ca.pem"]);
    let written = fs::read_to_string(folder.join("ca.pem")).unwrap();
    assert_eq!(written, root.cert_pem());
    assert!(root.warnings().is_empty());

    let again = Root::load_or_generate(&folder).unwrap();
    assert_eq!(again.cert_der(), root.cert_der());
    let error = Root::generate_into(&folder, "Another").unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(fs::read_to_string(folder.join("ca.pem")).unwrap(), written);
}

/// Two processes with one root: whoever trusts it trusts the leaves of both.
#[tokio::test]
async fn case_82_two_nodes_mint_from_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let node = || {
        let root = Root::load_or_generate(folder.path()).unwrap();
        CertificateAuthority::new(root).unwrap()
    };
    let (one, two) = (node(), node());
    let trusted = one.root().cert_der().to_vec();
    assert_eq!(two.root().cert_der(), trusted);
    for name in ["api.example.com", "192.0.2.7", &longest_name()] {
        let first = chain(&one, name).await;
        let second = chain(&two, name).await;
        assert_ne!(
            first, second,
            "each has a key and a serial number of its own"
        );
        for chain in [first, second] {
            verify(&trusted, &chain, name, SystemTime::now()).unwrap();
        }
    }
}

#[test]
fn starts_at_the_same_time_agree_on_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let start = || Root::load_or_generate(folder.path()).unwrap();
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert!(
        roots
            .iter()
            .all(|root| root.cert_der() == roots[0].cert_der())
    );
}

#[test]
fn half_a_root_is_refused_and_an_interrupted_one_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let root = Root::load_or_generate(folder.path()).unwrap();

    fs::rename(path("ca.key"), path("aside")).unwrap();
    let error = Root::load_or_generate(folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("ca.key is missing beside"), "{error}");
    fs::rename(path("aside"), path("ca.key")).unwrap();

    fs::rename(path("ca.pem"), path("aside")).unwrap();
    let error = Root::load_or_generate(folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("ca.pem is missing beside"), "{error}");

    // A crash between the two renames: the certificate is written, but not in its place.
    fs::rename(path("aside"), path(".ca.pem.new")).unwrap();
    let completed = Root::load_or_generate(folder.path()).unwrap();
    assert_eq!(completed.cert_der(), root.cert_der());

    // A crash before the first of them: nobody has seen that root.
    fs::rename(path("ca.pem"), path(".ca.pem.new")).unwrap();
    fs::rename(path("ca.key"), path(".ca.key.new")).unwrap();
    let anew = Root::load_or_generate(folder.path()).unwrap();
    assert_ne!(anew.cert_der(), root.cert_der());
    assert_eq!(entries(folder.path()), ["ca.key", "ca.pem"]);
}

#[test]
fn peer_69_a_generated_root_passes_the_strict_check_of_openssl() {
    if !installed("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    Root::load_or_generate(folder.path()).unwrap();
    let text = openssl(folder.path(), "x509 -in ca.pem -noout -text");
    for expected in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
        "Subject Key Identifier",
        "ASN1 OID: prime256v1",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    openssl(
        folder.path(),
        "verify -x509_strict -check_ss_sig -CAfile ca.pem ca.pem",
    );
}

/// One brought root: what it is about, how its key is made, its subject, how openssl writes names.
struct Brought {
    about: &'static str,
    key: &'static str,
    subject: &'static str,
    strings: &'static str,
}

const EC: &str = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256";

fn brought_roots() -> Vec<Brought> {
    let brought = |about, key, subject, strings| Brought {
        about,
        key,
        subject,
        strings,
    };
    let rsa = "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048";
    let p384 = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384";
    let p521 = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521";
    vec![
        brought(
            "two DC, RSA",
            rsa,
            "/DC=com/DC=corp/CN=Corp Issuing CA",
            "pkix",
        ),
        brought(
            "two OU",
            EC,
            "/O=Corp/OU=Security/OU=Proxies/CN=Root",
            "utf8only",
        ),
        brought("multi-valued RDN", EC, "/C=CH/O=Corp/OU=a+CN=b", "utf8only"),
        brought(
            "printable strings",
            p384,
            "/C=CH/ST=Bern/O=Corp/CN=Root",
            "nombstr",
        ),
        brought("not ASCII", EC, "/O=B\u{fc}cher/CN=W\u{fc}rzel", "utf8only"),
        brought(
            "16-bit strings",
            EC,
            "/O=B\u{fc}cher/CN=\u{6839}",
            "MASK:2050",
        ),
        brought(
            "mail address",
            p521,
            "/CN=Root/emailAddress=ca@corp.example",
            "pkix",
        ),
        brought("no CN", EC, "/O=Corp/OU=Only", "utf8only"),
        brought(
            "Ed25519",
            "genpkey -algorithm ED25519",
            "/CN=Root",
            "utf8only",
        ),
        brought(
            "RSA in PKCS #1",
            "genrsa -traditional 2048",
            "/CN=Root",
            "utf8only",
        ),
        brought(
            "SEC1",
            "ecparam -name prime256v1 -genkey",
            "/CN=Root",
            "utf8only",
        ),
    ]
}

/// Writes `ca.pem` and `ca.key` into a folder as an operator with openssl would.
fn bring(folder: &Path, root: &Brought) {
    let key = openssl_with(folder, &root.key.split(' ').collect::<Vec<_>>());
    let key = key.get(key.find("-----BEGIN").unwrap()..).unwrap();
    fs::write(folder.join("ca.key"), key).unwrap();
    fs::set_permissions(folder.join("ca.key"), fs::Permissions::from_mode(0o400)).unwrap();
    let config = format!(
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nstring_mask={}\nutf8=yes\n[dn]\n[ext]\n\
         basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
         subjectKeyIdentifier=hash\n",
        root.strings
    );
    fs::write(folder.join("ca.cnf"), config).unwrap();
    let mut arguments: Vec<_> = "req -x509 -new -config ca.cnf -key ca.key -days 30 -out ca.pem"
        .split(' ')
        .collect();
    arguments.extend(["-utf8", "-multivalue-rdn", "-subj", root.subject]);
    openssl_with(folder, &arguments);
}

#[tokio::test]
async fn brought_roots_of_every_name_and_key_sign_leaves_that_verify() {
    if !installed("openssl") {
        return;
    }
    let longest = longest_name();
    for root in brought_roots() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        bring(path, &root);
        let loaded = Root::load(&path.join("ca.pem"), &path.join("ca.key")).unwrap();
        let trusted = loaded.cert_der().to_vec();
        let authority = CertificateAuthority::new(loaded).unwrap();
        for name in ["api.example.com", "192.0.2.7", "[2001:db8::1]", &longest] {
            let chain = chain(&authority, name).await;
            verify(&trusted, &chain, name, SystemTime::now()).unwrap();
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            let (_, issuer) = x509_parser::parse_x509_certificate(&trusted).unwrap();
            assert_eq!(
                leaf.issuer().as_raw(),
                issuer.subject().as_raw(),
                "{}",
                root.about
            );
            fs::write(path.join("leaf.der"), &chain[0]).unwrap();
            let option = if name.contains('a') {
                "-verify_hostname"
            } else {
                "-verify_ip"
            };
            let bare = name.trim_matches(['[', ']']);
            let arguments = format!(
                "verify -x509_strict -purpose sslserver -CAfile ca.pem {option} {bare} leaf.der"
            );
            openssl(path, &arguments);
        }
    }
}

#[tokio::test]
async fn an_intermediate_travels_with_its_leaves() {
    if !installed("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let above =
        rcgen::CertifiedIssuer::self_signed(root_params(), rcgen::KeyPair::generate().unwrap())
            .unwrap();
    let mut params = root_params();
    params.use_authority_key_identifier_extension = true;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Intermediate");
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &above).unwrap();
    let root = Root::from_pem(&cert.pem(), &key.serialize_pem()).unwrap();
    let authority = CertificateAuthority::new(root).unwrap();
    let chain = chain(&authority, "a.example").await;
    assert_eq!(chain[1..], [cert.der().clone()]);
    verify(above.der(), &chain, "a.example", SystemTime::now()).unwrap();

    fs::write(path.join("above.pem"), above.pem()).unwrap();
    fs::write(path.join("between.pem"), cert.pem()).unwrap();
    fs::write(path.join("leaf.der"), &chain[0]).unwrap();
    openssl(
        path,
        "verify -x509_strict -CAfile above.pem -untrusted between.pem leaf.der",
    );
}

#[test]
fn a_published_certificate_has_nothing_of_the_file_around_it() {
    let (cert, key) = self_signed(&root_params());
    // Key and certificate in one file, with a text in front: a common way to keep them.
    let file = format!("subject: root\n{key}{cert}trailing text\n");
    let root = Root::from_pem(&file, &key).unwrap();
    assert_eq!(root.cert_pem(), cert.replace('\r', ""));
    assert!(!root.cert_pem().contains("PRIVATE"));
}

#[test]
fn case_82_roots_that_some_clients_refuse_are_taken_with_a_warning() {
    let mut params = root_params();
    params.key_usages.clear();
    params.not_after = (SystemTime::now() + Duration::from_hours(24)).into();
    let (cert, key) = self_signed(&params);
    let warnings = Root::from_pem(&cert, &key).unwrap().warnings().join("; ");
    assert!(warnings.contains("no key usage"), "{warnings}");
    assert!(warnings.contains("within 30 days"), "{warnings}");
    // Nearly a month is near, a month is not, and one that is over is refused.
    let day = Duration::from_hours(24);
    for (days, near) in [(29, true), (31, false)] {
        let mut params = root_params();
        params.not_after = (SystemTime::now() + day * days).into();
        let (cert, key) = self_signed(&params);
        let warnings = Root::from_pem(&cert, &key).unwrap().warnings().join("; ");
        assert_eq!(warnings.contains("within 30 days"), near, "{warnings}");
    }
    let mut params = root_params();
    params.not_before = (SystemTime::now() - 2 * day).into();
    params.not_after = (SystemTime::now() - Duration::from_mins(1)).into();
    let (cert, key) = self_signed(&params);
    let error = Root::from_pem(&cert, &key).unwrap_err().to_string();
    assert!(error.contains("has expired"), "{error}");
}
