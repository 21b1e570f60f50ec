//! The configuration in print: what is in effect, with no secret in it.
//!
//! What is printed can be given back as a configuration file. Called by `check-config`.

use std::fmt::Write;

use super::Config;
use super::gateway;
use super::settings::{Draft, SETTINGS, Setting};

/// Prints the effective configuration as TOML. Secrets appear as a comment that says so.
pub(super) fn redacted(config: &Config) -> String {
    let mut text = String::new();
    if config.dev {
        text.push_str("# --dev\n");
    }
    text.push_str(match config.api_key {
        Some(_) => "# api_key: set (redacted)\n",
        None => "# api_key: generated into the state directory\n",
    });
    if config.admin_key.is_some() {
        text.push_str("# admin_key: set (redacted)\n");
    }
    for (name, secret) in gateway::secrets(config) {
        if secret.is_some() {
            push(&mut text, format_args!("# {name}: set (redacted)\n"));
        }
    }
    let draft = Draft::of(config);
    each(|setting, section| {
        open(&mut text, section);
        if let Some(value) = (setting.show)(&draft) {
            line(&mut text, setting, &value);
        }
    });
    text
}

/// Walks over the settings that may stand in a file, with a section's name at its first key.
fn each(mut visit: impl FnMut(&'static Setting, Option<&'static str>)) {
    let mut current = "";
    for setting in SETTINGS.iter().filter(|setting| setting.in_file()) {
        let section = setting.key.split_once('.').map_or("", |(name, _)| name);
        let opens = (section != current).then_some(section);
        current = section;
        visit(setting, opens);
    }
}

fn open(text: &mut String, section: Option<&str>) {
    if let Some(name) = section {
        push(text, format_args!("\n[{name}]\n"));
    }
}

fn line(text: &mut String, setting: &Setting, value: &str) {
    let name = setting
        .key
        .split_once('.')
        .map_or(setting.key, |(_, name)| name);
    push(text, format_args!("{name} = {value}\n"));
}

#[expect(
    clippy::expect_used,
    reason = "a String takes all that is written to it"
)]
fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String");
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::check::DEPENDS_ON_DEV;

    /// Writes the commented default file off the table.
    pub(in crate::config) fn documented() -> String {
        let mut text = String::from(
            "# Every setting of Oshu Vault with its default. A line that is commented out shows an\n\
             # example: it has no default, or one that depends on --dev. The environment wins over\n\
             # this file, the command line over both; a list that is given again replaces the one\n\
             # before. In the environment the entries of a list are separated by commas.\n",
        );
        let draft = Draft::of(&Config::default());
        each(|setting, section| {
            open(&mut text, section);
            if section.is_none() {
                text.push('\n');
            }
            let names = [
                setting.flag.map(|flag| format!("--{flag}")),
                setting.variable(),
            ];
            let names: Vec<String> = names.into_iter().flatten().collect();
            comment(&mut text, setting.doc);
            comment(&mut text, &format!("({})", names.join(", ")));
            let fixed = !DEPENDS_ON_DEV.contains(&setting.key);
            if let Some(value) = (setting.show)(&draft).filter(|_| fixed) {
                line(&mut text, setting, &value);
            } else {
                text.push_str("# ");
                line(&mut text, setting, setting.example);
            }
        });
        text
    }

    fn comment(text: &mut String, doc: &str) {
        let mut width = 0;
        for word in doc.split(' ') {
            if width == 0 || width + 1 + word.len() > 98 {
                text.push_str(if width == 0 { "#" } else { "\n#" });
                width = 1;
            }
            text.push(' ');
            text.push_str(word);
            width += 1 + word.len();
        }
        text.push('\n');
    }
}
