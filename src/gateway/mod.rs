//! The Claude Gateway: model calls of sandboxes, paid for by their accounts.
//!
//! The order of one call: is it one that is forwarded, who calls, is it paid, is there enough left,
//! and only then the operator's credential and the way out. Nothing that the caller showed travels
//! on, and a byte of an answer leaves as it comes. Usage is reserved before and settled after, however
//! the call ends. `app` puts [`Gateway::handle`] beside the management API.

mod admit;
mod alone;
mod ask;
mod events;
mod fields;
mod hidden;
mod mask;
mod passing;
mod path;
mod usage;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};

use self::admit::{Admission, Admitted};
use self::alone::{Alone, OneAtATime};
use self::ask::{Ask, Need};
use self::fields::Credential;
use self::mask::{Mask, Masked};
use self::passing::{Account, Passing};
use self::path::Call;
use crate::audit::{Decision, Found, Handed, Kind, Record, Sink, Traffic};
use crate::callout::{self, Callout, Opened};
use crate::id::{AccountId, RequestId};
use crate::identity::{WorkloadKeys, without_credentials};
use crate::pace::Pace;
use crate::payment::{Ledger, PaymentCheck, Refusal, Reservation};
use crate::secret::Secret;
use crate::serve::Throttle;
use crate::upstream::Upstream;
use crate::web::{BodyRoom, Connection, ModelFailure, REQUEST_ID, RoomSize};

pub use path::ExtraPath;
pub use usage::{Counted, UsageReader};

/// Where the gateway's paths begin.
pub const PREFIX: &str = "/api/claude-gateway";
/// How many connections to the model provider wait for their next request.
const IDLE_CONNECTIONS: usize = 64;
/// The memory for bodies: of one account four of the longest at once, and of four such accounts.
/// Whoever finds none is told so at once.
const ROOM: RoomSize = RoomSize {
    all_bytes: 1 << 30,
    part_bytes: 256 << 20,
    step_bytes: 64 * 1024,
    wait: Duration::ZERO,
};

/// The memory for bodies, by account.
type Room = BodyRoom<AccountId>;

/// How the gateway is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The URL of the model provider.
    pub upstream: String,
    /// The operator's credential there: an API key, or an access token of OAuth.
    pub api_key: Secret,
    /// The paths that are forwarded beside those of messages and models.
    pub extra_paths: Vec<ExtraPath>,
    /// Where an account is paid for, as the answer 402 tells it.
    pub payment_url: Option<Arc<str>>,
    /// How long the head of an answer may take; none to wait.
    pub answer_timeout: Option<Duration>,
    /// How long an answer may be silent; none to wait.
    pub silence_timeout: Option<Duration>,
    /// Requests of one account a minute; none for any number.
    pub requests_per_minute: Option<u32>,
    /// Connections of one account at once, beside those that are a session's.
    pub connections: usize,
    /// Takes credentials in the clear from everywhere: right only behind something that ends TLS.
    pub danger_plaintext: bool,
}

/// Whom the gateway asks.
pub struct Parts {
    /// The way out.
    pub upstream: Arc<Upstream>,
    /// The secrets of workload JWTs.
    pub keys: WorkloadKeys,
    /// Who knows whether an account is paid.
    pub check: Arc<dyn PaymentCheck>,
    /// What accounts use.
    pub ledger: Arc<Ledger>,
    /// Who has failed to show a right credential, and how often.
    pub throttle: Arc<Throttle>,
    /// Where audit records go.
    pub audit: Sink,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("check", &self.check)
            .finish_non_exhaustive()
    }
}

/// The gateway.
pub struct Gateway {
    provider: Callout,
    credential: Credential,
    mask: Mask,
    extra_paths: Vec<ExtraPath>,
    admission: Admission,
    ledger: Arc<Ledger>,
    audit: Sink,
    payment_url: Option<Arc<str>>,
    answer_timeout: Option<Duration>,
    silence_timeout: Option<Duration>,
    room: Arc<Room>,
    one_at_a_time: OneAtATime,
    /// How often the log tells operators of the same trouble with the model provider.
    alarm: Pace,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("provider", self.provider.target())
            .finish_non_exhaustive()
    }
}

/// An answer whose head has come, and what is settled at its end.
struct Forwarded {
    opened: Opened,
    body: Masked,
    found: Arc<Found>,
    account: Account,
    traffic: Arc<Traffic>,
}

