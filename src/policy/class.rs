//! What an address is for, by the special-purpose tables of IANA.
//!
//! What is not known to be public is not public: an IPv6 range that was never given out is
//! reserved, and every form of IPv6 that carries an IPv4 address is named as such. Pure tables and
//! bit work; what follows from a class is decided in `address`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cidr::Cidr;

/// What an address is for. Only [`Class::Public`] is dialled where nothing was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// `255.255.255.255` (RFC 919). Never opened.
    Broadcast,
    /// `100.64.0.0/10`, shared by the customers of a carrier (RFC 6598).
    CarrierGrade,
    /// Ranges for examples (RFC 5737, RFC 3849, RFC 9637).
    Documentation,
    /// `169.254.0.0/16` and `fe80::/10` (RFC 3927, RFC 4291).
    LinkLocal,
    /// `127.0.0.0/8` and `::1`.
    Loopback,
    /// An address at which a cloud hands credentials to its machines. Never opened.
    Metadata,
    /// `224.0.0.0/4` and `ff00::/8`. Never opened.
    Multicast,
    /// RFC 1918, and site-local IPv6 (RFC 3879).
    Private,
    /// Routed on the Internet.
    Public,
    /// Set aside by IANA, benchmarking included, or not given to anybody.
    Reserved,
    /// A form that carries or translates to an IPv4 address: mapped, compatible, NAT64, 6to4,
    /// Teredo, ISATAP. Such a form reaches what its IPv4 address reaches.
    Transition,
    /// `fc00::/7` (RFC 4193).
    UniqueLocal,
    /// `0.0.0.0` and `::`, which many systems dial as loopback. Never opened.
    Unspecified,
}

impl Class {
    /// Returns the stable `snake_case` name, for audit records and error bodies.
    pub fn code(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::CarrierGrade => "carrier_grade",
            Self::Documentation => "documentation",
            Self::LinkLocal => "link_local",
            Self::Loopback => "loopback",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Private => "private",
            Self::Public => "public",
            Self::Reserved => "reserved",
            Self::Transition => "transition",
            Self::UniqueLocal => "unique_local",
            Self::Unspecified => "unspecified",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

const fn v4(octets: [u8; 4], length: u8) -> Cidr {
    Cidr::v4(Ipv4Addr::from_octets(octets), length)
}

const fn v6(groups: [u16; 8], length: u8) -> Cidr {
    Cidr::v6(Ipv6Addr::from_segments(groups), length)
}

/// Where clouds serve credentials or machine settings. They stay shut whatever was opened.
const METADATA: &[Cidr] = &[
    v4([169, 254, 169, 254], 32), // AWS, Azure, Google, Oracle, DigitalOcean, Hetzner, OpenStack …
    v4([169, 254, 170, 2], 32),   // AWS ECS tasks
    v4([169, 254, 170, 23], 32),  // AWS EKS pod identity
    v4([169, 254, 0, 23], 32),    // Tencent
    v4([169, 254, 42, 42], 32),   // Scaleway
    v4([100, 100, 100, 200], 32), // Alibaba
    v4([168, 63, 129, 16], 32),   // Azure's wire server, in a public range
    v4([192, 0, 0, 192], 32),     // Oracle, the older form
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), // AWS
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128), // AWS EKS pod identity
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), // Google
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128), // Scaleway
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), // Oracle
    v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), // OpenStack
];

/// IANA's IPv4 special-purpose registry (RFC 6890); the first match counts, the rest is public.
const TABLE_V4: &[(Cidr, Class)] = &[
    (v4([0, 0, 0, 0], 32), Class::Unspecified),
    (v4([0, 0, 0, 0], 8), Class::Reserved), // "this network", RFC 791
    (v4([10, 0, 0, 0], 8), Class::Private),
    (v4([100, 64, 0, 0], 10), Class::CarrierGrade),
    (v4([127, 0, 0, 0], 8), Class::Loopback),
    (v4([169, 254, 0, 0], 16), Class::LinkLocal),
    (v4([172, 16, 0, 0], 12), Class::Private),
    (v4([192, 0, 0, 0], 24), Class::Reserved), // protocol assignments, RFC 6890
    (v4([192, 0, 2, 0], 24), Class::Documentation),
    (v4([192, 88, 99, 0], 24), Class::Transition), // 6to4 relays, RFC 7526
    (v4([192, 168, 0, 0], 16), Class::Private),
    (v4([198, 18, 0, 0], 15), Class::Reserved), // benchmarking, RFC 2544
    (v4([198, 51, 100, 0], 24), Class::Documentation),
    (v4([203, 0, 113, 0], 24), Class::Documentation),
    (v4([224, 0, 0, 0], 4), Class::Multicast),
    (v4([255, 255, 255, 255], 32), Class::Broadcast),
    (v4([240, 0, 0, 0], 4), Class::Reserved),
];

