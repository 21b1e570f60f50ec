//! CONNECT: credentials before everything, policy before any look-up, and strict targets.

use std::io::{Read, Write};
use std::sync::Arc;

use oshu_vault_sdk::CreateSession;
use rustls::pki_types::ServerName;

use crate::support::{
    Answer, EVIL, GOOD, Origin, REAL, SIDE, Scene, Vault, VaultBuilder, basic, contains,
};

fn parts(answer: &Answer) -> (u16, String, &[u8]) {
    (answer.status, answer.head.clone(), &answer.body)
}

#[tokio::test]
async fn case_59_missing_unknown_and_wrong_credentials_get_one_and_the_same_407() {
    // More attempts than one address has.
    let scene =
        Scene::vault(|vault| vault.config(|config| config.limits.auth_failures = 1_000)).await;
    let (id, token) = (&scene.session.session_id, &scene.session.token);
    let other = scene.vault.session(&Scene::request()).await;
    let deleted = scene.vault.session(&Scene::request()).await;
    let sdk = scene.vault.sdk();
    sdk.delete_session(&deleted.session_id).await.expect("gone");
    let good = scene.workload.authorization();
    let wrong =
        |user: &str, password: &str| format!("Proxy-Authorization: {}\r\n", basic(user, password));
    let unknown = format!("sess_{}", "0".repeat(32));
    let mut first = None;
    for lines in [
        String::new(),
        wrong(id, &format!("tok_{}", "0".repeat(64))),
        wrong(id, ""),
        wrong(id, &token[..token.len() - 1]),
        wrong(id, &format!("{token}0")),
        wrong(id, &token.to_uppercase()),
        wrong(&unknown, token),
        wrong(&deleted.session_id, &deleted.token),
        wrong("", token),
        wrong(id, &other.token),
        wrong(&other.session_id, token),
        wrong(&format!("{id} "), token),
        "Proxy-Authorization: Basic\r\n".to_owned(),
        "Proxy-Authorization: Basic ????\r\n".to_owned(),
        format!("Proxy-Authorization: Bearer {token}\r\n"),
        good.replace("Proxy-Authorization", "Authorization"),
        format!("{good}{good}"),
        format!("{}{good}", wrong(id, "bad")),
        format!("{good}{}", wrong(id, "bad")),
    ] {
        let mut conn = scene.workload.plain().await;
        for target in [
            "good.example.com:443",
            "nowhere.invalid:443",
            "evil.example.net:443",
        ] {
            conn.send(format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{lines}\r\n"
            ))
            .await;
            let answer = conn.answer().await;
            let first = first.get_or_insert_with(|| answer.clone());
            assert_eq!(parts(&answer), parts(first), "{lines}");
            assert_eq!(answer.status, 407);
            assert_eq!(
                answer.header("proxy-authenticate"),
                Some("Basic realm=\"oshu-vault\"")
            );
            assert_eq!(answer.code(), "proxy_authentication_required");
        }
        // In absolute form as well.
        conn.send(format!(
            "GET http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n"
        ))
        .await;
        assert_eq!(Some(parts(&conn.answer().await)), first.as_ref().map(parts));
        // The same connection goes on once the credentials are right.
        let answer = scene.workload.ask(&mut conn, "good.example.com:443").await;
        assert_eq!(answer.status, 200, "{lines}");
    }
    scene.nothing_arrived("bad credentials").await;
}

#[tokio::test]
async fn case_60_credentials_of_two_sessions_do_not_mix() {
    let scene = Scene::new().await;
    let other = scene.vault.session(&Scene::request()).await;
    let line =
        |user: &str, password: &str| format!("Proxy-Authorization: {}\r\n", basic(user, password));
    let (mine, theirs) = (&scene.session, &other);
    let good = line(&mine.session_id, &mine.token);
    let bad = line(&mine.session_id, "tok_bad");
    for lines in [
        line(&mine.session_id, &theirs.token),
        line(&theirs.session_id, &mine.token),
        format!("{bad}{good}"),
        format!("{good}{bad}"),
        format!("{good}{}", line(&theirs.session_id, &theirs.token)),
    ] {
        for head in [
            "CONNECT good.example.com:443 HTTP/1.1\r\nHost: good.example.com:443\r\n",
            "GET http://good.example.com/ HTTP/1.1\r\nHost: good.example.com\r\n",
        ] {
            let mut conn = scene.workload.plain().await;
            conn.send(format!("{head}{lines}\r\n")).await;
            assert_eq!(conn.answer().await.status, 407, "{head}{lines}");
        }
    }
    scene.nothing_arrived("credentials of two sessions").await;
}

