// Holds the public types: each statement must compile, and each marked one must not.
import {
  ConflictError,
  RateLimitError,
  SecretsProxyClient,
  SecretsProxyError,
  type CreateSessionRequest,
  type SessionPatch,
} from "@oshu/vault-sdk";

export async function calls(client: SecretsProxyClient): Promise<void> {
  const everything: CreateSessionRequest = {
    secrets: {
      ANTHROPIC_API_KEY: "plain form",
      GITHUB_TOKEN: {
        value: "long form",
        hosts: ["github.com"] as const,
        inject: ["header", "header:x-custom"],
        prefix: "ghp_",
      },
    },
    secret_hosts: ["api.anthropic.com"],
    allowed_egress: null,
    inject: ["header", "query", "path", "body"],
    ttl_seconds: 60,
    max_lifetime_seconds: 3600,
    passthrough_hosts: [],
    allow_plaintext: false,
    scrub_responses: true,
    capture: ["https://idp.example/token", { url: "https://idp.example/t", hosts: ["a.example"] }],
    metadata: { sandbox: "sb_1" },
  };
  const created = await client.createSession(everything, { idempotencyKey: "once" });
  const text: string[] = [
    created.session_id,
    created.token,
    created.sealed_secrets["ANTHROPIC_API_KEY"],
    created.proxy_url,
    created.expires_at,
    ...created.warnings,
  ];
  const plain: string | undefined = created.proxy_url_plain;

  const patch: SessionPatch = {
    secrets: { GONE: null, ROTATED: "new", NARROWED: { hosts: ["a.example"], inject: null } },
    allowed_egress: null,
    ttl_seconds: 120,
    capture: null,
    metadata: { sandbox: null },
  };
  const updated = await client.updateSession(created.session_id, patch);
  const added: string | undefined = updated.sealed_secrets?.["NEW"];

  let cursor: string | null = null;
  const page = await client.listSessions({ limit: 10 });
  cursor = page.next_cursor;
  const requests: number = page.sessions[0].counters["exchanges"];
  const captured: string[] = page.sessions[0].captured;
  const gone: void = await client.deleteSession(created.session_id);
  const pem: string = await client.caPem();
  void [text, plain, added, cursor, requests, gone, pem, captured];

  // @ts-expect-error the request needs its secrets
  await client.createSession({});
  // @ts-expect-error a place that does not exist
  await client.createSession({ secrets: {}, inject: ["cookie"] });
  // @ts-expect-error a misspelt field would weaken the session
  await client.createSession({ secrets: {}, allowed_hosts: [] });
  // @ts-expect-error the key is required
  new SecretsProxyClient({ baseUrl: "https://vault.example" });
}

export function failures(error: unknown): string | number | undefined {
  if (error instanceof RateLimitError) return error.retryAfterSeconds;
  if (error instanceof ConflictError) return error.sessionId;
  if (error instanceof SecretsProxyError) return error.errors[0]?.field ?? error.requestId;
  return undefined;
}
