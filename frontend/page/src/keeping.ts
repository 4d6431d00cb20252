/** Where the page keeps its token: for the tab, or on the device where the person says so. */

/** A kept token is forgotten after so many days without a sign-in. */
export const KEPT_DAYS = 30;
const DAY_MS = 86_400_000;

/** Whether the text can be a token: a header must be able to hold it. */
export const isToken = (text: string): boolean => /^[\x21-\x7e]+$/.test(text);

export interface Keeping {
  /** The token of this tab, else the one of this device; null without one. */
  find(): string | null;
  keep(token: string, onDevice: boolean): void;
  forget(): void;
}

/** Keeps the token of the page at `path`: a tenant's page has a token of its own. */
export function keeping(path: string, tab: Storage, device: Storage, now: () => number = Date.now): Keeping {
  const key = `pulso-token${path.replace(/\/$/, "")}`;
  return {
    find: () => tab.getItem(key) ?? kept(device, key, now()),
    keep(token, onDevice) {
      tab.setItem(key, token);
      if (onDevice) device.setItem(key, JSON.stringify({ token, until: now() + KEPT_DAYS * DAY_MS }));
    },
    forget() {
      tab.removeItem(key);
      device.removeItem(key);
    },
  };
}

function kept(device: Storage, key: string, now: number): string | null {
  try {
    const { token, until } = JSON.parse(device.getItem(key) ?? "null") as { token: string; until: number };
    if (typeof token === "string" && now < until) return token;
  } catch {
    // Nothing is kept, or something that this page has not written.
  }
  device.removeItem(key);
  return null;
}
