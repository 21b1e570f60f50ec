//! Answers from hosts that may have a secret: what of them must not reach the workload as it is.
//!
//! The pure part, finding values in all their forms and decoding codings, is `swap`'s; here it is
//! put between the cleaning of an answer's head and its writing. Exchanges with other hosts never
//! come here. Called by both doors, for heads, bodies and trailers.

use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::reject;
use super::reject::Refusal;
use crate::audit::{Found, Record};
use crate::session::HostView;
use crate::swap::{
    ContentEncoding, Decoder, STEP_LIMIT_BYTES, ScrubStream, Scrubbed, Scrubber,
    reduce_accept_encoding,
};
use crate::wire::{AnswerHead, Error, Fields, Progress, RequestHead, Transform};

/// Fields that say something of the coded bytes, which nobody will see.
pub(super) const ABOUT_CODED: [&[u8]; 4] = [
    b"content-encoding",
    b"content-digest",
    b"content-md5",
    b"digest",
];

/// Scrubs one exchange.
pub(super) struct Scrub {
    scrubber: Arc<Scrubber>,
    found: Arc<Found>,
    /// Bodies in a coding that we cannot read may pass unread (the operator's danger setting).
    unknown_codings: bool,
}

impl Scrub {
    /// Prepares for the answer of a host, if there is something that must not come back from it.
    pub(super) fn of(view: &HostView, record: &mut Record, unknown_codings: bool) -> Option<Self> {
        let scrubber = Arc::clone(view.scrubber()?);
        let found = Arc::new(Found::default());
        record.scrubbed(&found);
        Some(Self {
            scrubber,
            found,
            unknown_codings,
        })
    }

    /// Asks the upstream for codings only that we can read.
    pub(super) fn ask(head: &mut RequestHead) {
        let indexes: Vec<usize> = head
            .fields
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case(b"accept-encoding"))
            .map(|field| field.index)
            .collect();
        for index in indexes {
            let Some(field) = head.fields.at(index) else {
                continue;
            };
            let reduced = reduce_accept_encoding(field.value);
            if reduced != field.value {
                let reduced = Bytes::from(reduced.into_owned());
                head.fields.replace(index, reduced, false);
            }
        }
    }

    /// Scrubs the head of an answer, its reason phrase included.
    pub(super) fn head(&self, answer: &mut AnswerHead) {
        let mut scrubbed = Scrubbed::default();
        if self
            .scrubber
            .scrub_counted(answer.reason(), &mut scrubbed)
            .is_some()
        {
            answer.forget_reason();
        }
        self.found.add(scrubbed.iter());
        self.fields(&mut answer.fields);
    }

    /// Scrubs fields.
    fn fields(&self, fields: &mut Fields) {
        scrub_fields(&self.scrubber, &self.found, fields);
    }

    /// Prepares for the body of an answer, and takes from its head what will not hold any more:
    /// the length, and a coding that is taken off.
    pub(super) fn body(&self, answer: &mut AnswerHead) -> Result<Option<Box<ScrubBody>>, Refusal> {
        let decoder = match ContentEncoding::parse(answer.fields.all("content-encoding")) {
            ContentEncoding::Identity => None,
            ContentEncoding::Coded(codings) => Some(Decoder::new(&codings)),
            ContentEncoding::Unknown if self.unknown_codings => return Ok(None),
            ContentEncoding::Unknown => return Err(reject::unknown_coding()),
        };
        let decodes = decoder.is_some();
        answer.fields.retain(|name, _| {
            let length = name.eq_ignore_ascii_case(b"content-length");
            let decoded = decodes && ABOUT_CODED.iter().any(|it| name.eq_ignore_ascii_case(it));
            !length && !decoded
        });
        Ok(Some(Box::new(ScrubBody {
            scrubber: Arc::clone(&self.scrubber),
            found: Arc::clone(&self.found),
            messages: decoder.is_none().then(|| Messages::of(answer)).flatten(),
            decoder,
            decoded: Zeroizing::default(),
            stream: ScrubStream::new(Arc::clone(&self.scrubber)),
        })))
    }
}

