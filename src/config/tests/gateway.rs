//! Tests of the gateway's settings: its secrets come from one place each, are long enough, are never
//! shown, and half a gateway is none.

use super::*;
use crate::gateway::ExtraPath;

const MODEL_KEY: (&str, &str) = ("OSHU_VAULT__GATEWAY__API_KEY", "canary-sk-ant-api03-key");
const JWT: (&str, &str) = (
    "OSHU_VAULT__GATEWAY__JWT_SECRET",
    "canary-0123456789abcdef0123456789",
);
const PREVIOUS: (&str, &str) = (
    "OSHU_VAULT__GATEWAY__JWT_SECRET_PREVIOUS",
    "canary-1123456789abcdef0123456789",
);

fn load(variables: &[(&str, &str)], file: &str) -> Result<Config, Vec<String>> {
    let all: Vec<_> = [KEY, HOME].iter().chain(variables).copied().collect();
    let given = Given {
        variables: &all,
        file: Some(file),
        ..Given::default()
    };
    given.load()
}

/// What the environment and the file say, and how the mistake is told.
type Mistake<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

#[test]
fn a_gateway_has_both_of_its_secrets() {
    assert!(!load(&[], "").unwrap().gateway.is_on());
    let file = "gateway.payment_url = 'https://pay.example.com/?a=b'\n\
                gateway.free_allowance = 5\ngateway.monthly_budget = 7\n\
                gateway.requests_per_minute = 9\ngateway.upstream = 'https://m.example/x'\n";
    let config = load(&[MODEL_KEY, JWT, PREVIOUS], file).unwrap();
    let gateway = &config.gateway;
    assert!(gateway.is_on());
    assert_eq!(gateway.upstream.as_str(), "https://m.example/x");
    let limits = (
        gateway.free_allowance,
        gateway.monthly_budget,
        gateway.requests_per_minute,
    );
    assert_eq!(limits, (Some(5), Some(7), Some(9)));
    let printed = format!("{}{config:?}", config.redacted());
    assert!(!printed.contains("canary"), "{printed}");
    for name in ["api_key", "jwt_secret", "jwt_secret_previous"] {
        let line = format!("# gateway.{name}: set (redacted)");
        assert!(printed.contains(&line), "{printed}");
    }
    let paths = ("OSHU_VAULT__GATEWAY__DANGER_EXTRA_PATHS", "/v1/a, /v1/b/c");
    let config = load(&[paths], "").unwrap();
    let added = config.gateway.extra_paths.iter().map(ExtraPath::as_str);
    assert_eq!(added.collect::<Vec<_>>(), ["/v1/a", "/v1/b/c"]);
    assert!(
        config
            .redacted()
            .contains("\ndanger_extra_paths = [\"/v1/a\", \"/v1/b/c\"]\n")
    );
    let wrong = load(
        &[],
        "gateway.danger_extra_paths = ['/v1/a', '/v1/models', '/v1/*']",
    );
    let wrong = wrong.unwrap_err();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    for (problem, entry) in wrong.iter().zip([2, 3]) {
        let start = format!("gateway.danger_extra_paths: entry {entry} expects a path");
        assert!(problem.starts_with(&start), "{wrong:?}");
    }
    let none = load(&[], "gateway.free_allowance = 'none'").unwrap();
    assert_eq!(none.gateway.free_allowance, None);
}