#[tokio::test]
async fn case_56_the_answer_to_an_open_tunnel_has_neither_framing_nor_body() {
    let scene = Scene::new().await;
    for scheme in ["Basic", "basic", "BASIC"] {
        let mut conn = scene.workload.plain().await;
        let line = scene.workload.authorization().replace("Basic", scheme);
        conn.send(format!("CONNECT {GOOD}:443 HTTP/1.1\r\n{line}\r\n"))
            .await;
        let answer = conn.answer_head().await;
        assert_eq!(answer.status, 200, "{scheme}");
        assert!(answer.header("content-length").is_none(), "{}", answer.head);
        assert!(
            answer.header("transfer-encoding").is_none(),
            "{}",
            answer.head
        );
        let mut conn = scene.workload.encrypt(conn, "good.example.com:443").await;
        conn.send(format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 200);
    }
}

#[tokio::test]
async fn peer_65_a_host_or_port_outside_the_policy_is_403_with_a_reason_and_never_407() {
    let scene = Scene::vault(VaultBuilder::strict).await;
    for (target, code) in [
        ("evil.example.net:443", "host_not_allowed"),
        ("xgood.example.com:443", "host_not_allowed"),
        ("good.example.comx:443", "host_not_allowed"),
        ("good.example.com.evil.example.net:443", "host_not_allowed"),
        ("example.com:443", "host_not_allowed"),
        ("a.good.example.com:443", "host_not_allowed"),
        ("good.example.com:22", "port_not_allowed"),
        ("good.example.com:25", "port_not_allowed"),
        ("good.example.com:8443", "port_not_allowed"),
    ] {
        let answer = scene.workload.refused(target).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, code),
            "{target}"
        );
        let status = answer.header("proxy-status").expect("a Proxy-Status");
        assert_eq!(
            status,
            format!("oshu-vault; error=http_request_denied; details=\"{code}\""),
            "{target}"
        );
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.header("proxy-authenticate").is_none(), "{target}");
        let body = answer.json();
        let ask = body["ask"].as_str().expect("what to ask for");
        assert!(
            ask.contains(target.split(':').next().expect("a host")),
            "{ask}"
        );
        assert!(body["message"].is_string());
        // Who is nobody is asked who they are, and told nothing of the policy.
        let mut conn = scene.workload.plain().await;
        conn.send(format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 407, "{target}");
        let challenge = answer.header("proxy-authenticate");
        assert_eq!(challenge, Some("Basic realm=\"oshu-vault\""), "{target}");
    }
    scene.nothing_arrived("targets outside the policy").await;
}

#[tokio::test]
async fn peer_67_credentials_are_taken_as_clients_write_them_and_no_other_way() {
    let scene = Scene::new().await;
    let (id, token) = (&scene.session.session_id, &scene.session.token);
    let right = basic(id, token);
    let encoded = right.trim_start_matches("Basic ");
    for (value, status) in [
        (format!("Basic {encoded}"), 200),
        (format!("basic {encoded}"), 200),
        (format!("BASIC {encoded}"), 200),
        (format!("bAsIc   {encoded}"), 200),
        (format!("Basic\t{encoded}"), 407),
        (format!("Basic{encoded}"), 407),
        (format!("Basic {encoded} "), 200),
        // The first colon ends the id, and the rest is the token, colons included.
        (basic(id, &format!("{token}:")), 407),
        (basic(id, &format!(":{token}")), 407),
        (basic(&format!("{id}:{token}"), token), 407),
        // A client decodes the user information of its proxy's URL; we do not do it again.
        (basic(&id.replace('_', "%5F"), token), 407),
        (basic(id, &token.replace('_', "%5f")), 407),
    ] {
        let mut conn = scene.workload.plain().await;
        conn.send(format!(
            "CONNECT {GOOD}:443 HTTP/1.1\r\nHost: {GOOD}:443\r\nProxy-Authorization: {value}\r\n\r\n"
        ))
        .await;
        assert_eq!(conn.answer_head().await.status, status, "{value}");
    }
    scene.nothing_arrived("spellings of credentials").await;
}

#[tokio::test]
async fn developer_mode_opens_the_ports_that_no_line_names() {
    let scene = Scene::session(|request| request.allowed_egress([GOOD, "side.example.com:443"]));
    let scene = scene.await;
    drop(scene.workload.tunnel("good.example.com:8443").await);
    let answer = scene.workload.refused("side.example.com:8443").await;
    assert_eq!(answer.code(), "port_not_allowed");
}

