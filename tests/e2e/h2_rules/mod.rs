//! A workload that breaks the rules of HTTP/2: each rule, and that nothing of it went anywhere.
//!
//! The frames are written by a script beside this file, which checks nothing. After every case a
//! request on the same connection, where the rule ends only a stream, and one on fresh connections
//! must go through; what the origins recorded in between is what counts.

mod floods;
mod heads;
mod messages;

use std::net::SocketAddr;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::support::clients::{client, project_file};
use crate::support::{
    GOOD, H2Scene, REAL, TWO, Workload, contains, missing, program, show, within,
};

/// The stream on which the last, well-behaved request of a case goes.
const LAST: u64 = 99_001;

/// What came back on one stream.
#[derive(Clone, Debug, Default, Deserialize)]
struct Stream {
    status: Option<u16>,
    fields: Vec<(String, String)>,
    body: String,
    reset: Option<u32>,
    ended: bool,
}

impl Stream {
    /// Returns the stable code of a refusal, which must be a complete one.
    fn code(&self) -> String {
        let body: Value =
            serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON in {self:?}"));
        let named = self.fields.iter().any(|(name, _)| name == "proxy-status");
        assert!(named && body["message"].is_string(), "{self:?}");
        body["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// What came back on one connection.
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    refused: Option<String>,
    #[serde(default)]
    alpn: Option<String>,
    #[serde(default)]
    settings: HashMap<u16, u32>,
    #[serde(default)]
    streams: HashMap<u64, Stream>,
    #[serde(default)]
    goaway: Option<u32>,
    #[serde(default)]
    closed: bool,
    #[serde(default)]
    late: bool,
}

impl Said {
    fn stream(&self, number: u64) -> Stream {
        self.streams.get(&number).cloned().unwrap_or_default()
    }

    /// Says in a word how a stream ended.
    fn outcome(&self, number: u64) -> String {
        let stream = self.stream(number);
        match (stream.status, stream.reset) {
            // A reset behind a whole answer says that the rest of the request is not wanted.
            (Some(status), _) if stream.ended => status.to_string(),
            (_, Some(_)) => "reset".to_owned(),
            _ if self.goaway.is_some_and(|code| code != 0) => "goaway".to_owned(),
            _ if self.closed => "closed".to_owned(),
            _ => "nothing".to_owned(),
        }
    }
}

/// The script that writes frames.
pub(crate) struct Hostile {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _home: tempfile::TempDir,
    /// What was wrong in the cases so far.
    faults: Vec<String>,
}

impl Hostile {
    /// Starts the script with the credentials of a scene's session.
    async fn start(play: &H2Scene) -> Option<Self> {
        let vault = &play.scene.vault;
        Self::at(vault.plain_addr(), vault.ca_pem(), &play.scene.workload).await
    }

    /// Starts the script towards a vault that runs elsewhere.
    pub(crate) async fn at(address: SocketAddr, ca_pem: &str, workload: &Workload) -> Option<Self> {
        let python = program("python3")?;
        let packages = project_file("tests/fixtures/clients/python");
        if !packages.join("hyperframe").exists() {
            missing("hyperframe is not installed, tests/prepare.sh does that");
            return None;
        }
        let home = tempfile::tempdir().expect("a folder");
        let ca = home.path().join("ca.pem");
        std::fs::write(&ca, ca_pem).expect("a file");
        let mut child = client(python, home.path())
            .env("PYTHONPATH", packages)
            .arg(project_file("tests/e2e/h2_rules/hostile.py"))
            .args([address.ip().to_string(), address.port().to_string()])
            .arg(ca)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the script starts");
        let mut stdin = child.stdin.take().expect("its input");
        let line = workload.authorization().replace("\r\n", "\n");
        stdin.write_all(line.as_bytes()).await.expect("a line");
        let stdout = BufReader::new(child.stdout.take().expect("its output")).lines();
        Some(Self {
            _child: child,
            stdin,
            stdout,
            _home: home,
            faults: Vec::new(),
        })
    }

    /// Fails the test if anything was wrong.
    fn finish(self) {
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n\n"));
    }

    /// Makes one connection, whatever comes of it.
    pub(crate) async fn play(&mut self, host: &str, steps: &[Value]) {
        let said = self
            .connect(&json!({ "target": format!("{host}:443"), "steps": steps }))
            .await;
        assert!(said.refused.is_none(), "{:?}", said.refused);
    }

    /// Makes one connection and looks at something while it is open behind the steps, or as soon as
    /// they have ended it.
    pub(crate) async fn play_and_look<T>(
        &mut self,
        host: &str,
        steps: &[Value],
        look: impl FnOnce() -> T,
    ) -> T {
        let mut steps = steps.to_vec();
        steps.push(json!(["pause", "to look"]));
        self.write(&json!({ "target": format!("{host}:443"), "steps": steps }))
            .await;
        let line = self.read().await;
        let seen = look();
        if line.starts_with("{\"paused\"") {
            self.go_on().await;
            self.read().await;
        }
        seen
    }

    /// Makes one connection.
    async fn connect(&mut self, case: &Value) -> Said {
        self.write(case).await;
        let line = self.read().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    async fn write(&mut self, value: &Value) {
        let line = format!("{value}\n");
        self.stdin.write_all(line.as_bytes()).await.expect("a line");
        self.stdin.flush().await.expect("a line");
    }

    async fn read(&mut self) -> String {
        let line = within("the script", self.stdout.next_line()).await;
        line.expect("a line").expect("the script lives")
    }

    /// Waits for a pause of the script.
    async fn paused(&mut self) {
        let line = self.read().await;
        assert!(line.starts_with("{\"paused\""), "{line}");
    }

    /// Lets the script go on.
    async fn go_on(&mut self) {
        self.write(&Value::Null).await;
    }

    /// Makes one connection with steps and a well-behaved request behind them.
    async fn case(&mut self, host: &str, steps: &[Value]) -> Said {
        let mut steps = steps.to_vec();
        steps.push(json!(["headers", LAST, base(host, "GET", "/last")]));
        steps.push(json!(["done", LAST]));
        self.connect(&json!({ "target": format!("{host}:443"), "steps": steps }))
            .await
    }
}

/// Returns the pseudo-header fields of a good request.
pub(crate) fn base(host: &str, method: &str, path: &str) -> Value {
    json!([
        [":method", method],
        [":scheme", "https"],
        [":authority", host],
        [":path", path]
    ])
}

/// Returns a header list: the base with `instead` in the place of fields of its names, and more
/// behind it. An absent value takes a field away.
fn fields(host: &str, instead: &[(&str, Option<&str>)], more: &[(&str, &str)]) -> Value {
    let mut list: Vec<(String, String)> =
        serde_json::from_value(base(host, "GET", "/case")).expect("a list");
    for (name, value) in instead {
        list.retain(|(field, _)| field != name);
        list.extend(value.map(|value| ((*name).to_owned(), value.to_owned())));
    }
    list.extend(
        more.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    // Bytes, one a character.
    let list: Vec<[String; 2]> = list
        .into_iter()
        .map(|(name, value)| [name, value])
        .collect();
    json!(list)
}

/// What arrived at either origin since the last look: each request by its path, and everything.
struct Arrived {
    paths: Vec<String>,
    all: Vec<u8>,
}

fn arrived(play: &H2Scene, host: &str, before: usize) -> Arrived {
    if host == TWO {
        let requests = play.two.requests();
        let new = &requests[before..];
        let all = format!("{new:?}").into_bytes();
        let paths = new.iter().map(|seen| seen.path.clone()).collect();
        return Arrived { paths, all };
    }
    let all = play.scene.good.bytes();
    let text = String::from_utf8_lossy(&all).into_owned();
    let lines = text
        .split("\r\n")
        .filter(|line| line.ends_with(" HTTP/1.1"));
    let paths = lines
        .map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned())
        .collect();
    Arrived { paths, all }
}

/// Plays a case against both kinds of upstream. The stream 1 must end in one of the outcomes, the
/// connection must go on unless its end is one of them, and nothing may have arrived but the last
/// request. What is wrong is noted, for all cases of a test to be told together.
async fn refused(
    play: &H2Scene,
    hostile: &mut Hostile,
    name: &str,
    outcomes: &[&str],
    steps: impl Fn(&str) -> Vec<Value>,
) {
    for host in [TWO, GOOD] {
        play.scene.good.forget();
        let before = play.two.requests().len();
        let said = hostile.case(host, &steps(host)).await;
        let arrived = arrived(play, host, before);
        if let Err(fault) = judge(&said, outcomes, &arrived) {
            hostile.faults.push(format!("{name} to {host}: {fault}"));
        }
        play.scene.evil.expect_nothing(name);
        play.scene.side.expect_nothing(name);
    }
    play.alive(name).await;
}

fn judge(said: &Said, outcomes: &[&str], arrived: &Arrived) -> Result<(), String> {
    let outcome = said.outcome(1);
    if said.late || !outcomes.contains(&outcome.as_str()) {
        return Err(format!("{outcome} is none of {outcomes:?}: {said:?}"));
    }
    if let Ok(status) = outcome.parse::<u16>() {
        let stream = said.stream(1);
        // The library answers heads over the limit before we see them, and without a word.
        let silent = status == 431 && stream.body.is_empty();
        let code = if silent { String::new() } else { stream.code() };
        let right = match status {
            421 => code == "another_authority",
            405 => code == "method_not_allowed",
            _ => silent || !code.is_empty(),
        };
        if !right || !(400..500).contains(&status) {
            return Err(format!("{status} and {code}"));
        }
    }
    let ended = ["goaway", "closed"].contains(&outcome.as_str());
    if !ended && said.outcome(LAST) != "200" {
        return Err(format!("the connection does not go on: {said:?}"));
    }
    if arrived.paths.iter().any(|path| path != "/last") || arrived.paths.len() > 1 {
        return Err(format!("arrived: {}", show(&arrived.all)));
    }
    let stray = |text: &&str| contains(&arrived.all, text);
    match ["/case", "smug", REAL].iter().find(|text| stray(text)) {
        Some(text) => Err(format!("{text} arrived: {}", show(&arrived.all))),
        None => Ok(()),
    }
}

/// Plays a well-formed case against one upstream and returns its stream, which must be answered.
async fn answered(
    play: &H2Scene,
    hostile: &mut Hostile,
    (name, host): (&str, &str),
    steps: Vec<Value>,
) -> (Stream, Arrived) {
    play.scene.good.forget();
    let before = play.two.requests().len();
    let said = hostile.case(host, &steps).await;
    assert_eq!(said.outcome(1), "200", "{name} to {host}: {said:?}");
    assert_eq!(said.outcome(LAST), "200", "{name} to {host}: {said:?}");
    let arrived = arrived(play, host, before);
    (said.stream(1), arrived)
}
