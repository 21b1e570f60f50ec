//! What stands around the sessions: keys, credentials in the clear, routes, files, health.

use super::*;
use crate::api::{OpenState, Relay, SignIn, SignInConfig, open_router, public_router};
use crate::audit::Sink;
use crate::callout::upstream_of_tests;
use crate::secret::Secret;

#[tokio::test]
async fn without_a_good_key_nothing_of_a_tenant_is_told() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let routes = [
        (Method::POST, "/v1/sessions"),
        (Method::GET, "/v1/sessions"),
        (Method::GET, &path),
        (Method::PATCH, &path),
        (Method::DELETE, &path),
    ];
    let wrong: [Fields<'_>; 4] = [
        &[],
        &[("authorization", "Bearer canary")],
        &[("authorization", "Basic a2V5LW9mLW9uZTo=")],
        &[
            ("authorization", "Bearer key-of-one"),
            ("x-api-key", "key-of-two"),
        ],
    ];
    for (method, path) in routes {
        for fields in wrong {
            let answer = api
                .raw("", method.clone(), path, fields, "not even JSON")
                .await;
            answer.is_problem(401, "unauthenticated");
            assert!(answer.header("www-authenticate").starts_with("Bearer"));
        }
        let fields = [("x-api-key", ONE)];
        let answer = api.raw("", method, path, &fields, "{\"secrets\":{}}").await;
        assert!(answer.status.is_success(), "{answer:?}");
    }
}

#[tokio::test]
async fn credentials_in_the_clear_are_refused() {
    let safe = Api::new();
    let danger = Api::of(None, |state| {
        router(state.with_danger_plaintext_management(true))
    });
    let ways = [
        (Some(connection(true, "0.0.0.0:8443")), true),
        (Some(connection(false, "127.0.0.1:8080")), true),
        (Some(connection(false, "0.0.0.0:8080")), false),
        (None, false),
    ];
    for (way, private) in ways {
        for (field, path) in [
            ("authorization", "/v1/sessions"),
            ("x-api-key", "/v1/ca.pem"),
            ("x-api-key", "/no"),
        ] {
            let make = || {
                let value = if field == "x-api-key" {
                    ONE.to_owned()
                } else {
                    format!("Bearer {ONE}")
                };
                let request = http::Request::get(path).header(field, value);
                let mut request = request.body(Body::empty()).unwrap();
                request.extensions_mut().extend(
                    way.map(|way| {
                        let mut one = http::Extensions::new();
                        one.insert(way);
                        one
                    })
                    .unwrap_or_default(),
                );
                request
            };
            let ask = async |api: &Api| {
                let response = api.router.clone().call(make()).await.unwrap();
                let status = response.status();
                let bytes = response.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8(bytes.to_vec()).unwrap())
            };
            let (status, text) = ask(&safe).await;
            assert_eq!(status == 403, !private, "{way:?} {path}");
            assert_eq!(text.contains("tls_required"), !private, "{way:?} {path}");
            assert_ne!(ask(&danger).await.0, 403, "{way:?} {path}");
        }
    }
    // Without a credential there is nothing to lose.
    let mut request = http::Request::get("/v1/ca.pem")
        .body(Body::empty())
        .unwrap();
    request
        .extensions_mut()
        .insert(connection(false, "0.0.0.0:8080"));
    assert_eq!(safe.send(request).await.status, 200);
}

