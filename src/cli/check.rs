//! `check-config`: what `serve` would run with, or everything that keeps it from doing so.
//!
//! Reads the same sources as `serve` and starts nothing. Never prints a secret.

use super::{Exit, print};
use crate::config::{Config, Flags, Source};

/// Prints the effective configuration as a TOML file, secrets redacted.
pub(super) fn check_config(flags: Flags) -> Result<(), Exit> {
    let config = Config::load(&Source::process(flags))?;
    print(&config.redacted())
}
