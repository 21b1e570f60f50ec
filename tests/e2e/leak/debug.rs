//! `Debug` of the public types that hold secrets, or bytes that secrets pass through.
//!
//! Each is made with a real value in it and printed both ways. The list of their names is compared
//! with the source: a type that gets a field which may hold one has to be put into the table.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oshu_vault::api::{SignIn, SignInConfig};
use oshu_vault::app::Storage;
use oshu_vault::audit::{Kind, Record, Sink};
use oshu_vault::callout::Answer;
use oshu_vault::cli::{SecretFlag, SecretFrom};
use oshu_vault::config::{
    Config, FileContent, Flags, Gateway, Github, Payment, PaymentStripe, PaymentWorkos, Seal,
    Source,
};
use oshu_vault::gateway::UsageReader;
use oshu_vault::host::HostPort;
use oshu_vault::id::TenantId;
use oshu_vault::identity::Presented;
use oshu_vault::policy::{AddressRules, Catalogue, Scheme};
use oshu_vault::records::{Records, Replaced};
use oshu_vault::seal::{KeyId, Keyring};
use oshu_vault::sealed_token::{MARKER, Place, TokenId};
use oshu_vault::secret::{Fingerprint, Secret};
use oshu_vault::session::{Form, HostView, Options, SecretForm, Sessions, Spec};
use oshu_vault::store::{Address, Memory, RecordKey, RecordKind, Store};
use oshu_vault::swap::{
    BodyKind, BodySwap, Decoder, Lookup, ScrubStream, Scrubber, Swapper, TokenAnswer,
};
use oshu_vault::tenant::{Limits, Tenants};
use oshu_vault::upstream::{self, Upstream, UpstreamProxy};
use oshu_vault::web::{ApiKeys, Json, JsonBody, MergePatch};
use oshu_vault::wire::{
    Body, Connection, Flow, Framing, Outbox, parse_answer, parse_request, parse_trailers,
};
use oshu_vault_sdk::{Client, CreateSession, SecretSpec, UpdateSession};
use serde_json::json;

use super::{Needles, VALUE};
use crate::support::Scene;

/// What was printed, by the name of the type.
struct Printed {
    needles: Needles,
    names: BTreeMap<&'static str, usize>,
}

impl Printed {
    fn add<T: Debug + ?Sized>(&mut self, name: &'static str, value: &T) {
        let text = format!("{value:?}\n{value:#?}");
        self.needles.expect_none(&format!("Debug of {name}"), &text);
        self.names.insert(name, text.len());
    }
}

fn secret() -> Secret {
    Secret::new(VALUE.into())
}

fn tenants(records: &Arc<Records>) -> Tenants {
    let tenants = Tenants::new(Arc::clone(records), Limits::default(), 0);
    tenants.with_key(&TenantId::new("t"), Fingerprint::of(VALUE.as_bytes()))
}

fn form() -> Form {
    let secret = SecretForm {
        value: secret(),
        hosts: Some(vec!["a.example.com".to_owned()]),
        inject: None,
        prefix: None,
    };
    Form {
        secrets: [("KEY".to_owned(), secret)].into(),
        ..Form::default()
    }
}

/// Heads, bodies and connections with the value in them.
async fn wire(printed: &mut Printed) {
    let lines = format!("Host: a\r\nX-Key: {VALUE}\r\nAuthorization: Bearer {VALUE}\r\n\r\n");
    let head = format!("GET /{VALUE}?key={VALUE} HTTP/1.1\r\n{lines}").replace("?key", "/");
    let target = head.replace(['"', '<', '>', '\\'], "!");
    for text in [head, target] {
        if let Ok(head) = parse_request(Bytes::from(text)) {
            printed.add("RequestHead", &head);
            printed.add("Fields", &head.fields);
            for field in head.fields.iter() {
                printed.add("FieldRef", &field);
            }
        }
    }
    let head =
        parse_answer(Bytes::from(format!("HTTP/1.1 200 {VALUE}\r\n{lines}"))).expect("a head");
    printed.add("AnswerHead", &head);
    let trailers = Bytes::from(format!("X-Key: {VALUE}\r\n\r\n"));
    printed.add("Fields", &parse_trailers(trailers).expect("trailers"));
    let tokens = json!({"access_token": VALUE}).to_string().into_bytes();
    let tokens = TokenAnswer::read(Some(b"application/json"), tokens.into()).expect("JSON");
    printed.add("Token", &tokens.tokens()[0]);
    printed.add("TokenAnswer", &tokens);
    let body = || Body::new(Framing::Length(5));
    printed.add("Body", &body());
    printed.add("Flow", &Flow::new(VALUE.into(), body()));
    printed.add("Outbox", &Outbox::new(VALUE.into()));
    printed.add("Decoder", &Decoder::new(&[]));
    for end in 0..2 {
        let (mut client, server) = tokio::io::duplex(1024);
        tokio::io::AsyncWriteExt::write_all(&mut client, VALUE.as_bytes())
            .await
            .expect("room");
        let mut connection = Connection::new(Box::new(server));
        std::future::poll_fn(|cx| connection.poll_fill(cx))
            .await
            .expect("bytes");
        if end == 0 {
            printed.add("Connection", &connection);
        } else {
            printed.add("Replay", &connection.into_replay());
        }
    }
}

