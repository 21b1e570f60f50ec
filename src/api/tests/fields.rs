//! Every bad input names its field, all at once, and never a value.

use super::*;

const DEEP: &str = "[[[[[[[[";

/// Checks that each body is refused for one field, and that nothing was created.
async fn each_is_refused(cases: impl IntoIterator<Item = (Value, &str)>) {
    let api = Api::new();
    for (body, expected) in cases {
        let answer = api.post(&body).await;
        answer.is_problem(422, "invalid_fields");
        assert_eq!(answer.errors(), [expected], "{body}");
    }
    let list = api.show("/v1/sessions").await;
    assert_eq!(list["sessions"], json!([]));
}

#[tokio::test]
async fn a_bad_field_of_a_secret_is_named() {
    let ok = json!({"value": CANARY, "hosts": ["a.example.com"]});
    let with = |name: &str, value: Value| {
        let mut secret = ok.clone();
        secret[name] = value;
        json!({"secrets": {"X": secret}})
    };
    each_is_refused([
        (json!([]), "body wrong_type"),
        (json!("canary"), "body wrong_type"),
        (json!({}), "secrets required"),
        (json!({"secrets": null}), "secrets required"),
        (json!({"secrets": [CANARY]}), "secrets wrong_type"),
        (json!({"secrets": {"X": 1}}), "secrets.X wrong_type"),
        (json!({"secrets": {"X": [CANARY]}}), "secrets.X wrong_type"),
        (
            json!({"secrets": {"X": CANARY}}),
            "secrets.X secret_unscoped",
        ),
        (
            json!({"secrets": {"AWS_SECRET_ACCESS_KEY": CANARY}}),
            "secrets.AWS_SECRET_ACCESS_KEY secret_signs",
        ),
        (json!({"secrets": {"a b": ok}}), "secrets.a b bad_name"),
        (
            json!({"secrets": {"X": {"hosts": ["a.example.com"]}}}),
            "secrets.X.value required",
        ),
        (
            with("value", json!(12_345_678)),
            "secrets.X.value wrong_type",
        ),
        (with("value", Value::Null), "secrets.X.value required"),
        (
            with("value", json!("short")),
            "secrets.X.value secret_too_short",
        ),
        (
            with("value", json!("x".repeat(8193))),
            "secrets.X.value secret_too_long",
        ),
        (
            with("value", json!("canary\r\ncanary")),
            "secrets.X.value secret_has_control_character",
        ),
        (
            with("hosts", json!("a.example.com")),
            "secrets.X.hosts wrong_type",
        ),
        (
            with("hosts", json!(["a.example.com", 1])),
            "secrets.X.hosts[1] wrong_type",
        ),
        (
            with("hosts", json!(["a.example.com", "*.b.example"])),
            "secrets.X.hosts[1] bad_host",
        ),
        (with("hosts", json!([])), "secrets.X.hosts secret_unscoped"),
        (with("inject", json!(true)), "secrets.X.inject wrong_type"),
        (
            with("inject", json!(["header", {}])),
            "secrets.X.inject[1] wrong_type",
        ),
        (
            with("inject", json!(["cookie"])),
            "secrets.X.inject[0] bad_place",
        ),
        (
            with("inject", json!(["header:Host"])),
            "secrets.X.inject[0] header_not_allowed",
        ),
        (with("prefix", json!(1)), "secrets.X.prefix wrong_type"),
        (with("prefix", json!("a b")), "secrets.X.prefix bad_prefix"),
        (with("scope", json!("all")), "secrets.X.scope unknown_field"),
    ])
    .await;
}

