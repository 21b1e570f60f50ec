//! The environment that makes real clients use the proxy and trust its root.
//!
//! Every variable here was chosen by running the client it is for: some add a root to those they
//! have, some replace them all, so that there are two files, the root alone and the whole bundle.
//! Pure: nothing is read from the machine, and nothing is written. Called by `run`, and by whatever
//! else starts a workload.

mod roots;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::host::HostPort;

pub use roots::{
    TRUST_STORE_PASSWORD, bundle, certificates, holds_certificate, holds_root, trust_store,
};

/// What node releases that know no proxy variables load with `--require`.
pub const PRELOAD: &str = include_str!("preload.cjs");

/// The hosts that clients reach without the proxy: this machine, which the proxy would refuse.
pub const DIRECT: &str = "localhost,127.0.0.1,::1";
/// Variables that would take the effect of ours away. `SSL_CERT_DIR` replaces the bundle for some
/// clients and adds to it for others, so that no value of it is right; the others turn off that
/// clients verify at all.
const UNSET: &[&str] = &[
    "SSL_CERT_DIR",
    "NODE_TLS_REJECT_UNAUTHORIZED",
    "GIT_SSL_NO_VERIFY",
];
/// Variables with the proxy's URL. wget reads lower case only; curl reads `http_proxy` in lower
/// case only.
const PROXY: &[&str] = &[
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// Variables with a file that replaces the roots of a client, so that it has to be the bundle.
pub const BUNDLE: &[&str] = &[
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "GIT_PROXY_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NPM_CONFIG_CAFILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
    "BUNDLE_SSL_CA_CERT",
    "HTTPLIB2_CA_CERTS",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
];
const NODE_OPTIONS: &str = "NODE_OPTIONS";
const JAVA_TOOL_OPTIONS: &str = "JAVA_TOOL_OPTIONS";
/// Keeps Claude Code from calls that are about itself. Whoever set it meant what they set.
const QUIET: &str = "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC";

/// A proxy's URL with the session's credential, in the parts that clients want.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    text: String,
    is_tls: bool,
    user: String,
    password: String,
    authority: HostPort,
}

impl ProxyUrl {
    /// Parses `http://USER:PASSWORD@HOST[:PORT]` or the same with `https`; nothing for any other
    /// text. User and password are of `[A-Za-z0-9_-]`: some clients do not decode them.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (is_tls, port) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return None,
        };
        let (user_info, host) = rest.strip_suffix('/').unwrap_or(rest).split_once('@')?;
        let (user, password) = user_info.split_once(':')?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(plain);
        if !is_plain(user) || !is_plain(password) {
            return None;
        }
        Some(Self {
            text: text.to_owned(),
            is_tls,
            user: user.to_owned(),
            password: password.to_owned(),
            authority: HostPort::parse_or(host, port).ok()?,
        })
    }

    /// Returns where the proxy listens.
    pub fn authority(&self) -> &HostPort {
        &self.authority
    }

    /// Tells whether the proxy is spoken to in TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Shows the credential, in the two parts of `Basic` (RFC 7617).
    pub fn credential(&self) -> (&str, &str) {
        (&self.user, &self.password)
    }

    /// Writes the URL for people, without the credential.
    pub fn redacted(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://***@{}", self.authority)
    }

    /// Shows the whole URL, with the credential.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyUrl")
            .field("is_tls", &self.is_tls)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// The files that the variables name, by absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The root alone, for clients that add it to theirs.
    pub ca: PathBuf,
    /// The public roots and ours, for clients that replace theirs: see [`bundle`].
    pub bundle: PathBuf,
    /// A configuration of wget that names the bundle: see [`wgetrc`].
    pub wgetrc: PathBuf,
    /// The bundle as Java reads it: see [`trust_store`].
    pub trust_store: Option<PathBuf>,
    /// [`PRELOAD`] as a file, where node needs it: see [`needs_preload`].
    pub preload: Option<PathBuf>,
}

/// What to change in an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEnv {
    /// Variables to set, in an order that does not change.
    pub set: Vec<(&'static str, OsString)>,
    /// Variables to remove.
    pub unset: &'static [&'static str],
}

