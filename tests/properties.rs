//! The properties P1 to P7 over made-up inputs: what must hold for every head, name, address, sealed
//! row and value, whatever its bytes.
//!
//! The inputs are the same in every run, so that a failure is one for everybody; `make fuzz` looks
//! further. P1 and P2 hold for field values and answers here; those of bodies stand beside them.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    reason = "a property that does not hold should say so and stop"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oshu_vault::host::{Host, HostPort};
use oshu_vault::policy::{AddressRules, Cidr, EgressPolicy, EgressRules, classify, vet};
use oshu_vault::seal::{Context, KeyId, Keyring};
use oshu_vault::sealed_token::{Place, TokenId};
use oshu_vault::secret::Secret;
use oshu_vault::swap::{Lookup, Opening, ScrubStream, Scrubber, Swapper};
use oshu_vault::wire::{RequestHead, parse_answer, parse_request, request_framing};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// The same inputs in every run, and no file about a failure.
fn same(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x0511_u64),
        ..ProptestConfig::default()
    }
}

const TOKEN: &str = "SEALED_0123456789abcdef0123456789abcdef";
/// Has bytes that every form writes in another way.
const VALUE: &str = "sk-real/+=& \"%<\u{e9}>-0123456789";

/// Opens one token, everywhere or nowhere.
struct One {
    secret: Secret,
    name: Arc<str>,
    opens: bool,
}

impl One {
    fn new(opens: bool) -> Self {
        Self {
            secret: Secret::new(VALUE.into()),
            name: Arc::from("ONE"),
            opens,
        }
    }
}

impl Lookup for One {
    fn open<'a>(&'a self, id: TokenId, _: &[u8], _: Place<'_>) -> Option<Opening<'a>> {
        let known = TokenId::read(&TOKEN.as_bytes()[7..]) == Some(id);
        (known && self.opens).then_some(Opening {
            prefix_length: 0,
            secret: &self.secret,
            name: &self.name,
        })
    }
}

fn swapped(head: &RequestHead, opens: bool) -> RequestHead {
    let mut head = head.clone();
    let done = Swapper::new().swap_request(&mut head, &One::new(opens));
    done.expect("few tokens");
    head
}

fn scrubber() -> Arc<Scrubber> {
    let secret = Secret::new(VALUE.into());
    let entry = (
        secret,
        Bytes::from_static(TOKEN.as_bytes()),
        Arc::from("ONE"),
    );
    Arc::new(Scrubber::new(std::iter::once(entry)).expect("the value is long enough"))
}

fn scrubbed(pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = ScrubStream::new(scrubber());
    let mut out = Vec::new();
    for piece in pieces {
        stream.push(piece, &mut out);
    }
    stream.finish(&mut out);
    out
}

/// Cuts a text at the places.
fn cut<'a>(text: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places
        .iter()
        .map(|place| place % (text.len() + 1))
        .collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| &text[pair[0]..pair[1]])
        .collect()
}

/// Some text, a token, or nearly one; no line end, and nothing that goes on with a token's digits.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ -/:-@\\[-^`{-~G-Zg-z]{0,10}",
        2 => Just(TOKEN.to_owned()),
        1 => "SEALED_[0-9a-f]{0,31}Z",
        1 => Just(TOKEN.to_ascii_uppercase()),
    ];
    vec(piece, 0..6).prop_map(|pieces| format!("<{}>", pieces.concat()))
}

/// Field names, among them those that frame, route or take a secret.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => "[A-Za-z][A-Za-z0-9_.-]{0,12}",
        1 => prop::sample::select(vec![
            "Host", "Content-Length", "Transfer-Encoding", "Connection", "X-Api-Key", "Cookie",
        ]).prop_map(str::to_owned),
    ]
}

fn lines() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        3 => text(),
        1 => prop::sample::select(vec!["", "0", "5", "chunked", "close", "x"]).prop_map(str::to_owned),
    ];
    let blank = prop::sample::select(vec!["", " ", "  ", "\t", " \t "]);
    vec((name(), blank.clone(), value, blank), 0..10).prop_map(|lines| {
        let line = |(name, before, value, after): &(String, &str, String, &str)| {
            format!("{name}:{before}{value}{after}\r\n")
        };
        lines.iter().map(line).collect()
    })
}

/// A name in one of many spellings: case, a dot at the end, numbers, literals.
fn spelling() -> impl Strategy<Value = String> {
    let label = "[a-zA-Z0-9_-]{1,8}";
    prop_oneof![
        3 => vec(label, 1..4).prop_map(|labels| labels.join(".")),
        2 => prop::sample::select(vec![
            "good.example", "GOOD.example", "a.wild.Example", "wild.example", "xwild.example",
            "good.example.evil.example", "127.0.0.1", "[::1]", "[::FFFF:10.0.0.1]", "0x7f.1",
        ]).prop_map(str::to_owned),
        1 => any::<Ipv4Addr>().prop_map(|address| address.to_string()),
        1 => any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]")),
    ]
    .prop_flat_map(|name| {
        prop_oneof![
            Just(name.clone()),
            Just(format!("{name}.")),
            Just(name.to_ascii_uppercase())
        ]
    })
}

