/** Builds the package. In a clean clone it installs first what the build needs. */
import { execSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const cwd = fileURLToPath(new URL("..", import.meta.url));
const run = (command) => execSync(command, { cwd, stdio: ["ignore", "inherit", "inherit"] });
if (!existsSync(`${cwd}/node_modules/vite`)) run("npm ci");
run("npm run build");
