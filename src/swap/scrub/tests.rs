//! The scrub against values in every form, at every cut, and against texts without a value.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use data_encoding::{HEXLOWER, HEXUPPER};
use proptest::prelude::*;

use super::form::{Inner, sextet};
use super::policy::Policy;
use super::{ScrubStream, Scrubbed, Scrubber};
use crate::secret::Secret;

const KEY: &str = "sk-ant-api03-Ab9_xYz-0123";
const TOKEN: &str = "SEALED_0123456789abcdef0123456789abcdef";

fn scrubber(secrets: &[(&str, &str, &str)]) -> Option<Scrubber> {
    Scrubber::new(secrets.iter().map(|(name, value, token)| {
        (
            Secret::new(value.as_bytes().to_vec()),
            Bytes::copy_from_slice(token.as_bytes()),
            Arc::from(*name),
        )
    }))
}

fn one(value: &str) -> Arc<Scrubber> {
    Arc::new(scrubber(&[("KEY", value, TOKEN)]).unwrap())
}

/// Sends a text in pieces of the given lengths, over and over.
fn stream(scrubber: &Arc<Scrubber>, text: &[u8], cuts: &[usize]) -> (Vec<u8>, Scrubbed) {
    let mut stream = ScrubStream::new(Arc::clone(scrubber));
    let (mut out, mut rest) = (Vec::new(), text);
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, left) = rest.split_at((*cut).clamp(1, rest.len()));
        let before = out.len();
        stream.push(piece, &mut out);
        assert!(out.len() - before <= stream_bound(piece.len() + text.len()));
        rest = left;
    }
    stream.finish(&mut out);
    assert_eq!(stream.held(), 0);
    (out, stream.scrubbed().clone())
}

/// Each token takes the place of at least 16 bytes.
fn stream_bound(input: usize) -> usize {
    input + input / 16 * TOKEN.len() + TOKEN.len()
}

