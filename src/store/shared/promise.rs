//! What a server promises, as far as it tells: whether it keeps what it acknowledges, and who can
//! read along on the way to it.
//!
//! It is asked once, when the store is opened, and what it says is told in the log. A setting never
//! keeps a start from going on: that decision is the operator's. Called by the store.

use super::Address;
use super::link::Link;
use crate::store::Error;

/// The settings that are asked for.
const SETTINGS: [&str; 3] = ["appendonly", "appendfsync", "maxmemory-policy"];
/// The one policy under which a server throws nothing out.
const KEEPS_ALL: &str = "noeviction";

/// Says what an acknowledged change is worth, and what is wrong with the server or the way to it.
///
/// # Errors
/// [`Error::Unavailable`].
pub(super) async fn tell(link: &Link) -> Result<(), Error> {
    let address = link.address();
    if is_exposed(address) {
        tracing::warn!(
            %address,
            "the store is reached in clear over a network: its password, last uses and who owns what \
             can be read and changed on the way. Use rediss://"
        );
    }
    let mut values = SETTINGS.map(|_| String::new());
    for (name, value) in SETTINGS.iter().zip(&mut values) {
        let mut get = redis::cmd("CONFIG");
        get.arg("GET").arg(name);
        let pair: Option<Vec<String>> = link.ask_unless_refused(&get).await?;
        *value = pair
            .and_then(|pair| pair.into_iter().nth(1))
            .unwrap_or_default();
    }
    let [appendonly, appendfsync, policy] = values.each_ref().map(String::as_str);
    if !["", KEEPS_ALL].contains(&policy) {
        tracing::warn!(
            %address, maxmemory_policy = policy,
            "the store throws rows out when its memory is full, which ends sessions: it should have \
             maxmemory-policy noeviction"
        );
    }
    match (appendonly, appendfsync) {
        ("yes", "always") => {
            tracing::info!(%address, "the store flushes every change before it answers");
        }
        ("yes", "everysec") => tracing::info!(
            %address,
            "the store flushes once a second: a crash of its machine takes the last second back"
        ),
        ("", _) => tracing::warn!(
            %address,
            "whether the store keeps what it acknowledges cannot be known: CONFIG GET is refused. \
             It should have appendonly yes, and appendfsync always or everysec"
        ),
        ("yes", policy) => tracing::warn!(
            %address, appendfsync = policy,
            "the store flushes when its system pleases: a crash takes acknowledged changes back"
        ),
        (appendonly, _) => tracing::warn!(
            %address, appendonly,
            "the store is not append-only: a restart of it takes acknowledged changes back"
        ),
    }
    Ok(())
}

/// Tells whether what is sent leaves the machine in clear.
fn is_exposed(address: &Address) -> bool {
    let host = &address.host;
    let is_here = host.name() == Some("localhost") || host.ip().is_some_and(|ip| ip.is_loopback());
    !address.is_tls && !is_here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_machine_in_clear_is_exposed() {
        for (text, expected) in [
            ("redis://127.0.0.1:7000", false),
            ("redis://127.8.9.1", false),
            ("redis://[::1]:7000", false),
            ("redis://localhost", false),
            ("rediss://cache.example.com", false),
            ("rediss://192.0.2.1", false),
            ("redis://cache.example.com", true),
            ("redis://localhost.example.com", true),
            ("redis://192.0.2.1", true),
            ("redis://[2001:db8::1]:7000", true),
        ] {
            let address = Address::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(is_exposed(&address), expected, "{text}");
        }
    }
}
