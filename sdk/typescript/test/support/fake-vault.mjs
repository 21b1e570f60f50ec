// A server in this process that answers as the management API is documented to, and remembers what
// it was asked. `answerNext` puts a canned answer in front of the real one, once.
import { randomBytes } from "node:crypto";
import { createServer } from "node:http";

export const API_KEY = "ovk_CANARYapikeyCANARYapikeyCANARY";
export const CA_PEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

export class FakeVault {
  requests = [];
  #sessions = new Map();
  #created = new Map();
  #canned = [];
  #server = createServer((request, response) => this.#serve(request, response));

  static async start() {
    const vault = new FakeVault();
    await new Promise((resolve) => vault.#server.listen(0, "127.0.0.1", resolve));
    vault.baseUrl = `http://127.0.0.1:${vault.#server.address().port}`;
    return vault;
  }

  async stop() {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  answerNext(status, body, headers = {}) {
    this.#canned.push({ status, body, headers });
  }

  /** Leaves the next request without an answer. */
  hangNext() {
    this.#canned.push("hang");
  }

  /** Closes the connection of the next request in the middle of its answer. */
  cutNext() {
    this.#canned.push("cut");
  }

  get last() {
    return this.requests.at(-1);
  }

  async #serve(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString("utf8");
    const { method, url, headers } = request;
    this.requests.push({ method, url, headers, body: text === "" ? undefined : JSON.parse(text) });

    const canned = this.#canned.shift();
    if (canned === "hang") return;
    if (canned === "cut") {
      response.writeHead(200, { "content-length": "100" });
      response.write("{", () => response.destroy());
      return;
    }
    const answer = canned ?? this.#answer(this.last);
    const body =
      typeof answer.body === "object" ? JSON.stringify(answer.body) : (answer.body ?? "");
    response.writeHead(answer.status, { "content-type": "application/json", ...answer.headers });
    response.end(answer.status === 204 ? undefined : body);
  }

  #answer({ method, url, headers, body }) {
    const { pathname, searchParams } = new URL(url, this.baseUrl);
    if (method === "GET" && pathname === "/v1/ca.pem") return { status: 200, body: CA_PEM };
    if (headers.authorization !== `Bearer ${API_KEY}`) return problem(401, "unauthorized");
    if (pathname === "/v1/sessions") {
      return method === "POST" ? this.#create(headers, body) : this.#list(searchParams);
    }
    const id = pathname.replace("/v1/sessions/", "");
    const session = this.#sessions.get(id);
    if (session === undefined) return problem(404, "not_found");
    if (method === "GET") return { status: 200, body: session };
    if (method === "DELETE") {
      this.#sessions.delete(id);
      return { status: 204 };
    }
    return this.#patch(headers, session, body);
  }

  #create(headers, { secrets, ...policy }) {
    const unscoped = Object.keys(secrets).filter((name) => name.startsWith("UNKNOWN"));
    if (unscoped.length > 0) {
      return problem(422, "invalid_fields", {
        errors: unscoped.map((name) => ({
          field: `secrets.${name}`,
          code: "secret_unscoped",
          message: "add hosts or secret_hosts",
        })),
      });
    }
    const key = headers["idempotency-key"];
    if (key !== undefined && this.#created.has(key)) {
      return problem(409, "already_created", { session_id: this.#created.get(key) });
    }
    const session_id = `sess_${randomBytes(16).toString("hex")}`;
    if (key !== undefined) this.#created.set(key, session_id);
    const token = `tok_${randomBytes(32).toString("hex")}`;
    const times = { created_at: "2030-01-01T00:00:00Z", expires_at: "2030-01-02T00:00:00Z" };
    this.#sessions.set(session_id, {
      session_id,
      ...times,
      ttl_seconds: 86400,
      max_lifetime_seconds: 604800,
      secret_hosts: null,
      allowed_egress: null,
      inject: ["header"],
      passthrough_hosts: [],
      allow_plaintext: false,
      scrub_responses: true,
      metadata: {},
      ...policy,
      secrets: Object.entries(secrets).map(([name, secret]) => metadataOf(name, secret)),
      counters: { exchanges: 0, denied: 0, swapped: 0, tunnels: 0 },
      version: 1,
    });
    const body = {
      session_id,
      token,
      sealed_secrets: Object.fromEntries(
        Object.entries(secrets).map(([name, secret]) => [name, sealedToken(secret)]),
      ),
      proxy_url: `${this.baseUrl.replace("//", `//${session_id}:${token}@`)}`,
      ...times,
      warnings: [],
    };
    return { status: 201, body, headers: { "cache-control": "no-store" } };
  }

  #list(search) {
    const all = [...this.#sessions.values()];
    const from = Number(search.get("cursor") ?? 0);
    const to = from + Number(search.get("limit") ?? 50);
    const next_cursor = to < all.length ? String(to) : null;
    return { status: 200, body: { sessions: all.slice(from, to), next_cursor } };
  }

  #patch(headers, session, { secrets = {}, ...policy }) {
    if (headers["content-type"] !== "application/merge-patch+json") {
      return problem(415, "unsupported_media_type");
    }
    const sealed_secrets = {};
    for (const [name, secret] of Object.entries(secrets)) {
      const at = session.secrets.findIndex((each) => each.name === name);
      if (secret === null) session.secrets.splice(at, 1);
      else if (at === -1) {
        session.secrets.push(metadataOf(name, secret));
        sealed_secrets[name] = sealedToken(secret);
      }
    }
    Object.assign(session, policy);
    session.version += 1;
    return { status: 200, body: { ...session, sealed_secrets, warnings: [] } };
  }
}

export function problem(status, code, more = {}) {
  const body = { type: "about:blank", title: "The call was refused", status, code, ...more };
  return { status, body, headers: { "content-type": "application/problem+json" } };
}

function metadataOf(name, secret) {
  return { name, hosts: secret.hosts ?? null, inject: secret.inject ?? null };
}

function sealedToken(secret) {
  return `${secret.prefix ?? ""}SEALED_${randomBytes(16).toString("hex")}`;
}
