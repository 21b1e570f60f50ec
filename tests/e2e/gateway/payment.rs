//! Who says that an account is paid: `WorkOS` over real HTTP, and Stripe's webhook by its signature.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use oshu_vault::config::{PaymentProvider, ServiceUrl};
use serde_json::{Value, json};

use crate::support::{Answer, Anthropic, Origin, contains, show};

use super::{ACCOUNT, Stage, jwt, secret};

const WORKOS_KEY: &str = "sk_workos_CANARY_0123456789";
pub(super) const WHSEC: &str = "whsec_CANARY_0123456789abcdef";
const CUSTOMER: &str = "cus_1";
const SUBSCRIPTION: &str = "sub_1";

/// Sets the stage with a stand-in of `WorkOS` that answers like this, and counts how often.
async fn with_workos(answers: impl Fn(usize) -> String + Send + Sync + 'static) -> (Stage, Origin) {
    let count = AtomicUsize::new(0);
    let workos = Origin::builder().plain().script(move |_request, conn| {
        let answer = answers(count.fetch_add(1, Ordering::SeqCst));
        async move {
            match answer.as_str() {
                "" => conn.close().await,
                answer => conn.send(answer).await,
            }
        }
    });
    let workos = workos.await;
    let url = format!("http://{}", workos.addr());
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.payment.provider = PaymentProvider::Workos;
        config.payment.workos.api_key = Some(secret(WORKOS_KEY));
        config.payment.workos.base_url = ServiceUrl::parse(&url).expect("a URL");
    });
    (stage.await, workos)
}

fn user(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn workos_says_who_is_paid_and_its_troubles_are_no_yes() {
    let of = |account: &str, metadata: Value| json!({ "id": "user_1", "external_id": account, "metadata": metadata });
    let cases = [
        (user(200, &of(ACCOUNT, json!({ "paid": "true" }))), 200),
        (user(200, &of(ACCOUNT, json!({ "paid": "false" }))), 402),
        (user(200, &of(ACCOUNT, json!({ "Paid": "true" }))), 402),
        (user(200, &of(ACCOUNT, json!({}))), 402),
        (user(404, &json!({ "message": "not found" })), 402),
        (user(200, &of("42", json!({ "paid": "true" }))), 503),
        (user(200, &json!([])), 503),
        (user(401, &json!({})), 503),
        (user(403, &json!({})), 503),
        (user(429, &json!({})), 503),
        (user(500, &json!({ "paid": "true" })), 503),
        (String::new(), 503),
    ];
    for (says, expected) in cases {
        let told = says.clone();
        let (stage, workos) = with_workos(move |_| told.clone()).await;
        let answer = stage.message(&jwt(ACCOUNT)).await;
        assert_eq!(answer.status, expected, "{says}: {}", answer.text());
        if expected == 503 {
            assert_eq!(answer.json()["details"]["code"], "payment_unknown");
            assert!(answer.header("retry-after").is_some());
        }
        if expected != 200 {
            stage.provider.expect_nothing(&says);
        }
        let bytes = workos.bytes();
        let line = format!("GET /user_management/users/external_id/{ACCOUNT} HTTP/1.1\r\n");
        assert!(bytes.starts_with(line.as_bytes()), "{}", show(&bytes));
        let key = format!("\r\nauthorization: Bearer {WORKOS_KEY}\r\n");
        assert!(contains(&bytes, key), "{}", show(&bytes));
        assert!(!contains(&bytes, "eyJ"), "{}", show(&bytes));
        // Whoever has no right JWT is never looked up.
        workos.forget();
        for wrong in [String::new(), super::jwt_by(super::OTHER_SECRET, "42")] {
            assert_eq!(stage.message(&wrong).await.status, 401);
        }
        workos.expect_nothing("no credential");
    }
}

#[tokio::test]
async fn a_yes_is_asked_for_once_and_a_failure_again() {
    let yes = json!({ "external_id": ACCOUNT, "metadata": { "paid": "true" } });
    let (stage, workos) = with_workos(move |number| match number {
        0 => user(500, &json!({})),
        _ => user(200, &yes),
    })
    .await;
    for expected in [503, 200, 200, 200] {
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, expected);
    }
    let text = String::from_utf8(workos.bytes()).expect("text");
    assert_eq!(text.matches("GET /user_management").count(), 2, "{text}");
}

/// Sets the stage with Stripe's webhook.
pub(super) async fn with_stripe() -> Stage {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.payment.stripe.webhook_secret = Some(secret(WHSEC));
    });
    stage.await
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a time").as_secs()
}

pub(super) fn sign(secret_text: &str, time: u64, body: &str) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret_text.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, format!("{time}.{body}").as_bytes());
    format!("t={time},v1={}", HEXLOWER.encode(tag.as_ref()))
}

/// Delivers a body with these signature lines.
async fn deliver_with(stage: &Stage, lines: &str, body: &str) -> Answer {
    stage
        .ask(format!(
            "POST /api/webhooks/stripe HTTP/1.1\r\nHost: v\r\n{lines}Content-Length: {}\r\n\r\n\
             {body}",
            body.len()
        ))
        .await
}

