/**
 * The shapes of the management API, under their wire names.
 *
 * Requests take read-only lists so that constants can be passed; answers may carry fields that this
 * version does not know, and those are kept as they came.
 */

/** Settings of a `SecretsProxyClient`. */
export interface ClientOptions {
  /** Where the management API answers, `http:` or `https:`; a trailing slash makes no difference. */
  baseUrl: string;
  /** The tenant's API key. It is kept private and never printed. */
  apiKey: string;
  /** Used in place of the global `fetch`, for example to trust a private CA. */
  fetch?: typeof globalThis.fetch;
  /** How long one call may take, answer included, in milliseconds. Default 30 000. */
  timeoutMs?: number;
}

/** Where in a request a sealed token is swapped for its secret. */
export type Place = "header" | `header:${string}` | "query" | "path" | "body";

/** One secret with its own settings. */
export interface SecretSpec {
  /** The real value, 8 bytes to 8 KiB. */
  value: string;
  /** The only hosts that may receive it; wins over the session's `secret_hosts`. */
  hosts?: readonly string[];
  /** Places where it is swapped; default: those of the session. */
  inject?: readonly Place[];
  /** Put before the sealed token, for programs that check how a key begins. */
  prefix?: string;
}

/** An OAuth token endpoint whose tokens stay at the server: the workload gets sealed ones. */
export interface CaptureEndpoint {
  /** The endpoint's URL, `https:` and exact. */
  url: string;
  /** The only hosts that its tokens may go to; default: the endpoint's own. */
  hosts?: readonly string[];
}

/** What `createSession` takes. */
export interface CreateSessionRequest {
  /** Secrets by name: the value alone, or the value with its own settings. */
  secrets: Readonly<Record<string, string | SecretSpec>>;
  /** Hosts that may receive every secret which names none of its own. */
  secret_hosts?: readonly string[];
  /** Hosts the workload may reach; absent or null means any public host, an empty list none. */
  allowed_egress?: readonly string[] | null;
  /** Places where secrets are swapped; default: headers. */
  inject?: readonly Place[];
  /** Lifetime since the last accepted request, in seconds. */
  ttl_seconds?: number;
  /** Lifetime since creation, in seconds, whatever the use. */
  max_lifetime_seconds?: number;
  /** Hosts whose TLS is passed on unread; none of them may be in the scope of a secret. */
  passthrough_hosts?: readonly string[];
  /** Swap in cleartext HTTP too. */
  allow_plaintext?: boolean;
  /** Replace secrets in answers by their sealed tokens; the default is true. */
  scrub_responses?: boolean;
  /** Token endpoints whose tokens stay at the server, beside those that it knows itself. */
  capture?: readonly (string | CaptureEndpoint)[] | null;
  /** Free labels of the caller; never put a secret here, they are shown when listed. */
  metadata?: Readonly<Record<string, string>>;
}

/** Options of `createSession` beside the request itself. */
export interface CreateSessionOptions {
  /** Makes a repeat of the call end in a `ConflictError` that names the first session. */
  idempotencyKey?: string;
}

/** The answer to a creation: the only time the credential is shown. */
export interface CreatedSession {
  /** Names the session, and is the user name of the proxy credential. */
  session_id: string;
  /** The password of the proxy credential; it cannot be asked for again. */
  token: string;
  /** What the workload gets in place of each secret, by name. */
  sealed_secrets: Record<string, string>;
  /** The proxy's address with the credential in it; TLS where the server has it. */
  proxy_url: string;
  /** The same without TLS, where the server offers it. */
  proxy_url_plain?: string;
  /** RFC 3339. */
  created_at: string;
  /** RFC 3339. */
  expires_at: string;
  /** What the server accepted but advises against. */
  warnings: string[];
}

/** A secret as the API shows it again: never its value. */
export interface SessionSecret {
  /** Its name. */
  name: string;
  /** The hosts that may receive it; null where no host is named. */
  hosts: string[] | null;
  /** The places where it is swapped; null for those of the session. */
  inject: Place[] | null;
}

