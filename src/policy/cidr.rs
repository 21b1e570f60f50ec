//! Ranges of addresses, as an operator writes them and as the tables of this module hold them.
//!
//! Parsing is strict, so that a slip opens nothing. Called by the tables in `class` and, with what
//! an operator wrote, by whoever makes [`AddressRules`](super::AddressRules).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Error;

/// A range of addresses: a network and the number of its leading bits that count.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    length: u8,
}

impl Cidr {
    /// Makes a range of a table; bits behind the length must be zero.
    pub(super) const fn v4(address: Ipv4Addr, length: u8) -> Self {
        Self {
            network: IpAddr::V4(address),
            length,
        }
    }

    /// Makes a range of a table; bits behind the length must be zero.
    pub(super) const fn v6(address: Ipv6Addr, length: u8) -> Self {
        Self {
            network: IpAddr::V6(address),
            length,
        }
    }

    /// Parses `10.0.0.0/8` or `fd00::/8`; an address alone is the range of itself.
    ///
    /// # Errors
    /// [`Error::BadCidr`], or [`Error::CidrHostBits`] where bits behind the length are set
    /// (`10.0.0.1/8` is more often a slip than a wish for all of `10.0.0.0/8`).
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (network, length) = match text.split_once('/') {
            Some((network, length)) => (network, Some(length)),
            None => (text, None),
        };
        let network: IpAddr = network.parse().map_err(|_ignored| Error::BadCidr)?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(digits) if (1..=3).contains(&digits.len()) && is_digits(digits) => {
                digits.parse().map_err(|_ignored| Error::BadCidr)?
            }
            Some(_) => return Err(Error::BadCidr),
        };
        if length > most {
            return Err(Error::BadCidr);
        }
        let trailing_zeros = match network {
            IpAddr::V4(address) => address.to_bits().trailing_zeros(),
            IpAddr::V6(address) => address.to_bits().trailing_zeros(),
        };
        if trailing_zeros < u32::from(most - length) {
            return Err(Error::CidrHostBits);
        }
        Ok(Self { network, length })
    }

    /// Tells whether the address lies in the range; an address of the other family does not, nor
    /// does a mapped form of one that would.
    pub fn contains(&self, address: IpAddr) -> bool {
        let common = match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros()
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        common >= u32::from(self.length)
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        for (text, canonical) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("127.0.0.1", "127.0.0.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("FD00::/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(Cidr::parse(text).unwrap().to_string(), canonical, "{text}");
        }
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "10.0.0.0/08x",
            "10.0.0.0/1000",
            "::/129",
            "[::1]/128",
            "localhost",
            "*",
            "10.0.0.0 /8",
            "10.0.0.0/256",
        ] {
            assert!(matches!(Cidr::parse(text), Err(Error::BadCidr)), "{text:?}");
        }
        for text in ["10.0.0.1/8", "127.0.0.1/31", "fd00::1/8", "1.0.0.0/0"] {
            let error = Cidr::parse(text);
            assert!(matches!(error, Err(Error::CidrHostBits)), "{text:?}");
        }
    }

    #[test]
    fn a_range_ends_where_it_says() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("100.64.0.0/10", "100.127.255.255", "100.128.0.0"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("10.0.0.0/8", "10.0.0.0", "::ffff:10.0.0.0"),
            ("::/0", "ffff::", "10.0.0.0"),
            ("fe80::/10", "febf:ffff::", "fec0::"),
            ("::1", "::1", "::"),
        ] {
            let range = Cidr::parse(range).unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{range} {inside}");
            assert!(
                !range.contains(outside.parse().unwrap()),
                "{range} {outside}"
            );
        }
    }
}
