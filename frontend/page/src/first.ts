/**
 * Asks for a resource at once, before the code that needs it is there. The returned function is a `fetch`: the first request for that
 * resource gets the answer that is under way, and every other request is sent as usual.
 */
export function askFirst(url: string, headers: Record<string, string>): typeof fetch {
  let asked: Promise<Response> | null = fetch(url, { headers });
  // Whoever takes the answer hears of its failure.
  asked.catch(() => undefined);
  return (input, init) => {
    const given = asked;
    if (!given || !(input instanceof Request) || input.url !== url) return fetch(input, init);
    asked = null;
    return given;
  };
}