/** Counts since the session began, by name. */
export type SessionCounters = Record<string, number>;

/** A session as the API shows it: no secret, no credential, no sealed token. */
export interface Session {
  /** Names the session. */
  session_id: string;
  /** RFC 3339. */
  created_at: string;
  /** RFC 3339. */
  expires_at: string;
  /** Lifetime since the last accepted request, in seconds. */
  ttl_seconds: number;
  /** Lifetime since creation, in seconds. */
  max_lifetime_seconds: number;
  /** The secrets, without their values. */
  secrets: SessionSecret[];
  /** Hosts that may receive every secret which names none of its own; null where not given. */
  secret_hosts: string[] | null;
  /** Hosts the workload may reach; null means any public host. */
  allowed_egress: string[] | null;
  /** Places where secrets are swapped. */
  inject: Place[];
  /** Hosts whose TLS is passed on unread. */
  passthrough_hosts: string[];
  /** Whether secrets are swapped in cleartext HTTP too. */
  allow_plaintext: boolean;
  /** Whether secrets in answers are replaced by their sealed tokens. */
  scrub_responses: boolean;
  /** Token endpoints whose tokens stay at the server, beside those that it knows itself. */
  capture: CaptureEndpoint[];
  /** The tokens that stayed there: what each is, and which endpoint gave it. */
  captured: string[];
  /** Labels of the caller. */
  metadata: Record<string, string>;
  /** Counts since the session began. */
  counters: SessionCounters;
  /** Grows with each change. */
  version: number;
}

/** The answer to a change. */
export interface UpdatedSession extends Session {
  /** Sealed tokens of names that the change added; the others keep theirs. */
  sealed_secrets?: Record<string, string>;
  /** What the server accepted but advises against. */
  warnings: string[];
}

/** Which part of the list to answer. */
export interface ListSessionsOptions {
  /** At most so many sessions. Default 50, at most 200. */
  limit?: number;
  /** The `next_cursor` of the page before. */
  cursor?: string;
}

/** One page of the list. */
export interface SessionPage {
  /** The sessions of this page. */
  sessions: Session[];
  /** Asks for the next page; null on the last one. */
  next_cursor: string | null;
}

/** A change to one secret: what is absent stays, null goes back to the default. */
export interface SecretPatch {
  /** A new value; the sealed token stays the same. Needed for a name the session does not have. */
  value?: string;
  /** The only hosts that may receive it. */
  hosts?: readonly string[] | null;
  /** Places where it is swapped. */
  inject?: readonly Place[] | null;
  /** Put before the sealed token. */
  prefix?: string | null;
}

/**
 * A change to a session, as a JSON merge patch (RFC 7396): what is absent stays, null removes,
 * lists are replaced whole.
 */
export interface SessionPatch {
  /** Secrets to add, rotate or, with null, remove. */
  secrets?: Readonly<Record<string, string | SecretPatch | null>>;
  /** Hosts that may receive every secret which names none of its own. */
  secret_hosts?: readonly string[] | null;
  /** Hosts the workload may reach; null means any public host. */
  allowed_egress?: readonly string[] | null;
  /** Places where secrets are swapped. */
  inject?: readonly Place[] | null;
  /** Lifetime since the last accepted request, in seconds; starts again now. */
  ttl_seconds?: number | null;
  /** Lifetime since creation, in seconds. */
  max_lifetime_seconds?: number | null;
  /** Hosts whose TLS is passed on unread. */
  passthrough_hosts?: readonly string[] | null;
  /** Swap in cleartext HTTP too. */
  allow_plaintext?: boolean | null;
  /** Replace secrets in answers by their sealed tokens. */
  scrub_responses?: boolean | null;
  /** Token endpoints; the tokens of one that is not named any more open nothing from then on. */
  capture?: readonly (string | CaptureEndpoint)[] | null;
  /** Labels to set or, with null, remove. */
  metadata?: Readonly<Record<string, string | null>> | null;
}
