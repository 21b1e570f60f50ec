//! The rows of the table, in its order: what each client is, and what is expected of it.
//!
//! A note says what the client needs beside the block of variables, or why it fails.

use super::row::{Row, Version};

const ANTHROPIC: &[&str] = &["api.anthropic.com"];
const OPENAI: &[&str] = &["api.openai.com"];
const GITHUB: &[&str] = &["api.github.com"];

const CURL: Version = Version::Machine(&["curl", "--version"]);
const JAVA: Version = Version::Machine(&["java", "--version"]);
const PYTHON: Version = Version::Machine(&["python3", "--version"]);

/// Describes a client of node, by the releases of node that it runs on.
const fn on_node(name: &'static str, version: &'static [&'static str]) -> Row {
    Row::of(name, Version::Npm(version))
}

const fn anthropic(name: &'static str, version: Version) -> Row {
    Row::of(name, version)
        .secret("ANTHROPIC_API_KEY", ANTHROPIC, "x-api-key: {}")
        .answer("Hello from the stand-in of the API.")
}

/// Describes an SDK of this API, whose newer releases send an API key as a bearer token.
const fn anthropic_sdk(name: &'static str, version: Version) -> Row {
    anthropic(name, version).field("authorization: Bearer {}")
}

const fn openai(name: &'static str, version: Version) -> Row {
    Row::of(name, version)
        .secret("OPENAI_API_KEY", OPENAI, "authorization: Bearer {}")
        .answer("Hello from the stand-in of the API.")
}

pub(super) const ROWS: &[Row] = &[
    // Programs of the command line.
    Row::of("curl", CURL)
        .no_tls("SSL certificate problem")
        .note("the variables of the block do not reach its TLS to the proxy"),
    Row::of("curl, `--proxy-cacert`", CURL)
        .answer("ok HTTP/2")
        .note("`--proxy-cacert \"$CURL_CA_BUNDLE\"`, or our root in the system's store"),
    Row::of("curl, `--http1.1`", CURL)
        .answer("ok HTTP/1.1")
        .note("`--proxy-cacert` as above"),
    Row::of("wget", Version::Machine(&["wget", "--version"])),
    Row::of("git", Version::Machine(&["git", "--version"]))
        .field("authorization: Basic git")
        .note("clone, fetch and push, with the token as password"),
    Row::of("gh", Version::Machine(&["gh", "--version"]))
        .secret("GH_TOKEN", GITHUB, "authorization: token {}")
        .answer("octocat"),
    // Package managers.
    Row::of(
        "pip",
        Version::Machine(&["python3", "-m", "pip", "--version"]),
    )
    .field("authorization: Basic user")
    .note("an index with user and token in its URL"),
    Row::of("uv", Version::Python("uv"))
        .field("authorization: Basic user")
        .note("an index with user and token in its URL"),
    Row::of("npm", Version::Machine(&["npm", "--version"]))
        .field("authorization: Bearer {}")
        .note("`npm view` and `npm install`, with an `_authToken` of `.npmrc`"),
    Row::of("cargo", Version::Machine(&["cargo", "--version"]))
        .field("authorization: {}")
        .note("a sparse registry that asks for a token"),
    // Python.
    Row::of("Python `urllib`", PYTHON),
    Row::of("requests", Version::Python("requests")),
    Row::of("httpx", Version::Python("httpx")),
    Row::of("httpx, `http2=True`", Version::Python("httpx")).answer("ok HTTP/2"),
    Row::of("aiohttp, `trust_env=True`", Version::Python("aiohttp"))
        .no_tls("Cannot connect to host api.clients.test")
        .note("passes over a proxy in TLS and tries to go direct"),
    Row::of("aiohttp", Version::Python("aiohttp"))
        .never("Cannot connect to host api.clients.test")
        .note("looks at no variable without `trust_env=True`, and tries to go direct"),
    Row::of("urllib3 `PoolManager`", Version::Python("urllib3"))
        .never("Failed to resolve")
        .note("looks at no variable, and tries to go direct"),
    Row::of("urllib3 `ProxyManager`", Version::Python("urllib3"))
        .note("proxy, credential and roots are given by the program"),
    anthropic_sdk("anthropic for Python", Version::Python("anthropic")),
    anthropic_sdk(
        "anthropic for Python, streaming",
        Version::Python("anthropic"),
    ),
    openai("openai for Python", Version::Python("openai")),
    Row::of("boto3", Version::Python("boto3"))
        .signs()
        .note("its key signs requests, so that a sealed one is of no use; sessions refuse it"),
    Row::of("grpcio for Python", Version::Python("grpcio"))
        .no_tls("scheme not supported in proxy URI")
        .note("passes over a proxy in TLS and tries to go direct"),
    // Node and its kin.
    on_node("fetch on node 20", &["node20"]).note("by our preload"),
    on_node("`node:https` on node 20", &["node20"]).note("by our preload"),
    on_node("axios on node 20", &["axios", "node20"]),
    on_node("got on node 20", &["got", "node20"]).note("by our preload"),
    on_node("undici on node 20", &["undici", "node20"]).note("by our preload"),
    on_node(
        "undici `EnvHttpProxyAgent` on node 20",
        &["undici", "node20"],
    ),
    on_node(
        "https-proxy-agent on node 20",
        &["https-proxy-agent", "node20"],
    )
    .note("the agent is given by the program"),
    anthropic_sdk(
        "@anthropic-ai/sdk on node 20",
        Version::Npm(&["@anthropic-ai/sdk", "node20"]),
    )
    .note("by our preload"),
    openai("openai on node 20", Version::Npm(&["openai", "node20"])).note("by our preload"),
    on_node("fetch on node 24", &["node24"]),
    on_node("`node:https` on node 24", &["node24"]),
    on_node("axios on node 24", &["axios", "node24"]),
    on_node("got on node 24", &["got", "node24"]),
    on_node("undici on node 24", &["undici", "node24"]),
    anthropic_sdk(
        "@anthropic-ai/sdk on node 24",
        Version::Npm(&["@anthropic-ai/sdk", "node24"]),
    ),
    openai("openai on node 24", Version::Npm(&["openai", "node24"])),
    on_node("fetch on bun", &["bun"]),
    anthropic_sdk(
        "@anthropic-ai/sdk on bun",
        Version::Npm(&["@anthropic-ai/sdk", "bun"]),
    ),
    on_node("fetch on deno", &["@deno/linux-x64-glibc"]),
    // WebSockets.
    Row::of("websockets for Python", Version::Python("websockets")),
    Row::of(
        "websockets for Python, `sync`",
        Version::Python("websockets"),
    )
    .no_tls("SSLError")
    .note("speaks TLS within TLS only if the program gives `proxy_ssl`"),
    on_node("`WebSocket` on node 24", &["node24"]),
    on_node("ws on node 24", &["ws", "node24"]).note("through an agent that the program gives"),
    // Compiled languages.
    Row::of("Go `net/http`", Version::Machine(&["go", "version"])).answer("ok HTTP/2.0"),
    Row::of("Java `HttpClient`", JAVA)
        .answer("ok HTTP_2")
        .no_tls("ConnectException")
        .note("needs an `Authenticator` in the program; no JVM speaks TLS to a proxy"),
    Row::of("Java `HttpClient`, no `Authenticator`", JAVA)
        .never("Exception")
        .note("the JVM reads no credential for a proxy by itself"),
    Row::of("Java `HttpURLConnection`", JAVA)
        .no_tls("UnknownHostException")
        .note("needs an `Authenticator` in the program; no JVM speaks TLS to a proxy"),
    Row::of("reqwest", Version::Cargo("reqwest")),
    // Agents.
    anthropic(
        "Claude Code, API key",
        Version::Npm(&["@anthropic-ai/claude-code"]),
    ),
    anthropic(
        "Claude Code, `ANTHROPIC_AUTH_TOKEN`",
        Version::Npm(&["@anthropic-ai/claude-code"]),
    )
    .secret(
        "ANTHROPIC_AUTH_TOKEN",
        ANTHROPIC,
        "authorization: Bearer {}",
    ),
    anthropic(
        "Claude Code, subscription token",
        Version::Npm(&["@anthropic-ai/claude-code"]),
    )
    .secret(
        "CLAUDE_CODE_OAUTH_TOKEN",
        ANTHROPIC,
        "authorization: Bearer {}",
    ),
    anthropic(
        "Claude Code, `.credentials.json`",
        Version::Npm(&["@anthropic-ai/claude-code"]),
    )
    .secret("CLIENT_KEY", ANTHROPIC, "authorization: Bearer {}"),
    openai("Codex", Version::Npm(&["@openai/codex"]))
        .note("`codex exec`, which reads `CODEX_API_KEY`"),
];
