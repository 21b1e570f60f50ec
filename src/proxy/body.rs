//! Bodies of requests in which sealed tokens may be swapped: which, and what becomes of their heads.
//!
//! The pure part, finding tokens and writing values, is `swap`'s; here it is decided from the head
//! whether a body is looked at, and how long it will be. A body that is left alone leaves byte for
//! byte, with its own framing. Called by both doors, after the head was checked and swapped.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zeroize::Zeroizing;

use super::context::Lane;
use super::exchange::path_of;
use super::reject;
use super::reject::Refusal;
use super::upgrade::Upgrade;
use crate::audit::{BodySwaps, Record};
use crate::session::{BodyView, HostView, SessionHandle};
use crate::swap::{
    BodyKind, BodySwap, Coding, ContentEncoding, Decoder, STEP_LIMIT_BYTES, Swapped, has_marker,
};
use crate::wire::{Connection, Error, Fields, Framing, Progress, RequestHead, Transform, Version};

/// The longest body that is read whole before its head leaves, in bytes, so that its length can be
/// stated: the one that it has afterwards.
const WHOLE_LIMIT_BYTES: u64 = 64 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Fields that hold a sum of the body, which is another one once the body has changed.
const SUMS: [&[u8]; 4] = [b"content-digest", b"content-md5", b"digest", b"repr-digest"];
/// Fields with which a request is signed, its body included, or says that the body is a part of
/// something: neither survives a change.
const SEALS: [&str; 4] = [
    "content-range",
    "signature",
    "signature-input",
    "x-amz-content-sha256",
];
/// Schemes of `Authorization` that sign a request.
const SIGNING_SCHEMES: [&[u8]; 2] = [b"aws4-", b"signature "];

/// The swapping of one request's body.
pub(super) struct BodySwapping {
    view: Arc<BodyView>,
    kind: BodyKind,
    coding: Option<Coding>,
    /// The most tokens.
    limit: u32,
    report: Report,
}

/// What a body goes through, and whether it then needs chunks.
pub(super) struct Change {
    pub(super) transform: Box<dyn Transform>,
    pub(super) chunked: bool,
}

impl BodySwapping {
    /// Prepares for the body of a request; nothing where none of its tokens could be swapped, or
    /// where a change would break it.
    pub(super) fn of(
        lane: &Lane<'_>,
        head: &RequestHead,
        (view, upgrade): (&Arc<HostView>, Upgrade),
        record: &mut Record,
    ) -> Result<Option<Self>, Refusal> {
        // As it leaves: which is what the upstream goes by.
        let path = path_of(head.target_text()).as_bytes();
        let Some(view) = view.body_of(path) else {
            return Ok(None);
        };
        if upgrade != Upgrade::None || reflects(head) || is_sealed(head) {
            return Ok(None);
        }
        let Some(kind) = BodyKind::of(head.fields.all("content-type")) else {
            return Ok(None);
        };
        let coding = match ContentEncoding::parse(head.fields.all("content-encoding")) {
            ContentEncoding::Identity => None,
            ContentEncoding::Coded(codings) => match codings.as_slice() {
                [coding] => Some(*coding),
                _ => return Err(unread(STACKED)),
            },
            ContentEncoding::Unknown => return Err(unread(UNKNOWN)),
        };
        let swaps = Arc::new(BodySwaps::default());
        record.body(&swaps);
        Ok(Some(Self {
            view: Arc::new(view),
            kind,
            coding,
            limit: lane.proxy.swapper.limit(),
            report: Report {
                swaps,
                handle: Arc::clone(lane.handle),
            },
        }))
    }

    /// Returns the length of a body that is to be read whole first.
    pub(super) fn whole(framing: Framing) -> Option<usize> {
        match framing {
            Framing::Length(length @ ..=WHOLE_LIMIT_BYTES) => usize::try_from(length).ok(),
            _ => None,
        }
    }

