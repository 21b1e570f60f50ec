//! The root certificate and its key: generated, or brought by the operator.
//!
//! Whatever its origin, a root is checked rule by rule and then proven: a leaf is minted and
//! verified as a client would, before the first sandbox sees one. The key is read and used here,
//! is written only when generated, and has no accessor. Called by `app` and the command line.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::SigningKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Version;
use zeroize::Zeroizing;

use crate::authority::Error;
use crate::authority::files;
use crate::authority::leaf::{COMMON_NAME_LIMIT_CHARS, Issuer, LeafKey, mint, serial};
use crate::host::Host;

/// How long a generated root is valid: ten years.
const LIFETIME: Duration = Duration::from_hours(3650 * 24);
/// How far a generated root is dated back: more than any leaf.
const BACKDATE: Duration = Duration::from_hours(24);
/// How long before its end a root is worth a warning.
const NEAR_END: Duration = Duration::from_hours(30 * 24);
/// The fewest bits of an RSA root that clients accept.
const RSA_LIMIT_BITS: usize = 2048;
/// The host of the leaf that proves a root; no name under it ever resolves (RFC 2606 §2).
const PROBE_HOST: &str = "probe.invalid";
/// The characters of a line of PEM (RFC 7468 §2).
const PEM_LINE_CHARS: usize = 64;

/// A root: the certificate that clients trust, and the key that signs leaves.
pub struct Root {
    cert: CertificateDer<'static>,
    cert_pem: String,
    /// True for an intermediate: its certificate then travels with every leaf.
    is_intermediate: bool,
    issuer: Issuer,
    warnings: Vec<&'static str>,
}

impl Root {
    /// Generates an ECDSA P-256 root in memory, valid for ten years; its key dies with it.
    ///
    /// # Errors
    /// A common name that is empty or over 64 characters is [`Error::Certificate`].
    pub fn generate(common_name: &str) -> Result<Self, Error> {
        let now = SystemTime::now();
        Generated::new(common_name, now)?.into_root(now)
    }

    /// Generates a root and writes it as `ca.pem` and `ca.key` into a folder.
    ///
    /// # Errors
    /// [`Error::Exists`] where the folder already has one of the files; nothing is overwritten.
    pub fn generate_into(folder: &Path, common_name: &str) -> Result<Self, Error> {
        let pair = files::Pair::lock(folder)?;
        if pair.state() != files::State::Absent {
            return Err(Error::Exists {
                path: folder.to_path_buf(),
            });
        }
        let generated = Generated::new(common_name, SystemTime::now())?;
        pair.write(generated.cert_pem.as_bytes(), generated.key_pem.as_bytes())?;
        Self::load(&pair.cert, &pair.key)
    }

    /// Loads `ca.pem` and `ca.key` of a folder, or generates them at the first start. A
    /// generation that a crash cut short is completed or begun anew; two processes at once agree.
    ///
    /// # Errors
    /// [`Error::HalfRoot`] where only one of the files is there: a new root would be one that no
    /// sandbox trusts.
    pub fn load_or_generate(folder: &Path) -> Result<Self, Error> {
        let pair = files::Pair::lock(folder)?;
        match pair.state() {
            files::State::Absent => {
                let generated = Generated::new(&fresh_common_name(), SystemTime::now())?;
                pair.write(generated.cert_pem.as_bytes(), generated.key_pem.as_bytes())?;
            }
            files::State::Interrupted => pair.complete()?,
            files::State::CertificateOnly => {
                return Err(Error::HalfRoot {
                    missing: pair.key,
                    present: pair.cert,
                });
            }
            files::State::KeyOnly => {
                return Err(Error::HalfRoot {
                    missing: pair.cert,
                    present: pair.key,
                });
            }
            files::State::Whole => {}
        }
        Self::load(&pair.cert, &pair.key)
    }

    /// Loads a root from two PEM files: exactly one certificate, and its key in PKCS #8, SEC1 or
    /// PKCS #1. At most 64 KiB each.
    ///
    /// # Errors
    /// [`Error::KeyFileMode`] where others than the owner can reach the key; else as
    /// [`Root::from_pem`], with the file's path.
    pub fn load(cert_path: &Path, key_path: &Path) -> Result<Self, Error> {
        let cert = files::read(cert_path, files::Access::Public)?;
        let key = files::read(key_path, files::Access::Private)?;
        let source = Source {
            cert: cert_path.display().to_string(),
            key: key_path.display().to_string(),
        };
        Self::from_parts(&source, &cert, &key, SystemTime::now())
    }

