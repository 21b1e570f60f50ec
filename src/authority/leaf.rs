//! Mints one leaf certificate, written out byte by byte.
//!
//! The issuer is the root's subject as it lies in the root, never parsed and encoded again: a
//! library that sorts or merges name attributes makes leaves that no client can chain. One P-256
//! key serves all leaves and is not the root's. Called by `root` for its probe and by the module's
//! face; it keeps nothing and knows no file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, alg_id,
};
use rustls::sign::SigningKey;
use time::OffsetDateTime;

use crate::authority::Error;
use crate::authority::der;
use crate::host::Host;
use crate::id::fill_random;

/// The whole life of a leaf. RFC 5280 §4.1.2.5 counts both ends, hence one second less than seven
/// days.
pub(super) const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600 - 1);
/// How far a leaf is dated back, for sandboxes whose clock is behind ours.
pub(super) const BACKDATE: Duration = Duration::from_hours(1);
/// The longest common name (RFC 5280 appendix A.1, ub-common-name).
pub(super) const COMMON_NAME_LIMIT_CHARS: usize = 64;

/// The bytes of a serial number; RFC 5280 §4.1.2.2 allows 20.
const SERIAL_BYTES: usize = 16;
/// The bytes of a key identifier, as long as the SHA-1 that most certificates carry.
const KEY_IDENTIFIER_BYTES: usize = 20;

// Object identifiers, whole elements (RFC 5280 appendix A).
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// BIT STRING with `digitalSignature` alone: all that ECDSA needs in TLS 1.2 and 1.3.
const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x07, 0x80];
/// INTEGER 2 under `[0]`: the third version, the only one with extensions.
const VERSION_3: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];

const UTF8_STRING: u8 = 0x0c;
const SET: u8 = 0x31;
/// `[3] EXPLICIT`: the extensions of the part to be signed.
const EXTENSIONS: u8 = 0xa3;
/// `[0] IMPLICIT`: the key identifier within an authority key identifier.
const KEY_IDENTIFIER: u8 = 0x80;
/// `[2] IMPLICIT`: a DNS name within a subject alternative name.
const DNS_NAME: u8 = 0x82;
/// `[7] IMPLICIT`: an address within a subject alternative name.
const IP_ADDRESS: u8 = 0x87;

/// The schemes in which a root may sign, with their identifiers in a certificate.
const SCHEMES: &[(SignatureScheme, AlgorithmIdentifier)] = &[
    (SignatureScheme::ECDSA_NISTP256_SHA256, alg_id::ECDSA_SHA256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, alg_id::ECDSA_SHA384),
    (SignatureScheme::ECDSA_NISTP521_SHA512, alg_id::ECDSA_SHA512),
    (SignatureScheme::RSA_PKCS1_SHA256, alg_id::RSA_PKCS1_SHA256),
    (SignatureScheme::ED25519, alg_id::ED25519),
];

/// What minting needs of a root: its name, its key, its identifier, its end.
pub(super) struct Issuer {
    /// The root's subject, DER, byte for byte as in the root.
    pub(super) subject: Vec<u8>,
    /// The root's subject key identifier.
    pub(super) key_identifier: Vec<u8>,
    /// The root's private key.
    pub(super) key: Arc<dyn SigningKey>,
    /// The last second in which the root is valid; no leaf outlives it.
    pub(super) not_after: SystemTime,
}

impl Issuer {
    /// Tells whether leaves can be signed with a key: whether its kind is one of ours.
    pub(super) fn can_sign_with(key: &dyn SigningKey) -> bool {
        SCHEMES
            .iter()
            .any(|(scheme, _)| key.choose_scheme(&[*scheme]).is_some())
    }

    /// Wraps a to-be-signed part into a signed certificate. The part is given the identifier of
    /// the algorithm, which it has to repeat (RFC 5280 §4.1.1.2).
    fn sign(&self, write: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<Vec<u8>, Error> {
        let (signer, algorithm) = SCHEMES
            .iter()
            .find_map(|(scheme, algorithm)| {
                let signer = self.key.choose_scheme(&[*scheme])?;
                Some((signer, der::sequence(&[algorithm.as_ref()])))
            })
            .ok_or_else(|| Error::Mint {
                source: rustls::Error::General("the root's key has no known scheme".to_owned()),
            })?;
        let tbs = write(&algorithm);
        let signature = signer.sign(&tbs).map_err(|source| Error::Mint { source })?;
        Ok(der::sequence(&[
            &tbs,
            &algorithm,
            &der::bit_string(&signature),
        ]))
    }
}

/// The one key pair behind every leaf.
pub(super) struct LeafKey {
    /// The private half, parsed once.
    pub(super) signing: Arc<dyn SigningKey>,
    spki: Vec<u8>,
    identifier: Vec<u8>,
}

impl LeafKey {
    /// Makes a fresh P-256 key pair, which lives and dies with the process.
    pub(super) fn generate() -> Result<Self, Error> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|source| Error::Generate { source })?;
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialized_der()));
        let signing = any_ecdsa_type(&pkcs8).map_err(|source| Error::Mint { source })?;
        let spki = signing.public_key().ok_or_else(|| Error::Mint {
            source: rustls::Error::General("the leaf key shows no public half".to_owned()),
        })?;
        let spki = spki.as_ref().to_vec();
        // RFC 7093 §2, method 1: the leftmost 160 bits of SHA-256 over the key's bits.
        let mut identifier = digest(&SHA256, pair.public_key_raw()).as_ref().to_vec();
        identifier.truncate(KEY_IDENTIFIER_BYTES);
        Ok(Self {
            signing,
            spki,
            identifier,
        })
    }
}

