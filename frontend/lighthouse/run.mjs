/**
 * Measures a page on Lighthouse's phone profile, and writes the scores of its categories, 0 to 100, as JSON. What keeps a category
 * from 100 goes to stderr.
 *
 *     node run.mjs http://127.0.0.1:8000/ /usr/bin/chromium
 */
import { launch } from "chrome-launcher";
import lighthouse from "lighthouse";

const [url, chromePath] = process.argv.slice(2);
const chrome = await launch({ chromePath, chromeFlags: ["--headless=new", "--no-sandbox", "--disable-gpu"] });
try {
  const { lhr } = await lighthouse(url, { port: chrome.port, output: "json", logLevel: "error" });
  if (lhr.runtimeError) throw new Error(lhr.runtimeError.message);
  const scores = {};
  for (const [name, { score, auditRefs }] of Object.entries(lhr.categories)) {
    scores[name] = Math.round(score * 100);
    for (const { id, weight } of auditRefs) {
      const audit = lhr.audits[id];
      if (weight > 0 && audit.score !== null && audit.score < 1)
        console.error(`${name}: ${audit.title} (${audit.score}) ${audit.displayValue ?? ""}`);
    }
  }
  console.log(JSON.stringify(scores));
} finally {
  await chrome.kill();
}
