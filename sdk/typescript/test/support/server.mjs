// Starts the server's binary for the live tests and stops it again.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const START_LIMIT_MS = 30_000;
const STOP_LIMIT_MS = 15_000;

/** Starts `serve --dev` on free ports with a state directory of its own. */
export async function startServer(binary, extraArguments = []) {
  const stateDir = await mkdtemp(join(tmpdir(), "oshu-vault-sdk-"));
  const any = "127.0.0.1:0";
  const listeners = ["--listen", any, "--tls-listen", any, "--admin-listen", any];
  const child = spawn(
    binary,
    ["serve", "--dev", ...listeners, "--state-dir", stateDir, ...extraArguments],
    { env: withoutSettings(process.env), stdio: ["ignore", "pipe", "pipe"] },
  );
  const exited = new Promise((resolve) => {
    child.once("error", resolve);
    child.once("exit", resolve);
  });
  let log = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (log = (log + text).slice(-4000)));

  const stop = async () => {
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_LIMIT_MS);
    child.kill("SIGTERM");
    await exited;
    clearTimeout(timer);
    await rm(stateDir, { recursive: true, force: true });
    if (child.signalCode === "SIGKILL") throw new Error("the server did not end after SIGTERM");
  };
  try {
    const { api_key: apiKey, ready } = await firstEvents(child, exited);
    return {
      apiKey,
      baseUrl: `http://${ready.listen}`,
      tlsBaseUrl: `https://${ready.tls_listen}`,
      caFile: ready.ca,
      stateDir,
      stop,
    };
  } catch (error) {
    await stop();
    throw new Error(`${error.message}\n${log}`);
  }
}

function firstEvents(child, exited) {
  const seen = {};
  return new Promise((resolve, reject) => {
    const fail = (what) => reject(new Error(`${what} before the ready event`));
    const timer = setTimeout(fail, START_LIMIT_MS, "the time was up");
    exited.then(() => fail("the server ended"));
    // The reader stays on: audit records follow, and a full pipe would stop the server.
    createInterface({ input: child.stdout }).on("line", (line) => {
      const event = JSON.parse(line);
      if (event.event === "api_key") seen.api_key = event.api_key;
      if (event.event === "ready") {
        clearTimeout(timer);
        if (seen.api_key === undefined) fail("no api_key event came");
        else resolve({ ...seen, ready: event });
      }
    });
  });
}

/** What this machine has set must not configure the server under test. */
function withoutSettings(env) {
  return Object.fromEntries(
    Object.entries(env).filter(
      ([name]) => !/^OSHU_VAULT|^SECRETS_PROXY_|_PROXY$|^XDG_STATE_HOME$/i.test(name),
    ),
  );
}

/** Runs a Node script to its end and answers what it printed. */
export async function runScript(file, args, env) {
  const child = spawn(process.execPath, [file, ...args], {
    env: { ...withoutSettings(process.env), ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"]) {
    child[name].setEncoding("utf8").on("data", (text) => (output[name] += text));
  }
  const [exitCode] = await once(child, "close");
  return { ...output, exitCode };
}
