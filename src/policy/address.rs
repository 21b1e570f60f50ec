//! Which addresses may be dialled: the operator's openings, our own listeners, the vetting.
//!
//! [`vet`] turns the whole answer of a look-up into [`VettedAddr`]s or refuses it. Metadata
//! addresses and our own listeners stay shut whatever was opened. It never resolves and never
//! dials. Called by `upstream` (look-ups) and by [`EgressPolicy`](super::EgressPolicy) (literals).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::cidr::Cidr;
use super::class::{Class, classify, embedded};

/// The most addresses of one look-up that are kept for dialling; all of them are checked.
pub const VETTED_LIMIT: usize = 16;

/// What an operator opened, and what is ours: the settings that [`vet`] works by.
#[derive(Debug, Clone)]
pub struct AddressRules {
    allow: Vec<Cidr>,
    allow_loopback: bool,
    own: Vec<SocketAddr>,
}

impl AddressRules {
    /// Opens nothing but the ranges given and, if asked for, loopback.
    pub fn new(allow: Vec<Cidr>, allow_loopback: bool) -> Self {
        Self {
            allow,
            allow_loopback,
            own: Vec::new(),
        }
    }

    /// Adds listeners of this process; they stay shut whatever is open. `0.0.0.0` and `::` stand
    /// for every local address.
    #[must_use]
    pub fn with_own(mut self, listeners: impl IntoIterator<Item = SocketAddr>) -> Self {
        for listener in listeners {
            self.add_own(listener);
        }
        self
    }

    /// Adds one listener of this process, as soon as its port is known.
    pub fn add_own(&mut self, listener: SocketAddr) {
        self.own.push(SocketAddr::new(
            listener.ip().to_canonical(),
            listener.port(),
        ));
    }

    /// Returns the rules for an address that the operator wrote down and no workload chose, such as
    /// that of the upstream proxy: every range is open, our own listeners and what nothing may open
    /// stay shut.
    #[must_use]
    pub fn for_operator(&self) -> Self {
        Self {
            allow: vec![
                Cidr::v4(Ipv4Addr::UNSPECIFIED, 0),
                Cidr::v6(Ipv6Addr::UNSPECIFIED, 0),
            ],
            allow_loopback: true,
            own: self.own.clone(),
        }
    }

    /// Lists the ports that this process listens on.
    pub fn own_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.own.iter().map(SocketAddr::port)
    }

    /// Tells whether a connection that was just made ends at one of our listeners on an address
    /// that only the machine knows to be its own: both ends then have the same address. To be asked
    /// by whoever dials, before the first byte.
    pub fn is_own_connection(&self, local: IpAddr, peer: SocketAddr) -> bool {
        let same = local.to_canonical() == peer.ip().to_canonical();
        let everywhere = |own: &SocketAddr| own.ip().is_unspecified() && own.port() == peer.port();
        self.is_own(peer.ip().to_canonical(), peer.port())
            || (same && self.own.iter().any(everywhere))
    }

    /// Tells whether any loopback address may be dialled.
    pub(super) fn opens_loopback(&self) -> bool {
        let loopback = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ];
        self.allow_loopback || loopback.into_iter().any(|address| self.opens(address))
    }

    fn opens(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|range| range.contains(address))
    }

    fn is_own(&self, address: IpAddr, port: u16) -> bool {
        self.own.iter().any(|own| {
            let everywhere = own.ip().is_unspecified() && address.is_loopback();
            own.port() == port && (own.ip() == address || everywhere)
        })
    }

    /// Decides about one address.
    pub(super) fn check(&self, address: IpAddr, port: u16) -> Result<(), Refused> {
        if self.is_own(address, port) {
            return Err(Refused::OwnListener);
        }
        let class = classify(address);
        match class {
            Class::Public => Ok(()),
            Class::Loopback if self.allow_loopback => Ok(()),
            Class::Broadcast | Class::Metadata | Class::Multicast | Class::Unspecified => {
                Err(Refused::Prohibited(class))
            }
            // An opened NAT64 prefix must not open what lies behind it.
            Class::Transition if self.opens(address) => {
                embedded(address).try_for_each(|inner| self.check(IpAddr::V4(inner), port))
            }
            _ if self.opens(address) => Ok(()),
            _ => Err(Refused::Prohibited(class)),
        }
    }
}

