//! The parsed command line: one typed value for each verb, and the text that a mistake gets.
//!
//! Parsing reads no file and no environment, and repeats no value that a flag was given. Called by
//! `main`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::{
    Config, Flags, Problems, PublicUrl, SETTINGS, Scheme, Setting, Shape, Upstream,
};
use crate::host::HostPattern;
use crate::id::{ApiKeyId, SessionId, TenantId};
use crate::tenant::is_label;

use super::accounts::{self, AccountCalls};
use super::audit::Verify;
use super::grammar::{UPSTREAM_PROXY_FILE, command, is_of_store, is_upstream_value};
use super::keys::{Keys, KeysAction};
use super::proxy_from::ProxyFrom;
use super::seal::Seal;
use super::spec::{self, SecretFlag};
use super::target::ServerFlags;
use super::token::{self, TokenMint};

/// The exit code for a wrong command line or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// What a URL of a server looks like.
pub(super) const URL: &str = "http://HOST[:PORT] or https://HOST[:PORT]";
/// What a time looks like.
const TIME: &str = "a time as 2031-05-04T03:02:01Z (RFC 3339), or now";
const LATER_TEXT: &str = "not available in this version";

/// A parsed command line.
#[derive(Debug, Clone)]
pub struct Cli {
    /// What is asked for.
    pub verb: Verb,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Verb {
    /// `accounts list`, `show`, `set`, `usage`.
    Accounts(Box<AccountCalls>),
    /// `audit verify`.
    Audit(Verify),
    /// `ca show`, `ca export`, `ca generate`.
    Ca(Ca),
    /// `check-config`: prints the effective configuration; takes the flags of `serve`.
    CheckConfig(Flags),
    /// `demo`: the whole story in one process.
    Demo,
    /// `doctor`: looks at this machine's clients.
    Doctor(Doctor),
    /// `env`: prints the environment of a session.
    Env(Env),
    /// `healthcheck`: asks a running server; needs no API key.
    Healthcheck(ServerFlags),
    /// `keys create`, `list`, `revoke`.
    Keys(Box<Keys>),
    /// `run … -- CMD…`.
    Run(Box<Run>),
    /// `seal generate`, `seal rotate`.
    Seal(Seal),
    /// `serve`.
    Serve {
        /// Where the configuration is.
        flags: Flags,
        /// Takes over from a running server.
        takes_over: bool,
    },
    /// `session create`, `list`, `show`, `delete`.
    Session(SessionCalls),
    /// `token mint`.
    Token(TokenMint),
    /// `version`.
    Version,
}

/// What is asked about the certificate authority in the state directory.
#[derive(Debug, Clone)]
pub struct Ca {
    /// The state directory, where it was named.
    pub state_dir: Option<PathBuf>,
    /// What is to be done.
    pub action: CaAction,
}

/// What is to be done with the certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaAction {
    /// Writes the root's certificate to a file, or to stdout.
    Export {
        /// The file.
        out: Option<PathBuf>,
    },
    /// Makes a root with its key.
    Generate {
        /// The folder; the state directory where none is named.
        out: Option<PathBuf>,
    },
    /// Plans a root that follows, or takes the plan back.
    Rotate(Rotate),
    /// Prints subject, validity and fingerprint.
    Show,
}

/// What becomes of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotate {
    /// A fresh one signs from a time on.
    At(SystemTime),
    /// The one that was planned does not follow.
    Cancel,
    /// A fresh one signs at once.
    Now,
}

/// A call to a server's session API.
#[derive(Debug, Clone)]
pub struct SessionCalls {
    /// Which server.
    pub server: ServerFlags,
    /// Which call.
    pub action: SessionAction,
}

/// One call of the session API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionAction {
    /// Creates a session from a JSON request.
    Create {
        /// The file with the request; stdin where none is named.
        file: Option<PathBuf>,
    },
    /// Ends a session.
    Delete(SessionId),
    /// Lists the tenant's sessions.
    List,
    /// Prints one session.
    Show(SessionId),
}

