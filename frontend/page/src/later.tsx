/** Work that the first picture does not need is done later, in short tasks, so that a press is always answered soon. */
import { type ReactElement, useEffect, useState } from "react";
import { LOAD_AGAIN, MISSING } from "./missing";

/** What a module of the page has, once it is there; until then null. A newer version of the page may have replaced its file. */
export function useModule<T extends object>(load: () => Promise<T>): T | "missing" | null {
  const [found, setFound] = useState<T | "missing" | null>(null);
  useEffect(() => {
    load().then(setFound, () => setFound("missing"));
  }, [load]);
  return found;
}

/** Stands where a part of the page will be. */
export function Coming() {
  return <p className="muted">Cargando…</p>;
}

/** Says that a part of the page did not come. */
export function Missing() {
  return (
    <div className="notice" role="alert">
      <p>{MISSING}</p>
      <button type="button" className="button" onClick={() => location.reload()}>
        {LOAD_AGAIN}
      </button>
    </div>
  );
}

/** Shows its children, and later what they have become, one after another: each in a task of its own. */
export function OneByOne({ children }: { children: readonly ReactElement[] }) {
  const [shown, setShown] = useState<readonly ReactElement[]>([]);
  const next = children.findIndex((child, place) => shown[place] !== child);
  useEffect(() => {
    const child = children[next];
    if (!child) return;
    const timer = setTimeout(() => setShown((shown) => [...shown.slice(0, next), child, ...shown.slice(next + 1)]));
    return () => clearTimeout(timer);
  }, [children, next]);
  return <>{shown.slice(0, children.length)}</>;
}