fn whole(scrubber: &Arc<Scrubber>, text: &str) -> String {
    let (out, scrubbed) = stream(scrubber, text.as_bytes(), &[usize::MAX]);
    let value = scrubber.scrub_value(text.as_bytes());
    assert_eq!(value.is_none(), scrubbed.is_empty(), "{text}");
    assert_eq!(value.unwrap_or_else(|| text.into()), out, "{text}");
    for cuts in [[1, 1], [2, 3], [7, 16], [30, 1]] {
        let (cut, counted) = stream(scrubber, text.as_bytes(), &cuts);
        assert_eq!(
            cut.escape_ascii().to_string(),
            out.escape_ascii().to_string()
        );
        assert_eq!(counted, scrubbed);
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn every_common_form_becomes_the_token() {
    let value = "p@ss/w+rd=\"q'<r>&\\s t~u!é|0123456789";
    let key = one(value);
    for text in [
        value,
        // encodeURIComponent, URLSearchParams, encodeURI, Python's quote and quote_plus
        "p%40ss%2Fw%2Brd%3D%22q'%3Cr%3E%26%5Cs%20t~u!%C3%A9%7C0123456789",
        "p%40ss%2Fw%2Brd%3D%22q%27%3Cr%3E%26%5Cs+t%7Eu%21%C3%A9%7C0123456789",
        "p@ss/w+rd=%22q'%3Cr%3E&%5Cs%20t~u!%C3%A9%7C0123456789",
        "p%40ss/w%2Brd%3D%22q%27%3Cr%3E%26%5Cs%20t~u%21%C3%A9%7C0123456789",
        "p%40ss%2fw%2brd%3d%22q%27%3cr%3e%26%5cs+t~u%21%c3%a9%7c0123456789",
        // JSON: plain, of PHP, Go, Python, .NET
        "p@ss/w+rd=\\\"q'<r>&\\\\s t~u!é|0123456789",
        "p@ss\\/w+rd=\\\"q'<r>&\\\\s t~u!\\u00e9|0123456789",
        "p@ss/w+rd=\\\"q'\\u003cr\\u003e\\u0026\\\\s t~u!é|0123456789",
        "p@ss/w+rd=\\\"q'<r>&\\\\s t~u!\\u00e9|0123456789",
        "p@ss/w\\u002Brd=\\u0022q\\u0027\\u003Cr\\u003E\\u0026\\\\s t~u!\\u00E9|0123456789",
        // HTML: of Python, Go, PHP, Mustache
        "p@ss/w+rd=&quot;q&#x27;&lt;r&gt;&amp;\\s t~u!é|0123456789",
        "p@ss/w+rd=&#34;q&#39;&lt;r&gt;&amp;\\s t~u!é|0123456789",
        "p@ss/w+rd=&quot;q&#039;&lt;r&gt;&amp;\\s t~u!é|0123456789",
        "p@ss&#x2F;w+rd&#x3D;&quot;q&#39;&lt;r&gt;&amp;\\s t~u!é|0123456789",
        "p@ss/w+rd=&quot;q&apos;&lt;r&gt;&amp;\\s t~u!&#233;|0123456789",
        // hex and base64, as such and within other syntaxes
        &HEXLOWER.encode(value.as_bytes()),
        &HEXUPPER.encode(value.as_bytes()),
        &STANDARD.encode(value),
        &URL_SAFE_NO_PAD.encode(value),
        &STANDARD.encode(value).replace('/', "\\/"),
        &STANDARD.encode(value).replace('+', "\\u002b"),
        &STANDARD
            .encode(value)
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D"),
    ] {
        assert_eq!(whole(&key, text), TOKEN, "{text}");
        let around = format!("before {text} after {text}.");
        assert_eq!(
            whole(&key, &around),
            format!("before {TOKEN} after {TOKEN}.")
        );
    }
}

#[test]
fn every_habit_of_an_encoder_is_found() {
    for value in [
        KEY,
        "p@ss/w+rd=\"q'<r>&\\s t~u!é|0123456789",
        "\"'<>&+/=%\\`{}[]()*,;:@$#?!|^~ -._",
    ] {
        let key = one(value);
        for policy in Policy::partial().chain(Policy::full()) {
            let mut text = vec![0; 8 * value.len()];
            let length = policy.write(value.as_bytes(), &mut text);
            let text = std::str::from_utf8(&text[..length]).unwrap();
            assert_eq!(whole(&key, text), TOKEN, "{policy:?} {text}");
        }
    }
}

#[test]
fn base64_is_found_at_every_distance() {
    for length in 16..22 {
        let value: String = KEY.chars().take(length).collect();
        let key = one(&value);
        for before in ["", "u", "us", "us:", "user:"] {
            for after in ["", "x", "xy", ":xy"] {
                let plain = format!("{before}{value}{after}");
                for text in [STANDARD.encode(&plain), URL_SAFE_NO_PAD.encode(&plain)] {
                    let out = whole(&key, &format!("Basic {text}\""));
                    let (start, end) = out.split_once(TOKEN).unwrap();
                    // What is left has no bit of the value, and no padding without its text.
                    let start = start.strip_prefix("Basic ").unwrap();
                    assert_eq!(start.len(), before.len() * 8 / 6, "{plain} {out}");
                    let after_value = (before.len() + value.len()) * 8;
                    let kept = end.trim_end_matches(['=', '"']).len();
                    let all = (plain.len() * 8).div_ceil(6);
                    assert_eq!(kept, all - after_value.div_ceil(6), "{plain} {out}");
                    assert!(!after.is_empty() || end == "\"", "{plain} {out}");
                }
            }
        }
    }
}

#[test]
fn escapes_before_base64_stay_whole() {
    // Of the second and third, the character before may be `/`, and `f` be taken for it.
    for value in [KEY, "éclair-0123456789-abc", "😀-0123456789-abcdef"] {
        let key = one(value);
        for before in ["ab", "b>?", "?", "??", "???", "a?", "~~>", "~~"] {
            let plain = STANDARD.encode(format!("{before}{value}"));
            for text in [
                plain.replace('+', "\\u002b").replace('/', "\\u002f"),
                plain.replace('+', "%2b").replace('/', "%2f"),
                plain.replace('+', "%2B").replace('/', "%2F"),
                plain.replace('/', "\\/"),
                plain.replace('/', "\\x2f"),
                plain.replace('/', "&#x2F;"),
            ] {
                let out = whole(&key, &text);
                let (start, _) = out.split_once(TOKEN).expect(&text);
                for (mark, length) in [("\\u", 6), ("\\/", 2), ("\\x", 4), ("%", 3), ("&", 6)] {
                    for (at, _) in start.match_indices(mark) {
                        assert!(at + length <= start.len(), "{text} {out}");
                    }
                }
            }
        }
    }
    assert_eq!(
        whole(&one(KEY), &format!("\\n{}", STANDARD.encode(KEY))),
        format!("\\n{TOKEN}")
    );
}

#[test]
fn a_value_within_another_is_part_of_it() {
    let long = format!("prefix-{KEY}-suffix");
    let secrets = [
        ("LONG", long.as_str(), "SEALED_long"),
        ("SHORT", KEY, "SEALED_short"),
    ];
    let both = Arc::new(scrubber(&secrets).unwrap());
    assert_eq!(whole(&both, &format!("[{long}]")), "[SEALED_long]");
    assert_eq!(whole(&both, &format!("[{KEY}]")), "[SEALED_short]");
    assert_eq!(
        whole(&both, &format!("prefix-{KEY}-suffi")),
        "prefix-SEALED_short-suffi"
    );
    // One begins where the other does: the longer one wins.
    let longer = format!("{KEY}-and-more");
    let secrets = [("A", KEY, "SEALED_a"), ("B", longer.as_str(), "SEALED_b")];
    let both = Arc::new(scrubber(&secrets).unwrap());
    assert_eq!(
        whole(&both, &format!("{longer} {KEY}-and")),
        "SEALED_b SEALED_a-and"
    );
    // One begins in the other: nothing of either is left.
    let (start, end) = KEY.split_at(10);
    let tail = format!("{end}-tail-of-the-other");
    let secrets = [("A", KEY, "SEALED_a"), ("B", tail.as_str(), "SEALED_b")];
    let both = Arc::new(scrubber(&secrets).unwrap());
    let out = whole(&both, &format!("<{start}{tail}>"));
    assert_eq!(out, "<SEALED_a>");
}

#[test]
fn the_order_of_secrets_makes_no_difference() {
    let mut secrets = [("B", KEY, "SEALED_b"), ("A", KEY, "SEALED_a")];
    for _ in 0..2 {
        secrets.reverse();
        let both = Arc::new(scrubber(&secrets).unwrap());
        assert_eq!(whole(&both, KEY), "SEALED_a");
    }
}

#[test]
fn many_are_counted_by_name() {
    let names: Vec<(String, String)> = (0..60)
        .map(|number| {
            (
                format!("KEY_{number:02}"),
                format!("sk-ant-api03-{number:02}-0123456789"),
            )
        })
        .collect();
    let secrets: Vec<(&str, &str, &str)> = names
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str(), name.as_str()))
        .collect();
    let all = Arc::new(scrubber(&secrets).unwrap());
    let text: String = names
        .iter()
        .rev()
        .flat_map(|(_, value)| [value, " ", value, ","])
        .collect();
    let (out, scrubbed) = stream(&all, text.as_bytes(), &[100]);
    let expected: String = names
        .iter()
        .rev()
        .flat_map(|(name, _)| [name, " ", name, ","])
        .collect();
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert_eq!(scrubbed.iter().count(), 60);
    assert!(scrubbed.iter().all(|(_, count)| count == 2));
    let mut sum = Scrubbed::default();
    sum.add(&scrubbed);
    all.scrub_counted(b"x sk-ant-api03-07-0123456789", &mut sum)
        .unwrap();
    let seven = sum.iter().find(|(name, _)| &***name == "KEY_07").unwrap();
    assert_eq!(seven.1, 3);
}