    /// Takes a root from two PEM texts, checks it and proves it with a leaf.
    ///
    /// # Errors
    /// [`Error::Certificate`] and [`Error::Key`] name the rule that was broken; [`Error::Probe`]
    /// says why a leaf would not be trusted.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let source = Source {
            cert: "root certificate".to_owned(),
            key: "root key".to_owned(),
        };
        Self::from_parts(
            &source,
            cert_pem.as_bytes(),
            key_pem.as_bytes(),
            SystemTime::now(),
        )
    }

    /// Takes a root from two texts of one file, as it is at a time.
    pub(super) fn from_texts(
        origin: &str,
        cert_pem: &[u8],
        key_pem: &[u8],
        now: SystemTime,
    ) -> Result<Self, Error> {
        let source = Source {
            cert: origin.to_owned(),
            key: origin.to_owned(),
        };
        Self::from_parts(&source, cert_pem, key_pem, now)
    }

    /// Returns the certificate as PEM: exactly one block and no other text.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the certificate as DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.cert
    }

    /// Returns what is odd about this root but no reason to refuse it, for the log.
    pub fn warnings(&self) -> &[&'static str] {
        &self.warnings
    }

    /// Returns when it ends.
    pub(super) fn end(&self) -> SystemTime {
        self.issuer.not_after
    }

    /// Returns what minting needs.
    pub(super) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Completes a chain: the leaf, and an intermediate behind it. A client trusts its root
    /// already, so that a root is not sent (RFC 8446 §4.4.2).
    pub(super) fn chain(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        if self.is_intermediate {
            vec![leaf, self.cert.clone()]
        } else {
            vec![leaf]
        }
    }

    fn from_parts(
        source: &Source,
        cert_pem: &[u8],
        key_pem: &[u8],
        now: SystemTime,
    ) -> Result<Self, Error> {
        let refuse_cert = |rule| Error::Certificate {
            origin: source.cert.clone(),
            rule,
        };
        let refuse_key = |rule| Error::Key {
            origin: source.key.clone(),
            rule,
        };
        let cert = only_certificate(cert_pem).map_err(refuse_cert)?;
        let (rest, parsed) = x509_parser::parse_x509_certificate(&cert)
            .map_err(|_unreadable| refuse_cert("is not a readable X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(refuse_cert("has bytes after its end"));
        }
        check_certificate(&parsed, now).map_err(refuse_cert)?;
        let key = only_key(key_pem).map_err(refuse_key)?;
        if !Issuer::can_sign_with(key.as_ref()) {
            return Err(refuse_key(
                "is of an unknown kind; bring ECDSA (P-256, P-384, P-521), RSA or Ed25519",
            ));
        }
        let public = key.public_key();
        if public.is_none_or(|public| public.as_ref() != parsed.subject_pki.raw) {
            return Err(refuse_key("does not belong to the certificate"));
        }
        let root = Self {
            cert_pem: certificate_pem(&cert),
            is_intermediate: parsed.subject().as_raw() != parsed.issuer().as_raw(),
            issuer: Issuer {
                subject: parsed.subject().as_raw().to_vec(),
                key_identifier: key_identifier(&parsed),
                key,
                not_after: system_time(parsed.validity().not_after.timestamp()),
            },
            warnings: warnings(&parsed, now),
            cert: cert.clone(),
        };
        root.prove(now).map_err(|failure| match failure {
            Error::Mint { source: cause } => Error::Probe {
                origin: source.cert.clone(),
                source: cause,
            },
            other => other,
        })?;
        Ok(root)
    }

    /// Mints a leaf and verifies it as a client that trusts this root alone.
    fn prove(&self, now: SystemTime) -> Result<(), Error> {
        let failed = |source| Error::Mint { source };
        let host = Host::Name(PROBE_HOST.into());
        let leaf = mint(&self.issuer, &LeafKey::generate()?, &host, now)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.clone()).map_err(failed)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(default_provider()),
        )
        .build()
        .map_err(|cause| failed(rustls::Error::General(cause.to_string())))?;
        let name = ServerName::try_from(PROBE_HOST)
            .map_err(|cause| failed(rustls::Error::General(cause.to_string())))?;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(since);
        verifier
            .verify_server_cert(&leaf.cert, &[], &name, &[], at)
            .map_err(failed)?;
        Ok(())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("is_intermediate", &self.is_intermediate)
            .field("not_after", &self.issuer.not_after)
            .field("key", &"redacted")
            .finish_non_exhaustive()
    }
}

/// Where the two halves came from, for messages.
struct Source {
    cert: String,
    key: String,
}

/// A root that was just made, still with its key in writing.
pub(super) struct Generated {
    pub(super) cert_pem: String,
    pub(super) key_pem: Zeroizing<String>,
}

impl Generated {
    pub(super) fn new(common_name: &str, now: SystemTime) -> Result<Self, Error> {
        if !(1..=COMMON_NAME_LIMIT_CHARS).contains(&common_name.chars().count()) {
            return Err(Error::Certificate {
                origin: "new root".to_owned(),
                rule: "needs a common name of 1 to 64 characters",
            });
        }
        let failed = |source| Error::Generate { source };
        let not_before = now.checked_sub(BACKDATE).ok_or(Error::Clock)?;
        let not_after = not_before.checked_add(LIFETIME).ok_or(Error::Clock)?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial().to_vec().into());
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        // Zero intermediates below: a stolen leaf key could not make a CA of itself anyway.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            cert_pem: certificate_pem(cert.der()),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn into_root(self, now: SystemTime) -> Result<Root, Error> {
        let source = Source {
            cert: "new root".to_owned(),
            key: "new root's key".to_owned(),
        };
        Root::from_parts(
            &source,
            self.cert_pem.as_bytes(),
            self.key_pem.as_bytes(),
            now,
        )
    }
}

