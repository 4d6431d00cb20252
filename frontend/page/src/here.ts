/** Where this page is, and the token that it was given or that it keeps. */
import { isToken, keeping } from "./keeping";

/** The path of the page, which is also the path of the API. Each tenant has its own path and its own token. */
export const HERE = new URL(".", document.baseURI);
export const KEEPING = keeping(HERE.pathname, sessionStorage, localStorage);

/** The token of a link, `#token=…`. This tab keeps it, and the address bar no longer shows it. */
export function takeToken(): string | null {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given || !isToken(given)) return null;
  history.replaceState(history.state, "", location.pathname + location.search);
  KEEPING.keep(given, false);
  return given;
}