/// A command to run behind a private proxy, or behind a running server.
#[derive(Debug, Clone)]
pub struct Run {
    /// The secrets, with their scopes.
    pub secrets: Vec<SecretFlag>,
    /// The hosts the command may reach; any public host where none is named.
    pub allow: Vec<HostPattern>,
    /// The running server to use in place of a private proxy.
    pub server: Option<ServerFlags>,
    /// The file for audit records of the private proxy.
    pub audit: Option<PathBuf>,
    /// The private proxy's way out.
    pub upstream: Upstream,
    /// The file with the URL of the proxy on that way, which is not in `upstream` yet.
    pub upstream_proxy_file: Option<PathBuf>,
    /// The program and its arguments; never empty.
    pub command: Vec<OsString>,
}

/// The environment of a session, to be printed.
#[derive(Debug, Clone)]
pub struct Env {
    /// In which form.
    pub format: EnvFormat,
    /// Which session.
    pub way: EnvWay,
    /// The variables that are wanted; all of them where none is named.
    pub only: Vec<String>,
    /// The folder for the files; one in the state directory where none is named.
    pub ca_dir: Option<PathBuf>,
    /// The server that makes the session, and the root of its own certificate.
    pub server: ServerFlags,
}

/// How variables are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvFormat {
    /// What `docker run --env-file` reads.
    Docker,
    /// What `node --env-file` reads.
    Dotenv,
    /// One JSON object.
    Json,
    /// What `eval` of a POSIX shell reads.
    Shell,
}

/// Whose environment is printed.
#[derive(Debug, Clone)]
pub enum EnvWay {
    /// That of a session that is there, by its proxy.
    Proxy(ProxyFrom),
    /// That of a new session of a running server.
    Session {
        /// The secrets, with their scopes.
        secrets: Vec<SecretFlag>,
        /// The hosts the session may reach; any public host where none is named.
        allow: Vec<HostPattern>,
    },
}

/// A look at this machine's clients.
#[derive(Debug, Clone)]
pub struct Doctor {
    /// The proxy they are to use.
    pub proxy: ProxyFrom,
    /// Whether the findings are wanted as JSON.
    pub json: bool,
    /// The clients to look at; all where none is named.
    pub only: Vec<String>,
    /// The URL that clients ask for, in place of the one that the proxy answers itself.
    pub url: Option<PublicUrl>,
    /// The root that a TLS listener's own certificate leads to.
    pub ca: Option<PathBuf>,
    /// The folder for files that are missing.
    pub ca_dir: Option<PathBuf>,
    /// The state directory, where it was named.
    pub state_dir: Option<PathBuf>,
}

/// Why the program ends before it has done anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    /// What to print.
    pub text: String,
    /// Whether the text was asked for (stdout) or is a complaint (stderr).
    pub to_stdout: bool,
}

impl Exit {
    /// Complains about the command line or the configuration.
    pub fn usage(text: String) -> Self {
        Self {
            code: USAGE,
            text,
            to_stdout: false,
        }
    }
}

impl From<Problems> for Exit {
    fn from(problems: Problems) -> Self {
        Self::usage(problems.to_string())
    }
}

impl From<clap::Error> for Exit {
    fn from(mut error: clap::Error) -> Self {
        // Whoever mistypes a flag may have put a secret behind it.
        if error.get(ContextKind::InvalidValue).is_some() {
            error.insert(
                ContextKind::InvalidValue,
                ContextValue::String("…".to_owned()),
            );
        }
        let asked = matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        );
        Self {
            code: if asked { 0 } else { USAGE },
            text: error.render().to_string(),
            to_stdout: asked,
        }
    }
}