#[test]
fn mistakes_of_the_gateway_are_told_by_name() {
    let short = (JWT.0, "canary-0123456789abcdef01234567");
    let cases: [Mistake<'_>; 10] = [
        (
            &[MODEL_KEY, JWT],
            "gateway.danger_extra_paths = ['/v1/files']\ngateway.monthly_budget = 9",
            "gateway.danger_extra_paths: has no use beside gateway.monthly_budget: what they use cannot be counted (from /c.toml:1)",
        ),
        (
            &[JWT],
            "",
            "gateway.api_key: is needed beside gateway.jwt_secret (not set)",
        ),
        (
            &[MODEL_KEY],
            "",
            "gateway.jwt_secret: is needed beside gateway.api_key (not set)",
        ),
        (
            &[PREVIOUS],
            "",
            "gateway.jwt_secret: is needed beside gateway.jwt_secret_previous (not set)",
        ),
        (
            &[MODEL_KEY, short],
            "",
            "gateway.jwt_secret: expects at least 32 characters (from OSHU_VAULT__GATEWAY__JWT_SECRET)",
        ),
        (
            &[MODEL_KEY, JWT],
            "gateway.api_key_file = '/key'",
            "gateway.api_key_file: is given beside gateway.api_key (from OSHU_VAULT__GATEWAY__API_KEY) (from /c.toml:1)",
        ),
        (
            &[MODEL_KEY],
            "gateway.jwt_secret_file = '/key'",
            "gateway.jwt_secret_file: expects at least 32 characters (from /c.toml:1)",
        ),
        (
            &[MODEL_KEY],
            "gateway.jwt_secret_file = '/open'",
            "gateway.jwt_secret_file: names a file that others than its owner may use: chmod 600 (from /c.toml:1)",
        ),
        (
            &[],
            "gateway.upstream = 'http://canary.example'",
            "gateway.upstream: expects https://HOST[:PORT][/PATH], or the same with http for a loopback address, without user, query or escapes (from /c.toml:1)",
        ),
        (
            &[],
            "gateway.payment_url = 'javascript:canary'",
            "gateway.payment_url: expects an http:// or https:// URL of at most 512 visible characters (from /c.toml:1)",
        ),
    ];
    for (variables, file, expected) in cases {
        assert_eq!(load(variables, file).unwrap_err(), [expected], "{file}");
    }
    // A file in place of the variable.
    let config = load(&[JWT], "gateway.api_key_file = '/key'").unwrap();
    assert_eq!(
        config.gateway.api_key.unwrap().expose(),
        b"canary-from-a-file"
    );
}

#[test]
fn what_each_node_would_keep_for_itself_is_refused_on_a_store_of_several() {
    const WORKOS: (&str, &str) = (
        "OSHU_VAULT__PAYMENT__WORKOS__API_KEY",
        "canary-workos-key-0123456789",
    );
    let allows = "; gateway.danger_books_per_node = true allows it where one node alone gets the \
                  gateway's calls and webhooks";
    let provider = |place: &str| {
        format!(
            "payment.provider: expects workos where store.url is of several nodes: each would know \
             payments of its own{allows} ({place})"
        )
    };
    let counts = |key: &str, line: usize| {
        format!(
            "gateway.{key}: expects none where store.url is of several nodes: each would count for \
             itself{allows} (from /c.toml:{line})"
        )
    };
    let shared = "store.url = 'redis://127.0.0.1:6379/0'\n";
    let file = format!("{shared}gateway.monthly_budget = 7\ngateway.free_allowance = 5\n");
    let both = [MODEL_KEY, JWT];
    let all = [
        provider("not set"),
        counts("monthly_budget", 2),
        counts("free_allowance", 3),
    ];
    assert_eq!(load(&both, &file).unwrap_err(), all);
    let said = format!("{shared}payment.provider = 'local'");
    assert_eq!(
        load(&both, &said).unwrap_err(),
        [provider("from /c.toml:2")]
    );
    let workos = format!("{file}payment.provider = 'workos'");
    assert_eq!(
        load(&[MODEL_KEY, JWT, WORKOS], &workos).unwrap_err(),
        all[1..]
    );
    let none = format!(
        "{shared}payment.provider = 'workos'\ngateway.monthly_budget = 'none'\n\
         gateway.free_allowance = 'none'"
    );
    for (variables, file) in [
        (&[MODEL_KEY, JWT, WORKOS][..], none.as_str()),
        // Without a gateway nothing is spent; and the operator may say that one node alone is asked.
        (&[], &file),
        (
            &both,
            &format!("{file}gateway.danger_books_per_node = true"),
        ),
        (&both, "gateway.monthly_budget = 7"),
        (&both, "store.url = 'memory'"),
    ] {
        load(variables, file).unwrap();
    }
}