impl Gateway {
    /// Sets the gateway up. Nothing is dialled yet.
    ///
    /// # Errors
    /// [`callout::Error`] where the model provider's URL cannot be used.
    pub fn new(config: Config, parts: Parts) -> Result<Self, callout::Error> {
        // A call of the gateway is bounded by its own timeouts, and its answer by nothing.
        let limits = callout::Limits::default();
        let provider = Callout::new(parts.upstream, &config.upstream, limits)?;
        Ok(Self {
            provider: provider.keeping(IDLE_CONNECTIONS),
            credential: Credential::new(&config.api_key),
            mask: Mask::new(&config.api_key),
            extra_paths: config.extra_paths,
            admission: Admission::new(
                parts.keys,
                parts.check,
                parts.throttle,
                (config.requests_per_minute, config.connections),
                config.danger_plaintext,
            ),
            ledger: parts.ledger,
            audit: parts.audit,
            payment_url: config.payment_url,
            answer_timeout: config.answer_timeout,
            silence_timeout: config.silence_timeout,
            room: Room::new(ROOM),
            one_at_a_time: OneAtATime::default(),
            alarm: Pace::per_minute(1),
        })
    }

    /// Serves one call.
    pub async fn handle(&self, mut request: Request) -> Response {
        let id = RequestId::generate();
        let handed = request.extensions_mut().remove::<Handed>();
        let mut record = handed.as_ref().and_then(Handed::take).unwrap_or_else(|| {
            let mut record = Record::begin(&self.audit, Kind::Exchange);
            record.request(request.method().as_str(), request.uri().path());
            record.target(self.provider.target());
            record
        });
        let mut response = match self.exchange(request, (&mut record, handed.as_ref())).await {
            Ok(forwarded) => self.pass(forwarded, record),
            Err(failure) => {
                let decision = if failure.is_fault() {
                    Decision::Failed
                } else {
                    Decision::Denied
                };
                record.decision(decision, failure.code());
                record.status(failure.status());
                let loud = !failure.is_on_demand() || self.alarm.take(Instant::now()).is_ok();
                failure.answer(&id, loud)
            }
        };
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        response
    }

    /// The steps of one call, up to the head of its answer.
    async fn exchange(
        &self,
        request: Request,
        (record, handed): (&mut Record, Option<&Handed>),
    ) -> Result<Forwarded, ModelFailure> {
        let (parts, body) = request.into_parts();
        if let Some(from) = parts.extensions.get::<Connection>() {
            record.peer(from.peer);
        }
        let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
        let call = Call::parse(&parts.method, path, &self.extra_paths)?;
        let admitted = self.admission.caller(&parts)?;
        record.account(&admitted.workload.account, &admitted.workload.sandbox);
        record.admit().map_err(|_full| ModelFailure::AuditFull)?;
        // Who is paid, and what was used, is known to the process that takes changes alone.
        let refuse = |refusal| self.refuse(refusal);
        self.ledger.admits().await.map_err(refuse)?;
        let standing = self.admission.standing(&admitted.workload).await?;
        // Who has nothing left need not send a body.
        let left = self.ledger.expect_left(&standing, SystemTime::now());
        left.await.map_err(refuse)?;
        let is_extra = matches!(call, Call::Extra { .. });
        if is_extra && !self.ledger.is_unbounded(&standing) {
            return Err(ModelFailure::Uncounted);
        }
        let account = &admitted.workload.account;
        self.admission.seat(&parts, account)?;
        let owner = (&self.room, account);
        let ask = match call.method() {
            "POST" if is_extra => {
                Some(Ask::unread(&parts.headers, &admitted.shown, body, owner).await?)
            }
            "POST" => Some(Ask::read(&parts.headers, body, owner).await?),
            _ => None,
        };
        let costs = ask.as_ref().filter(|_| call == Call::Messages);
        let need = match costs {
            None => Need::nothing(),
            Some(ask) if self.ledger.is_unbounded(&standing) => ask.seen(),
            Some(ask) => ask.need()?,
        };
        let alone = || self.one_at_a_time.take(account);
        let alone = need.is_alone.then(alone).transpose()?;
        let model = costs.map_or("", |ask| ask.model.as_str());
        let sandbox = &admitted.workload.sandbox;
        let reserved =
            self.ledger
                .reserve(&standing, sandbox, model, need.tokens, SystemTime::now());
        let reservation = reserved.await.map_err(refuse)?;
        if let Some(handed) = handed {
            handed.accept();
        }
        let opened = self.send(&call, &parts, &admitted, ask.as_ref());
        let opened = match opened.await {
            Ok(opened) => opened,
            Err(error) => return Err(fail(error, reservation, costs.is_some())),
        };
        let traffic = Arc::<Traffic>::default();
        record.meter(&traffic);
        record.status(opened.status);
        let up = ask.as_ref().map_or(0, |ask| ask.body.len());
        traffic.up.store(up as u64, Ordering::Relaxed);
        let found = Arc::<Found>::default();
        record.scrubbed(&found);
        let body = self.mask.body(&opened.fields, &found);
        let (account, body) = check_answer(&opened, body, (reservation, alone), costs)?;
        Ok(Forwarded {
            opened,
            body,
            found,
            account,
            traffic,
        })
    }

