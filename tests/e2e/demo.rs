//! `demo` as a process: it tells the whole story, and its exit code says whether it is true.

use crate::support::clients::{client, run};

#[tokio::test]
async fn the_demo_shows_four_views_and_they_are_right() {
    let home = tempfile::tempdir().expect("a home");
    let mut command = client(env!("CARGO_BIN_EXE_oshu-vault"), home.path());
    command.env("TMPDIR", home.path()).arg("demo");
    let said = run("demo", &mut command).await;
    said.expect_success("demo");
    assert_eq!(said.stderr, "");
    let page = said.stdout.as_str();
    let after = |mark: &str| {
        let (_, rest) = page
            .split_once(mark)
            .unwrap_or_else(|| panic!("{mark} in {page}"));
        rest
    };
    let word = |mark: &str| after(mark).split_whitespace().next().expect("a word");
    let (key, token) = (word("    key            "), word("    sealed token   "));
    assert!(
        key.starts_with("demo-key-") && token.starts_with("SEALED_"),
        "{page}"
    );
    let swapped = format!("X-Api-Key: {token}   * X-Api-Key: {key}\n");
    assert!(after("(b) what the API saw").contains(&swapped), "{page}");
    // What was sent back is told as it is, and in words.
    let (back, stolen) = after("(c) what the workload got back")
        .split_once("(d) what an exfiltration attempt got")
        .expect("a fourth view");
    assert!(back.contains(&format!("X-Api-Key: {token}\n")), "{back}");
    assert!(!back.contains(key), "{back}");
    assert!(back.contains("put the sealed token in its place"), "{back}");
    assert!(
        stolen.contains(&format!("X-Api-Key: {token}   | X-Api-Key: {token}\n")),
        "{stolen}"
    );
    assert!(
        stolen.contains("the proxy refused the tunnel: 403"),
        "{stolen}"
    );
    assert!(stolen.contains("host_not_allowed"), "{stolen}");
    assert!(!stolen.contains(key), "{stolen}");
    let lines = page.lines().count();
    assert!((60..=100).contains(&lines), "{lines} lines");
    let left = std::fs::read_dir(home.path()).expect("a folder").count();
    assert_eq!(left, 0, "files are left behind");
}
