//! Properties of the swap over made-up heads.
//!
//! Bytes outside matches never change; where nothing opens, nothing changes; and a head that was
//! swapped is still one head with the same fields.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;

use super::{
    G, G_VALUE, N, N_VALUE, S, Swapper, T, U, everywhere, in_headers, nowhere, parse_request, swap,
    swap_value, written,
};

/// One piece of a made-up text: what is sent, and what it becomes where everything opens.
fn piece() -> impl Strategy<Value = (String, String)> {
    let same = |text: String| (text.clone(), text);
    prop_oneof![
        // No lower-case letter: nothing here can end in a prefix or go on with a token's digits.
        3 => "[ -RT-Z!-/_:=%]{0,12}".prop_map(same),
        1 => "(SEALED_|SEALED|SEALED_[0-9a-f]{1,31}|SEALED_[0-9A-F]{32})Z".prop_map(same),
        1 => Just(same(format!("Z{U}"))),
        1 => Just(same(format!("Z{G}"))),
        2 => Just((T.to_owned(), S.to_owned())),
        1 => Just((N.to_owned(), N_VALUE.to_owned())),
        1 => Just((format!("ghp_{G}"), G_VALUE.to_owned())),
    ]
}

fn text_of(pieces: &[(String, String)]) -> (String, String) {
    // Visible ends: white space around a value is no part of it.
    let sent: String = pieces.iter().map(|(sent, _)| sent.as_str()).collect();
    let wanted: String = pieces.iter().map(|(_, wanted)| wanted.as_str()).collect();
    (format!("<{sent}>"), format!("<{wanted}>"))
}

proptest! {
    /// Bytes outside matches never change, in plain values and inside Basic credentials.
    #[test]
    fn only_matches_change(pieces in prop::collection::vec(piece(), 0..12)) {
        let (sent, wanted) = text_of(&pieces);
        let (out, swapped) = swap_value("X-Key", &sent, &in_headers());
        prop_assert_eq!(&out, &wanted);
        let changed = pieces.iter().filter(|(sent, wanted)| sent != wanted).count();
        prop_assert_eq!(swapped.count as usize, changed);

        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let (out, _) = swap_value("Authorization", &basic(&sent), &in_headers());
        prop_assert_eq!(out, basic(&wanted));
    }

    /// Where the lookup says no, what leaves is what came.
    #[test]
    fn nothing_changes_where_nothing_opens(
        fields in prop::collection::vec(
            (
                "[A-Za-z-]{1,12}|[Aa]uthorization",
                prop::collection::vec(piece(), 0..6),
                any::<bool>(),
            ),
            0..8,
        ),
    ) {
        let mut text = format!("GET /{T}?{T} HTTP/1.1\r\n");
        for (name, pieces, is_basic) in &fields {
            let (sent, _) = text_of(pieces);
            let value = if *is_basic { format!("Basic {}", STANDARD.encode(sent)) } else { sent };
            text.extend([name, ":", value.as_str(), " \r\n"]);
        }
        text.push_str("\r\n");
        let (out, swapped) = swap(&text, &nowhere()).unwrap();
        prop_assert_eq!(out, text);
        prop_assert_eq!(swapped.count, 0);
        prop_assert!(swapped.names.is_empty());
    }

    /// Any head that is read can be swapped, and is still a head that is read, with as many
    /// fields and the same names.
    #[test]
    fn any_head_stays_a_head(
        values in prop::collection::vec(
            prop::collection::vec(prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                piece().prop_map(|(sent, _)| sent.into_bytes()),
            ], 0..8),
            0..8,
        ),
        basic in prop::collection::vec(any::<u8>(), 0..80),
        target in "[!-~]{0,20}",
    ) {
        let mut text = format!("GET /{target}{T} HTTP/1.1\r\n").into_bytes();
        for value in &values {
            text.extend_from_slice(b"X-Key: ");
            text.extend_from_slice(&value.concat());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"Authorization: Basic ");
        text.extend_from_slice(STANDARD.encode(basic).as_bytes());
        text.extend_from_slice(b"\r\n\r\n");
        if let Ok(mut head) = parse_request(Bytes::from(text)) {
            let before = head.fields.len();
            Swapper::new().swap_request(&mut head, &everywhere()).unwrap();
            let again = parse_request(Bytes::from(written(&head))).unwrap();
            prop_assert_eq!(again.fields.len(), before);
            let known = [b"X-Key".as_slice(), b"Authorization"];
            prop_assert!(again.fields.iter().all(|field| known.contains(&field.name)));
        }
    }
}
