//! Which bodies are looked at: those of the hosts that the secret belongs to, where a session asks
//! for it, and where a change does not break them.

use oshu_vault_sdk::{SecretSpec, UpdateSession};
use serde_json::{Value, json};

use super::*;
use crate::support::{REAL, SIDE, TWO};

/// Waits for the record of a path and returns it.
async fn record(scene: &Scene, path: &str) -> Value {
    let is = |line: &Value| line["path"] == path;
    let lines = scene.vault.audit_log();
    let lines = lines.wait(path, |lines| lines.iter().any(is)).await;
    lines.into_iter().find(is).expect("the record")
}

#[tokio::test]
async fn peer_35_a_body_is_no_place_unless_asked_for() {
    let scene = Scene::new().await;
    let body = scene.fill("{\"k\":\"{T}\"}");
    arrives(&scene, "default", &post(JSON, &body), &post(JSON, &body)).await;
    // Talk about a token goes through as it is, beside one that counts.
    let line = scene.fill(&format!("X-Api-Key: {{T}}\r\n{JSON}"));
    let expected = scene.fill(&format!("X-Api-Key: {{S}}\r\n{JSON}"));
    arrives(
        &scene,
        "header",
        &post(&line, &body),
        &post(&expected, &body),
    )
    .await;
    let large = format!("{body}{}", "-".repeat(LARGE));
    arrives(&scene, "large", &post("", &large), &post("", &large)).await;
    scene.alive("bodies that are no place").await;
}

#[tokio::test]
async fn peer_36_another_host_gets_the_token_and_never_the_value() {
    let scene = scene().await;
    let body = scene.fill("{\"k\":\"{T}\"}");
    let text = |body: &str| {
        let request = String::from_utf8(post(JSON, body)).expect("text");
        request.replace(GOOD, SIDE)
    };
    scene.side.forget();
    assert_eq!(scene.ask(SIDE, text(&body)).await.status, 200);
    assert_eq!(show(&scene.side.bytes()), show(text(&body).as_bytes()));
    // Nor does the right host get that of another session, or of this one in the clear.
    let other = scene.vault.session(&in_bodies(Scene::request())).await;
    let foreign = body.replace(scene.token(), &other.sealed_secrets["EXAMPLE_KEY"]);
    arrives(
        &scene,
        "foreign",
        &post(JSON, &foreign),
        &post(JSON, &foreign),
    )
    .await;
    let record = record(&scene, "/v1").await;
    assert_eq!(record.get("swapped_in_body"), None, "{record}");
    let mut conn = scene.workload.plain().await;
    let authorization = scene.workload.authorization();
    let length = body.len();
    conn.send(format!(
        "POST http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{authorization}Content-Length: {length}\r\n\r\n{body}"
    ))
    .await;
    let answer = conn.answer().await;
    assert!(!contains(&answer.raw, REAL));
    assert!(!contains(&scene.good.bytes(), REAL));
    scene.alive("other hosts").await;
}

#[tokio::test]
async fn only_secrets_that_may_stand_in_bodies_do() {
    let scene = Scene::session(|session| {
        let mut session = session.inject(["header"]);
        for (name, value, places) in [
            ("BODY_ONLY", "body-only-0123456789", ["body"].as_slice()),
            ("PREFIXED", "prefixed-0123456789", &["header", "body"]),
        ] {
            let secret = SecretSpec::new(value).inject(places.iter().copied());
            let secret = if name == "PREFIXED" {
                secret.prefix("ghp_")
            } else {
                secret
            };
            session = session.secret(name, secret);
        }
        session
    })
    .await;
    let token = |name: &str| scene.session.sealed_secrets[name].clone();
    let (own, prefixed) = (token("BODY_ONLY"), token("PREFIXED"));
    let body = format!("{} {own} {prefixed} {}", scene.token(), &prefixed[4..]);
    let swapped = format!(
        "{} body-only-0123456789 prefixed-0123456789 {}",
        scene.token(),
        &prefixed[4..]
    );
    let line = format!("X-Own: {own}\r\n");
    arrives(
        &scene,
        "one of each",
        &post(&line, &body),
        &post(&line, &swapped),
    )
    .await;
    // A prefix is part of its token, wherever the two are cut apart.
    for cut in 1..prefixed.len() {
        let (one, two) = prefixed.as_bytes().split_at(cut);
        let arrived = received(&scene, chunked("", &[b"a ", one, two, b" b"])).await;
        assert_eq!(show(&apart(&arrived).1), "a prefixed-0123456789 b", "{cut}");
    }
    scene.alive("places").await;
    let record = record(&scene, "/v1").await;
    assert_eq!(record["swapped_in_body"], json!(["BODY_ONLY", "PREFIXED"]));
    assert_eq!(record["swapped"], record["swapped_in_body"]);
    assert_eq!(record["tokens_left"], 3);
}

#[tokio::test]
async fn a_patch_gives_and_takes_the_place_on_an_open_tunnel() {
    let scene = Scene::new().await;
    let (sdk, id) = (scene.vault.sdk(), scene.session.session_id.clone());
    let body = scene.fill("k={T}");
    let mut conn = scene.workload.connect(TARGET).await;
    for (place, written) in [
        ("header", scene.token()),
        ("body", REAL),
        ("header", scene.token()),
    ] {
        let patch = UpdateSession::new().inject(["header", place]);
        sdk.update_session(&id, &patch).await.expect("a patch");
        scene.good.forget();
        conn.send(post("", &body)).await;
        assert_eq!(conn.answer().await.status, 200);
        let expected = post("", format!("k={written}"));
        assert_eq!(show(&scene.good.bytes()), show(&expected), "{place}");
    }
}

