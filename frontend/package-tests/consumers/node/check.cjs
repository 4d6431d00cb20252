/** What both kinds of module must do: render the hooks on a server, and read an API. Prints OK. */
const { createServer } = require("node:http");
const { createElement } = require("react");
const { renderToString } = require("react-dom/server");

exports.check = async (pulso, graphql, { QueryClient, QueryClientProvider }) => {
  const server = createServer((request, response) => {
    const status = request.url.endsWith("/status") ? 200 : 404;
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(JSON.stringify(status === 200 ? { running: 3, tables: [] } : { detail: "nothing" }));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const client = pulso.createClient({ baseUrl: `http://127.0.0.1:${server.address().port}` });
  const queries = new QueryClient();
  await queries.fetchQuery(pulso.statusQueryOptions(client));
  const Shown = () => {
    const { status } = pulso.useETLStatus();
    const { isRefreshing } = pulso.useETLRefresh();
    return `${status.running} running, ${isRefreshing}`;
  };
  const tree = createElement(
    QueryClientProvider,
    { client: queries },
    createElement(pulso.ETLProvider, { client }, createElement(Shown)),
  );
  const html = renderToString(tree);
  if (html !== "3 running, false") throw new Error(`rendered ${html}`);
  const refused = await client.refreshProgress("p1").catch((error) => error);
  if (!(refused instanceof pulso.ETLError) || refused.status !== 404) throw new Error(`got ${refused}`);
  if (typeof graphql.createGraphQLTransport({ url: "http://127.0.0.1:9" }).launch !== "function")
    throw new Error("no launch");
  queries.clear();
  server.closeAllConnections();
  server.close();
  console.log("OK");
};
