// Each call on the wire, and each way it can end.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import {
  AuthenticationError,
  ConflictError,
  ConnectionError,
  NotFoundError,
  RateLimitError,
  SecretsProxyClient,
  SecretsProxyError,
  ServerError,
  ValidationError,
} from "@oshu/vault-sdk";
import { API_KEY, CA_PEM, FakeVault, problem } from "./support/fake-vault.mjs";

let vault;
let client;

before(async () => {
  vault = await FakeVault.start();
  client = new SecretsProxyClient({ baseUrl: vault.baseUrl, apiKey: API_KEY });
});

after(() => vault.stop());

const refuse = ({ status, body, headers }) => vault.answerNext(status, body, headers);

describe("options", () => {
  const good = { baseUrl: "https://vault.example", apiKey: API_KEY };
  for (const [options, field] of [
    [undefined, "options"],
    [null, "options"],
    [{ ...good, baseUrl: undefined }, "baseUrl"],
    [{ ...good, baseUrl: "" }, "baseUrl"],
    [{ ...good, baseUrl: 7 }, "baseUrl"],
    [{ ...good, baseUrl: "vault.example" }, "baseUrl"],
    [{ ...good, baseUrl: "ftp://vault.example" }, "baseUrl"],
    [{ ...good, baseUrl: "https://user:CANARY@vault.example" }, "baseUrl"],
    [{ ...good, baseUrl: "https://vault.example/?key=CANARY" }, "baseUrl"],
    [{ ...good, baseUrl: "https://vault.example/#CANARY" }, "baseUrl"],
    [{ ...good, apiKey: undefined }, "apiKey"],
    [{ ...good, apiKey: "" }, "apiKey"],
    [{ ...good, apiKey: "CANARY\n" }, "apiKey"],
    [{ ...good, apiKey: "CANARY\u00e9" }, "apiKey"],
    [{ ...good, fetch: "fetch" }, "fetch"],
    [{ ...good, timeoutMs: 0 }, "timeoutMs"],
    [{ ...good, timeoutMs: Number.NaN }, "timeoutMs"],
    [{ ...good, timeoutMs: 2 ** 31 }, "timeoutMs"],
  ]) {
    test(`${JSON.stringify(options)} is refused by ${field}`, () => {
      assert.throws(
        () => new SecretsProxyClient(options),
        (error) => {
          assert.ok(error instanceof TypeError);
          assert.ok(error.message.startsWith(field), error.message);
          assert.ok(!error.message.includes("CANARY"));
          return true;
        },
      );
    });
  }

  for (const [baseUrl, expected] of [
    ["https://vault.example", "https://vault.example"],
    ["https://vault.example/", "https://vault.example"],
    ["https://vault.example//", "https://vault.example"],
    ["http://127.0.0.1:8080/behind/a/path/", "http://127.0.0.1:8080/behind/a/path"],
  ]) {
    test(`${baseUrl} asks under ${expected}`, async () => {
      const asked = [];
      const fetch = async (url) => {
        asked.push(url);
        return new Response('{"sessions":[]}');
      };
      await new SecretsProxyClient({ baseUrl, apiKey: API_KEY, fetch }).listSessions();
      assert.deepEqual(asked, [`${expected}/v1/sessions`]);
    });
  }
});

