//! Answers of hosts that may have a secret: the value never reaches the workload, in any form that
//! is common, and everything else does.
//!
//! The origins write back what they were sent, in the form, coding and framing that the path says.
//! What counts is the raw bytes that the workload got.

mod bodies;
mod codings;
mod heads;
mod sessions;
mod streams;

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use data_encoding::{HEXLOWER, HEXUPPER};
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

use crate::support::{GOOD, REAL, contains, show};

const TARGET: &str = "good.example.com:443";
pub(crate) const CODINGS: [&str; 6] = ["identity", "gzip", "zlib", "deflate", "br", "zstd"];

/// Writes a value in one form.
type Form = fn(&str) -> String;

/// The forms in which a server may write a value, and what each is.
const FORMS: [(&str, Form); 19] = [
    ("raw", str::to_owned),
    ("base64", |value| STANDARD.encode(value)),
    ("base64-1", |value| STANDARD.encode(format!("u:{value}"))),
    ("base64-2", |value| STANDARD.encode(format!("us:{value}"))),
    ("base64-3", |value| {
        STANDARD.encode(format!("user:{value}:x"))
    }),
    ("base64url", |value| URL_SAFE_NO_PAD.encode(value)),
    ("base64url-1", |value| {
        URL_SAFE_NO_PAD.encode(format!("user:{value}"))
    }),
    ("base64url-2", |value| {
        URL_SAFE_NO_PAD.encode(format!("x:{value}:y"))
    }),
    ("percent", |value| escape(value, "%", "", true)),
    ("percent-lower", |value| escape(value, "%", "", false)),
    ("json", |value| value.replace('/', "\\/")),
    ("json-number", |value| escape(value, "\\u00", "", true)),
    ("json-number-lower", |value| {
        escape(value, "\\u00", "", false)
    }),
    ("html", |value| escape(value, "&#x", ";", true)),
    ("html-lower", |value| escape(value, "&#x", ";", false)),
    ("html-decimal", |value| value.replace('+', "&#43;")),
    ("hex", |value| HEXLOWER.encode(value.as_bytes())),
    ("hex-upper", |value| HEXUPPER.encode(value.as_bytes())),
    ("base64-json", |value| {
        STANDARD.encode(value).replace('/', "\\/")
    }),
];

/// Escapes what is neither letter, digit nor `-` by its number.
fn escape(value: &str, before: &str, behind: &str, upper: bool) -> String {
    let escaped = |character: char| match character {
        'a'..='z' | '0'..='9' | '-' => character.to_string(),
        other if upper => format!("{before}{:02X}{behind}", other as u32),
        other => format!("{before}{:02x}{behind}", other as u32),
    };
    value.chars().map(escaped).collect()
}

/// Returns a value in a form.
fn form(name: &str, value: &str) -> String {
    let (_, write) = FORMS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a form");
    write(value)
}

/// Encodes a body.
pub(crate) fn encode(coding: &str, plain: &[u8]) -> Vec<u8> {
    fn end<W: Write>(mut writer: W, plain: &[u8], finish: fn(W) -> Vec<u8>) -> Vec<u8> {
        writer.write_all(plain).expect("room");
        finish(writer)
    }
    let level = Compression::default();
    match coding {
        "gzip" => end(GzEncoder::new(Vec::new(), level), plain, |it| {
            it.finish().expect("the end")
        }),
        "zlib" => end(ZlibEncoder::new(Vec::new(), level), plain, |it| {
            it.finish().expect("the end")
        }),
        "deflate" => end(DeflateEncoder::new(Vec::new(), level), plain, |it| {
            it.finish().expect("the end")
        }),
        "br" => {
            let writer = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            end(writer, plain, brotli::CompressorWriter::into_inner)
        }
        "zstd" => {
            let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
            zstd_safe::compress(&mut out, plain, 3).expect("room");
            out
        }
        _ => plain.to_vec(),
    }
}

/// Returns the name that a coding has in a head; nothing for none.
pub(crate) fn named(coding: &str) -> Option<&str> {
    match coding {
        "identity" => None,
        "zlib" => Some("deflate"),
        other => Some(other),
    }
}

/// Fails if the value stands in what the workload got, in any form.
fn assert_clean(case: &str, bytes: &[u8]) {
    for (name, _) in FORMS {
        let text = form(name, REAL);
        // Of base64 the first and the last character hold bits of what stands around the value.
        let core = match name.split('-').next() {
            Some("base64" | "base64url") => {
                let start = if name == "base64" { 0 } else { 10 };
                text.get(start..text.len() - 8).expect("longer")
            }
            _ => &text,
        };
        assert!(!contains(bytes, core), "{case}: {name} in {}", show(bytes));
    }
}

/// Writes bytes as chunks of one size, and trailers.
fn chunks(bytes: &[u8], size: usize, trailers: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in bytes.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    out
}

/// Asks for a path with the secret in a field.
fn get(token: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {token}\r\n\r\n")
}

/// Returns the path of a request line.
fn path(line: &str) -> &str {
    line.split(' ').nth(1).expect("a path")
}
