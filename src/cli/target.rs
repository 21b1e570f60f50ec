//! Which server a command talks to, and with which key.
//!
//! The key is read from a file or the environment, never from an argument, and is checked before
//! anything is sent. Called by the verbs that speak to a running server.

use std::path::{Path, PathBuf};

use crate::config::{PublicUrl, Source, state_dir};
use crate::secret::Secret;

use super::args::Exit;

const SERVER_VARIABLE: &str = "OSHU_VAULT_SERVER";
const SERVER_DEFAULT: &str = "http://127.0.0.1:8080";
const KEY_VARIABLE: &str = "SECRETS_PROXY_API_KEY";
const KEY_FILE_VARIABLE: &str = "SECRETS_PROXY_API_KEY_FILE";
const ADMIN_KEY_VARIABLE: &str = "OSHU_VAULT_ADMIN_KEY";
const ADMIN_KEY_FILE_VARIABLE: &str = "OSHU_VAULT_ADMIN_KEY_FILE";
/// The file in the state directory that a generated key is written to.
const KEY_FILE: &str = "api.key";

/// The flags that say which server is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFlags {
    /// `--server URL`.
    pub url: Option<PublicUrl>,
    /// `--api-key-file FILE`.
    pub api_key_file: Option<PathBuf>,
    /// `--admin-key-file FILE`.
    pub admin_key_file: Option<PathBuf>,
    /// `--ca FILE`: the root that an `https` server's certificate has to lead to.
    pub ca: Option<PathBuf>,
    /// `--state-dir DIR`: where a generated key lies.
    pub state_dir: Option<PathBuf>,
}

/// A server and the key to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where the server listens.
    pub url: PublicUrl,
    /// The tenant's key, or the operator's.
    pub api_key: Secret,
    /// The root to trust, where one was named.
    pub ca: Option<PathBuf>,
}

impl ServerFlags {
    /// Finds the server: `--server`, else `OSHU_VAULT_SERVER`, else the default address.
    ///
    /// # Errors
    /// Exit code 64, naming the variable.
    pub fn server(&self, source: &Source) -> Result<PublicUrl, Exit> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let given = source.variable(SERVER_VARIABLE).map(|text| text.to_str());
        given
            .unwrap_or(Some(SERVER_DEFAULT))
            .and_then(PublicUrl::parse)
            .ok_or_else(|| {
                Exit::usage(format!(
                    "error: {SERVER_VARIABLE} expects {}",
                    super::args::URL
                ))
            })
    }

    /// Finds the server and its key: `--api-key-file`, else `SECRETS_PROXY_API_KEY`, else
    /// `SECRETS_PROXY_API_KEY_FILE`, else the key that was generated into the state directory.
    ///
    /// # Errors
    /// Exit code 64, naming the flag or variable; never a part of the key.
    pub fn target(&self, source: &Source) -> Result<Target, Exit> {
        Ok(Target {
            url: self.server(source)?,
            api_key: self.api_key(source)?,
            ca: self.ca.clone(),
        })
    }

    /// Finds the server and the operator's key: `--admin-key-file`, else `OSHU_VAULT_ADMIN_KEY`,
    /// else `OSHU_VAULT_ADMIN_KEY_FILE`.
    ///
    /// # Errors
    /// Exit code 64, naming the flag or variable; never a part of the key.
    pub fn admin(&self, source: &Source) -> Result<Target, Exit> {
        Ok(Target {
            url: self.server(source)?,
            api_key: self.admin_key(source)?,
            ca: self.ca.clone(),
        })
    }

    fn admin_key(&self, source: &Source) -> Result<Secret, Exit> {
        if let Some(path) = &self.admin_key_file {
            return read_key(source, path, "--admin-key-file");
        }
        if let Some(key) = given_key(source, ADMIN_KEY_VARIABLE) {
            return key;
        }
        match source.variable(ADMIN_KEY_FILE_VARIABLE) {
            Some(path) => read_key(source, Path::new(path), ADMIN_KEY_FILE_VARIABLE),
            None => Err(Exit::usage(format!(
                "error: no key of the operator: set {ADMIN_KEY_VARIABLE} or --admin-key-file"
            ))),
        }
    }

    fn api_key(&self, source: &Source) -> Result<Secret, Exit> {
        let read = |path: PathBuf, name: &str| read_key(source, &path, name);
        if let Some(path) = &self.api_key_file {
            return read(path.clone(), "--api-key-file");
        }
        if let Some(key) = given_key(source, KEY_VARIABLE) {
            return key;
        }
        if let Some(path) = source.variable(KEY_FILE_VARIABLE) {
            return read(path.into(), KEY_FILE_VARIABLE);
        }
        let path = state_dir(self.state_dir.as_deref(), source)?.join(KEY_FILE);
        let place = format!(
            "no API key: set {KEY_VARIABLE} or --api-key-file; the generated one, {},",
            path.display()
        );
        read(path, &place)
    }
}

