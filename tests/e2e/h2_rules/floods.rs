//! Floods: what costs a sender little must cost the proxy little, and its neighbours nothing.

use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::{Hostile, LAST, base, fields, refused};
use crate::support::{GOOD, H2Origin, H2Scene, TWO};

/// `ENHANCE_YOUR_CALM` (RFC 9113 §7).
const CALM: u32 = 11;
/// `REFUSED_STREAM`.
const REFUSED: u32 = 7;

#[tokio::test]
async fn the_settings_say_the_limits() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let said = hostile.case(TWO, &[]).await;
    assert_eq!(said.alpn.as_deref(), Some("h2"));
    assert_eq!(said.settings.get(&3), Some(&100), "MAX_CONCURRENT_STREAMS");
    assert_eq!(said.settings.get(&6), Some(&65_536), "MAX_HEADER_LIST_SIZE");
    let extended = said.settings.get(&8).copied().unwrap_or_default();
    assert_eq!(extended, 0, "ENABLE_CONNECT_PROTOCOL");
}

#[tokio::test]
async fn streams_over_the_limit_are_refused_and_the_others_served() {
    let origin = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        if exchange.path() == "/held" {
            exchange.wait_reset().await;
        } else {
            exchange.answer(200, "ok").await;
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let case = json!({
        "target": "two.example.com:443",
        "steps": [
            ["flood", 130, 1, [["headers", "$", base(TWO, "GET", "/held")]]],
            ["ping"],
            ["done", 259],
            ["pause", "all"],
        ],
    });
    hostile.write(&case).await;
    hostile.paused().await;
    play.two.wait("the held ones", |all| all.len() == 100).await;
    // While it holds all it may, others are served.
    play.alive("a hundred streams held").await;
    hostile.go_on().await;
    let said: super::Said = serde_json::from_str(&hostile.read().await).expect("JSON");
    let refused = (0..130u64).filter(|index| {
        let stream = said.stream(1 + 2 * index);
        stream.reset == Some(REFUSED)
    });
    assert_eq!(refused.count(), 30, "{said:?}");
    let held = play
        .two
        .requests()
        .iter()
        .filter(|seen| seen.path == "/held")
        .count();
    assert_eq!(held, 100, "none over the limit reached the origin");
}

#[tokio::test]
async fn case_55_header_lists_over_the_limit_are_refused() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let value = "v".repeat(1000);
    let names: Vec<String> = (0..80).map(|index| format!("x-{index}")).collect();
    let list: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), value.as_str()))
        .collect();
    let one = "v".repeat(70_000);
    let told = &["431", "reset"];
    refused(&play, &mut hostile, "80 fields", told, |host| {
        vec![
            json!(["headers", 1, fields(host, &[], &list)]),
            json!(["done", 1]),
        ]
    })
    .await;
    refused(&play, &mut hostile, "one field", told, |host| {
        let list = fields(host, &[], &[("x-large", &one)]);
        vec![json!(["headers", 1, list]), json!(["done", 1])]
    })
    .await;
    let path = format!("/case{}", "p".repeat(66_000));
    let told = &["431", "414", "reset"];
    refused(&play, &mut hostile, "a path", told, |host| {
        let list = fields(host, &[(":path", Some(&path))], &[]);
        vec![json!(["headers", 1, list]), json!(["done", 1])]
    })
    .await;
    hostile.finish();
}

#[tokio::test]
async fn case_74_a_header_bomb_is_refused() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    // One entry of almost the whole table, and then nothing but references to it: each is a byte.
    let value = "v".repeat(3900);
    let entry = format!(
        "4001787f{:02x}{:02x}{}",
        ((3900 - 127) & 0x7f) | 0x80,
        (3900 - 127) >> 7,
        HEXLOWER.encode(value.as_bytes())
    );
    for count in [20, 16_000, 500_000] {
        let ended = ["431", "400", "reset", "goaway", "closed"];
        let began = Instant::now();
        for host in [TWO, GOOD] {
            play.scene.good.forget();
            let before = play.two.requests().len();
            let name = HEXLOWER.encode(host.as_bytes());
            let mut block = format!("82878441{:02x}{name}{entry}", host.len());
            // The newest entry of the dynamic table.
            block.push_str(&"be".repeat(count));
            let steps = [json!(["block", 1, block]), json!(["done", 1])];
            let said = hostile.case(host, &steps).await;
            let outcome = said.outcome(1);
            assert!(ended.contains(&outcome.as_str()), "{count}: {said:?}");
            let arrived = super::arrived(&play, host, before);
            let bad = arrived.paths.iter().filter(|path| *path != "/last").count();
            assert_eq!(bad, 0, "{count}: {:?}", arrived.paths);
        }
        assert!(began.elapsed() < Duration::from_secs(15), "{count}");
        play.alive("a header bomb").await;
    }
}

