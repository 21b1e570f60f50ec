//! A root follows another, seen by TLS clients: before, at and after its time, with restarts.
//!
//! The time is a clock that the test moves; what is verified is verified by the clients' own clock,
//! which all three certificates are good for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use oshu_vault::authority::{CertificateAuthority, KEPT, Root, look, plan};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::support::{Conn, GOOD, Scene, Workload};

const TARGET: &str = "good.example.com:443";
const HOUR: Duration = Duration::from_hours(1);
const NEARLY: Duration = Duration::from_secs(3599);

/// A clock that a test moves.
#[derive(Clone)]
struct Clock {
    start: SystemTime,
    ahead: Arc<AtomicU64>,
}

impl Clock {
    fn now(&self) -> SystemTime {
        self.start + Duration::from_secs(self.ahead.load(Ordering::SeqCst))
    }

    fn set(&self, since_start: Duration) {
        self.ahead.store(since_start.as_secs(), Ordering::SeqCst);
    }
}

/// Starts a vault as `serve` does over a folder.
async fn start(folder: &Path, clock: &Clock) -> (Scene, Arc<CertificateAuthority>) {
    look(folder, clock.now()).expect("a folder");
    let root = Root::load(&folder.join("ca.pem"), &folder.join("ca.key")).expect("a root");
    let own = clock.clone();
    let authority = CertificateAuthority::with_clock(root, move || own.now());
    let authority = Arc::new(authority.expect("an authority"));
    authority.refresh(folder).expect("the files");
    let shown = Arc::clone(&authority);
    let scene = Scene::vault(|vault| vault.authority(shown)).await;
    (scene, authority)
}

async fn file(scene: &Scene, path: &str) -> String {
    let mut conn = scene.workload.plain().await;
    conn.send(format!("GET {path} HTTP/1.1\r\nHost: v\r\n\r\n"))
        .await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{path}");
    answer.text().to_owned()
}

/// Tells whether a client that trusts these certificates gets an answer in a new tunnel.
async fn reaches(workload: &Workload, pem: &str) -> bool {
    let mut roots = RootCertStore::empty();
    for one in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        // Public roots are among them, some of which rustls does not take.
        let _unsupported = roots.add(one.expect("a certificate"));
    }
    let tunnel = workload.tunnel(TARGET).await;
    let name = ServerName::try_from(GOOD).expect("a name");
    let stream = workload
        .trusting(roots)
        .handshake(tunnel.into_io(), name, &[])
        .await;
    let Ok(stream) = stream else { return false };
    works(&mut Conn::new(stream)).await;
    true
}

async fn works(conn: &mut Conn) {
    conn.send(format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    assert_eq!(conn.answer().await.status, 200);
}

/// Returns how many of our own certificates stand behind the public ones.
fn own(bundle: &str, files: &[&str]) -> Vec<bool> {
    files.iter().map(|pem| bundle.contains(pem)).collect()
}

#[tokio::test]
async fn clients_that_fetched_the_bundle_in_time_never_notice() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    Root::load_or_generate(folder).expect("a root");
    let clock = Clock {
        start: SystemTime::now(),
        ahead: Arc::default(),
    };
    let (scene, authority) = start(folder, &clock).await;
    let first = file(&scene, "/v1/ca.pem").await;
    let planned = plan(folder, "Next root", clock.now() + HOUR, clock.now()).expect("a plan");
    let next = planned.next.expect("a root").root.cert_pem().to_owned();
    authority.refresh(folder).expect("the files");
    let roots = [first.as_str(), next.as_str()];
    assert_eq!(
        file(&scene, "/v1/ca.pem").await,
        first,
        "one certificate: what signs"
    );
    let bundle = file(&scene, "/v1/bundle.pem").await;
    assert_eq!(
        own(&bundle, &roots),
        [true, true],
        "the next one is there at once"
    );
    let reached = async |scene: &Scene| {
        let mut reached = Vec::new();
        for pem in [first.as_str(), next.as_str(), bundle.as_str()] {
            reached.push(reaches(&scene.workload, pem).await);
        }
        reached
    };
    assert_eq!(reached(&scene).await, [true, false, true]);
    drop((scene, authority));

    let (scene, authority) = start(folder, &clock).await;
    assert_eq!(file(&scene, "/v1/ca.pem").await, first);
    assert_eq!(
        own(&file(&scene, "/v1/bundle.pem").await, &roots),
        [true, true]
    );
    clock.set(NEARLY);
    assert_eq!(reached(&scene).await, [true, false, true]);
    let mut open = scene.workload.connect(TARGET).await;
    works(&mut open).await;
    clock.set(HOUR);
    assert_eq!(reached(&scene).await, [false, true, true]);
    works(&mut open).await;
    assert_eq!(file(&scene, "/v1/ca.pem").await, next);
    assert_eq!(
        own(&file(&scene, "/v1/bundle.pem").await, &roots),
        [true, true]
    );
    // It ends before it has written anything.
    drop((scene, authority));

    let (scene, authority) = start(folder, &clock).await;
    assert_eq!(reached(&scene).await, [false, true, true]);
    assert_eq!(file(&scene, "/v1/ca.pem").await, next);
    assert_eq!(
        std::fs::read_to_string(folder.join("ca.pem")).expect("a file"),
        next
    );
    clock.set(HOUR + KEPT);
    assert_eq!(
        own(&file(&scene, "/v1/bundle.pem").await, &roots),
        [false, true]
    );
    drop((scene, authority));
    let (scene, _authority) = start(folder, &clock).await;
    assert_eq!(
        own(&file(&scene, "/v1/bundle.pem").await, &roots),
        [false, true]
    );
}
