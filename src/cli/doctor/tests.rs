//! Tests of what is read off an environment: for each client, what it lacks and what to type.

use std::cell::OnceCell;
use std::ffi::OsString;

use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::look::{Kind, covers};
use super::*;
use crate::authority::certificate_pem;
use crate::client_env::{Files, client_env, trust_store};

const URL: &str = "http://sess_1:tok_2@127.0.0.1:8080";

struct Place(tempfile::TempDir);

impl Place {
    /// Writes our root alone, a bundle, and somebody else's root.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pem = |index: usize| certificate_pem(&TLS_SERVER_ROOT_CERTS[index]);
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        write("root", pem(0));
        write("bundle", pem(1) + &pem(0));
        write("others", pem(1));
        write("empty", String::new());
        write("preload", String::new());
        write(
            "wgetrc",
            format!("ca_certificate = {}/bundle\n", folder.path().display()),
        );
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Makes an environment; `@` stands for the folder and `URL` for the proxy's.
    fn world(&self, variables: &[(&str, &str)], node: &str) -> World {
        let value = |text: &str| text.replace('@', &self.path("")).replace("URL", URL);
        let variables = variables
            .iter()
            .map(|(name, text)| (name.into(), value(text).into()));
        let files = Files {
            ca: self.path("root").into(),
            bundle: self.path("bundle").into(),
            wgetrc: self.path("wgetrc").into(),
            trust_store: None,
            preload: Some(self.path("preload").into()),
        };
        World {
            variables: variables.collect(),
            proxy: ProxyUrl::parse(URL).unwrap(),
            proxy_variable: None,
            ca_pem: certificate_pem(&TLS_SERVER_ROOT_CERTS[0]),
            host: "probe.invalid".to_owned(),
            node: Some(node.to_owned()),
            ca_dir: None,
            system: false,
            lay_out: Box::new(|| None),
            files: OnceCell::from(Some(files)),
        }
    }

    /// Returns the kinds of what is found, and the advice with the folder as `@`.
    fn look(&self, client: &str, world: &World) -> Vec<(Kind, String)> {
        let client = CLIENTS.iter().find(|known| known.name == client).unwrap();
        let found = look(client, world).into_iter();
        let advice = |found: &Finding| found.advice.clone().unwrap_or_default();
        found
            .map(|found| (found.kind, advice(&found).replace(&self.path(""), "@")))
            .collect()
    }
}

