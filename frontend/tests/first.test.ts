import { afterEach, expect, test, vi } from "vitest";
import { askFirst } from "../page/src/first";

const URL_OF_STATUS = "http://api.test/api/v1/etl/status";

afterEach(() => vi.unstubAllGlobals());

test("the first request for it gets the answer that is under way, and the next ones ask anew", async () => {
  const asked = vi.fn(async (..._: Parameters<typeof fetch>) => new Response(`answer ${asked.mock.calls.length}`));
  vi.stubGlobal("fetch", asked);
  const request = askFirst(URL_OF_STATUS, { Authorization: "Bearer t" });
  expect(asked).toHaveBeenCalledExactlyOnceWith(URL_OF_STATUS, { headers: { Authorization: "Bearer t" } });
  const other = await request(new Request("http://api.test/api/v1/etl/config/contact"));
  const first = await request(new Request(URL_OF_STATUS));
  const second = await request(new Request(URL_OF_STATUS));
  expect([await other.text(), await first.text(), await second.text()]).toEqual(["answer 2", "answer 1", "answer 3"]);
});

test("who takes the answer hears that none came", async () => {
  vi.stubGlobal("fetch", async () => {
    throw new TypeError("no network");
  });
  await expect(askFirst(URL_OF_STATUS, {})(new Request(URL_OF_STATUS))).rejects.toThrow("no network");
});
