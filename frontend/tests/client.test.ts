import { describe, expect, it } from "vitest";
import { createClient, ETLError } from "../src";
import { refresh, status } from "./samples";
import { json, testServer } from "./server";

const server = testServer();
const client = (token?: string) => createClient({ baseUrl: `${server.current.url}/`, token });

describe("the client", () => {
  it("launches with its token and gives the answer", async () => {
    server.current.on("POST /api/v1/etl/refresh/dashboard", json(202, refresh({ dashboard_data: "queued" })));
    const told = await client("s3cret").refreshDashboard({ force: true, tables: ["dashboard_data"] });
    expect(told.runs.dashboard_data?.state).toBe("queued");
    const [asked] = server.current.asked;
    expect(asked?.headers.authorization).toBe("Bearer s3cret");
    expect(JSON.parse(asked?.body ?? "")).toEqual({ force: true, tables: ["dashboard_data"], max_concurrent: 2 });
  });

  it("asks for the days and the mode of one table", async () => {
    server.current.on(
      "POST /api/v1/etl/refresh/table/operation_data",
      json(202, refresh({ operation_data: "queued" })),
    );
    await client().refreshTable("operation_data", { force: true, mode: "sliding_window", days: 3 });
    expect(server.current.asked[0]?.path).toBe(
      "/api/v1/etl/refresh/table/operation_data?force=true&mode=sliding_window&days=3",
    );
    expect(server.current.asked[0]?.headers.authorization).toBeUndefined();
  });

  it("tells the role that the token has", async () => {
    server.current.on("GET /api/v1/etl/status", json(200, status(), { "Pulso-Role": "refresh" }));
    const session = await client("t").session();
    expect([session.role, session.status.total_tables]).toEqual(["refresh", 2]);
  });

  it.each([
    [401, { detail: "a token is needed" }, {}, "a token is needed", null, false],
    [
      422,
      { detail: [{ loc: ["body", "tables"], msg: "too short", type: "x" }] },
      {},
      "body.tables: too short",
      null,
      false,
    ],
    [
      429,
      { detail: "ana may launch 5 per 1 minute" },
      { "Retry-After": "42" },
      "ana may launch 5 per 1 minute",
      42,
      true,
    ],
    [
      503,
      { detail: "Dagster's webserver does not answer" },
      { "Retry-After": "5" },
      "Dagster's webserver does not answer",
      5,
      true,
    ],
    [500, "<html>", {}, "HTTP 500", null, false],
  ])("makes an ETLError of a %d", async (code, body, headers, message, retryAfter, passes) => {
    server.current.on("POST /api/v1/etl/refresh/dashboard", json(code, body, headers as Record<string, string>));
    const error = await client()
      .refreshDashboard()
      .catch((error: unknown) => error);
    expect(error).toBeInstanceOf(ETLError);
    expect(error).toMatchObject({ status: code, message, retryAfter, passes });
  });

  it("resolves the health of a deployment of which a part fails", async () => {
    const part = { state: "failing", message: "away", seconds: 0.1 };
    const body = { live: true, ready: false, parts: { dagster: part }, checked_at: "2026-11-25T15:04:00Z" };
    server.current.on("GET /api/v1/etl/health", json(503, body));
    expect((await client().health()).parts.dagster?.message).toBe("away");
  });

  it("gives the key figures as they are written, so that no digit is lost", async () => {
    const figure = {
      figure: "recupero",
      today: { day: "2026-11-25", value: "12345678901234567.89", marks: ["goes_on"] },
    };
    server.current.on("GET /api/v1/etl/figures", json(200, { figures: [figure] }));
    expect((await client().figures()).figures[0]?.today?.value).toBe("12345678901234567.89");
  });

  it("gives the rows of a range as a file, and an ETLError instead of a broken file", async () => {
    const route = "/api/v1/etl/status/table/dashboard_data/rows.csv";
    const fault = { detail: "a download has 366 at most", cause: "request" };
    server.current.on(`GET ${route}`, (response) => void response.end("\ufefffecha_foto\r\n"), json(422, fault));
    const rows = await client("t").tableRows("dashboard_data", "2026-11-24", "2026-11-25");
    expect(server.current.asked[0]?.path).toBe(`${route}?from=2026-11-24&to=2026-11-25`);
    expect([...new Uint8Array(await rows.arrayBuffer())].slice(0, 4)).toEqual([0xef, 0xbb, 0xbf, 0x66]);
    await expect(client().tableRows("dashboard_data", "2020-01-01", "2026-11-25")).rejects.toMatchObject({
      name: "ETLError",
      status: 422,
      message: "a download has 366 at most",
    });
  });

  it("says so where the address is not that of the API", async () => {
    server.current.on("GET /api/v1/etl/status", (response) => void response.end("<!doctype html>"));
    await expect(client().status()).rejects.toMatchObject({ name: "ETLError", status: 0, message: /no JSON/ });
  });

  it("gives an ETLError that passes where nobody answers", async () => {
    const alone = createClient({ baseUrl: "http://127.0.0.1:9" });
    await expect(alone.status()).rejects.toMatchObject({ name: "ETLError", status: 0, passes: true });
  });

  it("gives a request up when its signal says so", async () => {
    server.current.on("GET /api/v1/etl/status", () => {});
    const given = new AbortController();
    const asked = client().status(given.signal);
    setTimeout(() => given.abort(), 30);
    await expect(asked).rejects.toMatchObject({ name: "AbortError" });
    await expect.poll(() => server.current.dropped).toBe(1);
  });
});