#[tokio::test]
async fn case_91_wildcards_match_below_and_at_their_name_and_nothing_else() {
    let (good, side) = (Origin::echo_ok().await, Origin::echo_ok().await);
    let vault = Vault::builder()
        .resolve("wild.example.org", good.addr())
        .resolve("a.wild.example.org", good.addr())
        .resolve("a.b.wild.example.org", good.addr())
        .resolve("xwild.example.org", side.addr())
        .start()
        .await;
    // The apex and every depth below it, on purpose; exact hosts are exact.
    let request = CreateSession::new().allowed_egress(["*.wild.example.org", GOOD]);
    let session = vault.session(&request).await;
    let workload = vault.workload(&session);
    for host in [
        "xwild.example.org",
        "x-wild.example.org",
        "wild.example.org.evil.example",
        "wild.example.orgx",
        "wild.example",
        "example.org",
        "org",
        "xgood.example.com",
        "x.good.example.com",
        "good.example.comx",
        "good.example.com.evil.example",
        "example.com",
        "ood.example.com",
    ] {
        let answer = workload.refused(&format!("{host}:443")).await;
        assert_eq!(answer.code(), "host_not_allowed", "{host}");
    }
    side.expect_nothing("a host that only looks like the wildcard");
    for host in [
        "wild.example.org",
        "a.wild.example.org",
        "A.b.Wild.Example.ORG.",
    ] {
        let answer = workload.get(&format!("https://{host}/"), &[]).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    assert_eq!(good.connections(), 3, "one for each host");
    side.expect_nothing("a host that only looks like the wildcard");
    assert_eq!(side.connections(), 0);
}

#[tokio::test]
async fn an_empty_list_allows_nothing() {
    let scene = Scene::session(|request| request.allowed_egress(Vec::<String>::new())).await;
    for host in [GOOD, SIDE, EVIL] {
        let answer = scene.workload.refused(&format!("{host}:443")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "host_not_allowed"),
            "{host}"
        );
    }
    scene.good.expect_nothing("an empty list");
}

/// Targets that no CONNECT may name.
const ODD: &[&str] = &[
    "good.example.com",
    "good.example.com:",
    "good.example.com:0",
    "good.example.com:65536",
    "good.example.com:443abc",
    "good.example.com:+443",
    "good.example.com:0x1bb",
    "good.example.com:443:443",
    "user@good.example.com:443",
    "good.example.com:443#",
    "good.example.com:443/",
    "https://good.example.com:443",
    "good\\.example.com:443",
    "good%2eexample.com:443",
    "*.example.com:443",
    "*:443",
    "..:443",
    ".good.example.com:443",
    "good..example.com:443",
    "good.example.com..:443",
    "[good.example.com]:443",
    "[::1:443",
    "::1:443",
    "[fe80::1%25lo]:443",
    "[::1]x:443",
    "2130706433:443",
    "0x7f000001:443",
    "0177.0.0.1:443",
    "127.1:443",
    "1.2.3.4.5:443",
    "good.example.com:99999",
    "good.example.com:443%20",
    "good.example.com:%34%34%33",
    "good.example.com@:443",
    "good.example.com?:443",
    "good.example.com#:443",
    "0:443",
    ":443",
    "/",
    "*",
];

#[tokio::test]
async fn case_90_odd_targets_are_refused() {
    let scene = Scene::new().await;
    let long_label = format!("{}.example.com:443", "a".repeat(64));
    let long_name = format!("{}com:443", "abcdefg.".repeat(32));
    let long = [long_label.as_str(), &long_name];
    for target in ODD.iter().copied().chain(long) {
        let mut conn = scene.workload.plain().await;
        let line = scene.workload.authorization();
        conn.send(format!("CONNECT {target} HTTP/1.1\r\n{line}\r\n"))
            .await;
        let answer = conn.answer().await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_connect_target"),
            "{target}"
        );
        assert!(
            !contains(&answer.raw, target) || target.len() < 5,
            "{target} is not repeated"
        );
    }
    for target in [
        "good.exämple.com:443",
        "good .example.com:443",
        "good.example.com:443\0",
        "",
    ] {
        let mut conn = scene.workload.plain().await;
        let line = scene.workload.authorization();
        conn.send(format!("CONNECT {target} HTTP/1.1\r\n{line}\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 400, "{target}");
        conn.expect_end().await;
    }
    scene.nothing_arrived("odd targets").await;
}

#[tokio::test]
async fn case_90_ports_that_a_session_does_not_name_are_shut() {
    let strict = Scene::vault(VaultBuilder::strict).await;
    for port in [1, 22, 25, 81, 444, 8443, 65535] {
        let answer = strict.workload.refused(&format!("{GOOD}:{port}")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "port_not_allowed"),
            "{port}"
        );
    }
    strict.nothing_arrived("other ports").await;
}

