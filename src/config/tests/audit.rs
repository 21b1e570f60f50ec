//! The settings of the audit sink.

use super::*;

#[test]
fn audit_settings_are_read_and_bounded() {
    let file = "[audit]\nsink = 'file'\nfile = '/log/a'\nrotate_bytes = 4096\nkeep = 3\n\
                on_full = 'refuse'\n";
    let audit = with_file(file).unwrap().audit;
    let expected = Audit {
        sink: AuditSink::File,
        file: Some("/log/a".into()),
        rotate_bytes: 4096,
        keep: 3,
        on_full: OnFull::Refuse,
    };
    assert_eq!(audit, expected);
    assert_eq!(audit.path(Path::new("/s")), Path::new("/log/a"));
    assert_eq!(
        Audit::default().path(Path::new("/s")),
        Path::new("/s/audit.jsonl")
    );
    for (file, expected) in [
        (
            "audit.rotate_bytes = 4095",
            "audit.rotate_bytes: expects at least 4096 bytes",
        ),
        (
            "audit.keep = 0",
            "audit.keep: expects a whole number from 1",
        ),
        ("audit.sink = 'x'", "audit.sink: expects file or stdout"),
        (
            "audit.on_full = 'x'",
            "audit.on_full: expects gap or refuse",
        ),
        (
            "audit.file = '/a'",
            "audit.file: has no use without audit.sink = \"file\"",
        ),
    ] {
        let problems = with_file(file).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{problems:?}");
    }
}
