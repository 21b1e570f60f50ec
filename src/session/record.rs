//! A session as a row of the store: one sealed text that holds everything.
//!
//! The whole record is sealed, not only the values, so that an edited host list or fingerprint is
//! refused as surely as an edited secret. What is written on the way is overwritten at the end.
//! Called by the live table before a change goes live.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::capture::CaptureForm;
use super::spec::Form;
use super::view::{Sealed, SessionView};
use crate::id::{SessionId, TenantId};
use crate::seal::{Context, Keyring};
use crate::secret::Fingerprint;

/// The name under which a record is sealed.
pub(super) const NAME: &str = "session";

/// The record, borrowed from the session.
#[derive(Serialize)]
struct Record<'a> {
    version: u64,
    created: u64,
    credential: Encoded<'a>,
    secrets: BTreeMap<&'a str, SecretRecord<'a>>,
    secret_hosts: &'a Option<Vec<String>>,
    allowed_egress: &'a Option<Vec<String>>,
    inject: &'a Option<Vec<String>>,
    passthrough_hosts: &'a [String],
    ttl_seconds: Option<u64>,
    max_lifetime_seconds: Option<u64>,
    allow_plaintext: Option<bool>,
    scrub_responses: Option<bool>,
    metadata: &'a BTreeMap<String, String>,
    capture: Option<Vec<CaptureRecord<'a>>>,
    captured: Vec<CapturedRecord<'a>>,
}

#[derive(Serialize)]
struct CaptureRecord<'a> {
    url: &'a str,
    hosts: &'a Option<Vec<String>>,
}

impl<'a> CaptureRecord<'a> {
    fn of(form: &'a CaptureForm) -> Self {
        Self {
            url: &form.url,
            hosts: &form.hosts,
        }
    }
}

/// A captured token; its name says which endpoint gave it, and as what.
#[derive(Serialize)]
struct CapturedRecord<'a> {
    name: &'a str,
    value: Encoded<'a>,
    token: String,
}

impl<'a> CapturedRecord<'a> {
    fn of(sealed: &'a Sealed) -> Self {
        Self {
            name: &sealed.name,
            value: Encoded(sealed.secret.expose()),
            token: sealed.token.to_string(),
        }
    }
}

#[derive(Serialize)]
struct SecretRecord<'a> {
    value: Encoded<'a>,
    token: String,
    hosts: &'a Option<Vec<String>>,
    inject: &'a Option<Vec<String>>,
    prefix: &'a Option<String>,
}

/// Bytes that are written in base64.
struct Encoded<'a>(&'a [u8]);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(self.0)))
    }
}

/// Counts what would be written.
#[derive(Default)]
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes and seals the record of a session.
#[expect(
    clippy::expect_used,
    reason = "texts, numbers and maps by text always have a JSON form, and memory takes all bytes"
)]
pub(super) fn encode(
    keyring: &Keyring,
    (tenant, id): (&TenantId, &SessionId),
    form: &Form,
    view: &SessionView,
    credential: &Fingerprint,
    created: SystemTime,
) -> Vec<u8> {
    let record = record(form, view, credential, created);
    // The length first: a buffer that grows would leave copies of secrets behind.
    let mut length = Length::default();
    serde_json::to_writer(&mut length, &record).expect("a record has a JSON form");
    let mut plain = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *plain, &record).expect("a record has a JSON form");
    let context = Context {
        tenant: tenant.as_str(),
        session: id.as_str(),
        name: NAME,
    };
    keyring.seal(&context, &plain)
}

fn record<'a>(
    form: &'a Form,
    view: &'a SessionView,
    credential: &'a Fingerprint,
    created: SystemTime,
) -> Record<'a> {
    let secrets = view.sealed.iter().filter_map(|sealed| {
        let asked = form.secrets.get(sealed.name.as_ref())?;
        let secret = SecretRecord {
            value: Encoded(asked.value.expose()),
            token: sealed.token.to_string(),
            hosts: &asked.hosts,
            inject: &asked.inject,
            prefix: &asked.prefix,
        };
        Some((sealed.name.as_ref(), secret))
    });
    Record {
        version: view.version,
        created: created
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        credential: Encoded(credential.as_bytes()),
        secrets: secrets.collect(),
        secret_hosts: &form.secret_hosts,
        allowed_egress: &form.allowed_egress,
        inject: &form.inject,
        passthrough_hosts: &form.passthrough_hosts,
        ttl_seconds: form.ttl_seconds,
        max_lifetime_seconds: form.max_lifetime_seconds,
        allow_plaintext: form.allow_plaintext,
        scrub_responses: form.scrub_responses,
        metadata: &form.metadata,
        capture: form
            .capture
            .as_ref()
            .map(|list| list.iter().map(CaptureRecord::of).collect()),
        captured: view.captured.iter().map(CapturedRecord::of).collect(),
    }
}
