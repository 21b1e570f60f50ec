//! Creation, lists, tenants, idempotency, deletion, and that nothing secret comes back.

use super::*;

#[tokio::test]
async fn a_creation_tells_everything_once() {
    let api = Api::new();
    let answer = api.post(&two_secrets()).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("content-type"), "application/json");
    let created = answer.json();
    let (id, token) = (
        created["session_id"].as_str().unwrap(),
        created["token"].as_str().unwrap(),
    );
    assert_eq!(answer.header("location"), format!("/v1/sessions/{id}"));
    assert_eq!((token.len(), token.starts_with("tok_")), (68, true));
    assert_eq!(
        created["proxy_url"],
        format!("https://{id}:{token}@vault.example:8443")
    );
    assert_eq!(
        created["proxy_url_plain"],
        format!("http://{id}:{token}@vault.example:8080")
    );
    let sealed = |name: &str| created["sealed_secrets"][name].as_str().unwrap();
    assert!(sealed("ANTHROPIC_API_KEY").starts_with("SEALED_"));
    assert!(sealed("OWN").starts_with("own_SEALED_"));
    assert_eq!(created["warnings"], json!([]));
    for name in ["created_at", "expires_at"] {
        let text = created[name].as_str().unwrap();
        assert!(text.len() == 20 && text.ends_with('Z'), "{name}: {text}");
    }
}

#[tokio::test]
async fn without_a_tls_listener_the_proxy_url_is_plain() {
    let api = Api::of(None, |mut state| {
        let plain = Some("127.0.0.1:8080".to_owned());
        state.addresses = Arc::new(Addresses { tls: None, plain });
        router(state)
    });
    let created = api.create(&json!({"secrets": {}})).await;
    assert!(
        created["proxy_url"]
            .as_str()
            .unwrap()
            .starts_with("http://sess_")
    );
    assert_eq!(created["proxy_url"], created["proxy_url_plain"]);
}

#[tokio::test]
async fn metadata_has_every_field_and_no_secret() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let mut shown = api.show(&path).await;
    for name in ["session_id", "created_at", "expires_at"] {
        assert!(shown[name].is_string(), "{name}");
        shown.as_object_mut().unwrap().remove(name);
    }
    let expected = json!({
        "ttl_seconds": 86_400,
        "max_lifetime_seconds": 604_800,
        "secrets": [
            {"name": "ANTHROPIC_API_KEY", "hosts": ["api.anthropic.com"], "inject": ["header"]},
            {"name": "OWN", "hosts": ["api.example.com"], "inject": ["header:X-Key", "query"]},
        ],
        "secret_hosts": null,
        "allowed_egress": ["api.anthropic.com", "*.example.com"],
        "inject": ["header"],
        "passthrough_hosts": [],
        "allow_plaintext": false,
        "scrub_responses": true,
        "capture": [],
        "captured": [],
        "metadata": {"sandbox": "sb_1"},
        "counters": {"exchanges": 0, "denied": 0, "swapped": 0, "tunnels": 0},
        "version": 1,
    });
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn nothing_secret_comes_back() {
    let api = Api::new();
    let created = api.create(&two_secrets()).await;
    let path = format!("/v1/sessions/{}", created["session_id"].as_str().unwrap());
    let mut never = vec![CANARY, created["token"].as_str().unwrap()];
    never.extend(
        created["sealed_secrets"]
            .as_object()
            .unwrap()
            .values()
            .map(|v| v.as_str().unwrap()),
    );
    let rotate = json!({"secrets": {"OWN": CANARY}});
    let bad = json!({"secrets": {"OWN": {"value": CANARY, "hosts": CANARY}, "Y": [CANARY]},
        "metadata": {"x": [CANARY]}, "ttl_seconds": CANARY, "inject": [{"a": CANARY}]});
    let calls = [
        (Method::GET, "/v1/sessions", Value::Null),
        (Method::GET, path.as_str(), Value::Null),
        (Method::PATCH, &path, rotate),
        (Method::PATCH, &path, bad.clone()),
        (Method::POST, "/v1/sessions", bad),
        (
            Method::POST,
            "/v1/sessions",
            json!({"secrets": {"Z": CANARY}}),
        ),
        (Method::PUT, &path, json!({"secrets": {"Z": CANARY}})),
    ];
    for (method, path, body) in calls {
        let answer = api.call(ONE, method.clone(), path, &body).await;
        let headers = format!("{:?}", answer.headers);
        for text in &never {
            assert!(
                !answer.text.contains(text) && !headers.contains(text),
                "{method} {path}"
            );
        }
        assert_eq!(answer.header("cache-control"), "no-store");
    }
}

