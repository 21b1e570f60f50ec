//! The lists of hosts a session brings, parsed once: what may leave, and where a secret may go.
//!
//! A list is exactly its lines: an empty one allows nothing. "Any" is a value of its own, which
//! somebody must have asked for by name. Matching goes through `host`, so that a host has one form
//! here and everywhere. Called by `session` when a session is made, changed or loaded.

use std::sync::Arc;

use super::Denial;
use crate::host;
use crate::host::{HostPattern, HostPort};

/// The ports that a line without a port stands for.
const WEB_PORTS: [u16; 2] = [443, 80];

/// Says which line of a list is wrong, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {index} of the list cannot be read")]
pub struct BadLine {
    /// The line's position, from 0.
    pub index: usize,
    /// What is wrong with it.
    #[source]
    pub error: host::Error,
}

/// Parses all lines, or lists all bad ones.
fn parse_lines<L: AsRef<str>>(
    lines: &[L],
    parse: impl Fn(&str) -> Result<HostPattern, host::Error>,
) -> Result<Box<[HostPattern]>, Vec<BadLine>> {
    let mut patterns = Vec::with_capacity(lines.len());
    let mut bad = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        match parse(line.as_ref()) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => bad.push(BadLine { index, error }),
        }
    }
    if bad.is_empty() {
        Ok(patterns.into())
    } else {
        Err(bad)
    }
}

/// What may leave: `allowed_egress` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRules {
    hosts: Hosts,
    any_port: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    AnyPublic,
    Listed(Box<[HostPattern]>),
}

impl EgressRules {
    /// Allows every host whose addresses pass the table, on ports 443 and 80 or on any.
    pub fn any_public(any_port: bool) -> Self {
        Self {
            hosts: Hosts::AnyPublic,
            any_port,
        }
    }

    /// Allows exactly the hosts of these lines, on ports 443 and 80 where none is written. No line
    /// allows nothing.
    pub fn listed(patterns: Vec<HostPattern>) -> Self {
        Self {
            hosts: Hosts::Listed(patterns.into()),
            any_port: false,
        }
    }

    /// Parses the lines of a list: exact hosts and `*.name`, each with an optional port.
    ///
    /// # Errors
    /// Every line that cannot be read, in order.
    pub fn parse<L: AsRef<str>>(lines: &[L]) -> Result<Self, Vec<BadLine>> {
        Ok(Self {
            hosts: Hosts::Listed(parse_lines(lines, HostPattern::parse)?),
            any_port: false,
        })
    }

    /// Lets lines without a port stand for every port; a written port still binds.
    #[must_use]
    pub fn with_any_port(self) -> Self {
        Self {
            any_port: true,
            ..self
        }
    }

    /// Decides about one host and port by the lines alone.
    pub(super) fn admit(&self, target: &HostPort) -> Result<(), Denial> {
        let patterns = match &self.hosts {
            Hosts::AnyPublic if self.admits_port(None, target.port) => return Ok(()),
            Hosts::AnyPublic => return Err(Denial::PortNotAllowed),
            Hosts::Listed(patterns) => patterns,
        };
        let mut denial = Denial::HostNotAllowed;
        for pattern in patterns {
            if pattern.matches_host(&target.host) {
                if self.admits_port(pattern.port(), target.port) {
                    return Ok(());
                }
                denial = Denial::PortNotAllowed;
            }
        }
        Err(denial)
    }

    /// Tells whether all hosts of a pattern lie within the rules, as an entry of
    /// `passthrough_hosts` must. Without a port they do if they are allowed on any.
    pub fn contain(&self, pattern: &HostPattern) -> bool {
        let admits = |written| {
            pattern
                .port()
                .is_none_or(|port| self.admits_port(written, port))
        };
        match &self.hosts {
            Hosts::AnyPublic => admits(None),
            Hosts::Listed(lines) => lines
                .iter()
                .any(|line| line.contains(pattern) && admits(line.port())),
        }
    }

