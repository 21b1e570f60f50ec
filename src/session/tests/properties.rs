//! One property over made-up sessions: a token opens exactly where everything agrees.
//!
//! What agrees is told by a small model of texts and sets, which shares no code with the view.

use proptest::prelude::*;

use super::*;
use crate::session::Spec;
use crate::session::live::make_view;

const HOSTS: [&str; 4] = [
    "a.example.com",
    "b.example.com",
    "a.example.org",
    "example.com",
];
const PLACES: [(&str, Place<'static>); 4] = [
    ("header", Place::Header(b"x-other")),
    ("header:X-Key", KEY),
    ("query", Place::Query),
    ("path", Place::Path),
];
const BEFORE: [&str; 5] = ["", "a_", "b_", "xa_", "a_b_"];

/// A secret as it is asked for, by positions in the tables above.
#[derive(Clone, Debug)]
struct Asked {
    hosts: Vec<(usize, Option<u16>)>,
    places: Vec<usize>,
    prefix: Option<&'static str>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let port = prop_oneof![3 => Just(None), 1 => Just(Some(443)), 1 => Just(Some(80))];
    (
        prop::collection::vec((0..HOSTS.len(), port), 1..4),
        prop::collection::vec(0..PLACES.len(), 1..4),
        prop_oneof![Just(None), Just(Some("a_")), Just(Some("b_"))],
    )
        .prop_map(|(hosts, places, prefix)| Asked {
            hosts,
            places,
            prefix,
        })
}

impl Asked {
    fn form(&self, value: &str) -> SecretForm {
        let hosts = self.hosts.iter().map(|(host, port)| {
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            format!("{}{port}", HOSTS[*host])
        });
        let places = self.places.iter().map(|place| PLACES[*place].0.to_owned());
        SecretForm {
            hosts: Some(hosts.collect()),
            inject: Some(places.collect()),
            prefix: self.prefix.map(ToOwned::to_owned),
            ..secret(value)
        }
    }

    fn goes_to(&self, host: usize, port: u16) -> bool {
        let mut hosts = self.hosts.iter();
        hosts.any(|(own, written)| *own == host && written.is_none_or(|own| own == port))
    }

    /// `header` alone covers both fields of the table.
    fn may_stand(&self, place: usize) -> bool {
        self.places.contains(&place) || (place == 1 && self.places.contains(&0))
    }
}

proptest! {
    #[test]
    fn a_token_opens_exactly_where_everything_agrees(
        all in prop::collection::vec(asked(), 1..6),
        egress in prop::option::of(prop::collection::vec(0..HOSTS.len(), 0..4)),
        allow_plaintext in any::<bool>(),
    ) {
        let names: Vec<String> = (0..all.len()).map(|n| format!("S{n}")).collect();
        let value = |at: usize| format!("value-number-{at}");
        let listed = |list: &Vec<usize>| list.iter().map(|at| HOSTS[*at].to_owned()).collect();
        let asked = all.iter().enumerate().map(|(at, it)| (names[at].as_str(), it.form(&value(at))));
        let form = Form {
            allowed_egress: egress.as_ref().map(listed),
            allow_plaintext: Some(allow_plaintext),
            ..form(asked)
        };
        let spec = Spec::parse(&form, &options()).unwrap();
        let (session, tokens) = make_view(&spec, 1, None);
        for (host, port, scheme) in (0..HOSTS.len()).flat_map(|host| [
            (host, 443, Scheme::Https),
            (host, 80, Scheme::Https),
            (host, 80, Scheme::Http),
        ]) {
            let reachable = egress.as_ref().is_none_or(|list| list.contains(&host));
            let here = target(&format!("{}:{port}", HOSTS[host]));
            let view = session.host_view(&here, scheme, &closed());
            prop_assert_eq!(view.is_ok(), reachable);
            let Ok(view) = view else { continue };
            for (at, it) in all.iter().enumerate() {
                let token = &tokens[&names[at]];
                let bare = token.strip_prefix(it.prefix.unwrap_or_default()).unwrap();
                for (place, before) in (0..PLACES.len()).flat_map(|p| BEFORE.map(|b| (p, b))) {
                    let agrees = it.goes_to(host, port)
                        && it.may_stand(place)
                        && (scheme == Scheme::Https || allow_plaintext)
                        && it.prefix.is_none_or(|own| before.ends_with(own));
                    let opened = open(&view, &format!("{before}{bare}"), PLACES[place].1);
                    prop_assert_eq!(opened, agrees.then(|| value(at)));
                }
            }
        }
    }
}
