//! Mistakes in file, environment and flags: all told at once, by name, without the value.

use super::{CANARY, Home, mode};

const KEY: (&str, &str) = ("SECRETS_PROXY_API_KEY", CANARY);

#[tokio::test]
async fn every_problem_of_every_source_is_told_at_once() {
    let home = Home::new();
    let file = "listne = 'canary-0123456789abcdef'\n\
                log = 'canary-0123456789abcdef'\n\
                [proxy]\n\
                tls_listen = 'canary-0123456789abcdef'\n\
                [limits]\n\
                connections = 0\n\
                head_timeout_ms = 'canary-0123456789abcdef'\n\
                [gateway]\n\
                danger_extra_paths = 'canary-0123456789abcdef'\n\
                [github]\n\
                api_url = 'canary-0123456789abcdef'\n\
                [canary]\n\
                nonsense = 1\n";
    let config = home.write("vault.toml", file);
    let variables = [
        ("SECRETS_PROXY_API_KEY", "canary-01234567 89abcdef"),
        ("OSHU_VAULT__ADMIN__LISTEN", "canary-0123456789abcdef"),
        ("OSHU_VAULT__PROXY__LISTNE", "canary-0123456789abcdef"),
        (
            "OSHU_VAULT__DANGER_UNSCOPED_SECRETS",
            "canary-0123456789abcdef",
        ),
    ];
    let flags = [
        "--config",
        &config,
        "--listen=canary-0123456789abcdef",
        "--public-url=http://canary-0123456789abcdef/x",
        "--allow-cidr=canary-0123456789abcdef",
        "--resolve=canary-0123456789abcdef",
    ];
    let parts = [
        ("listne", "vault.toml:1"),
        ("log", "vault.toml:2"),
        ("proxy.tls_listen", "vault.toml:4"),
        ("limits.connections", "vault.toml:6"),
        ("limits.head_timeout_ms", "vault.toml:7"),
        ("gateway.danger_extra_paths", "expects a list"),
        ("github.api_url", "not available in this version"),
        ("canary.nonsense", "unknown setting"),
        ("api_key", "SECRETS_PROXY_API_KEY"),
        ("admin.listen", "OSHU_VAULT__ADMIN__LISTEN"),
        ("OSHU_VAULT__PROXY__LISTNE", "unknown setting"),
        ("danger_unscoped_secrets", "refuse or any_host"),
        ("proxy.listen", "--listen"),
        ("proxy.public_url", "--public-url"),
        ("upstream.allow_cidrs", "--allow-cidr"),
        ("upstream.resolve", "--resolve"),
    ];
    for verb in ["serve", "check-config"] {
        let line = [&[verb], &flags[..]].concat();
        let ended = home
            .run_with(&line, &variables, "")
            .await
            .complains(64, &[]);
        for (key, part) in parts {
            let told = ended
                .stderr
                .lines()
                .any(|line| line.contains(key) && line.contains(part));
            assert!(told, "{key}, {part}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("01234567"), "{}", ended.stderr);
    }
    assert!(
        !home.path(".local").exists(),
        "a refused start leaves nothing behind"
    );
}

#[tokio::test]
async fn the_credentials_of_the_upstream_proxy_are_not_printed() {
    let home = Home::new();
    let url = format!("http://{CANARY}:{CANARY}@proxy.example:3128");
    let variables = [KEY, ("OSHU_VAULT__UPSTREAM__PROXY", &url)];
    let shown = home.run_with(&["check-config"], &variables, "").await;
    let shown = shown.expect(0).stdout;
    let line = "\nproxy = \"http://[redacted]@proxy.example:3128\"\n";
    assert!(shown.contains(line), "{shown}");
    let bad = format!("http://{CANARY}:{CANARY}@proxy.example");
    for verb in ["serve", "check-config", "run"] {
        let words = [verb, "--upstream-proxy", &bad, "--", "true"];
        let words = if verb == "run" {
            &words[..]
        } else {
            &words[..3]
        };
        home.run_with(words, &[KEY], "")
            .await
            .complains(64, &["upstream.proxy: expects http://", "--upstream-proxy"]);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let home = Home::new();
    let broken = home.write("broken.toml", "proxy = { canary-0123456789abcdef\n");
    let binary = home.write("binary.toml", [0xff, 0xfe, 0x00]);
    let folder = home.text("folder");
    std::fs::create_dir(home.path("folder")).unwrap();
    let missing = home.text("missing.toml");
    for (path, part) in [
        (&broken, "is not TOML"),
        (&binary, "UTF-8"),
        (&folder, "cannot be read"),
        (&missing, "cannot be read"),
    ] {
        home.run_with(&["serve", "--config", path], &[KEY], "")
            .await
            .complains(64, &[path, part]);
    }
}

#[tokio::test]
async fn a_start_without_key_or_authority_says_what_to_do() {
    let home = Home::new();
    home.run(&["serve"])
        .await
        .complains(64, &["SECRETS_PROXY_API_KEY", "--dev"]);
    let state = home.text(".local/state/oshu-vault");
    home.run_with(&["serve"], &[KEY], "")
        .await
        .complains(1, &[&state, "oshu-vault ca generate"]);
    home.run(&["serve", "--dev", "--listne"])
        .await
        .complains(64, &["--listne"]);
    home.run(&["nonsense"]).await.complains(64, &["nonsense"]);
}

#[tokio::test]
async fn a_bad_key_or_certificate_file_is_named_and_not_quoted() {
    let home = Home::new();
    home.run(&["ca", "generate", "--out", "good"])
        .await
        .expect(0);
    let good = (home.text("good/ca.pem"), home.text("good/ca.key"));
    let quoted = "-----BEGIN canary-0123456789abcdef\n";
    let bad = home.write("bad.pem", quoted);
    let empty = home.write("empty.pem", "");
    let text = home.write("text.pem", CANARY);
    let loose = home.write("loose.key", CANARY);
    mode(&home.path("loose.key"), 0o644);
    let short = home.write("short.key", "canary");
    let missing = home.text("missing.pem");
    let tls = |cert: &str, key: &str| {
        [
            "--tls-listen",
            "127.0.0.1:0",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ]
        .map(str::to_owned)
    };
    let mut cases = Vec::new();
    for file in [&bad, &empty, &text, &missing] {
        cases.push((tls(file, &good.1).to_vec(), 1, vec!["proxy.tls_cert", file]));
        cases.push((tls(&good.0, file).to_vec(), 1, vec!["proxy.tls_key", file]));
        let flag = ["--upstream-ca".to_owned(), file.clone()].to_vec();
        cases.push((flag, 1, vec!["upstream.ca_files", file]));
    }
    cases.push((
        tls(&good.1, &good.0).to_vec(),
        1,
        vec!["proxy.tls_cert", &good.1],
    ));
    for (flags, code, parts) in cases {
        let start = [
            "serve",
            "--dev",
            "--listen=127.0.0.1:0",
            "--admin-listen=none",
        ];
        let mut line = start.map(str::to_owned).to_vec();
        if !flags.iter().any(|flag| flag == "--tls-listen") {
            line.push("--tls-listen=none".to_owned());
        }
        line.extend(flags);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let ended = home.run(&line).await.expect(code);
        for part in parts {
            assert!(
                ended.stderr.contains(part),
                "{line:?}: {part} in {}",
                ended.stderr
            );
        }
        assert!(
            !ended.stderr.contains("99, 97, 110"),
            "quoted as numbers: {}",
            ended.stderr
        );
    }
    for (file, part) in [
        (&loose, "chmod 600"),
        (&short, "16 to 512"),
        (&missing, "cannot be read"),
    ] {
        home.run_with(&["serve"], &[("SECRETS_PROXY_API_KEY_FILE", file)], "")
            .await
            .complains(64, &["api_key_file", "SECRETS_PROXY_API_KEY_FILE", part]);
    }
}

#[tokio::test]
async fn a_bad_authority_is_named_and_not_quoted() {
    for (name, content, bits, parts) in [
        (
            "ca.pem",
            "",
            0o600,
            &["ca.pem", "certificate is missing"][..],
        ),
        (
            "ca.pem",
            CANARY,
            0o600,
            &["ca.pem", "certificate is missing"],
        ),
        (
            "ca.pem",
            "-----BEGIN CERTIFICATE-----\n?\n",
            0o600,
            &["ca.pem", "PEM"],
        ),
        ("ca.key", "", 0o600, &["ca.key", "key is missing"]),
        (
            "ca.key",
            "-----BEGIN canary-0123456789abcdef\n",
            0o600,
            &["ca.key", "key"],
        ),
        ("ca.key", CANARY, 0o640, &["ca.key", "0640", "0600"]),
    ] {
        let home = Home::new();
        home.run(&["ca", "generate"]).await.expect(0);
        std::fs::write(home.state(name), content).unwrap();
        mode(&home.state(name), bits);
        for (line, variables) in [
            (&["serve", "--dev", "--listen=127.0.0.1:0"][..], &[][..]),
            (&["serve"], &[KEY]),
        ] {
            home.run_with(line, variables, "").await.complains(1, parts);
        }
    }
    let home = Home::new();
    home.run(&["ca", "generate"]).await.expect(0);
    std::fs::remove_file(home.state("ca.key")).unwrap();
    home.run(&["serve", "--dev"])
        .await
        .complains(1, &["ca.key", "missing beside", "ca.pem"]);
    assert!(
        !home.state("ca.key").exists(),
        "no root takes the place of another"
    );
}

#[tokio::test]
async fn check_config_prints_what_is_in_effect() {
    let home = Home::new();
    let file = "[proxy]\nlisten = '127.0.0.1:1'\ntls_listen = 'none'\n\
                [limits]\nconnections = 11\nidle_timeout_ms = 22\nhead_timeout_ms = 33\n\
                [admin]\nlisten = '127.0.0.1:4'\n";
    let config = home.write("vault.toml", file);
    let variables = [
        KEY,
        ("OSHU_VAULT__PROXY__LISTEN", "127.0.0.1:2"),
        ("OSHU_VAULT__LIMITS__IDLE_TIMEOUT_MS", "44"),
        ("OSHU_VAULT__ADMIN__LISTEN", "127.0.0.1:5"),
    ];
    let line = ["check-config", "--config", &config, "--listen=127.0.0.1:3"];
    let ended = home.run_with(&line, &variables, "").await.expect(0);
    assert_eq!(ended.stderr, "");
    for part in [
        "# api_key: set (redacted)\n",
        "listen = \"127.0.0.1:3\"\n",
        "listen = \"127.0.0.1:5\"\n",
        "connections = 11\n",
        "idle_timeout_ms = 44\n",
        "head_timeout_ms = 33\n",
    ] {
        assert!(ended.stdout.contains(part), "{part} in {}", ended.stdout);
    }
    // What is printed is a configuration file, and means the same.
    let again = home.write("again.toml", &ended.stdout);
    let line = ["check-config", "--config", &again];
    let repeated = home.run_with(&line, &[KEY], "").await.expect(0);
    assert_eq!(repeated.stdout, ended.stdout);
    assert!(!home.path(".local").exists(), "a check makes nothing");
}