#[tokio::test]
async fn a_host_field_beside_the_target_must_name_the_same() {
    let scene = Scene::new().await;
    for (host, status) in [
        ("Host: good.example.com:443\r\n", 200),
        ("Host: good.example.com\r\n", 200),
        ("Host: GOOD.example.com.\r\n", 200),
        ("Host: side.example.com:443\r\n", 421),
        ("Host: good.example.com:80\r\n", 421),
        ("Host: a b\r\n", 400),
        ("Host: \r\n", 400),
        ("Host: good.example.com\r\nHost: good.example.com\r\n", 400),
    ] {
        let mut conn = scene.workload.plain().await;
        let line = scene.workload.authorization();
        conn.send(format!("CONNECT {GOOD}:443 HTTP/1.1\r\n{host}{line}\r\n"))
            .await;
        assert_eq!(conn.answer_head().await.status, status, "{host}");
    }
    scene.nothing_arrived("another Host").await;
}

#[tokio::test]
async fn case_57_a_body_behind_connect_is_no_next_request() {
    let scene = Scene::new().await;
    for framing in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut conn = scene.workload.plain().await;
        let line = scene.workload.authorization();
        let body = if framing.starts_with('C') {
            "hello"
        } else {
            "5\r\nhello\r\n0\r\n\r\n"
        };
        conn.send(format!(
            "CONNECT {GOOD}:443 HTTP/1.1\r\n{line}{framing}\r\n{body}\
             CONNECT {GOOD}:443 HTTP/1.1\r\n{line}\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "connect_with_body"),
            "{framing}"
        );
        conn.expect_end().await;
    }
    scene.nothing_arrived("CONNECT with a body").await;
}

#[tokio::test]
async fn case_57_a_client_hello_in_the_segment_of_connect_belongs_to_the_tunnel() {
    let scene = Scene::new().await;
    let name = ServerName::try_from(GOOD).expect("a name");
    let config = Arc::new(scene.workload.tls_config());
    let mut tls = rustls::ClientConnection::new(config, name).expect("a client");
    let mut first = Vec::new();
    tls.write_tls(&mut first).expect("a hello");
    let line = scene.workload.authorization();
    let head = format!("CONNECT {GOOD}:443 HTTP/1.1\r\n{line}\r\n");
    let mut conn = scene.workload.plain().await;
    conn.send([head.as_bytes(), &first].concat()).await;
    assert_eq!(conn.answer_head().await.status, 200);
    let request = scene.fill("GET / HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    tls.writer()
        .write_all(request.as_bytes())
        .expect("buffered");
    let mut plain = Vec::new();
    while !contains(&plain, "\r\n\r\nok") {
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).expect("records");
        }
        conn.send(&out).await;
        if conn.input.is_empty() {
            assert!(conn.fill().await, "the tunnel ended");
        }
        let input = std::mem::take(&mut conn.input);
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            tls.read_tls(&mut rest).expect("records");
            tls.process_new_packets().expect("TLS");
        }
        // "Would block" says that there is no more yet.
        let _more = tls.reader().read_to_end(&mut plain);
    }
    assert!(contains(&scene.good.bytes(), REAL));
}

