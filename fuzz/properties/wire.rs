//! Properties of heads and chunks: one reading, the same for every cut and after every writing.

use bytes::{Bytes, BytesMut};
use oshu_vault::wire::{
    AnswerHead, Body, Error, Fields, Framing, HeadScanner, Progress, RequestHead, Version,
    answer_framing, clean_answer, clean_request, parse_answer, parse_request, parse_trailers,
    request_framing,
};

use super::cut;

/// Reads a head as a request, as an answer and as trailers; writes it, and reads it again.
pub fn head(data: &[u8]) {
    let whole = HeadScanner::default().scan(data);
    let mut scanner = HeadScanner::default();
    let mut seen = 0;
    let mut stepwise = Ok(None);
    for piece in cut::pieces(data, data.len() as u64) {
        seen += piece.len();
        stepwise = scanner.scan(&data[..seen]);
        if stepwise != Ok(None) {
            break;
        }
    }
    assert_eq!(
        stepwise, whole,
        "a head ends where it ends, however it arrives"
    );
    let Ok(Some(end)) = whole else {
        return;
    };
    let block = Bytes::copy_from_slice(&data[..end]);
    if let Ok(head) = parse_request(block.clone()) {
        request(&head);
    }
    if let Ok(head) = parse_answer(block.clone()) {
        answer(&head);
    }
    if let Ok(fields) = parse_trailers(block) {
        trailers(&fields);
    }
}

fn request(head: &RequestHead) {
    let mut out = Vec::new();
    head.write(&mut out);
    strict(&out);
    let again = parse_request(Bytes::from(out.clone())).expect("what was written is read");
    assert_eq!(again.method(), head.method());
    assert_eq!(again.target(), head.target());
    assert_eq!(listed(&again.fields), listed(&head.fields));
    let mut twice = Vec::new();
    again.write(&mut twice);
    assert_eq!(twice, out, "a second writing changes nothing");

    let framing = request_framing(head);
    one_framing(&head.fields, head.version, framing);
    let disguised = head.fields.iter().any(|field| disguised(field.name));
    assert!(
        !disguised || framing.is_err(),
        "some servers would read another framing"
    );
    let mut cleaned = head.clone();
    for name in ["host", "content-length", "transfer-encoding"] {
        cleaned.fields.straighten(name);
    }
    if clean_request(&mut cleaned).is_ok() {
        cleaned_well(&head.fields, &cleaned.fields);
        let mut out = Vec::new();
        cleaned.write(&mut out);
        strict(&out);
        let again = parse_request(Bytes::from(out)).expect("what was cleaned is read");
        if let Ok(framing) = framing {
            assert_eq!(
                request_framing(&again),
                Ok(framing),
                "cleaning kept the framing"
            );
        }
    }
}

fn answer(head: &AnswerHead) {
    let mut out = Vec::new();
    head.write(&mut out);
    strict(&out);
    let again = parse_answer(Bytes::from(out.clone())).expect("what was written is read");
    assert_eq!((again.status, again.reason()), (head.status, head.reason()));
    assert_eq!(listed(&again.fields), listed(&head.fields));
    let mut twice = Vec::new();
    again.write(&mut twice);
    assert_eq!(twice, out, "a second writing changes nothing");

    let framing = answer_framing(head, false);
    let bodyless = head.status < 200 || matches!(head.status, 204 | 304);
    match framing {
        Ok(Framing::None) if bodyless => one_framing(&head.fields, head.version, stated(head)),
        framing => one_framing(&head.fields, head.version, framing),
    }
    let mut cleaned = head.clone();
    if clean_answer(&mut cleaned).is_ok() {
        let mut before = head.fields.clone();
        if head.status < 200 || head.status == 204 {
            // They have no body, and state none when they leave.
            before.retain(|name, _| {
                !name.eq_ignore_ascii_case(b"content-length")
                    && !name.eq_ignore_ascii_case(b"transfer-encoding")
            });
        }
        cleaned_well(&before, &cleaned.fields);
        assert_eq!(cleaned.fields.first("alt-svc"), None);
    }
}

fn trailers(fields: &Fields) {
    let mut out = Vec::new();
    fields.write(&mut out);
    out.extend_from_slice(b"\r\n");
    let again = parse_trailers(Bytes::from(out)).expect("what was written is read");
    assert_eq!(listed(&again), listed(fields));
    for name in ["content-length", "transfer-encoding", "host", "connection"] {
        assert_eq!(fields.first(name), None);
    }
}

/// The framing that an answer states where its status says that there is no body.
fn stated(head: &AnswerHead) -> Result<Framing, Error> {
    let mut other = head.clone();
    other.status = 200;
    answer_framing(&other, false)
}

fn listed(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
    fields
        .iter()
        .map(|field| pair(field.name, field.value))
        .collect()
}

/// Reads written bytes without our reader: every line ends in CR LF and nothing else is one, only
/// the last is empty, every field has a colon behind a name.
fn strict(written: &[u8]) {
    let text = written
        .strip_suffix(b"\r\n\r\n")
        .expect("an empty line ends a head");
    for (place, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
        assert!(!line.is_empty() && !line.iter().any(control));
        let colon = line.iter().position(|byte| *byte == b':');
        if place > 0 {
            let name = &line[..colon.expect("a field has a colon")];
            assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        }
    }
    let feeds = memchr::memchr_iter(b'\n', written).count();
    assert_eq!(memchr::memchr_iter(b'\r', written).count(), feeds);
    assert_eq!(memchr::memmem::find_iter(written, b"\r\n").count(), feeds);
}