fn addresses() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        2 => any::<Ipv4Addr>(),
        // The first and the last of ranges that are shut, and their neighbours.
        1 => prop::sample::select(vec![
            [10, 0, 0, 0], [9, 255, 255, 255], [11, 0, 0, 0], [100, 63, 255, 255],
            [100, 64, 0, 0], [100, 127, 255, 255], [100, 128, 0, 0], [127, 0, 0, 1],
            [169, 254, 169, 254], [172, 15, 255, 255], [172, 16, 0, 0], [172, 32, 0, 0],
            [192, 168, 0, 0], [198, 18, 0, 0], [224, 0, 0, 0], [0, 0, 0, 0],
            [255, 255, 255, 255], [1, 1, 1, 1],
        ]).prop_map(Ipv4Addr::from),
    ]
}

proptest! {
    #![proptest_config(same(200))]

    /// P1: however an answer is cut, what is left of it is the same.
    #[test]
    fn p1_cuts_change_nothing(
        before in "[ -~]{0,40}",
        form in 0_usize..4,
        after in "[ -~]{0,40}",
        places in vec(any::<usize>(), 0..12),
    ) {
        let value = match form {
            0 => VALUE.to_owned(),
            1 => STANDARD.encode(VALUE),
            2 => data_encoding::HEXLOWER.encode(VALUE.as_bytes()),
            _ => VALUE[..VALUE.len() / 2].to_owned(),
        };
        let text = [before, value, after].concat();
        let whole = scrubbed(&[text.as_bytes()]);
        let pieces = cut(text.as_bytes(), &places);
        prop_assert_eq!(&scrubbed(&pieces), &whole);
        let singles: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        prop_assert_eq!(&scrubbed(&singles), &whole);
        prop_assert_eq!(whole == text.as_bytes(), form == 3);
    }

    /// P2: bytes outside of matches stay as they are, in fields and in answers.
    #[test]
    fn p2_only_matches_change(values in vec(text(), 1..6)) {
        let line = |value: &String| format!("X-Key:\t{value} \r\n");
        let lines: String = values.iter().map(line).collect();
        let sent = format!("GET /{TOKEN} HTTP/1.1\r\n{lines}\r\n");
        let head = parse_request(Bytes::from(sent)).expect("a head");
        let out = swapped(&head, true);
        for (field, value) in out.fields.iter().zip(&values) {
            let wanted = value.replace(TOKEN, VALUE);
            prop_assert_eq!(field.value, wanted.as_bytes());
        }
        let answer: String = values.concat().replace(TOKEN, VALUE);
        prop_assert_eq!(scrubbed(&[answer.as_bytes()]), values.concat().into_bytes());
    }

    /// P3: a head that was read and written reads the same again, and is written the same again.
    #[test]
    fn p3_what_is_written_reads_the_same(
        method in "[A-Za-z!#$%&'*+.^_`|~-]{1,8}",
        target in "[!-~]{1,40}",
        version in 0_u8..2,
        lines in lines(),
        mutations in vec((any::<usize>(), any::<u8>()), 0..3),
    ) {
        let request = format!("{method} {target} HTTP/1.{version}\r\n{lines}\r\n").into_bytes();
        let answer = format!("HTTP/1.{version} 200 {target}\r\n{lines}\r\n").into_bytes();
        for mut text in [request, answer] {
            for (place, byte) in &mutations {
                let place = place % text.len();
                text[place] = *byte;
            }
            if let Ok(head) = parse_request(Bytes::from(text.clone())) {
                let mut out = Vec::new();
                head.write(&mut out);
                let again = parse_request(Bytes::from(out.clone())).expect("it is a head");
                prop_assert_eq!(again.method(), head.method());
                prop_assert_eq!(again.target(), head.target());
                prop_assert!(again.fields.iter().map(|f| (f.name, f.value))
                    .eq(head.fields.iter().map(|f| (f.name, f.value))));
                // HTTP/1.0 is written as HTTP/1.1, where more framings are allowed.
                if let Ok(framing) = request_framing(&head) {
                    prop_assert_eq!(request_framing(&again), Ok(framing));
                }
                let mut twice = Vec::new();
                again.write(&mut twice);
                prop_assert_eq!(twice, out);
            }
            if let Ok(head) = parse_answer(Bytes::from(text)) {
                let mut out = Vec::new();
                head.write(&mut out);
                let again = parse_answer(Bytes::from(out.clone())).expect("it is a head");
                prop_assert_eq!((again.status, again.reason()), (head.status, head.reason()));
                prop_assert!(again.fields.iter().map(|f| (f.name, f.value))
                    .eq(head.fields.iter().map(|f| (f.name, f.value))));
                let mut twice = Vec::new();
                again.write(&mut twice);
                prop_assert_eq!(twice, out);
            }
        }
    }

    /// P4: a name has one form, and what is allowed does not depend on its spelling.
    #[test]
    fn p4_spelling_does_not_matter(text in spelling(), port in 1_u16..) {
        let rules = EgressRules::parse(&["good.example", "*.wild.example", "1.1.1.1"]);
        let policy = EgressPolicy::new(rules.expect("rules"));
        let addresses = AddressRules::new(Vec::new(), false);
        for port in [443, port] {
            let Ok(pair) = HostPort::parse(&format!("{text}:{port}")) else {
                prop_assert!(Host::parse(&text).is_err());
                continue;
            };
            let canonical = HostPort::parse(&pair.to_string()).expect("canonical");
            prop_assert_eq!(&canonical, &pair);
            prop_assert_eq!(canonical.to_string(), pair.to_string());
            prop_assert_eq!(
                policy.decide(&canonical, &addresses).is_ok(),
                policy.decide(&pair, &addresses).is_ok()
            );
            // And the canonical form is what a plain reading of the text gives.
            let plain = text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase();
            let allowed = matches!(plain.as_str(), "good.example" | "wild.example" | "1.1.1.1")
                || plain.ends_with(".wild.example");
            let usual = matches!(port, 80 | 443);
            prop_assert_eq!(policy.decide(&pair, &addresses).is_ok(), allowed && usual);
        }
    }

    /// P5: where no token opens, no value is in what leaves, and nothing was changed.
    #[test]
    fn p5_no_value_where_nothing_opens(
        target in "[!-~]{0,20}",
        lines in lines(),
        basic in text(),
    ) {
        let basic = STANDARD.encode(basic);
        let sent = format!(
            "GET /{target}{TOKEN} HTTP/1.1\r\n{lines}Authorization: Basic {basic}\r\n\r\n"
        );
        let head = parse_request(Bytes::from(sent.clone())).expect("a head");
        let mut out = Vec::new();
        swapped(&head, false).write(&mut out);
        prop_assert_eq!(String::from_utf8(out).expect("UTF-8"), sent);
        // The same head with a token that opens: the test can tell.
        let mut out = Vec::new();
        swapped(&head, true).write(&mut out);
        prop_assert!(memchr::memmem::find(&out, b"sk-real").is_some());
    }

    /// P6: what was sealed opens for its own context alone, and not after a change of any bit.
    #[test]
    fn p6_a_sealed_row_opens_in_its_context_alone(
        plain in vec(any::<u8>(), 0..64),
        own in ["[a-z]{0,4}", "[a-z]{0,4}", "[a-z]{0,4}"],
        other in ["[a-z]{0,4}", "[a-z]{0,4}", "[a-z]{0,4}"],
        bit in any::<usize>(),
    ) {
        let own_context = Context { tenant: &own[0], session: &own[1], name: &own[2] };
        let keys = keyring(1);
        let sealed = keys.seal(&own_context, &plain);
        let opened = keys.open(&own_context, &sealed).expect("its own context");
        prop_assert_eq!(opened.as_slice(), plain.as_slice());
        let moved = [
            other,
            [own[1].clone(), own[0].clone(), own[2].clone()],
            [format!("{}{}", own[0], own[1]), String::new(), own[2].clone()],
            [own[0].clone(), format!("{}{}", own[1], own[2]), String::new()],
        ];
        for parts in moved {
            let context = Context { tenant: &parts[0], session: &parts[1], name: &parts[2] };
            prop_assert_eq!(keys.open(&context, &sealed).is_ok(), context == own_context);
        }
        let mut changed = sealed.clone();
        let bit = bit % (changed.len() * 8);
        changed[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(keys.open(&own_context, &changed).is_err());
        prop_assert!(keys.open(&own_context, &sealed[..sealed.len() - 1]).is_err());
        prop_assert!(keyring(2).open(&own_context, &sealed).is_err());
    }

    /// P7: an address that is mapped into IPv6 never has a better verdict, and the same one where
    /// the operator has opened such addresses.
    #[test]
    fn p7_a_mapped_address_opens_nothing(address in addresses(), opened in addresses()) {
        let (plain, mapped) = (IpAddr::V4(address), IpAddr::V6(address.to_ipv6_mapped()));
        let range = |text: &str| Cidr::parse(text).expect("a range");
        let verdict = |address, rules: &AddressRules| vet(&[address], 443, rules).is_ok();
        let own = range(&format!("{opened}/32"));
        for loopback in [false, true] {
            let shut = AddressRules::new(vec![own], loopback);
            prop_assert!(!verdict(mapped, &shut));
            let open = AddressRules::new(vec![own, range("::ffff:0:0/96")], loopback);
            prop_assert_eq!(verdict(mapped, &open), verdict(plain, &open));
        }
        let is_metadata = |address| classify(address).code() == "metadata";
        prop_assert_eq!(is_metadata(mapped), is_metadata(plain));
    }
}

fn keyring(byte: u8) -> Keyring {
    let id = KeyId::new(u32::from(byte));
    Keyring::from_keys(vec![(id, [byte; 32])], id).expect("a key")
}
