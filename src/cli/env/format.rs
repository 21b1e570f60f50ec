//! Variables as text: for a shell, as a dotenv file, as JSON, as Docker's file of variables.
//!
//! Each form has one reader in mind and is refused, by the variable's name, where that reader could
//! not get the value back byte for byte. Called by `env` and, for one value, by `doctor`.

use serde_json::{Map, Value};

use crate::cli::Exit;
use crate::cli::args::EnvFormat;

/// Characters that no shell gives a meaning to, wherever they stand in a word.
const PLAIN: &str = "_-./:@%+,=";

/// Writes variables in a form. `unset` is for those forms that can take variables away.
///
/// # Errors
/// Exit code 64 with the name of a variable that the form cannot hold.
pub(super) fn write(
    format: EnvFormat,
    variables: &[(String, String)],
    unset: &[&str],
) -> Result<String, Exit> {
    let mut text = String::new();
    match format {
        EnvFormat::Shell => {
            for name in unset {
                text.extend(["unset ", name, "\n"]);
            }
            for (name, value) in variables {
                text.extend(["export ", name, "=", &shell_quoted(value), "\n"]);
            }
        }
        EnvFormat::Dotenv => {
            for (name, value) in variables {
                let quoted = dotenv_quoted(value).ok_or_else(|| cannot(name, "a dotenv file"))?;
                text.extend([name, "=", &quoted, "\n"]);
            }
        }
        EnvFormat::Json => {
            let entries = variables.iter().cloned();
            let map: Map<String, Value> = entries.map(|(n, v)| (n, Value::String(v))).collect();
            text = format!("{:#}\n", Value::Object(map));
        }
        EnvFormat::Docker => {
            for (name, value) in variables {
                if value.contains(['\n', '\r']) {
                    return Err(cannot(name, "Docker's file of variables"));
                }
                text.extend([name, "=", value, "\n"]);
            }
        }
    }
    Ok(text)
}

/// Quotes a value for a POSIX shell (POSIX.1-2024 §2.2.2): nothing has a meaning between
/// apostrophes but the closing one.
fn shell_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Writes a value as a word of a POSIX shell, quoted only where it has to be.
pub(in crate::cli) fn shell_word(value: &str) -> String {
    let is_plain = |one: char| one.is_ascii_alphanumeric() || PLAIN.contains(one);
    if !value.is_empty() && value.chars().all(is_plain) {
        value.to_owned()
    } else {
        shell_quoted(value)
    }
}

/// Quotes a value for a dotenv file as node reads it (`--env-file`, and the package of that name):
/// between apostrophes or backticks everything stands for itself, between quotation marks `\n` and
/// `\r` do not. There is no way to write all three marks, nor a carriage return.
fn dotenv_quoted(value: &str) -> Option<String> {
    if value.contains('\r') {
        return None;
    }
    let has_escape = value.contains(r"\n") || value.contains(r"\r");
    let mark = if !value.contains('\'') {
        '\''
    } else if !value.contains('"') && !has_escape {
        '"'
    } else if !value.contains('`') {
        '`'
    } else {
        return None;
    };
    Some(format!("{mark}{value}{mark}"))
}

fn cannot(name: &str, form: &str) -> Exit {
    Exit::usage(format!("error: {name}: {form} cannot hold its value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(format: EnvFormat, value: &str) -> Result<String, Exit> {
        write(format, &[("K".to_owned(), value.to_owned())], &["GONE"])
    }

    #[test]
    fn every_form_quotes_as_its_reader_reads() {
        for (value, shell, dotenv) in [
            ("a", "'a'", "'a'"),
            ("", "''", "''"),
            ("a b$c`d\"e\\n", "'a b$c`d\"e\\n'", "'a b$c`d\"e\\n'"),
            ("it's", r"'it'\''s'", "\"it's\""),
            ("it's \"it\"", r#"'it'\''s "it"'"#, "`it's \"it\"`"),
            ("it's \\n", r"'it'\''s \n'", "`it's \\n`"),
            ("a\nb", "'a\nb'", "'a\nb'"),
        ] {
            let expected = format!("unset GONE\nexport K={shell}\n");
            assert_eq!(one(EnvFormat::Shell, value).unwrap(), expected);
            assert_eq!(
                one(EnvFormat::Dotenv, value).unwrap(),
                format!("K={dotenv}\n")
            );
            let read: Value = serde_json::from_str(&one(EnvFormat::Json, value).unwrap()).unwrap();
            assert_eq!(read, serde_json::json!({ "K": value }));
        }
        let value = "a b'c\"$d";
        assert_eq!(one(EnvFormat::Docker, value).unwrap(), "K=a b'c\"$d\n");
    }

    #[test]
    fn what_a_form_cannot_hold_is_refused_by_name() {
        for (format, value) in [
            (EnvFormat::Dotenv, "canary'\"`"),
            (EnvFormat::Dotenv, "canary\r\n"),
            (EnvFormat::Docker, "canary\nX=1"),
            (EnvFormat::Docker, "canary\r"),
        ] {
            let exit = one(format, value).unwrap_err();
            assert_eq!(exit.code, 64);
            assert!(exit.text.starts_with("error: K: "), "{}", exit.text);
            assert!(!exit.text.contains("canary"), "{}", exit.text);
        }
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_read_something_else() {
        for (value, expected) in [
            ("/a/b-c_d.pem", "/a/b-c_d.pem"),
            ("localhost,127.0.0.1,::1", "localhost,127.0.0.1,::1"),
            ("/a b", "'/a b'"),
            ("", "''"),
            ("~x", "'~x'"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(shell_word(value), expected);
        }
    }
}
