//! Codings that others wrote, whole, cut, damaged and hostile.

use std::borrow::Cow;
use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use zstd_safe::{CCtx, InBuffer, OutBuffer};

use super::{
    Coding, ContentEncoding, Decoder, Error, GRACE_BYTES, Progress, RATIO_LIMIT, STEP_LIMIT_BYTES,
    reduce_accept_encoding,
};

const CODINGS: [Coding; 4] = [Coding::Brotli, Coding::Deflate, Coding::Gzip, Coding::Zstd];

/// Encodes parts with a flush behind each, and returns what was written for each; the last has
/// the end too.
fn encode_parts(coding: Coding, parts: &[&[u8]]) -> Vec<Vec<u8>> {
    fn all<W: Write>(
        mut writer: W,
        parts: &[&[u8]],
        take: fn(&mut W) -> &mut Vec<u8>,
        finish: fn(W) -> Vec<u8>,
    ) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        for part in parts {
            writer.write_all(part).unwrap();
            writer.flush().unwrap();
            written.push(std::mem::take(take(&mut writer)));
        }
        let end = finish(writer);
        match written.last_mut() {
            Some(last) => last.extend(end),
            None => written.push(end),
        }
        written
    }
    let level = Compression::default();
    match coding {
        Coding::Gzip => all(
            GzEncoder::new(Vec::new(), level),
            parts,
            |w| w.get_mut(),
            |w| w.finish().unwrap(),
        ),
        Coding::Deflate => all(
            ZlibEncoder::new(Vec::new(), level),
            parts,
            |w| w.get_mut(),
            |w| w.finish().unwrap(),
        ),
        Coding::Brotli => all(
            brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20),
            parts,
            brotli::CompressorWriter::get_mut,
            brotli::CompressorWriter::into_inner,
        ),
        Coding::Zstd => zstd_parts(parts),
    }
}

fn zstd_parts(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut context = CCtx::create();
    let mut written = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let mut room = vec![0; part.len() + 1024];
        let mut out = OutBuffer::around(&mut room[..]);
        let mut input = InBuffer::around(part);
        while input.pos() < part.len() {
            context.compress_stream(&mut out, &mut input).unwrap();
        }
        if number + 1 < parts.len() {
            assert_eq!(context.flush_stream(&mut out).unwrap(), 0);
        } else {
            assert_eq!(context.end_stream(&mut out).unwrap(), 0);
        }
        let length = out.pos();
        room.truncate(length);
        written.push(room);
    }
    written
}

fn encode(coding: Coding, plain: &[u8]) -> Vec<u8> {
    encode_parts(coding, &[plain]).concat()
}

/// Decodes in pieces of the given lengths, over and over.
fn decode(codings: &[Coding], coded: &[u8], cuts: &[usize]) -> Result<Vec<u8>, Error> {
    let mut decoder = Decoder::new(codings);
    let (mut plain, mut rest) = (Vec::new(), coded);
    for cut in cuts.iter().cycle() {
        let (mut piece, left) = rest.split_at((*cut).clamp(1, rest.len().max(1)).min(rest.len()));
        push(&mut decoder, &mut piece, &mut plain)?;
        rest = left;
        if rest.is_empty() {
            break;
        }
    }
    decoder.finish().map(|()| plain)
}

fn push(decoder: &mut Decoder, piece: &mut &[u8], plain: &mut Vec<u8>) -> Result<(), Error> {
    loop {
        let before = plain.len();
        let progress = decoder.push(piece, plain)?;
        assert!(plain.len() - before <= STEP_LIMIT_BYTES);
        if progress == Progress::Hungry {
            assert!(piece.is_empty());
            return Ok(());
        }
    }
}

#[test]
fn fields_name_codings_in_order() {
    let parse = |values: &[&str]| ContentEncoding::parse(values.iter().map(|v| v.as_bytes()));
    let coded = |codings: &[Coding]| ContentEncoding::Coded(codings.to_vec());
    for values in [&[][..], &[""], &["identity"], &["Identity , ,"]] {
        assert_eq!(parse(values), ContentEncoding::Identity, "{values:?}");
    }
    assert_eq!(parse(&["GZip"]), coded(&[Coding::Gzip]));
    assert_eq!(parse(&["x-gzip"]), coded(&[Coding::Gzip]));
    assert_eq!(
        parse(&["deflate, br"]),
        coded(&[Coding::Deflate, Coding::Brotli])
    );
    assert_eq!(
        parse(&["zstd", "gzip"]),
        coded(&[Coding::Zstd, Coding::Gzip])
    );
    for values in [
        &["compress"][..],
        &["aws-chunked"],
        &["gzip;q=1"],
        &["br, dcb"],
        &["gzip,gzip,gzip,gzip"],
    ] {
        assert_eq!(parse(values), ContentEncoding::Unknown, "{values:?}");
    }
}

