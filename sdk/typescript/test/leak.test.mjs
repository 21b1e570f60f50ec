// Neither the API key nor a secret may show in anything that a program prints by accident.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { format, inspect } from "node:util";
import { SecretsProxyClient } from "@oshu/vault-sdk";
import { VERSION } from "../dist/version.js";
import { API_KEY, FakeVault } from "./support/fake-vault.mjs";

const PLAIN = "sk-ant-CANARY-plain";
const LONG = "ghp_CANARY-long";
const ROTATED = "ghp_CANARY-rotated";

/** Everything a program may print of a value. */
function printed(value) {
  return [
    String(value),
    `${value}`,
    format("%s %o %O %j", value, value, value, value),
    inspect(value, { showHidden: true, depth: Infinity, getters: true }),
    JSON.stringify(value),
    JSON.stringify(Object.getOwnPropertyDescriptors(value)),
    value.stack ?? "",
  ].join("\n");
}

function assertClean(value) {
  const text = printed(value);
  for (const hidden of [API_KEY, "CANARY"]) {
    assert.ok(!text.includes(hidden), `shown: ${hidden}`);
  }
}

describe("nothing confidential is printed", () => {
  test("of the client", () => {
    const client = new SecretsProxyClient({ baseUrl: "https://vault.example", apiKey: API_KEY });
    assertClean(client);
    assert.deepEqual(Object.keys(client), ["baseUrl"]);
  });

  test("of an error, even if the server repeats what it was sent", async () => {
    const vault = await FakeVault.start();
    const client = new SecretsProxyClient({ baseUrl: vault.baseUrl, apiKey: API_KEY });
    const request = { secrets: { ANTHROPIC_API_KEY: PLAIN, GITHUB_TOKEN: { value: LONG } } };
    const patch = { secrets: { GITHUB_TOKEN: { value: LONG }, ANTHROPIC_API_KEY: ROTATED } };
    try {
      for (const [call, values] of [
        [() => client.createSession(request), [PLAIN, LONG]],
        [() => client.updateSession("sess_1", patch), [ROTATED, LONG]],
        [() => client.getSession("sess_1"), []],
      ]) {
        for (const status of [400, 401, 409, 422, 429, 500]) {
          const echo = [API_KEY, ...values].map((value) => `<${value}${value}>`).join();
          const entry = { field: echo, code: echo, message: echo };
          const body = { code: echo, title: echo, detail: echo, session_id: echo, errors: [entry] };
          vault.answerNext(status, body, { "x-request-id": echo });
          await assert.rejects(call, (error) => {
            assertClean(error);
            assert.match(error.message, /\[redacted\]/);
            return true;
          });
        }
      }
    } finally {
      await vault.stop();
    }
  });

  test("of the error of a fetch that tells everything", async () => {
    const fetch = async (url, init) => {
      throw Object.assign(new Error(`failed: ${JSON.stringify(init)}`), { config: init });
    };
    const client = new SecretsProxyClient({ baseUrl: "https://v.example", apiKey: API_KEY, fetch });
    await assert.rejects(client.createSession({ secrets: { OPENAI_API_KEY: PLAIN } }), (error) => {
      assertClean(error);
      return true;
    });
  });
});

describe("the package", () => {
  const read = async (name) => readFile(new URL(`../${name}`, import.meta.url), "utf8");

  test("has no dependency at run time and one version", async () => {
    const manifest = JSON.parse(await read("package.json"));
    assert.equal(manifest.dependencies, undefined);
    assert.equal(manifest.version, VERSION);
  });

  test("locks versions by checksum, not by the address of a registry", async () => {
    const lock = await read("package-lock.json");
    assert.ok(!lock.includes('"resolved"'));
    assert.ok(!/https?:/.test(lock));
  });
});