/// A client, the variables it has, and the kinds of what is found with the advice.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [(Kind, &'static str)],
);
const CASES: &[Case] = &[
    (
        "curl",
        &[("https_proxy", "URL"), ("SSL_CERT_FILE", "@bundle")],
        &[],
    ),
    (
        "curl",
        &[("ALL_PROXY", "URL"), ("SSL_CERT_FILE", "@root")],
        &[(Kind::Trap, "export SSL_CERT_FILE=@bundle")],
    ),
    (
        "curl",
        &[
            ("HTTPS_PROXY", "URL"),
            ("CURL_CA_BUNDLE", "@others"),
            ("SSL_CERT_FILE", "@bundle"),
        ],
        &[(Kind::Trust, "export CURL_CA_BUNDLE=@bundle")],
    ),
    // The file of the environment that will do is named, not another one.
    (
        "requests",
        &[
            ("HTTPS_PROXY", "URL"),
            ("REQUESTS_CA_BUNDLE", "@nothing"),
            ("PIP_CERT", "@bundle"),
        ],
        &[(Kind::Trust, "export REQUESTS_CA_BUNDLE=@bundle")],
    ),
    (
        "httpx",
        &[("HTTPS_PROXY", "URL")],
        &[(Kind::Trust, "export SSL_CERT_FILE=@bundle")],
    ),
    (
        "httpx",
        &[("HTTPS_PROXY", "URL"), ("SSL_CERT_FILE", "@empty")],
        &[(Kind::Trust, "export SSL_CERT_FILE=@bundle")],
    ),
    (
        "wget",
        &[("HTTPS_PROXY", "URL"), ("SSL_CERT_FILE", "@bundle")],
        &[
            (Kind::Way, "export https_proxy=\"$HTTPS_PROXY\""),
            (Kind::Trust, "export WGETRC=@wgetrc"),
        ],
    ),
    (
        "wget",
        &[("https_proxy", "URL"), ("WGETRC", "@wgetrc")],
        &[],
    ),
    // A session of before: its credential is another.
    (
        "go",
        &[
            ("HTTPS_PROXY", "http://a:b@127.0.0.1:8080"),
            ("https_proxy", "URL"),
            ("SSL_CERT_FILE", "@root"),
        ],
        &[(Kind::Way, "export HTTPS_PROXY=\"$https_proxy\"")],
    ),
    (
        "go",
        &[
            ("HTTPS_PROXY", "URL"),
            ("SSL_CERT_FILE", "@bundle"),
            ("NO_PROXY", "a.example, .invalid"),
        ],
        &[(Kind::Way, "export NO_PROXY=localhost,127.0.0.1,::1")],
    ),
    (
        "npm",
        &[("HTTPS_PROXY", "URL"), ("npm_config_cafile", "@root")],
        &[(Kind::Trap, "export npm_config_cafile=@bundle")],
    ),
    (
        "npm",
        &[("HTTPS_PROXY", "URL")],
        &[(Kind::Trust, "export NPM_CONFIG_CAFILE=@bundle")],
    ),
    (
        "bun",
        &[
            ("HTTPS_PROXY", "URL"),
            ("NODE_EXTRA_CA_CERTS", "@others"),
            ("SSL_CERT_FILE", "@bundle"),
        ],
        &[],
    ),
    (
        "deno",
        &[("HTTPS_PROXY", "URL")],
        &[(Kind::Trust, "export DENO_CERT=@root")],
    ),
    (
        "codex",
        &[
            ("HTTPS_PROXY", "URL"),
            ("SSL_CERT_FILE", "@bundle"),
            ("SSL_CERT_DIR", "/x"),
        ],
        &[(Kind::Trap, "unset SSL_CERT_DIR")],
    ),
    (
        "git",
        &[
            ("HTTPS_PROXY", "URL"),
            ("GIT_SSL_CAINFO", "@bundle"),
            ("GIT_SSL_NO_VERIFY", "1"),
        ],
        &[(Kind::Trap, "unset GIT_SSL_NO_VERIFY")],
    ),
    (
        "claude",
        &[("HTTP_PROXY", "URL"), ("NODE_EXTRA_CA_CERTS", "@root")],
        &[],
    ),
];

#[test]
fn every_client_is_told_what_it_lacks() {
    let place = Place::new();
    for (client, variables, expected) in CASES {
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, a)| (*k, (*a).to_owned()))
            .collect();
        let world = place.world(variables, "v24.0.0");
        assert_eq!(
            place.look(client, &world),
            expected,
            "{client} {variables:?}"
        );
    }
}

/// What `run` and `env` set is what `doctor` wants, for every client it knows.
#[test]
fn the_whole_block_leaves_nothing_to_say() {
    let place = Place::new();
    let root = certificate_pem(&TLS_SERVER_ROOT_CERTS[0]);
    std::fs::write(place.path("store"), trust_store(&root)).unwrap();
    for version in ["v20.1.0", "v24.0.0"] {
        let files = Files {
            ca: place.path("root").into(),
            bundle: place.path("bundle").into(),
            wgetrc: place.path("wgetrc").into(),
            trust_store: Some(place.path("store").into()),
            preload: needs_preload(version).then(|| place.path("preload").into()),
        };
        let block = client_env(&ProxyUrl::parse(URL).unwrap(), &files, |_| None).set;
        let text = |value: &OsString| value.to_str().unwrap().replace(URL, "URL");
        let block: Vec<_> = block
            .iter()
            .map(|(name, value)| (*name, text(value)))
            .collect();
        let block: Vec<_> = block
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let world = place.world(&block, version);
        for client in CLIENTS {
            assert_eq!(look(client, &world), [], "{}", client.name);
        }
    }
}

