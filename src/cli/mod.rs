//! The command line: what may be asked of the program, and what it answers with.
//!
//! Arguments are parsed into plain typed values; no verb touches clap. A secret never stands in an
//! argument: flags name variables, files and commands. Called by `main`.

mod accounts;
mod args;
mod audit;
mod ca;
mod check;
mod client;
mod client_files;
mod control;
mod demo;
mod doctor;
mod env;
mod folder;
mod grammar;
mod healthcheck;
mod key_file;
mod keys;
mod proxy_from;
mod run;
mod seal;
mod sealing;
mod serve;
mod session;
mod spec;
mod state;
mod stored;
mod target;
mod token;
mod version;
mod workload;

pub use accounts::{AccountAction, AccountCalls};
pub use args::{
    Ca, CaAction, Cli, Doctor, Env, EnvFormat, EnvWay, Exit, Rotate, Run, SessionAction,
    SessionCalls, Verb,
};
pub use audit::Verify;
pub use keys::{Keys, KeysAction};
pub use proxy_from::ProxyFrom;
pub use seal::Seal;
pub use spec::{SecretFlag, SecretFrom};
pub use target::{ServerFlags, Target};
pub use token::TokenMint;

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;

use crate::telemetry;

/// The exit code of a program that could not start or finish its work.
const STARTUP: u8 = 1;

impl Exit {
    /// Complains about something that keeps the program from starting.
    fn startup(error: &dyn Error) -> Self {
        Self::failed(&chain(error))
    }

    /// Complains about work that could not be finished.
    fn failed(text: &str) -> Self {
        Self {
            code: STARTUP,
            text: format!("error: {text}"),
            to_stdout: false,
        }
    }
}

/// Runs the program with its arguments, the program's own name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    telemetry::hush_panics();
    let ended = Cli::parse_from(arguments).and_then(|cli| {
        let sockets = match cli.verb {
            Verb::Serve { .. } => serve::given_sockets(),
            _ => Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| Exit::startup(&error))?;
        let ended = runtime.block_on(perform(cli.verb, sockets));
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(exit) => {
            let text = exit.text.trim_end();
            let printed = if exit.to_stdout {
                writeln!(std::io::stdout(), "{text}")
            } else {
                writeln!(std::io::stderr(), "{text}")
            };
            // A closed pipe leaves nobody to tell.
            drop(printed);
            ExitCode::from(exit.code)
        }
    }
}

async fn perform(verb: Verb, sockets: Vec<std::io::Result<TcpListener>>) -> Result<u8, Exit> {
    match verb {
        Verb::Accounts(calls) => Box::pin(accounts::accounts(*calls)).await.map(|()| 0),
        Verb::Audit(verify) => audit::verify(verify).await.map(|()| 0),
        Verb::Ca(ca) => ca::ca(&ca).map(|()| 0),
        Verb::CheckConfig(flags) => check::check_config(flags).map(|()| 0),
        Verb::Demo => demo::demo().await,
        Verb::Doctor(flags) => Box::pin(doctor::doctor(flags)).await,
        Verb::Env(flags) => Box::pin(env::env(flags)).await.map(|()| 0),
        Verb::Healthcheck(server) => healthcheck::healthcheck(&server).await.map(|()| 0),
        Verb::Keys(of) => Box::pin(keys::keys(*of)).await.map(|()| 0),
        Verb::Run(flags) => Box::pin(run::run(*flags)).await,
        Verb::Seal(seal) => seal::seal(seal).await.map(|()| 0),
        Verb::Serve { flags, takes_over } => {
            let given = serve::Given {
                takes_over,
                sockets,
            };
            Box::pin(serve::serve(flags, given)).await.map(|()| 0)
        }
        Verb::Session(calls) => session::session(&calls).await.map(|()| 0),
        Verb::Token(token) => token::mint(token).map(|()| 0),
        Verb::Version => version::version().map(|()| 0),
    }
}

/// Prints what was asked for.
fn print(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| Exit::failed(&format!("stdout cannot be written: {error}")))
}

/// Writes an error with its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
