//! The workload JWT: who the sandbox belongs to, signed by us or by whoever makes the sandboxes.
//!
//! HS256 and nothing else, whatever a header says; the issuer is fixed, the life at most a day. Two
//! secrets are accepted while one is rotated out; the first one signs. Time is handed in. Called by
//! `gateway` for every model call, and by `cli` for `token mint`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Error;
use super::jws::{self, Refused};
use crate::id::{AccountId, SandboxName};
use crate::secret::Secret;

/// The one issuer.
pub const ISSUER: &str = "yolocode-api";
/// The longest JWT that is looked at, in bytes.
pub const JWT_LIMIT_BYTES: usize = 8 * 1024;
/// How far the clock of whoever signed may differ from ours.
pub const LEEWAY: Duration = Duration::from_mins(1);
/// The longest time from `iat` to `exp`.
pub const LONGEST_LIFE: Duration = Duration::from_hours(24);
/// The least bytes of a secret: as many as the hash has (RFC 7518 §3.2).
pub const SECRET_LEAST_BYTES: usize = 32;

/// What a JWT says: which account's sandbox calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The account that the sandbox belongs to: `userId`.
    pub account: AccountId,
    /// The sandbox, as its owner calls it: `sandboxName`.
    pub sandbox: SandboxName,
}

/// The secrets that sign workload JWTs.
pub struct WorkloadKeys {
    /// The one that signs.
    current: hmac::Key,
    /// All that are accepted.
    accepted: Vec<hmac::Key>,
}

impl WorkloadKeys {
    /// Takes the secret that signs, and during a rotation the one before it.
    ///
    /// # Errors
    /// [`Error::ShortSecret`].
    pub fn new(current: &Secret, previous: Option<&Secret>) -> Result<Self, Error> {
        let key = |secret: &Secret| {
            let bytes = secret.expose();
            if bytes.len() < SECRET_LEAST_BYTES {
                return Err(Error::ShortSecret);
            }
            Ok(hmac::Key::new(hmac::HMAC_SHA256, bytes))
        };
        let mut accepted = vec![key(current)?];
        accepted.extend(previous.map(key).transpose()?);
        Ok(Self {
            current: key(current)?,
            accepted,
        })
    }

    /// Verifies a JWT.
    ///
    /// # Errors
    /// [`Refused`], for the log; who showed it gets one answer for all reasons.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Workload, Refused> {
        if token.len() > JWT_LIMIT_BYTES {
            return Err(Refused::TooLong);
        }
        let claims = jws::verify(&self.accepted, token)?;
        // A token that names an audience is not for those whom it does not name (RFC 7519 §4.1.3),
        // and nobody ever named us.
        if claims.get("iss").and_then(Value::as_str) != Some(ISSUER) || claims.contains_key("aud") {
            return Err(Refused::Issuer);
        }
        check_times(&claims, now)?;
        read_names(&claims).ok_or(Refused::Names)
    }

    /// Mints a JWT that begins now.
    ///
    /// # Errors
    /// [`Error::BadLife`] and [`Error::BadTime`].
    pub fn mint(
        &self,
        workload: &Workload,
        now: SystemTime,
        life: Duration,
    ) -> Result<Zeroizing<String>, Error> {
        if !(Duration::from_secs(1)..=LONGEST_LIFE).contains(&life) {
            return Err(Error::BadLife);
        }
        let begins = seconds(now).ok_or(Error::BadTime)?;
        let ends = begins.checked_add(life.as_secs()).ok_or(Error::BadTime)?;
        let claims = json!({
            "iss": ISSUER,
            "iat": begins,
            "exp": ends,
            "userId": workload.account.as_str(),
            "sandboxName": workload.sandbox.as_str(),
        });
        Ok(jws::sign(&self.current, &claims))
    }
}

impl fmt::Debug for WorkloadKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadKeys")
            .field("accepted", &self.accepted.len())
            .finish_non_exhaustive()
    }
}

