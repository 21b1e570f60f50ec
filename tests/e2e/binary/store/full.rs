//! A disk that is full or cannot be written: nothing new is promised, what lives goes on, and all
//! is well again when the disk is.

use std::process::Stdio;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::process::Command;

use super::{Place, create, kill};
use crate::binary::{Home, Server, get};
use crate::support::within;

/// Lets a server write files up to a size, or of any.
pub(super) fn limit(server: &Server, bytes: Option<u64>) {
    let id = server.child.id().expect("a running server");
    let id = Pid::from_raw(id.try_into().expect("an id"));
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(id, Resource::Fsize, limit).expect("a limit");
}

/// Starts a server for which a write over the limit is an error and not its end.
async fn serve(place: &Place) -> Server {
    serve_with(place, &[]).await
}

/// The same, with variables.
pub(super) async fn serve_with(place: &Place, variables: &[(&str, &str)]) -> Server {
    let mut command = after(place, "/bin/sh", &["-c", "trap '' XFSZ; exec \"$@\""]);
    Home::start({
        command.envs(variables.iter().copied());
        command
    })
    .await
}

/// Makes the state directory a file system of its own, which only the server and its like see.
fn mounted(place: &Place, options: &str) -> Command {
    let state = place.home.state("");
    std::fs::create_dir_all(&state).expect("a folder");
    let state = state.display();
    let script =
        format!("trap '' XFSZ; mount -t tmpfs -o mode=0700,{options} oshu {state} && exec \"$@\"");
    after(place, "unshare", &["--mount", "/bin/sh", "-c", &script])
}

/// Makes the command of a server that a shell becomes after its script.
fn after(place: &Place, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .args(["sh", env!("CARGO_BIN_EXE_oshu-vault")])
        .args(place.line())
        .env_clear()
        .env("HOME", place.home.path("."))
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir(place.home.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[tokio::test]
async fn a_full_disk_stops_changes_only_and_heals_without_a_restart() {
    let place = Place::new().await;
    let server = serve(&place).await;
    let client = place.client(&server);
    let (kept, deleted) = (place.create(&server).await, place.create(&server).await);
    place.becomes(&server, 200).await;
    limit(&server, Some(0));
    let refused = create(&client).await.err().expect("a refusal");
    assert_eq!(refused.status(), Some(503), "{refused}");
    assert!(refused.to_string().contains("store"), "{refused}");
    place.becomes(&server, 503).await;
    let ready = get(server.plain(), "/readyz").await;
    assert_eq!(
        (ready.status, ready.code().as_str()),
        (503, "store_unavailable")
    );
    assert_eq!(get(server.plain(), "/healthz").await.status, 200);
    place.works(&server, &kept).await;
    let refused = client.delete_session(deleted.id()).await;
    assert_eq!(refused.unwrap_err().status(), Some(503));
    place.is_gone(&server, &deleted).await;
    limit(&server, None);
    place.becomes(&server, 200).await;
    let fresh = place.create(&server).await;
    // The sweep may have been faster: both are a deletion that is done.
    client.delete_session(deleted.id()).await.unwrap();
    kill(server).await;
    let server = place.serve().await;
    place.works(&server, &kept).await;
    place.works(&server, &fresh).await;
    place.is_gone(&server, &deleted).await;
    server.stop().await;
}

#[tokio::test]
async fn a_disk_that_fills_up_loses_nothing_that_was_promised() {
    let place = Place::new().await;
    let server = serve(&place).await;
    let client = place.client(&server);
    let size = std::fs::metadata(place.store()).unwrap().len();
    limit(&server, Some(size));
    let mut promised = Vec::new();
    let refused = loop {
        match create(&client).await {
            Ok(made) => promised.push(made),
            Err(error) => break error,
        }
        assert!(promised.len() < 50_000, "the limit holds");
    };
    assert_eq!(refused.status(), Some(503), "{refused}");
    limit(&server, None);
    place.becomes(&server, 200).await;
    promised.push(place.create(&server).await);
    kill(server).await;
    let server = place.serve().await;
    let log = place.found(&server).await;
    assert!(!log.contains("is refused"), "{log}");
    let step = promised.len().div_ceil(20);
    for made in promised.iter().rev().step_by(step) {
        place.works(&server, made).await;
    }
    // Whether the one that failed is there nobody knows: it was told so.
    let counts = [promised.len(), promised.len() + 1];
    let live = counts.map(|count| format!("\"live\":{count},"));
    assert!(live.iter().any(|it| log.contains(it)), "{live:?} in {log}");
    server.stop().await;
}

#[tokio::test]
#[ignore = "mounts, as root: make soak"]
async fn a_full_file_system_stops_changes_only_and_heals_without_a_restart() {
    let place = Place::new().await;
    let server = Home::start(mounted(&place, "size=16m")).await;
    let process = server.child.id().expect("a running server");
    let seen = |name: &str| {
        let path = place.home.state(name);
        format!("/proc/{process}/root{}", path.display())
    };
    let key = std::fs::read(seen("api.key")).expect("a key");
    std::fs::write(place.home.state("api.key"), key).expect("a copy of it");
    let client = place.client(&server);
    let kept = place.create(&server).await;
    place.becomes(&server, 200).await;
    // What is left of the file system goes to a file of another.
    let filled = std::fs::write(seen("filler"), vec![0; 16 << 20]);
    assert_eq!(filled.unwrap_err().raw_os_error(), Some(28), "no space");
    let mut promised = vec![kept];
    let refused = loop {
        match create(&client).await {
            Ok(made) => promised.push(made),
            Err(error) => break error,
        }
        assert!(promised.len() < 50_000, "the file system is full");
    };
    assert_eq!(refused.status(), Some(503), "{refused}");
    place.becomes(&server, 503).await;
    for made in promised.iter().take(20) {
        place.works(&server, made).await;
    }
    std::fs::remove_file(seen("filler")).expect("the filler");
    place.becomes(&server, 200).await;
    promised.push(place.create(&server).await);
    for made in promised.iter().rev().take(20) {
        place.works(&server, made).await;
    }
    println!(
        "{} sessions before and after no space was left",
        promised.len()
    );
    server.stop().await;
}

/// Mounts the file system of a running server's state anew, with an option; tells whether the system
/// did so, which it does not while a file is open there that may be written.
async fn remounted(place: &Place, server: &Server, option: &str) -> bool {
    let process = server.child.id().expect("a running server").to_string();
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &process, "--mount", "mount", "-o"])
        .arg(format!("remount,{option}"))
        .arg(place.home.state(""))
        .stderr(Stdio::null());
    let status = within("a mount", command.kill_on_drop(true).status()).await;
    status.expect("nsenter").success()
}

