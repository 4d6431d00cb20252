import { asETLError, ETLError } from "./errors.js";
import type { Transport } from "./transport.js";
import type { Refresh } from "./types.js";
import { backOff, wait } from "./wait.js";

export interface Following {
  signal: AbortSignal;
  /** Milliseconds between two looks. */
  intervalMs: number;
  onProgress(refresh: Refresh): void;
  /** A look failed in a way that passes; the next one follows. */
  onTrouble(error: ETLError): void;
}

/**
 * Asks how far the refresh is until it is over, and resolves with its end. Rejects with an ETLError where that can't be learnt
 * (a refused token, a refresh that is not known), and resolves with what was known last where the signal is aborted.
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
      // What the launch said stays said.
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

/** Why a refresh that is over failed; null where it did not. */
export function failure(refresh: Refresh): ETLError | null {
  if (refresh.status !== "failed") return null;
  const reasons = Object.values(refresh.runs)
    .filter(({ state }) => state === "failed" || state === "canceled")
    .map(({ table, state, message }) => `${table}: ${state === "canceled" ? "canceled" : (message ?? "failed")}`);
  return new ETLError(reasons.join("\n"), 0, null, { refresh });
}