#[test]
fn node_is_told_by_its_release() {
    let place = Place::new();
    let base = [("HTTPS_PROXY", "URL"), ("NODE_EXTRA_CA_CERTS", "@root")];
    for (version, more, expected) in [
        ("v24.1.0", ("NODE_USE_ENV_PROXY", "1"), None),
        ("v24.1.0", ("NODE_OPTIONS", "--use-env-proxy"), None),
        ("v24.1.0", ("A", "b"), Some("export NODE_USE_ENV_PROXY=1")),
        (
            "v20.1.0",
            ("NODE_USE_ENV_PROXY", "1"),
            Some("export NODE_OPTIONS='--require @preload'"),
        ),
        ("v20.1.0", ("NODE_OPTIONS", "--require @preload"), None),
        (
            "v20.1.0",
            ("NODE_OPTIONS", "--max=1"),
            Some("export NODE_OPTIONS='--max=1 --require @preload'"),
        ),
        (
            "v20.1.0",
            ("NODE_OPTIONS", "--require @gone"),
            Some("export NODE_OPTIONS='--require @preload'"),
        ),
    ] {
        let world = place.world(&[&base[..], &[more]].concat(), version);
        let found = place.look("node", &world);
        let expected: Vec<_> = expected
            .iter()
            .map(|a| (Kind::Way, (*a).to_owned()))
            .collect();
        assert_eq!(found, expected, "{version} {more:?}");
    }
}

#[test]
fn a_jvm_needs_every_option_and_gets_them_without_the_credential_in_sight() {
    let place = Place::new();
    let good = "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080 -Dhttps.proxyUser=sess_1 \
                -Dhttps.proxyPassword=tok_2 -Djavax.net.ssl.trustStore=@bundle \
                -Djdk.http.auth.tunneling.disabledSchemes=";
    let advice = "eval \"$(oshu-vault env --only JAVA_TOOL_OPTIONS --proxy-url env:all_proxy)\"";
    for (options, expected) in [
        (good.to_owned(), None),
        (String::new(), Some(Kind::Way)),
        (good.replace("8080", "1"), Some(Kind::Way)),
        (good.replace("tok_2", "tok_3"), Some(Kind::Way)),
        (
            good.replace("disabledSchemes=", "disabledSchemes=Basic"),
            Some(Kind::Way),
        ),
        (good.replace("@bundle", "@gone"), Some(Kind::Trust)),
        (good.replace("trustStore", "x"), Some(Kind::Trust)),
    ] {
        let variables = [
            ("all_proxy", "URL"),
            ("JAVA_TOOL_OPTIONS", options.as_str()),
        ];
        let found = place.look("java", &place.world(&variables, ""));
        let expected: Vec<_> = expected
            .iter()
            .map(|kind| (*kind, advice.to_owned()))
            .collect();
        assert_eq!(found, expected, "{options}");
    }
}

#[test]
fn what_is_said_has_no_credential() {
    let place = Place::new();
    let world = place.world(&[], "");
    let said = "x http://sess_1:tok_2@h Basic c2Vzc18xOnRva18y end";
    assert_eq!(world.redacted(said), "x http://***:***@h Basic *** end");
    for client in CLIENTS {
        for found in look(client, &world) {
            let all = format!("{found:?}");
            assert!(!all.contains("tok_2"), "{}: {all}", client.name);
        }
    }
}

#[test]
fn exceptions_are_read_as_clients_read_them() {
    for (list, expected) in [
        ("localhost,127.0.0.1", false),
        ("*", true),
        ("probe.invalid", true),
        ("a, .invalid", true),
        ("*.invalid", true),
        ("invalid", true),
        ("be.invalid", false),
        (".", false),
        ("", false),
    ] {
        assert_eq!(covers(list, "probe.invalid"), expected, "{list:?}");
    }
}