async fn deliver(stage: &Stage, event: &Value) -> u16 {
    let body = event.to_string();
    let line = format!("Stripe-Signature: {}\r\n", sign(WHSEC, now(), &body));
    deliver_with(stage, &line, &body).await.status
}

fn event(id: &str, kind: &str, created: u64, object: &Value) -> Value {
    json!({ "id": id, "type": kind, "created": created, "data": { "object": object } })
}

pub(super) fn checkout(id: &str, created: u64) -> Value {
    let object = json!({
        "id": "cs_1", "client_reference_id": ACCOUNT, "customer": CUSTOMER,
        "subscription": SUBSCRIPTION, "payment_status": "paid",
    });
    event(id, "checkout.session.completed", created, &object)
}

fn subscription(id: &str, created: u64, status: &str) -> Value {
    let object = json!({ "id": SUBSCRIPTION, "customer": CUSTOMER, "status": status });
    event(id, "customer.subscription.updated", created, &object)
}

fn invoice(id: &str, created: u64, kind: &str) -> Value {
    let object = json!({ "customer": CUSTOMER, "subscription": SUBSCRIPTION });
    event(id, &format!("invoice.{kind}"), created, &object)
}

/// Returns what comes after the checkout, and what a message gets then.
fn steps(begun: u64) -> [(Value, u16); 15] {
    [
        (subscription("evt_3", begun + 3, "past_due"), 402),
        (subscription("evt_2", begun + 2, "active"), 402),
        (checkout("evt_1", begun), 402),
        (subscription("evt_4", begun + 4, "trialing"), 200),
        (subscription("evt_3", begun + 3, "past_due"), 200),
        (invoice("evt_5", begun + 5, "payment_failed"), 402),
        (
            event(
                "evt_6",
                "invoice.paid",
                begun + 6,
                &json!({
                    "customer": CUSTOMER,
                    "parent": { "subscription_details": { "subscription": SUBSCRIPTION } },
                }),
            ),
            200,
        ),
        // Of one second all have to say that it is paid, in whatever order they come.
        (invoice("evt_6b", begun + 6, "payment_failed"), 402),
        (invoice("evt_6", begun + 6, "paid"), 402),
        (invoice("evt_6c", begun + 6, "paid"), 402),
        (invoice("evt_6d", begun + 7, "paid"), 200),
        // Of no matter.
        (invoice("evt_7", begun + 7, "created"), 200),
        (
            event(
                "evt_8",
                "invoice.payment_failed",
                begun + 8,
                &json!({ "customer": "cus_2" }),
            ),
            200,
        ),
        (
            event(
                "evt_9",
                "customer.subscription.deleted",
                begun + 9,
                &json!({ "id": SUBSCRIPTION, "customer": CUSTOMER }),
            ),
            402,
        ),
        // The last invoice of a subscription is often paid after its end.
        (invoice("evt_10", begun + 10, "paid"), 402),
    ]
}

#[tokio::test]
async fn a_signed_delivery_pays_and_the_next_request_passes() {
    let stage = with_stripe().await;
    let jwt = jwt(ACCOUNT);
    assert_eq!(stage.message(&jwt).await.status, 402);
    let begun = now() - 1000;
    let first = checkout("evt_1", begun);
    assert_eq!(deliver(&stage, &first).await, 200);
    assert_eq!(stage.message(&jwt).await.status, 200, "at once");
    let shown = stage
        .operate("GET", &format!("/v1/accounts/{ACCOUNT}"), "")
        .await;
    assert_eq!(
        shown,
        json!({ "account_id": ACCOUNT, "paid": true, "granted": null, "customers": 1 })
    );
    // A customer that was linked is known without its account; what was overtaken does nothing.
    for (event, expected) in steps(begun) {
        // Twice: Stripe repeats deliveries.
        for _ in 0..2 {
            assert_eq!(deliver(&stage, &event).await, 200, "{event}");
            assert_eq!(stage.message(&jwt).await.status, expected, "{event}");
        }
    }
}

