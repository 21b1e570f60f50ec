//! Where the server of a shared store is, as an operator writes it: a URL, with a password or
//! without.
//!
//! Nothing that prints it shows user or password. It never connects. Read by the configuration, used
//! by the link.

use std::fmt;

use redis::{IntoConnectionInfo, RedisConnectionInfo};

use crate::host::{Host, HostPort};
use crate::secret::Secret;

/// The port that goes without saying.
const DEFAULT_PORT: u16 = 6379;

/// The address of a Redis or Valkey server.
#[derive(Clone)]
pub struct Address {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    /// Who we are there, and the number of the database.
    pub(super) login: RedisConnectionInfo,
    /// The text, which tells two of them apart.
    text: Secret,
}

impl Address {
    /// Parses `redis://[USER][:PASSWORD@]HOST[:PORT][/DB]` or the same with `rediss`; nothing for any
    /// other text. User and password are percent-encoded; a query or fragment is refused, since
    /// there are some that turn off what TLS is for.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return None,
        };
        if rest.contains(['?', '#']) || rest.chars().any(char::is_control) {
            return None;
        }
        let (credentials, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        if credentials.contains(['[', ']', '/']) {
            // What stands there once it was printed.
            return None;
        }
        let authority = place
            .split_once('/')
            .map_or(place, |(authority, _)| authority);
        let HostPort { host, port } = HostPort::parse_or(authority, DEFAULT_PORT).ok()?;
        // TLS is ours: to the library both forms are the same.
        let plain = format!("redis://{rest}");
        let info = plain.as_str().into_connection_info().ok()?;
        let login = info.redis_settings().clone();
        Some(Self {
            host,
            port,
            is_tls,
            // One command less that a list of permissions would have to name.
            login: login.set_skip_set_lib_name(),
            text: Secret::new(text.as_bytes().to_vec()),
        })
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.text.expose() == other.text.expose()
    }
}

impl Eq for Address {}

impl fmt::Display for Address {
    /// Prints the URL. What stands there for user and password is refused when it is read again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let login = &self.login;
        let is_known = login.username().is_some() || login.password().is_some();
        let credentials = if is_known { "[redacted]@" } else { "" };
        write!(f, "{scheme}://{credentials}{}:{}", self.host, self.port)?;
        match login.db() {
            0 => Ok(()),
            db => write!(f, "/{db}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_that_shows_no_password() {
        for (text, shown) in [
            (
                "redis://cache.example.com",
                "redis://cache.example.com:6379",
            ),
            ("redis://127.0.0.1:7000/3", "redis://127.0.0.1:7000/3"),
            ("rediss://[::1]:7000", "rediss://[::1]:7000"),
            (
                "rediss://user:pa%40ss@Cache.example.com:7000/1",
                "rediss://[redacted]@cache.example.com:7000/1",
            ),
            ("redis://:canary@h:1", "redis://[redacted]@h:1"),
        ] {
            let address = Address::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(address.to_string(), shown);
            assert_eq!(format!("{address:?}"), shown);
            assert!(!format!("{:?}", address.text).contains("canary"));
        }
        let address = Address::parse("redis://user:pa%40ss@h").unwrap();
        assert_eq!(address.login.username(), Some("user"));
        assert_eq!(address.login.password(), Some("pa@ss"));
        assert_eq!(address.login.db(), 0);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "redis",
            "redis://",
            "redis:127.0.0.1",
            "http://h",
            "redis+unix:///run/redis.sock",
            "unix:///run/redis.sock",
            "rediss://h/#insecure",
            "redis://h/?protocol=resp3",
            "redis://h:99999",
            "redis://h/zero",
            "redis://[redacted]@h:1",
            "redis://h:1\n",
        ] {
            assert!(Address::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn two_addresses_are_the_same_by_their_text() {
        let address = |text| Address::parse(text).unwrap();
        assert_eq!(address("redis://:a@h"), address("redis://:a@h"));
        assert_ne!(address("redis://:a@h"), address("redis://:b@h"));
    }
}