#[tokio::test]
async fn a_bad_field_of_a_session_is_named() {
    let beside = |name: &str, value: Value| json!({"secrets": {}, name: value});
    each_is_refused([
        (beside("secret_hosts", json!({})), "secret_hosts wrong_type"),
        (
            beside("secret_hosts", json!(["*"])),
            "secret_hosts[0] bad_host",
        ),
        (
            beside("allowed_egress", json!("*")),
            "allowed_egress wrong_type",
        ),
        (
            beside("allowed_egress", json!([null])),
            "allowed_egress[0] wrong_type",
        ),
        (
            beside("allowed_egress", json!(["*"])),
            "allowed_egress[0] bad_host",
        ),
        (
            beside("allowed_egress", json!(["a.example.com", "10.0.0.0/8"])),
            "allowed_egress[1] bad_host",
        ),
        (beside("inject", json!("header")), "inject wrong_type"),
        (beside("inject", json!([])), "inject empty_list"),
        (beside("ttl_seconds", json!("60")), "ttl_seconds wrong_type"),
        (beside("ttl_seconds", json!(-60)), "ttl_seconds wrong_type"),
        (beside("ttl_seconds", json!(60.5)), "ttl_seconds wrong_type"),
        (beside("ttl_seconds", json!(59)), "ttl_seconds out_of_range"),
        (
            beside("max_lifetime_seconds", json!(true)),
            "max_lifetime_seconds wrong_type",
        ),
        (
            beside("allow_plaintext", json!("yes")),
            "allow_plaintext wrong_type",
        ),
        (beside("metadata", json!([])), "metadata wrong_type"),
        (beside("metadata", json!({"a": 1})), "metadata.a wrong_type"),
        (
            beside("metadata", json!({"a": "x".repeat(1025)})),
            "metadata too_large",
        ),
        (
            beside("scrub_responses", json!(1)),
            "scrub_responses wrong_type",
        ),
        (beside("capture", json!({})), "capture wrong_type"),
        (
            beside("capture", json!(["https://a.example/t", 1])),
            "capture[1] wrong_type",
        ),
        (beside("capture", json!(["t"])), "capture[0].url bad_url"),
        (
            beside("capture", json!([{"hosts": ["a.example"]}])),
            "capture[0].url required",
        ),
        (
            beside(
                "capture",
                json!([{"url": "https://a.example/t", "host": []}]),
            ),
            "capture[0].host unknown_field",
        ),
        (
            beside(
                "capture",
                json!([{"url": "https://a.example/t", "hosts": []}]),
            ),
            "capture[0].hosts secret_unscoped",
        ),
        (
            beside("allowed_egres", json!([])),
            "allowed_egres unknown_field",
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_bad_list_of_hosts_to_pass_through_is_named() {
    let beside = |value: Value| json!({"secrets": {}, "passthrough_hosts": value});
    each_is_refused([
        (
            beside(json!(["a.example.com", "*"])),
            "passthrough_hosts[1] bad_host",
        ),
        (
            json!({
                "secrets": {},
                "allowed_egress": ["a.example.com"],
                "passthrough_hosts": ["a.example.com", "b.example.com"],
            }),
            "passthrough_hosts[1] not_in_allowed_egress",
        ),
        (
            json!({
                "secrets": {},
                "allowed_egress": [1],
                "passthrough_hosts": ["a.example.com"],
            }),
            "allowed_egress[0] wrong_type",
        ),
        (
            json!({
                "secrets": {"ANTHROPIC_API_KEY": CANARY},
                "passthrough_hosts": ["api.anthropic.com"],
            }),
            "passthrough_hosts[0] overlaps_secret",
        ),
        (beside(json!("a")), "passthrough_hosts wrong_type"),
        (beside(json!([1])), "passthrough_hosts[0] wrong_type"),
    ])
    .await;
}

#[tokio::test]
async fn all_bad_fields_are_told_at_once() {
    let body = json!({
        "secrets": {
            "A": {"value": "short", "hosts": ["ok.example.com", 7, "*.x.example"], "hots": []},
            "B": "canary-but-unscoped",
        },
        "allowed_egress": 3,
        "max_lifetime_seconds": "long",
        "ttl_seconds": 1_000_000,
        "scrub_responses": "yes",
        "typo": 1,
    });
    let answer = Api::new().post(&body).await;
    answer.is_problem(422, "invalid_fields");
    let mut errors = answer.errors();
    errors.sort();
    let expected = [
        "allowed_egress wrong_type",
        "max_lifetime_seconds wrong_type",
        "scrub_responses wrong_type",
        "secrets.A.hosts[1] wrong_type",
        "secrets.A.hosts[2] bad_host",
        "secrets.A.hots unknown_field",
        "secrets.A.value secret_too_short",
        "secrets.B secret_unscoped",
        "typo unknown_field",
    ];
    assert_eq!(errors, expected);
}

#[tokio::test]
async fn null_and_what_changes_nothing_are_accepted() {
    let api = Api::new();
    let names = [
        "secret_hosts",
        "allowed_egress",
        "inject",
        "ttl_seconds",
        "max_lifetime_seconds",
        "allow_plaintext",
        "metadata",
        "passthrough_hosts",
        "scrub_responses",
        "capture",
    ];
    let mut body = json!({"secrets": {"X": null}});
    for name in names {
        body[name] = Value::Null;
    }
    let path = api.session(&body).await;
    let shown = api.show(&path).await;
    assert_eq!(shown["allowed_egress"], Value::Null);
    assert_eq!(shown["secrets"], json!([]));
    let body = json!({"secrets": {}, "passthrough_hosts": [], "scrub_responses": false});
    api.session(&body).await;
}

#[tokio::test]
async fn a_bad_body_is_400_413_or_415() {
    let api = Api::new();
    let huge = format!("{{\"secrets\":{{\"X\":\"{}\"}}}}", "x".repeat(1024 * 1024));
    let deep = DEEP.repeat(20);
    let json = [("content-type", "application/json")];
    let merge = [("content-type", "application/merge-patch+json")];
    let gzip = [("content-encoding", "gzip")];
    let cases: [(Fields<'_>, &[u8], u16, &str); 10] = [
        (&json, b"", 400, "bad_json"),
        (&json, b"{\"secrets\":canary}", 400, "bad_json"),
        (&[], b"{\"secrets\":{}} canary", 400, "bad_json"),
        (
            &[],
            b"{\"secrets\":{\"X\":\"canary\xff\"}}",
            400,
            "bad_json",
        ),
        (&json, deep.as_bytes(), 400, "bad_json"),
        (
            &json,
            b"{\"secrets\":{\"X\":\"canary-1\",\"X\":\"canary-2\"}}",
            400,
            "duplicate_key",
        ),
        (&json, huge.as_bytes(), 413, "body_too_large"),
        (
            &[("content-type", "text/plain")],
            b"{\"secrets\":{}}",
            415,
            "unsupported_media_type",
        ),
        (&merge, b"{\"secrets\":{}}", 415, "unsupported_media_type"),
        (&gzip, b"{\"secrets\":{}}", 415, "unsupported_media_type"),
    ];
    for (fields, body, status, code) in cases {
        let answer = api
            .raw(ONE, Method::POST, "/v1/sessions", fields, body.to_vec())
            .await;
        answer.is_problem(status, code);
        if code == "duplicate_key" {
            assert_eq!(answer.errors(), ["secrets.X duplicate_key"]);
        }
    }
}