fn scrub_fields(scrubber: &Scrubber, found: &Found, fields: &mut Fields) {
    let mut scrubbed = Scrubbed::default();
    // A name cannot be changed to another that means something: its field goes.
    fields.retain(|name, _| scrubber.scrub_counted(name, &mut scrubbed).is_none());
    let changed: Vec<(usize, Vec<u8>)> = fields
        .iter()
        .filter_map(|field| {
            let text = scrubber.scrub_counted(field.value, &mut scrubbed)?;
            Some((field.index, text))
        })
        .collect();
    for (index, text) in changed {
        fields.replace(index, Bytes::from(text), false);
    }
    found.add(scrubbed.iter());
}

/// The body of an answer on its way through.
pub(super) struct ScrubBody {
    scrubber: Arc<Scrubber>,
    found: Arc<Found>,
    messages: Option<Messages>,
    decoder: Option<Decoder>,
    /// Decoded and not yet scrubbed: it may have real values.
    decoded: Zeroizing<Vec<u8>>,
    stream: ScrubStream,
}

impl ScrubBody {
    /// Tells whether the body's bytes are looked at as they come.
    pub(super) fn is_plain(&self) -> bool {
        self.decoder.is_none()
    }

    /// Scrubs a body that is there whole and plain.
    pub(super) fn whole(mut self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(body.len());
        self.stream.push(body, &mut out);
        self.stream.finish(&mut out);
        out
    }
}

impl Drop for ScrubBody {
    fn drop(&mut self) {
        self.found.add(self.stream.scrubbed().iter());
    }
}

impl Transform for ScrubBody {
    fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
        let Some(decoder) = &mut self.decoder else {
            while let Some(messages) = &mut self.messages {
                let Some((count, ended)) = messages.take(input) else {
                    self.messages = None;
                    break;
                };
                let (piece, rest) = input.split_at_checked(count).unwrap_or((input, &[]));
                self.stream.push(piece, out);
                *input = rest;
                if ended {
                    self.stream.release(out);
                }
                if rest.is_empty() {
                    return Ok(Progress::Hungry);
                }
            }
            self.stream.push(input, out);
            *input = &[];
            return Ok(Progress::Hungry);
        };
        if self.decoded.capacity() == 0 {
            // A buffer that grows would leave copies behind.
            self.decoded.reserve_exact(STEP_LIMIT_BYTES);
        }
        let progress = decoder.push(input, &mut self.decoded);
        self.stream.push(&self.decoded, out);
        self.decoded.clear();
        progress.map_err(|error| {
            tracing::debug!(%error, "an answer's coding cannot be taken off");
            Error::Coding
        })
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let ended = self.decoder.as_ref().map_or(Ok(()), Decoder::finish);
        self.stream.finish(out);
        ended.map_err(|_why| Error::Coding)
    }

    fn trailers(&mut self, fields: &mut Fields) {
        scrub_fields(&self.scrubber, &self.found, fields);
    }

    fn holds(&self) -> bool {
        self.stream.held() > 0
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        self.stream.release(out);
    }
}

/// Where the messages of a gRPC body end: no value goes on behind one, and the other side may wait
/// for it.
#[derive(Debug, Default)]
struct Messages {
    /// A flag and a length, as far as they have come.
    prefix: [u8; 5],
    prefix_bytes: usize,
    left: usize,
}

impl Messages {
    fn of(answer: &AnswerHead) -> Option<Self> {
        let text = answer.fields.first("content-type")?.to_ascii_lowercase();
        let is_grpc = text.starts_with(b"application/grpc");
        // That one is base64, and has no messages to be seen.
        let is_text = text.starts_with(b"application/grpc-web-text");
        (is_grpc && !is_text).then(Self::default)
    }