/// A minted certificate and the time in which it is good.
pub(super) struct Leaf {
    /// The certificate.
    pub(super) cert: CertificateDer<'static>,
    /// The first second of its validity.
    pub(super) not_before: SystemTime,
    /// The last second of its validity.
    pub(super) not_after: SystemTime,
}

/// Mints a leaf for one host. One signature: some 30 µs with an ECDSA root, 1 ms with RSA 2048.
///
/// # Errors
/// [`Error::RootExpired`] once the root's own time is over.
pub(super) fn mint(
    issuer: &Issuer,
    key: &LeafKey,
    host: &Host,
    now: SystemTime,
) -> Result<Leaf, Error> {
    if now >= issuer.not_after {
        return Err(Error::RootExpired);
    }
    let not_before = now.checked_sub(BACKDATE).ok_or(Error::Clock)?;
    let end = not_before.checked_add(LIFETIME).ok_or(Error::Clock)?;
    let not_after = end.min(issuer.not_after);
    let validity = der::sequence(&[&der::time(date(not_before)?), &der::time(date(not_after)?)]);
    let (subject, alt_name) = names(host);
    let extensions = extensions(issuer, key, &alt_name, subject.is_none());
    let subject = subject.unwrap_or_else(|| der::sequence(&[]));
    let serial = der::integer(&serial());
    let cert = issuer.sign(|algorithm| {
        der::sequence(&[
            VERSION_3,
            &serial,
            algorithm,
            &issuer.subject,
            &validity,
            &subject,
            &key.spki,
            &extensions,
        ])
    })?;
    Ok(Leaf {
        cert: CertificateDer::from(cert),
        not_before,
        not_after,
    })
}

/// Draws a random serial number: 126 random bits, positive, of constant length.
pub(super) fn serial() -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    fill_random(&mut serial);
    if let Some(first) = serial.first_mut() {
        // The sign bit off, the next one on: DER wants neither a sign nor leading zeros.
        *first = (*first & 0x7f) | 0x40;
    }
    serial
}

/// Returns the subject (nothing where the name is too long for one) and the alternative names.
///
/// The names of this machine go together: a client that connects to `localhost` and sends no
/// server name shows an address only, and still looks for the name.
fn names(host: &Host) -> (Option<Vec<u8>>, Vec<u8>) {
    let common_name = match (host.name(), host.ip()) {
        (_, Some(address)) => address.to_string(),
        (name, None) => name.unwrap_or_default().to_owned(),
    };
    let fits = common_name.len() <= COMMON_NAME_LIMIT_CHARS;
    let subject = fits.then(|| {
        let value = der::element(UTF8_STRING, &[common_name.as_bytes()]);
        let attribute = der::sequence(&[COMMON_NAME, &value]);
        der::sequence(&[&der::element(SET, &[&attribute])])
    });
    let mut alt_names = vec![alt_name(host)];
    let is_local = |host: &Host| {
        host.name() == Some("localhost") || host.ip().is_some_and(|ip| ip.is_loopback())
    };
    if is_local(host) {
        let v4 = der::element(IP_ADDRESS, &[&Ipv4Addr::LOCALHOST.octets()]);
        let v6 = der::element(IP_ADDRESS, &[&Ipv6Addr::LOCALHOST.octets()]);
        for other in [der::element(DNS_NAME, &[b"localhost"]), v4, v6] {
            if !alt_names.contains(&other) {
                alt_names.push(other);
            }
        }
    }
    let alt_names: Vec<&[u8]> = alt_names.iter().map(Vec::as_slice).collect();
    (subject, der::sequence(&alt_names))
}

fn alt_name(host: &Host) -> Vec<u8> {
    match (host.name(), host.ip()) {
        (_, Some(IpAddr::V4(address))) => der::element(IP_ADDRESS, &[&address.octets()]),
        (_, Some(IpAddr::V6(address))) => der::element(IP_ADDRESS, &[&address.octets()]),
        (name, None) => der::element(DNS_NAME, &[name.unwrap_or_default().as_bytes()]),
    }
}

/// Writes the extensions. The alternative name is critical where the subject is empty, and only
/// there (RFC 5280 §4.2.1.6).
fn extensions(issuer: &Issuer, key: &LeafKey, alt_name: &[u8], alone: bool) -> Vec<u8> {
    let authority = der::element(KEY_IDENTIFIER, &[&issuer.key_identifier]);
    let list = der::sequence(&[
        // An empty SEQUENCE: CA is FALSE by default, and DER leaves defaults out.
        &extension(BASIC_CONSTRAINTS, true, &der::sequence(&[])),
        &extension(KEY_USAGE, true, DIGITAL_SIGNATURE),
        &extension(EXTENDED_KEY_USAGE, false, &der::sequence(&[SERVER_AUTH])),
        &extension(
            SUBJECT_KEY_IDENTIFIER,
            false,
            &der::octet_string(&key.identifier),
        ),
        &extension(
            AUTHORITY_KEY_IDENTIFIER,
            false,
            &der::sequence(&[&authority]),
        ),
        &extension(SUBJECT_ALT_NAME, alone, alt_name),
    ]);
    der::element(EXTENSIONS, &[&list])
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der::TRUE } else { &[] };
    der::sequence(&[id, critical, &der::octet_string(value)])
}

fn date(at: SystemTime) -> Result<OffsetDateTime, Error> {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(Error::Clock)
}
