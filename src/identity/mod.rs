//! Identity: who calls the gateway and the Yolocode API.
//!
//! A sandbox shows a workload JWT, which [`WorkloadKeys`] verifies and mints; a person shows a
//! GitHub bearer, which [`Github`] asks GitHub about. [`presented`] finds the one JWT among the
//! places where clients put it. None of it may say yes where it could not look, or keep what was
//! shown. Called by `gateway`, and by `cli` for minting; [`Github`] is for the faces of `/api` that
//! take a GitHub bearer, of which none is built.

mod credential;
mod github;
mod jws;
mod workload;

use crate::callout;

pub use credential::{Presented, presented, without_credentials};
pub use github::{Config as GithubConfig, Github, Owner};
pub use jws::Refused;
pub use workload::{
    ISSUER, JWT_LIMIT_BYTES, LEEWAY, LONGEST_LIFE, SECRET_LEAST_BYTES, Workload, WorkloadKeys,
};

/// Says why identity could not be set up, or could not be looked up.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A secret for workload JWTs has fewer than 32 bytes (RFC 7518 §3.2).
    #[error("a secret for workload JWTs must have at least 32 bytes")]
    ShortSecret,
    /// A JWT was to be minted for no time, or for more than a day.
    #[error("a workload JWT lives at least one second and at most 24 hours")]
    BadLife,
    /// The machine's clock is before 1970, or beyond what a JWT can say.
    #[error("the time cannot be written into a workload JWT")]
    BadTime,
    /// The service of GitHub could not be asked.
    #[error("GitHub could not be asked")]
    Github(#[source] callout::Error),
    /// GitHub answered neither yes nor no: an outage, or a limit of its own.
    #[error("GitHub answered with status {0}")]
    GithubStatus(u16),
    /// GitHub's yes names nobody.
    #[error("the answer of GitHub names no account")]
    GithubAnswer,
}
