//! Callers whose key is taken back while they wait, and what those are told who have none.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::oneshot;

use super::*;
use crate::api::public_router;
use crate::id::ApiKeyId;
use crate::tenant::{Change, State};

const ACME: &str = "key-of-acme";

/// What may befall a key, or its tenant.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Deleted,
    Disabled,
    /// Deleted, and made anew with a key of the same bytes.
    Remade,
    Revoked,
}

const ENDINGS: [Ending; 4] = [
    Ending::Deleted,
    Ending::Disabled,
    Ending::Remade,
    Ending::Revoked,
];

impl Api {
    /// Makes a tenant with a key.
    async fn acme(&self) -> ApiKeyId {
        let (tenants, id) = (self.sessions.tenants(), TenantId::new("acme"));
        tenants.create(&id, Limits::default()).await.unwrap();
        self.key(ACME).await
    }

    async fn key(&self, key: &str) -> ApiKeyId {
        let (tenants, id) = (self.sessions.tenants(), TenantId::new("acme"));
        let hash = Fingerprint::of(key.as_bytes());
        tenants.add_key(&id, "", hash).await.unwrap().id
    }

    async fn end(&self, ending: Ending, key: &ApiKeyId) {
        let (tenants, id) = (self.sessions.tenants(), TenantId::new("acme"));
        match ending {
            Ending::Deleted => self.sessions.delete_tenant(&id).await.unwrap(),
            Ending::Disabled => {
                let change = Change {
                    state: Some(State::Disabled),
                    ..Change::default()
                };
                tenants.patch(&id, change).await.unwrap();
            }
            Ending::Remade => {
                self.sessions.delete_tenant(&id).await.unwrap();
                self.acme().await;
            }
            Ending::Revoked => tenants.revoke_key(&id, key).await.unwrap(),
        }
    }
}

/// Makes a body that says when it is waited for, and comes when it is let go.
fn held(text: &str) -> (Body, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let ((asked, is_asked), (release, released)) = (oneshot::channel(), oneshot::channel());
    let text = Bytes::copy_from_slice(text.as_bytes());
    let parts = stream::once(async move {
        asked.send(()).unwrap();
        released.await.unwrap();
        Ok::<_, Infallible>(text)
    });
    (Body::from_stream(parts), is_asked, release)
}

#[tokio::test]
async fn a_call_whose_body_waits_is_refused_with_its_key() {
    for ending in ENDINGS {
        for (method, body) in [
            (Method::POST, r#"{"secrets":{}}"#),
            (Method::PATCH, r#"{"metadata":{"changed":"1"}}"#),
            (Method::POST, "no JSON"),
        ] {
            let api = Api::new();
            let key = api.acme().await;
            let form = json!({"secrets": {}});
            let made = api.call(ACME, Method::POST, "/v1/sessions", &form).await;
            let made = made.json();
            let id = made["session_id"].as_str().unwrap();
            let path = match method {
                Method::PATCH => format!("/v1/sessions/{id}"),
                _ => "/v1/sessions".to_owned(),
            };
            let (body, is_asked, release) = held(body);
            let call = api.raw(ACME, method.clone(), &path, &[], body);
            let end = async {
                is_asked.await.unwrap();
                api.end(ending, &key).await;
                release.send(()).unwrap();
            };
            let (answer, ()) = tokio::join!(call, end);
            answer.is_problem(401, "unauthenticated");
            let acme = TenantId::new("acme");
            let live = api.sessions.list(&acme, None, 10);
            let expected = usize::from(matches!(ending, Ending::Revoked));
            assert_eq!(live.len(), expected, "{ending:?} {method}");
            assert!(live.iter().all(|session| session.version() == 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_records_ends_with_the_key_that_opened_it() {
    for ending in ENDINGS {
        let api = Api::new();
        let key = api.acme().await;
        api.key("another-key").await;
        let form = json!({"secrets": {}});
        let made = api.call(ACME, Method::POST, "/v1/sessions", &form).await;
        let made = made.json();
        let path = format!(
            "/v1/sessions/{}/events",
            made["session_id"].as_str().unwrap()
        );
        let open = async |key: &str| {
            let request = http::Request::get(&path)
                .header("x-api-key", key)
                .extension(connection(false, "127.0.0.1:8080"));
            let request = request.body(Body::empty()).unwrap();
            let response = api.router.clone().call(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            body.frame().await.unwrap().unwrap();
            body
        };
        let (mut own, mut other) = (open(ACME).await, open("another-key").await);
        let began = tokio::time::Instant::now();
        api.end(ending, &key).await;
        assert!(own.frame().await.is_none(), "{ending:?}");
        assert_eq!(began.elapsed(), Duration::ZERO, "{ending:?}");
        let goes_on = other.frame().await.is_some();
        assert_eq!(goes_on, matches!(ending, Ending::Revoked), "{ending:?}");
    }
}

#[tokio::test]
async fn wrong_keys_tell_nothing_of_what_is_the_operators() {
    const NOTHING: (&str, &str, &str) = ("GET", "/v1/nothing", "");
    let calls = [
        NOTHING,
        ("GET", "/v1/tenants", ""),
        ("POST", "/v1/tenants", "{"),
        ("PUT", "/v1/tenants/one/keys", ""),
        ("DELETE", "/v1/tenants/one", ""),
    ];
    let series = async |api: &Api, (method, path, body): (&str, &str, &str)| {
        let method: Method = method.parse().unwrap();
        let mut told = Vec::new();
        for key in ["", ONE].into_iter().chain(["wrong"; FAILURES + 2]) {
            let answer = api.raw(key, method.clone(), path, &[], body.to_owned());
            let mut answer = answer.await;
            let mut problem = answer.json();
            problem.as_object_mut().unwrap().remove("request_id");
            for field in ["x-request-id", "retry-after"] {
                answer.headers.remove(field);
            }
            told.push((answer.status, answer.headers, problem));
        }
        told
    };
    let expected = series(&Api::new(), NOTHING).await;
    let statuses: Vec<u16> = expected.iter().map(|(s, ..)| s.as_u16()).collect();
    let (first, last) = statuses.split_at(FAILURES + 2);
    assert!(first.iter().all(|status| *status == 404), "{statuses:?}");
    assert_eq!(last, [429, 429]);
    for admin in [Some(ADMIN), None] {
        for call in calls {
            assert_eq!(
                series(&Api::of(admin, router), call).await,
                expected,
                "{call:?}"
            );
            let public = Api::of(admin, public_router);
            assert_eq!(series(&public, call).await, expected, "public: {call:?}");
        }
    }
    // The operator is told what anybody is.
    let answer = Api::new()
        .raw(ADMIN, Method::GET, "/v1/nothing", &[], "")
        .await;
    answer.is_problem(404, "not_found");
}
