//! A session as a row of the store: one sealed text that holds everything.
//!
//! The whole record is sealed, not only the values, so that an edited host list or fingerprint is
//! refused as surely as an edited secret. What is written or read on the way is overwritten at the
//! end. A field that is not known is refused: it may be what a later version restricts. Called by
//! the live table before a change goes live, and when a process starts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::capture::CaptureForm;
use super::live::RETIRED_FOR;
use super::spec::{Form, SecretForm};
use super::view::{Retired, Sealed, SessionView};
use crate::id::{SessionId, TenantId, fill_random};
use crate::policy::SecretScope;
use crate::seal::{self, Context, Keyring};
use crate::sealed_token::SealedToken;
use crate::secret::{Fingerprint, Secret};

/// The name under which a record is sealed.
pub(super) const NAME: &str = "session";
/// The form of the record. It is raised when a field changes its meaning or one is taken away; a
/// new field with a default needs no new form, since older programs refuse what they do not know.
const FORMAT: u32 = 1;

/// Says why a row is no session. It names no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it does not open: {0}")]
    Sealed(#[from] seal::Error),
    #[error("its record cannot be read by this version")]
    Unreadable,
    #[error("its record is of another form: {0}")]
    Format(u32),
    #[error("its tenant is not there, or another of this name")]
    NoTenant,
    #[error("this configuration does not allow it")]
    Invalid,
}

/// The record: borrowed from the session, or from the opened text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    format: u32,
    version: u64,
    #[serde(default)]
    change: u64,
    created: u64,
    #[serde(borrow)]
    credential: Encoded<'a>,
    #[serde(borrow)]
    secrets: BTreeMap<Cow<'a, str>, SecretRecord<'a>>,
    #[serde(deserialize_with = "present")]
    secret_hosts: Cow<'a, Option<Vec<String>>>,
    #[serde(deserialize_with = "present")]
    allowed_egress: Cow<'a, Option<Vec<String>>>,
    #[serde(deserialize_with = "present")]
    inject: Cow<'a, Option<Vec<String>>>,
    passthrough_hosts: Cow<'a, [String]>,
    #[serde(deserialize_with = "present")]
    ttl_seconds: Option<u64>,
    #[serde(deserialize_with = "present")]
    max_lifetime_seconds: Option<u64>,
    #[serde(deserialize_with = "present")]
    allow_plaintext: Option<bool>,
    #[serde(deserialize_with = "present")]
    scrub_responses: Option<bool>,
    metadata: Cow<'a, BTreeMap<String, String>>,
    #[serde(borrow, deserialize_with = "present")]
    capture: Option<Vec<CaptureRecord<'a>>>,
    #[serde(borrow)]
    captured: Vec<SealedRecord<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<RetiredRecord<'a>>,
}

/// A token endpoint as asked for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaptureRecord<'a> {
    url: Cow<'a, str>,
    #[serde(deserialize_with = "present")]
    hosts: Cow<'a, Option<Vec<String>>>,
}

impl<'a> CaptureRecord<'a> {
    fn list(forms: &'a [CaptureForm]) -> Vec<Self> {
        let record = |form: &'a CaptureForm| Self {
            url: Cow::Borrowed(&form.url),
            hosts: Cow::Borrowed(&form.hosts),
        };
        forms.iter().map(record).collect()
    }

    fn forms(list: Vec<Self>) -> Vec<CaptureForm> {
        let form = |record: Self| CaptureForm {
            url: record.url.into_owned(),
            hosts: record.hosts.into_owned(),
        };
        list.into_iter().map(form).collect()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretRecord<'a> {
    #[serde(borrow)]
    value: Encoded<'a>,
    token: String,
    #[serde(deserialize_with = "present")]
    hosts: Cow<'a, Option<Vec<String>>>,
    #[serde(deserialize_with = "present")]
    inject: Cow<'a, Option<Vec<String>>>,
    #[serde(deserialize_with = "present")]
    prefix: Cow<'a, Option<String>>,
}

/// A value that the form does not have: a token that was captured, or what is out of use. The name
/// of a captured token says which endpoint gave it, and as what.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedRecord<'a> {
    name: String,
    #[serde(borrow)]
    value: Encoded<'a>,
    token: String,
    /// Nothing where it may go to every host.
    #[serde(deserialize_with = "present")]
    hosts: Option<Vec<String>>,
}

/// A value that was taken out of use and is still scrubbed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetiredRecord<'a> {
    #[serde(borrow)]
    sealed: SealedRecord<'a>,
    /// In milliseconds since 1970.
    until: u64,
}

