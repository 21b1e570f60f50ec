//! The grammar of the command line: verbs, flags and their help.
//!
//! The flags of `serve` are read off the table of settings. Verbs of later versions are known, so
//! that they are refused by name. Called by the parser, which alone looks at what clap found.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command, value_parser};

use crate::config::{SETTINGS, Setting, Shape};

/// Verbs that later versions have.
const LATER: &[&str] = &["openapi"];
/// The settings that `run` takes as flags too.
const UPSTREAM_KEYS: &[&str] = &[
    "upstream.ca_files",
    "upstream.resolve",
    "upstream.allow_cidrs",
    "upstream.proxy",
    UPSTREAM_PROXY_FILE,
];
/// The one of them that names a file with a secret, which parsing does not read.
pub(super) const UPSTREAM_PROXY_FILE: &str = "upstream.proxy_file";

/// What `run` does not do, at the end of its help.
const RUN_LIMITS: &str = "\
The command runs as you: files, keyrings and processes that you can read, it can read too. The real
values are kept out of its environment, and it goes out through the proxy because its environment
says so. For code that you do not trust, put a sandbox around it whose only way out is the proxy.";

/// How `env` chooses the session, at the end of its help.
const ENV_HELP: &str = "\
Without a flag of a session, the proxy is the one of the environment or of --proxy-url. With --secret,
--scope, --allow, --server or --api-key-file a new session is made, and its sealed tokens are printed
too. For a POSIX shell: eval \"$(oshu-vault env …)\"";

/// What `audit verify` answers with, at the end of its help.
const VERIFY_HELP: &str = "\
The sealing keys are read from where the server reads them. Exit codes: 0, all is whole; 1, a line or
a file is wrong, which is named on stderr, or cannot be read; 64, a wrong command line or configuration.";

/// Makes the parser of the whole command line.
pub(super) fn command() -> Command {
    let serve = Command::new("serve")
        .about("Run the server")
        .args(serve_args())
        .arg(
            Arg::new("take-over")
                .long("take-over")
                .action(ArgAction::SetTrue)
                .help("Take over from the running server of this state directory, if there is one"),
        );
    let check = Command::new("check-config")
        .about("Check the configuration and print what is in effect, without secrets")
        .args(serve_args());
    let health = Command::new("healthcheck")
        .about("Ask a running server whether it is well")
        .args([server_arg(), ca_arg()]);
    Command::new("oshu-vault")
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            serve,
            demo_command(),
            run_command(),
            env_command(),
            doctor_command(),
            session_command(),
            ca_command(),
            seal_command(),
            keys_command(),
            accounts_command(),
            token_command(),
            audit_command(),
        ])
        .subcommands([
            check,
            health,
            Command::new("version").about("Print the version"),
        ])
        .subcommands(LATER.iter().map(|name| later(name)))
}

fn demo_command() -> Command {
    Command::new("demo").about("Show the whole story in one process, side by side")
}

fn run_command() -> Command {
    // A running server has its own way out and its own records.
    let own = UPSTREAM_KEYS.iter().copied().chain(["audit"]);
    let upstream = SETTINGS.iter().filter(|setting| is_upstream(setting));
    Command::new("run")
        .about("Run a command that holds sealed tokens in place of secrets")
        .after_help(RUN_LIMITS)
        .args(session_args())
        .args([
            path("audit", "FILE").help("Write audit records to this file"),
            server_arg()
                .conflicts_with_all(own)
                .help("Use a running server in place of a private proxy"),
            ca_arg().requires("server"),
            api_key_arg().requires("server"),
            path("state-dir", "DIR")
                .requires("server")
                .help("Where the server's generated API key lies"),
        ])
        .args(upstream.map(setting_arg))
        .mut_arg(UPSTREAM_PROXY_FILE, |arg| {
            arg.conflicts_with("upstream.proxy")
        })
        .arg(
            Arg::new("command")
                .value_name("CMD")
                .value_parser(value_parser!(OsString))
                .num_args(1..)
                .required(true)
                .last(true)
                .help("The command and its arguments, after --"),
        )
}

/// What a session is made of.
fn session_args() -> [Arg; 3] {
    [
        text("secret", "NAME[=env:VAR|file:PATH|cmd:CMD]")
            .action(ArgAction::Append)
            .help("A secret and where its value is; by default the variable of that name"),
        text("scope", "NAME=HOST[,HOST]")
            .action(ArgAction::Append)
            .help("The hosts that may receive a secret; by default the catalogue's"),
        text("allow", "HOST")
            .action(ArgAction::Append)
            .help("A host the command may reach; by default any public one"),
    ]
}

fn env_command() -> Command {
    let of_a_session = ["secret", "scope", "allow", "server", "api-key-file"];
    Command::new("env")
        .about("Print the environment that sends clients through a proxy, credential included")
        .after_help(ENV_HELP)
        .args([
            text("format", "FORM")
                .value_parser(["shell", "dotenv", "json", "docker"])
                .default_value("shell")
                .help("How it is written"),
            text("only", "NAME[,NAME]")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("Print these variables alone"),
            proxy_url_arg().conflicts_with_all(of_a_session),
            ca_dir_arg(),
        ])
        .args(session_args())
        .args([
            server_arg().help("Make a session of this server; else as for the other verbs"),
            api_key_arg(),
            ca_arg(),
            path("state-dir", "DIR").help("The state directory"),
        ])
}