/// A framing is stated once or not at all, and is what the field says.
fn one_framing(fields: &Fields, version: Version, framing: Result<Framing, Error>) {
    let lengths: Vec<&[u8]> = fields.all("content-length").collect();
    let codings: Vec<&[u8]> = fields.all("transfer-encoding").collect();
    let stated = lengths.len() + codings.len();
    match framing {
        Ok(Framing::None | Framing::UntilClose) => assert_eq!(stated, 0),
        Ok(Framing::Length(length)) => {
            assert_eq!((stated, codings.len()), (1, 0));
            assert_eq!(lengths[0], length.to_string().as_bytes());
        }
        Ok(Framing::Chunked) => {
            assert_eq!((stated, lengths.len()), (1, 0));
            assert!(codings[0].eq_ignore_ascii_case(b"chunked") && version == Version::Http11);
        }
        Err(_) => assert!(
            stated > 0 || fields.iter().any(|field| disguised(field.name)),
            "a head without a framing field is not ambiguous"
        ),
    }
}

/// Tells whether some servers would read a name as one that frames, `_` standing for `-`.
fn disguised(name: &[u8]) -> bool {
    let read = name.to_ascii_lowercase();
    let read: Vec<u8> = read
        .iter()
        .map(|byte| if *byte == b'_' { b'-' } else { *byte })
        .collect();
    name.contains(&b'_') && [&b"content-length"[..], b"transfer-encoding"].contains(&&read[..])
}

fn cleaned_well(before: &Fields, after: &Fields) {
    for field in after.iter() {
        let name = field.name.to_ascii_lowercase();
        assert!(!name.starts_with(b"proxy-"));
        for hop in [
            "connection",
            "keep-alive",
            "te",
            "upgrade",
            "http2-settings",
        ] {
            assert_ne!(name, hop.as_bytes());
        }
    }
    for kept in [
        "host",
        "content-length",
        "transfer-encoding",
        "authorization",
        "cookie",
    ] {
        assert_eq!(before.all(kept).count(), after.all(kept).count(), "{kept}");
    }
}

/// Reads a body in pieces and whole: the same bytes, the same end, and the same fault.
pub fn chunks(data: &[u8]) {
    let Some(([kind, seed], body)) = data.split_first_chunk() else {
        return;
    };
    let framing = match kind % 4 {
        0 => Framing::Length(u64::from(*seed) * 3),
        1 => Framing::UntilClose,
        _ => Framing::Chunked,
    };
    for unframed in [false, true] {
        let whole = read(framing, unframed, &[body]);
        let pieces: Vec<&[u8]> = cut::pieces(body, u64::from(*seed)).collect();
        let cut = read(framing, unframed, &pieces);
        assert_eq!(cut.end, whole.end, "the end depends on the cuts");
        assert_eq!(cut.out, whole.out, "the bytes depend on the cuts");
        assert_eq!(cut.data_bytes, whole.data_bytes);
        if whole.end == Ok(Progress::Done) {
            assert_eq!(cut.left, whole.left, "another message starts elsewhere");
            if framing == Framing::Chunked {
                let (data, end) = plainly(body).expect("a plain reading finds chunks as well");
                assert_eq!(whole.left, body.len() - end);
                assert_eq!(whole.data_bytes, data.len() as u64);
                assert!(!unframed || whole.out == data);
            }
            if unframed {
                assert_eq!(whole.out.len() as u64, whole.data_bytes);
            } else {
                let again = read(framing, false, &[&whole.out]);
                assert_eq!(again.end, Ok(Progress::Done));
                assert_eq!((again.out, again.left), (whole.out, 0));
            }
        }
    }
}

/// Reads chunks one after the other from the whole body: their data, and where the body ends.
fn plainly(body: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let line = at + memchr::memmem::find(&body[at..], b"\r\n")?;
        let digits: String = body[at..line]
            .iter()
            .map(|byte| char::from(*byte))
            .take_while(char::is_ascii_hexdigit)
            .collect();
        let behind = body[at + digits.len()..line].first();
        let size = usize::from_str_radix(&digits, 16).ok()?;
        if !matches!(behind, None | Some(b';' | b' ' | b'\t')) {
            return None;
        }
        at = line + 2;
        if size == 0 {
            let rest = &body[at..];
            let end = if rest.starts_with(b"\r\n") {
                2
            } else {
                memchr::memmem::find(rest, b"\r\n\r\n")? + 4
            };
            return Some((data, at + end));
        }
        data.extend_from_slice(body.get(at..at + size)?);
        at += size;
        if body.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
}

#[derive(Debug)]
struct Read {
    end: Result<Progress, Error>,
    out: Vec<u8>,
    data_bytes: u64,
    left: usize,
}

fn read(framing: Framing, unframed: bool, pieces: &[&[u8]]) -> Read {
    let mut body = Body::new(framing);
    if unframed {
        body = body.without_framing();
    }
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    let mut end = Ok(Progress::Hungry);
    let mut rest = pieces.iter();
    while end == Ok(Progress::Hungry) {
        let Some(piece) = rest.next() else {
            break;
        };
        input.extend_from_slice(piece);
        loop {
            let mut some = Vec::new();
            end = body.step(&mut input, &mut some);
            out.append(&mut some);
            if end != Ok(Progress::Full) {
                break;
            }
        }
    }
    let left = input.len() + rest.map(|piece| piece.len()).sum::<usize>();
    let data_bytes = body.data_bytes();
    if end == Ok(Progress::Hungry) {
        end = body.close().map(|()| Progress::Done);
    }
    Read {
        end,
        out,
        data_bytes,
        left,
    }
}
