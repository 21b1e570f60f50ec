//! Heads: one authority, whole pseudo-header fields, no field of the connection, no stray bytes.

use serde_json::json;

use super::{Hostile, LAST, answered, fields, refused};
use crate::support::{GOOD, H2Scene, REAL, TWO, contains, show};

/// What malformed heads end in: an answer that says so, or the end of their stream.
const MALFORMED: &[&str] = &["400", "reset"];
/// What bytes that the library does not let into a field end in.
const STRAY: &[&str] = &["400", "reset", "goaway"];

#[tokio::test]
async fn case_35_another_authority_is_421_on_its_stream_and_a_malformed_one_400() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let token = play.scene.token().to_owned();
    // `{H}` is the tunnel's host. No value: no such field.
    for (authority, hosts, outcomes) in [
        (Some("evil.example.net"), &[][..], &["421"][..]),
        (Some("side.example.com"), &[], &["421"]),
        (Some("{H}:80"), &[], &["421"]),
        (Some("{H}:8443"), &[], &["421"]),
        (Some("127.0.0.1"), &[], &["421"]),
        (None, &["evil.example.net"], &["421"]),
        (Some("{H}"), &["evil.example.net"], &["400", "421"]),
        (Some("evil.example.net"), &["{H}"], &["400", "421"]),
        (Some("{H}"), &["{H}", "evil.example.net"], &["400", "421"]),
        (None, &["{H}", "{H}"], &["400"]),
        (None, &["evil.example.net", "{H}"], &["400"]),
        (None, &[], &["400"]),
        (None, &[""], &["400"]),
        (Some(""), &[], &["400", "reset"]),
        (Some("user@{H}"), &[], &["400"]),
        (Some("user:{T}@{H}"), &[], &["400"]),
        (None, &["user@{H}"], &["400"]),
        (Some("{H}/case"), &[], &["400", "reset"]),
        (Some("{H}?case"), &[], &["400", "reset"]),
        (Some("{H}#case"), &[], &["400", "reset"]),
        (Some("{H}, evil.example.net"), &[], &["400", "reset"]),
        (Some("{H} evil.example.net"), &[], &["400", "reset"]),
        (Some("{H}:abc"), &[], &["400", "reset"]),
        (Some("{H}:443:443"), &[], &["400", "reset"]),
        (Some("{H}:"), &[], &["400", "reset"]),
        (Some("[{H}]"), &[], &["400", "reset"]),
        (Some("https://{H}"), &[], &["400", "reset"]),
        (Some("{H}\\"), &[], &["400", "reset"]),
        (Some("{H}\r\nx-smug: 1"), &[], &["400", "reset"]),
        (Some("\u{e9}.{H}"), &[], STRAY),
        // The same one in two spellings is more than one.
        (Some("{H}:443"), &["{H}"], &["400"]),
    ] {
        let name = format!("{authority:?} and {hosts:?}");
        refused(&play, &mut hostile, &name, outcomes, |host| {
            let fill = |text: &str| text.replace("{H}", host).replace("{T}", &token);
            let authority = authority.map(fill);
            let hosts: Vec<String> = hosts.iter().map(|text| fill(text)).collect();
            let mut more = vec![("x-key", token.as_str())];
            more.extend(hosts.iter().map(|text| ("host", text.as_str())));
            let list = fields(host, &[(":authority", authority.as_deref())], &more);
            vec![json!(["headers", 1, list]), json!(["done", 1])]
        })
        .await;
    }
    hostile.finish();
}

