//! A writer for the few DER forms that a leaf certificate needs (ITU-T X.690).
//!
//! Only definite lengths and low tag numbers; it copies what it is given and never re-encodes a
//! name, which is the reason it exists. It reads nothing. Called by `leaf`.

use time::OffsetDateTime;

/// BOOLEAN TRUE, whole: what marks an extension as critical.
pub(super) const TRUE: &[u8] = &[0x01, 0x01, 0xff];

const BIT_STRING: u8 = 0x03;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Writes one element: tag, length in its shortest form, then the parts one after the other.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    if let Ok(short @ 0..=0x7f) = u8::try_from(length) {
        out.push(short);
    } else {
        let bytes = length.to_be_bytes();
        let used = bytes.iter().skip_while(|byte| **byte == 0);
        // At most eight, so that the count fits below the high bit.
        out.push(0x80 | used.clone().fold(0, |count, _byte| count + 1));
        out.extend(used);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// Writes a SEQUENCE of elements that are already encoded.
pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(SEQUENCE, parts)
}

/// Writes an INTEGER whose minimal big-endian content is given.
pub(super) fn integer(content: &[u8]) -> Vec<u8> {
    element(INTEGER, &[content])
}

/// Writes an OCTET STRING.
pub(super) fn octet_string(content: &[u8]) -> Vec<u8> {
    element(OCTET_STRING, &[content])
}

/// Writes a BIT STRING of whole bytes.
pub(super) fn bit_string(content: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0], content])
}

/// Writes a Time: `UTCTime` through 2049, `GeneralizedTime` from 2050 on (RFC 5280 §4.1.2.5).
pub(super) fn time(at: OffsetDateTime) -> Vec<u8> {
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let rest = format!(
        "{month:02}{day:02}{:02}{:02}{:02}Z",
        at.hour(),
        at.minute(),
        at.second()
    );
    if (1950..2050).contains(&year) {
        element(
            UTC_TIME,
            &[format!("{:02}", year % 100).as_bytes(), rest.as_bytes()],
        )
    } else {
        element(
            GENERALIZED_TIME,
            &[format!("{year:04}").as_bytes(), rest.as_bytes()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_their_shortest_form() {
        for (length, head) in [
            (0, vec![0x04, 0x00]),
            (127, vec![0x04, 0x7f]),
            (128, vec![0x04, 0x81, 0x80]),
            (255, vec![0x04, 0x81, 0xff]),
            (256, vec![0x04, 0x82, 0x01, 0x00]),
            (65_536, vec![0x04, 0x83, 0x01, 0x00, 0x00]),
        ] {
            let written = octet_string(&vec![0xaa; length]);
            assert_eq!(written.len(), head.len() + length);
            assert_eq!(written[..head.len()], head);
        }
    }

    #[test]
    fn times_change_their_type_in_2050() {
        for (seconds, expected) in [
            (0, &b"\x17\x0d700101000000Z"[..]),
            (1_763_763_439, b"\x17\x0d251121221719Z"),
            (2_524_607_999, b"\x17\x0d491231235959Z"),
            (2_524_608_000, b"\x18\x0f20500101000000Z"),
        ] {
            let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            assert_eq!(time(at), expected, "{seconds}");
        }
    }
}