    fn admits_port(&self, written: Option<u16>, port: u16) -> bool {
        match written {
            Some(written) => written == port,
            None => self.any_port || WEB_PORTS.contains(&port),
        }
    }
}

/// The hosts to which one secret may go: `hosts` and `secret_hosts` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretScope(Scope);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    AnyHost,
    /// Shared: all secrets of a session may have the same list.
    Hosts(Arc<[HostPattern]>),
}

impl SecretScope {
    /// Scopes a secret to exact hosts; no host means it goes nowhere.
    ///
    /// # Errors
    /// The position of every wildcard: a secret goes to hosts that somebody named.
    pub fn hosts(patterns: Vec<HostPattern>) -> Result<Self, Vec<BadLine>> {
        let wild = patterns.iter().enumerate();
        let bad: Vec<BadLine> = wild
            .filter(|(_, pattern)| pattern.exact().is_none())
            .map(|(index, _)| BadLine {
                index,
                error: host::Error::WildcardNotAllowed,
            })
            .collect();
        if bad.is_empty() {
            Ok(Self(Scope::Hosts(patterns.into())))
        } else {
            Err(bad)
        }
    }

    /// Parses a list of exact hosts, each with an optional port.
    ///
    /// # Errors
    /// Every line that cannot be read, in order; a wildcard is one.
    pub fn parse<L: AsRef<str>>(lines: &[L]) -> Result<Self, Vec<BadLine>> {
        parse_lines(lines, HostPattern::parse_exact).map(|hosts| Self(Scope::Hosts(hosts.into())))
    }

    /// Lets a secret go to every host, so that a workload can read it back by sending it to a
    /// server of its own. Only for the operator's danger switch and for development.
    pub fn any_host() -> Self {
        Self(Scope::AnyHost)
    }

    /// Tells whether the secret may go to this host and port. A line without a port stands for
    /// every port; which of them can be reached, egress decides.
    pub fn covers(&self, target: &HostPort) -> bool {
        match &self.0 {
            Scope::AnyHost => true,
            Scope::Hosts(patterns) => covered(patterns, target),
        }
    }

    /// Tells whether some host and port is both in the scope and matched by the pattern, which
    /// may be a wildcard. An entry of `passthrough_hosts` must not be.
    pub fn overlaps(&self, pattern: &HostPattern) -> bool {
        let ports_meet = |a: Option<u16>, b: Option<u16>| a.is_none() || b.is_none() || a == b;
        match &self.0 {
            Scope::AnyHost => true,
            Scope::Hosts(patterns) => patterns.iter().any(|scoped| {
                ports_meet(scoped.port(), pattern.port())
                    && scoped
                        .exact()
                        .is_some_and(|host| pattern.matches_host(host))
            }),
        }
    }

    /// Writes the hosts out, as [`SecretScope::parse`] takes them; nothing where it is every host.
    pub fn lines(&self) -> Option<Vec<String>> {
        match &self.0 {
            Scope::AnyHost => None,
            Scope::Hosts(patterns) => Some(patterns.iter().map(ToString::to_string).collect()),
        }
    }

    /// Tells whether the secret may go to every host.
    pub fn is_any_host(&self) -> bool {
        self.0 == Scope::AnyHost
    }
}

/// The hosts whose tunnels are passed through unread: `passthrough_hosts` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassthroughHosts(Arc<[HostPattern]>);

impl PassthroughHosts {
    /// Takes the lines of a list. No line passes nothing through.
    pub fn listed(patterns: Vec<HostPattern>) -> Self {
        Self(patterns.into())
    }

    /// Parses the lines of a list: exact hosts and `*.name`, each with an optional port.
    ///
    /// # Errors
    /// Every line that cannot be read, in order.
    pub fn parse<L: AsRef<str>>(lines: &[L]) -> Result<Self, Vec<BadLine>> {
        parse_lines(lines, HostPattern::parse).map(|patterns| Self(patterns.into()))
    }

    /// Goes through the lines in order.
    pub fn iter(&self) -> impl Iterator<Item = &HostPattern> {
        self.0.iter()
    }