#[tokio::test]
async fn case_35_other_spellings_of_the_authority_reach_the_upstream_as_one() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for host in [TWO, GOOD] {
        let port = format!("{host}:443");
        let dot = format!("{host}.");
        let upper = host.to_ascii_uppercase();
        for (authority, field) in [
            (Some(host), None),
            (Some(&port), None),
            (Some(&dot), None),
            (Some(&upper), None),
            (None, Some(host)),
            (None, Some(&upper)),
            (Some(host), Some(host)),
        ] {
            let name = format!("{authority:?} and {field:?}");
            let more: Vec<_> = field.into_iter().map(|value| ("host", value)).collect();
            let list = fields(host, &[(":authority", authority)], &more);
            let steps = vec![json!(["headers", 1, list]), json!(["done", 1])];
            let before = play.two.requests().len();
            let (_, arrived) = answered(&play, &mut hostile, (&name, host), steps).await;
            if host == TWO {
                let seen = play.two.requests().remove(before);
                assert_eq!(seen.authority.as_deref(), Some(TWO), "{name}");
                assert!(seen.all("host").is_empty(), "{name}: {seen:?}");
            } else {
                let expected = format!("GET /case HTTP/1.1\r\nhost: {GOOD}\r\n\r\n");
                let text = String::from_utf8_lossy(&arrived.all).replace("Host:", "host:");
                assert!(text.starts_with(&expected), "{name}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn case_54_malformed_pseudo_header_fields_end_their_stream() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let single: &[(&str, Option<&str>)] = &[
        (":scheme", Some("http")),
        (":scheme", Some("ftp")),
        (":scheme", Some("HTTPS ")),
        (":scheme", Some("file")),
        (":scheme", Some("")),
        (":scheme", None),
        (":path", None),
        (":path", Some("")),
        (":path", Some("*")),
        (":path", Some("case")),
        (":path", Some("*/case")),
        (":path", Some("?case")),
        (":path", Some(" /case")),
        (":path", Some("/case ")),
        (":path", Some("//evil.example.net /case")),
        (":path", Some("http://evil.example.net/case")),
        (":path", Some("https://two.example.com/case")),
        (":path", Some("evil.example.net:443")),
        (":path", Some("/case HTTP/1.1\r\nx-smug: 1")),
        (":path", Some("/case b")),
        (":path", Some("/case\0")),
        (":path", Some("/case\x7f")),
        (":path", Some("/case\tb")),
        (":method", None),
        (":method", Some("")),
        (":method", Some("G ET")),
        (":method", Some("G\"ET")),
        (":method", Some("GET /smug HTTP/1.1\r\nx:")),
        (":method", Some("GET\r\nx-smug: 1")),
        (":method", Some(" GET")),
    ];
    for one in single {
        let name = format!("{one:?}");
        let outcomes = if one.0 == ":method" { STRAY } else { MALFORMED };
        refused(&play, &mut hostile, &name, outcomes, |host| {
            let list = fields(host, &[*one], &[]);
            vec![json!(["headers", 1, list]), json!(["done", 1])]
        })
        .await;
    }
    for (name, value) in [
        (":path", "/case2"),
        (":path", "/case"),
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "evil.example.net"),
        (":authority", "{H}"),
        (":status", "200"),
        (":case", "x"),
        (":protocol", "websocket"),
        (":", "x"),
    ] {
        let case = format!("one more {name}: {value}");
        let known = !matches!(name, ":case" | ":");
        let outcomes = if known { MALFORMED } else { STRAY };
        refused(&play, &mut hostile, &case, outcomes, |host| {
            let value = value.replace("{H}", host);
            let list = fields(host, &[], &[(name, &value)]);
            vec![json!(["headers", 1, list]), json!(["done", 1])]
        })
        .await;
    }
    refused(&play, &mut hostile, "a late one", MALFORMED, |host| {
        let list = fields(
            host,
            &[(":path", None)],
            &[("x-a", "1"), (":path", "/case")],
        );
        vec![json!(["headers", 1, list]), json!(["done", 1])]
    })
    .await;
    hostile.finish();
}

#[tokio::test]
async fn case_54_methods_that_reflect_or_tunnel_are_405() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let told = &["405"];
    refused(&play, &mut hostile, "TRACE", told, |host| {
        let list = fields(host, &[(":method", Some("TRACE"))], &[]);
        vec![json!(["headers", 1, list]), json!(["done", 1])]
    })
    .await;
    let either = &["405", "400", "reset"];
    refused(&play, &mut hostile, "CONNECT", either, |host| {
        let list = json!([
            [":method", "CONNECT"],
            [":authority", format!("{host}:443")]
        ]);
        vec![json!(["headers", 1, list, false]), json!(["done", 1])]
    })
    .await;
    refused(&play, &mut hostile, "extended CONNECT", either, |host| {
        let list = fields(
            host,
            &[
                (":method", Some("CONNECT")),
                (":protocol", Some("websocket")),
            ],
            &[],
        );
        vec![json!(["headers", 1, list, false]), json!(["done", 1])]
    })
    .await;
    hostile.finish();
}

#[tokio::test]
async fn case_53_fields_of_the_connection_are_refused() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for field in [
        ("connection", "close"),
        ("connection", "x-key"),
        ("connection", "keep-alive, host"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
        ("te", "chunked"),
        ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
    ] {
        let name = format!("{field:?}");
        refused(&play, &mut hostile, &name, MALFORMED, |host| {
            let list = fields(host, &[], &[field]);
            vec![json!(["headers", 1, list]), json!(["done", 1])]
        })
        .await;
    }
    hostile.finish();
}