#[tokio::test]
async fn codes_and_tokens_of_people_do_not_travel_in_the_clear() {
    // Nobody listens there: what is let through is 400 or 502.
    let nowhere = "http://127.0.0.1:9";
    let open = |danger: bool| {
        let config = SignInConfig {
            url: nowhere.to_owned(),
            client_id: "client".to_owned(),
            client_secret: Some(Secret::new(b"canary".to_vec())),
            return_to: vec!["https://app.example.com".to_owned()],
            needs_verifier: false,
            requests_per_minute: 100,
        };
        let sign_in = SignIn::new(upstream_of_tests(), config).unwrap();
        let relay = Relay::new(upstream_of_tests(), nowhere, 100).unwrap();
        let state = OpenState::new(Drain::default(), Sink::discard());
        let state = state.with_danger_plaintext(danger);
        let state = state.with_sign_in(Some(Arc::new(sign_in)));
        open_router(state.with_relay(Some(Arc::new(relay))))
    };
    let (safe, danger) = (open(false), open(true));
    for (way, private) in [
        (Some(connection(true, "0.0.0.0:8443")), true),
        (Some(connection(false, "127.0.0.1:8080")), true),
        (Some(connection(false, "192.0.2.1:8080")), false),
        (None, false),
    ] {
        for path in [
            "/api/github/device/code",
            "/api/github/device/token",
            "/api/github/oauth/token",
            "/api/auth/callback?code=a&state=b",
            "/api/claude/v1/oauth/token",
        ] {
            let ask = async |router: &Router| {
                let request = http::Request::post(path).body(Body::from("{}"));
                let mut request = request.unwrap();
                if let Some(way) = way {
                    request.extensions_mut().insert(way);
                }
                router.clone().call(request).await.unwrap().status()
            };
            assert_eq!(ask(&safe).await == 403, !private, "{way:?} {path}");
            assert_ne!(ask(&danger).await, 403, "{way:?} {path}");
        }
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let api = Api::new();
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/sessions/",
        "/v1/sessions/a/b",
        "/v1/tenants",
        "/metrics",
    ] {
        api.call(ONE, Method::GET, path, &Value::Null)
            .await
            .is_problem(404, "not_found");
    }
    let cases = [
        (Method::PUT, "/v1/sessions", "GET,HEAD,POST"),
        (Method::DELETE, "/v1/sessions", "GET,HEAD,POST"),
        (Method::POST, "/v1/sessions/x", "GET,HEAD,PATCH,DELETE"),
        (Method::POST, "/healthz", "GET,HEAD"),
        (Method::OPTIONS, "/v1/ca.pem", "GET,HEAD"),
    ];
    for (method, path, allow) in cases {
        let answer = api.call(ONE, method, path, &Value::Null).await;
        answer.is_problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allow, "{path}");
    }
    let head = api.call(ONE, Method::HEAD, "/none", &Value::Null).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (404, ""));
}

#[tokio::test]
async fn each_answer_has_an_id_of_its_own() {
    let api = Api::new();
    let mut ids = std::collections::HashSet::new();
    for path in ["/healthz", "/v1/ca.pem", "/v1/sessions", "/none"] {
        let fields = [("x-request-id", "req_canary")];
        let answer = api.raw(ONE, Method::GET, path, &fields, "").await;
        let id = answer.header("x-request-id").to_owned();
        assert!(id.starts_with("req_") && id.len() == 36, "{path}: {id}");
        assert!(ids.insert(id));
    }
}

#[tokio::test]
async fn the_certificates_need_no_key() {
    let api = Api::new();
    let cases = [
        ("/v1/ca.pem", "application/x-pem-file", 1),
        ("/v1/ca.der", "application/pkix-cert", 0),
        ("/v1/bundle.pem", "application/x-pem-file", 50),
    ];
    for (path, kind, at_least) in cases {
        let answer = api.call("", Method::GET, path, &Value::Null).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-type")),
            (200, kind),
            "{path}"
        );
        let count = answer.text.matches("BEGIN CERTIFICATE").count();
        assert!(
            count >= at_least && (at_least > 1 || count == at_least),
            "{path}: {count}"
        );
    }
    let own = api
        .call("", Method::GET, "/v1/ca.pem", &Value::Null)
        .await
        .text;
    let bundle = api
        .call("", Method::GET, "/v1/bundle.pem", &Value::Null)
        .await
        .text;
    assert!(bundle.ends_with(&own));
}

#[tokio::test]
async fn health_tells_when_the_process_drains() {
    let api = Api::new();
    let ask = async |path| api.call("", Method::GET, path, &Value::Null).await;
    assert_eq!(ask("/healthz").await.json(), json!({"status": "ok"}));
    assert_eq!(ask("/readyz").await.json(), json!({"status": "ready"}));
    api.drain.start();
    assert_eq!(ask("/healthz").await.status, 200);
    ask("/readyz").await.is_problem(503, "draining");
}

#[tokio::test]
async fn the_public_routes_hold_no_management() {
    let api = Api::of(None, public_router);
    api.post(&json!({"secrets": {}}))
        .await
        .is_problem(404, "not_found");
    for path in [
        "/healthz",
        "/readyz",
        "/v1/ca.pem",
        "/v1/ca.der",
        "/v1/bundle.pem",
    ] {
        assert_eq!(
            api.call("", Method::GET, path, &Value::Null).await.status,
            200,
            "{path}"
        );
    }
}
