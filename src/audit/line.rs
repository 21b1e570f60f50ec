//! A record as its line of JSON, written by hand.
//!
//! There is one line per exchange, so that its cost is part of every request's. Keys and words are
//! ours and need no escaping; whatever came from outside is looked through first. Called by the
//! sink's thread alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::ser::{Serialize, Serializer};
use time::OffsetDateTime;

use super::Data;
use crate::host::Host;
use crate::id::{SessionId, TenantId};

/// The length of a [`Stamp`] as text, in bytes.
const STAMP_BYTES: usize = 24;

impl Data {
    /// Appends the record as a JSON object. What was never set is absent.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut line = Line { out };
        line.raw("{\"event\":\"");
        line.raw(self.kind.as_str());
        line.raw("\",\"time\":\"");
        line.out.extend_from_slice(&Stamp(self.time).text());
        line.raw("\"");
        line.text("tenant", self.tenant.as_ref().map(TenantId::as_str));
        line.text("session", self.session.as_ref().map(SessionId::as_str));
        if let Some((account, sandbox)) = &self.account {
            line.text("account", Some(account.as_str()));
            line.text("sandbox", Some(sandbox.as_str()));
        }
        line.text("action", self.action);
        if let Some(target) = &self.target {
            match &target.host {
                Host::Name(name) => line.text("host", Some(name)),
                address @ (Host::V4(_) | Host::V6(_)) => {
                    line.text("host", Some(&address.to_string()));
                }
            }
            line.number("port", Some(u64::from(target.port)));
        }
        line.text("method", self.method.as_deref());
        line.text("path", self.path.as_deref());
        line.text("decision", Some(self.decision.as_str()));
        line.text("reason", Some(self.reason));
        line.number("status", self.status.map(u64::from));
        if let Some(swaps) = &self.swaps {
            line.names("swapped", &swaps.names);
            if !swaps.in_body.is_empty() {
                line.names("swapped_in_body", &swaps.in_body);
            }
            line.number("tokens_left", Some(u64::from(swaps.left)));
        }
        if let Some(found) = &self.found {
            let names = found.names();
            if !names.is_empty() {
                line.names("scrubbed", &names);
            }
        }
        if !self.captured.is_empty() {
            line.names("captured", &self.captured);
        }
        line.number("bytes_up", self.bytes_up);
        line.number("bytes_down", self.bytes_down);
        line.address("peer", self.peer);
        line.address("address", self.address);
        line.milliseconds("duration_ms", self.took);
        line.raw("}");
    }
}

/// A JSON object that has at least one entry already.
struct Line<'a> {
    out: &'a mut Vec<u8>,
}

impl Line<'_> {
    fn names(&mut self, key: &'static str, names: &[Arc<str>]) {
        self.key(key);
        let mut before = "[";
        for name in names {
            self.raw(before);
            self.quoted(name);
            before = ",";
        }
        self.raw(if names.is_empty() { "[]" } else { "]" });
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Begins an entry. The key is ours and has nothing to escape.
    fn key(&mut self, key: &'static str) {
        self.raw(",\"");
        self.raw(key);
        self.raw("\":");
    }

    fn text(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.key(key);
            self.quoted(text);
        }
    }

    fn quoted(&mut self, text: &str) {
        // No early exit, so that many bytes are looked at at once.
        let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().fold(true, |all, byte| all & plain(byte)) {
            self.raw("\"");
            self.raw(text);
            self.raw("\"");
        } else if serde_json::to_writer(&mut *self.out, text).is_err() {
            // Neither a text nor a vector can fail; an empty text keeps the line whole if they do.
            self.raw("\"\"");
        }
    }

    fn number(&mut self, key: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.key(key);
            self.digits(number);
        }
    }

    fn digits(&mut self, number: u64) {
        if number >= 10 {
            self.digits(number / 10);
        }
        self.out.push(digit(number));
    }

    fn address(&mut self, key: &'static str, address: Option<SocketAddr>) {
        let Some(address) = address else { return };
        self.key(key);
        self.raw("\"");
        match address.ip() {
            IpAddr::V4(ip) => {
                for (index, octet) in ip.octets().into_iter().enumerate() {
                    self.raw(if index == 0 { "" } else { "." });
                    self.digits(u64::from(octet));
                }
                self.raw(":");
                self.digits(u64::from(address.port()));
            }
            IpAddr::V6(_) => self.raw(&address.to_string()),
        }
        self.raw("\"");
    }

    /// Writes milliseconds with at most three decimals: finer would be noise.
    fn milliseconds(&mut self, key: &'static str, duration: Duration) {
        let micros = u64::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u64::MAX);
        self.key(key);
        self.digits(micros / 1000);
        self.raw(".");
        let decimals = [digit(micros / 100), digit(micros / 10), digit(micros)];
        let kept = decimals
            .iter()
            .rposition(|digit| *digit != b'0')
            .unwrap_or(0);
        self.out.extend(decimals.iter().take(kept + 1));
    }
}

