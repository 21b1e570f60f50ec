//! Bodies: they arrive as they were sent, they take their time, and their ends are their own.
//!
//! Over HTTP/1.1 every byte around them is compared as well; what HTTP/2 does with whole bodies
//! stands in `h2::bodies`. Bodies of a gigabyte, and minutes of silence, are `binary::soak`.

mod expect;
mod streams;
mod time;
mod whole;

use std::time::Duration;

use crate::support::{GOOD, VaultBuilder};

/// An answer of origins that have nothing to say.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// What every limit on waiting is scaled down to.
const SHORT: Duration = Duration::from_millis(400);

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")
}

/// Scales down every limit that an exchange in progress might run into.
fn all_limits(vault: VaultBuilder) -> VaultBuilder {
    vault.config(|config| {
        let limits = &mut config.limits;
        limits.first_byte_timeout = SHORT;
        limits.head_timeout = SHORT;
        limits.idle_timeout = SHORT;
        limits.stall_timeout = SHORT;
    })
}

/// Lets time pass that must not end anything: there is no event to wait for.
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