#[test]
fn only_what_can_be_decoded_is_accepted() {
    for (value, expected) in [
        ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
        (
            "gzip;q=0.8,br ; q=1.0 , identity;q=0",
            "gzip;q=0.8,br ; q=1.0 , identity;q=0",
        ),
        ("gzip, compress, br;q=0.5, dcb, dcz", "gzip, br;q=0.5"),
        ("*", "identity"),
        ("*;q=0.1", "identity"),
        ("gzip, *;q=0.1", "gzip"),
        ("gzip;q=1, *;q=0", "gzip;q=1, *;q=0"),
        ("gzip;q=1,lzma, *;q=0.000", "gzip;q=1, *;q=0.000"),
        ("compress", "identity"),
        ("", "identity"),
        (" , ", "identity"),
        ("X-GZIP", "X-GZIP"),
    ] {
        let reduced = reduce_accept_encoding(value.as_bytes());
        assert_eq!(reduced.escape_ascii().to_string(), expected, "{value}");
        assert!(matches!(reduced, Cow::Borrowed(_)) || value != expected);
    }
}

#[test]
fn what_was_flushed_comes_out_at_once() {
    let events: Vec<Vec<u8>> = (0..20)
        .map(|number| format!("event: delta\ndata: {{\"n\":{number}}}\n\n").into_bytes())
        .collect();
    let parts: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
    for coding in CODINGS {
        let mut decoder = Decoder::new(&[coding]);
        for (coded, event) in encode_parts(coding, &parts).iter().zip(&events) {
            let mut plain = Vec::new();
            push(&mut decoder, &mut coded.as_slice(), &mut plain).unwrap();
            assert_eq!(plain, *event, "{coding:?}");
        }
        assert_eq!(decoder.finish(), Ok(()), "{coding:?}");
    }
}

#[test]
fn bare_deflate_is_told_from_zlib() {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(b"some plain text, some plain text")
        .unwrap();
    let bare = encoder.finish().unwrap();
    for coded in [
        bare,
        encode(Coding::Deflate, b"some plain text, some plain text"),
    ] {
        let plain = decode(&[Coding::Deflate], &coded, &[1]).unwrap();
        assert_eq!(plain, b"some plain text, some plain text");
    }
    // A bare stream of a stored block.
    let stored = b"\x01\x03\x00\xfc\xffabc";
    assert_eq!(decode(&[Coding::Deflate], stored, &[1]).unwrap(), b"abc");
}

#[test]
fn members_and_frames_follow_one_another() {
    for coding in [Coding::Gzip, Coding::Zstd] {
        let two = [encode(coding, b"one "), encode(coding, b"two")].concat();
        for cut in [1, 7, usize::MAX] {
            assert_eq!(
                decode(&[coding], &two, &[cut]).unwrap(),
                b"one two",
                "{coding:?}"
            );
        }
    }
    let padded = [encode(Coding::Gzip, b"one"), vec![0; 20]].concat();
    assert_eq!(decode(&[Coding::Gzip], &padded, &[1]).unwrap(), b"one");
    for coding in CODINGS {
        let more = [encode(coding, b"one"), b"junk".to_vec()].concat();
        assert_eq!(
            decode(&[coding], &more, &[usize::MAX]),
            Err(Error::Corrupt),
            "{coding:?}"
        );
        assert_eq!(
            decode(&[coding], &more, &[1]),
            Err(Error::Corrupt),
            "{coding:?}"
        );
    }
}

#[test]
fn every_part_of_a_gzip_header_is_read() {
    let plain = encode(Coding::Gzip, b"text");
    let body = &plain[10..];
    let header =
        |flags: u8, more: &[u8]| [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3], more, body].concat();
    for coded in [
        header(4, b"\x03\x00abc"),
        header(4, b"\x00\x00"),
        header(8, b"name\0"),
        header(16, b"comment\0"),
        header(2, b"xx"),
        header(4 | 8 | 16 | 2 | 1, b"\x01\x00an\0c\0xx"),
    ] {
        assert_eq!(decode(&[Coding::Gzip], &coded, &[1]).unwrap(), b"text");
    }
    for coded in [header(0x20, b""), header(0x80, b"")] {
        assert_eq!(decode(&[Coding::Gzip], &coded, &[1]), Err(Error::Corrupt));
    }
    let mut wrong = plain;
    let last = wrong.len() - 6;
    wrong[last] ^= 1;
    assert_eq!(decode(&[Coding::Gzip], &wrong, &[1]), Err(Error::Corrupt));
}

#[test]
fn a_body_that_ends_early_is_refused() {
    let plain = b"some plain text that is long enough to be cut".repeat(5);
    for coding in CODINGS {
        let coded = encode(coding, &plain);
        for length in 1..coded.len() {
            let cut = decode(&[coding], &coded[..length], &[usize::MAX]);
            assert_eq!(cut, Err(Error::Truncated), "{coding:?} {length}");
        }
        assert_eq!(decode(&[coding], b"", &[1]).unwrap(), b"", "{coding:?}");
        assert!(
            decode(&[coding], b"plain text", &[1]).is_err(),
            "{coding:?}"
        );
    }
}

