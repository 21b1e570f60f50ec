/**
 * Client of the Oshu Vault management API.
 *
 * Trusted code creates a session here and hands only its sealed tokens and proxy credential to a
 * workload. Nothing in this package is meant to run inside the workload itself.
 */
export { SecretsProxyClient } from "./client.js";
export {
  AuthenticationError,
  ConflictError,
  ConnectionError,
  NotFoundError,
  RateLimitError,
  SecretsProxyError,
  ServerError,
  ValidationError,
} from "./errors.js";
export type { ErrorDetails, FieldError } from "./errors.js";
export type {
  CaptureEndpoint,
  ClientOptions,
  CreatedSession,
  CreateSessionOptions,
  CreateSessionRequest,
  ListSessionsOptions,
  Place,
  SecretPatch,
  SecretSpec,
  Session,
  SessionCounters,
  SessionPage,
  SessionPatch,
  SessionSecret,
  UpdatedSession,
} from "./types.js";