impl<'a> SealedRecord<'a> {
    fn of(sealed: &'a Sealed) -> Self {
        Self {
            name: sealed.name.to_string(),
            value: Encoded::Plain(sealed.secret.expose()),
            token: sealed.token.to_string(),
            hosts: sealed.scope.lines(),
        }
    }

    fn read(self) -> Option<Sealed> {
        let (token, secret) = (SealedToken::parse(&self.token)?, self.value.secret()?);
        let scope = match &self.hosts {
            Some(hosts) => SecretScope::parse(hosts).ok()?,
            None => SecretScope::any_host(),
        };
        if self.name.contains('@') {
            return Sealed::recaptured(&self.name, token, secret, scope);
        }
        Some(Sealed {
            name: self.name.into(),
            token,
            secret,
            scope,
            places: Arc::default(),
            source: None,
        })
    }
}

/// Bytes that are written in base64.
enum Encoded<'a> {
    /// To be written.
    Plain(&'a [u8]),
    /// As read: still in base64, in the text that was opened.
    Text(&'a str),
}

impl Encoded<'_> {
    /// Decodes into memory that is overwritten at the end.
    fn decode(&self) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::Plain(bytes) => Some(Zeroizing::new(bytes.to_vec())),
            Self::Text(text) => {
                let length = BASE64.decode_len(text.len()).ok()?;
                let mut bytes = Zeroizing::new(vec![0; length]);
                let length = BASE64.decode_mut(text.as_bytes(), &mut bytes).ok()?;
                bytes.truncate(length);
                Some(bytes)
            }
        }
    }

    fn secret(&self) -> Option<Secret> {
        // Taken out of its wrapper without a copy: the secret overwrites it at its own end.
        self.decode()
            .map(|mut bytes| Secret::new(std::mem::take(&mut *bytes)))
    }
}

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(bytes) => serializer.serialize_str(&Zeroizing::new(BASE64.encode(bytes))),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Encoded<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Base64 has nothing to unescape, so that no copy of a value is made here.
        <&str>::deserialize(deserializer)
            .map(Self::Text)
            .map_err(|_unlike| de::Error::custom("a text"))
    }
}

/// Reads a field that has to be there, also where it says nothing: a list that was left out would
/// mean another thing than it did.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(deserializer)
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

/// What a record is made of besides the form.
pub(super) struct Written<'a> {
    pub(super) form: &'a Form,
    pub(super) view: &'a SessionView,
    pub(super) credential: &'a Fingerprint,
    pub(super) created: SystemTime,
    /// What time it is, by the clock of the store.
    pub(super) now: SystemTime,
}

/// What a row holds.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) form: Form,
    pub(super) version: u64,
    pub(super) change: u64,
    pub(super) credential: Fingerprint,
    pub(super) created: SystemTime,
    /// The sealed tokens by the names of their secrets.
    pub(super) tokens: BTreeMap<String, SealedToken>,
    pub(super) captured: Vec<Sealed>,
    pub(super) retired: Vec<Retired>,
}

impl Opened {
    /// Names the change that wrote it.
    pub(super) fn stamp(&self) -> (u64, u64) {
        (self.version, self.change)
    }
}

/// Writes and seals the record of a session.
#[expect(
    clippy::expect_used,
    reason = "texts, numbers and maps by text always have a JSON form, and memory takes all bytes"
)]
pub(super) fn encode(
    keyring: &Keyring,
    owner: (&TenantId, &SessionId),
    written: &Written<'_>,
) -> Vec<u8> {
    let record = record(written);
    // The length first: a buffer that grows would leave copies of secrets behind.
    let mut length = Length::default();
    serde_json::to_writer(&mut length, &record).expect("a record has a JSON form");
    let mut plain = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *plain, &record).expect("a record has a JSON form");
    keyring.seal(&context(owner), &plain)
}

/// Opens and reads the record of a session, by the clock of the store.
pub(super) fn decode(
    keyring: &Keyring,
    owner: (&TenantId, &SessionId),
    sealed: &[u8],
    now: SystemTime,
) -> Result<Opened, Refused> {
    /// What can be read of every form.
    #[derive(Deserialize)]
    struct Any {
        format: u32,
    }
    let plain = keyring.open(&context(owner), sealed)?;
    // What the parser says would quote the text.
    let unreadable = |_: serde_json::Error| Refused::Unreadable;
    let any: Any = serde_json::from_slice(&plain).map_err(unreadable)?;
    if any.format != FORMAT {
        return Err(Refused::Format(any.format));
    }
    let record: Record<'_> = serde_json::from_slice(&plain).map_err(unreadable)?;
    read(record, now).ok_or(Refused::Unreadable)
}