fn doctor_command() -> Command {
    Command::new("doctor")
        .about("Check that this machine's clients trust the proxy and reach it; say what to set")
        .args([
            proxy_url_arg(),
            text("format", "FORM")
                .value_parser(["text", "json"])
                .default_value("text")
                .help("How the findings are written"),
            text("only", "CLIENT[,CLIENT]")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("Look at these clients alone"),
            text("url", "URL")
                .help("What the clients ask for; without it a name that the proxy answers itself"),
            ca_dir_arg(),
            ca_arg(),
            path("state-dir", "DIR").help("The state directory"),
        ])
}

fn session_command() -> Command {
    let about = |name: &'static str, text: &'static str| {
        Command::new(name).about(text).args([
            server_arg(),
            api_key_arg(),
            ca_arg(),
            path("state-dir", "DIR").help("Where the server's generated API key lies"),
        ])
    };
    let id = || {
        Arg::new("id")
            .value_name("ID")
            .required(true)
            .help("The session's id: sess_ and 32 hex digits")
    };
    let file = path("file", "FILE").help("The JSON request; stdin without it, or with -");
    Command::new("session")
        .about("Create, list, show and delete sessions of a running server")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            about("create", "Create a session from a JSON request").arg(file),
            about("list", "List sessions"),
            about("show", "Show one session").arg(id()),
            about("delete", "End a session and cut its tunnels").arg(id()),
        ])
}

fn ca_command() -> Command {
    let about = |name: &'static str, text: &'static str| {
        Command::new(name)
            .about(text)
            .arg(path("state-dir", "DIR").help("The state directory"))
    };
    Command::new("ca")
        .about("Show, export, generate and rotate the certificate authority")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            about(
                "show",
                "Print subject, validity and fingerprint of the root, and of those beside it",
            ),
            about("export", "Write the root's certificate")
                .arg(path("out", "FILE").help("The file; stdout without it")),
            about("generate", "Make a root with its key")
                .arg(path("out", "DIR").help("The folder; the state directory without it")),
            about(
                "rotate",
                "Let a fresh root follow, at a time that clients are ready for",
            )
            .args([
                text("at", "TIME")
                    .conflicts_with("cancel")
                    .help("From when on it signs: 2031-05-04T03:02:01Z, or now"),
                Arg::new("cancel")
                    .long("cancel")
                    .action(ArgAction::SetTrue)
                    .help("Take the plan back"),
            ]),
        ])
}

fn seal_command() -> Command {
    let generate = Command::new("generate").about("Make a sealing key").args([
        path("out", "FILE").help("The file; seal.key in the state directory without it"),
        path("state-dir", "DIR").help("The state directory"),
    ]);
    let rotate = Command::new("rotate")
        .about("Seal everything under the first key, by the running server or without one")
        .args([
            Arg::new("new-key")
                .long("new-key")
                .action(ArgAction::SetTrue)
                .help("Put a fresh key on top of the key file before"),
            path("config", "FILE").help("The configuration file (TOML)"),
        ])
        .args(
            SETTINGS
                .iter()
                .filter(|it| is_of_store(it))
                .map(setting_arg),
        );
    Command::new("seal")
        .about("Make and rotate the key that seals sessions in the store")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([generate, rotate])
}

/// The arguments of a verb that asks the store's server or file, or a server over its API.
fn store_or_server() -> impl Iterator<Item = Arg> {
    let of_store = || SETTINGS.iter().filter(|it| is_of_store(it));
    let others = of_store().map(|it| it.key).chain(["config"]);
    let args = [
        text("server", "URL")
            .conflicts_with_all(others)
            .help("Ask a running server over its API, as the operator"),
        path("admin-key-file", "FILE")
            .requires("server")
            .help("The file with the operator's key; else $OSHU_VAULT_ADMIN_KEY"),
        ca_arg().requires("server"),
        path("config", "FILE").help("The configuration file (TOML)"),
    ];
    args.into_iter().chain(of_store().map(setting_arg))
}

fn keys_command() -> Command {
    let about = |name: &'static str, about: &'static str, tenant: &'static str| {
        Command::new(name)
            .about(about)
            .arg(text("tenant", "NAME").help(tenant))
            .args(store_or_server())
    };
    let whose = "Whose key it is; without it that of the tenant `default`";
    let id = Arg::new("id")
        .value_name("ID")
        .required(true)
        .help("The key's id: key_ and 32 hex digits");
    let new_tenant = Arg::new("new-tenant")
        .long("new-tenant")
        .action(ArgAction::SetTrue)
        .requires("tenant")
        .help("Make the tenant before");
    Command::new("keys")
        .about("Create, list and revoke API keys of tenants, by the running server or without one")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            about("create", "Make an API key and print it, once", whose).args([
                text("label", "TEXT").help("What the key is called in lists"),
                new_tenant,
            ]),
            about("list", "List tenants with their keys", "This tenant alone"),
            about("revoke", "Take a key from its tenant, at once", whose).arg(id),
        ])
}

