//! What the program gives memory back with: the allocator and its times, as the program says them.
//!
//! They are built in by `.cargo/config.toml`, which nothing else reads: a build that did not see it
//! works all the same, and keeps what a crowd took. Decision 0034 says why it stands there.

use super::Home;
use crate::support::clients::project_file;

/// Asks the allocator to tell how it is set, at the end of the program. It is not set by this.
const TELL: (&str, &str) = ("_RJEM_MALLOC_CONF", "stats_print:true");

#[tokio::test]
async fn the_program_has_the_allocator_and_the_times_that_it_is_built_with() {
    let told = Home::new().run_with(&["version"], &[TELL], "").await;
    let told = told.expect(0).stderr;
    let line = |start: &str| {
        let found = told
            .lines()
            .find_map(|line| line.trim().strip_prefix(start));
        found.unwrap_or_else(|| panic!("{start} in {told}")).trim()
    };
    // What was given to the build is what is in the program.
    let config = std::fs::read_to_string(project_file(".cargo/config.toml")).expect("a file");
    let given = config
        .lines()
        .find_map(|line| line.strip_prefix("JEMALLOC_SYS_WITH_MALLOC_CONF = "));
    let given = given.expect("the line").trim_matches('"');
    assert!(line("config.malloc_conf:").contains(given), "{told}");
    // And what it comes to: the setting, and in brackets what holds.
    for (option, value) in [
        ("opt.background_thread:", "true (background_thread: true)"),
        ("opt.dirty_decay_ms:", "1000 (arenas.dirty_decay_ms: 1000)"),
        ("opt.muzzy_decay_ms:", "0 (arenas.muzzy_decay_ms: 0)"),
    ] {
        assert_eq!(line(option), value);
    }
}