/// Returns the last decimal digit of a number.
fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or_default()
}

/// A point in time as RFC 3339 in UTC with milliseconds: always 24 characters.
pub(super) struct Stamp(pub(super) SystemTime);

impl Stamp {
    fn text(&self) -> [u8; STAMP_BYTES] {
        let time = OffsetDateTime::from(self.0);
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second, milli) = time.to_hms_milli();
        let year = u64::try_from(year).unwrap_or_default();
        let milli = u64::from(milli);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let parts = [
            (&[0, 1, 2, 3][..], year),
            (&[5, 6], u64::from(u8::from(month))),
            (&[8, 9], u64::from(day)),
            (&[11, 12], u64::from(hour)),
            (&[14, 15], u64::from(minute)),
            (&[17, 18], u64::from(second)),
            (&[20, 21, 22], milli),
        ];
        for (places, mut number) in parts {
            for place in places.iter().rev() {
                if let Some(byte) = text.get_mut(*place) {
                    *byte = digit(number);
                }
                number /= 10;
            }
        }
        text
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(&self.text()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn written(write: impl FnOnce(&mut Line<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Line { out: &mut out });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn texts_read_back_as_they_were() {
        for text in [
            "",
            "/v1/messages",
            "quote\" and back\\slash",
            "\u{0}\n\r\t\u{1b}\u{1f}",
            "\u{7f}\u{e9}\u{2028}\u{1f511}",
        ] {
            let json = written(|line| line.quoted(text));
            assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), text);
            assert_eq!(json, serde_json::to_string(text).unwrap());
        }
    }

    #[test]
    fn numbers_and_addresses_are_those_of_the_library() {
        for number in [0, 9, 10, 65_535, u64::MAX] {
            assert_eq!(written(|line| line.digits(number)), number.to_string());
        }
        for address in ["127.0.0.1:0", "203.0.113.250:65535", "[2001:db8::1]:443"] {
            let address: SocketAddr = address.parse().unwrap();
            let expected = format!(",\"peer\":\"{address}\"");
            assert_eq!(
                written(|line| line.address("peer", Some(address))),
                expected
            );
        }
    }

    #[test]
    fn durations_are_milliseconds_with_decimals() {
        for (duration, text) in [
            (Duration::ZERO, "0.0"),
            (Duration::from_nanos(1_234_499), "1.234"),
            (Duration::from_nanos(1_234_500), "1.235"),
            (Duration::from_micros(20), "0.02"),
            (Duration::from_micros(7_300), "7.3"),
            (Duration::from_micros(7_003), "7.003"),
            (Duration::from_hours(1), "3600000.0"),
        ] {
            let written = written(|line| line.milliseconds("ms", duration));
            assert_eq!(written, format!(",\"ms\":{text}"));
        }
    }

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(Stamp(time).text(), text.as_bytes());
        }
    }
}
