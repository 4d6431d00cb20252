import { asETLError, ETLError } from "./errors.js";
import type { Transport } from "./transport.js";
import type { Refresh } from "./types.js";
import { backOff, wait } from "./wait.js";

export interface Following {
  signal: AbortSignal;
  /** Milliseconds between two looks. */
  intervalMs: number;
  onProgress(refresh: Refresh): void;
  /** A look failed for a passing reason. The next look follows. */
  onTrouble(error: ETLError): void;
}

/**
 * Asks how far the refresh is until it is over, and resolves with its final state. Rejects with an ETLError if the API does not
 * tell (a refused token, an unknown refresh). If the signal is aborted, it resolves with the last known state.
 */
export async function follow(transport: Transport, refresh: Refresh, following: Following): Promise<Refresh> {
  const { signal, intervalMs, onProgress, onTrouble } = following;
  let told = refresh;
  let failures = 0;
  let pause = intervalMs;
  while (told.status === "running") {
    await wait(pause, signal);
    if (signal.aborted) return told;
    try {
      // Only the answer to the launch knows this, so it is kept.
      told = { ...(await transport.progress(told, signal)), already_running: refresh.already_running };
      if (signal.aborted) return told;
      failures = 0;
      pause = intervalMs;
      onProgress(told);
    } catch (thrown) {
      if (signal.aborted) return told;
      const error = asETLError(thrown);
      if (!error.passes) throw error;
      failures += 1;
      pause = backOff(failures, intervalMs, error.retryAfter);
      onTrouble(error);
    }
  }
  return told;
}

/** Why a finished refresh failed. Null if it did not fail. */
export function failure(refresh: Refresh): ETLError | null {
  if (refresh.status !== "failed") return null;
  const reasons = Object.values(refresh.runs)
    .filter(({ state }) => state === "failed" || state === "canceled")
    .map(({ table, state, message }) => `${table}: ${state === "canceled" ? "canceled" : (message ?? "failed")}`);
  return new ETLError(reasons.join("\n"), 0, null, { refresh });
}
