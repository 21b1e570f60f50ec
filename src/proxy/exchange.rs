//! One request and its answer: the steps, in order.
//!
//! Every step is a method that returns a refusal or goes on; the record is begun first and
//! completes when it is dropped. Both doors, tunnels and plain requests, call [`run`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::After;
use super::body::{BodySwapping, Change};
use super::capture::Capture;
use super::context::{Lane, Meter};
use super::deadline::{Silent, shorter, unless_silent};
use super::reject::{self, Refusal};
use super::response::{self, Lost};
use super::scrub::Scrub;
use super::upgrade::{self, Upgrade};
use crate::audit::{Decision, Record};
use crate::host::HostPort;
use crate::session::HostView;
use crate::upstream::Lease;
use crate::wire::{
    AnswerHead, Body, BodyLimits, Connection, Flow, Framing, RequestHead, Version, clean_request,
    closes, request_framing,
};

/// Room behind a head for the start of a small body, so that both leave in one write.
const BODY_ROOM_BYTES: usize = 1024;

/// A request that was checked and is ready to leave.
pub(super) struct Outgoing {
    pub(super) head: RequestHead,
    pub(super) flow: Flow,
    pub(super) is_head: bool,
    /// Has no body and may be repeated (RFC 9110 §9.2.2).
    repeatable: bool,
    /// The client wants to send another request afterwards.
    pub(super) keep_alive: bool,
    pub(super) upgrade: Upgrade,
    /// What must not come back.
    pub(super) scrub: Option<Scrub>,
    /// What the answer must not give away.
    pub(super) capture: Option<Capture>,
    pub(super) version: Version,
}

/// Serves one exchange. `target` replaces the request's own target, for the plain door.
pub(super) async fn run(
    lane: &mut Lane<'_>,
    down: &mut Connection,
    head: RequestHead,
    target: Option<Bytes>,
) -> After {
    let mut record = lane.record();
    let is_head = head.method() == b"HEAD";
    let reusable = lane.proxy.reusable(&head);
    match attempt(lane, down, head, target, &mut record).await {
        Ok(after) => after,
        Err(refusal) => {
            record.decision(refusal.decision(), refusal.code);
            match refusal.decision() {
                // Nobody is there to answer.
                Decision::Aborted => return After::Gone,
                Decision::Denied => {
                    lane.handle
                        .counters()
                        .denied
                        .fetch_add(1, Ordering::Relaxed);
                }
                Decision::Allowed | Decision::Failed => {}
            }
            record.status(refusal.status);
            let keep_alive = reusable && refusal.status != 400;
            let sent = if is_head {
                reject::send_bodyless(down, &refusal, keep_alive).await
            } else {
                reject::send(down, &refusal, keep_alive).await
            };
            match sent {
                Ok(()) if keep_alive => After::KeepAlive,
                Ok(()) => After::Close,
                Err(_gone) => After::Gone,
            }
        }
    }
}

async fn attempt(
    lane: &mut Lane<'_>,
    down: &mut Connection,
    mut head: RequestHead,
    target: Option<Bytes>,
    record: &mut Record,
) -> Result<After, Refusal> {
    record.request(head.method_text(), path_of(head.target_text()));
    let keep_alive = !closes(&head.fields, head.version) && head.version == Version::Http11;
    // Before anything else: what waits for its turn is checked against the session as it then is.
    let turn = unless_gone(down, lane.handle.turn()).await?;
    let _turn = turn.map_err(Refusal::limited)?;
    let Admitted {
        framing,
        view,
        upgrade,
        scrub,
        capture,
    } = admit(lane, &mut head, target, record)?;
    let limits = lane.proxy.config.body;
    check_length(framing, limits)?;
    let swapping = match framing {
        Framing::None | Framing::Length(0) => None,
        _ => BodySwapping::of(lane, &head, (&view, upgrade), record)?,
    };
    let change = match swapping {
        None => None,
        Some(swapping) => {
            let change = swapping.begin(lane, &mut head, framing, down).await?;
            check_unchanged(lane, &view)?;
            change
        }
    };
    let body = Body::new(framing).within(limits);
    let mut request = prepare(head, (framing, body), change, keep_alive, down)?;
    request.upgrade = upgrade;
    request.scrub = scrub;
    request.capture = capture;
    // From here on the session is in use; a refused request does not renew it.
    let _in_flight = lane.handle.exchange();
    let meter = lane.meter(record);
    let (lease, mut answer) = send(lane, down, &mut request, &view, (record, &meter)).await?;
    lane.handle
        .counters()
        .exchanges
        .fetch_add(1, Ordering::Relaxed);
    if answer.status == upgrade::SWITCHING_PROTOCOLS {
        if let Some(scrub) = &request.scrub {
            scrub.head(&mut answer);
        }
        // Boxed, so that every other exchange does not hold its room.
        return Box::pin(upgrade::run(lane, down, lease, answer, (record, &meter))).await;
    }
    response::run(lane, down, lease, request, answer, (record, &meter)).await
}

