/** Writes the types of the CommonJS files: those of the ES modules, with the other file endings. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const dist = fileURLToPath(new URL("../dist/", import.meta.url));
for (const file of readdirSync(dist).filter((name) => name.endsWith(".d.ts"))) {
  const text = readFileSync(dist + file, "utf8").replaceAll(/(["']\.\/[\w./-]+)\.js(["'])/g, "$1.cjs$2");
  writeFileSync(dist + file.replace(/\.d\.ts$/, ".d.cts"), text);
}
