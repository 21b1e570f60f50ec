//! Roots that are refused, each for its reason, and never with a word of the key.

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints,
};

use super::{installed, openssl, root_params, self_signed};
use crate::authority::{Error, Root};

#[test]
fn certificates_that_are_no_sound_roots_are_refused() {
    let spoil = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = root_params();
        change(&mut params);
        params
    };
    let day = Duration::from_hours(24);
    for (params, expected) in [
        (spoil(&|p| p.is_ca = IsCa::NoCa), "do not say CA:TRUE"),
        (
            spoil(&|p| p.is_ca = IsCa::ExplicitNoCa),
            "do not say CA:TRUE",
        ),
        (
            spoil(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            "without keyCertSign",
        ),
        (
            spoil(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "without serverAuth",
        ),
        (
            spoil(&|p| p.not_after = (SystemTime::now() - Duration::from_secs(1)).into()),
            "has expired",
        ),
        (
            spoil(&|p| p.not_before = (SystemTime::now() + day).into()),
            "is not valid yet",
        ),
        (
            spoil(&|p| p.distinguished_name = DistinguishedName::new()),
            "has an empty subject",
        ),
    ] {
        let (cert, key) = self_signed(&params);
        let error = Root::from_pem(&cert, &key).unwrap_err();
        assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
        let message = error.to_string();
        assert!(
            message.starts_with("root certificate: the certificate "),
            "{message}"
        );
        assert!(message.contains(expected), "{message}");
    }
    let (cert, key) = self_signed(&root_params());
    Root::from_pem(&cert, &key).unwrap();
}

#[test]
fn a_root_whose_leaves_no_client_takes_is_found_out_by_the_probe() {
    let mut params = root_params();
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("corp.example".to_owned())],
        excluded_subtrees: vec![],
    });
    let (cert, key) = self_signed(&params);
    let error = Root::from_pem(&cert, &key).unwrap_err();
    assert!(matches!(error, Error::Probe { .. }), "{error:?}");
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("NameConstraintViolation"), "{cause}");
}

#[test]
fn files_with_other_things_than_one_certificate_and_its_key_are_refused() {
    let (cert, key) = self_signed(&root_params());
    let (other_cert, other_key) = self_signed(&root_params());
    let (two_certs, two_keys) = (format!("{cert}{other_cert}"), format!("{key}{other_key}"));
    let one_line = key.replace('\n', "");
    let damaged = cert.replacen("MII", "M!!", 1);
    let (cut_cert, cut_key) = (cert.get(..200).unwrap(), key.get(..100).unwrap());
    let junk_cert = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let junk_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (cert, key, expected) in [
        ("", &*key, "the certificate is missing"),
        (&*key, &key, "the certificate is missing"),
        (&two_certs, &key, "the certificate must stand alone"),
        (&damaged, &key, "the certificate is not well-formed PEM"),
        (cut_cert, &key, "the certificate is not well-formed PEM"),
        (junk_cert, &key, "is not a readable X.509 certificate"),
        (&cert, "", "the key is missing"),
        (&cert, &encrypted, "the key is missing"),
        (&cert, &two_keys, "the key must stand alone"),
        (&cert, &one_line, "the key is not well-formed PEM"),
        (&cert, cut_key, "the key is not well-formed PEM"),
        (&cert, junk_key, "the key cannot be used"),
        (
            &cert,
            &other_key,
            "the key does not belong to the certificate",
        ),
    ] {
        let error = Root::from_pem(cert, key).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        shows_no_key(&error, key);
    }
}

/// Fails where any line of a key's PEM stands in an error, printed in whatever way.
fn shows_no_key(error: &Error, key: &str) {
    let printed = format!("{error} {error:?} {:?}", error.source());
    for line in key
        .lines()
        .filter(|line| line.len() >= 16 && !line.contains("-----"))
    {
        let part = line.get(..16).unwrap();
        assert!(!printed.contains(part), "{printed}");
        assert!(
            !printed.contains(&format!("{:?}", part.as_bytes())),
            "{printed}"
        );
    }
}

#[test]
fn small_rsa_keys_and_unknown_curves_are_refused() {
    if !installed("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (make, expected) in [
        ("rsa:1024", "fewer than 2048 bits"),
        (
            "ec -pkeyopt ec_paramgen_curve:P-224",
            "the key cannot be used",
        ),
        ("ed448", "the key cannot be used"),
    ] {
        openssl(
            path,
            &format!("req -x509 -newkey {make} -noenc -keyout ca.key -out ca.pem -subj /CN=x"),
        );
        fs::set_permissions(path.join("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let error = Root::load(&path.join("ca.pem"), &path.join("ca.key")).unwrap_err();
        assert!(error.to_string().contains(expected), "{make}: {error}");
        shows_no_key(&error, &fs::read_to_string(path.join("ca.key")).unwrap());
    }
}

#[test]
fn a_key_file_that_others_can_reach_is_refused_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let (cert_path, key_path) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
    Root::load_or_generate(folder.path()).unwrap();
    for mode in [0o644, 0o640, 0o604, 0o620, 0o601, 0o777] {
        fs::set_permissions(&key_path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Root::load_or_generate(folder.path())
            .unwrap_err()
            .to_string();
        let expected = format!("{} has mode {mode:04o}", key_path.display());
        assert!(error.starts_with(&expected), "{error}");
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&key_path, fs::Permissions::from_mode(mode)).unwrap();
        Root::load(&cert_path, &key_path).unwrap();
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (cert_path, key_path) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
    let error = Root::load(&cert_path, &key_path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read {}", cert_path.display())
    );
    assert!(error.source().is_some());

    Root::load_or_generate(folder.path()).unwrap();
    fs::write(&key_path, vec![b'x'; 65_537]).unwrap();
    let error = Root::load(&cert_path, &key_path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read {}", key_path.display())
    );
    assert!(error.source().unwrap().to_string().contains("64 KiB"));
}

#[test]
fn a_new_root_needs_a_common_name_that_fits() {
    for name in [String::new(), "x".repeat(65)] {
        let error = Root::generate(&name).unwrap_err().to_string();
        assert!(error.contains("common name"), "{error}");
    }
    Root::generate(&"x".repeat(64)).unwrap();
}

#[test]
fn debug_shows_no_key() {
    let (cert, key) = self_signed(&root_params());
    let root = Root::from_pem(&cert, &key).unwrap();
    let printed = format!("{root:?}");
    assert!(printed.contains("redacted"), "{printed}");
    assert!(printed.len() < 200, "{printed}");
}