/// What the checks found out about a request.
pub(super) struct Admitted {
    pub(super) framing: Framing,
    pub(super) view: Arc<HostView>,
    pub(super) upgrade: Upgrade,
    pub(super) scrub: Option<Scrub>,
    pub(super) capture: Option<Capture>,
}

/// Checks a request, cleans its head and swaps its tokens. Both protocols come through here.
pub(super) fn admit(
    lane: &mut Lane<'_>,
    head: &mut RequestHead,
    target: Option<Bytes>,
    record: &mut Record,
) -> Result<Admitted, Refusal> {
    if lane.handle.is_over() {
        return Err(Refusal::session_over());
    }
    record.admit()?;
    let framing = request_framing(head)?;
    check_method(head)?;
    check_target(lane, head, target)?;
    check_host(lane, head)?;
    check_expectations(head)?;
    let upgrade = upgrade::asked(head, framing)?;
    let view = lane.view()?;
    clean_request(head)?;
    if upgrade == Upgrade::WebSocket {
        upgrade::put_fields(&mut head.fields);
    }
    swap(lane, head, &view, record)?;
    let scrub = Scrub::of(&view, record, lane.proxy.config.unknown_codings);
    let capture = Capture::of(&view, head)?;
    if scrub.is_some() || capture.is_some() {
        Scrub::ask(head);
    }
    Ok(Admitted {
        framing,
        view,
        upgrade,
        scrub,
        capture,
    })
}

/// Refuses what waited for its body while its session was changed: it was checked, and its head
/// swapped, by what held before.
pub(super) fn check_unchanged(lane: &Lane<'_>, view: &HostView) -> Result<(), Refusal> {
    if lane.handle.is_over() {
        return Err(Refusal::session_over());
    }
    if lane.handle.version() == view.version() {
        return Ok(());
    }
    let message = "the session was changed while the body was waited for; send the request again";
    Err(Refusal::client(409, "session_changed", message))
}

/// Tells whether a request may be repeated (RFC 9110 §9.2.2), as far as its method says.
pub(super) fn repeatable(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE")
}

/// Refuses methods that reflect or tunnel, in any spelling: methods are case-sensitive, and not
/// every upstream knows that.
fn check_method(head: &RequestHead) -> Result<(), Refusal> {
    match head.method() {
        method if method.eq_ignore_ascii_case(b"TRACE") => Err(Refusal::client(
            405,
            "method_not_allowed",
            "TRACE is not forwarded",
        )),
        method if method.eq_ignore_ascii_case(b"CONNECT") => {
            let message = "CONNECT is not forwarded from inside a tunnel";
            Err(Refusal::client(405, "method_not_allowed", message))
        }
        _ => Ok(()),
    }
}

/// Brings the target to origin-form. An absolute one must name this lane's authority.
fn check_target(
    lane: &Lane<'_>,
    head: &mut RequestHead,
    target: Option<Bytes>,
) -> Result<(), Refusal> {
    if let Some(target) = target {
        head.replace_target(target);
        return Ok(());
    }
    match head.target() {
        [b'/', ..] => return Ok(()),
        b"*" if head.method() == b"OPTIONS" => return Ok(()),
        _ => {}
    }
    let absolute = Absolute::parse(head.target_text()).ok_or_else(bad_target)?;
    let scheme = match lane.scheme {
        crate::policy::Scheme::Http => "http",
        crate::policy::Scheme::Https => "https",
    };
    let authority = HostPort::parse_or(absolute.authority, lane.default_port());
    if !absolute.scheme.eq_ignore_ascii_case(scheme) || authority.as_ref() != Ok(&lane.target) {
        return Err(another_authority());
    }
    let origin = absolute.origin_form();
    head.replace_target(origin);
    Ok(())
}