/// Says why an address, or the whole answer of a look-up, was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The look-up gave no address.
    #[error("the name has no address")]
    NoAddress,
    /// The address and port are a listener of this process.
    #[error("the address is one of our own listeners")]
    OwnListener,
    /// The address is of a class that is shut.
    #[error("addresses of class {0} may not be reached")]
    Prohibited(Class),
}

impl Refused {
    /// Returns the stable `snake_case` code. A prohibited address has the name that RFC 9209 §2.3
    /// gives it, and so has one of ours, which need not be told apart outside.
    pub fn code(self) -> &'static str {
        match self {
            Self::NoAddress => "dns_error",
            Self::OwnListener | Self::Prohibited(_) => "destination_ip_prohibited",
        }
    }
}

/// An address that passed [`vet`]: the only thing that may be dialled.
///
/// ```
/// # use oshu_vault::policy::{AddressRules, vet};
/// let rules = AddressRules::new(Vec::new(), false);
/// let vetted = vet(&["1.1.1.1".parse().unwrap()], 443, &rules).unwrap();
/// assert_eq!(vetted[0].socket_addr().to_string(), "1.1.1.1:443");
/// ```
///
/// Nobody else can make one:
///
/// ```compile_fail,E0423
/// let vetted = oshu_vault::policy::VettedAddr("1.1.1.1:443".parse().unwrap());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VettedAddr(SocketAddr);

