//! Policy: where a session's traffic may go, and where each of its secrets may.
//!
//! [`EgressPolicy::decide`] makes [`Grant`]s and [`vet`] makes [`VettedAddr`]s, the two things that
//! `upstream` demands before it dials. Pure logic: no look-up, no socket, no clock. Nothing empty
//! means "allow" here, and no type of this module has a `Default`. Called by `session` (which
//! parses a session's lists), `proxy` and `upstream`.

mod address;
mod catalogue;
mod cidr;
mod class;
mod endpoint;
mod rule;

pub use address::{AddressRules, Refused, VETTED_LIMIT, VettedAddr, vet};
pub use catalogue::{Catalogue, Entry};
pub use cidr::Cidr;
pub use class::{Class, classify};
pub use endpoint::{
    ENDPOINT_PATH_LIMIT_BYTES, EndpointError, TokenEndpoint, TokenKind, known_token_endpoints,
    leads_upwards,
};
pub use rule::{BadLine, EgressRules, PassthroughHosts, SecretScope};

use crate::host;
use crate::host::HostPort;

/// Says what is wrong with a setting of this module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A range that is not `address/length`, or whose length is over that of its family.
    #[error("range is not an address and a prefix length")]
    BadCidr,
    /// A range with bits set behind its length.
    #[error("range has bits set behind its prefix length")]
    CidrHostBits,
    /// The catalogue is not TOML of the expected form.
    #[error("catalogue of secret names cannot be read")]
    Catalogue(#[source] Box<toml::de::Error>),
    /// An entry that neither travels nor signs, or does both; a fault of the data file.
    #[error("catalogue entry {name} must have either hosts and headers or a reason why it signs")]
    CatalogueEntry {
        /// The secret's name.
        name: String,
    },
    /// An entry with a header name that is not a lower-case token; a fault of the data file.
    #[error("catalogue entry {name} has a header name that is not a lower-case token")]
    CatalogueHeader {
        /// The secret's name.
        name: String,
    },
    /// An entry with a host that is not exact; a fault of the data file.
    #[error("catalogue entry {name} has a host that cannot be read")]
    CatalogueHost {
        /// The secret's name.
        name: String,
        /// What is wrong with the host.
        source: host::Error,
    },
}

/// How an upstream is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// In verified TLS.
    Https,
}

/// Policy's yes: this host and port may be reached.
///
/// Nothing leaves the process without one. Only [`EgressPolicy::decide`] makes it:
///
/// ```
/// # use oshu_vault::policy::{AddressRules, EgressPolicy, EgressRules, Scheme};
/// # use oshu_vault::host::HostPort;
/// let policy = EgressPolicy::new(EgressRules::any_public(false));
/// let target = HostPort::parse("api.example.com:443").unwrap();
/// let grant = policy.decide(&target, &AddressRules::new(Vec::new(), false)).unwrap();
/// assert_eq!(grant.scheme(), Scheme::Https);
/// ```
///
/// Nobody else can:
///
/// ```compile_fail,E0451
/// # use oshu_vault::policy::{Grant, Scheme};
/// # use oshu_vault::host::HostPort;
/// let target = HostPort::parse("api.example.com:443").unwrap();
/// let grant = Grant { scheme: Scheme::Https, target };
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Grant {
    scheme: Scheme,
    target: HostPort,
}

impl Grant {
    /// Returns how the upstream is to be spoken to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns where to.
    pub fn target(&self) -> &HostPort {
        &self.target
    }

    /// Turns the grant into one for plain HTTP, once it is known that the workload speaks that.
    #[must_use]
    pub fn cleartext(self) -> Self {
        Self {
            scheme: Scheme::Http,
            ..self
        }
    }
}

/// Policy's no, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No line of the session's list names the host.
    #[error("the host is not in the session's allowed_egress")]
    HostNotAllowed,
    /// The target is an address literal of a class that is shut.
    #[error("addresses of class {0} may not be reached")]
    LiteralRefused(Class),
    /// The target is a name of this machine (`localhost`, RFC 6761 §6.3), and loopback is shut.
    #[error("names of the machine itself may not be reached")]
    LocalName,
    /// The target is a listener of this process.
    #[error("the target is one of our own listeners")]
    OwnListener,
    /// The host is named, but not with this port.
    #[error("the port is not allowed for this host; ports 443 and 80 are, unless one is written")]
    PortNotAllowed,
}

