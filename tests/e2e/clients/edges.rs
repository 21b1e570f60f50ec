//! What clients do at the edges: spellings of the proxy's URL, who waits to be asked for the
//! credential, and cleartext, for which some send absolute-form and some open a tunnel.

use oshu_vault_sdk::CreateSession;

use super::row::{Row, Version};
use super::stage::{Listener, REAL, Stage, finish, installed, node};
use crate::support::clients::Said;
use crate::support::{Origin, contains, program, show};

const ROW: Row = Row::of("at the edges", Version::Machine(&[]));
const HOST: &str = "api.clients.test";

/// Runs a client on a URL: each is one that the table has.
async fn call(stage: &Stage, name: &str, url: &str) -> Said {
    let node = || node("node20").expect("node");
    let mut command = match name {
        "curl" => {
            let roots = stage.variable("CURL_CA_BUNDLE").to_owned();
            let mut curl = stage.command("curl");
            curl.args(["-sS", "--fail", "--proxy-cacert"]).arg(roots);
            curl.arg("-H").arg(format!("X-Api-Key: {}", stage.sealed()));
            curl
        }
        "git" => {
            let mut git = stage.command("git");
            git.args(["ls-remote", "--quiet"]);
            git
        }
        "urllib" | "requests" | "httpx" => {
            let mut python = stage.program("python3", "call.py");
            python.arg(name);
            python
        }
        "java" => {
            let mut java = stage.program("java", "Call.java");
            java.arg("client");
            java
        }
        _ => {
            let mut program = stage.program(node(), "call.mjs");
            program.arg(name);
            program
        }
    };
    finish(command.arg(url)).await
}

fn is_missing() -> bool {
    ["curl", "git", "python3"].map(program).contains(&None)
        || installed("python/requests").is_none()
        || node("node20").is_none()
}

/// A scheme has no case, and user and password may be percent-encoded (RFC 3986 §3.1, §2.4).
#[tokio::test]
async fn spellings_of_the_proxys_url() {
    if is_missing() {
        return;
    }
    let upper_case = |url: &str| url.replace("http", "HTTP");
    let encoded = |url: &str| url.replace('_', "%5F");
    let all: [&str; 6] = ["curl", "urllib", "requests", "httpx", "fetch", "axios"];
    for listener in [Listener::Plain, Listener::Tls] {
        let mut stage = Stage::set(&ROW, listener, Origin::echo_ok().await).await;
        let ours = stage.proxy_url();
        let mut before = ours.clone();
        for (spelling, spell) in [
            ("upper case", &upper_case as &dyn Fn(&str) -> String),
            ("encoded", &encoded),
        ] {
            let url = spell(&ours);
            stage.spell(&before, &url);
            before = url;
            for name in all {
                stage.origin.forget();
                let said = call(&stage, name, &stage.url("/")).await;
                let what = format!("{name}, {spelling}, {listener:?}");
                // The one that shows its user and password as they stand in the URL.
                let works = (name, spelling) != ("axios", "encoded");
                assert_eq!(said.code == Some(0), works, "{what}: {}", said.stderr);
                if works {
                    stage.expect_arrived(&what, ROW.field);
                } else {
                    assert!(said.stderr.contains("407"), "{what}: {}", said.stderr);
                    assert!(stage.origin.bytes().is_empty(), "{what}: it arrived");
                }
            }
        }
    }
}

/// The 407 has to be one that they understand: then they come again, with the credential.
#[tokio::test]
async fn clients_that_wait_to_be_asked() {
    if is_missing() || program("javac").is_none() {
        return;
    }
    for name in ["git", "java"] {
        let stage = Stage::set(&ROW, Listener::Plain, Origin::echo_ok().await).await;
        // What is asked of git is no repository; that it asked is enough.
        let said = call(&stage, name, &stage.url("/")).await;
        let openings = stage.openings();
        assert_eq!(openings[0].is_unasked, Some(false), "{name}");
        let bytes = stage.origin.bytes();
        assert!(!bytes.is_empty(), "{name}: {}", said.stderr);
        stage.expect_kept_apart(name, &bytes);
    }
}

/// A secret goes over cleartext only where the session says so, however it gets there.
#[tokio::test]
async fn cleartext_in_absolute_form_and_in_a_tunnel() {
    if is_missing() {
        return;
    }
    for (name, is_tunnel) in [
        ("curl", false),
        ("urllib", false),
        ("requests", false),
        ("fetch", true),
        ("undici-agent", true),
    ] {
        for (listener, allowed) in [
            (Listener::Plain, false),
            (Listener::Plain, true),
            (Listener::Tls, true),
        ] {
            let what = format!("{name}, {listener:?}, allowed: {allowed}");
            let origin = Origin::builder().plain().echo_ok().await;
            let request = CreateSession::new()
                .secret(ROW.secret, REAL)
                .secret_hosts([HOST])
                .allowed_egress([HOST])
                .allow_plaintext(allowed);
            let stage = Stage::with(&ROW, listener, origin, &request).await;
            let said = call(&stage, name, &format!("http://{HOST}/path")).await;
            said.expect_success(&what);
            assert_eq!(said.stdout, "ok", "{what}");
            stage.expect_secret_kept(&what, &said);
            let bytes = stage.origin.bytes();
            assert!(
                contains(&bytes, "GET /path HTTP/1.1\r\n"),
                "{what}: {}",
                show(&bytes)
            );
            if allowed {
                stage.expect_arrived(&what, ROW.field);
            } else {
                assert!(contains(&bytes, stage.sealed()), "{what}: {}", show(&bytes));
                assert!(!contains(&bytes, REAL), "{what}: {}", show(&bytes));
            }
            if listener == Listener::Plain {
                let first = if is_tunnel {
                    format!("CONNECT {HOST}:80 ")
                } else {
                    format!("GET http://{HOST}/path ")
                };
                assert!(stage.said_first(&first), "{what}");
            }
        }
    }
}
