import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** The browser asks at once for the code that the entry imports later. */
const early: Plugin = {
  name: "preload what the entry imports",
  transformIndexHtml: {
    order: "post",
    handler: (html, { bundle = {}, chunk }) => {
      const found = new Set<string>();
      const follow = (name: string) => {
        const part = bundle[name];
        if (part?.type !== "chunk" || found.has(name)) return;
        found.add(name);
        for (const other of part.imports) follow(other);
      };
      for (const name of chunk?.dynamicImports ?? []) follow(name);
      return [...found]
        .filter((name) => !html.includes(name))
        .map((name) => ({
          tag: "link",
          attrs: { rel: "modulepreload", crossorigin: true, href: `./${name}` },
          injectTo: "head",
        }));
    },
  },
};

/**
 * The status page. It is built into the Python package, which can serve it at any path. `npm run dev` uses the API at 127.0.0.1:8000.
 * The page runs on Preact, which has a tenth of React's bytes; the hooks that others install know React alone.
 */
export default defineConfig({
  root: here("."),
  base: "./",
  plugins: [early],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  resolve: {
    alias: [
      { find: /^react(-dom)?$/, replacement: "preact/compat" },
      { find: "react-dom/client", replacement: "preact/compat/client" },
      { find: /^react\/jsx-(dev-)?runtime$/, replacement: "preact/jsx-runtime" },
    ],
  },
  build: {
    outDir: here("../../pulso_etl/api/page"),
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: { index: here("index.html"), docs: here("docs.html") },
      // They say "use client", which only servers heed.
      onwarn: (warning, warn) => warning.code === "MODULE_LEVEL_DIRECTIVE" || warn(warning),
    },
  },
  server: { proxy: { "/api": "http://127.0.0.1:8000" } },
});
