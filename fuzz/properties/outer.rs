//! Properties of the whole service, fed through its own door: first bytes, and management JSON.
//!
//! One service lives in the process, on a clock that runs ahead whenever nothing is to be done, so
//! that no timeout is waited for. It reaches no upstream: all addresses that it knows are shut.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oshu_vault::app::{App, Parts, Storage, TENANT};
use oshu_vault::audit::Sink;
use oshu_vault::authority::{CertificateAuthority, Root};
use oshu_vault::config::{Config, Resolve};
use oshu_vault::host::Host;
use oshu_vault::id::{SessionId, TenantId};
use oshu_vault::secret::{Fingerprint, Secret};
use oshu_vault::serve::{Newcomers, Peer};
use oshu_vault::session::{Form, SecretForm};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use super::cut;

const API_KEY: &str = "key-of-the-tenant-cAnArY";
const VALUE: &str = "secret-value-cAnArY-0123456789";
const CANARY: &str = "cAnArY";

struct Service {
    runtime: Runtime,
    app: App,
    /// The credential of a session that may reach `good.example` and, unread, `pinned.example`.
    authorization: String,
    token: String,
    session: SessionId,
}

thread_local! {
    static SERVICE: RefCell<Service> = RefCell::new(Service::start());
}

impl Service {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime starts");
        let (app, created) = runtime.block_on(async {
            let app = App::start(&config(), parts())
                .await
                .expect("the service starts");
            let secret = SecretForm {
                value: Secret::new(VALUE.into()),
                hosts: Some(vec!["good.example".to_owned()]),
                inject: None,
                prefix: None,
            };
            let form = Form {
                secrets: [("KEY".to_owned(), secret)].into(),
                allowed_egress: Some(vec!["good.example".to_owned(), "pinned.example".to_owned()]),
                passthrough_hosts: vec!["pinned.example".to_owned()],
                allow_plaintext: Some(true),
                ..Form::default()
            };
            let created = app.sessions().create(&TenantId::new(TENANT), form).await;
            (app, created.expect("the session is made"))
        });
        let pair = format!("{}:{}", created.handle.id(), created.credential.expose());
        Self {
            authorization: format!("Basic {}", STANDARD.encode(pair)),
            token: created.sealed_secrets["KEY"].clone(),
            session: created.handle.id().clone(),
            runtime,
            app,
        }
    }

    /// Sends bytes over one connection; returns what came back until its end.
    fn talk(&self, pieces: &[&[u8]], then_close: bool) -> Vec<u8> {
        let here: SocketAddr = "127.0.0.1:50000".parse().expect("an address");
        let newcomer = Newcomers::new(1, 1).admit(here.ip());
        let peer = Peer {
            address: here,
            listener: here,
            tls: false,
            newcomer: newcomer.expect("a seat"),
        };
        self.runtime.block_on(async {
            let (client, server) = tokio::io::duplex(64 * 1024);
            let serving = self.app.handler()(Box::new(server), peer);
            let (mut reader, mut writer) = tokio::io::split(client);
            let send = async {
                for piece in pieces {
                    // The other side may have heard enough.
                    if writer.write_all(piece).await.is_err() {
                        return;
                    }
                }
                if then_close {
                    drop(writer.shutdown().await);
                }
            };
            let mut answer = Vec::new();
            let receive = reader.read_to_end(&mut answer);
            let ((), (), received) = tokio::join!(serving, send, receive);
            drop(received);
            answer
        })
    }

    /// Calls the management API; returns status and body.
    fn call(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let kind = if method == "PATCH" {
            "merge-patch+json"
        } else {
            "json"
        };
        let length = if body.is_empty() {
            String::new()
        } else {
            format!(
                "Content-Type: application/{kind}\r\nContent-Length: {}\r\n",
                body.len()
            )
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {API_KEY}\r\n\
             Connection: close\r\n{length}\r\n"
        );
        let answer = self.talk(&[head.as_bytes(), body], false);
        let end = memchr::memmem::find(&answer, b"\r\n\r\n").expect("an answer has a head");
        let status = std::str::from_utf8(&answer[9..12])
            .ok()
            .and_then(|text| text.parse().ok());
        let shown = String::from_utf8_lossy(&answer);
        assert!(!shown.contains(API_KEY), "the key is told");
        (status.expect("a status"), answer[end + 4..].to_vec())
    }

    /// Deletes every session but our own.
    fn forget(&self) {
        let tenant = TenantId::new(TENANT);
        for handle in self.app.sessions().list(&tenant, None, 100) {
            if *handle.id() != self.session {
                let gone = self.app.sessions().delete(&tenant, handle.id());
                self.runtime.block_on(gone).expect("a session is deleted");
            }
        }
    }
}

fn config() -> Config {
    let any_port = "127.0.0.1:0".parse().ok();
    let mut config = Config::default();
    config.proxy.listen = any_port;
    config.admin.listen = any_port;
    config.upstream.resolve = ["good.example", "pinned.example"]
        .map(|name| Resolve {
            host: Host::parse(name).expect("a name"),
            ip: [10, 0, 0, 1].into(),
            port: None,
        })
        .into();
    config
}

