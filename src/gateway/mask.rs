//! The operator's credential, taken out of what the model provider answers.
//!
//! A provider, or what stands before it, may send back what it was sent: in an error page, a field, an
//! event. The search is that which serves the secrets of sessions, with its forms and its limits, and
//! one text stands in the place of all that it finds. A coding comes off first, though none was asked
//! for. Every byte leaves as it comes, but for a tail that may begin the credential. Called by the
//! forwarding.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use zeroize::Zeroizing;

use crate::audit::Found;
use crate::callout::Error;
use crate::secret::Secret;
use crate::swap::{ContentEncoding, Decoder, ScrubStream, Scrubbed, Scrubber};
use crate::wire::{self, Fields, Patience, Progress};

/// What stands in the place of the credential.
const REDACTED: &[u8] = b"[redacted]";
/// What audit records call it.
const NAME: &str = "gateway.api_key";

/// Looks for the credential; for nothing where it is too short to be looked for, which no
/// configuration takes.
pub(super) struct Mask(Option<Arc<Scrubber>>);

impl Mask {
    pub(super) fn new(key: &Secret) -> Self {
        let one = (
            key.clone(),
            Bytes::from_static(REDACTED),
            Arc::<str>::from(NAME),
        );
        Self(Scrubber::new(std::iter::once(one)).map(Arc::new))
    }

    /// Returns the value of a field without the credential; nothing if it is not in it.
    pub(super) fn field(&self, value: &[u8], found: &Found) -> Option<Vec<u8>> {
        let mut scrubbed = Scrubbed::default();
        let text = self.0.as_ref()?.scrub_counted(value, &mut scrubbed);
        found.add(scrubbed.iter());
        text
    }

    /// Prepares for the body of an answer; nothing where its coding cannot be taken off.
    pub(super) fn body(&self, fields: &Fields, found: &Arc<Found>) -> Option<Masked> {
        let decoder = match ContentEncoding::parse(fields.all("content-encoding")) {
            ContentEncoding::Identity => None,
            ContentEncoding::Coded(codings) => Some(Decoder::new(&codings)),
            ContentEncoding::Unknown => return None,
        };
        let stream = self.0.as_ref().map(Arc::clone).map(ScrubStream::new);
        Some(Masked {
            stream,
            decoder,
            came: Bytes::new(),
            more: false,
            patience: Patience::default(),
            found: Arc::clone(found),
        })
    }
}

/// The body of an answer on its way through.
pub(super) struct Masked {
    stream: Option<ScrubStream>,
    decoder: Option<Decoder>,
    /// What came and was not looked at.
    came: Bytes,
    /// The decoder has more to give before it takes more.
    more: bool,
    patience: Patience,
    found: Arc<Found>,
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masked")
            .field("stream", &self.stream)
            .field("decoder", &self.decoder)
            .field("came_bytes", &self.came.len())
            .finish_non_exhaustive()
    }
}

impl Masked {
    /// Takes the next piece, after [`Masked::next`] had nothing more.
    pub(super) fn take(&mut self, piece: Bytes) {
        self.patience.renew();
        self.came = piece;
    }

    /// Returns the next piece that can leave: a bounded one where a coding comes off.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the body is not in the coding that its head names.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.more || !self.came.is_empty() {
            let out = match &mut self.decoder {
                None => {
                    let came = mem::take(&mut self.came);
                    scrub(self.stream.as_mut(), came)
                }
                Some(decoder) => {
                    let (mut rest, mut decoded) = (self.came.as_ref(), Zeroizing::default());
                    let progress = decoder.push(&mut rest, &mut decoded);
                    self.more = progress.map_err(bad_coding)? == Progress::Full;
                    let taken = self.came.len() - rest.len();
                    self.came.advance(taken);
                    let decoded = Bytes::from(mem::take::<Vec<u8>>(&mut decoded));
                    scrub(self.stream.as_mut(), decoded)
                }
            };
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
        Ok(None)
    }

    /// Returns what was held back, now that nothing follows.
    ///
    /// # Errors
    /// [`Error::Malformed`] where a coding has not ended.
    pub(super) fn finish(&mut self) -> Result<Bytes, Error> {
        let ended = self.decoder.as_ref().map_or(Ok(()), Decoder::finish);
        ended.map_err(bad_coding)?;
        Ok(self.release())
    }

    /// Returns what is held back once the provider has been silent behind it for a while. To be asked
    /// while it is waited for.
    pub(super) fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let holds = self.stream.as_ref().is_some_and(|stream| stream.held() > 0);
        if !holds || self.patience.poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.release())
    }

    /// Returns what is held back.
    pub(super) fn release(&mut self) -> Bytes {
        let mut out = Vec::new();
        if let Some(stream) = &mut self.stream {
            stream.release(&mut out);
        }
        out.into()
    }

    /// Tells the audit record what was found so far.
    pub(super) fn tell(&self) {
        if let Some(stream) = &self.stream {
            self.found.add(stream.scrubbed().iter());
        }
    }

    /// Tells whether the body has as many bytes as came.
    pub(super) fn keeps_length(&self) -> bool {
        self.stream.is_none() && self.decoder.is_none()
    }
}

