// The stand-in for a hosted sandbox keeps what it promises; else the live tests show nothing.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Sandbox } from "./seed/sandbox-stub.mjs";

test("a command sees the given variables, PATH and HOME only", async () => {
  process.env.SANDBOX_STUB_CANARY = "of the parent";
  const sandbox = await Sandbox.create("any", { envs: { GIVEN: "a b" } });
  const { stdout, exitCode } = await sandbox.commands.run(
    `'${process.execPath}' -p 'JSON.stringify(process.env)'`,
  );
  assert.equal(exitCode, 0);
  // These three are set by shells themselves.
  const { PWD, SHLVL, _, OLDPWD, ...seen } = JSON.parse(stdout);
  assert.deepEqual(seen, { GIVEN: "a b", PATH: process.env.PATH, HOME: process.env.HOME });
});

test("a command's output and exit code come back", async () => {
  const sandbox = await Sandbox.create("any");
  const result = await sandbox.commands.run("echo out; echo err >&2; exit 3");
  assert.deepEqual(result, { stdout: "out\n", stderr: "err\n", exitCode: 3 });
});

test("a command that takes too long is ended, with what it started", async () => {
  const sandbox = await Sandbox.create("any");
  const run = sandbox.commands.run("tail -f /dev/null | cat", { timeoutMs: 50 });
  await assert.rejects(run, /longer than 50 ms/);
});

test("killing ends what runs and refuses what comes", async () => {
  const sandbox = await Sandbox.create("any");
  const run = sandbox.commands.run("tail -f /dev/null");
  await sandbox.kill();
  await assert.rejects(run, /ended by SIGKILL/);
  await assert.rejects(sandbox.commands.run("true"), /was killed/);
});
