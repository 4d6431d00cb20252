import type { Failure, Fault, Refresh, ValidationFaults } from "./types.js";

/** Statuses after which the same request may succeed later. */
const PASSING = new Set([429, 502, 503, 504]);

/**
 * The only error of this package. `status` is the HTTP status of the answer. It is 0 if no answer came, or if the refresh itself
 * failed; then `refresh` is that refresh. `retryAfter` is in seconds, if the server named a time.
 */
export class ETLError extends Error {
  override readonly name = "ETLError";
  readonly refresh: Refresh | null;
  /** Why the server refused, with the cause. Null if no answer of Pulso's API came. */
  readonly failure: Failure | null;

  constructor(
    message: string,
    readonly status = 0,
    readonly retryAfter: number | null = null,
    { refresh = null, failure = null, ...options }: ErrorOptions & Partial<Pick<ETLError, "refresh" | "failure">> = {},
  ) {
    super(message, options);
    this.refresh = refresh;
    this.failure = failure;
  }

  /** Whether the same request may succeed later. */
  get passes(): boolean {
    return this.status === 0 || PASSING.has(this.status);
  }
}

/** Turns anything that was thrown into an ETLError. */
export function asETLError(error: unknown): ETLError {
  if (error instanceof ETLError) return error;
  return new ETLError(error instanceof Error ? error.message : String(error), 0, null, { cause: error });
}

/** The error for an answer with a status of failure. `body` is the answer's content, parsed if it is JSON. */
export function refusal(response: Response, body: unknown): ETLError {
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new ETLError(
    reason(body) ?? `HTTP ${response.status}`,
    response.status,
    Number.isNaN(seconds) ? null : seconds,
    { failure: (body as Partial<Fault> | null | undefined)?.failure ?? null },
  );
}

function reason(body: unknown): string | null {
  const detail = (body as Partial<Fault | ValidationFaults> | null | undefined)?.detail;
  if (typeof detail === "string") return detail;
  if (!Array.isArray(detail)) return null;
  return detail.map(({ loc, msg }) => `${loc.join(".")}: ${msg}`).join("; ");
}