/// A session with the value, all that is made of it, and the swap and scrub that know it.
async fn sessions(printed: &mut Printed) {
    let options = Options {
        catalogue: Arc::new(Catalogue::builtin()),
        token_endpoints: Arc::default(),
        unscoped_secrets: false,
        any_port: false,
    };
    printed.add("SecretForm", &form().secrets["KEY"]);
    printed.add("Form", &form());
    let spec = Spec::parse(&form(), &options).expect("a session");
    printed.add("Spec", &spec);
    for secret in &spec.secrets {
        printed.add("SecretSpec", secret);
    }
    let store = Arc::new(Memory::new());
    let rules = Arc::new(AddressRules::new(Vec::new(), false));
    let keys = Keyring::generate();
    printed.add("Keyring", &keys);
    let rows = Arc::clone(&store) as _;
    let sessions = Sessions::new(rows, keys, options, rules, Sink::discard());
    let tenants = Arc::new(tenants(sessions.records()));
    printed.add("Tenants", &tenants);
    printed.add("Holder", &tenants.by_key(VALUE.as_bytes()));
    printed.add("ApiKeys", &ApiKeys::new(Arc::clone(&tenants)));
    let sessions = sessions.with_tenants(tenants);
    let created = sessions
        .create(&TenantId::new("t"), form())
        .await
        .expect("a session");
    // The sealed token is no secret: it is what a workload holds.
    printed.add("Created", &created);
    printed.add("Credential", &created.credential);
    printed.add("SessionHandle", &*created.handle);
    printed.add("Sessions", &sessions);
    printed.add("Memory", &*store);
    for (_, row) in store.load().await.expect("rows").rows {
        printed.add("Row", &row);
    }
    records(printed, &sessions, &store).await;
    printed.add("Storage", &Storage::in_memory());
    let login = crate::support::basic(created.handle.id().as_str(), created.credential.expose());
    let caller = sessions
        .authenticate(login.as_bytes())
        .expect("its own credential");
    printed.add("Authenticated", &caller);
    let own = Needles::new([("the credential", created.credential.expose())]);
    own.expect_none(
        "Debug of a session",
        format!("{sessions:?}{created:?}{caller:?}"),
    );
    let target = HostPort::parse("a.example.com:443").expect("a target");
    let view = created
        .handle
        .host_view(&target, Scheme::Https)
        .expect("a view");
    printed.add("HostView", &*view);
    let token = &created.sealed_secrets["KEY"];
    let id = TokenId::read(&token.as_bytes()[MARKER.len()..]).expect("a token");
    let opening = view
        .open(id, b"", Place::Header(b"x-key"))
        .expect("it opens");
    printed.add("Opening", &opening);
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Key: {token}\r\n\r\n");
    let mut head = parse_request(Bytes::from(head)).expect("a head");
    let swapper = Swapper::new();
    printed.add(
        "Swapped",
        &swapper.swap_request(&mut head, &*view).expect("one token"),
    );
    assert_eq!(head.fields.first("x-key"), Some(VALUE.as_bytes()));
    printed.add("RequestHead", &head);
    let mut body = BodySwap::new(BodyKind::Raw, Arc::clone(&view));
    let text = format!("{token}{}", &token[..20]);
    body.push(&mut text.as_bytes(), &mut Vec::new())
        .expect("one token");
    printed.add("BodySwap", &body);
    scrubs(printed, &view);
}

/// A record beside the sessions with the value in it.
async fn records(printed: &mut Printed, sessions: &Sessions, store: &Memory) {
    let records = sessions.records();
    let key = RecordKey::new(RecordKind::Tenant, "t");
    let put = records.put(&key, VALUE.as_bytes()).await;
    put.expect("a record");
    printed.add("Records", &**records);
    let replaced = Replaced::Written(zeroize::Zeroizing::new(VALUE.into()));
    printed.add("Replaced", &replaced);
    let found = records.load(RecordKind::Tenant).await;
    printed.add("Found", &found.expect("a record"));
    let rows = store.load_records(RecordKind::Tenant).await;
    printed.add("RecordRows", &rows.expect("a record"));
}