impl Cli {
    /// Parses the arguments, the program's own name first.
    ///
    /// # Errors
    /// Help and version leave with 0 on stdout, mistakes with 64 on stderr, naming the flag.
    pub fn parse_from<I, T>(arguments: I) -> Result<Self, Exit>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let matches = command().try_get_matches_from(arguments)?;
        let verb = match matches.subcommand() {
            Some(("accounts", of)) => Verb::Accounts(Box::new(accounts::parsed(of)?)),
            Some(("audit", of)) => Verb::Audit(verify(of)?),
            Some(("ca", of)) => Verb::Ca(ca(of)?),
            Some(("check-config", of)) => Verb::CheckConfig(flags(of, |_| true)),
            Some(("demo", _)) => Verb::Demo,
            Some(("doctor", of)) => Verb::Doctor(doctor(of)?),
            Some(("env", of)) => Verb::Env(env(of)?),
            Some(("healthcheck", of)) => Verb::Healthcheck(server_flags(of)?),
            Some(("keys", of)) => Verb::Keys(Box::new(keys(of)?)),
            Some(("run", of)) => Verb::Run(Box::new(run(of)?)),
            Some(("seal", of)) => Verb::Seal(seal(of)?),
            Some(("serve", of)) => Verb::Serve {
                flags: flags(of, |_| true),
                takes_over: of.get_flag("take-over"),
            },
            Some(("session", of)) => Verb::Session(session(of)?),
            Some(("token", of)) => Verb::Token(token::parsed(of)?),
            Some(("version", _)) => Verb::Version,
            other => return Err(not_available("", other)),
        };
        Ok(Self { verb })
    }
}

pub(super) fn not_available(parent: &str, subcommand: Option<(&str, &ArgMatches)>) -> Exit {
    let name = subcommand.map_or("", |(name, _)| name);
    Exit::usage(format!("error: {parent}{name}: {LATER_TEXT}"))
}

/// Collects the flags of settings, as the configuration takes them.
pub(super) fn flags(matches: &ArgMatches, wanted: impl Fn(&Setting) -> bool) -> Flags {
    let start = Flags::new(optional(matches, "config"));
    let with_flag = SETTINGS.iter().filter(|setting| setting.flag.is_some());
    with_flag
        .filter(|setting| wanted(setting))
        .fold(start, |flags, setting| {
            if setting.shape == Shape::Switch {
                let on = matches.get_flag(setting.key);
                return if on {
                    flags.with(setting.key, Vec::new())
                } else {
                    flags
                };
            }
            let values = texts(matches, setting.key);
            if values.is_empty() {
                flags
            } else {
                flags.with(setting.key, values)
            }
        })
}

pub(super) fn texts(matches: &ArgMatches, id: &str) -> Vec<String> {
    let values = matches.try_get_many::<String>(id).ok().flatten();
    values
        .map(|values| values.cloned().collect())
        .unwrap_or_default()
}

/// Reads a path; nothing where it was not given or the verb has no such flag.
pub(super) fn optional(matches: &ArgMatches, id: &str) -> Option<PathBuf> {
    matches.try_get_one::<PathBuf>(id).ok().flatten().cloned()
}

pub(super) fn server_flags(matches: &ArgMatches) -> Result<ServerFlags, Exit> {
    let url = match texts(matches, "server").first() {
        None => None,
        Some(text) => Some(
            PublicUrl::parse(text)
                .ok_or_else(|| Exit::usage(format!("error: --server expects {URL}")))?,
        ),
    };
    Ok(ServerFlags {
        url,
        api_key_file: optional(matches, "api-key-file"),
        admin_key_file: optional(matches, "admin-key-file"),
        ca: optional(matches, "ca"),
        state_dir: optional(matches, "state-dir"),
    })
}

