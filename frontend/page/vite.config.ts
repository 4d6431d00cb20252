import { fileURLToPath } from "node:url";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** The status page. It is built into the Python package, which can serve it at any path. `npm run dev` uses the API at 127.0.0.1:8000. */
export default defineConfig({
  root: here("."),
  base: "./",
  plugins: [react()],
  build: {
    outDir: here("../../pulso_etl/api/page"),
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    rollupOptions: { input: { index: here("index.html"), docs: here("docs.html") } },
  },
  server: { proxy: { "/api": "http://127.0.0.1:8000" } },
});
