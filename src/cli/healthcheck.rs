//! `healthcheck`: whether a running server answers. For container images, which have no curl.
//!
//! Needs no API key. Leaves with 0 where the server is well and 1 where it is not.

use super::Exit;
use super::client;
use super::target::ServerFlags;
use crate::config::{Flags, Source};

/// Asks the server's health route.
pub(super) async fn healthcheck(server: &ServerFlags) -> Result<(), Exit> {
    let url = server.server(&Source::process(Flags::default()))?;
    match client::ask(&url, server.ca.as_deref(), "/healthz").await? {
        (200, _) => Ok(()),
        (status, _) => Err(Exit::failed(&format!("{url}: /healthz answers {status}"))),
    }
}