fn seconds(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

fn check_times(claims: &Map<String, Value>, now: SystemTime) -> Result<(), Refused> {
    // Whole seconds, so that no two readers round differently.
    let time = |name| claims.get(name).and_then(Value::as_u64);
    let (Some(issued), Some(ends), Some(now)) = (time("iat"), time("exp"), seconds(now)) else {
        return Err(Refused::Times);
    };
    let life = ends.checked_sub(issued).ok_or(Refused::Times)?;
    if life == 0 || life > LONGEST_LIFE.as_secs() {
        return Err(Refused::Times);
    }
    let latest = now.saturating_add(LEEWAY.as_secs());
    if claims.contains_key("nbf") && time("nbf").ok_or(Refused::Times)? > latest {
        return Err(Refused::NotYet);
    }
    if issued > latest {
        return Err(Refused::NotYet);
    }
    if now >= ends.saturating_add(LEEWAY.as_secs()) {
        return Err(Refused::Expired);
    }
    Ok(())
}

fn read_names(claims: &Map<String, Value>) -> Option<Workload> {
    let account = match claims.get("userId")? {
        Value::String(id) => AccountId::parse(id)?,
        // GitHub's ids are numbers, and one is the same account in either form.
        id => AccountId::of_number(id.as_u64()?),
    };
    let sandbox = SandboxName::parse(claims.get("sandboxName")?.as_str()?)?;
    Some(Workload { account, sandbox })
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;
    const SECRET: [u8; 32] = [7; 32];
    const OLD: [u8; 40] = [8; 40];
    const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn secret(bytes: &[u8]) -> Secret {
        Secret::new(bytes.to_vec())
    }

    fn keys() -> WorkloadKeys {
        WorkloadKeys::new(&secret(&SECRET), None).unwrap()
    }

    fn workload() -> Workload {
        Workload {
            account: AccountId::parse("583231").unwrap(),
            sandbox: SandboxName::parse("my-sandbox").unwrap(),
        }
    }

    fn claims() -> Value {
        json!({"iss": ISSUER, "iat": NOW, "exp": NOW + DAY, "userId": "583231",
               "sandboxName": "my-sandbox"})
    }

    fn with(name: &str, value: Value) -> String {
        let mut claims = claims();
        claims[name] = value;
        claims.to_string()
    }

    fn without(name: &str) -> String {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        claims.to_string()
    }

    fn signed(key: &[u8], header: &str, claims: &str) -> String {
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let text = format!("{}.{}", encode(header), encode(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let signature = hmac::sign(&key, text.as_bytes());
        format!("{text}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }

    fn verdict(token: &str) -> Result<Workload, Refused> {
        keys().verify(token, at(NOW))
    }

    #[test]
    fn what_is_minted_is_verified_until_it_ends() {
        let minted = keys().mint(&workload(), at(NOW), LONGEST_LIFE).unwrap();
        let keys = keys();
        for (now, expected) in [
            (NOW - 61, Err(Refused::NotYet)),
            (NOW - 60, Ok(workload())),
            (NOW, Ok(workload())),
            (NOW + DAY + 59, Ok(workload())),
            (NOW + DAY + 60, Err(Refused::Expired)),
            (u64::from(u32::MAX), Err(Refused::Expired)),
        ] {
            assert_eq!(keys.verify(&minted, at(now)), expected, "{now}");
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(keys.verify(&minted, before), Err(Refused::Times));
        assert!(minted.len() < 400, "{}", minted.len());
    }

    #[test]
    fn another_implementation_s_token_is_taken() {
        let token = signed(&SECRET, HEADER, &claims().to_string());
        assert_eq!(verdict(&token), Ok(workload()));
        let plain = signed(&SECRET, r#"{ "alg" : "HS256" }"#, &claims().to_string());
        assert_eq!(verdict(&plain), Ok(workload()));
        let number = signed(&SECRET, HEADER, &with("userId", json!(583_231)));
        assert_eq!(verdict(&number), Ok(workload()));
        let more = signed(&SECRET, HEADER, &with("userLogin", json!("octocat")));
        assert_eq!(verdict(&more), Ok(workload()));
        let named = r#"{"alg":"HS256","kid":"2026-11_a"}"#;
        let named = signed(&SECRET, named, &claims().to_string());
        assert_eq!(verdict(&named), Ok(workload()));
        let begun = signed(&SECRET, HEADER, &with("nbf", json!(NOW + 60)));
        assert_eq!(verdict(&begun), Ok(workload()));
    }

    #[test]
    fn the_published_example_of_the_algorithm_is_reproduced() {
        // RFC 7515 A.1: its claims are not ours, its signature is the algorithm's.
        let key = BASE64URL_NOPAD
            .decode(
                b"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
            )
            .unwrap();
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4\
                     MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K\
                     27uhbUJU1p1r_wW1gFWFOEjXk";
        let keys = WorkloadKeys::new(&secret(&key), None).unwrap();
        assert_eq!(keys.verify(token, at(NOW)), Err(Refused::Issuer));
        let other = WorkloadKeys::new(&secret(&SECRET), None).unwrap();
        assert_eq!(other.verify(token, at(NOW)), Err(Refused::Signature));
    }

    #[test]
    fn headers_that_choose_are_refused() {
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS384"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"typ":"JWT"}"#,
            r#"{"alg":"HS256","typ":"at+jwt"}"#,
            r#"{"alg":"HS256","typ":null}"#,
            r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"HS256","crit":[]}"#,
            r#"{"alg":"HS256","b64":false}"#,
            r#"{"alg":"HS256","zip":"DEF"}"#,
            r#"{"alg":"HS256","enc":"A256GCM"}"#,
            r#"{"alg":"HS256","jku":"https://evil.example/jwks"}"#,
            r#"{"alg":"HS256","x5u":"https://evil.example/cert"}"#,
            r#"{"alg":"HS256","x5c":["AA"]}"#,
            r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}"#,
            r#"{"alg":"HS256","kid":"../../dev/null"}"#,
            r#"{"alg":"HS256","kid":"' UNION SELECT 1 --"}"#,
            r#"{"alg":"HS256","kid":"https://evil.example/key"}"#,
            r#"{"alg":"HS256","kid":7}"#,
        ] {
            let token = signed(&SECRET, header, &claims().to_string());
            assert_eq!(verdict(&token), Err(Refused::Header), "{header}");
        }
        for header in [
            r#"{"alg":"none","alg":"HS256"}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"HS256","\u0061lg":"none"}"#,
            r#"["HS256"]"#,
            "",
        ] {
            let token = signed(&SECRET, header, &claims().to_string());
            assert_eq!(verdict(&token), Err(Refused::Json), "{header}");
        }
    }

    #[test]
    fn claims_that_are_not_ours_are_refused() {
        let long = "s".repeat(129);
        let cases = [
            (without("iss"), Refused::Issuer),
            (with("iss", json!("yolocode")), Refused::Issuer),
            (with("iss", json!("yolocode-api ")), Refused::Issuer),
            (with("iss", json!(["yolocode-api"])), Refused::Issuer),
            (with("aud", json!("other")), Refused::Issuer),
            (with("aud", Value::Null), Refused::Issuer),
            (without("iat"), Refused::Times),
            (without("exp"), Refused::Times),
            (with("exp", json!(NOW + DAY + 1)), Refused::Times),
            (with("exp", json!(NOW)), Refused::Times),
            (with("exp", json!(NOW - 1)), Refused::Times),
            (with("exp", json!(u64::MAX)), Refused::Times),
            (with("exp", json!(-1)), Refused::Times),
            (with("exp", json!((NOW + DAY).to_string())), Refused::Times),
            (with("exp", json!(1.8e9)), Refused::Times),
            (with("iat", json!(0)), Refused::Times),
            (with("nbf", json!("soon")), Refused::Times),
            (with("nbf", json!(NOW + 61)), Refused::NotYet),
            (with("iat", json!(NOW + 61)), Refused::NotYet),
            (without("userId"), Refused::Names),
            (with("userId", json!("")), Refused::Names),
            (with("userId", json!("../1")), Refused::Names),
            (with("userId", json!(-1)), Refused::Names),
            (with("userId", json!(1.5)), Refused::Names),
            (with("userId", json!(true)), Refused::Names),
            (with("userId", json!("9".repeat(65))), Refused::Names),
            (without("sandboxName"), Refused::Names),
            (with("sandboxName", json!("a\nb")), Refused::Names),
            (with("sandboxName", json!(long)), Refused::Names),
            (with("sandboxName", json!(7)), Refused::Names),
            (
                r#"{"iss":"a","iss":"yolocode-api"}"#.to_owned(),
                Refused::Json,
            ),
            ("[]".to_owned(), Refused::Json),
            (String::new(), Refused::Json),
        ];
        for (claims, expected) in cases {
            let token = signed(&SECRET, HEADER, &claims);
            assert_eq!(verdict(&token), Err(expected), "{claims}");
        }
        let past = r#"{"iss":"yolocode-api","iat":1,"exp":2,"userId":"1","sandboxName":"a"}"#;
        let token = signed(&SECRET, HEADER, past);
        assert_eq!(verdict(&token), Err(Refused::Expired));
    }

    #[test]
    fn other_spellings_of_the_text_are_refused() {
        let good = signed(&SECRET, HEADER, &claims().to_string());
        let (head, rest) = good.split_once('.').unwrap();
        let (body, signature) = rest.split_once('.').unwrap();
        // The last character of 32 bytes has two bits to spare.
        let mut bent = good.clone();
        let last = bent.pop().unwrap();
        let next = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let at = next.iter().position(|byte| *byte == last as u8).unwrap();
        bent.push(char::from(next[at + 1]));
        for token in [
            String::new(),
            ".".into(),
            head.to_owned(),
            format!("{head}.{body}"),
            format!("{good}."),
            format!("{good}.e30"),
            format!("{good}="),
            format!("{head}=.{body}.{signature}"),
            format!(" {good}"),
            format!("{good}\n"),
            good.replace('_', "/").replace('-', "+") + "+",
            bent,
        ] {
            assert_eq!(verdict(&token), Err(Refused::Form), "{token}");
        }
        for token in [
            "..".to_owned(),
            format!("{head}.{body}."),
            format!("{head}.{body}.AAAA"),
            format!("{head}.e30.{signature}"),
            format!(".{body}.{signature}"),
            signed(&OLD, HEADER, &claims().to_string()),
            signed(b"", HEADER, &claims().to_string()),
        ] {
            assert_eq!(verdict(&token), Err(Refused::Signature), "{token}");
        }
        let large = signed(&SECRET, HEADER, &with("x", json!("x".repeat(9000))));
        assert_eq!(verdict(&large), Err(Refused::TooLong));
        assert_eq!(verdict(&"a".repeat(1 << 20)), Err(Refused::TooLong));
    }

    #[test]
    fn two_secrets_are_accepted_and_the_first_signs() {
        let both = WorkloadKeys::new(&secret(&SECRET), Some(&secret(&OLD))).unwrap();
        let old = signed(&OLD, HEADER, &claims().to_string());
        assert_eq!(both.verify(&old, at(NOW)), Ok(workload()));
        assert_eq!(keys().verify(&old, at(NOW)), Err(Refused::Signature));
        let minted = both.mint(&workload(), at(NOW), LONGEST_LIFE).unwrap();
        assert_eq!(keys().verify(&minted, at(NOW)), Ok(workload()));
    }

    #[test]
    fn what_cannot_be_kept_is_not_promised() {
        for (current, previous) in [(31, None), (0, None), (32, Some(31))] {
            let previous = previous.map(|length| secret(&vec![1; length]));
            let made = WorkloadKeys::new(&secret(&vec![1; current]), previous.as_ref());
            assert!(matches!(made, Err(Error::ShortSecret)), "{current}");
        }
        for life in [Duration::ZERO, LONGEST_LIFE + Duration::from_secs(1)] {
            let minted = keys().mint(&workload(), at(NOW), life);
            assert!(matches!(minted, Err(Error::BadLife)), "{life:?}");
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let minted = keys().mint(&workload(), before, LONGEST_LIFE);
        assert!(matches!(minted, Err(Error::BadTime)));
        assert_eq!(format!("{:?}", keys()), "WorkloadKeys { accepted: 1, .. }");
    }

    proptest! {
        #[test]
        fn nothing_that_was_not_signed_is_taken(text in "\\PC{0,200}") {
            prop_assert!(verdict(&text).is_err());
        }

        #[test]
        fn any_change_of_a_good_one_is_refused(at in 0_usize..400, byte in b' '..=b'~') {
            let good = signed(&SECRET, HEADER, &claims().to_string());
            let mut changed = good.clone().into_bytes();
            let at = at % changed.len();
            changed[at] = byte;
            let changed = String::from_utf8(changed).unwrap();
            prop_assert_eq!(verdict(&changed).is_ok(), changed == good);
        }

        #[test]
        fn any_names_come_back(account in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}", sandbox in "[a-z][a-z._-]{0,127}") {
            let given = Workload {
                account: AccountId::parse(&account).unwrap(),
                sandbox: SandboxName::parse(&sandbox).unwrap(),
            };
            let minted = keys().mint(&given, at(NOW), Duration::from_mins(1)).unwrap();
            prop_assert_eq!(verdict(&minted), Ok(given));
        }

        #[test]
        fn any_header_and_claims_are_read_without_a_panic(header in "\\PC{0,80}", claims in "\\PC{0,80}") {
            prop_assert!(verdict(&signed(&SECRET, &header, &claims)).is_err());
        }
    }
}
