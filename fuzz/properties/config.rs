//! Properties of the configuration: no value is shown, whether it is taken or refused.

use std::io;
use std::path::Path;

use oshu_vault::config::{Config, FileContent, Files, Flags, SETTINGS, Source};

const CANARY: &str = "cAnArY";
const FILE: &str = "/etc/oshu-vault.toml";

/// One file of that name, and keys everywhere else.
struct Given(Vec<u8>);

impl Files for Given {
    fn read(&self, path: &Path, _: u64) -> io::Result<FileContent> {
        let bytes = if path == Path::new(FILE) {
            self.0.clone()
        } else {
            format!("key-from-a-file-{CANARY}").into_bytes()
        };
        Ok(FileContent {
            bytes: bytes.into(),
            mode: 0o600,
        })
    }
}

/// Reads the input as a file, as the value of a setting, and as a password.
pub fn config(data: &[u8]) {
    let key = (
        "SECRETS_PROXY_API_KEY".to_owned(),
        format!("key-of-the-tenant-{CANARY}"),
    );
    let home = ("HOME".to_owned(), "/home/somebody".to_owned());
    let base = || vec![key.clone(), home.clone()];

    let in_input = memchr::memmem::find(data, CANARY.as_bytes()).is_some();
    if let Some(config) = load(data, base(), in_input) {
        // What is shown is a file that means the same, but for the password of a URL.
        let shown = config.redacted();
        if !shown.contains("[redacted]@") {
            let again = load(shown.as_bytes(), base(), in_input);
            let again = again.unwrap_or_else(|| panic!("what is shown is not taken: {shown}"));
            assert_eq!(again.redacted(), shown);
        }
    }
    let Some((place, value)) = data.split_first() else {
        return;
    };
    let Ok(value) = std::str::from_utf8(value) else {
        return;
    };
    let setting = &SETTINGS[usize::from(*place) % SETTINGS.len()];
    let name = format!(
        "OSHU_VAULT__{}",
        setting.key.replace('.', "__").to_ascii_uppercase()
    );
    let mut variables = base();
    variables.push((name, format!("{CANARY}{value}")));
    refused(b"", variables);
    let mut variables = base();
    let url = format!("http://user:{CANARY}{value}@proxy.example:3128");
    variables.push(("OSHU_VAULT__UPSTREAM__PROXY".to_owned(), url));
    load(b"", variables, false);
}

/// Loads; what went wrong must not show a value.
fn refused(file: &[u8], variables: Vec<(String, String)>) {
    if let Err(problems) = read(file, variables) {
        assert!(!problems.contains(CANARY), "{problems}");
    }
}

/// Loads; neither what went wrong nor what is shown may have a secret.
fn load(file: &[u8], variables: Vec<(String, String)>, in_input: bool) -> Option<Config> {
    match read(file, variables) {
        Ok(config) => {
            let shown = [config.redacted(), format!("{config:?}")].concat();
            assert!(in_input || !shown.contains(CANARY), "{shown}");
            Some(config)
        }
        Err(problems) => {
            assert!(in_input || !problems.contains(CANARY), "{problems}");
            None
        }
    }
}

fn read(file: &[u8], variables: Vec<(String, String)>) -> Result<Config, String> {
    let variables = variables
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()));
    let flags = Flags::new(Some(FILE.into()));
    let source = Source::new(variables.collect(), Box::new(Given(file.to_vec())), flags);
    Config::load(&source).map_err(|problems| problems.to_string())
}