/// Checks that `Host` is there once and names this lane's authority.
fn check_host(lane: &Lane<'_>, head: &mut RequestHead) -> Result<(), Refusal> {
    let mut hosts = head
        .fields
        .iter()
        .filter(|f| f.name.eq_ignore_ascii_case(b"host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::client(
            400,
            "bad_host",
            "Host is missing or repeated",
        ));
    };
    drop(hosts);
    if host.value == lane.host_field.as_bytes() {
        return Ok(());
    }
    let index = host.index;
    let text = std::str::from_utf8(host.value).unwrap_or_default();
    match HostPort::parse_or(text, lane.default_port()) {
        Ok(stated) if stated == lane.target => {}
        Ok(_) => return Err(another_authority()),
        Err(_malformed) => return Err(Refusal::client(400, "bad_host", "Host is malformed")),
    }
    // Another spelling of the same host: the upstream sees the canonical one.
    head.fields
        .replace(index, Bytes::from(lane.host_field.clone()), false);
    Ok(())
}

/// Refuses what we would have to promise and cannot keep.
fn check_expectations(head: &RequestHead) -> Result<(), Refusal> {
    if head
        .fields
        .all("expect")
        .any(|value| !value.eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Refusal::client(
            417,
            "bad_expectation",
            "only Expect: 100-continue is known",
        ));
    }
    Ok(())
}