#[tokio::test]
#[ignore = "mounts, as root: make soak"]
async fn a_file_system_that_becomes_read_only_stops_changes_only_and_heals_without_a_restart() {
    let place = Place::new().await;
    let server = Home::start(mounted(&place, "size=64m")).await;
    let process = server.child.id().expect("a running server");
    let key = format!(
        "/proc/{process}/root{}",
        place.home.state("api.key").display()
    );
    let key = std::fs::read(key).expect("a key");
    std::fs::write(place.home.state("api.key"), key).expect("a copy of it");
    let client = place.client(&server);
    let (kept, deleted) = (place.create(&server).await, place.create(&server).await);
    assert!(!remounted(&place, &server, "ro").await, "the store is open");
    // An error of the disk closes the file; then the system can take the right to write it.
    limit(&server, Some(0));
    let refused = create(&client).await.err().expect("a refusal");
    assert_eq!(refused.status(), Some(503), "{refused}");
    within("a moment between two attempts to heal", async {
        while !remounted(&place, &server, "ro").await {}
    })
    .await;
    limit(&server, None);
    for _ in 0..3 {
        let refused = create(&client).await.err().expect("a refusal");
        assert_eq!(refused.status(), Some(503), "{refused}");
        place.becomes(&server, 503).await;
    }
    place.works(&server, &kept).await;
    let refused = client.delete_session(deleted.id()).await;
    assert_eq!(refused.unwrap_err().status(), Some(503));
    place.is_gone(&server, &deleted).await;
    assert!(remounted(&place, &server, "rw").await, "it can be written");
    place.becomes(&server, 200).await;
    let fresh = place.create(&server).await;
    client.delete_session(deleted.id()).await.unwrap();
    for made in [&kept, &fresh] {
        place.works(&server, made).await;
    }
    place.is_gone(&server, &deleted).await;
    server.stop().await;
}

#[tokio::test]
#[ignore = "mounts, as root: make soak"]
async fn a_file_system_that_cannot_be_written_is_an_error_at_the_start() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    server.stop().await;
    let state = place.home.state("");
    let state = state.display();
    let script =
        format!("mount --bind {state} {state} && mount -o bind,remount,ro {state} && exec \"$@\"");
    let mut command = after(&place, "unshare", &["--mount", "/bin/sh", "-c", &script]);
    let ended = within("the refusal", command.kill_on_drop(true).output()).await;
    let ended = ended.expect("an end");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("sessions.redb"), "{said}");
    let server = place.serve().await;
    place.works(&server, &made).await;
    server.stop().await;
}