#[tokio::test]
async fn what_stripe_did_not_sign_changes_nothing() {
    let stage = with_stripe().await;
    let body = checkout("evt_1", now()).to_string();
    let good = sign(WHSEC, now(), &body);
    let line = |value: &str| format!("Stripe-Signature: {value}\r\n");
    let spaced = body.replace(':', ": ");
    let cases = [
        ("no signature", String::new(), body.as_str()),
        (
            "another secret",
            line(&sign("whsec_other_0123456789", now(), &body)),
            &body,
        ),
        ("too old", line(&sign(WHSEC, now() - 302, &body)), &body),
        (
            "of the future",
            line(&sign(WHSEC, now() + 360, &body)),
            &body,
        ),
        ("another time", line(&good.replacen("t=", "t=1", 1)), &body),
        ("another body", line(&good), &spaced),
        ("v0 alone", line(&good.replace("v1=", "v0=")), &body),
        ("no time", line(good.split_once(',').unwrap().1), &body),
        ("two fields", line(&good).repeat(2), &body),
        ("nonsense", line("nonsense"), &body),
        ("empty", line(""), &body),
        ("no event", line(&sign(WHSEC, now(), "{}")), "{}"),
        ("no JSON", line(&sign(WHSEC, now(), "x")), "x"),
    ];
    for (what, lines, body) in cases {
        let answer = deliver_with(&stage, &lines, body).await;
        assert_eq!(answer.status, 400, "{what}");
        let told = answer.json();
        assert_eq!(told["details"]["_tag"], "BadRequest", "{what}");
    }
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 402);
    let big = "x".repeat(256 * 1024 + 1);
    let answer = deliver_with(&stage, &line(&good), &big).await;
    assert_eq!(answer.status, 413);
    let answer = stage
        .ask("GET /api/webhooks/stripe HTTP/1.1\r\nHost: v\r\n\r\n")
        .await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(deliver_with(&stage, &line(&good), &body).await.status, 200);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn what_overtakes_its_checkout_is_taken_over_by_it() {
    let stage = with_stripe().await;
    let jwt = jwt(ACCOUNT);
    let begun = now() - 1000;
    assert_eq!(
        deliver(&stage, &subscription("evt_2", begun, "trialing")).await,
        200
    );
    assert_eq!(stage.message(&jwt).await.status, 402);
    let object = json!({
        "client_reference_id": ACCOUNT, "customer": CUSTOMER, "subscription": SUBSCRIPTION,
        "payment_status": "no_payment_required",
    });
    let link = event("evt_1", "checkout.session.completed", begun, &object);
    assert_eq!(deliver(&stage, &link).await, 200);
    assert_eq!(stage.message(&jwt).await.status, 200);
    // Whoever pays for another account from then on pays for this one no more.
    let object = json!({ "client_reference_id": "42", "customer": CUSTOMER });
    let link = event("evt_3", "checkout.session.completed", begun + 1, &object);
    assert_eq!(deliver(&stage, &link).await, 200);
    assert_eq!(stage.message(&jwt).await.status, 402);
    assert_eq!(stage.message(&super::jwt("42")).await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_stripe_s_is_refused_before_its_body() {
    let stage = with_stripe().await;
    let good = sign(WHSEC, now(), "{}");
    for field in [
        String::new(),
        "Stripe-Signature: nonsense\r\n".to_owned(),
        format!("Stripe-Signature: {}\r\n", good.replace("v1=", "v0=")),
        format!("Stripe-Signature: {}\r\n", sign(WHSEC, now() - 302, "{}")),
        format!("Stripe-Signature: {good}\r\n").repeat(2),
    ] {
        // The body never comes.
        let answer = stage.ask(format!(
            "POST /api/webhooks/stripe HTTP/1.1\r\nHost: v\r\n{field}Content-Length: 9\r\n\r\n"
        ));
        assert_eq!(answer.await.status, 400, "{field}");
    }
    assert_eq!(deliver(&stage, &checkout("evt_1", now())).await, 200);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn the_webhook_s_secret_before_is_still_accepted() {
    const BEFORE: &str = "whsec_before_0123456789abcdef";
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.payment.stripe.webhook_secret = Some(secret(WHSEC));
        config.payment.stripe.webhook_secret_previous = Some(secret(BEFORE));
    });
    let stage = stage.await;
    let body = checkout("evt_1", now()).to_string();
    let line = format!("Stripe-Signature: {}\r\n", sign(BEFORE, now(), &body));
    assert_eq!(deliver_with(&stage, &line, &body).await.status, 200);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn without_a_secret_there_is_no_webhook() {
    let stage = Stage::new().await;
    for method in ["POST", "GET"] {
        let raw = format!("{method} /api/webhooks/stripe HTTP/1.1\r\nHost: v\r\n\r\n");
        let answer = stage.ask(raw).await;
        assert_eq!(answer.status, 404, "{method}");
    }
}

#[tokio::test]
async fn the_operator_s_word_stands_above_customers() {
    let stage = with_stripe().await;
    stage.pay(ACCOUNT, true).await;
    let deleted = json!({ "client_reference_id": ACCOUNT, "customer": CUSTOMER });
    let event = event(
        "evt_1",
        "customer.subscription.deleted",
        now() + 1,
        &deleted,
    );
    assert_eq!(deliver(&stage, &event).await, 200);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
    assert_eq!(stage.message(&jwt("42")).await.status, 402);
}

#[tokio::test]
async fn health_is_told_to_everybody() {
    let stage = Stage::new().await;
    let answer = stage
        .ask("GET /api/health HTTP/1.1\r\nHost: v\r\n\r\n")
        .await;
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (200, &json!("ok"))
    );
    let told = answer.json()["timestamp"].as_str().map(str::to_owned);
    assert!(
        told.is_some_and(|time| time.ends_with('Z')),
        "{}",
        answer.text()
    );
    let answer = stage
        .ask("POST /api/health HTTP/1.1\r\nHost: v\r\n\r\n")
        .await;
    assert_eq!(
        (answer.status, answer.header("allow")),
        (405, Some("GET,HEAD"))
    );
}
