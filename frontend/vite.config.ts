import react from "@vitejs/plugin-react";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

/** Modules that need a browser. Server components may use all others, such as the client and the options for queries. */
const CLIENT_MODULES = /^(hooks|live)$/;

/** Dependencies that mark their CommonJS files with `__esModule` have their default export under `default` there. */
const defaultExports: Plugin = {
  name: "default exports of CommonJS",
  renderChunk: (code, _, { format }) => (format === "cjs" ? code.replaceAll(/(__toESM\(\w+), 1\)/g, "$1)") : null),
};

/**
 * The library: one file per module, as ES modules and as CommonJS, whose dependencies stay outside. The types beside them are
 * written by `tsc` and `scripts/types.mjs`.
 */
export default defineConfig({
  plugins: [react(), defaultExports],
  build: {
    lib: { entry: { index: "src/index.ts", graphql: "src/graphql.ts" } },
    minify: false,
    rollupOptions: {
      external: [/^react($|\/)/, "@tanstack/react-query", "openapi-fetch", /^eventsource-parser/],
      output: (["es", "cjs"] as const).map((format) => ({
        format,
        preserveModules: true,
        preserveModulesRoot: "src",
        entryFileNames: `[name].${format === "es" ? "js" : "cjs"}`,
        banner: ({ name }: { name: string }) => (CLIENT_MODULES.test(name) ? '"use client";' : ""),
      })),
    },
  },
  // The GraphQL documents have their home beside the API.
  server: { fs: { allow: [".."] } },
  test: {
    environment: "jsdom",
    include: ["tests/**/*.test.{ts,tsx}"],
    setupFiles: "tests/setup.ts",
    restoreMocks: true,
  },
});