/// Puts the real values in the place of the tokens that may stand there.
fn swap(
    lane: &Lane<'_>,
    head: &mut RequestHead,
    view: &HostView,
    record: &mut Record,
) -> Result<(), Refusal> {
    let swapped = lane
        .proxy
        .swapper
        .swap_request(head, view)
        .map_err(|_limit| {
            Refusal::client(
                431,
                "too_many_tokens",
                "the head has too many sealed tokens",
            )
        })?;
    if swapped.count > 0 || swapped.left > 0 {
        record.swapped(&swapped.names, swapped.left);
        let count = u64::from(swapped.count);
        lane.handle
            .counters()
            .swapped
            .fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

/// Refuses a body that says of itself that it is too long. One in chunks is refused on its way.
pub(super) fn check_length(framing: Framing, limits: BodyLimits) -> Result<(), Refusal> {
    match framing {
        Framing::Length(length) => Ok(limits.check(length)?),
        Framing::Chunked | Framing::None | Framing::UntilClose => Ok(()),
    }
}

/// Writes the head once, with what has arrived of the body behind it.
fn prepare(
    mut head: RequestHead,
    (framing, body): (Framing, Body),
    change: Option<Change>,
    keep_alive: bool,
    down: &mut Connection,
) -> Result<Outgoing, Refusal> {
    canonical_framing(&mut head.fields);
    head.fields.straighten("host");
    let room = match framing {
        Framing::None => 0,
        _ => BODY_ROOM_BYTES,
    };
    let text = written(&head, room);
    let mut flow = match change {
        None => Flow::new(text, body),
        Some(change) => {
            Flow::transformed(text, body, change.transform, change.chunked).keeping_chunks()
        }
    };
    flow.prime(down)
        .map_err(|error| reject::bad_body(&error).unwrap_or_else(bad_target))?;
    let method = head.method();
    Ok(Outgoing {
        is_head: method == b"HEAD",
        repeatable: repeatable(method) && framing == Framing::None,
        version: head.version,
        head,
        flow,
        keep_alive,
        upgrade: Upgrade::None,
        scrub: None,
        capture: None,
    })
}

/// Writes a head into a buffer that does not grow: growing would leave copies of real values. Leaves
/// some room behind it.
pub(super) fn written(head: &RequestHead, room: usize) -> Vec<u8> {
    let lines = head.fields.len() * 4;
    let size = head.fields.block().len() + head.fields.put_bytes() + head.target().len() + lines;
    let mut text = Vec::with_capacity(size + room);
    head.write(&mut text);
    text
}

/// Writes the one spelling of the framing that was checked.
pub(super) fn canonical_framing(fields: &mut crate::wire::Fields) {
    fields.straighten("content-length");
    fields.straighten("transfer-encoding");
    let odd = fields
        .iter()
        .find(|f| f.name.eq_ignore_ascii_case(b"transfer-encoding") && f.value != b"chunked")
        .map(|field| field.index);
    if let Some(index) = odd {
        fields.replace(index, Bytes::from_static(b"chunked"), false);
    }
}

/// Sends the request and waits for the head of its answer. It is sent again only if no byte of it
/// was written, or it is bodyless and idempotent and no byte of an answer came.
async fn send(
    lane: &Lane<'_>,
    down: &mut Connection,
    request: &mut Outgoing,
    view: &HostView,
    (record, meter): (&mut Record, &Meter),
) -> Result<(Lease, AnswerHead), Refusal> {
    let upstream = &lane.proxy.upstream;
    let pool = lane.handle.pool();
    let mut lease = match request.upgrade {
        Upgrade::None => leased(down, upstream.lease(pool, view.grant())).await?,
        Upgrade::WebSocket => leased(down, upstream.lease_fresh(pool, view.grant())).await?,
    };
    let limits = &lane.proxy.config;
    let patience = shorter(limits.answer_timeout, limits.exchange_idle_timeout);
    loop {
        record.address(lease.address());
        let answer = response::head(lane, down, &mut lease.connection, request, meter);
        let answer = unless_silent(patience, meter, answer).await;
        match answer.map_err(|Silent| reject::silent(request.flow.is_done()))? {
            Ok(answer) => return Ok((lease, answer)),
            Err(Lost::UpstreamSilent) if lease.is_reused() => {
                if !request.flow.is_unsent() {
                    if !request.repeatable {
                        return Err(reject::no_answer());
                    }
                    request.flow.rewind(written(&request.head, 0));
                }
                let fresh = upstream.lease_fresh(pool, view.grant());
                lease = leased(down, fresh).await?;
            }
            Err(lost) => return Err(lost.refusal()),
        }
    }
}

/// Waits for something, unless the client goes away first.
pub(super) async fn unless_gone<T>(
    down: &mut Connection,
    awaited: impl Future<Output = T>,
) -> Result<T, Refusal> {
    let mut awaited = std::pin::pin!(awaited);
    tokio::select! {
        biased;
        come = &mut awaited => Ok(come),
        closed = std::future::poll_fn(|cx| down.poll_closed(cx)) => {
            if closed {
                return Err(Refusal::gone());
            }
            Ok(awaited.await)
        }
    }
}

/// Waits for a connection, unless the client goes away first.
async fn leased(
    down: &mut Connection,
    lease: impl Future<Output = Result<Lease, crate::upstream::Error>>,
) -> Result<Lease, Refusal> {
    unless_gone(down, lease).await?.map_err(|error| {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "no connection upstream"
        );
        Refusal::from(&error)
    })
}

/// Marks an exchange's record as let through.
pub(super) fn allowed(record: &mut Record, status: u16) {
    record.status(status);
    record.decision(Decision::Allowed, "ok");
}

/// Returns the path of a target in any form; an authority in front of it is left out.
pub(super) fn path_of(target: &str) -> &str {
    let whole = target.split_once('?').map_or(target, |(path, _)| path);
    if whole.starts_with('/') {
        return whole;
    }
    Absolute::parse(whole).map_or(whole, |absolute| absolute.rest)
}

fn bad_target() -> Refusal {
    Refusal::client(400, "bad_target", "the request target is malformed")
}

pub(super) fn another_authority() -> Refusal {
    let message = "the request names another authority than the tunnel it came through";
    Refusal::client(421, "another_authority", message)
}

/// An absolute-form target (RFC 9112 §3.2.2), taken apart.
pub(super) struct Absolute<'a> {
    pub(super) scheme: &'a str,
    pub(super) authority: &'a str,
    rest: &'a str,
}

impl<'a> Absolute<'a> {
    pub(super) fn parse(target: &'a str) -> Option<Self> {
        let (scheme, rest) = target.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end)?;
        Some(Self {
            scheme,
            authority,
            rest,
        })
    }

    /// Returns path and query; an empty path is `/`.
    pub(super) fn origin_form(&self) -> Bytes {
        if self.rest.starts_with('/') {
            Bytes::copy_from_slice(self.rest.as_bytes())
        } else {
            Bytes::from(format!("/{}", self.rest))
        }
    }
}
