/**
 * What a call can end in.
 *
 * Texts come from the server's problem document (RFC 9457) after every value that this call sent in
 * confidence has been taken out. An answer that is not such a document is never quoted.
 */

/** One refused field of a request. */
export interface FieldError {
  /** Path of the field, for example `secrets.GITHUB_TOKEN.hosts`. */
  field: string;
  /** Stable name of the reason. */
  code: string;
  /** The reason in words. */
  message: string;
}

/** What an error knows beside its message. */
export interface ErrorDetails {
  /** Status of the answer; 0 when there was none. */
  status: number;
  /** Stable name of the reason. */
  code: string;
  /** One entry for each refused field. */
  errors?: readonly FieldError[];
  /** The server's name for the request, for its operator. */
  requestId?: string | undefined;
}

/** Base of everything a call throws, apart from the `TypeError` of a wrong argument. */
export class SecretsProxyError extends Error {
  override readonly name: string = "SecretsProxyError";
  /** Status of the answer; 0 when there was none. */
  readonly status: number;
  /** Stable name of the reason, such as `secret_unscoped`. */
  readonly code: string;
  /** One entry for each refused field; empty where no field is at fault. */
  readonly errors: readonly FieldError[];
  /** The server's name for the request, where it gave one. */
  readonly requestId?: string;

  constructor(message: string, details: ErrorDetails) {
    super(message);
    this.status = details.status;
    this.code = details.code;
    this.errors = details.errors ?? [];
    if (details.requestId !== undefined) {
      this.requestId = details.requestId;
    }
  }
}

/** The API key is missing, wrong or not allowed to do this (401, 403). */
export class AuthenticationError extends SecretsProxyError {
  override readonly name = "AuthenticationError";
}

/** The request is malformed (400) or has bad fields (422); `errors` names each. */
export class ValidationError extends SecretsProxyError {
  override readonly name = "ValidationError";
}

/** The session does not exist, has ended or belongs to another tenant (404). */
export class NotFoundError extends SecretsProxyError {
  override readonly name = "NotFoundError";
}

/** The call contradicts what is there (409). */
export class ConflictError extends SecretsProxyError {
  override readonly name = "ConflictError";
  /** The session that an earlier call with the same idempotency key made. */
  readonly sessionId?: string;

  constructor(message: string, details: ErrorDetails & { sessionId?: string | undefined }) {
    super(message, details);
    if (details.sessionId !== undefined) {
      this.sessionId = details.sessionId;
    }
  }
}

/** Too many calls (429). */
export class RateLimitError extends SecretsProxyError {
  override readonly name = "RateLimitError";
  /** When to try again, in seconds from now, where the server said so. */
  readonly retryAfterSeconds?: number;

  constructor(message: string, details: ErrorDetails & { retryAfterSeconds?: number | undefined }) {
    super(message, details);
    if (details.retryAfterSeconds !== undefined) {
      this.retryAfterSeconds = details.retryAfterSeconds;
    }
  }
}

/** The server failed (5xx). */
export class ServerError extends SecretsProxyError {
  override readonly name = "ServerError";
}

/** No complete answer came: unreachable, cut off (`connection_failed`) or too slow (`timeout`). */
export class ConnectionError extends SecretsProxyError {
  override readonly name = "ConnectionError";
}

/** What of an answer an error is made from. */
export interface FailedAnswer {
  status: number;
  text: string;
  header(name: string): string | null;
}

/** Turns a refused call into its error; `redact` is applied to every text the server chose. */
export function errorFromAnswer(
  answer: FailedAnswer,
  redact: (text: string) => string,
): SecretsProxyError {
  const problem = parseProblem(answer.text);
  const text = (value: unknown): string | undefined =>
    typeof value === "string" && value !== "" ? redact(value) : undefined;

  const { status } = answer;
  const code = text(problem["code"]) ?? `http_${status}`;
  const errors = fieldErrors(problem["errors"], text);
  const details = {
    status,
    code,
    errors,
    requestId: text(answer.header("x-request-id")) ?? text(problem["request_id"]),
  };
  const summary = text(problem["detail"]) ?? text(problem["title"]) ?? "the request was refused";
  const fields = errors.map((each) => `; ${each.field}: ${each.message}`).join("");
  const message = `${summary} (status ${status}, ${code})${fields}`;

  if (status === 401 || status === 403) return new AuthenticationError(message, details);
  if (status === 400 || status === 422) return new ValidationError(message, details);
  if (status === 404) return new NotFoundError(message, details);
  if (status === 409) {
    return new ConflictError(message, { ...details, sessionId: text(problem["session_id"]) });
  }
  if (status === 429) {
    const retryAfterSeconds = retryAfter(answer.header("retry-after"), Date.now());
    return new RateLimitError(message, { ...details, retryAfterSeconds });
  }
  if (status >= 500) return new ServerError(message, details);
  return new SecretsProxyError(message, details);
}

function parseProblem(body: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(body);
    return isObject(value) ? value : {};
  } catch {
    // The parser's own message quotes the body, so it must not travel on.
    return {};
  }
}

function fieldErrors(
  value: unknown,
  text: (value: unknown) => string | undefined,
): readonly FieldError[] {
  if (!Array.isArray(value)) return [];
  return value.filter(isObject).map((entry) => ({
    field: text(entry["field"]) ?? "",
    code: text(entry["code"]) ?? "invalid",
    message: text(entry["message"]) ?? "not valid",
  }));
}

/** Reads `Retry-After` in either form (RFC 9110 section 10.2.3). */
function retryAfter(value: string | null, nowMs: number): number | undefined {
  if (value === null) return undefined;
  if (/^\d{1,9}$/.test(value.trim())) return Number(value);
  const atMs = Date.parse(value);
  return Number.isNaN(atMs) ? undefined : Math.max(0, Math.ceil((atMs - nowMs) / 1000));
}

/** Tells a JSON object from every other value. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