impl Denial {
    /// Returns the stable `snake_case` code.
    pub fn code(self) -> &'static str {
        match self {
            Self::HostNotAllowed => "host_not_allowed",
            Self::LiteralRefused(_) | Self::LocalName | Self::OwnListener => {
                "destination_ip_prohibited"
            }
            Self::PortNotAllowed => "port_not_allowed",
        }
    }
}

/// Where one session's traffic may go.
#[derive(Debug, Clone)]
pub struct EgressPolicy {
    rules: EgressRules,
}

impl EgressPolicy {
    /// Makes a policy of the parsed rules.
    pub fn new(rules: EgressRules) -> Self {
        Self { rules }
    }

    /// Returns the rules.
    pub fn rules(&self) -> &EgressRules {
        &self.rules
    }

    /// Decides about a target before any look-up; the grant is for TLS until
    /// [`Grant::cleartext`] says otherwise.
    ///
    /// A literal is judged by the table at once; the addresses of a name are, by [`vet`], when it
    /// has been looked up.
    ///
    /// # Errors
    /// [`Denial`], with the reason.
    pub fn decide(&self, target: &HostPort, addresses: &AddressRules) -> Result<Grant, Denial> {
        self.rules.admit(target)?;
        match (target.host.ip(), target.host.name()) {
            (Some(address), _) => {
                addresses
                    .check(address, target.port)
                    .map_err(|refused| match refused {
                        Refused::Prohibited(class) => Denial::LiteralRefused(class),
                        Refused::OwnListener | Refused::NoAddress => Denial::OwnListener,
                    })?;
            }
            (None, Some(name)) if is_local(name) && !addresses.opens_loopback() => {
                return Err(Denial::LocalName);
            }
            (None, _) => {}
        }
        Ok(Grant {
            scheme: Scheme::Https,
            target: target.clone(),
        })
    }
}

