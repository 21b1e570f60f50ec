//! Our root certificate as files: alone, and behind the public roots.
//!
//! The files are made once. They are public: no key is needed, and no private key is ever near.
//! Called by the route table; image builds and sandboxes fetch them.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use data_encoding::BASE64;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::ApiState;

/// The length of a line in a PEM file, in characters (RFC 7468 §2).
const PEM_LINE: usize = 64;
const PEM_TYPE: &str = "application/x-pem-file";

/// The three files.
#[derive(Clone, Debug)]
pub struct Certificates {
    der: Bytes,
    pem: Bytes,
    bundle: Bytes,
}

impl Certificates {
    /// Makes the files from our root certificate in DER.
    pub fn new(root: &[u8]) -> Self {
        let own = pem(root);
        let mut bundle: String = TLS_SERVER_ROOT_CERTS.iter().map(|root| pem(root)).collect();
        bundle.push_str(&own);
        Self {
            der: Bytes::copy_from_slice(root),
            pem: own.into(),
            bundle: bundle.into(),
        }
    }
}

/// `GET /v1/ca.pem`: exactly one certificate.
pub(super) async fn ca_pem(State(state): State<ApiState>) -> Response {
    file(PEM_TYPE, state.certificates.pem.clone())
}

/// `GET /v1/ca.der`: the same in DER.
pub(super) async fn ca_der(State(state): State<ApiState>) -> Response {
    file("application/pkix-cert", state.certificates.der.clone())
}

/// `GET /v1/bundle.pem`: the public roots followed by ours, for clients that replace their store.
pub(super) async fn bundle_pem(State(state): State<ApiState>) -> Response {
    file(PEM_TYPE, state.certificates.bundle.clone())
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
            assert_eq!(files.der, root);
            assert_eq!(read(&files.pem), std::slice::from_ref(&root));
            let bundle = read(&files.bundle);
            assert_eq!(bundle.len(), TLS_SERVER_ROOT_CERTS.len() + 1);
            assert_eq!(bundle.last(), Some(&root));
            assert_eq!(bundle[0], TLS_SERVER_ROOT_CERTS[0].as_ref());
        }
    }
}