    /// Tells whether a tunnel to this host and port is passed through. A line without a port
    /// stands for every port; which of them can be reached, egress decides.
    pub fn cover(&self, target: &HostPort) -> bool {
        covered(&self.0, target)
    }
}

/// Tells whether a line names the host, with the port or with none.
fn covered(patterns: &[HostPattern], target: &HostPort) -> bool {
    patterns.iter().any(|pattern| {
        pattern.matches_host(&target.host) && pattern.port().is_none_or(|port| port == target.port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> HostPort {
        HostPort::parse(text).unwrap()
    }

    #[test]
    fn lists_admit_exactly_what_they_name() {
        let rules = EgressRules::parse(&[
            "good.example",
            "*.wild.example",
            "port.example:8443",
            "*.deep.example:9000",
            "two.example:1",
            "two.example:2",
            "1.2.3.4",
            "[2606:4700::1]:53",
        ])
        .unwrap();
        let (host, port) = (Err(Denial::HostNotAllowed), Err(Denial::PortNotAllowed));
        for (text, expected) in [
            ("good.example:443", Ok(())),
            ("GOOD.example.:80", Ok(())),
            ("good.example:8443", port),
            ("good.example:22", port),
            ("goodx.example:443", host),
            ("xgood.example:443", host),
            ("a.good.example:443", host),
            ("good.example.evil.example:443", host),
            ("wild.example:443", Ok(())),
            ("a.wild.example:443", Ok(())),
            ("a.b.wild.example:80", Ok(())),
            ("xwild.example:443", host),
            ("wild.example.evil.example:443", host),
            ("wild.evil:443", host),
            ("port.example:8443", Ok(())),
            ("port.example:443", port),
            ("a.deep.example:9000", Ok(())),
            ("a.deep.example:443", port),
            ("two.example:1", Ok(())),
            ("two.example:2", Ok(())),
            ("two.example:3", port),
            ("1.2.3.4:443", Ok(())),
            ("1.2.3.5:443", host),
            ("[2606:4700:0::1]:53", Ok(())),
            ("[2606:4700::1]:443", port),
        ] {
            assert_eq!(rules.admit(&target(text)), expected, "{text}");
        }
    }

    #[test]
    fn nothing_empty_means_allow() {
        let none = EgressRules::listed(Vec::new());
        assert_eq!(EgressRules::parse::<&str>(&[]), Ok(none.clone()));
        let any = target("good.example:443");
        assert_eq!(none.admit(&any), Err(Denial::HostNotAllowed));
        assert_eq!(
            none.with_any_port().admit(&any),
            Err(Denial::HostNotAllowed)
        );
        assert!(!SecretScope::hosts(Vec::new()).unwrap().covers(&any));
        assert!(!SecretScope::parse::<&str>(&[]).unwrap().covers(&any));
    }

    #[test]
    fn ports_are_the_webs_unless_asked_for() {
        let web = EgressRules::any_public(false);
        let every = EgressRules::any_public(true);
        for (port, expected) in [
            (443, true),
            (80, true),
            (22, false),
            (25, false),
            (8443, false),
        ] {
            let target = target(&format!("x.example:{port}"));
            assert_eq!(web.admit(&target).is_ok(), expected, "{port}");
            assert_eq!(every.admit(&target), Ok(()), "{port}");
        }
        let listed = EgressRules::parse(&["a.example", "b.example:1"])
            .unwrap()
            .with_any_port();
        assert_eq!(listed.admit(&target("a.example:22")), Ok(()));
        assert_eq!(
            listed.admit(&target("b.example:22")),
            Err(Denial::PortNotAllowed)
        );
    }

    #[test]
    fn all_bad_lines_are_listed() {
        let lines = [
            "good.example",
            "*",
            "*.com",
            "10.0.0.0/8",
            "a.example:0",
            "b.example",
        ];
        let bad = EgressRules::parse(&lines).unwrap_err();
        let expected = [
            (1, host::Error::BadWildcard),
            (2, host::Error::BadWildcard),
            (3, host::Error::Range),
            (4, host::Error::BadPort),
        ];
        let expected = expected.map(|(index, error)| BadLine { index, error });
        assert_eq!(bad, expected);
        let bad = SecretScope::parse(&["a.example", "*.b.example", "", "c.example"]).unwrap_err();
        let expected = [
            (1, host::Error::WildcardNotAllowed),
            (2, host::Error::Empty),
        ];
        assert_eq!(bad, expected.map(|(index, error)| BadLine { index, error }));
        let wild = vec![HostPattern::parse("*.b.example").unwrap()];
        assert_eq!(SecretScope::hosts(wild).unwrap_err().len(), 1);
    }

    #[test]
    fn case_91_a_scope_covers_its_hosts_only() {
        let scope = SecretScope::parse(&["API.example", "port.example:8443"]).unwrap();
        for (text, expected) in [
            ("api.example:443", true),
            ("Api.Example.:80", true),
            ("api.example:8443", true),
            ("a.api.example:443", false),
            ("xapi.example:443", false),
            ("api.example.evil.example:443", false),
            ("port.example:8443", true),
            ("port.example:443", false),
            ("127.0.0.1:443", false),
        ] {
            assert_eq!(scope.covers(&target(text)), expected, "{text}");
        }
        assert!(!scope.is_any_host());
        assert!(SecretScope::any_host().is_any_host());
        assert!(SecretScope::any_host().covers(&target("evil.example:1")));
    }

    #[test]
    fn passthrough_entries_can_be_held_against_scope_and_egress() {
        let scope = SecretScope::parse(&["api.example", "port.example:8443"]).unwrap();
        for (text, expected) in [
            ("api.example", true),
            ("api.example:9999", true),
            ("*.api.example", true),
            ("other.example", false),
            ("a.api.example", false),
            ("port.example", true),
            ("port.example:8443", true),
            ("port.example:443", false),
        ] {
            let pattern = HostPattern::parse(text).unwrap();
            assert_eq!(scope.overlaps(&pattern), expected, "{text}");
            assert!(SecretScope::any_host().overlaps(&pattern), "{text}");
        }
        let egress = EgressRules::parse(&["*.wild.example", "port.example:8443"]).unwrap();
        let within =
            |rules: &EgressRules, text: &str| rules.contain(&HostPattern::parse(text).unwrap());
        for (text, expected) in [
            ("a.wild.example", true),
            ("a.wild.example:443", true),
            ("a.wild.example:22", false),
            ("*.wild.example", true),
            ("*.a.wild.example:80", true),
            ("*.a.wild.example:22", false),
            ("*.port.example", false),
            ("port.example", true),
            ("port.example:8443", true),
            ("port.example:443", false),
            ("other.example", false),
        ] {
            assert_eq!(within(&egress, text), expected, "{text}");
        }
        assert!(within(&egress.with_any_port(), "a.wild.example:22"));
        for (text, expected) in [
            ("a.example", true),
            ("*.a.example:443", true),
            ("a.example:22", false),
        ] {
            assert_eq!(
                within(&EgressRules::any_public(false), text),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_passed_through_is_what_the_lines_name() {
        let hosts =
            PassthroughHosts::parse(&["pinned.example", "*.wild.example:8443", "1.2.3.4"]).unwrap();
        for (text, expected) in [
            ("pinned.example:443", true),
            ("PINNED.example.:22", true),
            ("a.pinned.example:443", false),
            ("a.wild.example:8443", true),
            ("a.wild.example:443", false),
            ("1.2.3.4:443", true),
            ("other.example:443", false),
        ] {
            assert_eq!(hosts.cover(&target(text)), expected, "{text}");
        }
        assert!(!PassthroughHosts::listed(Vec::new()).cover(&target("pinned.example:443")));
        let bad = PassthroughHosts::parse(&["a.example", "*", "10.0.0.0/8"]).unwrap_err();
        assert_eq!(
            bad.iter().map(|line| line.index).collect::<Vec<_>>(),
            [1, 2]
        );
    }
}
