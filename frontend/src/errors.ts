import type { Failure, Fault, Refresh, ValidationFaults } from "./types.js";

/** Statuses after which the same request may succeed later. */
const PASSING = new Set([429, 502, 503, 504]);

/**
 * What kind of error it is. `answer`: the server refused, and `status` says how. `network`: no answer came. `refresh`: the refresh
 * itself failed, and `refresh` is its end. `abandoned`: nobody watches the refresh any more, and its end is not known.
 */
export type ETLErrorKind = "answer" | "network" | "refresh" | "abandoned";

/**
 * The only error of this package. `status` is the HTTP status of the answer. It is 0 if no answer came, or if the refresh itself
 * failed; then `refresh` is that refresh. `retryAfter` is in seconds, if the server named a time.
 */
export class ETLError extends Error {
  override readonly name = "ETLError";
  readonly refresh: Refresh | null;
  readonly kind: ETLErrorKind;
  /** Why the server refused, with the cause. Null if no answer of Pulso's API came. */
  readonly failure: Failure | null;

  constructor(
    message: string,
    readonly status = 0,
    readonly retryAfter: number | null = null,
    { refresh = null, failure = null, kind, ...options }: ErrorOptions & Partial<Details> = {},
  ) {
    super(message, options);
    this.kind = kind ?? (refresh ? "refresh" : status ? "answer" : "network");
    this.refresh = refresh;
    this.failure = failure;
  }

  /** Whether the token may not do this, so that asking again is of no use. */
  get refused(): boolean {
    return this.status === 401 || this.status === 403;
  }

  /** Whether the same request may succeed later. */
  get passes(): boolean {
    return this.status === 0 || PASSING.has(this.status);
  }
}

type Details = Pick<ETLError, "refresh" | "failure" | "kind">;

/** Why a finished refresh failed. Null if it did not fail. */
export function failure(refresh: Refresh): ETLError | null {
  if (refresh.status !== "failed") return null;
  const reasons = Object.values(refresh.runs)
    .filter(({ state }) => state === "failed" || state === "canceled")
    .map(({ table, state, message }) => `${table}: ${state === "canceled" ? "canceled" : (message ?? "failed")}`);
  return new ETLError(reasons.join("\n"), 0, null, { refresh });
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
