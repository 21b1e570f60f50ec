import { ConnectionError, SecretsProxyError, errorFromAnswer, isObject } from "./errors.js";
import { redactor } from "./redact.js";
import type {
  ClientOptions,
  CreatedSession,
  CreateSessionOptions,
  CreateSessionRequest,
  ListSessionsOptions,
  Session,
  SessionPage,
  SessionPatch,
  UpdatedSession,
} from "./types.js";
import { VERSION } from "./version.js";

const DEFAULT_TIMEOUT_MS = 30_000;
/** A longer delay overflows the timers of JavaScript and would fire at once. */
const LONGEST_TIMEOUT_MS = 2_147_483_647;
/** What a header value may hold without being refused, and then quoted, by `fetch`. */
const HEADER_SAFE = /^[\x21-\x7e]+$/;
/** No dot and no slash: an id never changes which path is asked for. */
const SESSION_ID = /^[A-Za-z0-9_-]{1,128}$/;

interface Call {
  method: "GET" | "POST" | "PATCH" | "DELETE";
  path: string;
  /** The key is left out where the server needs none. */
  anonymous?: boolean;
  headers?: Record<string, string>;
  body?: string;
  /** Values of this call that no error may repeat. */
  confidential?: readonly string[];
}

interface Answer {
  status: number;
  text: string;
  header(name: string): string | null;
}

/**
 * Manages the sessions of one tenant.
 *
 * It sends each call once, follows no redirect (a redirect would carry secrets to an address nobody
 * configured) and keeps the API key out of everything that can be printed.
 */
export class SecretsProxyClient {
  /** Where the management API answers, without a trailing slash. */
  readonly baseUrl: string;
  readonly #apiKey: string;
  readonly #fetch: typeof globalThis.fetch;
  readonly #timeoutMs: number;

