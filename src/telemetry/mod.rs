//! Telemetry: the process's log, on standard error, as JSON lines or as text; and what counts.
//!
//! Standard output belongs to `ready` and the audit records and is never written here. **Never
//! logged, at any level**: secrets and their encodings; sealed tokens; session credentials, API
//! keys, JWTs, OAuth and GitHub tokens; sealing keys and private keys; values of header fields; query
//! strings; bodies; proxy URLs with user info. Names, ids, hosts, sizes and reasons may be logged;
//! a sealed token is told by the name of its secret. Set up once, before anything else.

mod metrics;

use std::any::Any;
use std::io::Write;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

pub use metrics::{Counter, Histogram, Page};

/// The filter where none is given.
const DEFAULT_FILTER: &str = "info";

/// Says why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not in the syntax of `target=level,…`; the operator's mistake.
    #[error("log filter is not of the form `level` or `target=level,...`")]
    Filter(#[source] ParseError),
    /// The process has a log already; our own mistake.
    #[error("log is set up already")]
    AlreadySet(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// Plain text without colour, for people.
    Text,
}

/// Sets up the log of the process on standard error.
///
/// The filter has the syntax of `OSHU_VAULT_LOG`: a level, or `target=level` parts with commas
/// between; empty means `info`. Records of the `log` facade (rustls) are not taken.
///
/// # Errors
/// A filter that cannot be read, and a second call.
pub fn init(format: LogFormat, filter: &str) -> Result<(), Error> {
    let subscriber = subscriber(format, filter, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(Error::AlreadySet)
}

/// Makes a panic say where it happened, and of its message only what is a text of the source.
///
/// A message that was put together may hold what the program worked on: the library's own, about
/// a text that was cut in the middle of a character, quotes that text. It is written to the log,
/// and to standard error where there is none.
pub fn hush_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(String::new, ToString::to_string);
        let message = message(panic.payload());
        if tracing::dispatcher::has_been_set() {
            tracing::error!(place, message, "panicked");
        } else {
            // Nobody is left to tell where standard error is closed.
            drop(writeln!(
                std::io::stderr(),
                "panicked at {place}: {message}"
            ));
        }
    }));
}

/// Returns the message of a panic if it stands in the source.
fn message(payload: &(dyn Any + Send)) -> &'static str {
    let written = payload.downcast_ref::<&'static str>();
    written
        .copied()
        .unwrap_or("a message that is not shown, since it may hold a value")
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = match filter.trim() {
        "" => DEFAULT_FILTER,
        given => given,
    };
    let filter = EnvFilter::builder().parse(filter).map_err(Error::Filter)?;
    let quiet = filter_fn(|metadata| !is_silenced(metadata.target()));
    // A reader of standard error that went away must not cost a panic in whoever logs next, which
    // the layer's own complaint to standard error would.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false);
    Ok(match format {
        LogFormat::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .finish()
                .with(quiet),
        ),
        LogFormat::Text => Box::new(builder.with_ansi(false).finish().with(quiet)),
    })
}

/// Tells whether nothing of a target is ever logged, whatever the operator asks for: these libraries
/// write the fields of requests and answers, real values among them.
fn is_silenced(target: &str) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    matches!(library, "h2" | "hyper" | "hyper_util")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, work: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(format, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, work);
        captured.text()
    }

    #[test]
    fn json_lines_are_flat_objects() {
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(port = 8080, "listening\non two lines");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "listening\non two lines");
        assert_eq!(line["port"], 8080);
        assert_eq!(line["target"], "oshu_vault::telemetry::tests");
    }

    #[test]
    fn text_lines_have_no_escape_codes() {
        let text = logged(LogFormat::Text, "info", || {
            tracing::warn!("took \x1b[31mlong");
        });
        assert!(text.contains("WARN"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn filters_choose_what_is_logged() {
        for (filter, expected) in [
            ("", vec!["info"]),
            ("  ", vec!["info"]),
            ("info", vec!["info"]),
            ("debug", vec!["info", "debug"]),
            ("error", vec![]),
            ("error,oshu_vault::telemetry=debug", vec!["info", "debug"]),
            ("off", vec![]),
        ] {
            let text = logged(LogFormat::Json, filter, || {
                tracing::info!("info");
                tracing::debug!("debug");
            });
            let messages: Vec<_> = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .map(|line| line["message"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(messages, expected, "{filter:?}");
        }
    }

    #[test]
    fn libraries_that_see_real_values_are_never_logged() {
        for filter in [
            "trace",
            "h2=trace,hyper=trace",
            "h2::proto=trace,hyper_util=trace",
        ] {
            for format in [LogFormat::Json, LogFormat::Text] {
                let text = logged(format, filter, || {
                    tracing::trace!(target: "h2::proto::streams", "a");
                    tracing::error!(target: "h2", "b");
                    tracing::debug!(target: "hyper::proto::h2", "c");
                    tracing::warn!(target: "hyper_util::client", "d");
                    let span = tracing::error_span!(target: "h2", "e");
                    span.in_scope(|| ());
                });
                assert_eq!(text, "", "{filter}");
            }
        }
        let text = logged(LogFormat::Text, "trace", || {
            tracing::trace!(target: "h2o", "another");
        });
        assert!(text.contains("another"));
    }

    #[test]
    fn a_panic_tells_only_what_stands_in_the_source() {
        let value = String::from("canary");
        let told = |work: &dyn Fn()| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            message(&*caught.unwrap_err())
        };
        assert_eq!(told(&|| panic!("a text")), "a text");
        for message in [
            told(&|| panic!("of {value}")),
            told(&|| assert_eq!(value.parse::<u8>().expect(&value), 0)),
            told(&|| std::panic::panic_any(value.clone())),
            told(&|| drop(value.clone().split_off(7))),
        ] {
            assert!(!message.contains("canary"), "{message}");
        }
    }

    #[test]
    fn bad_filters_are_refused() {
        for filter in ["oshu_vault=loud", "a=b=c", "[unclosed"] {
            let refused = subscriber(LogFormat::Text, filter, std::io::sink).err();
            assert!(matches!(refused, Some(Error::Filter(_))), "{filter}");
        }
    }
}
