//! Our root certificate as files: alone, and behind the public roots.
//!
//! Alone stands the root that signs now. In the bundle stand also the one that is to follow, so that
//! who has fetched it in time trusts both, and the one before. They are public: no private key is
//! ever near. Called by the route table; image builds and sandboxes fetch them.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use data_encoding::BASE64;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::ApiState;
use crate::authority::CertificateAuthority;

/// The length of a line in a PEM file, in characters (RFC 7468 §2).
const PEM_LINE: usize = 64;
const PEM_TYPE: &str = "application/x-pem-file";

/// Tells the certificates to trust, in DER: of the root that signs first.
type Trusted = Arc<dyn Fn() -> Vec<Vec<u8>> + Send + Sync>;

/// The three files.
#[derive(Clone)]
pub struct Certificates {
    trusted: Trusted,
    public: Arc<str>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    /// Makes the files from one root certificate in DER.
    pub fn new(root: &[u8]) -> Self {
        let root = root.to_vec();
        Self::with(Arc::new(move || vec![root.clone()]))
    }

    /// Makes the files from what the authority says whenever they are asked for.
    pub fn of(authority: &Arc<CertificateAuthority>) -> Self {
        let authority = Arc::clone(authority);
        Self::with(Arc::new(move || authority.trusted()))
    }

    fn with(trusted: Trusted) -> Self {
        let public: String = TLS_SERVER_ROOT_CERTS.iter().map(|root| pem(root)).collect();
        Self {
            trusted,
            public: public.into(),
        }
    }

    fn der(&self) -> Bytes {
        let signs = (self.trusted)().into_iter().next();
        signs.unwrap_or_default().into()
    }

    fn pem(&self) -> Bytes {
        pem(&self.der()).into()
    }

    fn bundle(&self) -> Bytes {
        let mut bundle = self.public.to_string();
        bundle.extend((self.trusted)().iter().map(|own| pem(own)));
        bundle.into()
    }
}

/// `GET /v1/ca.pem`: exactly one certificate.
pub(super) async fn ca_pem(State(state): State<ApiState>) -> Response {
    file(PEM_TYPE, state.certificates.pem())
}

/// `GET /v1/ca.der`: the same in DER.
pub(super) async fn ca_der(State(state): State<ApiState>) -> Response {
    file("application/pkix-cert", state.certificates.der())
}

/// `GET /v1/bundle.pem`: the public roots followed by ours, for clients that replace their store.
pub(super) async fn bundle_pem(State(state): State<ApiState>) -> Response {
    file(PEM_TYPE, state.certificates.bundle())
}

fn file(kind: &'static str, bytes: Bytes) -> Response {
    // A root may be replaced: whoever kept the file has to ask again.
    let cache = HeaderValue::from_static("no-cache");
    let kind = HeaderValue::from_static(kind);
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, cache)], bytes).into_response()
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // Three bytes are four characters, so that only the last line may need padding.
    for line in der.chunks(PEM_LINE / 4 * 3) {
        text.push_str(&BASE64.encode(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pem: &[u8]) -> Vec<Vec<u8>> {
        let text = std::str::from_utf8(pem).unwrap();
        let mut all = Vec::new();
        for part in text.split("-----BEGIN CERTIFICATE-----\n").skip(1) {
            let (body, rest) = part.split_once("-----END CERTIFICATE-----\n").unwrap();
            assert_eq!(rest, "");
            assert!(body.lines().all(|line| line.len() <= PEM_LINE));
            all.push(BASE64.decode(body.replace('\n', "").as_bytes()).unwrap());
        }
        all
    }

    #[test]
    fn the_files_hold_what_they_should() {
        for length in [47, 48, 49, 500] {
            let root: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
            let files = Certificates::new(&root);
            assert_eq!(files.der(), root);
            assert_eq!(read(&files.pem()), std::slice::from_ref(&root));
            let bundle = read(&files.bundle());
            assert_eq!(bundle.len(), TLS_SERVER_ROOT_CERTS.len() + 1);
            assert_eq!(bundle.last(), Some(&root));
            assert_eq!(bundle[0], TLS_SERVER_ROOT_CERTS[0].as_ref());
        }
    }
}