#[test]
fn codings_on_top_of_each_other_are_decoded() {
    let plain: Vec<u8> = (0..200_000_u32)
        .flat_map(|n| n.wrapping_mul(n).to_le_bytes())
        .collect();
    for first in CODINGS {
        for second in CODINGS {
            let coded = encode(second, &encode(first, &plain));
            let decoded = decode(&[first, second], &coded, &[5000]).unwrap();
            assert!(decoded == plain, "{first:?} {second:?}");
        }
    }
    let coded = encode(Coding::Gzip, &encode(Coding::Brotli, b"text"));
    let cut = &encode(Coding::Brotli, b"text")[..3];
    assert_eq!(
        decode(&[Coding::Brotli, Coding::Gzip], &coded, &[1]).unwrap(),
        b"text"
    );
    let cut = encode(Coding::Gzip, cut);
    assert_eq!(
        decode(&[Coding::Brotli, Coding::Gzip], &cut, &[1]),
        Err(Error::Truncated)
    );
}

#[test]
fn bombs_are_refused_and_bounded() {
    let length = usize::try_from(GRACE_BYTES).unwrap() + 2 * STEP_LIMIT_BYTES;
    let zeros = vec![0; length];
    for coding in CODINGS {
        let coded = encode(coding, &zeros);
        assert!(length as u64 / coded.len() as u64 > RATIO_LIMIT);
        let mut decoder = Decoder::new(&[coding]);
        let (mut input, mut total) = (coded.as_slice(), 0);
        let error = loop {
            let mut out = Vec::new();
            match decoder.push(&mut input, &mut out) {
                Ok(Progress::Hungry) => panic!("{coding:?}: the end was reached"),
                Ok(_) => total += out.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(error, Error::Bomb, "{coding:?}");
        assert!(total <= length, "{coding:?}");
        // Below the grace it is a body like any other.
        let coded = encode(coding, &zeros[..1 << 20]);
        assert!(decode(&[coding], &coded, &[usize::MAX]).unwrap() == zeros[..1 << 20]);
    }
    // A coding within that gives nothing does not hide how much the outer one gives.
    let padded = [encode(Coding::Gzip, b"x"), zeros].concat();
    let coded = encode(Coding::Zstd, &padded);
    assert_eq!(
        decode(&[Coding::Gzip, Coding::Zstd], &coded, &[usize::MAX]),
        Err(Error::Bomb)
    );
}

#[test]
fn windows_are_bounded() {
    // A frame that asks for a window of 16 MiB, and a brotli stream of one of 1 GiB.
    let zstd = b"\x28\xb5\x2f\xfd\x00\x70\x01\x00\x00";
    assert_eq!(
        decode(&[Coding::Zstd], zstd, &[usize::MAX]),
        Err(Error::Corrupt)
    );
    let fits = b"\x28\xb5\x2f\xfd\x00\x68\x01\x00\x00";
    assert_eq!(decode(&[Coding::Zstd], fits, &[usize::MAX]).unwrap(), b"");
    let brotli = b"\x11\x1e\x03";
    assert_eq!(
        decode(&[Coding::Brotli], brotli, &[usize::MAX]),
        Err(Error::Corrupt)
    );
}

#[test]
fn nothing_is_shown() {
    let mut decoder = Decoder::new(&CODINGS[..3]);
    let mut out = Vec::new();
    decoder.push(&mut &b"\x1f\x8b"[..], &mut out).unwrap();
    assert!(format!("{decoder:?}").len() < 300);
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        ("[a-z \n]{0,200}", 0_usize..400).prop_map(|(text, times)| text.repeat(times).into_bytes()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_cut_gives_the_same(
        plain in bodies(),
        coding in prop::sample::select(&CODINGS[..]),
        cuts in prop::collection::vec(1_usize..300, 1..20),
    ) {
        let coded = encode(coding, &plain);
        prop_assert!(decode(&[coding], &coded, &[usize::MAX]).unwrap() == plain);
        prop_assert!(decode(&[coding], &coded, &cuts).unwrap() == plain);
    }

    #[test]
    fn damage_never_panics_and_cuts_do_not_matter(
        plain in bodies(),
        codings in prop::collection::vec(prop::sample::select(&CODINGS[..]), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        raw in prop::collection::vec(any::<u8>(), 0..200),
        is_raw in any::<bool>(),
        cuts in prop::collection::vec(1_usize..300, 1..20),
    ) {
        let mut coded = codings.iter().fold(plain, |plain, coding| encode(*coding, &plain));
        for (at, byte) in &damage {
            let at = at.index(coded.len());
            coded[at] = *byte;
        }
        let coded = if is_raw { raw } else { coded };
        let whole = decode(&codings, &coded, &[usize::MAX]);
        let cut = decode(&codings, &coded, &cuts);
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
        if let (Ok(whole), Ok(cut)) = (whole, cut) {
            prop_assert!(whole == cut);
        }
    }
}
