// Runs Claude Code in an E2B sandbox that never holds the Anthropic key.
//
// Needs E2B_API_KEY, OSHU_VAULT_URL, SECRETS_PROXY_API_KEY and ANTHROPIC_API_KEY, and an E2B
// template (here "claude-behind-vault") whose image has Claude Code and, in its trust store, the
// certificate that GET /v1/ca.pem answers.
import { Sandbox } from "@e2b/code-interpreter";
import { SecretsProxyClient, SecretsProxyError } from "@oshu/vault-sdk";

function required(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`set ${name} first`);
  return value;
}

const vault = new SecretsProxyClient({
  baseUrl: required("OSHU_VAULT_URL"),
  apiKey: required("SECRETS_PROXY_API_KEY"),
});

async function ask(prompt: string): Promise<string> {
  // The vault gets the key; what comes back is a stand-in that works for one host, for an hour,
  // through the proxy only.
  const session = await vault.createSession({
    secrets: {
      ANTHROPIC_API_KEY: {
        value: required("ANTHROPIC_API_KEY"),
        hosts: ["api.anthropic.com"],
      },
    },
    allowed_egress: ["api.anthropic.com"],
    ttl_seconds: 3600,
    metadata: { purpose: "e2b example" },
  });

  try {
    const sandbox = await Sandbox.create("claude-behind-vault", {
      envs: {
        ...session.sealed_secrets,
        HTTP_PROXY: session.proxy_url,
        HTTPS_PROXY: session.proxy_url,
        PROMPT: prompt,
      },
    });
    try {
      // The prompt travels as a variable, so that no shell ever reads it as code.
      const { stdout } = await sandbox.commands.run('claude -p "$PROMPT"', { timeoutMs: 180_000 });
      return stdout;
    } finally {
      await sandbox.kill();
    }
  } finally {
    // From here on the stand-in is worth nothing, wherever it was copied to.
    await vault.deleteSession(session.session_id);
  }
}

try {
  console.log(await ask("Write a haiku about keys that open nothing."));
} catch (error) {
  if (!(error instanceof SecretsProxyError)) throw error;
  console.error(`${error.name}: ${error.message}`);
  process.exitCode = 1;
}