/// The same for IPv6. Only `2000::/3` was ever given out, so the rest is reserved, not public.
const TABLE_V6: &[(Cidr, Class)] = &[
    (v6([0; 8], 128), Class::Unspecified),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Class::Loopback),
    (COMPATIBLE, Class::Transition),
    (MAPPED, Class::Transition),
    (TRANSLATED, Class::Transition),
    (NAT64, Class::Transition),
    (NAT64_LOCAL, Class::Transition),
    (TEREDO, Class::Transition),
    (SIX_TO_FOUR, Class::Transition),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), Class::Reserved), // IETF assignments, RFC 2928
    (
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        Class::Documentation,
    ),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Class::Documentation),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Class::UniqueLocal),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Class::LinkLocal),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Class::Private), // site-local, RFC 3879
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Class::Multicast),
    (v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3), Class::Public),
];

/// `::a.b.c.d` (RFC 4291 §2.5.5.1).
const COMPATIBLE: Cidr = v6([0; 8], 96);
/// `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
const MAPPED: Cidr = v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96);
/// `::ffff:0:a.b.c.d` (RFC 2765, still read by some stacks).
const TRANSLATED: Cidr = v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96);
/// The well-known prefix of NAT64 (RFC 6052).
const NAT64: Cidr = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
/// The prefix for a network's own NAT64 (RFC 8215).
const NAT64_LOCAL: Cidr = v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48);
/// Teredo (RFC 4380).
const TEREDO: Cidr = v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);
/// 6to4 (RFC 3056).
const SIX_TO_FOUR: Cidr = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// Names the class of an address.
pub fn classify(address: IpAddr) -> Class {
    let is_metadata = |address: IpAddr| METADATA.iter().any(|range| range.contains(address));
    if is_metadata(address) || embedded(address).any(|inner| is_metadata(IpAddr::V4(inner))) {
        return Class::Metadata;
    }
    let (table, otherwise) = match address {
        IpAddr::V4(_) => (TABLE_V4, Class::Public),
        IpAddr::V6(_) => (TABLE_V6, Class::Reserved),
    };
    let listed = table
        .iter()
        .find(|(range, _)| range.contains(address))
        .map_or(otherwise, |(_, class)| *class);
    match address {
        IpAddr::V6(inner) if listed == Class::Public && is_isatap(inner) => Class::Transition,
        _ => listed,
    }
}

/// Tells an interface id of ISATAP, which may follow any prefix (RFC 5214 §6.1).
fn is_isatap(address: Ipv6Addr) -> bool {
    let [_, _, _, _, high, low, _, _] = address.segments();
    high & !0x0200 == 0 && low == 0x5efe
}

/// Lists the IPv4 addresses that an IPv6 address may stand for; none for plain ones.
pub(super) fn embedded(address: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let candidates = match address {
        IpAddr::V4(_) => [None; 4],
        IpAddr::V6(inner) => embedded_v6(inner),
    };
    candidates.into_iter().flatten()
}

