//! Which proxy a verb is about: the one of a flag, of a variable, or of the environment.
//!
//! The URL has a session's credential in it, so that no complaint repeats it. Called by the parser,
//! and by `env` and `doctor`.

use super::args::Exit;
use crate::client_env::ProxyUrl;
use crate::config::Source;

/// Where the environment may name a proxy for `https` URLs, the most usual first.
const VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const FORM: &str = "http://USER:PASSWORD@HOST[:PORT], or the same with https";

/// Where the proxy's URL is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyFrom {
    /// In the variables that clients read.
    Environment,
    /// On the command line (`--proxy-url URL`).
    Url(ProxyUrl),
    /// In a variable (`--proxy-url env:VAR`).
    Variable(String),
}

impl ProxyFrom {
    /// Reads the flag.
    pub(super) fn parse(flag: Option<&str>) -> Result<Self, Exit> {
        let Some(text) = flag else {
            return Ok(Self::Environment);
        };
        if let Some(name) = text.strip_prefix("env:") {
            return Ok(Self::Variable(name.to_owned()));
        }
        ProxyUrl::parse(text)
            .map(Self::Url)
            .ok_or_else(|| Exit::usage(format!("error: --proxy-url expects env:VAR or {FORM}")))
    }

    /// Finds the proxy.
    ///
    /// # Errors
    /// Exit code 64, naming the variables.
    pub(super) fn find(&self, source: &Source) -> Result<ProxyUrl, Exit> {
        let read = |name: &str| ProxyUrl::parse(source.variable(name)?.to_str()?);
        match self {
            Self::Url(url) => Ok(url.clone()),
            Self::Variable(name) => read(name).ok_or_else(|| {
                let text = format!("error: --proxy-url: the variable {name} is not {FORM}");
                Exit::usage(text)
            }),
            Self::Environment => VARIABLES.iter().find_map(|name| read(name)).ok_or_else(|| {
                let names = VARIABLES.join(", ");
                Exit::usage(format!(
                    "error: no proxy: none of {names} is {FORM}; name one with --proxy-url"
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Disk, Flags};

    fn find(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<String, Exit> {
        let variables = variables.iter().map(|(n, v)| (n.into(), v.into()));
        let source = Source::new(variables.collect(), Box::new(Disk), Flags::default());
        let found = ProxyFrom::parse(flag)?.find(&source)?;
        Ok(found.authority().to_string())
    }

    #[test]
    fn the_proxy_is_found_in_order() {
        let all = [
            ("HTTPS_PROXY", "http://corporate.example:3128"),
            ("https_proxy", "http://a:b@one.example:1"),
            ("ALL_PROXY", "http://a:b@two.example:2"),
        ];
        for (flag, variables, expected) in [
            (None, &all[..], "one.example:1"),
            (None, &all[2..], "two.example:2"),
            (Some("env:ALL_PROXY"), &all, "two.example:2"),
            (Some("https://a:b@three.example"), &all, "three.example:443"),
        ] {
            assert_eq!(find(flag, variables).unwrap(), expected, "{flag:?}");
        }
    }

    #[test]
    fn refusals_name_their_place_and_repeat_nothing() {
        for (flag, variables, part) in [
            (None, &[][..], "HTTPS_PROXY"),
            (None, &[("HTTPS_PROXY", "canary")][..], "HTTPS_PROXY"),
            (Some("env:P"), &[("P", "http://canary")][..], "variable P"),
            (Some("http://canary@h"), &[], "--proxy-url"),
            (Some("canary"), &[], "--proxy-url"),
        ] {
            let exit = find(flag, variables).unwrap_err();
            assert_eq!(exit.code, 64);
            assert!(exit.text.contains(part), "{}", exit.text);
            assert!(!exit.text.contains("canary"), "{}", exit.text);
        }
    }
}
