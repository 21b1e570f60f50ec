//! Upstreams that are not who they should be, or speak TLS as it was long ago.
//!
//! Certificates are made when a test runs: by a library where it makes such ones, by openssl where
//! only that does. What counts is that no byte of a request leaves before the certificate was
//! verified for the target's name, and that nothing turns that off.

mod certificates;
mod issue;
mod versions;

use std::net::SocketAddr;

use crate::support::{GOOD, H2Client, Origin, REAL, SIDE, Scene, contains};

/// A scene in which the good origin shows some certificate.
struct Stage {
    scene: Scene,
    target: String,
    host: String,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// Sets the scene for a target's name, or its address where that is an address, and trusts the
    /// roots given beside the suite's own.
    async fn set(origin: Origin, host: &str, roots: &[String]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let files: Vec<_> = (0..roots.len())
            .map(|index| folder.path().join(format!("root-{index}.pem")))
            .collect();
        for (file, root) in files.iter().zip(roots) {
            std::fs::write(file, root).expect("a file");
        }
        let address = origin.addr();
        let (target, host) = match host.parse::<std::net::IpAddr>() {
            Ok(_) => (address.to_string(), address.to_string()),
            Err(_) => (format!("{host}:443"), host.to_owned()),
        };
        let vault_host = host.clone();
        let scope = host.clone();
        let scene = Scene::with_good(
            origin,
            move |vault| {
                let vault = match vault_host.parse::<SocketAddr>() {
                    Ok(_) => vault,
                    Err(_) => vault.resolve(&vault_host, address),
                };
                vault.config(|config| config.upstream.ca_files.extend(files))
            },
            move |session| {
                session
                    .secret_hosts([GOOD, scope.as_str()])
                    .allowed_egress([GOOD, SIDE, scope.as_str()])
            },
        )
        .await;
        Self {
            scene,
            target,
            host,
            _folder: folder,
        }
    }

    fn request(&self) -> String {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nX-Key: {{T}}\r\n\r\n",
            self.host
        );
        self.scene.fill(&head)
    }

    /// Asks over HTTP/1.1 and over HTTP/2. Both must be told of the same fault, and the origin must
    /// not receive a byte.
    async fn is_refused(&self, case: &str, code: &str) {
        let scene = &self.scene;
        let mut conn = scene.workload.connect(&self.target).await;
        conn.send(self.request()).await;
        let answer = conn.answer().await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (502, code.to_owned()), "{case}");
        let told = answer.header("proxy-status").unwrap_or_default();
        assert!(told.contains(&format!("error={code}")), "{case}: {told}");
        for secret in [REAL, scene.token()] {
            assert!(!contains(&answer.raw, secret), "{case}");
        }
        let client: H2Client = scene.workload.h2(&self.target).await;
        let fields = [("x-key", scene.token())];
        let answer = client.ask(("GET", "/"), &fields, b"").await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (502, code.to_owned()), "{case} over HTTP/2");
        client.vanish().await;
        // The connection is refused again by the next request, and others are served.
        let mut conn = scene.workload.connect("side.example.com:443").await;
        conn.send("GET / HTTP/1.1\r\nHost: side.example.com\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 200, "after {case}");
    }

    /// Asks, and must be answered by the origin, which must receive the secret.
    async fn is_answered(&self, case: &str) {
        let mut conn = self.scene.workload.connect(&self.target).await;
        conn.send(self.request()).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{case}: {}", answer.head);
        let bytes = self.scene.good.bytes();
        assert!(contains(&bytes, REAL), "{case}");
    }
}