#[tokio::test]
async fn case_64_another_tenants_session_is_not_there() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let unknown = "/v1/sessions/sess_0123456789abcdef0123456789abcdef".to_owned();
    let cases = [
        (TWO, path.as_str()),
        (ONE, &unknown),
        (ONE, "/v1/sessions/x"),
        (ONE, "/v1/sessions/%ff"),
        (ONE, "/v1/sessions/SESS_0123456789abcdef0123456789abcdef"),
    ];
    for (key, path) in cases {
        for method in [Method::GET, Method::PATCH, Method::DELETE] {
            api.call(key, method, path, &json!({}))
                .await
                .is_problem(404, "not_found");
        }
    }
    let list = api
        .call(TWO, Method::GET, "/v1/sessions", &Value::Null)
        .await
        .json();
    assert_eq!(list, json!({"sessions": [], "next_cursor": null}));
    assert_eq!(api.show(&path).await["version"], 1);
}

#[tokio::test]
async fn a_deleted_session_is_gone() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let answer = api.call(ONE, Method::DELETE, &path, &Value::Null).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""));
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        api.call(ONE, method, &path, &json!({}))
            .await
            .is_problem(404, "not_found");
    }
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let api = Api::new();
    let mut created = Vec::new();
    for _ in 0..5 {
        let session = api.create(&json!({"secrets": {}})).await;
        created.push(session["session_id"].as_str().unwrap().to_owned());
    }
    created.sort();
    let (mut seen, mut pages, mut path) = (Vec::new(), 0, "/v1/sessions?limit=2".to_owned());
    loop {
        let page = api.show(&path).await;
        pages += 1;
        let sessions = page["sessions"].as_array().unwrap();
        seen.extend(
            sessions
                .iter()
                .map(|s| s["session_id"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        assert_eq!(seen.last().map(String::as_str), Some(cursor));
        path = format!("/v1/sessions?limit=2&cursor={cursor}");
    }
    assert_eq!((seen, pages), (created, 3));
    let whole = api.show("/v1/sessions?limit=5").await;
    assert_eq!(whole["next_cursor"], Value::Null);
    assert_eq!(api.show("/v1/sessions").await, whole);
}

#[tokio::test]
async fn a_bad_parameter_is_named() {
    let cases = [
        ("limit=0", "limit out_of_range"),
        ("limit=201", "limit out_of_range"),
        ("limit=-1", "limit out_of_range"),
        ("limit=%2B5", "limit out_of_range"),
        ("limit=", "limit out_of_range"),
        ("limit=1&limit=1", "limit duplicate_parameter"),
        ("cursor=x", "cursor bad_cursor"),
        ("offset=1", "offset unknown_parameter"),
    ];
    let api = Api::new();
    for (query, expected) in cases {
        let path = format!("/v1/sessions?{query}");
        let answer = api.call(ONE, Method::GET, &path, &Value::Null).await;
        answer.is_problem(400, "bad_request");
        assert_eq!(answer.errors(), [expected], "{query}");
    }
}

#[tokio::test]
async fn a_repeated_creation_is_refused_with_its_session() {
    let api = Api::new();
    let good = two_secrets().to_string();
    let bad = json!({"secrets": {"X": CANARY}}).to_string();
    let post = async |key: &str, idempotency: &str, body: &str| {
        let fields = [("idempotency-key", idempotency)];
        api.raw(key, Method::POST, "/v1/sessions", &fields, body.to_owned())
            .await
    };
    // What fails gives the key back.
    post(ONE, "k", &bad).await.is_problem(422, "invalid_fields");
    let first = post(ONE, "k", &good).await;
    assert_eq!(first.status, 201);
    let again = post(ONE, "k", &good).await;
    again.is_problem(409, "already_created");
    assert_eq!(again.json()["session_id"], first.json()["session_id"]);
    assert_eq!(post(ONE, "other", &good).await.status, 201);
    assert_eq!(post(TWO, "k", &good).await.status, 201);
    let answer = post(ONE, "a b", &good).await;
    answer.is_problem(400, "bad_request");
    assert_eq!(answer.errors(), ["Idempotency-Key bad_idempotency_key"]);
}

#[tokio::test]
async fn of_creations_at_once_only_one_wins() {
    let api = Api::new();
    let body = two_secrets().to_string();
    let one = || {
        let fields = &[("idempotency-key", "k")];
        api.raw(ONE, Method::POST, "/v1/sessions", fields, body.clone())
    };
    let answers = futures_util::future::join_all((0..8).map(|_| one())).await;
    let mut statuses: Vec<_> = answers
        .iter()
        .map(|answer| answer.status.as_u16())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    let list = api.show("/v1/sessions").await;
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1);
}