fn read_key(source: &Source, path: &Path, name: &str) -> Result<Secret, Exit> {
    let read = source.read_api_key(path);
    read.map_err(|text| Exit::usage(format!("error: {name} {text}")))
}

/// Takes the key that a variable holds; nothing where it is not set.
fn given_key(source: &Source, variable: &str) -> Option<Result<Secret, Exit>> {
    let key = source.variable(variable)?.to_str();
    let key = key.and_then(Source::parse_api_key);
    Some(key.ok_or_else(|| Exit::usage(format!("error: {variable} does not hold an API key"))))
}

#[cfg(test)]
mod tests {
    use std::io;

    use crate::config::{FileContent, Files, Flags};

    use super::*;

    const KEY: &str = "canary-0123456789";

    /// Has one key file, at every path that ends in `key`.
    struct Keys;

    impl Files for Keys {
        fn read(&self, path: &Path, _limit: u64) -> io::Result<FileContent> {
            if !path.to_string_lossy().ends_with("key") {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(FileContent {
                bytes: path.display().to_string().into_bytes().into(),
                mode: 0o600,
            })
        }
    }

    fn source(variables: &[(&str, &str)]) -> Source {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Source::new(variables.collect(), Box::new(Keys), Flags::default())
    }

    #[test]
    fn the_key_is_found_in_order() {
        let all = [
            (KEY_VARIABLE, KEY),
            (KEY_FILE_VARIABLE, "/from/variable/key"),
            ("HOME", "/home/somebody"),
        ];
        let flags = ServerFlags {
            api_key_file: Some("/from/the/flag/key".into()),
            ..ServerFlags::default()
        };
        let none = ServerFlags::default();
        for (flags, variables, expected) in [
            (&flags, &all[..], "/from/the/flag/key"),
            (&none, &all[..], KEY),
            (&none, &all[1..], "/from/variable/key"),
            (
                &none,
                &all[2..],
                "/home/somebody/.local/state/oshu-vault/api.key",
            ),
        ] {
            let target = flags.target(&source(variables)).unwrap();
            assert_eq!(target.api_key.expose(), expected.as_bytes());
        }
        let named = ServerFlags {
            state_dir: Some("/named/state".into()),
            ..ServerFlags::default()
        };
        let key = named.target(&source(&[])).unwrap().api_key;
        assert_eq!(key.expose(), b"/named/state/api.key");
    }

    #[test]
    fn the_server_is_found_in_order() {
        let flags = ServerFlags {
            url: PublicUrl::parse("https://a.example"),
            ..ServerFlags::default()
        };
        let given = source(&[(SERVER_VARIABLE, "http://b.example:81")]);
        let none = ServerFlags::default();
        assert_eq!(
            flags.server(&given).unwrap().to_string(),
            "https://a.example"
        );
        assert_eq!(
            none.server(&given).unwrap().to_string(),
            "http://b.example:81"
        );
        assert_eq!(
            none.server(&source(&[])).unwrap().to_string(),
            SERVER_DEFAULT
        );
    }

    #[test]
    fn refusals_name_their_place() {
        for (flags, variables, part) in [
            (None, &[(SERVER_VARIABLE, "b.example")][..], SERVER_VARIABLE),
            (None, &[(KEY_VARIABLE, "canary")][..], KEY_VARIABLE),
            (Some("/nothing"), &[][..], "--api-key-file"),
            (
                None,
                &[(KEY_FILE_VARIABLE, "/nothing")][..],
                KEY_FILE_VARIABLE,
            ),
            (None, &[][..], "state_dir"),
        ] {
            let flags = ServerFlags {
                api_key_file: flags.map(PathBuf::from),
                ..ServerFlags::default()
            };
            let exit = flags.target(&source(variables)).unwrap_err();
            assert_eq!((exit.code, exit.to_stdout), (64, false));
            assert!(exit.text.contains(part), "{}", exit.text);
            assert!(!exit.text.contains("canary"), "{}", exit.text);
        }
    }
}
