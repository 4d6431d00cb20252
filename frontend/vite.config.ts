import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

/** The library: ES modules whose dependencies stay outside. The types beside them are written by `tsc`. */
export default defineConfig({
  plugins: [react()],
  build: {
    lib: { entry: { index: "src/index.ts", graphql: "src/graphql.ts" }, formats: ["es"] },
    minify: false,
    rollupOptions: { external: [/^react($|\/)/, "openapi-fetch", /^eventsource-parser/] },
  },
  // The GraphQL documents have their home beside the API.
  server: { fs: { allow: [".."] } },
  test: {
    environment: "jsdom",
    include: ["tests/**/*.test.{ts,tsx}"],
    restoreMocks: true,
  },
});
