// One message to api.anthropic.com through the proxy of the environment; no CA is named anywhere.
//
//   node call.mjs agent    by https-proxy-agent
//   node call.mjs undici   by undici's own agent
import { once } from "node:events";
import { createRequire } from "node:module";
import { request } from "node:https";

const require = createRequire(new URL("../../fixtures/clients/package.json", import.meta.url));
const { HTTPS_PROXY, ANTHROPIC_API_KEY } = process.env;
const url = "https://api.anthropic.com/v1/messages";
const headers = { "x-api-key": ANTHROPIC_API_KEY, "content-type": "application/json" };
const message = JSON.stringify({ messages: [{ role: "user", content: "say hello" }] });

const calls = {
  async agent() {
    const { HttpsProxyAgent } = await import(require.resolve("https-proxy-agent"));
    const agent = new HttpsProxyAgent(HTTPS_PROXY);
    const [response] = await once(
      request(url, { agent, headers, method: "POST" }).end(message),
      "response",
    );
    return [response.statusCode, response];
  },
  async undici() {
    const undici = require("undici");
    const dispatcher = new undici.EnvHttpProxyAgent();
    const options = { dispatcher, headers, method: "POST", body: message };
    const { statusCode, body } = await undici.request(url, options);
    return [statusCode, body];
  },
};

const [status, body] = await calls[process.argv[2]]();
for await (const chunk of body) process.stdout.write(chunk);
process.exitCode = status === 200 ? 0 : 1;
setImmediate(() => process.exit());
