//! Tests of the upstream proxy: where its URL may stand, what is refused, and what is printed.

use super::*;

const VARIABLE: &str = "OSHU_VAULT__UPSTREAM__PROXY";
const URL: &str = "http://canary:canary@p.example:3128";

fn load(variables: &[(&str, &str)], file: Option<&str>) -> Result<Config, Vec<String>> {
    let all: Vec<_> = [KEY, HOME].iter().chain(variables).copied().collect();
    let given = Given {
        variables: &all,
        file,
        ..Given::default()
    };
    given.load()
}

#[test]
fn the_upstream_proxy_is_printed_without_its_credentials() {
    let shown = "proxy = \"http://[redacted]@p.example:3128\"\n";
    let none = "proxy = \"none\"\n";
    let other = Some("upstream.proxy = 'http://p:1'");
    for (variables, file, expected) in [
        (&[][..], None, none),
        (&[], other, "proxy = \"http://p:1\"\n"),
        (&[(VARIABLE, URL)], None, shown),
        (&[(VARIABLE, URL)], other, shown),
        (&[(VARIABLE, "none")], other, none),
        (&[], Some("upstream.proxy_file = '/proxy'"), shown),
    ] {
        let config = load(variables, file).unwrap();
        let printed = config.redacted();
        assert!(printed.contains(expected), "{printed}");
        assert!(!printed.contains("canary"), "{printed}");
        assert!(!format!("{config:?}").contains("canary"));
        // Credentials that were taken out do not come back as others, nor as no proxy.
        let refused = with_file(&printed).is_err();
        assert_eq!(refused, expected == shown, "{printed}");
    }
}

#[test]
fn the_upstream_proxy_comes_from_one_place_and_problems_do_not_show_it() {
    let url = "http://[USER[:PASSWORD]@]HOST:PORT or the same with https, with special characters \
               of user and password percent-encoded";
    for (variables, file, expected) in [
        (
            &[][..],
            "upstream.proxy = 'http://canary:canary@p.example'",
            format!("upstream.proxy: expects {url} (from /c.toml:1)"),
        ),
        (
            &[(VARIABLE, "http://canary:c@c@p.example:1")],
            "",
            format!("upstream.proxy: expects {url} (from {VARIABLE})"),
        ),
        (
            &[(VARIABLE, URL)],
            "upstream.proxy_file = '/proxy'",
            format!(
                "upstream.proxy_file: is given beside upstream.proxy (from {VARIABLE}) (from /c.toml:1)"
            ),
        ),
        (
            &[],
            "upstream.proxy_file = '/open'",
            "upstream.proxy_file: names a file that others than its owner may use: chmod 600 \
             (from /c.toml:1)"
                .to_owned(),
        ),
        (
            &[],
            "upstream.proxy_file = '/key'",
            format!("upstream.proxy_file: names a file that should hold {url} (from /c.toml:1)"),
        ),
    ] {
        assert_eq!(
            load(variables, Some(file)).unwrap_err(),
            [expected],
            "{file}"
        );
    }
}

#[test]
fn the_upstream_proxy_is_not_one_of_our_listeners() {
    let listeners = "proxy.listen = '0.0.0.0:8080'\nproxy.public_url = 'https://v.example:8443'\n";
    for (url, ours) in [
        ("http://127.0.0.1:8080", true),
        ("https://localhost:8080", true),
        ("http://[::1]:8080", true),
        ("http://127.0.0.1:9090", true),
        ("http://v.example:8443", true),
        ("http://127.0.0.1:3128", false),
        ("http://10.0.0.1:8080", false),
        ("http://v.example:8080", false),
    ] {
        let problems = with_file(&format!("{listeners}upstream.proxy = '{url}'")).err();
        let expected = ours.then(|| {
            vec!["upstream.proxy: expects another proxy than this one (from /c.toml:3)".to_owned()]
        });
        assert_eq!(problems, expected, "{url}");
    }
}