pub(super) fn context<'a>((tenant, id): (&'a TenantId, &'a SessionId)) -> Context<'a> {
    Context {
        tenant: tenant.as_str(),
        session: id.as_str(),
        name: NAME,
    }
}

fn record<'a>(written: &Written<'a>) -> Record<'a> {
    let Written {
        form,
        view,
        credential,
        created,
        now: wall,
    } = *written;
    let secrets = view.sealed.iter().filter_map(|sealed| {
        let asked = form.secrets.get(sealed.name.as_ref())?;
        let secret = SecretRecord {
            value: Encoded::Plain(asked.value.expose()),
            token: sealed.token.to_string(),
            hosts: Cow::Borrowed(&asked.hosts),
            inject: Cow::Borrowed(&asked.inject),
            prefix: Cow::Borrowed(&asked.prefix),
        };
        Some((Cow::Borrowed(sealed.name.as_ref()), secret))
    });
    let now = Instant::now();
    let retired = view.retired.iter().map(|retired| RetiredRecord {
        sealed: SealedRecord::of(&retired.sealed),
        until: millis(wall + retired.until.saturating_duration_since(now)),
    });
    Record {
        format: FORMAT,
        version: view.version,
        change: view.change,
        created: millis(created),
        credential: Encoded::Plain(credential.as_bytes()),
        secrets: secrets.collect(),
        secret_hosts: Cow::Borrowed(&form.secret_hosts),
        allowed_egress: Cow::Borrowed(&form.allowed_egress),
        inject: Cow::Borrowed(&form.inject),
        passthrough_hosts: Cow::Borrowed(&form.passthrough_hosts),
        ttl_seconds: form.ttl_seconds,
        max_lifetime_seconds: form.max_lifetime_seconds,
        allow_plaintext: form.allow_plaintext,
        scrub_responses: form.scrub_responses,
        metadata: Cow::Borrowed(&form.metadata),
        capture: form.capture.as_deref().map(CaptureRecord::list),
        captured: view.captured.iter().map(SealedRecord::of).collect(),
        retired: retired.collect(),
    }
}

fn read(record: Record<'_>, wall: SystemTime) -> Option<Opened> {
    let mut form = Form {
        secrets: BTreeMap::new(),
        secret_hosts: record.secret_hosts.into_owned(),
        allowed_egress: record.allowed_egress.into_owned(),
        inject: record.inject.into_owned(),
        passthrough_hosts: record.passthrough_hosts.into_owned(),
        ttl_seconds: record.ttl_seconds,
        max_lifetime_seconds: record.max_lifetime_seconds,
        allow_plaintext: record.allow_plaintext,
        scrub_responses: record.scrub_responses,
        capture: record.capture.map(CaptureRecord::forms),
        metadata: record.metadata.into_owned(),
    };
    let mut tokens = BTreeMap::new();
    for (name, secret) in record.secrets {
        tokens.insert(name.to_string(), SealedToken::parse(&secret.token)?);
        let asked = SecretForm {
            value: secret.value.secret()?,
            hosts: secret.hosts.into_owned(),
            inject: secret.inject.into_owned(),
            prefix: secret.prefix.into_owned(),
        };
        form.secrets.insert(name.into_owned(), asked);
    }
    let hash = record.credential.decode()?;
    let (now, wall) = (Instant::now(), millis(wall));
    let retired = record.retired.into_iter().map(|retired| {
        let left = Duration::from_millis(retired.until.saturating_sub(wall));
        Some(Retired {
            sealed: retired.sealed.read()?,
            until: now + left.min(RETIRED_FOR),
        })
    });
    // Whatever else stood in that list would open in places that nobody gave it.
    let captured = record.captured.into_iter().map(|captured| {
        let read = captured.read()?;
        read.source.is_some().then_some(read)
    });
    Some(Opened {
        form,
        version: record.version,
        change: record.change,
        credential: Fingerprint::from_bytes(hash.as_slice().try_into().ok()?),
        created: UNIX_EPOCH.checked_add(Duration::from_millis(record.created))?,
        tokens,
        captured: captured.collect::<Option<_>>()?,
        retired: retired.collect::<Option<_>>()?,
    })
}

/// Returns a time in milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Draws the number of a change.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}