#[test]
fn a_value_over_itself_is_one_token() {
    let key = one("aaaaaaaaaaaaaaaaaaaa");
    assert_eq!(whole(&key, &"a".repeat(500)), TOKEN);
    let key = one("0123456789abcdef-0123456789abcdef");
    let text = "0123456789abcdef-0123456789abcdef-0123456789abcdef";
    assert_eq!(whole(&key, &format!("[{text}]")), format!("[{TOKEN}]"));
}

#[test]
fn short_values_are_left_out() {
    assert!(scrubber(&[("A", "fifteen-bytes-x", TOKEN)]).is_none());
    assert!(scrubber(&[]).is_none());
    let secrets = [("A", "fifteen-bytes-x", "SEALED_a"), ("B", KEY, "SEALED_b")];
    let both = Arc::new(scrubber(&secrets).unwrap());
    assert_eq!(
        whole(&both, &format!("fifteen-bytes-x {KEY}")),
        "fifteen-bytes-x SEALED_b"
    );
}

#[test]
fn long_values_and_long_forms_are_found() {
    let value: String = (0..8192_u32)
        .filter_map(|n| char::from_u32(33 + n * n % 89))
        .collect();
    let each = |write: fn(char) -> String| value.chars().map(write).collect::<Vec<_>>().concat();
    let key = one(&value);
    for text in [
        value.clone(),
        each(|c| format!("\\u{:04x}", c as u32)),
        each(|c| format!("&#{:07};", c as u32)),
        STANDARD.encode(format!("u:{value}")),
    ] {
        for cut in [100, 16 * 1024] {
            let (out, _) = stream(&key, format!("<{text}>").as_bytes(), &[cut]);
            let out = String::from_utf8(out).unwrap();
            // The heads have no leading zeros.
            let zeros = text.starts_with("&#00");
            assert_eq!(out.contains(TOKEN), !zeros);
        }
    }
}