    /// Says why a call is not let through.
    fn refuse(&self, refusal: Refusal) -> ModelFailure {
        match refusal {
            Refusal::BudgetUsed => ModelFailure::BudgetUsed,
            Refusal::HandedOver => ModelFailure::HandedOver,
            Refusal::Unpaid => ModelFailure::Unpaid(self.payment_url.clone()),
            Refusal::Unknown(error) => ModelFailure::PaymentUnknown(error),
        }
    }

    /// Sends a call to the model provider, under the operator's credential.
    async fn send(
        &self,
        call: &Call,
        parts: &http::request::Parts,
        admitted: &Admitted,
        ask: Option<&Ask>,
    ) -> Result<Opened, callout::Error> {
        let mut path = call.path();
        if let Some(query) = parts.uri.query().and_then(without_credentials) {
            path.push('?');
            path.push_str(&query);
        }
        let shown = admitted.shown.as_bytes();
        let fields = fields::to_provider(&parts.headers, shown, &self.credential);
        let request = callout::Request {
            method: call.method(),
            path: &path,
            fields: &fields,
            body: ask.map(|ask| (ask.content_type.as_str(), ask.body.as_ref())),
        };
        self.provider.open(&request, self.answer_timeout).await
    }

    /// Makes the answer to the caller, whose body passes as it comes.
    fn pass(&self, forwarded: Forwarded, record: Record) -> Response {
        let Forwarded {
            opened,
            body,
            found,
            account,
            traffic,
        } = forwarded;
        let mut headers = fields::to_caller(&opened.fields, &self.mask, &found);
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_events = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
        let passing = Passing::new(
            (opened.body, body),
            is_events,
            self.silence_timeout,
            traffic,
            (account, record),
        );
        let mut response = Response::new(Body::new(passing));
        let status = StatusCode::from_u16(opened.status);
        *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
        *response.headers_mut() = headers;
        response
    }
}

/// Decides what an answer costs, and refuses those that are not for callers, or whose body cannot be
/// read.
fn check_answer(
    opened: &Opened,
    body: Option<Masked>,
    (reservation, alone): (Reservation, Option<Alone>),
    costs: Option<&Ask>,
) -> Result<(Account, Masked), ModelFailure> {
    let status = opened.status;
    let costs = costs.filter(|_| (200..=299).contains(&status));
    let body = match (status, body) {
        // The operator's fault, and not the caller's.
        (401..=403, _) => Err(ModelFailure::ProviderRefused(status)),
        (300..=399, _) | (_, None) => Err(ModelFailure::ProviderAnswer(status)),
        (_, Some(body)) => Ok(body),
    };
    match (body, costs) {
        (Ok(body), None) => Ok((Account::Free(reservation), body)),
        (Ok(body), Some(ask)) => {
            let kind = opened.fields.first("content-type");
            let account = Account::Counted {
                reservation,
                reader: Box::new(UsageReader::of_content_type(kind)),
                model: ask.model.clone(),
                _alone: alone,
            };
            Ok((account, body))
        }
        (Err(refused), None) => {
            reservation.release();
            Err(refused)
        }
        // It was answered, and nobody can read what it cost: dropping it counts the whole.
        (Err(refused), Some(_)) => Err(refused),
    }
}

/// Ends a call that got no answer. What may have reached the model provider counts whole.
fn fail(error: callout::Error, reservation: Reservation, costs: bool) -> ModelFailure {
    if !costs || error.was_unsent() {
        reservation.release();
    }
    match error {
        callout::Error::Late => ModelFailure::ProviderLate,
        callout::Error::BadValue => {
            ModelFailure::BadRequest("the query cannot be passed on as it is")
        }
        error => ModelFailure::Provider(error),
    }
}
