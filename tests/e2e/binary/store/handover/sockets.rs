//! Sockets that the system hands in, as systemd does: matched by name or address, or refused.

use std::process::Stdio;

use tokio::process::Command;

use crate::binary::store::Place;
use crate::binary::{Home, Server, get};
use crate::support::{API_KEY, program};

/// Binds sockets, hands them in as systemd does, and becomes the program.
const ACTIVATE: &str = r"
import os, socket, sys
specs, command = sys.argv[1].split(), sys.argv[2:]
names, bound = [], []
for spec in specs:
    name, _, kind = spec.partition('=')
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.bind(('127.0.0.1', 0))
    if kind != 'idle':
        one.listen()
    names.append(name)
    bound.append(one)
ports = [one.getsockname()[1] for one in bound]
high = [os.dup2(one.fileno(), 100 + index) for index, one in enumerate(bound)]
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)),
    LISTEN_FDNAMES=':'.join(names))
command = [part.replace('PORT0', str(ports[0])) for part in command]
os.execv(command[0], command)
";

/// Prepares the program with sockets; nothing where this machine cannot.
fn activated(home: &Home, sockets: &str, line: &[&str]) -> Option<Command> {
    let python = program("python3")?;
    let mut command = Command::new(python);
    command
        .args(["-c", ACTIVATE, sockets, env!("CARGO_BIN_EXE_oshu-vault")])
        .args(line)
        .env_clear()
        .env("HOME", home.path(""))
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(std::env::var_os("PYENV_ROOT").map(|root| ("PYENV_ROOT", root)))
        .current_dir(home.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Some(command)
}

async fn is_well(server: &Server, names: &[&str]) {
    for name in names {
        let answer = get(server.address(name), "/readyz").await;
        assert_eq!(answer.status, 200, "{name}");
    }
}

#[tokio::test]
async fn sockets_of_the_system_are_taken_by_name() {
    let place = Place::new().await;
    let line: Vec<&str> = place.line();
    let line: Vec<&str> = line
        .into_iter()
        .map(|flag| {
            if flag == "--admin-listen=none" {
                "--admin-listen=127.0.0.1:0"
            } else {
                flag
            }
        })
        .collect();
    let sockets = "admin_listen=listening listen=listening";
    let Some(command) = activated(&place.home, sockets, &line) else {
        return;
    };
    let server = Home::start(command).await;
    is_well(&server, &["listen", "admin_listen"]).await;
    let made = place.create(&server).await;
    place.works(&server, &made).await;
    server.stop().await;
}

#[tokio::test]
async fn a_socket_of_the_system_is_taken_by_its_address() {
    let home = Home::new();
    let line = [
        "serve",
        "--dev",
        "--listen=127.0.0.1:PORT0",
        "--tls-listen=none",
        "--admin-listen=none",
    ];
    let Some(command) = activated(&home, "oshu-vault.socket=listening", &line) else {
        return;
    };
    let server = Home::start(command).await;
    is_well(&server, &["listen"]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_is_none_of_the_configuration_is_refused() {
    let line = [
        "serve",
        "--dev",
        "--listen=127.0.0.1:0",
        "--tls-listen=none",
        "--admin-listen=none",
    ];
    for (sockets, parts) in [
        (
            "strange=listening",
            &["\"strange\"", "none of proxy.listen"][..],
        ),
        (
            "listen=listening tls_listen=listening",
            &["\"tls_listen\"", "none of"][..],
        ),
        (
            "listen=idle",
            &["LISTEN_FDS", "\"listen\"", "does not listen"][..],
        ),
    ] {
        let home = Home::new();
        let Some(mut command) = activated(&home, sockets, &line) else {
            return;
        };
        command.env("SECRETS_PROXY_API_KEY", API_KEY);
        home.output(command).await.complains(1, parts);
    }
}

#[tokio::test]
async fn sockets_of_the_system_are_handed_over_too() {
    let place = Place::new().await;
    let Some(command) = activated(&place.home, "listen=listening", &place.line()) else {
        return;
    };
    let mut before = Home::start(command).await;
    let after = place.successor().await;
    assert_eq!(after.ready, before.ready);
    super::handed_over(&mut before).await;
    super::ended(before).await;
    is_well(&after, &["listen"]).await;
    after.stop().await;
}
