//! `version`: which program this is, and whose cryptography it runs on.
//!
//! One line each, so that a report of a fault can carry them.

use super::{Exit, print};

/// Prints name and version, and the provider of cryptography.
pub(super) fn version() -> Result<(), Exit> {
    print(concat!(
        env!("CARGO_PKG_NAME"),
        " ",
        env!("CARGO_PKG_VERSION"),
        "\ncryptography: rustls with aws-lc-rs\n",
    ))
}