/// Lists the variables that send clients through the proxy. `inherited` looks up a variable of the
/// environment that they will be added to: options of node and of Java are kept.
pub fn client_env(
    proxy: &ProxyUrl,
    files: &Files,
    inherited: impl Fn(&str) -> Option<OsString>,
) -> ClientEnv {
    let mut set: Vec<(&'static str, OsString)> = Vec::with_capacity(48);
    set.extend(PROXY.iter().map(|name| (*name, proxy.expose().into())));
    set.extend(["NO_PROXY", "no_proxy"].map(|name| (name, DIRECT.into())));
    set.push(("NODE_USE_ENV_PROXY", "1".into()));
    set.push(("NODE_USE_SYSTEM_CA", "1".into()));
    set.push(("NODE_EXTRA_CA_CERTS", files.ca.clone().into()));
    set.push(("DENO_CERT", files.ca.clone().into()));
    set.push(("DENO_TLS_CA_STORE", "system,mozilla".into()));
    let bundle = || OsString::from(&files.bundle);
    set.extend(BUNDLE.iter().map(|name| (*name, bundle())));
    set.push(("WGETRC", files.wgetrc.clone().into()));
    if let Some(options) = java_options(proxy, files.trust_store.as_deref()) {
        let options = append(inherited(JAVA_TOOL_OPTIONS), options);
        set.push((JAVA_TOOL_OPTIONS, options));
    }
    if let Some(preload) = &files.preload {
        let mut option = OsString::from("--require ");
        option.push(quoted(preload));
        set.push((NODE_OPTIONS, append(inherited(NODE_OPTIONS), option)));
    }
    if inherited(QUIET).is_none() {
        set.push((QUIET, "1".into()));
    }
    ClientEnv { set, unset: UNSET }
}

/// Writes the configuration of wget, which looks at no variable for its roots.
pub fn wgetrc(bundle: &Path) -> OsString {
    let mut text = OsString::from("ca_certificate = ");
    text.push(bundle);
    text.push("\n");
    text
}

/// Tells from the output of `node --version` whether node needs [`PRELOAD`]: 24 and 22.21 were the
/// first to read proxy variables. False for a text that is no version.
pub fn needs_preload(version: &str) -> bool {
    let mut numbers = version.trim().trim_start_matches('v').split('.');
    let mut next = || numbers.next()?.parse::<u32>().ok();
    match (next(), next()) {
        (Some(22), Some(minor)) => minor < 21,
        (Some(major), Some(_)) => major < 24,
        _ => false,
    }
}

/// Lists the properties for a JVM; nothing where the proxy speaks TLS, which no JVM does to one.
fn java_options(proxy: &ProxyUrl, trust_store: Option<&Path>) -> Option<OsString> {
    if proxy.is_tls {
        return None;
    }
    let HostPort { host, port } = &proxy.authority;
    let host = host.to_string();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (user, password) = (&proxy.user, &proxy.password);
    let mut options = OsString::from(format!(
        "-Dhttps.proxyHost={host} -Dhttps.proxyPort={port} \
         -Dhttp.proxyHost={host} -Dhttp.proxyPort={port} \
         -Dhttps.proxyUser={user} -Dhttps.proxyPassword={password} \
         -Dhttp.proxyUser={user} -Dhttp.proxyPassword={password}"
    ));
    if let Some(path) = trust_store {
        options.push(" -Djavax.net.ssl.trustStore=");
        options.push(quoted(path));
        options.push(" -Djavax.net.ssl.trustStoreType=JKS -Djavax.net.ssl.trustStorePassword=");
        options.push(TRUST_STORE_PASSWORD);
    }
    // Both lists name Basic by default, which is what the proxy asks for.
    options.push(" -Djdk.http.auth.tunneling.disabledSchemes=");
    options.push(" -Djdk.http.auth.proxying.disabledSchemes=");
    Some(options)
}

/// Puts our options behind those that were there, so that ours win; once.
fn append(before: Option<OsString>, options: OsString) -> OsString {
    match before {
        Some(all) if all.as_encoded_bytes().ends_with(options.as_encoded_bytes()) => all,
        Some(mut all) if !all.is_empty() => {
            all.push(" ");
            all.push(options);
            all
        }
        _ => options,
    }
}

/// Quotes a path with a space or an apostrophe in it, as node and the JVM both read it.
fn quoted(path: &Path) -> OsString {
    let is_odd = |one: char| one.is_whitespace() || one == '\'';
    let quote = if path.to_string_lossy().chars().any(is_odd) {
        "\""
    } else {
        ""
    };
    let mut text = OsString::from(quote);
    text.push(path);
    text.push(quote);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const URL: &str = "http://sess_1:tok_2@127.0.0.1:8080";

    fn files() -> Files {
        Files {
            ca: "/d/ca.pem".into(),
            bundle: "/d/bundle.pem".into(),
            wgetrc: "/d/wgetrc".into(),
            trust_store: Some("/d/cacerts".into()),
            preload: Some("/d/preload.cjs".into()),
        }
    }

    fn made(url: &str, files: &Files, inherited: &[(&str, &str)]) -> ClientEnv {
        let look_up = |name: &str| {
            let found = inherited.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        client_env(&ProxyUrl::parse(url).unwrap(), files, look_up)
    }

    fn value<'a>(env: &'a ClientEnv, name: &str) -> Option<&'a str> {
        let found = env.set.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_str().unwrap())
    }

    #[test]
    fn the_whole_block_is_set() {
        let env = made(URL, &files(), &[]);
        let java = "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080 \
                    -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8080 \
                    -Dhttps.proxyUser=sess_1 -Dhttps.proxyPassword=tok_2 \
                    -Dhttp.proxyUser=sess_1 -Dhttp.proxyPassword=tok_2 \
                    -Djavax.net.ssl.trustStore=/d/cacerts -Djavax.net.ssl.trustStoreType=JKS \
                    -Djavax.net.ssl.trustStorePassword=changeit \
                    -Djdk.http.auth.tunneling.disabledSchemes= \
                    -Djdk.http.auth.proxying.disabledSchemes=";
        let direct = "localhost,127.0.0.1,::1";
        let expected = [
            ("HTTPS_PROXY", URL),
            ("https_proxy", URL),
            ("HTTP_PROXY", URL),
            ("http_proxy", URL),
            ("ALL_PROXY", URL),
            ("all_proxy", URL),
            ("NO_PROXY", direct),
            ("no_proxy", direct),
            ("NODE_USE_ENV_PROXY", "1"),
            ("NODE_USE_SYSTEM_CA", "1"),
            ("NODE_EXTRA_CA_CERTS", "/d/ca.pem"),
            ("DENO_CERT", "/d/ca.pem"),
            ("DENO_TLS_CA_STORE", "system,mozilla"),
            ("SSL_CERT_FILE", "/d/bundle.pem"),
            ("CURL_CA_BUNDLE", "/d/bundle.pem"),
            ("REQUESTS_CA_BUNDLE", "/d/bundle.pem"),
            ("PIP_CERT", "/d/bundle.pem"),
            ("GIT_SSL_CAINFO", "/d/bundle.pem"),
            ("GIT_PROXY_SSL_CAINFO", "/d/bundle.pem"),
            ("CARGO_HTTP_CAINFO", "/d/bundle.pem"),
            ("AWS_CA_BUNDLE", "/d/bundle.pem"),
            ("NPM_CONFIG_CAFILE", "/d/bundle.pem"),
            ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "/d/bundle.pem"),
            ("NIX_SSL_CERT_FILE", "/d/bundle.pem"),
            ("BUNDLE_SSL_CA_CERT", "/d/bundle.pem"),
            ("HTTPLIB2_CA_CERTS", "/d/bundle.pem"),
            ("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "/d/bundle.pem"),
            ("WGETRC", "/d/wgetrc"),
            ("JAVA_TOOL_OPTIONS", java),
            ("NODE_OPTIONS", "--require /d/preload.cjs"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ];
        let expected: Vec<_> = expected.map(|(name, value)| (name, value.into())).into();
        assert_eq!(env.set, expected);
        let unset = [
            "SSL_CERT_DIR",
            "NODE_TLS_REJECT_UNAUTHORIZED",
            "GIT_SSL_NO_VERIFY",
        ];
        assert_eq!(env.unset, unset);
        let names: BTreeSet<_> = env.set.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), env.set.len(), "a variable is set twice");
    }

    #[test]
    fn options_that_were_there_stay() {
        let inherited = [
            ("NODE_OPTIONS", "--max-old-space-size=1"),
            ("JAVA_TOOL_OPTIONS", "-Xmx1g"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "0"),
        ];
        let env = made(URL, &files(), &inherited);
        let node = "--max-old-space-size=1 --require /d/preload.cjs";
        assert_eq!(value(&env, "NODE_OPTIONS"), Some(node));
        let java = value(&env, "JAVA_TOOL_OPTIONS").unwrap();
        assert!(java.starts_with("-Xmx1g -Dhttps.proxyHost="), "{java}");
        assert_eq!(value(&env, QUIET), None, "left as it is");
        let again = [("NODE_OPTIONS", node), ("JAVA_TOOL_OPTIONS", java)];
        let again = made(URL, &files(), &again);
        assert_eq!(value(&again, "NODE_OPTIONS"), Some(node), "once");
        assert_eq!(value(&again, "JAVA_TOOL_OPTIONS"), Some(java), "once");
    }

    #[test]
    fn what_is_not_there_is_not_named() {
        let bare = Files {
            trust_store: None,
            preload: None,
            ..files()
        };
        let env = made(URL, &bare, &[]);
        assert_eq!(value(&env, "NODE_OPTIONS"), None);
        let java = value(&env, "JAVA_TOOL_OPTIONS").unwrap();
        assert!(!java.contains("trustStore"), "{java}");
        let tls = made("https://a:b@vault.example", &files(), &[]);
        assert_eq!(value(&tls, "JAVA_TOOL_OPTIONS"), None);
        let v6 = made("http://a:b@[::1]:81", &files(), &[]);
        let java = value(&v6, "JAVA_TOOL_OPTIONS").unwrap();
        assert!(java.starts_with("-Dhttps.proxyHost=::1 -Dhttps.proxyPort=81 "));
    }

    #[test]
    fn paths_with_spaces_are_quoted() {
        let spaced = Files {
            preload: Some("/a b/p.cjs".into()),
            trust_store: Some("/it's/t".into()),
            ..files()
        };
        let env = made(URL, &spaced, &[]);
        assert_eq!(
            value(&env, "NODE_OPTIONS"),
            Some("--require \"/a b/p.cjs\"")
        );
        let java = value(&env, "JAVA_TOOL_OPTIONS").unwrap();
        assert!(java.contains("trustStore=\"/it's/t\" "), "{java}");
    }

    #[test]
    fn proxy_urls_are_read_whole_or_not_at_all() {
        let url = ProxyUrl::parse("https://a:b@vault.example/").unwrap();
        assert_eq!(url.authority().to_string(), "vault.example:443");
        assert!(url.is_tls);
        for text in [
            "",
            "a:b@host",
            "socks5://a:b@host",
            "http://host:1",
            "http://a@host",
            "http://:b@host",
            "http://a:@host",
            "http://a:b%40@host",
            "http://a:b@c@host",
            "http://a:b@",
            "http://a:b@host/path",
        ] {
            assert_eq!(ProxyUrl::parse(text), None, "{text}");
        }
        let shown = format!("{:?}", ProxyUrl::parse(URL).unwrap());
        assert!(!shown.contains("tok_2"), "{shown}");
        let url = ProxyUrl::parse(URL).unwrap();
        assert_eq!(url.redacted(), "http://***@127.0.0.1:8080");
        assert_eq!(url.credential(), ("sess_1", "tok_2"));
    }

    #[test]
    fn old_releases_of_node_need_the_preload() {
        for (version, expected) in [
            ("v18.20.4", true),
            ("v20.20.2\n", true),
            ("v22.20.9", true),
            ("v22.21.0", false),
            ("v23.11.1", true),
            ("v24.0.0", false),
            ("v25.1.0-nightly", false),
            ("", false),
            ("nonsense", false),
            ("20", false),
        ] {
            assert_eq!(needs_preload(version), expected, "{version:?}");
        }
    }

    #[test]
    fn wget_is_told_in_its_own_file() {
        let text = wgetrc(Path::new("/d/bundle.pem"));
        assert_eq!(text, "ca_certificate = /d/bundle.pem\n");
    }
}