impl VettedAddr {
    /// Returns the address and port to dial.
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

/// Checks every address of one look-up and pairs the first [`VETTED_LIMIT`] with the port.
///
/// One bad address refuses the whole answer: a name that points at once to the outside and to the
/// inside is an attack or a fault, and picking the good half would hide both.
///
/// # Errors
/// [`Refused`], for the first address that does not pass; an empty answer is refused.
pub fn vet(
    addresses: &[IpAddr],
    port: u16,
    rules: &AddressRules,
) -> Result<Vec<VettedAddr>, Refused> {
    if addresses.is_empty() {
        return Err(Refused::NoAddress);
    }
    for address in addresses {
        rules.check(*address, port)?;
    }
    let kept = addresses.iter().take(VETTED_LIMIT);
    Ok(kept
        .map(|address| VettedAddr(SocketAddr::new(*address, port)))
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules(allow: &[&str]) -> AddressRules {
        let allow = allow.iter().map(|text| Cidr::parse(text).unwrap());
        AddressRules::new(allow.collect(), false)
    }

    const OWN: u16 = 8080;

    fn own(listener: &str, allow: &[&str]) -> AddressRules {
        rules(allow).with_own([SocketAddr::new(ip(listener), OWN)])
    }

    #[test]
    fn peer_14_one_bad_address_refuses_the_whole_answer() {
        let closed = rules(&[]);
        let public = ip("1.1.1.1");
        assert_eq!(vet(&[], 443, &closed), Err(Refused::NoAddress));
        let vetted = vet(&[public, ip("2606:4700::1111")], 443, &closed).unwrap();
        let dialled: Vec<String> = vetted.iter().map(|v| v.socket_addr().to_string()).collect();
        assert_eq!(dialled, ["1.1.1.1:443", "[2606:4700::1111]:443"]);
        for bad in [
            "10.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "127.0.0.1",
            "0.0.0.0",
        ] {
            for answer in [vec![public, ip(bad)], vec![ip(bad), public], vec![ip(bad)]] {
                let verdict = vet(&answer, 443, &closed);
                assert!(matches!(verdict, Err(Refused::Prohibited(_))), "{bad}");
            }
        }
    }

    #[test]
    fn a_long_answer_is_checked_whole_and_kept_in_part() {
        let closed = rules(&[]);
        let mut answer: Vec<IpAddr> = (0..40).map(|n| IpAddr::from([1, 1, 1, n])).collect();
        let vetted = vet(&answer, 443, &closed).unwrap();
        assert_eq!(vetted.len(), VETTED_LIMIT);
        assert_eq!(vetted[15].socket_addr().ip(), answer[15]);
        answer.push(ip("10.0.0.1"));
        assert_eq!(
            vet(&answer, 443, &closed),
            Err(Refused::Prohibited(Class::Private))
        );
    }

    #[test]
    fn an_opened_range_is_open_and_nothing_beside_it() {
        for (allow, open, shut) in [
            ("10.1.0.0/16", "10.1.2.3", "10.2.0.0"),
            ("127.0.0.0/8", "127.0.0.1", "::1"),
            ("::1", "::1", "127.0.0.1"),
            ("fd00::/8", "fd12::1", "fc00::1"),
            ("169.254.0.0/16", "169.254.1.1", "fe80::1"),
            ("198.18.0.0/15", "198.19.0.1", "100.64.0.1"),
            ("fec0::/10", "fec0::1", "fd00::1"),
        ] {
            let rules = rules(&[allow]);
            assert_eq!(rules.check(ip(open), 443), Ok(()), "{allow} {open}");
            assert!(rules.check(ip(shut), 443).is_err(), "{allow} {shut}");
        }
    }

    #[test]
    fn some_addresses_are_never_opened() {
        let open = rules(&["0.0.0.0/0", "::/0"]);
        assert_eq!(open.check(ip("10.0.0.1"), 443), Ok(()));
        for (text, class) in [
            ("169.254.169.254", Class::Metadata),
            ("100.100.100.200", Class::Metadata),
            ("168.63.129.16", Class::Metadata),
            ("fd00:ec2::254", Class::Metadata),
            ("::ffff:169.254.169.254", Class::Metadata),
            ("64:ff9b::a9fe:a9fe", Class::Metadata),
            ("0.0.0.0", Class::Unspecified),
            ("::", Class::Unspecified),
            ("::ffff:0.0.0.0", Class::Unspecified),
            ("224.0.0.1", Class::Multicast),
            ("ff02::1", Class::Multicast),
            ("255.255.255.255", Class::Broadcast),
        ] {
            let verdict = open.check(ip(text), 443);
            assert_eq!(verdict, Err(Refused::Prohibited(class)), "{text}");
        }
    }

    #[test]
    fn an_opened_transition_range_opens_nothing_behind_it() {
        let nat64 = rules(&["64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0/96"]);
        for open in ["64:ff9b::808:808", "64:ff9b:1::808:808", "::ffff:8.8.8.8"] {
            assert_eq!(nat64.check(ip(open), 443), Ok(()), "{open}");
        }
        for (text, class) in [
            ("64:ff9b::a00:1", Class::Private),
            ("64:ff9b::7f00:1", Class::Loopback),
            ("64:ff9b:1::a00:1", Class::Private),
            // 10.0.0.1 where the prefix ends at bit 48, with a public address behind it.
            ("64:ff9b:1:a00:0:100:808:808", Class::Private),
            ("::ffff:10.0.0.1", Class::Private),
            ("2002:808:808::", Class::Transition),
        ] {
            let verdict = nat64.check(ip(text), 443);
            assert_eq!(verdict, Err(Refused::Prohibited(class)), "{text}");
        }
        let both = rules(&["64:ff9b::/96", "10.0.0.0/8"]);
        assert_eq!(both.check(ip("64:ff9b::a00:1"), 443), Ok(()));
    }

    #[test]
    fn loopback_opens_loopback_only() {
        let dev = AddressRules::new(Vec::new(), true);
        for open in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(dev.check(ip(open), 3000), Ok(()), "{open}");
        }
        for shut in [
            "::ffff:127.0.0.1",
            "::7f00:1",
            "0.0.0.0",
            "::",
            "10.0.0.1",
            "169.254.0.1",
        ] {
            assert!(dev.check(ip(shut), 3000).is_err(), "{shut}");
        }
    }

    #[test]
    fn own_listeners_stay_shut() {
        for (listener, allow, target) in [
            ("127.0.0.1", "127.0.0.0/8", "127.0.0.1"),
            ("10.0.0.5", "10.0.0.0/8", "10.0.0.5"),
            ("0.0.0.0", "127.0.0.0/8", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.0/8", "127.8.8.8"),
            ("0.0.0.0", "::1", "::1"),
            ("::", "127.0.0.0/8", "127.0.0.1"),
            ("::ffff:127.0.0.1", "127.0.0.0/8", "127.0.0.1"),
            ("127.0.0.1", "64:ff9b::/96", "64:ff9b::7f00:1"),
            ("1.1.1.1", "::ffff:0:0/96", "::ffff:1.1.1.1"),
            ("1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ] {
            let rules = own(listener, &[allow]);
            let verdict = rules.check(ip(target), OWN);
            assert_eq!(verdict, Err(Refused::OwnListener), "{listener} {target}");
            let other_port = rules.check(ip(target), 443);
            assert_ne!(other_port, Err(Refused::OwnListener), "{listener} {target}");
        }
        let mut dev = AddressRules::new(Vec::new(), true);
        assert_eq!(dev.check(ip("127.0.0.1"), OWN), Ok(()));
        dev.add_own(SocketAddr::new(ip("127.0.0.1"), OWN));
        assert_eq!(dev.check(ip("127.0.0.1"), OWN), Err(Refused::OwnListener));
        assert_eq!(dev.check(ip("127.0.0.2"), OWN), Ok(()));
        assert_eq!(dev.own_ports().collect::<Vec<_>>(), [OWN]);
    }

    #[test]
    fn what_the_operator_wrote_may_be_private_and_never_ours() {
        let rules = own("127.0.0.1", &[]).for_operator();
        for open in [
            "127.0.0.1",
            "::1",
            "10.0.0.1",
            "fd00::1",
            "100.64.0.1",
            "1.1.1.1",
        ] {
            assert_eq!(rules.check(ip(open), 3128), Ok(()), "{open}");
        }
        for shut in [
            "169.254.169.254",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
        ] {
            assert!(rules.check(ip(shut), 3128).is_err(), "{shut}");
        }
        assert_eq!(rules.check(ip("127.0.0.1"), OWN), Err(Refused::OwnListener));
    }

    #[test]
    fn a_connection_to_oneself_is_told_by_its_ends() {
        let everywhere = own("::", &[]);
        let peer = |text: &str, port| SocketAddr::new(ip(text), port);
        for (local, peer, ours) in [
            ("1.2.3.4", peer("1.2.3.4", OWN), true),
            ("::ffff:1.2.3.4", peer("1.2.3.4", OWN), true),
            ("1.2.3.4", peer("1.2.3.4", 443), false),
            ("1.2.3.4", peer("1.2.3.5", OWN), false),
            ("127.0.0.1", peer("127.0.0.2", OWN), true),
        ] {
            assert_eq!(
                everywhere.is_own_connection(ip(local), peer),
                ours,
                "{peer}"
            );
        }
        let one = own("10.0.0.5", &[]);
        assert!(one.is_own_connection(ip("10.0.0.6"), peer("10.0.0.5", OWN)));
        assert!(!one.is_own_connection(ip("10.0.0.6"), peer("10.0.0.6", OWN)));
    }

    #[test]
    fn refusals_have_codes() {
        assert_eq!(Refused::NoAddress.code(), "dns_error");
        assert_eq!(Refused::OwnListener.code(), "destination_ip_prohibited");
        let private = Refused::Prohibited(Class::Private);
        assert_eq!(private.code(), "destination_ip_prohibited");
        assert_eq!(
            private.to_string(),
            "addresses of class private may not be reached"
        );
    }

    proptest! {
        // Half of the samples lie in 0.0.0.0/5 to 15.255.255.255 to hit the special ranges often.
        #[test]
        fn a_mapped_form_never_passes_where_its_address_does_not(
            bits in prop_oneof![any::<u32>(), 0x0a00_0000..0x0b00_0000_u32, 0x7f00_0000..0x8000_0000_u32],
            port in prop_oneof![Just(443), Just(OWN)],
            opened in proptest::sample::subsequence(
                vec!["10.0.0.0/8", "127.0.0.0/8", "::ffff:0:0/96", "64:ff9b::/96", "::/0"], 0..=5),
            loopback in any::<bool>(),
        ) {
            let allow = opened.iter().map(|text| Cidr::parse(text).unwrap()).collect();
            let rules = AddressRules::new(allow, loopback)
                .with_own([SocketAddr::new(ip("0.0.0.0"), OWN)]);
            let inner = Ipv4Addr::from_bits(bits);
            let nat64 = Ipv6Addr::from_bits((0x0064_ff9b_u128 << 96) | u128::from(bits));
            for form in [inner.to_ipv6_mapped(), inner.to_ipv6_compatible(), nat64] {
                if rules.check(IpAddr::V6(form), port).is_ok() && form != Ipv6Addr::LOCALHOST {
                    prop_assert_eq!(rules.check(IpAddr::V4(inner), port), Ok(()));
                }
            }
        }
    }
}