fn embedded_v6(inner: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let address = IpAddr::V6(inner);
    let o = inner.octets();
    let low = Some(Ipv4Addr::new(o[12], o[13], o[14], o[15]));
    if NAT64_LOCAL.contains(address) {
        // The network's own prefix may end at bit 48, 56, 64 or 96, and which of them is not
        // written in the address (RFC 6052 §2.2): all readings count, but for those in 0.0.0.0/8,
        // which reach nothing and which an unused reading gives.
        let reading = |a, b, c, d| Some(Ipv4Addr::new(a, b, c, d)).filter(|_| a != 0);
        return [
            low,
            reading(o[6], o[7], o[9], o[10]),
            reading(o[7], o[9], o[10], o[11]),
            reading(o[9], o[10], o[11], o[12]),
        ];
    }
    if TEREDO.contains(address) {
        // The server stands plain, the client inverted (RFC 4380 §4).
        let server = Ipv4Addr::new(o[4], o[5], o[6], o[7]);
        return [Some(server), low.map(|client| !client), None, None];
    }
    if SIX_TO_FOUR.contains(address) {
        return [
            Some(Ipv4Addr::new(o[2], o[3], o[4], o[5])),
            low.filter(|_| is_isatap(inner)),
            None,
            None,
        ];
    }
    let plain = [COMPATIBLE, MAPPED, TRANSLATED, NAT64];
    let carries = plain.iter().any(|range| range.contains(address)) || is_isatap(inner);
    [low.filter(|_| carries), None, None, None]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Class {
        classify(text.parse().unwrap())
    }

    /// A class, the first and last address of a range, the addresses before and behind it. The
    /// neighbours are public.
    type Range = (Class, [&'static str; 4]);

    const RANGES_V4: &[Range] = &[
        (
            Class::Private,
            ["10.0.0.0", "10.255.255.255", "9.255.255.255", "11.0.0.0"],
        ),
        (
            Class::CarrierGrade,
            [
                "100.64.0.0",
                "100.127.255.255",
                "100.63.255.255",
                "100.128.0.0",
            ],
        ),
        (
            Class::Loopback,
            [
                "127.0.0.0",
                "127.255.255.255",
                "126.255.255.255",
                "128.0.0.0",
            ],
        ),
        (
            Class::LinkLocal,
            [
                "169.254.0.0",
                "169.254.255.255",
                "169.253.255.255",
                "169.255.0.0",
            ],
        ),
        (
            Class::Private,
            [
                "172.16.0.0",
                "172.31.255.255",
                "172.15.255.255",
                "172.32.0.0",
            ],
        ),
        (
            Class::Reserved,
            ["192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"],
        ),
        (
            Class::Documentation,
            ["192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"],
        ),
        (
            Class::Transition,
            [
                "192.88.99.0",
                "192.88.99.255",
                "192.88.98.255",
                "192.88.100.0",
            ],
        ),
        (
            Class::Private,
            [
                "192.168.0.0",
                "192.168.255.255",
                "192.167.255.255",
                "192.169.0.0",
            ],
        ),
        (
            Class::Reserved,
            [
                "198.18.0.0",
                "198.19.255.255",
                "198.17.255.255",
                "198.20.0.0",
            ],
        ),
        (
            Class::Documentation,
            [
                "198.51.100.0",
                "198.51.100.255",
                "198.51.99.255",
                "198.51.101.0",
            ],
        ),
        (
            Class::Documentation,
            [
                "203.0.113.0",
                "203.0.113.255",
                "203.0.112.255",
                "203.0.114.0",
            ],
        ),
    ];

    const RANGES_V6: &[Range] = &[
        (
            Class::Reserved,
            ["2001:1::", "2001:1ff:ffff::", "2000:ffff::", "2001:200::"],
        ),
        (
            Class::Documentation,
            [
                "2001:db8::",
                "2001:db8:ffff:ffff::",
                "2001:db7:ffff::",
                "2001:db9::",
            ],
        ),
        (
            Class::Transition,
            ["2002::", "2002:ffff:ffff:ffff::", "2001:ffff::", "2003::"],
        ),
        (
            Class::Documentation,
            [
                "3fff::",
                "3fff:fff:ffff:ffff::",
                "3ffe:ffff::",
                "3fff:1000::",
            ],
        ),
    ];

    #[test]
    fn peer_16_every_range_has_its_class_up_to_its_border() {
        for (class, [first, last, before, behind]) in RANGES_V4.iter().chain(RANGES_V6) {
            assert_eq!(of(first), *class, "{first}");
            assert_eq!(of(last), *class, "{last}");
            assert_eq!(of(before), Class::Public, "{before}");
            assert_eq!(of(behind), Class::Public, "{behind}");
        }
    }

    #[test]
    fn peer_16_single_addresses_and_ranges_beside_others() {
        for (text, class) in [
            ("0.0.0.0", Class::Unspecified),
            ("0.0.0.1", Class::Reserved),
            ("0.255.255.255", Class::Reserved),
            ("1.0.0.0", Class::Public),
            ("223.255.255.255", Class::Public),
            ("224.0.0.0", Class::Multicast),
            ("239.255.255.255", Class::Multicast),
            ("240.0.0.0", Class::Reserved),
            ("255.255.255.254", Class::Reserved),
            ("255.255.255.255", Class::Broadcast),
            ("8.8.8.8", Class::Public),
            ("::", Class::Unspecified),
            ("::1", Class::Loopback),
            ("::2", Class::Transition),
            ("100::1", Class::Reserved),
            ("1fff:ffff::", Class::Reserved),
            ("2000::", Class::Public),
            ("2001:2::1", Class::Reserved),
            ("2001:20::1", Class::Reserved),
            ("2606:4700:4700::1111", Class::Public),
            ("4000::", Class::Reserved),
            ("5f00::1", Class::Reserved),
            ("fbff::", Class::Reserved),
            ("fc00::", Class::UniqueLocal),
            ("fdff:ffff::", Class::UniqueLocal),
            ("fe00::", Class::Reserved),
            ("fe80::1", Class::LinkLocal),
            ("febf::", Class::LinkLocal),
            ("fec0::1", Class::Private),
            ("feff::", Class::Private),
            ("ff02::1", Class::Multicast),
        ] {
            assert_eq!(of(text), class, "{text}");
        }
    }

    #[test]
    fn metadata_is_known_in_every_form() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fe80::a9fe:a9fe",
            "::169.254.169.254",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "::ffff:168.63.129.16",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:a9:fe:a9fe::",
            "64:ff9b:1:0:a9:fea9:fe00:0",
            "2002:a9fe:a9fe::1",
            "2001:0:808:808:0:0:5601:5601",
            "2001:0:a9fe:a9fe::",
            "2606:4700::5efe:a9fe:a9fe",
        ] {
            assert_eq!(of(text), Class::Metadata, "{text}");
        }
        assert_eq!(of("169.254.169.253"), Class::LinkLocal);
        assert_eq!(of("168.63.129.17"), Class::Public);
    }

    #[test]
    fn peer_16_forms_that_carry_an_ipv4_address_are_transition() {
        for text in [
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::7f00:1",
            "64:ff9b:1:ffff:ffff::",
            "2001::1",
            "2001:0:ffff::",
            "2002:7f00:1::",
            "2002:808:808::",
            "2606:4700::5efe:808:808",
            "2606:4700::200:5efe:808:808",
        ] {
            assert_eq!(of(text), Class::Transition, "{text}");
        }
        // One bit beside the ranges nothing is carried.
        for (text, class) in [
            ("::fffe:8.8.8.8", Class::Reserved),
            ("64:ff9b:0:0:0:1:808:808", Class::Reserved),
            ("64:ff9b:2::808:808", Class::Reserved),
            ("2606:4700::100:5efe:808:808", Class::Public),
        ] {
            assert_eq!(of(text), class, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_form_of_an_ipv4_address_is_public(bits in any::<u32>()) {
            let inner = Ipv4Addr::from_bits(bits);
            let metadata = classify(IpAddr::V4(inner)) == Class::Metadata;
            for form in [inner.to_ipv6_mapped(), inner.to_ipv6_compatible()] {
                let class = classify(IpAddr::V6(form));
                prop_assert_ne!(class, Class::Public);
                prop_assert_eq!(class == Class::Metadata, metadata);
            }
        }

        #[test]
        fn the_standard_library_calls_no_public_address_special(bits in any::<u32>()) {
            let address = Ipv4Addr::from_bits(bits);
            let special = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.is_broadcast() || address.is_documentation()
                || address.is_unspecified();
            prop_assert!(!special || classify(IpAddr::V4(address)) != Class::Public);
        }

        #[test]
        fn only_global_unicast_is_public(bits in any::<u128>()) {
            let class = classify(IpAddr::V6(Ipv6Addr::from_bits(bits)));
            prop_assert!(class != Class::Public || bits >> 125 == 1);
        }
    }
}
