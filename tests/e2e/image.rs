//! The documented recipe of an image: the CA in the system's store, node behind a wrapper.
//!
//! The recipe runs in a mount namespace of its own, with `/etc` and `/usr/local` covered, so that
//! its commands run as they are documented and the machine stays as it is. Then Claude Code, curl
//! and node work there, with nothing but the three variables of the documented example.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use oshu_vault_sdk::CreateSession;

use crate::support::clients::{claude, client, expect_not_under, project_file, reveals, run};
use crate::support::{ANSWER, Anthropic, Vault, contains, missing, program};

const REAL_KEY: &str = "sk-ant-api03-CANARY-0123456789-abcdefghijklmnop";

/// What is run in the image, by name; each is to print the stand-in's answer.
const WORKLOADS: [(&str, &str); 4] = [
    ("claude", r#"claude -p "say hello""#),
    (
        "curl",
        r#"curl -sS --fail https://api.anthropic.com/v1/messages --data '{"messages":[]}' \
            -H "x-api-key: $ANTHROPIC_API_KEY" -H "content-type: application/json""#,
    ),
    ("node-agent", "node CALL agent"),
    ("node-undici", "node CALL undici"),
];

#[tokio::test]
async fn clients_work_in_an_image_made_by_the_recipe() {
    let Some([unshare, claude]) = programs().await else {
        return;
    };
    let before = machine();
    let upstream = Anthropic::start().await;
    let vault = Vault::builder()
        .resolve(Anthropic::HOST, upstream.addr())
        .start()
        .await;
    let request = CreateSession::new().secret("ANTHROPIC_API_KEY", REAL_KEY);
    let session = vault.session(&request).await;
    let sealed = &session.sealed_secrets["ANTHROPIC_API_KEY"];
    let folder = tempfile::tempdir().expect("a folder");
    let [scratch, home, out] = ["scratch", "home", "out"].map(|name| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).expect("a folder");
        path
    });

    let mut recipe = client(unshare, &home);
    recipe
        .arg("--mount")
        .arg(project_file("tests/e2e/image/recipe.sh"))
        .arg(format!("http://{}", vault.plain_addr()))
        .args([&scratch, &claude])
        .args(environment(&home, sealed, &vault.proxy_url_tls(&session)))
        .args(["sh", "-c"])
        .arg(script(&out));
    let said = run("the image's recipe", &mut recipe).await;
    said.expect_success("the image's recipe");

    let output = |name| std::fs::read_to_string(out.join(name)).expect("its output");
    for (name, _) in WORKLOADS {
        let text = output(name);
        assert!(
            text.contains(ANSWER) && text.ends_with("code 0\n"),
            "{name}: {text}"
        );
    }
    let bare = output("bare-node");
    assert!(
        bare.contains("certificate") && bare.ends_with("code 1\n"),
        "the wrapper: {bare}"
    );
    upstream.expect_messages(WORKLOADS.len(), "x-api-key", REAL_KEY);
    assert!(
        !contains(&upstream.bytes(), sealed),
        "a sealed token travelled on"
    );
    expect_not_under(folder.path(), REAL_KEY);
    assert!(
        !reveals(said.stderr.as_bytes(), REAL_KEY),
        "{}",
        said.stderr
    );
    assert_eq!(machine(), before, "the recipe changed the machine");
}

#[test]
fn the_recipe_is_the_documented_one() {
    let read = |path| std::fs::read_to_string(project_file(path)).expect("a file");
    let joined = |text: &str| {
        text.replace("\\\n", " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let recipe = joined(&read("tests/e2e/image/recipe.sh"));
    let document = read("docs/images.md");
    let block = document.split("```dockerfile\n").nth(1).expect("a block");
    let block = block
        .split("```")
        .next()
        .expect("its end")
        .replace("\\\n", " ");
    let commands: Vec<_> = block
        .lines()
        .filter_map(|line| line.strip_prefix("RUN "))
        .collect();
    let [_tools, root, wrapper, _claude] = commands[..] else {
        panic!("{commands:#?}");
    };
    for command in [root, wrapper].map(joined) {
        assert!(recipe.contains(&command), "not run: {command}");
    }
}

/// Finds unshare and Claude Code; nothing where this machine cannot run the recipe.
async fn programs() -> Option<[PathBuf; 2]> {
    if !rustix::process::geteuid().is_root() {
        missing("the image's recipe needs root");
        return None;
    }
    for name in ["curl", "node", "update-ca-certificates"] {
        program(name)?;
    }
    let found = [program("unshare")?, claude()?];
    let mut probe = client(&found[0], Path::new("/"));
    if run("unshare", probe.args(["--mount", "true"])).await.code != Some(0) {
        missing("mount namespaces are not allowed here");
        return None;
    }
    Some(found)
}

/// Returns a command that leaves exactly the variables of the documented example.
fn environment(home: &Path, sealed: &str, proxy: &str) -> Vec<OsString> {
    let mut path = OsString::from("PATH=/usr/local/bin:");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut home_variable = OsString::from("HOME=");
    home_variable.push(home);
    let variables = [
        format!("ANTHROPIC_API_KEY={sealed}"),
        format!("HTTP_PROXY={proxy}"),
        format!("HTTPS_PROXY={proxy}"),
    ];
    let command = ["env".into(), "-i".into(), path, home_variable];
    command
        .into_iter()
        .chain(variables.map(OsString::from))
        .collect()
}

/// Writes what runs in the image: each workload's output and exit code go to a file of its name.
fn script(out: &Path) -> String {
    let call = project_file("tests/e2e/image/call.mjs");
    let call = format!("'{}'", call.display());
    let bare = ("bare-node", "/usr/local/bin/node.real CALL agent");
    let lines = WORKLOADS.into_iter().chain([bare]).map(|(name, line)| {
        let (line, out) = (line.replace("CALL", &call), out.join(name));
        format!(
            "{{ {line}; code=$?; echo; echo code $code; }} >'{}' 2>&1\n",
            out.display()
        )
    });
    lines.collect()
}

/// Returns the files of this machine that the recipe would change.
fn machine() -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut files = BTreeMap::new();
    for folder in [
        "/etc/ssl/certs",
        "/usr/local/bin",
        "/usr/local/share/ca-certificates",
    ] {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        files.extend(entries.map(|entry| (entry.expect("an entry").path(), None)));
    }
    let bundle = PathBuf::from("/etc/ssl/certs/ca-certificates.crt");
    let bytes = std::fs::read(&bundle).ok();
    files.insert(bundle, bytes);
    files
}