/// What becomes of the connection of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It ends or goes on.
    Any,
    /// It goes on: what was sent cost nothing that would have to be counted.
    Served,
    /// It ends by a limit, which is said where the sender still reads.
    Calm,
    /// It ends by a rule that was broken.
    Broken,
}

/// Plays a flood. The connection ends as it is to; the flood reaches no origin more often than
/// `most`, and others are served while it goes on and after it.
async fn flood(
    play: &H2Scene,
    hostile: &mut Hostile,
    (name, end): (&str, End),
    most: usize,
    steps: &[Value],
) {
    let before = play.two.requests().len();
    let mut all = steps.to_vec();
    all.push(json!(["ping"]));
    all.push(json!(["headers", LAST, base(TWO, "GET", "/last")]));
    all.push(json!(["done", LAST]));
    let case = json!({ "target": "two.example.com:443", "steps": all });
    hostile.write(&case).await;
    play.alive(name).await;
    let line = hostile.read().await;
    let said: super::Said = serde_json::from_str(&line).expect("JSON");
    assert!(
        said.refused.is_none() && !said.late,
        "{name}: {:?}",
        said.goaway
    );
    let survived = said.outcome(LAST) == "200";
    let told = said.goaway.is_some_and(|code| code != 0) || said.closed;
    let calm = said.goaway.is_none_or(|code| code == CALM);
    let right = match end {
        End::Any => survived || told,
        End::Served => survived,
        End::Calm => told && calm && !survived,
        End::Broken => told && !survived,
    };
    assert!(right, "{name}: not {end:?}: {survived}, {:?}", said.goaway);
    let seen = play.two.requests();
    let flooded = seen[before..]
        .iter()
        .filter(|seen| seen.path == "/flood")
        .count();
    assert!(
        flooded <= most,
        "{name}: {flooded} requests reached the origin"
    );
    play.alive(name).await;
}

#[tokio::test]
async fn case_73_rapid_resets_are_ended() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let request = base(TWO, "GET", "/flood");
    let announced = fields(
        TWO,
        &[(":method", Some("POST")), (":path", Some("/flood"))],
        &[("content-length", "4")],
    );
    for (name, steps) in [
        (
            "HEADERS and RST_STREAM",
            json!([["headers", "$", request], ["reset", "$"]]),
        ),
        (
            "half a request and RST_STREAM",
            json!([["headers", "$", request, false], ["reset", "$"]]),
        ),
        (
            "WINDOW_UPDATE 0",
            json!([["headers", "$", request, false], ["window", "$", 0]]),
        ),
        (
            "a window over its end",
            json!([
                ["headers", "$", request, false],
                ["window", "$", 0x7fff_ffff],
                ["window", "$", 1]
            ]),
        ),
        (
            "DATA after the end",
            json!([["headers", "$", request], ["data", "$", "smug"]]),
        ),
        (
            "a stream that depends on itself",
            json!([["headers", "$", request, false], ["depend", "$"]]),
        ),
        (
            "a priority of four bytes",
            json!([
                ["headers", "$", request, false],
                ["raw", 2, 0, "$", "00000000"]
            ]),
        ),
        (
            "a reset of three bytes",
            json!([
                ["headers", "$", request, false],
                ["raw", 3, 0, "$", "000000"]
            ]),
        ),
        (
            "HEADERS after the end",
            json!([["headers", "$", request], ["headers", "$", request]]),
        ),
        (
            "more DATA than was announced",
            json!([
                ["headers", "$", announced, false],
                ["data", "$", "smug smug smug", false]
            ]),
        ),
        (
            "malformed heads",
            json!([["headers", "$", [[":method", "GET"], ["X", "1"]]]]),
        ),
    ] {
        let steps = [json!(["flood", 10_000, 1, steps])];
        flood(&play, &mut hostile, (name, End::Any), 2_000, &steps).await;
    }
    let smuggled = play.two.requests();
    assert!(smuggled.iter().all(|seen| !seen.mentions("smug")));
}

/// Opens a stream that sends a body.
fn open() -> Value {
    json!([
        "headers",
        1,
        fields(TWO, &[(":path", Some("/flood"))], &[]),
        false
    ])
}