fn accounts_command() -> Command {
    let about = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).args(store_or_server())
    };
    let id = || {
        Arg::new("id")
            .value_name("ID")
            .required(true)
            .help("The account's id: with GitHub, the user's number")
    };
    let paid = text("paid", "BOOL")
        .value_parser(["true", "false"])
        .required(true)
        .help("Whether it is paid");
    let month = text("month", "MONTH").help("A month such as 2026-11; without it the present one");
    Command::new("accounts")
        .about(
            "Say who is paid at the gateway, and see what they used, by the running server or without \
             one",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            about("list", "List the accounts that somebody spoke of"),
            about("show", "Print one account").arg(id()),
            about("set", "Say whether an account is paid").args([id(), paid]),
            about("usage", "Print what an account used in a month").args([id(), month]),
        ])
}

fn token_command() -> Command {
    let mint = Command::new("mint")
        .about("Print a workload JWT, signed with the secret of the configuration")
        .args([
            text("user-id", "ID")
                .required(true)
                .help("The account that the sandbox belongs to"),
            text("sandbox", "NAME")
                .required(true)
                .help("The sandbox, as its owner calls it"),
            text("ttl", "SECONDS").help("How long it lives: at most, and by default, 86400"),
            path("config", "FILE").help("The configuration file (TOML)"),
        ]);
    Command::new("token")
        .about("Make workload JWTs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([mint])
}

fn audit_command() -> Command {
    let verify = Command::new("verify")
        .about("Tell whether audit lines were changed, removed, moved or cut off")
        .after_help(VERIFY_HELP)
        .args([
            Arg::new("files")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .num_args(0..)
                .help("Files to verify on their own, in place of the server's whole chain"),
            Arg::new("closed")
                .long("closed")
                .action(ArgAction::SetTrue)
                .conflicts_with("files")
                .help("Fail also where the chain was not ended in order"),
            path("config", "FILE").help("The configuration file (TOML)"),
        ])
        .args(
            SETTINGS
                .iter()
                .filter(|it| it.key == "state_dir")
                .map(setting_arg),
        );
    Command::new("audit")
        .about("Verify the files of audit records")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([verify])
}

/// Tells whether the setting says where the store is.
pub(super) fn is_of_store(setting: &Setting) -> bool {
    ["state_dir", "store.url", "store.url_file"].contains(&setting.key)
}

/// A verb that is only there to be refused by name, whatever follows it.
fn later(name: &'static str) -> Command {
    Command::new(name).hide(true).disable_help_flag(true).arg(
        Arg::new("rest")
            .value_parser(ValueParser::os_string())
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true),
    )
}

fn serve_args() -> impl Iterator<Item = Arg> {
    let config = path("config", "FILE").help("The configuration file (TOML)");
    SETTINGS
        .iter()
        .filter(|setting| setting.flag.is_some())
        .map(setting_arg)
        .chain([config])
}

fn setting_arg(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.key)
        .long(setting.flag.unwrap_or(setting.key))
        .help(setting.doc);
    match setting.shape {
        Shape::Switch => arg.action(ArgAction::SetTrue),
        Shape::Many => arg.value_name(setting.value_name).action(ArgAction::Append),
        Shape::One => arg.value_name(setting.value_name),
    }
}

fn text(name: &'static str, value_name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name)
}

fn path(name: &'static str, value_name: &'static str) -> Arg {
    text(name, value_name).value_parser(value_parser!(PathBuf))
}

fn proxy_url_arg() -> Arg {
    text("proxy-url", "URL|env:VAR").help(
        "The proxy with its credential, better named by a variable: others of the machine can \
         read a command line; without it $HTTPS_PROXY and its like",
    )
}

fn ca_dir_arg() -> Arg {
    path("ca-dir", "DIR").help(
        "The folder for the CA files; without it clients/ in the state directory, with a folder \
         for each root",
    )
}

fn server_arg() -> Arg {
    text("server", "URL").help("The server; else $OSHU_VAULT_SERVER, else http://127.0.0.1:8080")
}

fn api_key_arg() -> Arg {
    path("api-key-file", "FILE").help(
        "The file with the API key; else $SECRETS_PROXY_API_KEY, else the key in the state directory",
    )
}

fn ca_arg() -> Arg {
    path("ca", "FILE").help("The root (PEM) that an https server's certificate leads to")
}

/// Tells whether `run` takes the setting as a flag too, with its value in the flag itself.
pub(super) fn is_upstream_value(setting: &Setting) -> bool {
    is_upstream(setting) && setting.key != UPSTREAM_PROXY_FILE
}

/// Tells whether `run` takes the setting as a flag too.
fn is_upstream(setting: &Setting) -> bool {
    UPSTREAM_KEYS.contains(&setting.key)
}