fn parts() -> Parts {
    let root = Root::generate("fuzz").expect("a root is made");
    Parts {
        authority: Arc::new(CertificateAuthority::new(root).expect("a root signs")),
        api_key: Fingerprint::of(API_KEY.as_bytes()),
        audit: Sink::discard(),
        storage: Storage::in_memory(),
    }
}

/// Sends the input as the first bytes of a connection or of a tunnel: as they are, or as a TLS
/// handshake, whole or cut, to a host that is read and to one that is passed through.
pub fn detect(data: &[u8]) {
    let Some(([kind, seed], data)) = data.split_first_chunk() else {
        return;
    };
    SERVICE.with_borrow(|service| {
        let target = match kind % 5 {
            0 => None,
            1 => Some("good.example:80"),
            2 | 3 => Some("good.example:443"),
            _ => Some("pinned.example:443"),
        };
        // The input knows no token of this run.
        let sent = replace(
            data,
            b"SEALED_00000000000000000000000000000000",
            &service.token,
        );
        let sent = match kind % 5 {
            3 | 4 => records(&sent, *seed),
            _ => sent,
        };
        let connect = target.map_or(String::new(), |target| {
            format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {}\r\n\r\n",
                service.authorization
            )
        });
        let mut pieces = vec![connect.as_bytes()];
        pieces.extend(cut::pieces(&sent, u64::from(*seed)));
        let answer = service.talk(&pieces, seed % 2 == 0);
        let rest = if target.is_some() {
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "a tunnel is opened");
            let end = memchr::memmem::find(&answer, b"\r\n\r\n").expect("its head ends");
            &answer[end + 4..]
        } else {
            answer.as_slice()
        };
        let tls = matches!(rest.first(), Some(0x15 | 0x16));
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 ") || (target.is_some() && tls));
        assert!(
            memchr::memmem::find(&answer, CANARY.as_bytes()).is_none()
                || memchr::memmem::find(data, CANARY.as_bytes()).is_some()
        );
    });
}

fn replace(text: &[u8], what: &[u8], by: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for place in memchr::memmem::find_iter(text, what) {
        out.extend_from_slice(&text[from..place]);
        out.extend_from_slice(by.as_bytes());
        from = place + what.len();
    }
    out.extend_from_slice(&text[from..]);
    out
}

/// Puts a text into handshake records (RFC 8446 §5.1).
fn records(text: &[u8], seed: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let whole = [text];
    let pieces: Vec<&[u8]> = match seed % 3 {
        0 => cut::pieces(text, u64::from(seed)).collect(),
        _ => whole.to_vec(),
    };
    for piece in pieces {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX).to_be_bytes();
        out.extend_from_slice(&[0x16, 3, 1, length[0], length[1]]);
        out.extend_from_slice(piece);
    }
    out
}

/// Sends the input as the body of a creation and of a patch, as it is and with real values in it.
pub fn session_json(data: &[u8]) {
    SERVICE.with_borrow(|service| {
        if !data.is_empty() {
            let (status, _) = service.call("POST", "/v1/sessions", data);
            assert!(matches!(status, 201 | 400 | 413 | 422), "{status}");
        }
        if let Ok(mut body) = serde_json::from_slice(data)
            && put_values(&mut body)
        {
            let body = body.to_string();
            let named = body.matches(CANARY).count() > body.matches(VALUE).count();
            let check = |answer: &(u16, Vec<u8>)| {
                let shown = String::from_utf8_lossy(&answer.1);
                assert!(
                    matches!(answer.0, 200 | 201 | 204 | 400 | 413 | 422),
                    "{shown}"
                );
                assert!(named || !shown.contains(CANARY), "a value is told: {shown}");
            };
            let created = service.call("POST", "/v1/sessions", body.as_bytes());
            check(&created);
            if created.0 == 201 {
                let created: Value = serde_json::from_slice(&created.1).expect("JSON");
                let path = format!(
                    "/v1/sessions/{}",
                    created["session_id"].as_str().expect("an id")
                );
                check(&service.call("PATCH", &path, body.as_bytes()));
                check(&service.call("GET", &path, b""));
            }
            let own = format!("/v1/sessions/{}", service.session);
            check(&service.call("PATCH", &own, br#"{"metadata":null}"#));
        }
        service.forget();
    });
}

/// Puts the canary wherever a value of a secret stands; tells whether there is such a place.
fn put_values(body: &mut Value) -> bool {
    let Some(Value::Object(secrets)) = body.get_mut("secrets") else {
        return body.is_object();
    };
    for secret in secrets.values_mut() {
        match secret {
            Value::String(value) => VALUE.clone_into(value),
            Value::Object(fields) => {
                if let Some(value) = fields.get_mut("value") {
                    *value = Value::from(VALUE);
                }
            }
            _ => {}
        }
    }
    true
}
