//! The roots that clients are to trust, in the forms they read: one PEM file, and Java's.
//!
//! Java's form is its own old one (JKS), which every JVM reads and which needs no Java to write:
//! a JVM would cost a second at every start. Public certificates only, and no key is ever near.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// The password of the trust store, the one that every JVM uses for its own. It keeps no secret:
/// it only seeds the digest at the end of the file.
pub const TRUST_STORE_PASSWORD: &str = "changeit";

/// The first bytes of a JKS file, and its version.
const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];
const VERSION: u32 = 2;
/// The kind of entry that is a trusted certificate.
const TRUSTED_CERTIFICATE: u32 = 2;
/// The text that goes into the digest between the password and the content.
const DIGEST_SALT: &[u8] = b"Mighty Aphrodite";
/// The bytes of a line of PEM: 64 characters (RFC 7468 §2).
const PEM_LINE_BYTES: usize = 48;

/// Joins the roots of the system, or the public ones that are compiled in where it has none, and
/// our own in one PEM text. Ours comes last, unless the system's have it already.
pub fn bundle(system: Option<&str>, own: &str) -> String {
    let mut text = match system {
        Some(text) if holds_root(text, own) => return text.to_owned(),
        Some(text) => text.to_owned(),
        None => TLS_SERVER_ROOT_CERTS.iter().map(|root| pem(root)).collect(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(own);
    text
}

/// Tells whether a text has a certificate in PEM.
pub fn holds_certificate(text: &str) -> bool {
    certificates(text).next().is_some()
}

/// Tells whether a PEM text has the certificate of another one.
pub fn holds_root(text: &str, root: &str) -> bool {
    let Some(root) = certificates(root).next() else {
        return false;
    };
    certificates(text).any(|one| one == root)
}

/// Writes the certificates of a bundle as a Java trust store; what cannot be read is left out.
pub fn trust_store(bundle: &str) -> Vec<u8> {
    let made = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let made = u64::try_from(made.as_millis()).unwrap_or_default();
    let mut entries = Vec::new();
    let mut count: u32 = 0;
    for certificate in certificates(bundle) {
        count += 1;
        entries.extend(TRUSTED_CERTIFICATE.to_be_bytes());
        put_text(&mut entries, &format!("root-{count}"));
        entries.extend(made.to_be_bytes());
        put_text(&mut entries, "X.509");
        // A certificate that was read from a text has no more bytes than fit.
        let length = u32::try_from(certificate.len()).unwrap_or_default();
        entries.extend(length.to_be_bytes());
        entries.extend_from_slice(&certificate);
    }
    let mut store = MAGIC.to_vec();
    store.extend(VERSION.to_be_bytes());
    store.extend(count.to_be_bytes());
    store.append(&mut entries);
    let mut digested: Vec<u8> = TRUST_STORE_PASSWORD
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    digested.extend_from_slice(DIGEST_SALT);
    digested.extend_from_slice(&store);
    store.extend_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &digested).as_ref());
    store
}

/// Reads the certificates of a PEM text; what cannot be read is left out.
pub fn certificates(text: &str) -> impl Iterator<Item = CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok)
}

/// Writes a short ASCII text with its length before it.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    out.extend(text.bytes());
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(PEM_LINE_BYTES) {
        text.push_str(&BASE64.encode(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn own() -> String {
        pem(&TLS_SERVER_ROOT_CERTS[0])
    }

    #[test]
    fn a_bundle_has_all_public_roots_and_ours_last() {
        let ours = TLS_SERVER_ROOT_CERTS[0].to_vec();
        let read: Vec<_> = certificates(&bundle(None, &own())).collect();
        assert_eq!(read.len(), TLS_SERVER_ROOT_CERTS.len() + 1);
        assert_eq!(read.last().unwrap().as_ref(), ours);
        let system = pem(&TLS_SERVER_ROOT_CERTS[1]);
        for text in [&system, system.trim_end()] {
            let read: Vec<_> = certificates(&bundle(Some(text), &own())).collect();
            assert_eq!(read.len(), 2);
            assert_eq!(read[1].as_ref(), ours);
        }
        let twice = bundle(Some(&own()), &own());
        assert_eq!(twice, own(), "a root is there once");
        assert!(holds_root(&twice, &own()) && !holds_root(&system, &own()));
        assert!(!holds_root(&twice, "no certificate"));
        assert!(holds_certificate(&own()));
        assert!(!holds_certificate("no certificate"));
    }

    #[test]
    fn the_trust_store_has_javas_layout() {
        let store = trust_store(&own());
        let der = &TLS_SERVER_ROOT_CERTS[0];
        assert_eq!(&store[..12], b"\xfe\xed\xfe\xed\0\0\0\x02\0\0\0\x01");
        assert_eq!(&store[12..24], b"\0\0\0\x02\0\x06root-1");
        assert_eq!(&store[32..39], b"\0\x05X.509");
        assert_eq!(
            store[39..43],
            u32::try_from(der.len()).unwrap().to_be_bytes()
        );
        assert_eq!(store[43..store.len() - 20], der[..]);
    }

    /// The judge of the layout is Java itself; a machine without it has nothing to judge with.
    #[test]
    fn java_reads_the_trust_store_where_it_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cacerts");
        let text = bundle(None, &own());
        std::fs::write(&path, trust_store(&text)).unwrap();
        let mut keytool = Command::new("keytool");
        keytool.args(["-list", "-storepass", TRUST_STORE_PASSWORD, "-keystore"]);
        let Ok(listed) = keytool.arg(&path).stdin(Stdio::null()).output() else {
            return;
        };
        let shown = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.status.success(), "{shown}");
        let entries = shown.matches("trustedCertEntry").count();
        assert_eq!(entries, TLS_SERVER_ROOT_CERTS.len() + 1, "{shown}");
    }
}