fn run(matches: &ArgMatches) -> Result<Run, Exit> {
    let secrets = spec::secrets(&texts(matches, "secret"), &texts(matches, "scope"));
    let allow = spec::allowed(&texts(matches, "allow"));
    let config = Config::from_flags(&flags(matches, is_upstream_value));
    let server = server_flags(matches);
    let command = matches.get_many::<OsString>("command");
    match (secrets, allow, config, server) {
        (Ok(secrets), Ok(allow), Ok(config), Ok(server)) => Ok(Run {
            secrets,
            allow,
            server: server.url.is_some().then_some(server),
            audit: optional(matches, "audit"),
            upstream: config.upstream,
            upstream_proxy_file: texts(matches, UPSTREAM_PROXY_FILE)
                .first()
                .map(PathBuf::from),
            command: command
                .map(|words| words.cloned().collect())
                .unwrap_or_default(),
        }),
        (secrets, allow, config, server) => {
            let config = config.err().map(|problems| problems.to_string());
            let server = server.err().map(|exit| exit.text);
            let wrong = [secrets.err(), allow.err(), config, server];
            let lines: Vec<String> = wrong.into_iter().flatten().collect();
            Err(Exit::usage(lines.join("\n")))
        }
    }
}

fn env(matches: &ArgMatches) -> Result<Env, Exit> {
    let format = match texts(matches, "format").first().map(String::as_str) {
        Some("docker") => EnvFormat::Docker,
        Some("dotenv") => EnvFormat::Dotenv,
        Some("json") => EnvFormat::Json,
        _ => EnvFormat::Shell,
    };
    let of_a_session = ["secret", "scope", "allow", "server", "api-key-file"];
    let way = if of_a_session.iter().any(|id| matches.contains_id(id)) {
        let secrets = spec::secrets(&texts(matches, "secret"), &texts(matches, "scope"));
        let allow = spec::allowed(&texts(matches, "allow"));
        match (secrets, allow) {
            (Ok(secrets), Ok(allow)) => EnvWay::Session { secrets, allow },
            (secrets, allow) => {
                let wrong = [secrets.err(), allow.err()];
                let lines: Vec<String> = wrong.into_iter().flatten().collect();
                return Err(Exit::usage(lines.join("\n")));
            }
        }
    } else {
        EnvWay::Proxy(proxy_from(matches)?)
    };
    Ok(Env {
        format,
        way,
        only: texts(matches, "only"),
        ca_dir: optional(matches, "ca-dir"),
        server: server_flags(matches)?,
    })
}

fn doctor(matches: &ArgMatches) -> Result<Doctor, Exit> {
    let url = match texts(matches, "url").first() {
        None => None,
        Some(text) => {
            let url = PublicUrl::parse(text).filter(|url| url.scheme == Scheme::Https);
            let wrong = || Exit::usage("error: --url expects https://HOST[:PORT]".to_owned());
            Some(url.ok_or_else(wrong)?)
        }
    };
    Ok(Doctor {
        proxy: proxy_from(matches)?,
        json: texts(matches, "format").iter().any(|text| text == "json"),
        only: texts(matches, "only"),
        url,
        ca: optional(matches, "ca"),
        ca_dir: optional(matches, "ca-dir"),
        state_dir: optional(matches, "state-dir"),
    })
}

fn proxy_from(matches: &ArgMatches) -> Result<ProxyFrom, Exit> {
    ProxyFrom::parse(texts(matches, "proxy-url").first().map(String::as_str))
}

fn session(matches: &ArgMatches) -> Result<SessionCalls, Exit> {
    let (name, of) = matches
        .subcommand()
        .ok_or_else(|| not_available("session ", None))?;
    let id = || {
        let given = texts(of, "id");
        given
            .first()
            .and_then(|text| SessionId::parse(text))
            .ok_or_else(|| {
                Exit::usage("error: ID expects sess_ and 32 lower-case hex digits".to_owned())
            })
    };
    let action = match name {
        "create" => SessionAction::Create {
            file: optional(of, "file").filter(|path| path.as_os_str() != "-"),
        },
        "delete" => SessionAction::Delete(id()?),
        "list" => SessionAction::List,
        "show" => SessionAction::Show(id()?),
        _ => return Err(not_available("session ", matches.subcommand())),
    };
    Ok(SessionCalls {
        server: server_flags(of)?,
        action,
    })
}