#[test]
fn nothing_is_shown() {
    let key = one(KEY);
    let mut stream = ScrubStream::new(Arc::clone(&key));
    let mut out = Vec::new();
    let (start, _) = KEY.split_at(20);
    stream.push(format!("{KEY} {start}").as_bytes(), &mut out);
    let shown = format!("{key:?} {stream:?}");
    assert_eq!(stream.held(), 20);
    assert!(
        shown.contains("KEY") && !shown.contains("sk-ant"),
        "{shown}"
    );
}

#[test]
fn an_event_is_never_held_back() {
    let key = one("data: 0123456789\tabcdef");
    let mut stream = ScrubStream::new(key);
    for event in [
        "data: x\n\n",
        "data: data: 0123456789\n\n",
        ": \\\n\n",
        "data: %\n\n",
        "&\n\n",
    ] {
        let mut out = Vec::new();
        stream.push(event.as_bytes(), &mut out);
        assert_eq!(out, event.as_bytes());
    }
}

/// Values as they are in practice, and of any characters that a header may have.
fn values() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "(sk-|ghp_|eyJ)[A-Za-z0-9_-]{16,60}",
        2 => "[!-~]([ -~]{15,40})[!-~]",
        1 => "[a-c%&+\\\\/=]{16,24}",
        1 => "(ab|aab|ba){8,14}",
        1 => "[a-zé€😀]{16,30}",
    ]
}

/// The texts in which a server could write a value, encoded by other means than ours.
fn written() -> impl Strategy<Value = (String, String)> {
    let percent = |value: &str, keep: fn(u8) -> bool| -> String {
        let each = value.bytes().map(|byte| {
            let kept = keep(byte).then(|| char::from(byte).to_string());
            kept.unwrap_or_else(|| format!("%{byte:02X}"))
        });
        each.collect::<Vec<_>>().concat()
    };
    (values(), 0..12, "[ -~]{0,5}", "[ -~]{0,5}").prop_map(move |(value, form, before, after)| {
        let plain = format!("{before}{value}{after}");
        let text = match form {
            0 => value.clone(),
            1 => HEXLOWER.encode(plain.as_bytes()),
            2 => HEXUPPER.encode(plain.as_bytes()),
            3 => STANDARD.encode(&plain),
            4 => URL_SAFE_NO_PAD.encode(&plain),
            5 => percent(&value, |b| {
                b.is_ascii_alphanumeric() || b"-_.~".contains(&b)
            }),
            6 => percent(&value, |_| false).to_lowercase(),
            7 => {
                let quoted = serde_json::to_string(&value).unwrap();
                quoted.get(1..quoted.len() - 1).unwrap().to_owned()
            }
            8 => {
                let units = value.encode_utf16().map(|unit| format!("\\u{unit:04X}"));
                units.collect::<Vec<_>>().concat()
            }
            9 => value
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&quot;")
                .replace('\'', "&#39;"),
            10 => STANDARD.encode(&plain).replace('/', "\\/"),
            _ => percent(&STANDARD.encode(&plain), |b| b.is_ascii_alphanumeric()),
        };
        (value, text)
    })
}

fn surroundings() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,40}",
        "[A-Za-z0-9+/=]{0,20}",
        "(\\\\n|\\\\u00|%|&|&#|\\\\|\n){0,6}"
    ]
}