  /** Checks the options; a `TypeError` names the one that is missing or wrong, never its value. */
  constructor(options: ClientOptions) {
    if (!isObject(options)) {
      throw new TypeError("options must be an object with baseUrl and apiKey");
    }
    const { apiKey, fetch = globalThis.fetch, timeoutMs = DEFAULT_TIMEOUT_MS } = options;
    this.baseUrl = parseBaseUrl(options.baseUrl);
    if (typeof apiKey !== "string" || !HEADER_SAFE.test(apiKey)) {
      throw new TypeError("apiKey must be a non-empty string of printable ASCII without spaces");
    }
    if (typeof fetch !== "function") {
      throw new TypeError("fetch must be a function; this runtime has no global one");
    }
    if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > LONGEST_TIMEOUT_MS) {
      throw new TypeError(`timeoutMs must be a whole number from 1 to ${LONGEST_TIMEOUT_MS}`);
    }
    this.#apiKey = apiKey;
    this.#fetch = fetch;
    this.#timeoutMs = timeoutMs;
  }

  /** Creates a session; the answer is the only place where its credential is ever shown. */
  async createSession(
    request: CreateSessionRequest,
    options: CreateSessionOptions = {},
  ): Promise<CreatedSession> {
    const confidential = secretValues(request, "request", false);
    const headers: Record<string, string> = { "content-type": "application/json" };
    const { idempotencyKey } = options;
    if (idempotencyKey !== undefined) {
      if (typeof idempotencyKey !== "string" || !HEADER_SAFE.test(idempotencyKey)) {
        throw new TypeError("idempotencyKey must be printable ASCII without spaces");
      }
      headers["idempotency-key"] = idempotencyKey;
    }
    const answer = await this.#call({
      method: "POST",
      path: "/v1/sessions",
      headers,
      body: JSON.stringify(request),
      confidential,
    });
    return parseObject<CreatedSession>(
      answer,
      (value) =>
        isText(value["session_id"]) && isText(value["token"]) && isObject(value["sealed_secrets"]),
    );
  }

  /** Reads one session. */
  async getSession(id: string): Promise<Session> {
    const answer = await this.#call({ method: "GET", path: sessionPath(id) });
    return parseObject<Session>(answer, (value) => isText(value["session_id"]));
  }

  /** Reads one page of the tenant's sessions. */
  async listSessions(options: ListSessionsOptions = {}): Promise<SessionPage> {
    const query = new URLSearchParams();
    if (options.limit !== undefined) query.set("limit", String(options.limit));
    if (options.cursor !== undefined) query.set("cursor", options.cursor);
    const search = query.toString();
    const path = search === "" ? "/v1/sessions" : `/v1/sessions?${search}`;
    const answer = await this.#call({ method: "GET", path });
    const page = parseObject<SessionPage>(answer, (value) => Array.isArray(value["sessions"]));
    return { ...page, next_cursor: page.next_cursor ?? null };
  }

  /** Changes a session; the next request of the workload already meets the change. */
  async updateSession(id: string, patch: SessionPatch): Promise<UpdatedSession> {
    const confidential = secretValues(patch, "patch", true);
    const answer = await this.#call({
      method: "PATCH",
      path: sessionPath(id),
      headers: { "content-type": "application/merge-patch+json" },
      body: JSON.stringify(patch),
      confidential,
    });
    return parseObject<UpdatedSession>(answer, (value) => isText(value["session_id"]));
  }

  /** Ends a session and cuts its connections. One that is gone already counts as ended. */
  async deleteSession(id: string): Promise<void> {
    await this.#call({ method: "DELETE", path: sessionPath(id) }, 404);
  }

  /** Reads the CA certificate that a workload has to trust, as PEM. Sends no API key. */
  async caPem(): Promise<string> {
    const answer = await this.#call({ method: "GET", path: "/v1/ca.pem", anonymous: true });
    // It goes into a trust store: a login page or an error page must not.
    if (!answer.text.trimStart().startsWith("-----BEGIN CERTIFICATE-----")) {
      throw invalidAnswer(answer.status);
    }
    return answer.text;
  }

  async #call(call: Call, alsoAccepted?: number): Promise<Answer> {
    const answer = await this.#send(call);
    const success = answer.status >= 200 && answer.status < 300;
    if (success || answer.status === alsoAccepted) {
      return answer;
    }
    throw errorFromAnswer(answer, redactor([this.#apiKey, ...(call.confidential ?? [])]));
  }

  async #send(call: Call): Promise<Answer> {
    const headers: Record<string, string> = {
      accept: "application/json",
      "user-agent": `oshu-vault-sdk-typescript/${VERSION}`,
      ...call.headers,
    };
    if (call.anonymous) {
      headers["accept"] = "application/x-pem-file, */*;q=0.1";
    } else {
      headers["authorization"] = `Bearer ${this.#apiKey}`;
    }
    const signal = AbortSignal.timeout(this.#timeoutMs);
    // Taken out of the field first: a global `fetch` must not be called as a method of the client.
    const fetch = this.#fetch;
    try {
      const response = await fetch(this.baseUrl + call.path, {
        method: call.method,
        headers,
        redirect: "manual",
        signal,
        ...(call.body === undefined ? {} : { body: call.body }),
      });
      const text = await response.text();
      return { status: response.status, text, header: (name) => response.headers.get(name) };
    } catch (error) {
      throw connectionError(error, signal.aborted, this.#timeoutMs);
    }
  }
}

function parseBaseUrl(value: unknown): string {
  let url: URL;
  try {
    url = new URL(typeof value === "string" ? value : "");
  } catch {
    throw new TypeError("baseUrl must be an absolute http: or https: URL");
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw new TypeError("baseUrl must be an absolute http: or https: URL");
  }
  if (url.username !== "" || url.password !== "") {
    throw new TypeError("baseUrl must not hold a user name or password");
  }
  if (url.search !== "" || url.hash !== "") {
    throw new TypeError("baseUrl must not have a query or a fragment");
  }
  return url.origin + url.pathname.replace(/\/+$/, "");
}

function sessionPath(id: unknown): string {
  if (typeof id !== "string" || !SESSION_ID.test(id)) {
    throw new TypeError("id must be the session_id of a session");
  }
  return `/v1/sessions/${id}`;
}

/**
 * Collects the secret values of a request, and refuses one that is not there.
 *
 * `JSON.stringify` leaves an undefined value out without a word, so that a forgotten environment
 * variable would make a session without its secret.
 */
function secretValues(request: unknown, argument: string, patch: boolean): string[] {
  if (!isObject(request)) {
    throw new TypeError(`${argument} must be an object`);
  }
  const { secrets } = request;
  if (secrets === undefined && patch) {
    return [];
  }
  if (!isObject(secrets)) {
    throw new TypeError("secrets must be an object of names and values");
  }
  return Object.entries(secrets).flatMap(([name, secret]) => {
    if (secret === null && patch) return [];
    if (typeof secret === "string") return [secret];
    if (isObject(secret)) {
      if (typeof secret["value"] === "string") return [secret["value"]];
      if (secret["value"] === undefined && patch && !("value" in secret)) return [];
    }
    throw new TypeError(`secrets.${name} must be a string or an object with a string value`);
  });
}

function parseObject<T>(answer: Answer, check: (value: Record<string, unknown>) => boolean): T {
  let value: unknown;
  try {
    value = JSON.parse(answer.text);
  } catch {
    // The parser's own message quotes the body, which may hold a credential.
    throw invalidAnswer(answer.status);
  }
  if (!isObject(value) || !check(value)) {
    throw invalidAnswer(answer.status);
  }
  return value as T;
}

function isText(value: unknown): boolean {
  return typeof value === "string" && value !== "";
}

function invalidAnswer(status: number): SecretsProxyError {
  return new SecretsProxyError("the answer is not one of this API; check baseUrl", {
    status,
    code: "invalid_answer",
  });
}

/**
 * Says why no answer came, by the error's code alone.
 *
 * The error itself is not attached: what a `fetch` given by the caller puts into it is unknown, and
 * some libraries attach the whole request.
 */
function connectionError(error: unknown, timedOut: boolean, timeoutMs: number): ConnectionError {
  if (timedOut) {
    return new ConnectionError(`no complete answer within ${timeoutMs} ms`, {
      status: 0,
      code: "timeout",
    });
  }
  const reason = systemCode(error);
  return new ConnectionError(`the server could not be reached${reason ? ` (${reason})` : ""}`, {
    status: 0,
    code: "connection_failed",
  });
}

/** Finds a code such as `ECONNREFUSED` in an error or in its causes. */
function systemCode(error: unknown): string | undefined {
  let current = error;
  for (let depth = 0; depth < 4 && isObject(current); depth += 1) {
    const code = current["code"];
    if (typeof code === "string" && /^[A-Z][A-Z0-9_]{2,63}$/.test(code)) return code;
    current = current["cause"];
  }
  return undefined;
}