describe("calls", () => {
  test("createSession sends every field under its wire name", async () => {
    const request = {
      secrets: {
        ANTHROPIC_API_KEY: "sk-ant-plain-form",
        GITHUB_TOKEN: {
          value: "ghp_long-form",
          hosts: ["github.com", "api.github.com"],
          inject: ["header"],
          prefix: "ghp_",
        },
      },
      secret_hosts: ["api.anthropic.com"],
      allowed_egress: ["api.anthropic.com", "*.github.com"],
      inject: ["header", "header:x-custom"],
      ttl_seconds: 86400,
      max_lifetime_seconds: 604800,
      passthrough_hosts: [],
      allow_plaintext: false,
      scrub_responses: true,
      metadata: { sandbox: "sb_1" },
    };
    const created = await client.createSession(request);
    assert.equal(vault.last.method, "POST");
    assert.equal(vault.last.url, "/v1/sessions");
    assert.deepEqual(vault.last.body, request);
    assert.equal(vault.last.headers.authorization, `Bearer ${API_KEY}`);
    assert.equal(vault.last.headers["content-type"], "application/json");
    assert.equal(vault.last.headers["idempotency-key"], undefined);
    assert.match(vault.last.headers["user-agent"], /^oshu-vault-sdk-typescript\/\d/);
    assert.match(created.session_id, /^sess_[0-9a-f]{32}$/);
    assert.match(created.token, /^tok_[0-9a-f]{64}$/);
    assert.match(created.sealed_secrets["ANTHROPIC_API_KEY"], /^SEALED_[0-9a-f]{32}$/);
    assert.match(created.sealed_secrets["GITHUB_TOKEN"], /^ghp_SEALED_[0-9a-f]{32}$/);
    assert.deepEqual(created.warnings, []);
  });

  test("getSession and deleteSession name the session in the path", async () => {
    const { session_id: id } = await client.createSession({ secrets: {} });
    assert.equal((await client.getSession(id)).session_id, id);
    assert.equal(vault.last.method, "GET");
    assert.equal(vault.last.url, `/v1/sessions/${id}`);
    assert.equal(await client.deleteSession(id), undefined);
    assert.equal(vault.last.method, "DELETE");
    assert.equal(vault.last.url, `/v1/sessions/${id}`);
    await assert.rejects(client.getSession(id), NotFoundError);
  });

  test("deleting a session that is gone succeeds", async () => {
    assert.equal(await client.deleteSession("sess_gone"), undefined);
    assert.equal(vault.last.method, "DELETE");
  });

  test("deletion passes on every other refusal", async () => {
    refuse(problem(503, "store_unavailable"));
    await assert.rejects(client.deleteSession("sess_1"), ServerError);
  });

  test("listSessions pages", async () => {
    const all = new Set();
    for (let count = 0; count < 3; count += 1) {
      all.add((await client.createSession({ secrets: {} })).session_id);
    }
    const first = await client.listSessions({ limit: 2 });
    assert.equal(vault.last.url, "/v1/sessions?limit=2");
    assert.equal(first.sessions.length, 2);
    await client.listSessions({ limit: 2, cursor: "a&b=c" });
    assert.equal(vault.last.url, "/v1/sessions?limit=2&cursor=a%26b%3Dc");
    let { sessions, next_cursor: cursor } = first;
    for (;;) {
      for (const { session_id: id } of sessions) all.delete(id);
      if (cursor === null) break;
      ({ sessions, next_cursor: cursor } = await client.listSessions({ limit: 2, cursor }));
    }
    assert.equal(all.size, 0);
  });

  test("a list without a cursor field is the last page", async () => {
    vault.answerNext(200, { sessions: [] });
    assert.equal((await client.listSessions()).next_cursor, null);
  });

  test("updateSession sends a merge patch as it is, nulls included", async () => {
    const { session_id: id } = await client.createSession({ secrets: { OPENAI_API_KEY: "old-value" } });
    const patch = {
      secrets: { OPENAI_API_KEY: null, GITHUB_TOKEN: { value: "ghp_value", hosts: null } },
      allowed_egress: null,
      ttl_seconds: 120,
      metadata: { sandbox: null },
    };
    const updated = await client.updateSession(id, patch);
    assert.equal(vault.last.method, "PATCH");
    assert.equal(vault.last.url, `/v1/sessions/${id}`);
    assert.equal(vault.last.headers["content-type"], "application/merge-patch+json");
    assert.deepEqual(vault.last.body, patch);
    assert.deepEqual(Object.keys(updated.sealed_secrets), ["GITHUB_TOKEN"]);
    assert.deepEqual(updated.secrets.map(({ name }) => name), ["GITHUB_TOKEN"]);

    await client.updateSession(id, { secrets: { GITHUB_TOKEN: { hosts: ["github.com"] } } });
    assert.deepEqual(vault.last.body, { secrets: { GITHUB_TOKEN: { hosts: ["github.com"] } } });
  });

  test("caPem sends no key", async () => {
    assert.equal(await client.caPem(), CA_PEM);
    assert.equal(vault.last.url, "/v1/ca.pem");
    assert.equal(vault.last.headers.authorization, undefined);
  });

  test("fields that this version does not know are kept", async () => {
    vault.answerNext(200, { session_id: "sess_1", invented_later: { a: 1 } });
    assert.deepEqual((await client.getSession("sess_1")).invented_later, { a: 1 });
  });
});

