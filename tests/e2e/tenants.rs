//! Tenants: who may manage them, what each may have, and that none sees anything of another.

use std::time::Duration;

use oshu_vault::secret::Secret;
use oshu_vault_sdk::{Client, CreateSession, CreatedSession, Error};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::{
    API_KEY, Answer, Conn, GOOD, Origin, REAL, Scene, Vault, VaultBuilder, contains, within,
};

pub(crate) const ADMIN: &str = "the-operator-s-own-key-0123456789";
const TARGET: &str = "good.example.com:443";
/// Every route that takes a session's id, and with which body.
const BY_ID: [(&str, &str, &str); 3] = [
    ("GET", "/v1/sessions/{id}", ""),
    ("PATCH", "/v1/sessions/{id}", r#"{"ttl_seconds":60}"#),
    ("DELETE", "/v1/sessions/{id}", ""),
];
/// Every route of the operator's.
const OPERATOR: [(&str, &str, &str); 8] = [
    ("GET", "/v1/tenants", ""),
    ("POST", "/v1/tenants", r#"{"tenant_id":"mine"}"#),
    ("GET", "/v1/tenants/acme", ""),
    ("PATCH", "/v1/tenants/acme", r#"{"limits":null}"#),
    ("DELETE", "/v1/tenants/acme", ""),
    ("GET", "/v1/tenants/acme/keys", ""),
    ("POST", "/v1/tenants/acme/keys", "{}"),
    (
        "DELETE",
        "/v1/tenants/acme/keys/key_0123456789abcdef0123456789abcdef",
        "",
    ),
];

pub(crate) fn with_admin(vault: VaultBuilder) -> VaultBuilder {
    vault.config(|config| config.admin_key = Some(Secret::new(ADMIN.as_bytes().to_vec())))
}

async fn vault() -> Vault {
    with_admin(Vault::builder()).start().await
}

/// Makes one call over a connection of its own; without a key where it is empty.
pub(crate) async fn call(vault: &Vault, key: &str, method: &str, path: &str, body: &str) -> Answer {
    let tcp = within("a connection", TcpStream::connect(vault.plain_addr())).await;
    let mut conn = Conn::new(tcp.expect("a connection"));
    let key = match key {
        "" => String::new(),
        key => format!("Authorization: Bearer {key}\r\n"),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: v\r\n{key}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    conn.send(head).await;
    conn.answer().await
}

/// Calls as the operator; the answer has to be good.
pub(crate) async fn operate(vault: &Vault, method: &str, path: &str, body: &Value) -> Value {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let answer = call(vault, ADMIN, method, path, &body).await;
    assert!(
        (200..300).contains(&answer.status),
        "{path}: {}",
        answer.text()
    );
    match answer.status {
        204 => Value::Null,
        _ => answer.json(),
    }
}

/// Makes a tenant with limits and a key; returns the key.
pub(crate) async fn tenant(vault: &Vault, name: &str, limits: Value) -> String {
    let body = json!({"tenant_id": name, "limits": limits});
    operate(vault, "POST", "/v1/tenants", &body).await;
    key(vault, name).await
}

pub(crate) async fn key(vault: &Vault, name: &str) -> String {
    let path = format!("/v1/tenants/{name}/keys");
    let made = operate(vault, "POST", &path, &json!({"label": "ci"})).await;
    made["api_key"].as_str().expect("a key").to_owned()
}

pub(crate) fn sdk(vault: &Vault, key: &str) -> Client {
    let base = format!("http://{}", vault.plain_addr());
    Client::builder(base, key).build().expect("a client")
}

pub(crate) async fn session(vault: &Vault, key: &str) -> CreatedSession {
    let made = sdk(vault, key).create_session(&Scene::request()).await;
    made.expect("a session")
}

/// Takes out of an answer what differs between two calls: the date and the request's id.
fn timeless(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.raw).into_owned();
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let text = text.replace(&id, "ID");
    let lines = text.lines().filter(|line| {
        let line = line.to_ascii_lowercase();
        !line.starts_with("date:")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn tenants_are_the_operator_s_alone() {
    let vault = vault().await;
    let acme = tenant(&vault, "acme", Value::Null).await;
    for key in ["", "not-a-key-of-anybody", API_KEY, &acme] {
        // A method that is not there and a body that is none tell nothing either.
        let odd = [
            ("PUT", "/v1/tenants", ""),
            ("PUT", "/v1/tenants/acme/keys", ""),
            ("POST", "/v1/tenants", "{"),
            ("PATCH", "/v1/tenants/acme", "[]"),
        ];
        for (method, path, body) in OPERATOR.into_iter().chain(odd) {
            let nothing = call(&vault, key, method, "/v1/nothing", body).await;
            assert_eq!(nothing.status, 404);
            let answer = call(&vault, key, method, path, body).await;
            let (answer, nothing) = (timeless(&answer), timeless(&nothing));
            assert_eq!(answer, nothing, "{method} {path} with {key:?}");
        }
    }
    let list = operate(&vault, "GET", "/v1/tenants", &Value::Null).await;
    assert_eq!(list["tenants"].as_array().expect("a list").len(), 2);
    for (method, path, status, code) in [
        ("PUT", "/v1/tenants", 405, "method_not_allowed"),
        ("GET", "/v1/tenants/none", 404, "not_found"),
        ("GET", "/v1/tenants/No%2Fname", 404, "not_found"),
        ("DELETE", "/v1/tenants/acme/keys/key_1", 404, "not_found"),
        ("DELETE", "/v1/tenants/default", 409, "tenant_is_configured"),
        // The operator is no tenant.
        ("GET", "/v1/sessions", 401, "unauthenticated"),
    ] {
        let answer = call(&vault, ADMIN, method, path, "").await;
        let got = (answer.status, answer.code());
        assert_eq!(got, (status, code.to_owned()), "{method} {path}");
    }
    let answer = call(&vault, ADMIN, "PUT", "/v1/tenants", "").await;
    assert_eq!(answer.header("allow"), Some("GET,HEAD,POST"));
    // Without a key of the operator nobody is one.
    let without = Vault::builder().start().await;
    for (method, path, body) in OPERATOR {
        let answer = call(&without, ADMIN, method, path, body).await;
        assert_eq!(answer.status, 404, "{method} {path}");
    }
}

#[tokio::test]
async fn wrong_keys_of_the_operator_are_held_back_and_the_right_one_never() {
    let vault = with_admin(Vault::builder())
        .config(|config| config.limits.auth_failures = 3)
        .start()
        .await;
    for _ in 0..6 {
        // A tenant's own key is no attempt.
        let answer = call(&vault, API_KEY, "GET", "/v1/tenants", "").await;
        assert_eq!(answer.status, 404);
    }
    for _ in 0..3 {
        let answer = call(&vault, "wrong", "GET", "/v1/tenants", "").await;
        assert_eq!(answer.status, 404);
    }
    let answer = call(&vault, "wrong", "GET", "/v1/tenants", "").await;
    let held = (answer.status, answer.code());
    assert_eq!(held, (429, "too_many_auth_failures".to_owned()));
    assert!(answer.header("retry-after").is_some());
    operate(&vault, "GET", "/v1/tenants", &Value::Null).await;
}

#[tokio::test]
async fn a_tenant_is_made_given_keys_changed_and_ended() {
    let scene = Scene::vault(with_admin).await;
    let vault = &scene.vault;
    let made = json!({"tenant_id": "acme", "limits": {"sessions": 7}});
    let made = operate(vault, "POST", "/v1/tenants", &made).await;
    assert_eq!(
        (&made["tenant_id"], &made["state"], &made["limits"]),
        (
            &json!("acme"),
            &json!("active"),
            &json!({"sessions": 7, "requests_per_second": null})
        )
    );
    let twice = call(
        vault,
        ADMIN,
        "POST",
        "/v1/tenants",
        r#"{"tenant_id":"acme"}"#,
    )
    .await;
    assert_eq!(
        (twice.status, twice.code()),
        (409, "tenant_exists".to_owned())
    );
    let bad = call(
        vault,
        ADMIN,
        "POST",
        "/v1/tenants",
        r#"{"tenant_id":"A","x":1}"#,
    )
    .await;
    assert_eq!(bad.status, 422, "{}", bad.text());
    let keys = "/v1/tenants/acme/keys";
    let first = operate(vault, "POST", keys, &json!({"label": "first"})).await;
    let second = key(vault, "acme").await;
    let shown = first["api_key"].as_str().expect("a key");
    assert!(shown.starts_with("ovk_") && shown.len() == 68, "its form");
    let ours = session(vault, shown).await;
    let theirs = vault.workload(&ours);
    theirs.tunnel(TARGET).await;
    // It is in the answer that made it, and in no other.
    for path in [keys, "/v1/tenants", "/v1/tenants/acme"] {
        let answer = call(vault, ADMIN, "GET", path, "").await;
        for hidden in [shown, &second, &shown[8..]] {
            assert!(!contains(&answer.raw, hidden), "{path}");
        }
    }
    let listed = operate(vault, "GET", keys, &Value::Null).await;
    let labels: Vec<_> = listed["keys"].as_array().expect("keys").iter().collect();
    assert_eq!(labels.len(), 2);
    assert_eq!(labels[0]["key_id"], first["key_id"]);
    assert_eq!(labels[0]["label"], "first");
    let about = operate(vault, "GET", "/v1/tenants/acme", &Value::Null).await;
    assert_eq!((&about["sessions"], &about["keys"]), (&json!(1), &json!(2)));
    // Revoked is refused at once, and the other key is not asked.
    let path = format!("{keys}/{}", first["key_id"].as_str().expect("an id"));
    operate(vault, "DELETE", &path, &Value::Null).await;
    let refused = call(vault, shown, "GET", "/v1/sessions", "").await;
    assert_eq!(refused.status, 401);
    assert_eq!(
        call(vault, &second, "GET", "/v1/sessions", "").await.status,
        200
    );
    let again = call(vault, ADMIN, "DELETE", &path, "").await;
    assert_eq!(again.status, 404);
    theirs.tunnel(TARGET).await;
    // Its end is the end of its sessions, and of nobody else's.
    operate(vault, "DELETE", "/v1/tenants/acme", &Value::Null).await;
    assert_eq!(theirs.refused(TARGET).await.status, 407);
    assert_eq!(
        call(vault, &second, "GET", "/v1/sessions", "").await.status,
        401
    );
    let gone = call(vault, ADMIN, "GET", "/v1/tenants/acme", "").await;
    assert_eq!(gone.status, 404);
    scene.alive("another tenant's end").await;
    // The next of that name has nothing of it.
    let key = tenant(vault, "acme", Value::Null).await;
    let listed = call(vault, &key, "GET", "/v1/sessions", "").await.json();
    assert_eq!(listed["sessions"], json!([]));
    assert_eq!(theirs.refused(TARGET).await.status, 407);
}

#[tokio::test]
async fn a_list_of_tenants_comes_in_pages() {
    let vault = vault().await;
    for name in ["b", "a", "d", "c"] {
        operate(&vault, "POST", "/v1/tenants", &json!({"tenant_id": name})).await;
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/tenants?limit=2{cursor}");
        let page = operate(&vault, "GET", &path, &Value::Null).await;
        let found = page["tenants"].as_array().expect("a page");
        assert!(found.len() <= 2);
        let name = |one: &Value| one["tenant_id"].as_str().expect("a name").to_owned();
        names.extend(found.iter().map(name));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "default"]);
    for query in ["limit=0", "limit=201", "cursor=A", "page=2"] {
        let answer = call(&vault, ADMIN, "GET", &format!("/v1/tenants?{query}"), "").await;
        assert_eq!(answer.status, 400, "{query}");
    }
}

#[tokio::test]
async fn case_64_another_tenant_s_session_is_as_if_it_had_never_been() {
    let scene = Scene::vault(with_admin).await;
    let vault = &scene.vault;
    let acme = tenant(vault, "acme", Value::Null).await;
    let ours = session(vault, &acme).await;
    let never = format!("sess_{}", "0".repeat(32));
    // A session of one's own that was there is no more there than another's.
    let deleted = session(vault, &acme).await;
    let delete = format!("/v1/sessions/{}", deleted.session_id);
    assert_eq!(call(vault, &acme, "DELETE", &delete, "").await.status, 204);
    for (reader, id) in [
        (API_KEY, &ours.session_id),
        (&*acme, &scene.session.session_id),
        (&*acme, &deleted.session_id),
    ] {
        for (method, path, body) in BY_ID {
            let unknown = path.replace("{id}", &never);
            let unknown = call(vault, reader, method, &unknown, body).await;
            assert_eq!(unknown.status, 404, "{method} {path}");
            let other = call(vault, reader, method, &path.replace("{id}", id), body).await;
            let what = format!("{method} {path} of {id}");
            assert_eq!(timeless(&other), timeless(&unknown), "{what}");
        }
    }
    // A cursor of another's lists what is one's own, and nothing else.
    for (reader, other, own) in [
        (API_KEY, &ours, &scene.session),
        (&*acme, &scene.session, &ours),
    ] {
        for path in [
            "/v1/sessions".to_owned(),
            format!("/v1/sessions?cursor={}", other.session_id),
        ] {
            let answer = call(vault, reader, "GET", &path, "").await;
            assert!(!contains(&answer.raw, &other.session_id), "{path}");
            let is_own = |one: &Value| one["session_id"] == *own.session_id;
            let listed = answer.json();
            let listed = listed["sessions"].as_array().expect("a list");
            assert!(listed.iter().all(is_own), "{path}");
        }
    }
    scene.alive("calls of another tenant").await;
    vault.workload(&ours).tunnel(TARGET).await;
}

#[tokio::test]
async fn an_idempotency_key_is_its_tenant_s_own() {
    let vault = vault().await;
    let keys = [
        API_KEY.to_owned(),
        tenant(&vault, "acme", Value::Null).await,
    ];
    let request = CreateSession::new().secret("MINE", REAL);
    for key in &keys {
        let sdk = sdk(&vault, key);
        let made = sdk.create_session_once(&request, "the-same").await;
        made.expect("a session of its own");
        let twice = sdk.create_session_once(&request, "the-same").await;
        assert!(twice.is_err(), "its own is known");
    }
}

#[tokio::test]
async fn sessions_over_a_tenant_s_quota_are_429_until_one_ends() {
    let scene = Scene::vault(with_admin).await;
    let vault = &scene.vault;
    let acme = tenant(vault, "acme", json!({"sessions": 2})).await;
    let first = session(vault, &acme).await;
    session(vault, &acme).await;
    let refused = sdk(vault, &acme).create_session(&Scene::request()).await;
    let Err(Error::RateLimited(problem)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(problem.code, "tenant_session_limit");
    assert!(problem.retry_after.is_some());
    assert!(
        problem.summary.contains("ask the operator"),
        "{}",
        problem.summary
    );
    // Another tenant is not asked.
    vault.session(&Scene::request()).await;
    let ended = sdk(vault, &acme).delete_session(&first.session_id).await;
    ended.expect("its end");
    session(vault, &acme).await;
    // Of many at once one gets the place that there is.
    let more = json!({"limits": {"sessions": 3}});
    operate(vault, "PATCH", "/v1/tenants/acme", &more).await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let sdk = sdk(vault, &acme);
        tries.spawn(async move { sdk.create_session(&Scene::request()).await.is_ok() });
    }
    let made = tries.join_all().await.into_iter().filter(|made| *made);
    assert_eq!(made.count(), 1);
    // What is over a lower limit lives on, and the limit of all holds where there is none.
    let fewer = json!({"limits": {"sessions": 0}});
    operate(vault, "PATCH", "/v1/tenants/acme", &fewer).await;
    let about = operate(vault, "GET", "/v1/tenants/acme", &Value::Null).await;
    assert_eq!(about["sessions"], 3);
    assert!(
        sdk(vault, &acme)
            .create_session(&Scene::request())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn limits_of_the_configuration_hold_for_every_tenant_without_its_own() {
    let vault = with_admin(Vault::builder())
        .config(|config| {
            config.limits.tenant_sessions = Some(1);
            config.limits.tenant_requests_per_second = Some(1);
            config.limits.tenant_burst = 4;
        })
        .start()
        .await;
    let request = CreateSession::new().secret("MINE", REAL);
    vault.session(&request).await;
    let refused = vault.sdk().create_session(&request).await;
    assert!(matches!(refused, Err(Error::RateLimited(_))), "{refused:?}");
    let fast = json!({"sessions": 2, "requests_per_second": 1_000_000});
    let acme = tenant(&vault, "acme", fast).await;
    for _ in 0..2 {
        sdk(&vault, &acme)
            .create_session(&request)
            .await
            .expect("room");
    }
    // Far more than a second's worth, however slow this machine is, comes to a limit of one.
    let mut limited = None;
    for _ in 0..1_000 {
        let answer = call(&vault, API_KEY, "GET", "/v1/sessions", "").await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
        assert_eq!(answer.status, 200);
    }
    let limited = limited.expect("a limit");
    assert_eq!(limited.code(), "tenant_rate_limit");
    let wait = limited.header("retry-after").expect("a time");
    assert_eq!(wait, "1");
    // Another tenant is as fast as it may be, and the operator is not asked.
    for _ in 0..20 {
        let answer = call(&vault, &acme, "GET", "/v1/sessions", "").await;
        assert_eq!(answer.status, 200);
        operate(&vault, "GET", "/v1/tenants", &Value::Null).await;
    }
}

#[tokio::test]
async fn a_disabled_tenant_is_refused_and_its_open_tunnels_are_cut() {
    let (release, gate) = watch::channel(());
    let origin = Origin::script(move |request, conn| {
        let mut gate = gate.clone();
        async move {
            if request.line().contains("/held") {
                let _released = gate.changed().await;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let scene = Scene::with_good(origin, with_admin, |request| request).await;
    let vault = &scene.vault;
    let acme = tenant(vault, "acme", Value::Null).await;
    let ours = session(vault, &acme).await;
    let workload = vault.workload(&ours);
    let mut idle = workload.connect(TARGET).await;
    let mut held = workload.connect(TARGET).await;
    held.send(format!("GET /held HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    scene
        .good
        .wait("the held request", |all| {
            let all = all.iter().map(|bytes| String::from_utf8_lossy(bytes));
            all.into_iter().any(|text| text.contains("/held"))
        })
        .await;
    let began = std::time::Instant::now();
    operate(
        vault,
        "PATCH",
        "/v1/tenants/acme",
        &json!({"state": "disabled"}),
    )
    .await;
    drop(idle.rest_and_end().await);
    drop(held.rest_and_end().await);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(workload.refused(TARGET).await.status, 407);
    assert_eq!(
        call(vault, &acme, "GET", "/v1/sessions", "").await.status,
        401
    );
    let answer = call(
        vault,
        ADMIN,
        "PATCH",
        "/v1/tenants/default",
        r#"{"state":"disabled"}"#,
    );
    let answer = answer.await;
    assert_eq!(
        (answer.status, answer.code()),
        (409, "tenant_is_configured".to_owned())
    );
    // The key works again, the sessions are over for good.
    operate(
        vault,
        "PATCH",
        "/v1/tenants/acme",
        &json!({"state": "active"}),
    )
    .await;
    assert_eq!(workload.refused(TARGET).await.status, 407);
    let listed = call(vault, &acme, "GET", "/v1/sessions", "").await.json();
    assert_eq!(listed["sessions"], json!([]));
    let fresh = session(vault, &acme).await;
    vault.workload(&fresh).tunnel(TARGET).await;
    drop(release);
    scene
        .vault
        .audit_log()
        .wait("the end of the session", |lines| {
            lines
                .iter()
                .any(|line| line["session"] == *ours.session_id && line["action"] == "ended")
        })
        .await;
}