/// Names a root of its own, so that two of them in one trust store can be told apart.
pub fn fresh_common_name() -> String {
    let mut tag = [0; 4];
    crate::id::fill_random(&mut tag);
    format!("Oshu Vault CA {}", data_encoding::HEXLOWER.encode(&tag))
}

/// Reads the only certificate of a PEM text.
fn only_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, &'static str> {
    let mut certs = CertificateDer::pem_slice_iter(pem);
    match (certs.next(), certs.next()) {
        (Some(Ok(cert)), None) => Ok(cert),
        (None, _) => Err("is missing: there is no PEM block of a certificate"),
        (Some(Ok(_)), Some(Ok(_))) => {
            Err("must stand alone: keep the signing certificate and remove the others")
        }
        _ => Err("is not well-formed PEM"),
    }
}

/// Reads the only private key of a PEM text. The parser's own errors quote the text, so that none
/// of them may leave this function.
fn only_key(pem: &[u8]) -> Result<Arc<dyn SigningKey>, &'static str> {
    let mut keys = PrivateKeyDer::pem_slice_iter(pem);
    let key = match (keys.next(), keys.next()) {
        (Some(Ok(key)), None) => Zeroizing::new(key),
        (None, _) => {
            return Err(
                "is missing: there is no PEM block of an unencrypted PKCS #8, SEC1 or PKCS #1 key",
            );
        }
        (Some(Ok(_)), Some(Ok(_))) => return Err("must stand alone: remove the other keys"),
        _ => return Err("is not well-formed PEM"),
    };
    any_supported_type(&key)
        .map_err(|_quotes_nothing| "cannot be used; bring ECDSA, RSA (2048 bits on) or Ed25519")
}

/// Checks what RFC 5280 and the strict ones among clients demand of a CA certificate.
fn check_certificate(cert: &X509Certificate<'_>, now: SystemTime) -> Result<(), &'static str> {
    if cert.version() != X509Version::V3 {
        return Err("is not of version 3");
    }
    if cert.subject().iter().next().is_none() {
        return Err("has an empty subject, which leaves cannot name as their issuer");
    }
    let constraints = cert
        .basic_constraints()
        .map_err(|_twice| "has its basic constraints twice")?;
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err("is not a CA's: its basic constraints do not say CA:TRUE");
    }
    let usage = cert
        .key_usage()
        .map_err(|_unreadable| "has an unreadable key usage")?;
    if usage.is_some_and(|found| !found.value.key_cert_sign()) {
        return Err("has a key usage without keyCertSign");
    }
    let extended = cert
        .extended_key_usage()
        .map_err(|_unreadable| "has an unreadable extended key usage")?;
    if extended.is_some_and(|found| !found.value.any && !found.value.server_auth) {
        return Err("has an extended key usage without serverAuth");
    }
    let validity = cert.validity();
    if now < system_time(validity.not_before.timestamp()) {
        return Err("is not valid yet; check this machine's clock");
    }
    if now >= system_time(validity.not_after.timestamp()) {
        return Err("has expired; bring a new root or generate one");
    }
    let public = cert
        .public_key()
        .parsed()
        .map_err(|_unreadable| "has an unreadable public key")?;
    if matches!(public, PublicKey::RSA(rsa) if rsa.key_size() < RSA_LIMIT_BITS) {
        return Err("has an RSA key of fewer than 2048 bits, which clients refuse");
    }
    Ok(())
}

/// Collects what some clients refuse and others do not.
fn warnings(cert: &X509Certificate<'_>, now: SystemTime) -> Vec<&'static str> {
    let mut found = Vec::new();
    if system_time(cert.validity().not_after.timestamp()) < now + NEAR_END {
        found.push("the root expires within 30 days");
    }
    if !matches!(cert.basic_constraints(), Ok(Some(basic)) if basic.critical) {
        found.push("the root's basic constraints are not critical: Python from 3.13 on refuses it");
    }
    if matches!(cert.key_usage(), Ok(None)) {
        found.push("the root has no key usage: Python from 3.13 on refuses it");
    }
    if subject_key_identifier(cert).is_none() {
        found.push("the root has no subject key identifier: Python from 3.13 on refuses it");
    }
    found
}

/// Returns what leaves name as their authority's key: the root's own identifier, else what
/// RFC 5280 §4.2.1.2 would have put there, method 1.
fn key_identifier(cert: &X509Certificate<'_>) -> Vec<u8> {
    subject_key_identifier(cert).map_or_else(
        || {
            let bits = &cert.public_key().subject_public_key.data;
            digest(&SHA1_FOR_LEGACY_USE_ONLY, bits).as_ref().to_vec()
        },
        <[u8]>::to_vec,
    )
}

fn subject_key_identifier<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    cert.extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0),
            _ => None,
        })
}

/// Writes a certificate as one PEM block, without whatever text stood around it in a file.
pub fn certificate_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % PEM_LINE_CHARS == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}

fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
