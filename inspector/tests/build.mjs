// The engine and the formulas as a module that Node can load: Node 20 reads no TypeScript.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "vite";

export async function sources() {
  const outDir = mkdtempSync(join(tmpdir(), "jbp-engine-"));
  const entry = fileURLToPath(new URL("./all.ts", import.meta.url));
  await build({ configFile: false, logLevel: "error", build: { lib: { entry, formats: ["es"], fileName: () => "all.mjs" }, outDir, minify: false, target: "node20" } });
  return import(pathToFileURL(join(outDir, "all.mjs")).href);
}
