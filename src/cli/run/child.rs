//! The command as a child: started, sent the signals that we get, and waited for.
//!
//! It stays in our process group, so that job control and the terminal treat both as one. Called by
//! `run` when everything it needs is there.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::environment::Environment;
use crate::cli::{Exit, STARTUP};

/// The exit code for a command that is there and cannot be started (POSIX.1-2024, `env`).
const NOT_EXECUTABLE: u8 = 126;
/// The exit code for a command that is not there.
const NOT_FOUND: u8 = 127;
/// What a shell adds to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;
/// Signals that wait to be passed on.
const WAITING_LIMIT: usize = 64;

/// What is passed on.
const FORWARDED: [Signal; 7] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// The signals that this process gets, from the moment it is made.
pub(super) struct Signals(mpsc::Receiver<Signal>);

impl Signals {
    /// Begins to listen. What was ignored when we were started, as under `nohup`, stays ignored
    /// by us and by the command.
    pub(super) fn listen() -> Result<Self, Exit> {
        let ignored = ignored();
        let (sender, receiver) = mpsc::channel(WAITING_LIMIT);
        for forwarded in FORWARDED {
            let number = forwarded.as_raw();
            if ignored & (1 << (number - 1)) != 0 {
                continue;
            }
            let mut stream = signal(SignalKind::from_raw(number)).map_err(|error| Exit {
                code: STARTUP,
                text: format!("error: signals cannot be received: {error}"),
                to_stdout: false,
            })?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() && sender.send(forwarded).await.is_ok() {}
            });
        }
        Ok(Self(receiver))
    }
}

/// Runs a command to its end; returns its exit code, or 128 and the number of the signal that
/// ended it.
///
/// # Errors
/// 127 for a command that is not there, 126 for one that cannot be started.
pub(super) async fn run(
    command: &[OsString],
    environment: &Environment,
    mut signals: Signals,
) -> Result<u8, Exit> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| Exit::usage("error: a command is needed after --".to_owned()))?;
    let mut child = Command::new(program);
    child.args(arguments).env_clear().envs(environment.iter());
    let mut child = child
        .spawn()
        .map_err(|error| not_started(program, &error))?;
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map(code).map_err(|error| Exit {
                code: STARTUP,
                text: format!("error: the command cannot be waited for: {error}"),
                to_stdout: false,
            }),
            Some(signal) = signals.0.recv() => pass_on(signal, &child),
        }
    }
}

fn pass_on(signal: Signal, child: &Child) {
    // A terminal sends these to its whole foreground group: a second one would be one too many,
    // since many programs end at once on a second Ctrl-C.
    let by_terminal = [Signal::INT, Signal::QUIT, Signal::WINCH].contains(&signal);
    if by_terminal && is_foreground() {
        return;
    }
    // Without an id it has ended, and its number may be another's.
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(id) = id.and_then(Pid::from_raw)
        && let Err(error) = kill_process(id, signal)
    {
        tracing::debug!(%error, "a signal was not passed on");
    }
}

/// Tells whether our process group is the foreground one of a terminal.
fn is_foreground() -> bool {
    let group = File::open("/dev/tty").map(tcgetpgrp);
    group.is_ok_and(|group| group.is_ok_and(|group| group == getpgrp()))
}

/// Reads which signals were ignored from the start: one bit each, the lowest for signal 1.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    mask(&status)
}

fn mask(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|number| SIGNALLED + number));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(STARTUP)
}

fn not_started(program: &OsString, error: &io::Error) -> Exit {
    let code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    let text = format!("error: {}: {error}", program.to_string_lossy());
    Exit {
        code,
        text,
        to_stdout: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        for (raw, expected) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(code(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }

    #[test]
    fn ignored_signals_are_read_off_the_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001003\n";
        assert_eq!(mask(status), 0x1003);
        assert_eq!(mask(""), 0);
        assert_ne!(
            mask("SigIgn:\t0000000000000001") & (1 << (Signal::HUP.as_raw() - 1)),
            0
        );
    }

    #[test]
    fn what_cannot_be_started_is_told_apart() {
        for (kind, expected) in [
            (io::ErrorKind::NotFound, 127),
            (io::ErrorKind::PermissionDenied, 126),
            (io::ErrorKind::InvalidInput, 126),
        ] {
            assert_eq!(not_started(&"x".into(), &kind.into()).code, expected);
        }
    }
}
