//! Properties of names: one canonical form, and one answer for all spellings of it.

use std::net::IpAddr;

use oshu_vault::host::{Host, HostPattern, HostPort};
use oshu_vault::policy::{
    AddressRules, Cidr, EgressPolicy, EgressRules, SecretScope, classify, vet,
};

/// Parses a text as everything that names hosts, and asks the policy about it.
pub fn host_port(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(host) = Host::parse(text) {
        canonical(text, &host);
    }
    for pair in [HostPort::parse(text), HostPort::parse_or(text, 443)]
        .into_iter()
        .flatten()
    {
        assert_ne!(pair.port, 0);
        assert_eq!(HostPort::parse(&pair.to_string()), Ok(pair.clone()));
        assert_eq!(Host::parse(&pair.host.to_string()), Ok(pair.host.clone()));
        decided(text, &pair);
    }
    for pattern in [HostPattern::parse(text), HostPattern::parse_exact(text)]
        .into_iter()
        .flatten()
    {
        assert_eq!(
            HostPattern::parse(&pattern.to_string()).as_ref(),
            Ok(&pattern)
        );
        assert!(pattern.contains(&pattern));
        if let Some(host) = pattern.exact() {
            assert!(pattern.matches_host(host));
            assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(host));
        }
    }
    if let Ok(cidr) = Cidr::parse(text) {
        let first = text
            .split('/')
            .next()
            .and_then(|address| address.parse::<IpAddr>().ok());
        assert!(first.is_none_or(|address| cidr.contains(address)));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        verdicts(address);
    }
    if let Ok(octets) = <[u8; 4]>::try_from(data) {
        verdicts(octets.into());
    }
    if let Ok(octets) = <[u8; 16]>::try_from(data) {
        verdicts(octets.into());
    }
}

/// An address that stands in another one is not more open there, and metadata stay what they are.
fn verdicts(address: IpAddr) {
    let inner = address.to_canonical();
    let mapped = match inner {
        IpAddr::V4(inner) => IpAddr::V6(inner.to_ipv6_mapped()),
        IpAddr::V6(_) => return,
    };
    let (plain, class) = (classify(inner).code(), classify(mapped).code());
    assert_ne!(class, "public");
    assert_eq!(class == "metadata", plain == "metadata");
    let opened = vec![Cidr::parse("::ffff:0:0/96").expect("a range")];
    let rules = AddressRules::new(opened, false);
    let verdict = |address| vet(&[address], 443, &rules).is_ok();
    assert_eq!(verdict(mapped), verdict(inner));
}

fn canonical(text: &str, host: &Host) {
    let written = host.to_string();
    assert_eq!(Host::parse(&written).as_ref(), Ok(host));
    assert_eq!(Host::parse(&text.to_ascii_uppercase()).as_ref(), Ok(host));
    assert!(written.is_ascii() && written == written.to_ascii_lowercase());
    if let Some(name) = host.name() {
        assert!(name.len() <= 253 && !name.ends_with('.') && !name.is_empty());
        assert_eq!(
            name.parse::<IpAddr>().ok(),
            None,
            "an address passes for a name"
        );
        assert!(
            name.split('.')
                .all(|label| !label.is_empty() && label.len() <= 63)
        );
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = last.strip_prefix("0x").unwrap_or(last);
        let base = if number.len() == last.len() { 10 } else { 16 };
        assert!(
            !number.chars().all(|c| c.is_digit(base)),
            "a number passes for a name"
        );
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        );
    }
}

/// The policy says yes to what a plain reading of the text allows, and to nothing else.
fn decided(text: &str, pair: &HostPort) {
    let rules = EgressRules::parse(&["api.good.example", "*.wild.example", "odd.example:8443"]);
    let policy = EgressPolicy::new(rules.expect("the rules are rules"));
    let granted = policy.decide(pair, &AddressRules::new(Vec::new(), false));
    let name = text
        .rsplit_once(':')
        .map_or(text, |(name, _)| name)
        .to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let usual = matches!(pair.port, 80 | 443);
    let wild = name == "wild.example" || name.ends_with(".wild.example");
    let wanted = (usual && (name == "api.good.example" || wild))
        || (name == "odd.example" && pair.port == 8443);
    assert_eq!(granted.is_ok(), wanted, "{pair}");
    if let Ok(grant) = granted {
        assert_eq!(grant.target(), pair);
    }
    let scope = SecretScope::parse(&["api.good.example"]).expect("a scope is one");
    assert_eq!(scope.covers(pair), name == "api.good.example");
}