/// Tells `localhost` and what lies below it; the name is canonical, so lower case.
fn is_local(name: &str) -> bool {
    name.strip_suffix("localhost")
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> HostPort {
        HostPort::parse(text).unwrap()
    }

    fn closed() -> AddressRules {
        AddressRules::new(Vec::new(), false)
    }

    fn any_port() -> EgressPolicy {
        EgressPolicy::new(EgressRules::any_public(true))
    }

    #[test]
    fn a_grant_names_what_was_asked() {
        let grant = any_port()
            .decide(&target("Api.Example:8443"), &closed())
            .unwrap();
        assert_eq!(grant.target(), &target("api.example:8443"));
        assert_eq!(grant.scheme(), Scheme::Https);
        let plain = grant.clone().cleartext();
        assert_eq!(plain.scheme(), Scheme::Http);
        assert_eq!(plain.target(), grant.target());
        assert_ne!(plain, grant);
    }

    #[test]
    fn refused_literals_are_denied_before_any_look_up() {
        for (text, class) in [
            ("127.0.0.1:443", Class::Loopback),
            ("127.0.0.1.:443", Class::Loopback),
            ("0.0.0.0:443", Class::Unspecified),
            ("[::1]:443", Class::Loopback),
            ("[::]:443", Class::Unspecified),
            ("[::ffff:127.0.0.1]:443", Class::Transition),
            ("[::ffff:7f00:1]:443", Class::Transition),
            ("[::127.0.0.1]:443", Class::Transition),
            ("169.254.169.254:80", Class::Metadata),
            ("[fd00:ec2::254]:80", Class::Metadata),
            ("10.1.2.3:443", Class::Private),
            ("172.16.0.1:443", Class::Private),
            ("192.168.0.1:443", Class::Private),
            ("100.64.0.1:443", Class::CarrierGrade),
            ("192.0.0.1:443", Class::Reserved),
            ("198.18.0.1:443", Class::Reserved),
            ("224.0.0.1:443", Class::Multicast),
            ("240.0.0.1:443", Class::Reserved),
            ("255.255.255.255:443", Class::Broadcast),
            ("[64:ff9b::7f00:1]:443", Class::Transition),
            ("[64:ff9b:1::7f00:1]:443", Class::Transition),
            ("[2002:7f00:1::]:443", Class::Transition),
            ("[2001:0:1::]:443", Class::Transition),
            ("[fec0::1]:443", Class::Private),
        ] {
            let listed = EgressRules::listed(vec![host::HostPattern::parse(text).unwrap()]);
            for policy in [any_port(), EgressPolicy::new(listed)] {
                let denial = policy.decide(&target(text), &closed()).unwrap_err();
                assert_eq!(denial, Denial::LiteralRefused(class), "{text}");
                assert_eq!(denial.code(), "destination_ip_prohibited");
            }
        }
        assert!(any_port().decide(&target("1.1.1.1:443"), &closed()).is_ok());
        assert!(
            any_port()
                .decide(&target("[2606:4700::1]:443"), &closed())
                .is_ok()
        );
    }

    #[test]
    fn names_of_the_machine_need_loopback() {
        let dev = AddressRules::new(Vec::new(), true);
        let opened = AddressRules::new(vec![Cidr::parse("127.0.0.0/8").unwrap()], false);
        let elsewhere = AddressRules::new(vec![Cidr::parse("10.0.0.0/8").unwrap()], false);
        for name in [
            "localhost:443",
            "LOCALHOST.:443",
            "a.localhost:443",
            "A.b.LocalHost:80",
        ] {
            for shut in [&closed(), &elsewhere] {
                let denial = any_port().decide(&target(name), shut).unwrap_err();
                assert_eq!(denial, Denial::LocalName, "{name}");
            }
            assert!(any_port().decide(&target(name), &dev).is_ok(), "{name}");
            assert!(any_port().decide(&target(name), &opened).is_ok(), "{name}");
        }
        for name in ["xlocalhost:443", "localhost.example:443", "local:443"] {
            assert!(
                any_port().decide(&target(name), &closed()).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn own_listeners_are_denied_even_in_development() {
        let own = "127.0.0.1:8080".parse().unwrap();
        let dev = AddressRules::new(Vec::new(), true).with_own([own]);
        let denial = any_port()
            .decide(&target("127.0.0.1:8080"), &dev)
            .unwrap_err();
        assert_eq!(denial, Denial::OwnListener);
        assert!(any_port().decide(&target("127.0.0.1:8081"), &dev).is_ok());
    }

    #[test]
    fn the_list_speaks_first() {
        let none = EgressPolicy::new(EgressRules::listed(Vec::new()));
        for text in ["good.example:443", "127.0.0.1:443", "localhost:443"] {
            let denial = none.decide(&target(text), &closed()).unwrap_err();
            assert_eq!(denial, Denial::HostNotAllowed, "{text}");
            assert_eq!(denial.code(), "host_not_allowed");
        }
        let web = EgressPolicy::new(EgressRules::any_public(false));
        let denial = web
            .decide(&target("good.example:22"), &closed())
            .unwrap_err();
        assert_eq!(denial, Denial::PortNotAllowed);
        assert_eq!(denial.code(), "port_not_allowed");
    }

    proptest! {
        #[test]
        fn a_spelling_and_its_canonical_form_get_one_answer(
            text in prop_oneof![
                "[a-cA-C]{1,3}(\\.[a-cA-C]{1,3}){0,3}\\.?",
                "(A|a)\\.(wild|WILD)\\.(example|Example)\\.?",
                "(10|11|127)\\.0\\.0\\.[0-9]{1,2}\\.?",
                "\\[::(ffff|FFFF)?:(10|127)\\.0\\.0\\.1\\]",
                "(LOCALHOST|x\\.Localhost|localhost)\\.?",
            ],
            port in prop_oneof![Just(443), Just(80), Just(8443)],
        ) {
            let Ok(host) = host::Host::parse(&text) else { return Ok(()); };
            let listed = EgressRules::parse(&["*.wild.example", "a.b:8443", "11.0.0.1"]).unwrap();
            let asked = HostPort::new(host.clone(), port);
            let canonical = HostPort::new(host::Host::parse(&host.to_string()).unwrap(), port);
            for policy in [any_port(), EgressPolicy::new(listed)] {
                prop_assert_eq!(
                    policy.decide(&asked, &closed()),
                    policy.decide(&canonical, &closed())
                );
            }
        }
    }
}