describe("arguments", () => {
  const create = (request, options) => () => client.createSession(request, options);
  const cases = [
    ["an undefined secret", create({ secrets: { A: undefined } }), "secrets.A"],
    ["a null secret", create({ secrets: { A: null } }), "secrets.A"],
    ["a long form without value", create({ secrets: { A: { hosts: ["x"] } } }), "secrets.A"],
    ["no secrets at all", create({}), "secrets"],
    ["a list of secrets", create({ secrets: ["CANARY"] }), "secrets"],
    ["no request", create(undefined), "request"],
    [
      "a bad idempotency key",
      create({ secrets: {} }, { idempotencyKey: "CANARY\r\nx: y" }),
      "idempotencyKey",
    ],
    [
      "an undefined value in a patch",
      () => client.updateSession("sess_1", { secrets: { A: { value: undefined } } }),
      "secrets.A",
    ],
    ["no patch", () => client.updateSession("sess_1", null), "patch"],
    ["an id that leaves its path", () => client.getSession("../tenants/CANARY"), "id"],
    ["a dot segment", () => client.deleteSession(".."), "id"],
    ["an empty id", () => client.deleteSession(""), "id"],
    ["an undefined id", () => client.updateSession(undefined, {}), "id"],
  ];
  for (const [name, call, field] of cases) {
    test(`${name} is refused before anything is sent`, async () => {
      const before = vault.requests.length;
      await assert.rejects(call, (error) => {
        assert.ok(error instanceof TypeError);
        assert.ok(error.message.startsWith(field), error.message);
        assert.ok(!error.message.includes("CANARY"));
        return true;
      });
      assert.equal(vault.requests.length, before);
    });
  }
});

describe("refusals", () => {
  for (const [status, kind] of [
    [400, ValidationError],
    [401, AuthenticationError],
    [402, SecretsProxyError],
    [403, AuthenticationError],
    [404, NotFoundError],
    [409, ConflictError],
    [413, SecretsProxyError],
    [422, ValidationError],
    [429, RateLimitError],
    [500, ServerError],
    [503, ServerError],
  ]) {
    test(`${status} is a ${kind.name}`, async () => {
      refuse(problem(status, "some_code", { detail: "Some detail" }));
      await assert.rejects(client.getSession("sess_1"), (error) => {
        assert.equal(error.constructor, kind);
        assert.ok(error instanceof SecretsProxyError);
        assert.equal(error.name, kind.name);
        assert.equal(error.status, status);
        assert.equal(error.code, "some_code");
        assert.deepEqual(error.errors, []);
        assert.equal(error.message, `Some detail (status ${status}, some_code)`);
        return true;
      });
    });
  }

  test("every bad field is named", async () => {
    const unscoped = client.createSession({ secrets: { UNKNOWN_A: "value-a", UNKNOWN_B: "value-b" } });
    await assert.rejects(unscoped, (error) => {
      assert.ok(error instanceof ValidationError);
      assert.deepEqual(
        error.errors,
        ["UNKNOWN_A", "UNKNOWN_B"].map((name) => ({
          field: `secrets.${name}`,
          code: "secret_unscoped",
          message: "add hosts or secret_hosts",
        })),
      );
      assert.match(error.message, /secrets\.UNKNOWN_A: add hosts.*secrets\.UNKNOWN_B: add hosts/);
      return true;
    });
  });

  test("a repeated creation names the first session", async () => {
    const options = { idempotencyKey: "deploy-42" };
    const { session_id: id } = await client.createSession({ secrets: {} }, options);
    assert.equal(vault.last.headers["idempotency-key"], "deploy-42");
    await assert.rejects(client.createSession({ secrets: {} }, options), (error) => {
      assert.ok(error instanceof ConflictError);
      assert.equal(error.code, "already_created");
      assert.equal(error.sessionId, id);
      return true;
    });
  });

  const inAnHour = new Date(Date.now() + 3_600_000).toUTCString();
  for (const [header, least, most] of [
    ["7", 7, 7],
    ["0", 0, 0],
    [inAnHour, 3500, 3600],
    ["Thu, 01 Jan 1970 00:00:00 GMT", 0, 0],
    ["soon", undefined],
    [undefined, undefined],
  ]) {
    test(`retry-after: ${header}`, async () => {
      const { status, body } = problem(429, "too_many_requests");
      vault.answerNext(status, body, header === undefined ? {} : { "retry-after": header });
      await assert.rejects(client.listSessions(), ({ retryAfterSeconds: seconds }) => {
        if (least === undefined) assert.equal(seconds, undefined);
        else assert.ok(seconds >= least && seconds <= most, String(seconds));
        return true;
      });
    });
  }

  test("the request id is kept", async () => {
    vault.answerNext(500, problem(500, "internal").body, { "x-request-id": "req_1" });
    await assert.rejects(client.listSessions(), { requestId: "req_1" });
    refuse(problem(500, "internal", { request_id: "req_2" }));
    await assert.rejects(client.listSessions(), { requestId: "req_2" });
  });

  for (const body of ["<html>CANARY</html>", "", "[1]", "null", '{"code":7,"errors":"CANARY"}']) {
    test(`a refusal with ${JSON.stringify(body)} is told by its status alone`, async () => {
      vault.answerNext(502, body);
      await assert.rejects(client.listSessions(), (error) => {
        assert.ok(error instanceof ServerError);
        assert.equal(error.code, "http_502");
        assert.ok(!error.message.includes("CANARY"));
        return true;
      });
    });
  }

  const calls = {
    createSession: (it) => it.createSession({ secrets: {} }),
    getSession: (it) => it.getSession("sess_1"),
    listSessions: (it) => it.listSessions(),
    updateSession: (it) => it.updateSession("sess_1", {}),
    caPem: (it) => it.caPem(),
  };
  for (const [name, call] of Object.entries(calls)) {
    for (const body of ["<html>tok_CANARY</html>", '{"token":"tok_CANARY"}', '"tok_CANARY"', ""]) {
      test(`${name} does not take ${JSON.stringify(body)} for an answer`, async () => {
        vault.answerNext(200, body);
        await assert.rejects(call(client), (error) => {
          assert.equal(error.constructor, SecretsProxyError);
          assert.equal(error.code, "invalid_answer");
          assert.equal(error.status, 200);
          assert.equal(error.cause, undefined);
          assert.ok(!error.stack.includes("CANARY"));
          return true;
        });
      });
    }
  }
});

