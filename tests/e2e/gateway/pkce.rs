//! Codes that somebody else may have caught: whoever asked for one with a challenge shows the verifier,
//! and where the operator says so, nobody exchanges one without (RFC 7636).

use oshu_vault::config::{Config, Pkce};

use crate::support::show;

use super::sign_in::{CLIENT_SECRET, asked, post, says, stage, token};

const PATH: &str = "/login/oauth/access_token";

fn required(config: &mut Config) {
    config.github.pkce = Pkce::Required;
}

#[tokio::test]
async fn a_verifier_goes_on_to_github() {
    let unreserved = "abcXYZ019-._~abcdefghijklmnopqrstuvwxyz0123";
    let longest = "~".repeat(128);
    let settings: [fn(&mut Config); 2] = [|_| (), required];
    for change in settings {
        let (stage, origin) = stage(says(200, &token().0), change).await;
        for verifier in [unreserved, &longest] {
            origin.forget();
            let body = format!(r#"{{"code":"c0de-1","code_verifier":"{verifier}"}}"#);
            let answer = post(&stage, "oauth/token", &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let written = verifier.replace('~', "%7E");
            let form = format!(
                "client_id=Iv1.client%26id&client_secret={CLIENT_SECRET}&code=c0de-1&\
                 code_verifier={written}"
            );
            assert_eq!(show(&origin.bytes()), show(asked(PATH, &form).as_bytes()));
        }
    }
}

#[tokio::test]
async fn a_code_is_not_exchanged_without_where_it_is_required() {
    fn as_it_is(_config: &mut Config) {}
    for (change, status) in [(as_it_is as fn(&mut Config), 200), (required, 400)] {
        let (stage, origin) = stage(says(200, &token().0), change).await;
        for body in [
            r#"{"code":"c0de-1"}"#,
            r#"{"code":"c0de-1","code_verifier":null}"#,
        ] {
            origin.forget();
            let answer = post(&stage, "oauth/token", body).await;
            assert_eq!(answer.status, status, "{body}: {}", answer.text());
            if status == 200 {
                let form =
                    format!("client_id=Iv1.client%26id&client_secret={CLIENT_SECRET}&code=c0de-1");
                assert_eq!(show(&origin.bytes()), show(asked(PATH, &form).as_bytes()));
                continue;
            }
            let told = answer.json();
            let message = told["details"]["message"].as_str().expect("a message");
            assert!(message.starts_with("code_verifier"), "{message}");
            origin.expect_nothing("a code without its verifier");
        }
    }
}

#[tokio::test]
async fn what_is_no_verifier_is_refused_and_github_hears_nothing() {
    let (stage, origin) = stage(says(200, &token().0), |_| ()).await;
    let (short, long) = ("a".repeat(42), "a".repeat(129));
    let blank = format!("{} ", "a".repeat(43));
    let more = format!("{}&client_id=b", "a".repeat(43));
    for bad in ["", &short, &long, &blank, &more, &"é".repeat(43)] {
        let body = serde_json::json!({ "code": "c0de-1", "code_verifier": bad }).to_string();
        let answer = post(&stage, "oauth/token", &body).await;
        assert_eq!(answer.status, 400, "{bad}");
        let told = answer.json();
        let message = told["details"]["message"].as_str().expect("a message");
        assert!(message.starts_with("code_verifier"), "{bad}: {message}");
    }
    let twice = format!(
        r#"{{"code":"a","code_verifier":"{0}","code_verifier":"{0}"}}"#,
        "a".repeat(43)
    );
    assert_eq!(post(&stage, "oauth/token", &twice).await.status, 400);
    origin.expect_nothing("a refused call");
}