    /// Waits for a small body of HTTP/1.1, decides what it goes through, and brings the head in
    /// line. Nothing where the body leaves as it came.
    pub(super) async fn begin(
        self,
        lane: &Lane<'_>,
        head: &mut RequestHead,
        framing: Framing,
        down: &mut Connection,
    ) -> Result<Option<Change>, Refusal> {
        let Some(length) = Self::whole(framing) else {
            let chunked = true;
            let transform = self.stream(head);
            if framing != Framing::Chunked {
                head.fields.append("Transfer-Encoding", &b"chunked"[..]);
            }
            return Ok(Some(Change { transform, chunked }));
        };
        // All of it is ours to wait for: no model thinks meanwhile.
        let limit = lane.proxy.config.stall_timeout;
        tokio::time::timeout(limit, read(down, head, length))
            .await
            .map_err(|_elapsed| reject::silent(false))??;
        let body = down.input.get(..length).unwrap_or_default();
        let transform = self.weigh(head, body).await?;
        Ok(transform.map(|transform| Change {
            transform,
            chunked: false,
        }))
    }

    /// Decides about a body that is there whole. Where something in it is swapped, the head states
    /// the length that it will have; otherwise it leaves as it came.
    pub(super) async fn weigh(
        self,
        head: &mut RequestHead,
        body: &[u8],
    ) -> Result<Option<Box<dyn Transform>>, Refusal> {
        if self.coding.is_none() && !has_marker(body) {
            return Ok(None);
        }
        let mut trial = SwapBody::new(&self, None);
        let (mut rest, mut length, mut out) = (body, 0, Zeroizing::new(Vec::new()));
        while trial.push(&mut rest, &mut out)? == Progress::Full {
            length += out.len();
            out.clear();
            // What is small can be decoded to something large.
            tokio::task::consume_budget().await;
        }
        trial.finish(&mut out)?;
        length += out.len();
        if trial.swap.swapped().count == 0 {
            self.report.add(trial.swap.swapped(), (0, 0));
            return Ok(None);
        }
        self.relabel(head);
        let stated = head
            .fields
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(b"content-length"))
            .map(|field| field.index);
        if let Some(index) = stated {
            head.fields.replace(index, length.to_string().into(), false);
        }
        Ok(Some(self.transform()))
    }

    /// Prepares for a body that leaves before all of it is there, and takes from the head what
    /// will not hold any more: its length, and a coding that is taken off.
    pub(super) fn stream(self, head: &mut RequestHead) -> Box<dyn Transform> {
        self.relabel(head);
        head.fields
            .retain(|name, _| !name.eq_ignore_ascii_case(b"content-length"));
        self.transform()
    }

    /// Takes from the head what says something of the bytes as they were.
    fn relabel(&self, head: &mut RequestHead) {
        let decodes = self.coding.is_some();
        head.fields.retain(|name, _| {
            let coding = decodes && name.eq_ignore_ascii_case(b"content-encoding");
            !coding && !is_sum(name)
        });
    }

    fn transform(self) -> Box<dyn Transform> {
        let report = self.report.clone();
        Box::new(SwapBody::new(&self, Some(report)))
    }
}

/// Tells whether the answer to a request may reflect or describe it. Methods are case-sensitive,
/// but not every server knows.
fn reflects(head: &RequestHead) -> bool {
    let methods = [b"TRACE".as_slice(), b"OPTIONS"];
    methods
        .iter()
        .any(|name| name.eq_ignore_ascii_case(head.method()))
}

