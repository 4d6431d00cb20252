/** Resolves after so many milliseconds, or as soon as the signal is aborted. */
export function wait(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
}

/** Milliseconds before the next try. It begins with `first` and doubles with each failure, up to 30 s. If the server named a time, it is that time. */
export function backOff(failures: number, first: number, retryAfter: number | null): number {
  return retryAfter === null ? Math.min(first * 2 ** Math.max(0, failures - 1), 30_000) : retryAfter * 1000;
}

/** Resolves as soon as the page is shown, or the signal is aborted. Where there is no page, it is always shown. */
export function shown(signal: AbortSignal): Promise<void> {
  const page = globalThis.document;
  return new Promise((resolve) => {
    const look = () => {
      if (page?.visibilityState === "hidden" && !signal.aborted) return;
      page?.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    page?.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });
}
