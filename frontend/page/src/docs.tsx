import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { keeping } from "./keeping";
import { TokenForm } from "./TokenForm";

/** As much of an OpenAPI document as is shown. */
interface Media {
  schema?: { $ref?: string; items?: { $ref?: string }; anyOf?: { $ref?: string }[] };
}
interface Operation {
  summary?: string;
  description?: string;
  tags?: string[];
  parameters?: { name: string; in: string; required?: boolean; description?: string; schema?: unknown }[];
  requestBody?: { content?: Record<string, Media> };
  responses: Record<string, { description: string; content?: Record<string, Media> }>;
}
export interface OpenApi {
  info: { title: string; version: string; description?: string };
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, { description?: string; examples?: unknown[] }> };
}

const HERE = new URL(".", document.baseURI);

/** The routes of the API, read from its own document: nothing comes from another host. */
export function Documentation() {
  const kept = keeping(HERE.pathname, sessionStorage, localStorage);
  const [token, setToken] = useState(() => kept.find());
  const [found, setFound] = useState<OpenApi | number | null>(null);
  useEffect(() => {
    const life = new AbortController();
    const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
    fetch(new URL("api/v1/openapi.json", HERE), { headers, signal: life.signal }).then(
      async (answer) => setFound(answer.ok ? ((await answer.json()) as OpenApi) : answer.status),
      () => life.signal.aborted || setFound(0),
    );
    return () => life.abort();
  }, [token]);
  if (found === 401) {
    const signIn = (given: string, onDevice: boolean) => {
      kept.keep(given, onDevice);
      setFound(null);
      setToken(given);
    };
    return <TokenForm refused={token !== null} onToken={signIn} />;
  }
  if (found === null) return <p role="status">Loading…</p>;
  if (typeof found === "number") return <p role="alert">The API does not answer ({found}). Reload the page later.</p>;
  return <Routes document={found} />;
}

function Routes({ document: { info, paths, components } }: { document: OpenApi }) {
  const routes = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ name: `${method.toUpperCase()} ${path}`, operation })),
  );
  return (
    <main className="docs">
      <h1>{info.title}: HTTP API</h1>
      <p>
        {info.description} The document itself is at <code>api/v1/openapi.json</code>; send the token as{" "}
        <code>Authorization: Bearer TOKEN</code>.
      </p>
      {routes.map(({ name, operation }) => (
        <details key={name} className="panel">
          <summary>
            <code>{name}</code>
          </summary>
          <p>{operation.description ?? operation.summary}</p>
          {operation.parameters && operation.parameters.length > 0 && (
            <dl>
              {operation.parameters.map((parameter) => (
                <div key={`${parameter.in} ${parameter.name}`}>
                  <dt>
                    <code>{parameter.name}</code> ({parameter.in}
                    {parameter.required ? ", required" : ""})
                  </dt>
                  <dd>{parameter.description}</dd>
                </div>
              ))}
            </dl>
          )}
          {Object.entries(operation.requestBody?.content ?? {}).map(([media, body]) => (
            <Shape key={media} title={`Body, ${media}`} media={body} components={components} />
          ))}
          {Object.entries(operation.responses).map(([status, { description, content }]) => (
            <div key={status}>
              <h2>
                {status}: {description}
              </h2>
              {Object.entries(content ?? {}).map(([media, body]) => (
                <Shape key={media} title={media} media={body} components={components} />
              ))}
            </div>
          ))}
        </details>
      ))}
    </main>
  );
}

interface ShapeProps {
  title: string;
  media: Media;
  components: OpenApi["components"];
}

function Shape({ title, media: { schema }, components }: ShapeProps) {
  const choices = schema?.anyOf?.map(({ $ref }) => $ref).filter(Boolean) ?? [];
  const name = (schema?.$ref ?? schema?.items?.$ref ?? choices[0])?.split("/").at(-1);
  const shape = name ? components.schemas[name] : undefined;
  const [example] = shape?.examples ?? [];
  return (
    <>
      <p className="muted">
        {title}
        {name && `: ${schema?.items ? "list of " : ""}${name}`}
      </p>
      {example !== undefined && <pre>{JSON.stringify(example, null, 2)}</pre>}
    </>
  );
}

const root = document.getElementById("root");
if (root)
  createRoot(root).render(
    <StrictMode>
      <Documentation />
    </StrictMode>,
  );