/// All bits of a value that base64 has in characters of their own.
fn base64_cores(value: &str) -> Vec<String> {
    (0..3)
        .map(Inner::Base64)
        .map(|inner| {
            (0..inner.symbols(value.as_bytes()))
                .map(|at| char::from(inner.symbol(value.as_bytes(), at).unwrap()))
                .collect()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_value_survives_and_no_cut_makes_a_difference(
        (value, text) in written(),
        (before, between, after) in (surroundings(), surroundings(), surroundings()),
        cuts in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let key = one(&value);
        let body = format!("{before}{text}{between}{text}{after}");
        let (out, scrubbed) = stream(&key, body.as_bytes(), &[usize::MAX]);
        let (cut, counted) = stream(&key, body.as_bytes(), &cuts);
        prop_assert_eq!(cut.escape_ascii().to_string(), out.escape_ascii().to_string());
        prop_assert_eq!(&counted, &scrubbed);
        prop_assert!(!scrubbed.is_empty(), "{}", body);
        let out = String::from_utf8(out).unwrap();
        prop_assert!(!out.contains(&value), "{}", out);
        prop_assert!(!out.contains(&text), "{}", out);
        prop_assert!(!out.to_lowercase().contains(&HEXLOWER.encode(value.as_bytes())), "{}", out);
        let plain = out.replace("\\/", "/").replace("%2F", "/").replace("%2B", "+");
        let plain = plain.replace('-', "+").replace('_', "/");
        for core in base64_cores(&value) {
            prop_assert!(!plain.contains(&core), "{}", out);
        }
        prop_assert!(out.contains(TOKEN));
    }

    #[test]
    fn without_a_value_every_byte_stays(
        value in values(),
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            "[ -~\n]{0,600}".prop_map(String::into_bytes),
        ],
        cuts in prop::collection::vec(1_usize..100, 1..20),
        near in any::<prop::sample::Index>(),
    ) {
        let key = one(&value);
        prop_assert_eq!(&stream(&key, &body, &cuts).0, &body);
        prop_assert!(key.scrub_value(&body).is_none());
        // Nor does a value of which one byte is another.
        let mut other = value.into_bytes();
        let at = near.index(other.len());
        other[at] = 0;
        let body = [&body[..body.len() / 2], &other, &body[body.len() / 2..]].concat();
        prop_assert_eq!(&stream(&key, &body, &cuts).0, &body);
    }

    #[test]
    fn only_the_beginning_of_a_value_is_held_back(
        value in "[A-Za-z0-9_-]{16,60}",
        before in "[ -~\n]{0,60}",
        form in any::<prop::sample::Index>(),
        length in any::<prop::sample::Index>(),
    ) {
        let mut forms: Vec<String> = Policy::partial().chain(Policy::full()).map(|policy| {
            let mut text = vec![0; 8 * value.len()];
            let length = policy.write(value.as_bytes(), &mut text);
            String::from_utf8(text[..length].to_vec()).unwrap()
        }).collect();
        let cores = base64_cores(&value);
        forms.extend(cores.iter().cloned());
        forms.extend(cores.iter().map(|core| core.replace('+', "-").replace('/', "_")));
        forms.extend([HEXLOWER.encode(value.as_bytes()), HEXUPPER.encode(value.as_bytes())]);
        let form = &forms[form.index(forms.len())];
        let text = format!("{before}{}", form.get(..length.index(form.len())).unwrap());
        let mut stream = ScrubStream::new(one(&value));
        let mut out = Vec::new();
        stream.push(text.as_bytes(), &mut out);
        let (_, held) = text.split_at(text.len() - stream.held());
        let begins = |held: &str| {
            let held = held.to_lowercase();
            forms.iter().any(|form| form.to_lowercase().starts_with(&held))
        };
        // A base64 character with bits of the value may stand before its form.
        let lead = held.bytes().next().is_some_and(|byte| sextet(byte).is_some());
        let behind = held.get(1..).unwrap_or_default();
        prop_assert!(begins(held) || lead && begins(behind), "{:?} of {:?}", held, text);
        let mut line = Vec::new();
        stream.push(b"\n\n", &mut line);
        prop_assert_eq!(stream.held(), 0);
        prop_assert_eq!([out, line].concat(), format!("{text}\n\n").into_bytes());
    }
}