/// Tells whether a request would be broken by any change of its body.
fn is_sealed(head: &RequestHead) -> bool {
    let signs = |value: &[u8]| {
        SIGNING_SCHEMES.iter().any(|scheme| {
            let start = value.get(..scheme.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
    };
    SEALS.iter().any(|name| head.fields.first(name).is_some())
        || head.fields.all("authorization").any(signs)
}

fn is_sum(name: &[u8]) -> bool {
    SUMS.iter().any(|sum| name.eq_ignore_ascii_case(sum))
}

const STACKED: (&str, &str) = (
    "content_coding_stacked",
    "a body in more than one content coding cannot be searched for sealed tokens",
);
const UNKNOWN: (&str, &str) = (
    "content_coding_unknown",
    "a body in this content coding cannot be searched for sealed tokens",
);

fn unread((code, message): (&'static str, &'static str)) -> Refusal {
    Refusal::client(415, code, message)
}

/// Waits until a body is there whole. A client that asks first is told to go on: the origin cannot
/// be asked before the length is known.
async fn read(down: &mut Connection, head: &mut RequestHead, length: usize) -> Result<(), Refusal> {
    let asks = head.version == Version::Http11 && head.fields.first("expect").is_some();
    head.fields
        .retain(|name, _| !name.eq_ignore_ascii_case(b"expect"));
    if asks && down.input.len() < length {
        let told = down.send(CONTINUE).await;
        told.map_err(|_gone| Refusal::gone())?;
    }
    while down.input.len() < length {
        let filled = poll_fn(|cx| down.poll_fill(cx)).await;
        if !matches!(filled, Ok(1..)) {
            return Err(Refusal::gone());
        }
    }
    Ok(())
}

/// Where it is told what was swapped.
#[derive(Clone)]
struct Report {
    swaps: Arc<BodySwaps>,
    handle: Arc<SessionHandle>,
}

impl Report {
    /// Tells what is new since so many tokens were swapped and left.
    fn add(&self, swapped: &Swapped, (count, left): (u32, u32)) {
        let more = swapped.count.saturating_sub(count);
        self.swaps
            .add(&swapped.names, swapped.left.saturating_sub(left));
        let counters = self.handle.counters();
        counters
            .swapped
            .fetch_add(u64::from(more), Ordering::Relaxed);
    }
}

/// The body of a request on its way through.
struct SwapBody {
    decoder: Option<Decoder>,
    /// Decoded, and taken up to here.
    decoded: Vec<u8>,
    taken: usize,
    swap: BodySwap<Arc<BodyView>>,
    /// The tokens that were swapped and left when it was last told.
    told: (u32, u32),
    report: Option<Report>,
}

impl SwapBody {
    fn new(swapping: &BodySwapping, report: Option<Report>) -> Self {
        Self {
            decoder: swapping.coding.map(|coding| Decoder::new(&[coding])),
            decoded: Vec::new(),
            taken: 0,
            swap: BodySwap::new(swapping.kind, Arc::clone(&swapping.view)).within(swapping.limit),
            told: (0, 0),
            report,
        }
    }

    fn swap(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
        let pushed = self.swap.push(input, out);
        let swapped = self.swap.swapped();
        let now = (swapped.count, swapped.left);
        if let Some(report) = self.report.as_ref().filter(|_| now != self.told) {
            report.add(swapped, self.told);
            self.told = now;
        }
        pushed.map_err(|_limit| Error::TooMuch)
    }

    /// Swaps what was decoded and not taken yet.
    fn swap_decoded(&mut self, out: &mut Vec<u8>) -> Result<Progress, Error> {
        let decoded = std::mem::take(&mut self.decoded);
        let mut rest = decoded.get(self.taken..).unwrap_or_default();
        let progress = self.swap(&mut rest, out);
        self.taken = decoded.len() - rest.len();
        self.decoded = decoded;
        progress
    }
}

impl Transform for SwapBody {
    fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
        if self.decoder.is_none() {
            return self.swap(input, out);
        }
        if self.swap_decoded(out)? == Progress::Full {
            return Ok(Progress::Full);
        }
        self.decoded.clear();
        self.taken = 0;
        let mut decoded = Progress::Hungry;
        if let Some(decoder) = &mut self.decoder {
            self.decoded.reserve(STEP_LIMIT_BYTES);
            decoded = decoder.push(input, &mut self.decoded).map_err(|error| {
                tracing::debug!(%error, "a request's coding cannot be taken off");
                Error::Coding
            })?;
        }
        match self.swap_decoded(out)? {
            Progress::Full => Ok(Progress::Full),
            _ => Ok(decoded),
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let ended = self.decoder.as_ref().map_or(Ok(()), Decoder::finish);
        self.swap.finish(out);
        ended.map_err(|_why| Error::Coding)
    }

    fn trailers(&mut self, fields: &mut Fields) {
        if self.decoder.is_some() || self.swap.swapped().count > 0 {
            fields.retain(|name, _| !is_sum(name));
        }
    }

    fn holds(&self) -> bool {
        // What may be the beginning of a token waits for what follows it, however long: a swap
        // must not depend on time.
        false
    }

    fn release(&mut self, _out: &mut Vec<u8>) {}
}
