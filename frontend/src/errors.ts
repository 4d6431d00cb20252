import type { Failure, Fault, Refresh, ValidationFaults } from "./types.js";

/** Statuses after which the same request may go well later. */
const PASSING = new Set([429, 502, 503, 504]);

/**
 * The one error of this package. `status` is the HTTP status of the answer; 0 where no answer came, or where the answers were
 * fine and the refresh itself failed, which then is `refresh`. `retryAfter` is in seconds, where the server named a time.
 */
export class ETLError extends Error {
  override readonly name = "ETLError";
  readonly refresh: Refresh | null;
  /** Why the server refused, with the cause; null where no answer of Pulso's API came. */
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

  /** Whether the same request may go well later. */
  get passes(): boolean {
    return this.status === 0 || PASSING.has(this.status);
  }
}

/** Whatever was thrown, as an ETLError. */
export function asETLError(error: unknown): ETLError {
  if (error instanceof ETLError) return error;
  return new ETLError(error instanceof Error ? error.message : String(error), 0, null, { cause: error });
}

/** The error of an answer that is none of the good ones; `body` is what it holds, parsed where it was JSON. */
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