/// What looks for the values of a view.
fn scrubs(printed: &mut Printed, view: &HostView) {
    let scrubber = view.scrubber().expect("the value is long enough");
    printed.add("Scrubber", &**scrubber);
    let mut stream = ScrubStream::new(Arc::clone(scrubber));
    stream.push(&VALUE.as_bytes()[..VALUE.len() - 1], &mut Vec::new());
    assert!(stream.held() > 0);
    printed.add("ScrubStream", &stream);
    let other = (secret(), Bytes::from_static(b"t"), Arc::from("n"));
    printed.add(
        "Scrubber",
        &Scrubber::new(std::iter::once(other)).expect("long enough"),
    );
    printed.add("Record", &Record::begin(&Sink::discard(), Kind::Exchange));
}

/// What the gateway is set up with, and what passes through it.
fn model_calls(printed: &mut Printed) -> (Gateway, Payment) {
    let gateway = Gateway {
        api_key: Some(secret()),
        jwt_secret: Some(secret()),
        jwt_secret_previous: Some(secret()),
        ..Gateway::default()
    };
    printed.add("Gateway", &gateway);
    let workos = PaymentWorkos {
        api_key: Some(secret()),
        ..PaymentWorkos::default()
    };
    printed.add("PaymentWorkos", &workos);
    let stripe = PaymentStripe {
        webhook_secret: Some(secret()),
        webhook_secret_previous: Some(secret()),
    };
    printed.add("PaymentStripe", &stripe);
    let github = Github {
        client_secret: Some(secret()),
        ..Github::default()
    };
    printed.add("Github", &github);
    let sign_in = SignInConfig {
        url: "https://github.com".to_owned(),
        client_id: "client".to_owned(),
        client_secret: Some(secret()),
        return_to: Vec::new(),
        needs_verifier: false,
        requests_per_minute: 1,
    };
    printed.add("SignInConfig", &sign_in);
    let upstream = Upstream::new(upstream::Config {
        overrides: Vec::new(),
        roots: Arc::new(rustls::RootCertStore::empty()),
        rules: Arc::new(AddressRules::new(Vec::new(), false)),
        proxy: None,
        dns_timeout: Duration::ZERO,
        connect_timeout: Duration::ZERO,
        handshake_timeout: Duration::ZERO,
    });
    let upstream = Arc::new(upstream.expect("a way out"));
    printed.add("SignIn", &SignIn::new(upstream, sign_in).expect("a URL"));
    let shown = Presented::One(zeroize::Zeroizing::new(VALUE.to_owned()));
    printed.add("Presented", &shown);
    let head = format!("HTTP/1.1 200 OK\r\nX-Key: {VALUE}\r\n\r\n");
    let head = parse_answer(Bytes::from(head)).expect("a head");
    let answer = Answer {
        status: 200,
        fields: head.fields,
        body: Bytes::from_static(VALUE.as_bytes()),
    };
    printed.add("Answer", &answer);
    let mut reader = UsageReader::of_content_type(Some(b"text/event-stream"));
    reader.read(format!("data: {VALUE}").as_bytes());
    printed.add("UsageReader", &reader);
    let payment = Payment {
        workos,
        stripe,
        ..Payment::default()
    };
    (gateway, payment)
}

/// What comes from the operator and from the API.
fn outer(printed: &mut Printed) {
    printed.add("Secret", &secret());
    printed.add("Fingerprint", &Fingerprint::of(VALUE.as_bytes()));
    let key = KeyId::new(1);
    printed.add(
        "Keyring",
        &Keyring::from_keys(vec![(key, *b"sk-canary/0123456789+\"&<abcdef>\\")], key),
    );
    let bytes = VALUE.as_bytes().to_vec().into();
    printed.add("FileContent", &FileContent { bytes, mode: 0o600 });
    let flags = Flags::new(None).with("upstream.proxy", vec![VALUE.to_owned()]);
    printed.add("Flags", &flags);
    let variables = vec![("SECRETS_PROXY_API_KEY".into(), VALUE.into())];
    printed.add(
        "Source",
        &Source::new(variables, Box::new(oshu_vault::config::Disk), flags),
    );
    let escaped: Vec<_> = VALUE.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let escaped = escaped.concat();
    let url = format!("rediss://user:{escaped}@cache.example.com/1");
    let address = Address::parse(&url).expect("a URL");
    let shown = format!("{address:?}");
    assert!(!shown.contains(&escaped), "{shown}");
    printed.add("Address", &address);
    let seal = Seal {
        key: Some(secret()),
        ..Seal::default()
    };
    printed.add("Seal", &seal);
    let (gateway, payment) = model_calls(printed);
    let config = Config {
        api_key: Some(secret()),
        admin_key: Some(secret()),
        seal,
        gateway,
        payment,
        ..Config::default()
    };
    printed.add("Config", &config);
    // A password is between `:` and `@`, where some of the value's bytes cannot stand.
    let proxy = UpstreamProxy::parse("http://user:sk-canary%2F0123456789@proxy.example:3128");
    let proxy = format!("{:?}", proxy.expect("a proxy"));
    assert!(!proxy.contains("canary"), "{proxy}");
    printed.names.insert("UpstreamProxy", proxy.len());
    let flag = SecretFlag {
        name: "KEY".to_owned(),
        from: SecretFrom::Env("KEY".to_owned()),
        hosts: Vec::new(),
    };
    printed.add("SecretFlag", &flag);
    let body = json!({"secrets": {"KEY": VALUE, "OTHER": {"value": VALUE}}, "list": [VALUE]});
    let parse = || Json::parse(body.to_string().as_bytes()).expect("JSON");
    printed.add("Json", &parse());
    printed.add("JsonBody", &JsonBody(parse()));
    printed.add("MergePatch", &MergePatch(parse()));
    // The client of the API is a library of its own; whoever uses it has the same wish.
    printed.add(
        "CreateSession",
        &CreateSession::new().secret("KEY", SecretSpec::new(VALUE)),
    );
    printed.add("UpdateSession", &UpdateSession::new().secret("KEY", VALUE));
    printed.add("SecretSpec", &SecretSpec::new(VALUE));
    printed.add(
        "Client",
        &Client::builder("http://localhost", VALUE)
            .build()
            .expect("a client"),
    );
}

