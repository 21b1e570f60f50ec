//! The files that real clients are pointed to, written where a verb wants them.
//!
//! The root alone, the bundle, what wget, Java and node read; certificates of the public and our
//! own root, never a key or a secret. Also finds out what the writing depends on: the roots that
//! the user's clients trust today, the release of node, and a proxy's own root. Called by `run`,
//! `env` and `doctor`.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use tokio::process::Command;
use tokio::time::timeout;

use super::folder::{Folder, KeptFolder};
use super::{Exit, client};
use crate::client_env::{
    Files, PRELOAD, ProxyUrl, bundle, certificates, holds_certificate, needs_preload, trust_store,
    wgetrc,
};
use crate::config::PublicUrl;

/// Where systems keep their roots in one file, the most common first.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// The most bytes of a bundle; a usual one has some 250 KiB.
const BUNDLE_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// How long node may take to tell its version.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many hex digits of a root's fingerprint name a folder.
const FOLDER_NAME_DIGITS: usize = 16;

/// A folder that the files are written into.
pub(super) trait Shelf {
    /// Returns where a file of the folder lies.
    fn path(&self, name: &str) -> PathBuf;

    /// Writes a file and returns its path.
    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, Exit>;
}

impl Shelf for Folder {
    fn path(&self, name: &str) -> PathBuf {
        Self::path(self, name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, Exit> {
        Self::write(self, name, content)
    }
}

impl Shelf for KeptFolder {
    fn path(&self, name: &str) -> PathBuf {
        Self::path(self, name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, Exit> {
        Self::write(self, name, content)
    }
}

/// Writes the files. `inherited` looks up a variable of the user's: the roots that are trusted
/// today stay trusted.
pub(super) fn lay_out(
    shelf: &impl Shelf,
    ca_pem: &str,
    inherited: impl Fn(&str) -> Option<OsString>,
    with_preload: bool,
) -> Result<Files, Exit> {
    let bundle = bundle(
        system_bundle(inherited("SSL_CERT_FILE"), ca_pem).as_deref(),
        ca_pem,
    );
    let path = shelf.path("bundle.pem");
    let preload = if with_preload {
        Some(shelf.write("preload.cjs", PRELOAD.as_bytes())?)
    } else {
        None
    };
    Ok(Files {
        ca: shelf.write("ca.pem", ca_pem.as_bytes())?,
        wgetrc: shelf.write("wgetrc", wgetrc(&path).as_encoded_bytes())?,
        trust_store: Some(shelf.write("cacerts", &trust_store(&bundle))?),
        bundle: shelf.write("bundle.pem", bundle.as_bytes())?,
        preload,
    })
}

/// Reads the roots that the user's clients trust today: the file that was named, else the
/// system's. What cannot be read, or has no certificate but our own, is passed over.
fn system_bundle(inherited: Option<OsString>, own: &str) -> Option<String> {
    let own: Vec<_> = certificates(own).collect();
    let known = SYSTEM_BUNDLES.iter().map(OsString::from);
    inherited.into_iter().chain(known).find_map(|path| {
        let text = read_bundle(Path::new(&path)).ok()?;
        let has_others = certificates(&text).any(|one| !own.contains(&one));
        has_others.then_some(text)
    })
}

/// Reads a file of certificates.
pub(super) fn read_bundle(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(BUNDLE_LIMIT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Finds the file of the system's roots.
pub(super) fn system_store() -> Option<&'static Path> {
    let mut known = SYSTEM_BUNDLES.iter().map(Path::new);
    known.find(|path| path.is_file())
}

/// Asks node, where there is one, for its version; `variables` is its whole environment.
pub(super) async fn node_version(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Option<String> {
    let mut node = Command::new("node");
    node.arg("--version").env_clear().envs(variables);
    node.stdin(Stdio::null()).kill_on_drop(true);
    let told = timeout(NODE_TIMEOUT, node.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&told.stdout);
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Tells whether node, where there is one, needs the preload.
pub(super) async fn node_needs_preload(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> bool {
    let version = node_version(variables).await;
    version.is_some_and(|version| needs_preload(&version))
}

/// Asks a proxy for its root, as PEM. `ca` is the root that a TLS listener's own certificate leads
/// to.
///
/// # Errors
/// Exit code 1 naming the proxy, 64 for a bad file.
pub(super) async fn root_of(proxy: &ProxyUrl, ca: Option<&Path>) -> Result<String, Exit> {
    let url = address_of(proxy)?;
    let (status, body) = client::ask(&url, ca, "/v1/ca.pem").await?;
    let text = String::from_utf8(body).ok();
    let text = text.filter(|text| status == 200 && holds_certificate(text));
    text.ok_or_else(|| Exit::failed(&format!("{url} gave no root certificate (status {status})")))
}

/// Returns where a proxy listens, without the credential.
pub(super) fn address_of(proxy: &ProxyUrl) -> Result<PublicUrl, Exit> {
    let scheme = if proxy.is_tls() { "https" } else { "http" };
    let text = format!("{scheme}://{}", proxy.authority());
    PublicUrl::parse(&text).ok_or_else(|| Exit::usage(format!("error: {text} is no address")))
}

/// Names the folder of one root's files: those of another proxy lie in another one.
pub(super) fn folder_name(ca_pem: &str) -> String {
    let root = certificates(ca_pem).next();
    let hash = digest(&SHA256, root.as_deref().unwrap_or_default());
    let mut name = HEXLOWER.encode(hash.as_ref());
    name.truncate(FOLDER_NAME_DIGITS);
    name
}

#[cfg(test)]
mod tests {
    use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

    use super::*;
    use crate::authority::certificate_pem;

    #[test]
    fn the_roots_of_the_user_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        let (own, other) = (&TLS_SERVER_ROOT_CERTS[0], &TLS_SERVER_ROOT_CERTS[1]);
        let (own, other) = (certificate_pem(own), certificate_pem(other));
        let inherited = || Some(path.clone().into());
        std::fs::write(&path, &other).unwrap();
        assert_eq!(system_bundle(inherited(), &own), Some(other));
        for useless in ["nothing", &own] {
            std::fs::write(&path, useless).unwrap();
            assert_ne!(system_bundle(inherited(), &own).as_deref(), Some(useless));
        }
    }

    #[test]
    fn files_that_are_kept_are_written_anew_and_do_not_grow() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = KeptFolder::make(&folder.path().join("a b/c")).unwrap();
        let own = certificate_pem(&TLS_SERVER_ROOT_CERTS[0]);
        let first = lay_out(&shelf, &own, |_| None, true).unwrap();
        let text = std::fs::read_to_string(&first.bundle).unwrap();
        let inherited = |_: &str| Some(first.bundle.clone().into());
        let second = lay_out(&shelf, &own, inherited, true).unwrap();
        assert_eq!(first, second);
        assert_eq!(std::fs::read_to_string(&second.bundle).unwrap(), text);
        let left = std::fs::read_dir(folder.path().join("a b/c")).unwrap();
        assert_eq!(left.count(), 5);
    }

    #[test]
    fn folders_are_named_by_the_root() {
        let name = |index: usize| folder_name(&certificate_pem(&TLS_SERVER_ROOT_CERTS[index]));
        assert_eq!(name(0).len(), FOLDER_NAME_DIGITS);
        assert_eq!(name(0), name(0));
        assert_ne!(name(0), name(1));
    }
}