/// Reads the time of a rotation.
fn rotate(at: Option<&String>) -> Result<Rotate, Exit> {
    match at.map(String::as_str) {
        Some("now") => Ok(Rotate::Now),
        Some(text) => match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(at) => Ok(Rotate::At(at.into())),
            Err(_malformed) => Err(Exit::usage(format!("error: --at expects {TIME}"))),
        },
        None => Err(Exit::usage(format!(
            "error: ca rotate expects --at with {TIME}, or --cancel"
        ))),
    }
}

fn seal(matches: &ArgMatches) -> Result<Seal, Exit> {
    match matches.subcommand() {
        Some(("generate", of)) => Ok(Seal::Generate {
            out: optional(of, "out"),
            state_dir: optional(of, "state-dir"),
        }),
        Some(("rotate", of)) => Ok(Seal::Rotate {
            flags: flags(of, is_of_store),
            new_key: of.get_flag("new-key"),
        }),
        other => Err(not_available("seal ", other)),
    }
}

fn keys(matches: &ArgMatches) -> Result<Keys, Exit> {
    let (name, of) = matches
        .subcommand()
        .ok_or_else(|| not_available("keys ", None))?;
    let bad = |flag: &str, text: &str| Exit::usage(format!("error: {flag} expects {text}"));
    let one = |id: &str| texts(of, id).into_iter().next();
    let tenant = one("tenant").map(|text| {
        let expected = "1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit";
        TenantId::parse(&text).ok_or_else(|| bad("--tenant", expected))
    });
    let tenant = tenant.transpose()?;
    let or_default = |tenant: Option<TenantId>| tenant.unwrap_or_else(KeysAction::default_tenant);
    let action = match name {
        "create" => {
            let label = one("label").unwrap_or_default();
            if !is_label(&label) {
                return Err(bad("--label", "at most 100 characters, on one line"));
            }
            KeysAction::Create {
                tenant: or_default(tenant),
                label,
                new_tenant: of.get_flag("new-tenant"),
            }
        }
        "list" => KeysAction::List { tenant },
        "revoke" => KeysAction::Revoke {
            tenant: or_default(tenant),
            key: one("id")
                .and_then(|text| ApiKeyId::parse(&text))
                .ok_or_else(|| bad("ID", "key_ and 32 lower-case hex digits"))?,
        },
        _ => return Err(not_available("keys ", matches.subcommand())),
    };
    Ok(Keys {
        server: server_flags(of)?,
        flags: flags(of, is_of_store),
        action,
    })
}

fn verify(matches: &ArgMatches) -> Result<Verify, Exit> {
    match matches.subcommand() {
        Some(("verify", of)) => Ok(Verify {
            files: of
                .get_many("files")
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            closed: of.get_flag("closed"),
            flags: flags(of, |setting| setting.key == "state_dir"),
        }),
        other => Err(not_available("audit ", other)),
    }
}

fn ca(matches: &ArgMatches) -> Result<Ca, Exit> {
    let (name, of) = matches
        .subcommand()
        .ok_or_else(|| not_available("ca ", None))?;
    let out = optional(of, "out");
    let action = match name {
        "export" => CaAction::Export { out },
        "generate" => CaAction::Generate { out },
        "rotate" if of.get_flag("cancel") => CaAction::Rotate(Rotate::Cancel),
        "rotate" => CaAction::Rotate(rotate(texts(of, "at").first())?),
        "show" => CaAction::Show,
        _ => return Err(not_available("ca ", matches.subcommand())),
    };
    Ok(Ca {
        state_dir: optional(of, "state-dir"),
        action,
    })
}