#[tokio::test]
async fn case_53_stray_bytes_in_names_and_values_are_refused() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for field in [
        ("x-a", "1\r\nsmug: 2"),
        ("x-a", "1\nsmug: 2"),
        ("x-a", "1\rsmug"),
        ("x-a", "1\r\n\r\nGET /smug HTTP/1.1\r\n\r\n"),
        ("x-a", "smug\0"),
        ("x-a", "\x01smug"),
        ("x-a", "smug\x7f"),
        ("X-Smug", "1"),
        ("x-Smug", "1"),
        ("", "smug"),
        ("x smug", "1"),
        ("x-smug ", "1"),
        ("x:smug", "1"),
        ("x-smug\r\nx-b", "1"),
        ("x-smug\0", "1"),
        ("x-smug\u{e9}", "1"),
        ("x(smug)", "1"),
        ("x-smug\t", "1"),
        ("x-smug", " blank"),
        ("x-smug", "blank "),
        ("x-smug", "\tblank"),
        ("x-smug", "blank\t"),
        ("x-smug", " "),
        ("content-length", " 0"),
        ("content-length", "+0"),
        ("content_length", "0"),
        ("transfer_encoding", "chunked"),
    ] {
        let name = format!("{field:?}");
        refused(&play, &mut hostile, &name, STRAY, |host| {
            let list = fields(host, &[], &[field]);
            vec![json!(["headers", 1, list]), json!(["done", 1])]
        })
        .await;
    }
    hostile.finish();
}

#[tokio::test]
async fn the_proxy_s_own_fields_stay_behind() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let credentials = play.scene.workload.authorization();
    let credentials = credentials
        .trim_start_matches("Proxy-Authorization: ")
        .trim_end();
    for host in [TWO, GOOD] {
        let more = [
            ("proxy-authorization", credentials),
            ("proxy-foo", "1"),
            ("x-kept", "1"),
        ];
        let steps = vec![
            json!(["headers", 1, fields(host, &[], &more)]),
            json!(["done", 1]),
        ];
        let case = ("fields for the proxy", host);
        let (_, arrived) = answered(&play, &mut hostile, case, steps).await;
        assert_eq!(arrived.paths, ["/case", "/last"]);
        let text = String::from_utf8_lossy(&arrived.all).to_ascii_lowercase();
        assert!(text.contains("x-kept"), "{text}");
        for gone in ["proxy-", "basic "] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
    }
    play.alive("the proxy's own fields").await;
}

/// What the library lets pass or repairs by itself, and what becomes of it.
#[tokio::test]
async fn case_53_what_the_library_accepts_is_harmless() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let token = play.scene.token().to_owned();
    for host in [TWO, GOOD] {
        for (field, outcomes) in [
            (("x-a", "high-\u{ff}\u{e9}"), ["200", "400", "reset"]),
            (("x_under.score", "1"), ["200", "400", "reset"]),
            (("expect", "100-continue"), ["200", "400", "417"]),
            (("content-length", "0"), ["200", "400", "reset"]),
            (("cookie", ""), ["200", "400", "reset"]),
            (("priority", "u=1, i"), ["200", "200", "200"]),
        ] {
            play.scene.good.forget();
            let list = fields(host, &[], &[field, ("x-key", &token)]);
            let steps = [json!(["headers", 1, list]), json!(["done", 1])];
            let said = hostile.case(host, &steps).await;
            let outcome = said.outcome(1);
            assert!(outcomes.contains(&outcome.as_str()), "{field:?}: {said:?}");
            assert_eq!(said.outcome(LAST), "200", "{field:?}: {said:?}");
            if host == GOOD {
                let bytes = play.scene.good.bytes();
                let heads = String::from_utf8_lossy(&bytes).matches("\r\n\r\n").count();
                let requests = if outcome == "200" { 2 } else { 1 };
                assert_eq!(heads, requests, "{field:?}: {}", show(&bytes));
            }
        }
        // A fragment is no part of a path: it is left out (RFC 9113 §8.3.1 has no place for it).
        let list = fields(host, &[(":path", Some("/case#smug"))], &[]);
        let steps = vec![json!(["headers", 1, list]), json!(["done", 1])];
        let (_, arrived) = answered(&play, &mut hostile, ("a fragment", host), steps).await;
        assert_eq!(arrived.paths, ["/case", "/last"]);
        // A token that is cut by frames, or in Huffman's code, is still one.
        for (name, cut, huffman) in [("cut", 60, false), ("coded", 16_000, true)] {
            let list = fields(host, &[], &[("x-key", &token)]);
            let steps = vec![
                json!(["headers", 1, list, true, cut, true, huffman]),
                json!(["done", 1]),
            ];
            let (_, arrived) = answered(&play, &mut hostile, (name, host), steps).await;
            assert!(
                contains(&arrived.all, REAL),
                "{name}: {}",
                show(&arrived.all)
            );
            assert!(
                !contains(&arrived.all, &token),
                "{name}: {}",
                show(&arrived.all)
            );
        }
    }
    play.alive("what is accepted").await;
}