fn scrub(stream: Option<&mut ScrubStream>, piece: Bytes) -> Bytes {
    let Some(stream) = stream else {
        return piece;
    };
    let mut out = Vec::with_capacity(piece.len());
    stream.push(&piece, &mut out);
    out.into()
}

fn bad_coding<E: fmt::Display>(why: E) -> Error {
    tracing::debug!(%why, "the coding of an answer cannot be taken off");
    Error::Malformed(wire::Error::Coding)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::task::Waker;
    use std::time::Duration;

    use super::*;

    const KEY: &str = "sk-ant-api03-0123456789-CANARY/+";

    fn mask() -> Mask {
        Mask::new(&Secret::new(KEY.as_bytes().to_vec()))
    }

    fn fields(lines: &str) -> Fields {
        let raw = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        let head = wire::parse_answer(raw.into_bytes().into());
        head.unwrap().fields
    }

    /// Passes pieces through, and returns each as it left.
    fn pass(body: &mut Masked, pieces: &[&[u8]]) -> Result<Vec<Bytes>, Error> {
        let mut out = Vec::new();
        for piece in pieces {
            body.take(Bytes::copy_from_slice(piece));
            while let Some(piece) = body.next()? {
                out.push(piece);
            }
        }
        out.push(body.finish()?);
        Ok(out)
    }

    #[test]
    fn the_key_is_found_in_any_form_at_any_cut() {
        let percent = KEY.replace('/', "%2F").replace('+', "%2B");
        let json = KEY.replace('/', "\\/");
        let base64 = data_encoding::BASE64.encode(format!("ab{KEY}cd").as_bytes());
        for (form, expected) in [
            (KEY, "<[redacted]>"),
            (&percent, "<[redacted]>"),
            (&json, "<[redacted]>"),
            (&base64, ""),
        ] {
            let text = format!("<{form}>");
            for cut in 0..text.len() {
                let found = Arc::new(Found::default());
                let mut body = mask().body(&fields(""), &found).unwrap();
                let (one, two) = text.as_bytes().split_at(cut);
                let out = pass(&mut body, &[one, two]).unwrap().concat();
                let out = String::from_utf8(out).unwrap();
                assert!(!out.contains(form), "{form} {cut}: {out}");
                assert!(out.contains("[redacted]"), "{form} {cut}: {out}");
                assert!(expected.is_empty() || out == expected, "{cut}: {out}");
                body.tell();
                assert_eq!(found.names(), [Arc::from(NAME)]);
            }
        }
        let found = Found::default();
        let value = mask().field(format!("a {KEY}").as_bytes(), &found);
        assert_eq!(value.as_deref(), Some(&b"a [redacted]"[..]));
        assert_eq!(mask().field(b"req_1", &found), None);
    }

    #[test]
    fn events_leave_as_they_come() {
        let found = Arc::new(Found::default());
        let mut body = mask().body(&fields(""), &found).unwrap();
        let events = ["event: a\ndata: {\"sk-ant\":1}\n\n", "data: s\n\n", "\n"];
        let pieces = events.map(str::as_bytes);
        let out = pass(&mut body, &pieces).unwrap();
        assert_eq!(out, [pieces[0], pieces[1], pieces[2], b""]);
        body.tell();
        assert!(found.names().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tail_that_may_begin_it_leaves_when_nothing_follows() {
        let found = Arc::new(Found::default());
        let mut body = mask().body(&fields(""), &found).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        body.take(Bytes::from_static(b"a sk-ant-api03-"));
        assert_eq!(body.next().unwrap().as_deref(), Some(&b"a "[..]));
        assert_eq!(body.next().unwrap(), None);
        assert!(body.poll_release(&mut cx).is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        let Poll::Ready(tail) = body.poll_release(&mut cx) else {
            panic!("it is held for ever");
        };
        assert_eq!(tail, "sk-ant-api03-");
        assert!(body.poll_release(&mut cx).is_pending());
    }

    #[test]
    fn codings_come_off() {
        let plain = format!("{{\"k\":\"{KEY}\"}}").repeat(20_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain.as_bytes()).unwrap();
        let coded = gzip.finish().unwrap();
        let found = Arc::new(Found::default());
        let gzip = fields("Content-Encoding: gzip\r\n");
        let mut body = mask().body(&gzip, &found).unwrap();
        let pieces: Vec<&[u8]> = coded.chunks(700).collect();
        let out = pass(&mut body, &pieces).unwrap();
        assert!(out.iter().all(|piece| piece.len() <= 128 * 1024));
        let expected = plain.replace(KEY, "[redacted]");
        assert_eq!(out.concat(), expected.as_bytes());
        for bad in [&coded[..coded.len() - 9], b"{}"] {
            let mut body = mask().body(&gzip, &found).unwrap();
            assert!(matches!(pass(&mut body, &[bad]), Err(Error::Malformed(_))));
        }
        let other = fields("Content-Encoding: exi\r\n");
        assert!(mask().body(&other, &found).is_none());
        let none = fields("Content-Encoding: identity\r\n");
        assert!(mask().body(&none, &found).is_some());
    }
}