/// What costs its sender a few bytes, fifty thousand times; and what it comes to.
fn idle_frames() -> Vec<(&'static str, End, Vec<Value>)> {
    vec![
        (
            "SETTINGS",
            End::Served,
            vec![json!(["raw", 4, 0, 0, "000400010000", 50_000])],
        ),
        (
            "PING",
            End::Served,
            vec![json!(["raw", 6, 0, 0, "0000000000000000", 50_000])],
        ),
        (
            "PRIORITY",
            End::Served,
            vec![json!(["raw", 2, 0, 1, "0000000010", 50_000])],
        ),
        (
            "unknown",
            End::Served,
            vec![json!(["raw", 0x77, 0, 0, "", 50_000])],
        ),
        (
            "empty DATA",
            End::Calm,
            vec![open(), json!(["raw", 0, 0, 1, "", 50_000])],
        ),
        (
            "padded DATA",
            End::Calm,
            vec![open(), json!(["raw", 0, 8, 1, "0100", 50_000])],
        ),
        (
            "WINDOW_UPDATE",
            End::Served,
            vec![open(), json!(["raw", 8, 0, 1, "00000001", 50_000])],
        ),
    ]
}

/// The same of what a head may be cut into.
fn idle_heads() -> Vec<(&'static str, End, Vec<Value>)> {
    vec![
        (
            "empty HEADERS",
            End::Calm,
            vec![
                json!(["raw", 1, 0, 1, ""]),
                json!(["raw", 9, 0, 1, "", 50_000]),
            ],
        ),
        (
            "empty CONTINUATION",
            End::Calm,
            vec![
                json!(["raw", 1, 0, 1, "82"]),
                json!(["raw", 9, 0, 1, "", 50_000]),
            ],
        ),
        (
            "sizes of the table",
            End::Any,
            vec![
                json!(["raw", 1, 0, 1, "20".repeat(1000)]),
                json!(["raw", 9, 0, 1, "20".repeat(1000), 5_000]),
            ],
        ),
        (
            "sizes of the table, up and down",
            End::Any,
            vec![json!(["block", 1, "203fe11f".repeat(4000)])],
        ),
        (
            "Huffman's end",
            End::Broken,
            vec![json!(["block", 1, "0084ffffffff00"])],
        ),
        (
            "acknowledged SETTINGS",
            End::Broken,
            vec![json!(["raw", 4, 1, 0, "", 50_000])],
        ),
        (
            "HEADERS of no length",
            End::Any,
            vec![json!(["raw", 1, 5, 1, "", 50_000])],
        ),
        (
            "CONTINUATION",
            End::Calm,
            vec![
                json!(["raw", 1, 0, 1, "82"]),
                json!([
                    "raw",
                    9,
                    0,
                    1,
                    format!("0001780c{}", "76".repeat(12)),
                    50_000
                ]),
            ],
        ),
    ]
}

#[tokio::test]
async fn case_75_frames_that_do_nothing_are_bounded() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for (name, end, steps) in idle_frames().into_iter().chain(idle_heads()) {
        flood(&play, &mut hostile, (name, end), 1, &steps).await;
    }
}

#[tokio::test]
async fn case_74_half_a_head_is_not_waited_for() {
    let short = Duration::from_millis(400);
    let play = H2Scene::with(H2Origin::echo_ok().await, |vault| {
        vault.config(|config| {
            config.limits.head_timeout = short;
            config.limits.idle_timeout = short;
            config.limits.first_byte_timeout = short;
        })
    })
    .await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for (name, steps) in [
        (
            "HEADERS that do not end",
            vec![json!(["raw", 1, 0, 1, "82"]), json!(["end"])],
        ),
        (
            "half a frame",
            vec![json!(["bytes", "\0\0"]), json!(["end"])],
        ),
        ("nothing", vec![json!(["end"])]),
    ] {
        let began = Instant::now();
        let case = json!({ "target": "two.example.com:443", "steps": steps });
        let said = hostile.connect(&case).await;
        assert!(said.closed && !said.late, "{name}: {said:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{name}");
        play.alive(name).await;
    }
    for text in ["", "PRI * HTTP/2.0\r\n"] {
        let began = Instant::now();
        let case = json!({
            "target": "two.example.com:443", "preface": false,
            "steps": [["bytes", text], ["end"]],
        });
        let said = hostile.connect(&case).await;
        assert!(said.closed && !said.late, "{text:?}: {said:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{text:?}");
    }
    play.alive("half a preface").await;
}

#[tokio::test]
async fn case_73_a_flood_of_refused_streams_is_told_to_calm_down_or_served() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    // Refusals of our own are answers, each bounded; they are no reason to fall over.
    let list = fields(TWO, &[(":authority", Some("evil.example.net"))], &[]);
    let steps = [json!(["flood", 2_000, 1, [["headers", "$", list]]])];
    let case = json!({ "target": "two.example.com:443", "steps": steps });
    let said = hostile.connect(&case).await;
    let ended = said.goaway.is_none_or(|code| code == 0 || code == CALM);
    assert!(said.refused.is_none() && ended, "{:?}", said.goaway);
    play.two.expect_no_more_than(0, "refused streams");
    play.scene.evil.expect_nothing("refused streams");
    play.alive("refused streams").await;
}
