/**
 * Packs the package and uses it as an application would.
 *
 *     node package-tests/run.mjs          packs, installs, and uses it with `require`, `import` and TypeScript
 *     node package-tests/run.mjs --all    packs a clean clone, and also builds Next and Vite, each on React 18 and 19
 */
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const frontend = join(here, "..");
const REACT = {
  18: { react: "18.3.1", "react-dom": "18.3.1", "@types/react": "18.3.31", "@types/react-dom": "18.3.7" },
  19: { react: "^19.3.1", "react-dom": "^19.3.1", "@types/react": "^19.3.0", "@types/react-dom": "^19.3.0" },
};
/** The oldest TanStack Query that the package accepts goes with the oldest React. */
const QUERY = { 18: { "@tanstack/react-query": "5.90.2" }, 19: { "@tanstack/react-query": "^5.108.4" } };
const NEXT = { 18: { next: "14.2.35" }, 19: { next: "^16.4.6" } };
const VITE = { vite: "^8.3.8", "@vitejs/plugin-react": "^6.3.0" };
const TYPESCRIPT = { typescript: "^5.9.3" };

const work = mkdtempSync(join(tmpdir(), "pulso-package-"));
const all = process.argv.includes("--all");
const began = Date.now();

function run(cwd, command, ...args) {
  try {
    const env = { ...process.env, NEXT_TELEMETRY_DISABLED: "1" };
    return execFileSync(command, args, { cwd, env, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    throw new Error(`${command} ${args.join(" ")} in ${cwd}\n${error.stdout}\n${error.stderr}`);
  }
}

function expect(text, wanted) {
  if (!text.includes(wanted)) throw new Error(`expected ${wanted}, got:\n${text}`);
}

async function step(name, how) {
  const since = Date.now();
  await how();
  console.log(`ok  ${name} (${((Date.now() - since) / 1000).toFixed(1)} s)`);
}

/** The file that `npm pack` makes: of a clean clone, or of this checkout. */
function pack() {
  let from = frontend;
  if (all) {
    const checkout = run(frontend, "git", "rev-parse", "--show-toplevel").trim();
    run(work, "git", "clone", "--quiet", "--depth", "1", `file://${checkout}`, "clone");
    from = join(work, "clone", "frontend");
  }
  run(from, "npm", "pack", "--pack-destination", work);
  const [file] = readdirSync(work).filter((name) => name.endsWith(".tgz"));
  return join(work, file);
}

/** A folder with the consumer's files, in which the package and these dependencies are installed. */
function install(name, consumer, tarball, dependencies) {
  const folder = join(work, name);
  mkdirSync(folder);
  cpSync(join(here, "consumers", consumer), folder, { recursive: true });
  const packages = { "pulso-etl": `file:${tarball}`, ...dependencies };
  writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, dependencies: packages }));
  run(folder, "npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--strict-peer-deps");
  return folder;
}

function useInNode(folder) {
  expect(run(folder, "node", "required.cjs"), "OK");
  expect(run(folder, "node", "imported.mjs"), "OK");
}

/** Types of ES modules and of CommonJS; without skipLibCheck, so that the package's own types are checked. */
function checkTypes(folder) {
  cpSync(join(here, "consumers", "types"), folder, { recursive: true });
  const others = [
    ["node16", "node16"],
    ["esnext", "bundler"],
  ];
  for (const [module, resolution] of [["nodenext", "nodenext"], ...(all ? others : [])])
    run(folder, "npx", "tsc", "--project", ".", "--module", module, "--moduleResolution", resolution);
}

function buildVite(folder) {
  run(folder, "npx", "vite", "build");
  run(folder, "npx", "vite", "build", "--ssr", "server.tsx", "--outDir", "server");
  const [entry] = readdirSync(join(folder, "server")).filter((name) => name.startsWith("server."));
  expect(run(folder, "node", join("server", entry)), "loading");
}

/** Builds the application and asks it for its page, whose server component reads an API. */
async function buildNext(folder, port) {
  const api = createServer((request, response) => {
    response.writeHead(200, { "Content-Type": "application/json" });
    response.end(JSON.stringify({ running: request.url === "/api/v1/etl/status" ? 3 : 0, tables: [] }));
  });
  await new Promise((resolve) => api.listen(0, "127.0.0.1", resolve));
  process.env.PULSO_URL = `http://127.0.0.1:${api.address().port}`;
  run(folder, "npx", "next", "build");
  const server = spawn("node", ["node_modules/next/dist/bin/next", "start", "-p", `${port}`, "-H", "127.0.0.1"], {
    cwd: folder,
    stdio: "ignore",
  });
  try {
    expect(await page(`http://127.0.0.1:${port}/`), "3 tables run");
  } finally {
    server.kill();
    api.closeAllConnections();
    api.close();
  }
}

async function page(url) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await (await fetch(url)).text();
    } catch (error) {
      if (tries >= 120) throw error;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

try {
  let tarball = "";
  await step(all ? "npm pack, in a clean clone" : "npm pack", () => {
    tarball = pack();
  });
  for (const version of all ? [18, 19] : [19]) {
    const base = { ...REACT[version], ...QUERY[version], ...TYPESCRIPT };
    const node = `node-${version}`;
    await step(`React ${version}: npm install`, () => install(node, "node", tarball, base));
    await step(`React ${version}: require and import`, () => useInNode(join(work, node)));
    await step(`React ${version}: types`, () => checkTypes(join(work, node)));
    if (!all) continue;
    await step(`React ${version}: Vite`, () =>
      buildVite(install(`vite-${version}`, "vite", tarball, { ...base, ...VITE })),
    );
    await step(`React ${version}: Next`, async () => {
      const types = { "@types/node": "^20.19.43" };
      const folder = install(`next-${version}`, "next", tarball, { ...base, ...NEXT[version], ...types });
      await buildNext(folder, await freePort());
    });
  }
  console.log(`the package works as packed (${((Date.now() - began) / 1000).toFixed(0)} s)`);
} finally {
  rmSync(work, { recursive: true, force: true });
}
