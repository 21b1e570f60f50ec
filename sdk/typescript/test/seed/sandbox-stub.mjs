// Stands in for a hosted sandbox: a command runs in a child process of this machine that gets the
// given variables, PATH and HOME, and nothing else of this process.
import { spawn } from "node:child_process";

export class Sandbox {
  #envs;
  #children = new Set();
  #killed = false;

  constructor(envs) {
    this.#envs = envs;
    this.commands = { run: (command, options) => this.#run(command, options) };
  }

  static async create(_template, { envs = {} } = {}) {
    return new Sandbox({ ...envs });
  }

  async kill() {
    this.#killed = true;
    for (const child of this.#children) killGroup(child);
  }

  #run(command, { timeoutMs = 60_000 } = {}) {
    if (this.#killed) return Promise.reject(new Error("the sandbox was killed"));
    return new Promise((resolve, reject) => {
      const { PATH, HOME } = process.env;
      // A group of its own, so that a limit also ends what the shell started.
      const child = spawn("/bin/sh", ["-c", command], {
        env: { PATH, HOME, ...this.#envs },
        stdio: ["ignore", "pipe", "pipe"],
        detached: true,
      });
      this.#children.add(child);
      let stdout = "";
      let stderr = "";
      let timedOut = false;
      child.stdout.setEncoding("utf8").on("data", (text) => (stdout += text));
      child.stderr.setEncoding("utf8").on("data", (text) => (stderr += text));
      const timer = setTimeout(() => {
        timedOut = true;
        killGroup(child);
      }, timeoutMs);
      child.on("error", reject);
      child.on("close", (code, signal) => {
        clearTimeout(timer);
        this.#children.delete(child);
        if (timedOut) return reject(new Error(`the command took longer than ${timeoutMs} ms`));
        if (signal !== null) return reject(new Error(`the command was ended by ${signal}`));
        resolve({ stdout, stderr, exitCode: code });
      });
    });
  }
}

function killGroup(child) {
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}
