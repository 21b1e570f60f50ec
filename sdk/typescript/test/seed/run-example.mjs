// The statements of example.ts against a server on this machine. The sandbox is a child process,
// its command comes as the first argument, and the proxy is spoken to as the base URL is.
//
//   PROXY_BASE_URL=http://127.0.0.1:8080 SECRETS_PROXY_API_KEY=… ANTHROPIC_API_KEY=… \
//     node test/seed/run-example.mjs 'printenv ANTHROPIC_API_KEY'
import { Sandbox } from "./sandbox-stub.mjs";
import { SecretsProxyClient } from "@oshu/vault-sdk";

const PROXY_BASE_URL = process.env.PROXY_BASE_URL;
const { protocol: PROXY_SCHEME, host: PROXY_HOST } = new URL(PROXY_BASE_URL);
const API_KEY = process.env.SECRETS_PROXY_API_KEY;
const ANTHROPIC_API_KEY = process.env.ANTHROPIC_API_KEY;
const COMMAND = process.argv[2] ?? `claude -p "Write a hello world program in Python"`;

const client = new SecretsProxyClient({
  baseUrl: PROXY_BASE_URL,
  apiKey: API_KEY,
});

const session = await client.createSession({
  secrets: { ANTHROPIC_API_KEY },
});

const proxyUrl = `${PROXY_SCHEME}//${session.session_id}:${session.token}@${PROXY_HOST}`;

const sandbox = await Sandbox.create("oshu-vault-claude", {
  envs: {
    ANTHROPIC_API_KEY: session.sealed_secrets["ANTHROPIC_API_KEY"],
    HTTP_PROXY: proxyUrl,
    HTTPS_PROXY: proxyUrl,
  },
});

try {
  const result = await sandbox.commands.run(COMMAND, { timeoutMs: 120_000 });
  process.stdout.write(result.stdout);
  process.stderr.write(result.stderr);
  process.exitCode = result.exitCode;
} finally {
  await client.deleteSession(session.session_id);
  await sandbox.kill();
}
