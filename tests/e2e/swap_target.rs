//! Tokens in path and query: left unless the session asks for it, percent-encoded where it does.

use crate::support::{GOOD, REAL, Scene, basic, contains, percent, show};

/// The value with everything but unreserved characters percent-encoded.
const ENCODED: &str = "real-value%2F0123456789%2Babcdef";

async fn arrives(scene: &Scene, sent: &str, expected: &str) {
    scene.good.forget();
    let target = scene.fill(sent);
    let answer = scene
        .ask(
            GOOD,
            format!("GET {target} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        )
        .await;
    assert_eq!(answer.status, 200, "{sent}");
    let expected = scene.fill(&expected.replace("{E}", ENCODED));
    let received = String::from_utf8(scene.good.bytes()).expect("text");
    assert_eq!(
        received,
        format!("GET {expected} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        "{sent}"
    );
}

/// Spells a token otherwise, in a path and in a query: percent-encoded in part, as a whole and
/// twice, and with the escapes of JSON and HTML.
fn spelled(token: &str) -> Vec<String> {
    let whole = percent(token);
    let rest = &token[1..];
    [
        token.replace('_', "%5F"),
        token.replace('_', "%5f"),
        format!("%53{rest}"),
        whole.to_lowercase(),
        token.replace('_', "%255F"),
        format!("\\u0053{rest}"),
        format!("&#83;{rest}"),
        whole,
    ]
    .iter()
    .flat_map(|text| [format!("/p/{text}/x"), format!("/p?key={text}&a")])
    .collect()
}

#[tokio::test]
async fn case_10_path_and_query_are_no_places_unless_asked_for() {
    let scene = Scene::new().await;
    for target in [
        "/p?key={T}",
        "/p/{T}/x",
        "/{T}?{T}",
        "/p?key=SEALED%5F00",
        "/%53EALED_",
    ] {
        arrives(&scene, target, target).await;
        assert!(!contains(&scene.good.bytes(), REAL), "{target}");
        scene.alive(target).await;
    }
    for target in spelled(scene.token()) {
        arrives(&scene, &target, &target).await;
    }
    scene.alive("spellings").await;
}

#[tokio::test]
async fn case_10_the_query_and_nothing_else_is_swapped_where_asked_for() {
    let scene = Scene::session(|request| request.inject(["query"])).await;
    for (sent, expected) in [
        ("/p?key={T}", "/p?key={E}"),
        ("/p?{T}={T}&a", "/p?{E}={E}&a"),
        ("/p?a?/{T}/?", "/p?a?/{E}/?"),
        ("/{T}?k={T}", "/{T}?k={E}"),
        ("/p?key=%53{T}", "/p?key=%53{E}"),
    ] {
        arrives(&scene, sent, expected).await;
    }
    // The percent-encoded spelling of a token is never one: swapped always or never.
    for target in spelled(scene.token()) {
        arrives(&scene, &target, &target).await;
    }
    let received = scene
        .received(GOOD, &scene.fill("X-Api-Key: {T}\r\n"))
        .await;
    assert!(
        !received.contains(REAL),
        "no header was asked for: {received}"
    );
    let url = scene.fill("/alive?key={T}");
    arrives(&scene, &url, "/alive?key={E}").await;
}

#[tokio::test]
async fn case_10_the_path_and_nothing_else_is_swapped_where_asked_for() {
    let scene = Scene::session(|request| request.inject(["path", "header"])).await;
    for (sent, expected) in [
        ("/bot{T}/send?k={T}", "/bot{E}/send?k={T}"),
        ("/{T}", "/{E}"),
        ("/a/../{T}/%2e", "/a/../{E}/%2e"),
    ] {
        arrives(&scene, sent, expected).await;
    }
    for target in spelled(scene.token()) {
        arrives(&scene, &target, &target).await;
    }
    scene.alive("path").await;
}

#[tokio::test]
async fn an_absolute_target_in_a_tunnel_is_brought_to_a_path_and_swapped() {
    let scene = Scene::session(|request| request.inject(["path", "query"])).await;
    let absolute = format!("https://{GOOD}/a{{T}}?b={{T}}");
    arrives(&scene, &absolute, "/a{E}?b={E}").await;
}

/// Requests in which a token would decide what they are, and what becomes of them. `{H}` is the line
/// of the host.
const WHERE_IT_DECIDES: [(&str, u16); 12] = [
    ("GET / HTTP/1.1\r\nHost: {T}.example.com\r\n\r\n", 421),
    ("GET / HTTP/1.1\r\nHost: {T}\r\n\r\n", 421),
    ("GET / HTTP/1.1\r\nHost: {T}@good.example.com\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: good.example.com:{T}\r\n\r\n", 400),
    ("GET / {T}/1.1\r\n{H}\r\n", 400),
    ("GET / HTTP/{T}\r\n{H}\r\n", 400),
    ("GET {T} HTTP/1.1\r\n{H}\r\n", 400),
    ("GET https://{T}/ HTTP/1.1\r\n{H}\r\n", 421),
    ("POST / HTTP/1.1\r\n{H}Content-Length: {T}\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: {T}\r\n\r\n", 400),
    (
        "POST / HTTP/1.1\r\n{H}Expect: {T}\r\nContent-Length: 0\r\n\r\n",
        417,
    ),
    (
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n{T}\r\nx\r\n0\r\n\r\n",
        400,
    ),
];

/// A token that stands where a part of the head is read and not only carried.
#[tokio::test]
async fn case_17_a_token_as_method_path_or_name_stays() {
    // With the most places that there are, so that only these parts are what is not one.
    let scene = Scene::session(|request| request.inject(["header", "query"])).await;
    let host = format!("Host: {GOOD}\r\n");
    for head in [
        // A method is any token of RFC 9110 §5.6.2.
        format!("{{T}} / HTTP/1.1\r\n{host}\r\n"),
        format!("GET /{{T}} HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/1.1\r\n{host}X-{{T}}: 1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}{{T}}: x\r\n\r\n"),
    ] {
        scene.good.forget();
        let head = scene.fill(&head);
        assert_eq!(scene.ask(GOOD, &head).await.status, 200, "{head}");
        assert_eq!(scene.good.bytes(), head.as_bytes());
        scene.alive(&head).await;
    }
}

/// The same where it would decide what the request is.
#[tokio::test]
async fn case_17_a_token_that_would_decide_something_is_refused() {
    let scene = Scene::session(|request| request.inject(["header", "query"])).await;
    for (head, status) in WHERE_IT_DECIDES {
        let head = head.replace("{H}", &format!("Host: {GOOD}\r\n"));
        let sent = scene.fill(&head);
        let answer = scene.ask(GOOD, &sent).await;
        assert_eq!(answer.status, status, "{head}: {}", answer.head);
        let said = [answer.raw.as_slice(), &answer.body].concat();
        for text in [scene.token(), REAL] {
            assert!(!contains(&said, text), "{head}: {}", show(&said));
        }
        scene.nothing_arrived(&head).await;
    }
}

#[tokio::test]
async fn case_17_a_token_in_the_extension_of_a_chunk_is_dropped() {
    let scene = Scene::new().await;
    let host = format!("Host: {GOOD}\r\n");
    let head = format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
    let body = scene.fill("2;{T}=\"{T}\"\r\nhi\r\n0;{T}\r\n\r\n");
    assert_eq!(scene.ask(GOOD, format!("{head}{body}")).await.status, 200);
    let expected = format!("{head}2\r\nhi\r\n0\r\n\r\n");
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    scene.alive("extensions of chunks").await;
}

#[tokio::test]
async fn peer_26_a_value_is_written_in_the_form_of_its_place() {
    let value = "a$1\\b\"c'd&e=f#g?h%41i j\u{fc}k/..;l";
    let scene = Scene::session(|request| {
        let all = ["header", "path", "query"];
        request.secret("EXAMPLE_KEY", value).inject(all)
    })
    .await;
    let percent = "a%241%5Cb%22c%27d%26e%3Df%23g%3Fh%2541i%20j%C3%BCk%2F..%3Bl";
    let head = scene.fill(&format!(
        "GET /p/{{T}}?k={{T}} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: <{{T}}>\r\n\
         Authorization: {}\r\n\r\n",
        basic("u", scene.token())
    ));
    assert_eq!(scene.ask(GOOD, head).await.status, 200);
    let expected = format!(
        "GET /p/{percent}?k={percent} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: <{value}>\r\n\
         Authorization: {}\r\n\r\n",
        basic("u", value)
    );
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    scene.good.forget();
    let alive = scene.fill(&format!(
        "GET /alive HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\n\r\n"
    ));
    assert_eq!(scene.ask(GOOD, alive).await.status, 200);
    assert!(contains(&scene.good.bytes(), value));
}

#[tokio::test]
async fn peer_79_no_record_has_a_query_or_a_value_that_was_put_in() {
    let scene = Scene::session(|request| request.inject(["path", "query"])).await;
    arrives(
        &scene,
        "/p/{T}/x?key={T}&q=query-value",
        "/p/{E}/x?key={E}&q=query-value",
    )
    .await;
    let is_it = |line: &serde_json::Value| line["event"] == "exchange";
    let log = scene.vault.audit_log();
    let lines = log
        .wait("the record", |lines| lines.iter().any(is_it))
        .await;
    let record = lines.iter().find(|line| is_it(line)).expect("a record");
    assert_eq!(record["path"], scene.fill("/p/{T}/x"), "as it was sent");
    assert_eq!(record["swapped"], serde_json::json!(["EXAMPLE_KEY"]));
    let raw = log.raw();
    for hidden in [REAL, ENCODED, "query-value", "?"] {
        assert!(!contains(&raw, hidden), "{hidden} in {}", show(&raw));
    }
    arrives(&scene, "/alive?{T}", "/alive?{E}").await;
}
