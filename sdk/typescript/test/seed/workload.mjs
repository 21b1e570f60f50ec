// What runs in the sandbox in the live tests: one call to api.anthropic.com through the proxy that
// the environment names, trusting the CA file given as the first argument.
import { readFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import tls from "node:tls";

const { HTTPS_PROXY, ANTHROPIC_API_KEY } = process.env;
const ca = readFileSync(process.argv[2]);
const target = "api.anthropic.com";
const authority = `${target}:443`;

function openTunnel() {
  const { protocol, hostname: host, port, username, password } = new URL(HTTPS_PROXY);
  const credential = Buffer.from(`${username}:${password}`).toString("base64");
  const connect = protocol === "https:" ? tls.connect : net.connect;
  return new Promise((resolve, reject) => {
    http
      .request({
        createConnection: () => connect({ host, port, ca }),
        method: "CONNECT",
        path: authority,
        headers: { host: authority, "proxy-authorization": `Basic ${credential}` },
      })
      .on("connect", ({ statusCode }, socket) => {
        if (statusCode === 200) resolve(socket);
        else reject(new Error(`CONNECT answered ${statusCode}`));
      })
      .on("error", reject)
      .end();
  });
}

function post(socket) {
  const secure = tls.connect({ socket, servername: target, ca });
  return new Promise((resolve, reject) => {
    secure.on("error", reject);
    const request = http.request({
      host: target,
      defaultPort: 443,
      path: "/v1/messages",
      method: "POST",
      headers: { "x-api-key": ANTHROPIC_API_KEY, "content-type": "application/json" },
      createConnection: () => secure,
    });
    request.on("error", reject).on("response", async (response) => {
      let body = "";
      for await (const chunk of response.setEncoding("utf8")) body += chunk;
      resolve({ status: response.statusCode, body });
    });
    request.end('{"messages":[]}');
  });
}

const answer = await post(await openTunnel());
console.log(JSON.stringify({ held: ANTHROPIC_API_KEY, ...answer }));
process.exit(0);
