//! Signals that `run` gets reach the command, and the command decides.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Place;
use crate::support::within;

#[tokio::test]
async fn every_signal_is_passed_on() {
    let place = Place::new();
    for (name, signal) in [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("WINCH", Signal::WINCH),
    ] {
        // A trap ends the command. It looks for signals between its steps: one that came just before
        // a `read` would be kept until a line comes.
        let script = format!(
            "trap 'echo got; exit 3' {name}; echo ready; \
             i=0; while [ $i -lt 600 ]; do i=$((i+1)); sleep 0.1; done"
        );
        let mut command = place.run(&["--", "sh", "-c", &script]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        // In a group of its own it is in no terminal's foreground, wherever the tests run.
        let mut child = command.process_group(0).spawn().expect("a process");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = within("the command's start", lines.next_line()).await;
        assert_eq!(ready.expect("a line").as_deref(), Some("ready"), "{name}");
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        kill_process(id.expect("a process"), signal).expect("a signal");
        let got = within("the command's trap", lines.next_line()).await;
        assert_eq!(got.expect("a line").as_deref(), Some("got"), "{name}");
        let ended = within("the end", child.wait()).await.expect("a status");
        assert_eq!(ended.code(), Some(3), "{name}");
        assert_eq!(place.left_behind(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_command_that_heeds_no_signal_ends_by_it() {
    let place = Place::new();
    let mut command = place.run(&["--", "sh", "-c", "echo ready; read line"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.process_group(0).spawn().expect("a process");
    // Held open: waiting for a child closes what it reads.
    let _stdin = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    within("the command's start", lines.next_line())
        .await
        .expect("a line");
    let id = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    kill_process(id.expect("a process"), Signal::TERM).expect("a signal");
    let ended = within("the end", child.wait()).await.expect("a status");
    assert_eq!(ended.code(), Some(128 + 15));
}