#[tokio::test]
async fn what_a_change_would_break_is_left_alone() {
    let scene = scene().await;
    let body = scene.fill("\0\0\0\0\x2c{T}\"");
    for fields in [
        "Content-Type: application/grpc\r\n",
        "content-type: Application/gRPC-Web+proto; x=y\r\n",
        "Content-Range: bytes 0-9/100\r\n",
        "Signature-Input: sig=(\"content-digest\")\r\nSignature: sig=:AA==:\r\n",
        "X-Amz-Content-Sha256: 0123\r\n",
        "Authorization: AWS4-HMAC-SHA256 Credential=x\r\n",
        "Authorization: Signature keyId=\"x\"\r\n",
    ] {
        arrives(&scene, fields, &post(fields, &body), &post(fields, &body)).await;
        let whole = chunked(fields, &[body.as_bytes()]);
        arrives(&scene, fields, &whole, &whole).await;
    }
    let options = String::from_utf8(post("", &body))
        .expect("text")
        .replace("POST", "OPTIONS");
    arrives(&scene, "OPTIONS", options.as_bytes(), options.as_bytes()).await;
    let trace = options.replace("OPTIONS", "TRACE");
    refused(
        &scene,
        "TRACE",
        trace.as_bytes(),
        (405, "method_not_allowed"),
    )
    .await;
    // A body of anything else is looked at whatever the method is.
    for method in ["GET", "PUT", "PATCH", "DELETE", "QUERY"] {
        let request = |body: &str| {
            let text = String::from_utf8(post("", body)).expect("text");
            text.replace("POST", method)
        };
        let (sent, expected) = (request(&scene.fill("{T}")), request(REAL));
        arrives(&scene, method, sent.as_bytes(), expected.as_bytes()).await;
    }
    scene.alive("bodies that are left alone").await;
}

#[tokio::test]
async fn sums_of_a_body_that_changes_are_left_out_and_others_stay() {
    let scene = scene().await;
    let sums = "Content-MD5: x\r\nX-A: 1\r\nDigest: sha-256=x\r\nContent-Digest: sha-256=:x:\r\n\
                Repr-Digest: sha-256=:x:\r\n";
    let same = post(sums, "no token");
    arrives(&scene, "no token", &same, &same).await;
    let (sent, expected) = (post(sums, scene.token()), post("X-A: 1\r\n", REAL));
    arrives(&scene, "a token", &sent, &expected).await;
    let trailers = |body: &str, trailers: &str| {
        let fields = "Transfer-Encoding: chunked\r\nTrailer: Digest, X-T\r\n";
        let size = body.len();
        format!(
            "{}{size:x}\r\n{body}\r\n0\r\n{trailers}X-T: {}\r\n\r\n",
            head(fields),
            scene.token()
        )
    };
    let sum = "Digest: sha-256=x\r\n";
    let same = trailers("no token", sum);
    arrives(&scene, "trailers", same.as_bytes(), same.as_bytes()).await;
    // A token in a trailer is text.
    let (sent, expected) = (trailers(scene.token(), sum), trailers(REAL, ""));
    arrives(&scene, "trailers", sent.as_bytes(), expected.as_bytes()).await;
    scene.alive("sums").await;
}

#[tokio::test]
async fn the_record_names_what_was_put_into_a_body_over_every_protocol() {
    let play = h2_scene().await;
    let scene = &play.scene;
    let body = scene.fill("{T} {T} SEALED_ffffffffffffffffffffffffffffffff");
    let expected = json!({
        "swapped": ["EXAMPLE_KEY"], "swapped_in_body": ["EXAMPLE_KEY"], "tokens_left": 1,
        "bytes_up": body.len(), "decision": "allowed", "reason": "ok",
    });
    let length = body.len().to_string();
    for (client, pair) in [(play.h2().await, "h2"), (play.h2_to_h1().await, "h2-to-h1")] {
        for sized in [true, false] {
            let path = format!("/{pair}-{sized}");
            let fields = [("content-length", length.as_str())];
            let fields = if sized { &fields[..] } else { &[] };
            client.ask(("POST", &path), fields, body.as_bytes()).await;
        }
    }
    let named = |path: &str, sent: Vec<u8>| {
        let text = String::from_utf8(sent).expect("text");
        text.replace("/v1", path)
    };
    scene.ask(GOOD, named("/h1-true", post("", &body))).await;
    scene
        .ask(GOOD, named("/h1-false", chunked("", &[body.as_bytes()])))
        .await;
    for pair in ["h1", "h2", "h2-to-h1"] {
        for sized in [true, false] {
            let record = record(scene, &format!("/{pair}-{sized}")).await;
            for (name, value) in expected.as_object().expect("an object") {
                assert_eq!(&record[name], value, "{name} in {record}");
            }
        }
    }
    let session = scene
        .vault
        .sdk()
        .get_session(&scene.session.session_id)
        .await;
    assert_eq!(session.expect("the session").counter("swapped"), Some(12));
    assert!(!contains(&scene.vault.audit_log().raw(), REAL));
    assert!(
        play.two
            .requests()
            .iter()
            .all(|seen| seen.authority.as_deref() == Some(TWO))
    );
}
