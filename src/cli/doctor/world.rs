//! What the findings are about: the environment, the proxy, its root, and files to point to.
//!
//! Files that the environment does not have are written once, when the first finding needs one.
//! The proxy's credential leaves this module only inside comparisons. Called by `doctor`.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::client_files::{read_bundle, system_store};
use crate::cli::env::shell_word;
use crate::client_env::{BUNDLE, Files, ProxyUrl, certificates, holds_certificate, holds_root};

/// Variables that may hold the proxy's URL, the most usual first.
const PROXIES: &[&str] = &[
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "HTTP_PROXY",
    "http_proxy",
];

/// What a file of roots is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// It has the proxy's root and others.
    Bundle,
    /// It has the proxy's root alone.
    RootAlone,
    /// It has certificates, and the proxy's root is not one of them.
    Others,
    /// It has no certificate.
    Nothing,
    /// It cannot be read.
    Unreadable(std::io::ErrorKind),
}

/// Writes the files, where they can be.
pub(super) type LayOut = Box<dyn Fn() -> Option<Files>>;

/// The environment that clients get, and what it should be.
pub(super) struct World {
    pub(super) variables: BTreeMap<OsString, OsString>,
    pub(super) proxy: ProxyUrl,
    /// The variable that `--proxy-url env:VAR` named.
    pub(super) proxy_variable: Option<String>,
    pub(super) ca_pem: String,
    /// The host that clients ask for.
    pub(super) host: String,
    /// The release of node, where there is one.
    pub(super) node: Option<String>,
    /// The folder that was named for files, for commands that write there too.
    pub(super) ca_dir: Option<PathBuf>,
    /// Whether the system's store has the proxy's root.
    pub(super) system: bool,
    pub(super) lay_out: LayOut,
    pub(super) files: OnceCell<Option<Files>>,
}

impl World {
    /// Returns a variable that is set to something.
    pub(super) fn variable(&self, name: &str) -> Option<&OsString> {
        let value = self.variables.get(std::ffi::OsStr::new(name));
        value.filter(|value| !value.is_empty())
    }

    /// Returns a variable as text; nothing where it is not UTF-8.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.variable(name)?.to_str()
    }

    /// Tells whether a text is the URL of the proxy, with its credential.
    pub(super) fn is_proxy(&self, text: &str) -> bool {
        ProxyUrl::parse(text).is_some_and(|url| {
            url.authority() == self.proxy.authority()
                && url.is_tls() == self.proxy.is_tls()
                && url.credential() == self.proxy.credential()
        })
    }

    /// Finds a variable that holds the proxy's URL: advice refers to it, so that the credential is
    /// not printed.
    pub(super) fn proxy_variable(&self) -> Option<&str> {
        let known = PROXIES
            .iter()
            .copied()
            .chain(self.proxy_variable.as_deref());
        let mut known = known.filter(|name| self.text(name).is_some_and(|url| self.is_proxy(url)));
        known.next()
    }

    /// Says how a variable is set to the path of a file.
    pub(super) fn export(name: &str, path: &Path) -> String {
        format!("export {name}={}", shell_word(&path.to_string_lossy()))
    }

    /// Looks into a file of roots.
    pub(super) fn roots(&self, path: &Path) -> Roots {
        roots(path, &self.ca_pem)
    }

    /// Finds a file with the proxy's root and the others.
    pub(super) fn bundle(&self) -> Option<PathBuf> {
        let named = BUNDLE.iter().filter_map(|name| self.variable(name));
        let good = named.map(PathBuf::from);
        good.filter(|path| path.is_absolute())
            .find(|path| self.roots(path) == Roots::Bundle)
            .or_else(|| Some(self.files()?.bundle.clone()))
    }

    /// Finds a file with the proxy's root.
    pub(super) fn root(&self) -> Option<PathBuf> {
        let named = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"].iter();
        let mut good = named
            .filter_map(|name| self.variable(name))
            .map(PathBuf::from);
        good.find(|path| path.is_absolute() && self.roots(path) == Roots::RootAlone)
            .or_else(|| Some(self.files()?.ca.clone()))
    }

    /// Returns the files, which are written now if they were not.
    pub(super) fn files(&self) -> Option<&Files> {
        self.files.get_or_init(|| (self.lay_out)()).as_ref()
    }

    /// Takes the credential out of what a client said.
    pub(super) fn redacted(&self, text: &str) -> String {
        let (user, password) = self.proxy.credential();
        let basic = data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes());
        let text = text.replace(&basic, "***").replace(password, "***");
        text.replace(user, "***")
    }
}

fn roots(path: &Path, own: &str) -> Roots {
    match read_bundle(path) {
        Err(error) => Roots::Unreadable(error.kind()),
        Ok(text) if !holds_certificate(&text) => Roots::Nothing,
        Ok(text) if !holds_root(&text, own) => Roots::Others,
        Ok(text) => {
            let own: Vec<_> = certificates(own).collect();
            if certificates(&text).all(|one| own.contains(&one)) {
                Roots::RootAlone
            } else {
                Roots::Bundle
            }
        }
    }
}

/// Tells whether the system's store has a root.
pub(super) fn system_has(ca_pem: &str) -> bool {
    let store = system_store().map(|path| roots(path, ca_pem));
    matches!(store, Some(Roots::Bundle | Roots::RootAlone))
}
