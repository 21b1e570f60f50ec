// Stands in for api.anthropic.com: remembers the key of every request, answers messages as a stream
// of events, as JSON when none was asked for, and everything else with 404.
import { once } from "node:events";
import { createServer } from "node:https";
import { issue } from "./certificates.mjs";

export const HOST = "api.anthropic.com";
export const ANSWER = 'print("Hello, world!")';

export class Anthropic {
  /** What came in, in order: method, path without query, key. */
  requests = [];
  #server;

  static async start() {
    const { ca, cert, key } = issue(HOST);
    const stand = new Anthropic();
    stand.#server = createServer({ cert, key }, (request, response) =>
      stand.#serve(request, response),
    );
    await once(stand.#server.listen(0, "127.0.0.1"), "listening");
    stand.ca = ca;
    stand.address = `127.0.0.1:${stand.#server.address().port}`;
    return stand;
  }

  stop() {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  async #serve(request, response) {
    const { method, url, headers } = request;
    const [path] = url.split("?");
    const key = headers["x-api-key"];
    this.requests.push({ method, path, key });
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    if (method !== "POST" || path !== "/v1/messages") {
      const error = { type: "not_found_error", message: "not found" };
      response.writeHead(404, { "content-type": "application/json" });
      response.end(JSON.stringify({ type: "error", error }));
      return;
    }
    const { stream } = JSON.parse(Buffer.concat(chunks));
    response.setHeader("content-type", stream ? "text/event-stream" : "application/json");
    // The key comes back, as from a careless server.
    const whole = { ...message([{ type: "text", text: ANSWER }]), echo: key };
    response.end(stream ? events() : JSON.stringify(whole));
  }
}

function message(content) {
  return {
    id: "msg_stand_in",
    type: "message",
    role: "assistant",
    model: "stand-in",
    content,
    stop_reason: content.length > 0 ? "end_turn" : null,
    stop_sequence: null,
    usage: { input_tokens: 1, output_tokens: 1 },
  };
}

function events() {
  const delta = { type: "text_delta", text: ANSWER };
  const end = { stop_reason: "end_turn", stop_sequence: null };
  return [
    { type: "message_start", message: message([]) },
    { type: "content_block_start", index: 0, content_block: { type: "text", text: "" } },
    { type: "content_block_delta", index: 0, delta },
    { type: "content_block_stop", index: 0 },
    { type: "message_delta", delta: end, usage: { output_tokens: 1 } },
    { type: "message_stop" },
  ]
    .map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`)
    .join("");
}