    /// Returns how much of the input belongs to one message, and whether that ends there; nothing
    /// if these are no messages.
    fn take(&mut self, input: &[u8]) -> Option<(usize, bool)> {
        let mut count = 0;
        if self.left == 0 {
            let room = self.prefix.iter_mut().skip(self.prefix_bytes);
            for (place, byte) in room.zip(input) {
                *place = *byte;
                count += 1;
            }
            self.prefix_bytes += count;
            let [flag, length @ ..] = self.prefix;
            // Compressed or not; the trailers of gRPC-Web have the highest bit.
            if flag & 0x7e != 0 {
                return None;
            }
            if self.prefix_bytes < self.prefix.len() {
                return Some((count, false));
            }
            self.prefix_bytes = 0;
            self.left = usize::try_from(u32::from_be_bytes(length)).ok()?;
        }
        let data = self.left.min(input.len() - count);
        self.left -= data;
        Some((count + data, self.left == 0))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::secret::Secret;
    use crate::wire::{parse_answer, parse_request};

    const VALUE: &str = "a-real-value-0123456789";
    const TOKEN: &str = "SEALED_0123456789abcdef0123456789abcdef";

    fn scrub(unknown_codings: bool) -> Scrub {
        let one = (
            Secret::new(VALUE.as_bytes().to_vec()),
            Bytes::from_static(TOKEN.as_bytes()),
            Arc::from("KEY"),
        );
        Scrub {
            scrubber: Arc::new(Scrubber::new(std::iter::once(one)).unwrap()),
            found: Arc::default(),
            unknown_codings,
        }
    }

    fn answer(text: &str) -> AnswerHead {
        parse_answer(Bytes::from(text.replace("{S}", VALUE))).unwrap()
    }

    fn written(head: &AnswerHead) -> String {
        let mut out = Vec::new();
        head.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_head_loses_the_value_wherever_it_stands() {
        let scrub = scrub(false);
        let mut head = answer(
            "HTTP/1.1 404 no {S} here\r\nX-A:  {S}\r\nLocation: https://x/?k={S}&l\r\n\
             X-{S}: 1\r\nx-b:  same\r\n\r\n",
        );
        scrub.head(&mut head);
        let text = written(&head);
        assert!(!text.contains(VALUE), "{text}");
        assert!(text.starts_with("HTTP/1.1 404 \r\n"), "{text}");
        assert!(
            text.contains(&format!("Location: https://x/?k={TOKEN}&l\r\n")),
            "{text}"
        );
        assert!(text.ends_with("x-b:  same\r\n\r\n"), "{text}");
        let names = scrub.found.names();
        assert_eq!(names, [Arc::from("KEY")]);
    }

    #[test]
    fn a_head_without_the_value_stays_as_it_is() {
        let scrub = scrub(false);
        let text = "HTTP/1.1 200 All  fine\r\nX-A:  1\r\nx-a: 2 \r\n\r\n";
        let mut head = answer(text);
        scrub.head(&mut head);
        assert_eq!(written(&head), text);
        assert!(scrub.found.names().is_empty());
    }

    #[test]
    fn only_codings_that_can_be_read_are_asked_for() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip, exi;q=1\r\n\
                    X: 1\r\naccept-encoding:  br\r\nACCEPT-ENCODING: exi\r\n\r\n";
        let mut head = parse_request(Bytes::from(text)).unwrap();
        Scrub::ask(&mut head);
        let mut out = Vec::new();
        head.write(&mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(!out.contains("exi"), "{out}");
        assert!(out.contains("Accept-Encoding: gzip"), "{out}");
        assert!(out.contains("\r\naccept-encoding:  br\r\n"), "{out}");
        assert!(
            out.ends_with("\r\nACCEPT-ENCODING: identity\r\n\r\n"),
            "{out}"
        );
    }

    #[test]
    fn what_says_something_of_the_bytes_goes_when_they_change() {
        let head = |coding: &str| {
            answer(&format!(
                "HTTP/1.1 200 OK\r\n{coding}Content-Length: 9\r\nContent-MD5: x\r\nETag: \"e\"\r\n\r\n"
            ))
        };
        let mut plain = head("");
        let body = scrub(false).body(&mut plain).unwrap().unwrap();
        assert!(body.is_plain());
        assert!(plain.fields.first("content-length").is_none());
        assert!(plain.fields.first("content-md5").is_some());
        let mut coded = head("Content-Encoding: gzip\r\n");
        let body = scrub(false).body(&mut coded).unwrap().unwrap();
        assert!(!body.is_plain());
        for name in ["content-length", "content-encoding", "content-md5"] {
            assert!(coded.fields.first(name).is_none(), "{name}");
        }
        assert!(coded.fields.first("etag").is_some());
    }

    #[test]
    fn an_unknown_coding_is_refused_or_passes_unread() {
        let text = "HTTP/1.1 200 OK\r\nContent-Encoding: exi\r\nContent-Length: 2\r\n\r\n";
        assert!(scrub(false).body(&mut answer(text)).is_err());
        let mut head = answer(text);
        assert!(scrub(true).body(&mut head).unwrap().is_none());
        assert_eq!(written(&head), text);
    }

    #[test]
    fn a_message_of_grpc_leaves_whole() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc+proto\r\n\r\n";
        let message = |text: &str| {
            let length = u32::try_from(text.len()).unwrap().to_be_bytes();
            [&[0][..], &length, text.as_bytes()].concat()
        };
        // Each ends as a value may begin.
        let texts = ["a", "a-real-val", "", "{\"a\":\"a-real", VALUE];
        let whole: Vec<u8> = texts.iter().flat_map(|text| message(text)).collect();
        for size in 1..20 {
            let scrub = scrub(false);
            let mut body = scrub.body(&mut answer(head)).unwrap().unwrap();
            let mut out = Vec::new();
            for mut piece in whole.chunks(size) {
                assert_eq!(body.push(&mut piece, &mut out).unwrap(), Progress::Hungry);
                assert!(piece.is_empty());
            }
            assert!(!body.holds(), "{size}");
            let text = String::from_utf8_lossy(&out).into_owned();
            assert!(!text.contains(VALUE), "{text}");
            assert_eq!(text.matches(TOKEN).count(), 1, "{text}");
            let before = whole.len() - VALUE.len();
            assert_eq!(out[..before], whole[..before], "{size}");
        }
    }

    #[test]
    fn what_is_no_message_of_grpc_is_searched_as_any_body() {
        for (kind, text) in [
            ("application/grpc", format!("{{\"k\":\"{VALUE}\"}}")),
            ("application/grpc-web-text", format!("AAAAA{VALUE}")),
            ("text/plain", format!("\0\0\0\0\x05{VALUE}")),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n");
            for cut in 0..text.len() {
                let scrub = scrub(false);
                let mut body = scrub.body(&mut answer(&head)).unwrap().unwrap();
                let mut out = Vec::new();
                for mut piece in [&text.as_bytes()[..cut], &text.as_bytes()[cut..]] {
                    assert_eq!(body.push(&mut piece, &mut out).unwrap(), Progress::Hungry);
                }
                body.finish(&mut out).unwrap();
                assert_eq!(out, text.replace(VALUE, TOKEN).as_bytes(), "{kind} {cut}");
            }
        }
    }

    #[test]
    fn a_coded_body_is_decoded_and_scrubbed_at_every_cut() {
        let plain = format!("before {VALUE} behind");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(plain.as_bytes()).unwrap();
        let coded = gzip.finish().unwrap();
        let text = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n";
        for cut in 0..=coded.len() {
            let scrub = scrub(false);
            let mut body = scrub.body(&mut answer(text)).unwrap().unwrap();
            let mut out = Vec::new();
            for mut piece in [&coded[..cut], &coded[cut..]] {
                while body.push(&mut piece, &mut out).unwrap() != Progress::Hungry {}
            }
            body.finish(&mut out).unwrap();
            assert_eq!(out, format!("before {TOKEN} behind").as_bytes(), "{cut}");
            drop(body);
            assert_eq!(scrub.found.names().len(), 1);
            let mut body = scrub.body(&mut answer(text)).unwrap().unwrap();
            let mut out = Vec::new();
            while body.push(&mut &coded[..cut], &mut out).unwrap() != Progress::Hungry {}
            // Nothing at all is a whole body too: an answer to HEAD.
            let whole = cut == 0 || cut == coded.len();
            assert_eq!(body.finish(&mut out).is_ok(), whole, "{cut}");
        }
    }
}