#[tokio::test]
async fn cleartext_http_in_a_tunnel_is_plain_http_to_that_port() {
    let origin = Origin::builder().plain().echo_ok().await;
    let scene = Scene::with_good(
        origin,
        |vault| vault,
        |request| request.allowed_egress(["good.example.com:80"]),
    )
    .await;
    let mut conn = scene.workload.tunnel("good.example.com:80").await;
    let request = scene.fill("GET /c HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    conn.send(&request).await;
    assert_eq!(conn.answer().await.status, 200);
    assert_eq!(
        scene.good.bytes(),
        request.as_bytes(),
        "nothing is swapped in the clear"
    );
    conn.send(scene.fill("GET /c HTTP/1.1\r\nHost: side.example.com\r\nX-Key: {T}\r\n\r\n"))
        .await;
    assert_eq!(conn.answer().await.status, 421);
}

#[tokio::test]
async fn what_is_neither_tls_nor_http_is_not_carried() {
    let scene = Scene::new().await;
    for first in [
        b"\x00\x01\x02".as_slice(),
        b"\x80\x2e\x01",
        b" GET / HTTP/1.1\r\n",
        b"\r\n\r\n",
    ] {
        let mut conn = scene.workload.tunnel("good.example.com:443").await;
        conn.send(first).await;
        conn.expect_end().await;
    }
    let mut conn = scene.workload.tunnel("good.example.com:443").await;
    conn.send("SSH-2.0-OpenSSH_9.9\r\n\r\n").await;
    assert_eq!(conn.answer().await.status, 400);
    conn.expect_end().await;
    scene.nothing_arrived("another protocol").await;
}

#[tokio::test]
async fn case_49_a_tunnel_inside_of_a_tunnel_and_h2_without_alpn_are_refused() {
    let scene = Scene::new().await;
    let line = scene.workload.authorization();
    for (method, target) in [
        ("CONNECT", "side.example.com:443"),
        ("CONNECT", "good.example.com:443"),
        ("CONNECT", "/"),
        ("connect", "/"),
        ("TRACE", "/"),
        ("Trace", "/"),
    ] {
        let host = target.trim_start_matches('/');
        let host = if host.is_empty() { GOOD } else { host };
        let inner = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{line}\r\n");
        let answer = scene.ask(GOOD, inner).await;
        let found = (answer.status, answer.code());
        assert_eq!(
            found,
            (405, "method_not_allowed".to_owned()),
            "{method} {target}"
        );
        scene.nothing_arrived(method).await;
    }
    for preface in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "PRI * HTTP/1.1\r\nHost: good.example.com\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = scene.ask(GOOD, preface).await;
        let code = if preface.contains("2.0") {
            "bad_version"
        } else {
            "bad_target"
        };
        assert_eq!((answer.status, answer.code().as_str()), (400, code));
        scene.nothing_arrived("PRI in a tunnel").await;
    }
    for method in ["GET", "POST", "HEAD"] {
        let head = format!("{method} * HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
        let mut conn = scene.workload.connect("good.example.com:443").await;
        conn.send(head).await;
        assert_eq!(conn.answer_head().await.status, 400, "{method} *");
    }
    scene.nothing_arrived("an asterisk").await;
    let head = format!("OPTIONS * HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    assert_eq!(scene.ask(GOOD, &head).await.status, 200);
    assert_eq!(scene.good.bytes(), head.as_bytes());
}

#[tokio::test]
async fn case_56_a_refused_connect_is_a_whole_answer() {
    let scene = Scene::vault(VaultBuilder::strict).await;
    let line = scene.workload.authorization();
    for (target, fields, status) in [
        ("good.example.com:443", "", 407),
        ("evil.example.net:443", line.as_str(), 403),
        ("good.example.com:22", &line, 403),
        ("good.example.com:0", &line, 400),
    ] {
        let mut conn = scene.workload.plain().await;
        conn.send(format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, status, "{target}");
        let length = answer.header("content-length").expect("a length");
        assert_eq!(length, answer.body.len().to_string(), "{target}");
        assert!((1..2000).contains(&answer.body.len()), "{target}");
        assert!(answer.header("transfer-encoding").is_none(), "{target}");
        // Either it closes and says so, or it takes the next one.
        if answer.header("connection") == Some("close") {
            conn.expect_end().await;
        } else {
            let answer = scene.workload.ask(&mut conn, "good.example.com:443").await;
            assert_eq!(answer.status, 200, "behind {target}");
        }
    }
    scene.nothing_arrived("refused tunnels").await;
}

#[tokio::test]
async fn case_89_our_own_public_address_is_never_dialled() {
    let scene = Scene::with(
        |vault| {
            let url = oshu_vault::config::PublicUrl::parse("https://vault.example.com:8443");
            vault.config(|config| config.proxy.public_url = url)
        },
        |request| request.allowed_egress([GOOD, SIDE, "vault.example.com:8443"]),
    )
    .await;
    for target in ["vault.example.com:8443", "VAULT.example.com.:8443"] {
        let answer = scene.workload.refused(target).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "own_address"),
            "{target}"
        );
    }
    let answer = scene
        .workload
        .get("http://vault.example.com:8443/v1/sessions", &[])
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "own_address"),
        "in absolute form"
    );
    scene.nothing_arrived("our own address").await;
}
