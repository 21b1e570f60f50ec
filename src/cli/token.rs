//! `token mint`: a workload JWT, signed with the secret of the configuration.
//!
//! It needs no server: whoever has the secret may sign. The token goes to stdout and nowhere else.
//! Called by the command line.

use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use zeroize::Zeroizing;

use super::accounts::account;
use super::args::{not_available, optional, texts};
use super::{Exit, print, serve};
use crate::config::{Config, Flags, Source};
use crate::id::{AccountId, SandboxName};
use crate::identity::{LONGEST_LIFE, Workload, WorkloadKeys};

/// A workload JWT to be made.
#[derive(Debug, Clone)]
pub struct TokenMint {
    /// Where the configuration is, which says where the secret is.
    pub flags: Flags,
    /// Whose sandbox it is for.
    pub account: AccountId,
    /// Which sandbox.
    pub sandbox: SandboxName,
    /// How long it lives.
    pub life: Duration,
}

/// Reads what is asked of a command line that was parsed.
pub(super) fn parsed(matches: &ArgMatches) -> Result<TokenMint, Exit> {
    let Some(("mint", of)) = matches.subcommand() else {
        return Err(not_available("token ", matches.subcommand()));
    };
    let one = |id: &str| texts(of, id).into_iter().next();
    let sandbox = one("sandbox").and_then(|text| SandboxName::parse(&text));
    let sandbox = sandbox.ok_or_else(|| {
        Exit::usage(
            "error: --sandbox expects 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', the first a \
             letter or digit"
                .to_owned(),
        )
    })?;
    let longest = LONGEST_LIFE.as_secs();
    let life = one("ttl").map_or(Some(longest), |text| text.parse().ok());
    let life = life.filter(|life| (1..=longest).contains(life));
    let life = life.ok_or_else(|| {
        Exit::usage(format!(
            "error: --ttl expects a whole number from 1 to {longest}"
        ))
    })?;
    Ok(TokenMint {
        flags: Flags::new(optional(of, "config")),
        account: account(of, "user-id", "--user-id")?,
        sandbox,
        life: Duration::from_secs(life),
    })
}

/// Prints the token.
pub(super) fn mint(token: TokenMint) -> Result<(), Exit> {
    // A secret passes through this process.
    serve::protect_process();
    let config = Config::load_gateway(&Source::process(token.flags))?;
    let Some(secret) = &config.gateway.jwt_secret else {
        return Err(Exit::usage(
            "error: gateway.jwt_secret: expects OSHU_VAULT__GATEWAY__JWT_SECRET or \
             gateway.jwt_secret_file"
                .to_owned(),
        ));
    };
    let workload = Workload {
        account: token.account,
        sandbox: token.sandbox,
    };
    let minted = WorkloadKeys::new(secret, None)
        .and_then(|keys| keys.mint(&workload, SystemTime::now(), token.life));
    let minted = minted.map_err(|error| Exit::startup(&error))?;
    let line = Zeroizing::new([minted.as_str(), "\n"].concat());
    print(&line)
}