/// Types that name one of these in a field may hold a value, or pass one through.
const MAY_HOLD: [&str; 14] = [
    "Secret",
    "Bytes",
    "BytesMut",
    "Zeroizing",
    "Credential",
    "Fields",
    "SecretForm",
    "SecretSpec",
    "Scrubber",
    "ScrubStream",
    "Keyring",
    "Form",
    "Json",
    "Text",
];
/// Those of them that are not in the table, and why.
const NOT_PRINTED: [(&str, &str); 13] = [
    ("BodyKind", "names a form"),
    ("EnvFormat", "names a form"),
    ("EventError", "names a form"),
    ("HostPattern", "its form is that of a name"),
    ("LogFormat", "names a form"),
    (
        "Opened",
        "is made of types of this table, which it derives its own from",
    ),
    ("Refused", "names a form"),
    ("Seen", "shows a length, of what is sealed"),
    ("SignatureError", "names a form"),
    ("Signed", "holds a time and tags, which are no secret"),
    (
        "Target",
        "is made of types of this table, which it derives its own from",
    ),
    ("Upload", "holds a channel, not what goes through it"),
    (
        "Workos",
        "is made of types of this table, which it derives its own from",
    ),
];

/// Finds the public types of the source with such a field.
fn holders(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            holders(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = std::fs::read_to_string(&path).expect("a file");
            let text = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or_default();
            let mut current = None;
            for line in text.lines() {
                let start = ["pub struct ", "pub enum "]
                    .iter()
                    .find_map(|it| line.strip_prefix(it));
                if let Some(rest) = start {
                    let name = rest.split(|c: char| !c.is_alphanumeric()).next();
                    current = name.map(str::to_owned);
                }
                let code = line.split("//").next().unwrap_or_default();
                let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
                let holds = words
                    .skip(usize::from(start.is_some()) * 3)
                    .any(|word| MAY_HOLD.contains(&word))
                    || code.contains("Vec<u8>");
                if let Some(name) = &current
                    && holds
                {
                    found.push((name.clone(), path.display().to_string()));
                }
                if line == "}" || (start.is_some() && line.ends_with(';')) {
                    current = None;
                }
            }
        }
    }
}

#[tokio::test]
async fn debug_of_no_public_type_shows_a_value() {
    let mut printed = Printed {
        needles: Needles::new([("the value", VALUE)]),
        names: BTreeMap::new(),
    };
    outer(&mut printed);
    wire(&mut printed).await;
    sessions(&mut printed).await;
    let scene = Scene::new().await;
    let shown = format!("{:?}{:?}", scene.session, scene.vault.sdk());
    assert!(!shown.contains(&scene.session.token), "{shown}");

    let mut found = Vec::new();
    holders(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 20, "{found:?}");
    let unknown: Vec<_> = found
        .iter()
        .filter(|(name, _)| !printed.names.contains_key(name.as_str()))
        .filter(|(name, _)| !NOT_PRINTED.iter().any(|(other, _)| other == name))
        .collect();
    assert!(
        unknown.is_empty(),
        "they may hold a value: put them into the table: {unknown:?}"
    );
    for (name, _) in NOT_PRINTED {
        assert!(
            found.iter().any(|(other, _)| other == name),
            "{name} holds nothing any more"
        );
    }
}
