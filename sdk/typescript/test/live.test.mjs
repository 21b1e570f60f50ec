// The package against the real server. OSHU_VAULT_BIN names its binary; without it these tests are
// skipped, but not in CI.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import {
  AuthenticationError,
  ConflictError,
  NotFoundError,
  SecretsProxyClient,
  ValidationError,
} from "@oshu/vault-sdk";
import { ANSWER, Anthropic, HOST } from "./support/anthropic.mjs";
import { runScript, startServer } from "./support/server.mjs";

const BINARY = process.env.OSHU_VAULT_BIN;
const REAL_KEY = "sk-ant-CANARY-0123456789-abcdefghij";
const example = fileURLToPath(new URL("./seed/run-example.mjs", import.meta.url));
const workload = fileURLToPath(new URL("./seed/workload.mjs", import.meta.url));
// Installed by tests/prepare.sh at the top of the project.
const claude = fileURLToPath(
  new URL("../../../tests/fixtures/clients/node_modules/.bin/claude", import.meta.url),
);

if (!BINARY) {
  test("live tests", { skip: process.env.CI !== "true" && "OSHU_VAULT_BIN is not set" }, () => {
    assert.fail("CI must set OSHU_VAULT_BIN");
  });
} else {
  describe("live", () => {
    let server;
    let client;
    let upstream;
    let folder;

    before(async () => {
      folder = await mkdtemp(join(tmpdir(), "oshu-vault-live-"));
      const caFile = join(folder, "upstream-ca.pem");
      upstream = await Anthropic.start();
      await writeFile(caFile, upstream.ca);
      const towards = ["--resolve", `${HOST}=${upstream.address}`, "--upstream-ca", caFile];
      server = await startServer(BINARY, towards);
      client = new SecretsProxyClient({ baseUrl: server.baseUrl, apiKey: server.apiKey });
    });

    after(async () => {
      upstream?.stop();
      if (folder) await rm(folder, { recursive: true, force: true });
      await server?.stop();
    });

    /** Runs the documented example; its sandbox runs `command`. */
    async function runExample(listener, command, env = {}) {
      upstream.requests.length = 0;
      const output = await runScript(example, [command], {
        PROXY_BASE_URL: server[listener],
        SECRETS_PROXY_API_KEY: server.apiKey,
        ANTHROPIC_API_KEY: REAL_KEY,
        NODE_EXTRA_CA_CERTS: server.caFile,
        ...env,
      });
      assert.equal(output.exitCode, 0, output.stderr);
      assert.ok(!`${output.stdout}${output.stderr}`.includes(server.apiKey));
      assert.deepEqual((await client.listSessions()).sessions, [], "the session was deleted");
      return output.stdout;
    }

    test("a session lives from creation to deletion", async () => {
      const created = await client.createSession({
        secrets: {
          ANTHROPIC_API_KEY: REAL_KEY,
          GITHUB_TOKEN: { value: "ghp_CANARY0123456789", hosts: ["github.com"], prefix: "ghp_" },
        },
        ttl_seconds: 600,
        metadata: { sandbox: "sb_1" },
      });
      assert.match(created.session_id, /^sess_[0-9a-f]{32}$/);
      assert.match(created.token, /^tok_[0-9a-f]{64}$/);
      assert.match(created.sealed_secrets["ANTHROPIC_API_KEY"], /^SEALED_[0-9a-f]{32}$/);
      assert.match(created.sealed_secrets["GITHUB_TOKEN"], /^ghp_SEALED_[0-9a-f]{32}$/);
      const proxy = new URL(created.proxy_url);
      assert.equal(proxy.protocol, "https:");
      assert.equal(proxy.username, created.session_id);
      assert.equal(proxy.password, created.token);
      assert.match(created.proxy_url_plain, /^http:\/\//);
      assert.ok(Date.parse(created.expires_at) > Date.parse(created.created_at));
      const { session_id: id } = created;

      const session = await client.getSession(id);
      assert.equal(session.session_id, id);
      assert.equal(session.ttl_seconds, 600);
      assert.deepEqual(session.metadata, { sandbox: "sb_1" });
      assert.deepEqual(session.secrets.map(({ name }) => name).sort(), [
        "ANTHROPIC_API_KEY",
        "GITHUB_TOKEN",
      ]);
      const shown = JSON.stringify(session);
      for (const hidden of [REAL_KEY, created.token, ...Object.values(created.sealed_secrets)]) {
        assert.ok(!shown.includes(hidden), "metadata shows what must be shown once only");
      }

      const updated = await client.updateSession(id, {
        secrets: { GITHUB_TOKEN: null, ANTHROPIC_API_KEY: `${REAL_KEY}-2`, OPENAI_API_KEY: REAL_KEY },
        ttl_seconds: 900,
        metadata: { sandbox: null, run: "2" },
      });
      assert.deepEqual(Object.keys(updated.sealed_secrets), ["OPENAI_API_KEY"]);
      assert.equal(updated.ttl_seconds, 900);
      assert.deepEqual(updated.metadata, { run: "2" });
      assert.deepEqual(updated.secrets.map(({ name }) => name).sort(), [
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
      ]);

      await client.deleteSession(id);
      await client.deleteSession(id);
      await assert.rejects(client.getSession(id), NotFoundError);
    });

    test("the list is paged", async () => {
      const ids = [];
      for (let count = 0; count < 3; count += 1) {
        ids.push((await client.createSession({ secrets: {} })).session_id);
      }
      const listed = [];
      let cursor;
      do {
        const page = await client.listSessions({ limit: 2, ...(cursor && { cursor }) });
        assert.ok(page.sessions.length <= 2);
        listed.push(...page.sessions.map((session) => session.session_id));
        cursor = page.next_cursor;
      } while (cursor !== null);
      for (const id of ids) assert.equal(listed.filter((each) => each === id).length, 1);
      for (const id of ids) await client.deleteSession(id);
    });

    test("refusals arrive as their errors", async () => {
      const wrong = new SecretsProxyClient({ baseUrl: server.baseUrl, apiKey: "wrong-key" });
      await assert.rejects(wrong.listSessions(), AuthenticationError);

      const tooShort = client.createSession({ secrets: { OPENAI_API_KEY: "short" }, ttl_seconds: 1 });
      await assert.rejects(tooShort, (error) => {
        assert.ok(error instanceof ValidationError);
        assert.equal(error.status, 422);
        const codes = error.errors.map(({ code }) => code);
        assert.ok(codes.includes("secret_too_short"), `codes: ${codes}`);
        assert.ok(error.errors.some(({ field }) => field === "ttl_seconds"));
        return true;
      });

      const once = { idempotencyKey: "live-test-1" };
      const first = await client.createSession({ secrets: {} }, once);
      await assert.rejects(client.createSession({ secrets: {} }, once), (error) => {
        assert.ok(error instanceof ConflictError);
        assert.equal(error.code, "already_created");
        assert.equal(error.sessionId, first.session_id);
        return true;
      });
      await client.deleteSession(first.session_id);
    });

    test("the CA can be had without a key", async () => {
      assert.equal((await client.caPem()).trim(), (await readFile(server.caFile, "utf8")).trim());
    });

    for (const listener of ["baseUrl", "tlsBaseUrl"]) {
      test(`the documented example works by ${listener}`, async () => {
        const command = `'${process.execPath}' '${workload}' '${server.caFile}'`;
        const { held, status, body } = JSON.parse(await runExample(listener, command));
        assert.match(held, /^SEALED_[0-9a-f]{32}$/);
        assert.equal(status, 200);
        assert.deepEqual(upstream.requests, [
          { method: "POST", path: "/v1/messages", key: REAL_KEY },
        ]);
        // What a session does by default is told by the session.
        const probe = await client.createSession({ secrets: {} });
        const { scrub_responses } = await client.getSession(probe.session_id);
        await client.deleteSession(probe.session_id);
        assert.equal(JSON.parse(body).echo, scrub_responses ? held : REAL_KEY);
      });

      const skip = process.env.CI !== "true" && !existsSync(claude) && "claude is not installed";
      test(`the documented example runs Claude Code by ${listener}`, { skip }, async () => {
        const home = join(folder, `home-${listener}`);
        await mkdir(home);
        // The variable stands for the image, whose system store has the CA.
        const prefix = `NODE_EXTRA_CA_CERTS='${server.caFile}'`;
        const command = `${prefix} claude -p "Write a hello world program in Python"`;
        const stdout = await runExample(listener, command, {
          HOME: home,
          PATH: `${dirname(claude)}:${process.env.PATH}`,
        });
        assert.equal(stdout.trim(), ANSWER);
        const messages = upstream.requests.filter(({ path }) => path === "/v1/messages");
        assert.ok(messages.length > 0);
        for (const { key } of messages) assert.equal(key, REAL_KEY);
      });
    }
  });
}
