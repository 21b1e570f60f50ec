//! Merge patches: what each one makes of a session, and what it must leave alone.

use super::*;

fn secret(shown: &Value, name: &str) -> Value {
    let secrets = shown["secrets"].as_array().unwrap();
    secrets
        .iter()
        .find(|secret| secret["name"] == name)
        .cloned()
        .unwrap_or_default()
}

#[tokio::test]
async fn a_patch_changes_what_it_names() {
    let long = json!({"name": "OWN", "hosts": ["api.example.com"],
        "inject": ["header:X-Key", "query"]});
    let cases: [(Value, &str, Value); 16] = [
        (json!({"ttl_seconds": 600}), "/ttl_seconds", json!(600)),
        (json!({"ttl_seconds": null}), "/ttl_seconds", json!(86_400)),
        (
            json!({"max_lifetime_seconds": 90_000}),
            "/max_lifetime_seconds",
            json!(90_000),
        ),
        (
            json!({"allowed_egress": ["b.example"]}),
            "/allowed_egress",
            json!(["b.example"]),
        ),
        (json!({"allowed_egress": []}), "/allowed_egress", json!([])),
        (
            json!({"allowed_egress": null}),
            "/allowed_egress",
            Value::Null,
        ),
        (
            json!({"secret_hosts": ["c.example"]}),
            "/secret_hosts",
            json!(["c.example"]),
        ),
        (json!({"inject": ["query"]}), "/inject", json!(["query"])),
        (json!({"inject": null}), "/inject", json!(["header"])),
        (
            json!({"allow_plaintext": true}),
            "/allow_plaintext",
            json!(true),
        ),
        (
            json!({"metadata": {"more": "1"}}),
            "/metadata",
            json!({"sandbox": "sb_1", "more": "1"}),
        ),
        (
            json!({"metadata": {"sandbox": null}}),
            "/metadata",
            json!({}),
        ),
        (json!({"metadata": null}), "/metadata", json!({})),
        (json!({"secrets": null}), "/secrets", json!([])),
        (
            json!({"secrets": {"ANTHROPIC_API_KEY": null}}),
            "/secrets",
            json!([long]),
        ),
        (json!({}), "/secrets/1", long.clone()),
    ];
    let api = Api::new();
    for (patch, pointer, expected) in cases {
        let path = api.session(&two_secrets()).await;
        let before = api.show(&path).await;
        let answer = api.patch(&path, &patch).await;
        assert_eq!(answer.status, 200, "{patch}: {answer:?}");
        let after = answer.json();
        assert_eq!(after.pointer(pointer), Some(&expected), "{patch}");
        assert_eq!(after["sealed_secrets"], json!({}), "{patch}");
        assert_eq!(after["warnings"], json!([]), "{patch}");
        assert_eq!(after["version"], 2, "{patch}");
        let shown = api.show(&path).await;
        let changed = pointer.split('/').nth(1).unwrap();
        // What the session says counts for secrets that say nothing of their own.
        let effective = ["secret_hosts", "inject"].contains(&changed);
        for (name, value) in shown.as_object().unwrap() {
            let moves = [changed, "version", "expires_at"].contains(&name.as_str());
            let moves = moves || (effective && name == "secrets");
            assert!(moves || *value == before[name], "{patch} changed {name}");
        }
    }
}

#[tokio::test]
async fn a_secret_is_rotated_narrowed_or_added() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let own = secret(&api.show(&path).await, "OWN");
    // A text replaces the value alone: the rest of the long form stays.
    let answer = api
        .patch(&path, &json!({"secrets": {"OWN": "canary-rotated"}}))
        .await
        .json();
    assert_eq!(answer["sealed_secrets"], json!({}));
    assert_eq!(secret(&answer, "OWN"), own);
    // An object merges field by field.
    let change = json!({"secrets": {"OWN": {"hosts": ["two.example.com"]}}});
    let answer = api.patch(&path, &change).await.json();
    assert_eq!(secret(&answer, "OWN")["hosts"], json!(["two.example.com"]));
    assert_eq!(secret(&answer, "OWN")["inject"], own["inject"]);
    let change = json!({"secrets": {"OWN": {"inject": null}}});
    let answer = api.patch(&path, &change).await.json();
    assert_eq!(secret(&answer, "OWN")["inject"], json!(["header"]));
    // A new name gets a sealed token, and only that one is told.
    let new = json!({"value": CANARY, "hosts": ["three.example.com"]});
    let answer = api
        .patch(&path, &json!({"secrets": {"NEW": new}}))
        .await
        .json();
    let sealed = answer["sealed_secrets"].as_object().unwrap();
    assert_eq!(sealed.keys().collect::<Vec<_>>(), ["NEW"]);
    assert!(sealed["NEW"].as_str().unwrap().starts_with("SEALED_"));
    assert_eq!(answer["secrets"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_bad_patch_names_its_fields_and_changes_nothing() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let before = api.show(&path).await;
    let cases = [
        (json!([]), vec!["body wrong_type"]),
        (
            json!({"secrets": {"OWN": {"value": null}}}),
            vec!["secrets.OWN.value required"],
        ),
        (
            json!({"secrets": {"OWN": {"hosts": null}}}),
            vec!["secrets.OWN secret_unscoped"],
        ),
        (
            json!({"secrets": {"OWN": {"hosts": "canary"}}}),
            vec!["secrets.OWN.hosts wrong_type"],
        ),
        (
            json!({"secrets": {"NEW": {"hosts": ["a.example"]}}}),
            vec!["secrets.NEW.value required"],
        ),
        (
            json!({"secrets": {"NEW": CANARY}}),
            vec!["secrets.NEW secret_unscoped"],
        ),
        (
            json!({"session_id": "canary"}),
            vec!["session_id unknown_field"],
        ),
        (
            json!({"passthrough_hosts": ["a.example"]}),
            vec!["passthrough_hosts[0] not_in_allowed_egress"],
        ),
        (
            json!({"allowed_egress": ["*"], "ttl_seconds": "1"}),
            vec!["ttl_seconds wrong_type", "allowed_egress[0] bad_host"],
        ),
    ];
    for (patch, expected) in cases {
        let answer = api.patch(&path, &patch).await;
        answer.is_problem(422, "invalid_fields");
        assert_eq!(answer.errors(), expected, "{patch}");
    }
    let mut after = api.show(&path).await;
    after["expires_at"] = before["expires_at"].clone();
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_patch_is_json_or_a_merge_patch() {
    let api = Api::new();
    let path = api.session(&two_secrets()).await;
    let cases = [
        ("application/json", 200),
        ("application/merge-patch+json; charset=utf-8", 200),
        ("application/json-patch+json", 415),
    ];
    for (kind, status) in cases {
        let fields = [("content-type", kind)];
        let answer = api.raw(ONE, Method::PATCH, &path, &fields, "{}").await;
        assert_eq!(answer.status, status, "{kind}");
    }
}
