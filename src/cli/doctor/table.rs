//! The clients that `doctor` knows: where each looks for a proxy and for roots, and how it is tried.
//!
//! What stands here was found out by running each client; [`crate::client_env`] sets the variables
//! of the same table. Data only.

/// A program or library that makes requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) found: Found,
    /// The variables with a proxy for `https` URLs, in the order it looks; the first that is set
    /// counts.
    pub(super) proxies: &'static [&'static str],
    pub(super) tls_proxy: TlsProxy,
    pub(super) trust: Trust,
    /// How it is run; nothing where a run would cost more than a moment, or need an account.
    pub(super) attempt: Option<Attempt>,
    /// What holds even where all is well.
    pub(super) note: Option<&'static str>,
}

/// How a client is found on the machine.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found {
    /// By a program of its name.
    Program,
    /// By a module of the Python that is installed.
    Python(&'static str),
}

/// Whether a client speaks TLS to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsProxy {
    /// It does not.
    No,
    /// It does, and verifies the proxy against the system's store, whatever its variables say.
    SystemStore,
    /// It does.
    Yes,
}

/// What a client does with the files of its variables.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trust {
    /// Every file adds to the roots it has.
    Adds(&'static [&'static str], Store),
    /// A trust store of its own, named in `JAVA_TOOL_OPTIONS`.
    Java,
    /// The first file that is named replaces the roots it has.
    Replaces(&'static [&'static str], Store),
    /// The file of `ca_certificate` in the file of `WGETRC`.
    Wget,
}

/// The roots that a client has without any variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// Those it was built with.
    Own,
    /// The system's.
    System,
}

/// How a client is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Aiohttp,
    Bun,
    Curl,
    Deno,
    Git,
    Httpx,
    Java,
    Node,
    Npm,
    Pip,
    Requests,
    Urllib,
    Wget,
}

const CURL: &[&str] = &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const PYTHON: &[&str] = &["https_proxy", "HTTPS_PROXY"];
const GO: &[&str] = &["HTTPS_PROXY", "https_proxy"];

/// A client like most: found by its name, run, speaking TLS to a proxy.
const fn client(name: &'static str, proxies: &'static [&'static str], trust: Trust) -> Client {
    Client {
        name,
        found: Found::Program,
        proxies,
        tls_proxy: TlsProxy::Yes,
        trust,
        attempt: None,
        note: None,
    }
}

const fn python(name: &'static str, module: &'static str, client: Client) -> Client {
    Client {
        name,
        found: Found::Python(module),
        ..client
    }
}

/// Every client, in the order they are reported.
pub(super) const CLIENTS: &[Client] = &[
    Client {
        tls_proxy: TlsProxy::SystemStore,
        attempt: Some(Attempt::Curl),
        ..client(
            "curl",
            CURL,
            Trust::Replaces(&["CURL_CA_BUNDLE", "SSL_CERT_FILE"], Store::System),
        )
    },
    Client {
        tls_proxy: TlsProxy::No,
        attempt: Some(Attempt::Wget),
        ..client("wget", &["https_proxy"], Trust::Wget)
    },
    Client {
        attempt: Some(Attempt::Git),
        ..client(
            "git",
            CURL,
            Trust::Replaces(&["GIT_SSL_CAINFO"], Store::System),
        )
    },
    client("gh", GO, Trust::Adds(&["SSL_CERT_FILE"], Store::System)),
    client("go", GO, Trust::Adds(&["SSL_CERT_FILE"], Store::System)),
    python(
        "urllib",
        "urllib",
        Client {
            tls_proxy: TlsProxy::No,
            attempt: Some(Attempt::Urllib),
            ..client(
                "",
                PYTHON,
                Trust::Replaces(&["SSL_CERT_FILE"], Store::System),
            )
        },
    ),
    python(
        "requests",
        "requests",
        Client {
            attempt: Some(Attempt::Requests),
            ..client(
                "",
                CURL,
                Trust::Replaces(&["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"], Store::Own),
            )
        },
    ),
    python(
        "httpx",
        "httpx",
        Client {
            attempt: Some(Attempt::Httpx),
            ..client("", CURL, Trust::Replaces(&["SSL_CERT_FILE"], Store::Own))
        },
    ),
    python(
        "aiohttp",
        "aiohttp",
        Client {
            tls_proxy: TlsProxy::No,
            attempt: Some(Attempt::Aiohttp),
            note: Some("only in sessions made with trust_env=True"),
            ..client(
                "",
                PYTHON,
                Trust::Replaces(&["SSL_CERT_FILE"], Store::System),
            )
        },
    ),
    python(
        "pip",
        "pip",
        Client {
            attempt: Some(Attempt::Pip),
            ..client(
                "",
                &[
                    "PIP_PROXY",
                    "https_proxy",
                    "HTTPS_PROXY",
                    "all_proxy",
                    "ALL_PROXY",
                ],
                Trust::Replaces(
                    &["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"],
                    Store::Own,
                ),
            )
        },
    ),
    client(
        "uv",
        &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        Trust::Replaces(&["SSL_CERT_FILE"], Store::Own),
    ),
    Client {
        attempt: Some(Attempt::Node),
        ..client(
            "node",
            PYTHON,
            Trust::Adds(&["NODE_EXTRA_CA_CERTS"], Store::Own),
        )
    },
    Client {
        attempt: Some(Attempt::Npm),
        ..client(
            "npm",
            &[
                "NPM_CONFIG_HTTPS_PROXY",
                "HTTPS_PROXY",
                "https_proxy",
                "HTTP_PROXY",
                "http_proxy",
            ],
            Trust::Replaces(&["npm_config_cafile", "NPM_CONFIG_CAFILE"], Store::Own),
        )
    },
    Client {
        attempt: Some(Attempt::Bun),
        ..client(
            "bun",
            PYTHON,
            Trust::Adds(&["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"], Store::Own),
        )
    },
    Client {
        attempt: Some(Attempt::Deno),
        ..client(
            "deno",
            PYTHON,
            Trust::Adds(&["DENO_CERT", "NODE_EXTRA_CA_CERTS"], Store::Own),
        )
    },
    Client {
        tls_proxy: TlsProxy::No,
        attempt: Some(Attempt::Java),
        note: Some("only in programs with an Authenticator for the proxy's credential"),
        ..client("java", &[], Trust::Java)
    },
    client(
        "cargo",
        &[
            "CARGO_HTTP_PROXY",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ],
        Trust::Replaces(&["CARGO_HTTP_CAINFO", "SSL_CERT_FILE"], Store::System),
    ),
    client(
        "claude",
        &["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"],
        Trust::Adds(&["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"], Store::System),
    ),
    client(
        "codex",
        &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        Trust::Adds(&["CODEX_CA_CERTIFICATE", "SSL_CERT_FILE"], Store::System),
    ),
];