#[test]
fn an_app_of_github_has_an_id() {
    const SECRET: (&str, &str) = ("OSHU_VAULT__GITHUB__CLIENT_SECRET", "canary-client-secret");
    let file = "github.client_id = 'Iv1.x'\ngithub.return_to = ['https://a.example', 'myapp://']\n\
                github.requests_per_minute = 3\ngithub.url = 'https://git.example'\n\
                github.pkce = 'required'\n";
    let config = load(&[SECRET], file).unwrap();
    let github = &config.github;
    let places: Vec<&str> = github.return_to.iter().map(ReturnTo::as_str).collect();
    assert_eq!(places, ["https://a.example", "myapp://"]);
    assert_eq!(github.client_id.as_ref().unwrap().as_str(), "Iv1.x");
    assert_eq!(
        (github.requests_per_minute, github.url.as_str()),
        (3, "https://git.example")
    );
    assert_eq!(github.pkce, Pkce::Required);
    let printed = format!("{}{config:?}", config.redacted());
    assert!(!printed.contains("canary"), "{printed}");
    assert!(
        printed.contains("# github.client_secret: set (redacted)"),
        "{printed}"
    );
    let none = load(&[], "").unwrap().github;
    assert!(none.client_id.is_none() && none.return_to.is_empty());
    assert_eq!(none.pkce, Pkce::Optional);
    let cases: [Mistake<'_>; 6] = [
        (
            &[],
            "github.client_id = 'x'\ngithub.pkce = true",
            "github.pkce: expects optional or required",
        ),
        (
            &[SECRET],
            "",
            "github.client_id: is needed beside github.client_secret (not set)",
        ),
        (
            &[],
            "github.return_to = ['https://a.example']",
            "github.client_id: is needed beside github.return_to (not set)",
        ),
        (
            &[],
            "github.client_secret = 'canary-client-secret'",
            "github.client_secret: must not be given here: set OSHU_VAULT__GITHUB__CLIENT_SECRET or github.client_secret_file (from /c.toml:1)",
        ),
        (
            &[],
            "github.api_url = 'https://api.git.example'",
            "github.api_url: not available in this version (from /c.toml:1)",
        ),
        (
            &[],
            "github.client_id = 'x'\ngithub.return_to = ['https://canary@a.example']",
            "github.return_to: entry 1 expects https://HOST",
        ),
    ];
    for (variables, file, expected) in cases {
        let problems = load(variables, file).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{file}: {problems:?}");
    }
}

#[test]
fn only_who_is_asked_has_secrets() {
    const WORKOS: (&str, &str) = (
        "OSHU_VAULT__PAYMENT__WORKOS__API_KEY",
        "canary-sk_workos_0123456789",
    );
    const STRIPE: (&str, &str) = (
        "OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET",
        "canary-whsec_0123456789",
    );
    const BEFORE: (&str, &str) = (
        "OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET_PREVIOUS",
        "canary-whsec_before_0123456789",
    );
    let workos = "payment.provider = 'workos'";
    let config = load(&[WORKOS], workos).unwrap();
    assert_eq!(config.payment.provider, PaymentProvider::Workos);
    assert!(!format!("{config:?}{}", config.redacted()).contains("canary"));
    let config = load(&[STRIPE, BEFORE], "").unwrap();
    assert!(config.payment.stripe.webhook_secret_previous.is_some());
    let cases: [Mistake<'_>; 6] = [
        (
            &[],
            workos,
            "payment.workos.api_key: is needed beside payment.provider = \"workos\" (not set)",
        ),
        (
            &[WORKOS],
            "",
            "payment.workos.api_key: has no use without payment.provider = \"workos\" (from OSHU_VAULT__PAYMENT__WORKOS__API_KEY)",
        ),
        (
            &[WORKOS, STRIPE],
            workos,
            "payment.stripe.webhook_secret: has no use without payment.provider = \"local\" (from OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET)",
        ),
        (
            &[BEFORE],
            "",
            "payment.stripe.webhook_secret: is needed beside payment.stripe.webhook_secret_previous (not set)",
        ),
        (
            &[],
            "payment.provider = 'canary'",
            "payment.provider: expects local or workos (from /c.toml:1)",
        ),
        (
            &[],
            "payment.workos.metadata_value = ''",
            "payment.workos.metadata_value: expects 1 to 600 visible ASCII characters without blanks (from /c.toml:1)",
        ),
    ];
    for (variables, file, expected) in cases {
        assert_eq!(load(variables, file).unwrap_err(), [expected], "{file}");
    }
}