describe("connection", () => {
  test("a redirect is not followed", async () => {
    let reached = 0;
    const elsewhere = createServer((_, response) => {
      reached += 1;
      response.end("{}");
    });
    await new Promise((resolve) => elsewhere.listen(0, "127.0.0.1", resolve));
    const location = `http://127.0.0.1:${elsewhere.address().port}/v1/sessions`;
    try {
      for (const status of [301, 302, 303, 307, 308]) {
        vault.answerNext(status, "", { location });
        const creation = client.createSession({ secrets: { OPENAI_API_KEY: "value-here" } });
        await assert.rejects(creation, { name: "SecretsProxyError", status });
      }
      assert.equal(reached, 0);
    } finally {
      elsewhere.closeAllConnections();
      elsewhere.close();
    }
  });

  test("a server that is not there", async () => {
    const gone = await FakeVault.start();
    await gone.stop();
    const unreachable = new SecretsProxyClient({ baseUrl: gone.baseUrl, apiKey: API_KEY });
    await assert.rejects(unreachable.listSessions(), (error) => {
      assert.ok(error instanceof ConnectionError);
      assert.equal(error.status, 0);
      assert.equal(error.code, "connection_failed");
      assert.match(error.message, /ECONNREFUSED/);
      return true;
    });
  });

  test("a server that says nothing", async () => {
    const { baseUrl } = vault;
    const impatient = new SecretsProxyClient({ baseUrl, apiKey: API_KEY, timeoutMs: 50 });
    vault.hangNext();
    await assert.rejects(impatient.listSessions(), (error) => {
      assert.ok(error instanceof ConnectionError);
      assert.equal(error.code, "timeout");
      assert.match(error.message, /50 ms/);
      return true;
    });
  });

  test("an answer that breaks off", async () => {
    vault.cutNext();
    await assert.rejects(client.listSessions(), ConnectionError);
  });
});
