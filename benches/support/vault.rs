//! Our service in the bench's own process, with one session.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oshu_vault::app::{App, Parts, Storage, TENANT};
use oshu_vault::audit::Sink;
use oshu_vault::authority::{CertificateAuthority, Root};
use oshu_vault::config::{self, Config};
use oshu_vault::host::Host;
use oshu_vault::id::TenantId;
use oshu_vault::secret::{Fingerprint, Secret};
use oshu_vault::session::{Form, SecretForm};

use super::{HOST, Origin, SECRET, SECRET_NAME, runtime};

/// What a client needs to come through our proxy.
pub(crate) struct Vault {
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
    pub(crate) authorization: String,
    pub(crate) token: String,
}

/// Starts the whole service on a thread of its own, with one session.
pub(crate) fn vault(origin: &Origin) -> Vault {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("origin.pem");
    std::fs::write(&ca_file, &origin.ca_pem).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let (app, ca_pem) = app(ca_file, Storage::in_memory(), |_| ()).await;
            let secret = SecretForm {
                value: Secret::new(SECRET.into()),
                hosts: Some(vec![HOST.to_owned()]),
                inject: None,
                prefix: None,
            };
            let form = Form {
                secrets: [(SECRET_NAME.to_owned(), secret)].into(),
                ..Form::default()
            };
            let tenant = TenantId::new(TENANT);
            let created = app.sessions().create(&tenant, form).await.unwrap();
            let pair = format!("{}:{}", created.handle.id(), created.credential.expose());
            let vault = Vault {
                address: app.listening().plain.unwrap(),
                ca_pem,
                authorization: format!("Basic {}", STANDARD.encode(pair)),
                token: created.sealed_secrets[SECRET_NAME].clone(),
            };
            tell.send(vault).unwrap();
            std::future::pending::<()>().await;
        });
    });
    told.recv().unwrap()
}

/// Starts the service with a change to its configuration. Returns it and its root certificate.
pub(crate) async fn app(
    origin_ca: std::path::PathBuf,
    storage: Storage,
    change: impl FnOnce(&mut Config),
) -> (App, String) {
    let any_port = Some("127.0.0.1:0".parse().unwrap());
    let mut config = Config {
        dev: true,
        ..Config::default()
    };
    config.proxy.listen = any_port;
    config.admin.listen = any_port;
    config.upstream.ca_files = vec![origin_ca];
    config.upstream.resolve = vec![config::Resolve {
        host: Host::parse(HOST).unwrap(),
        ip: [127, 0, 0, 1].into(),
        port: None,
    }];
    change(&mut config);
    let root = Root::generate("bench").unwrap();
    let ca_pem = root.cert_pem().to_owned();
    let parts = Parts {
        authority: Arc::new(CertificateAuthority::new(root).unwrap()),
        api_key: Fingerprint::of(b"bench"),
        audit: Sink::to_writer(Box::new(std::io::sink())),
        storage,
    };
    (App::start(&config, parts).await.unwrap(), ca_pem)
}
