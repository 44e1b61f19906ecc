import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";
import { viteSingleFile } from "vite-plugin-singlefile";

/** KaTeX's style sheet with its woff2 fonts only, and of those the ones that formulas here need. */
const fonts = {
  name: "katex-fonts",
  enforce: "pre",
  transform(code, id) {
    if (!id.endsWith("katex.min.css")) return null;
    const kept = /KaTeX_(Main-Regular|Math-Italic|Size1-Regular|Size2-Regular|Main-Bold|AMS-Regular)\.woff2/;
    return code.replace(/@font-face\{[^}]*\}/g, (face) => {
      const source = /url\([^)]*?([^/)]+\.woff2)\)[^,;}]*/.exec(face);
      return source && kept.test(source[1]) ? face.replace(/src:[^;}]*/, `src:${source[0]}`) : "";
    });
  },
};

export default defineConfig({
  plugins: [fonts, svelte(), viteSingleFile({ removeViteModuleLoader: true })],
  build: { target: "es2022", cssMinify: true, assetsInlineLimit: 100_000_000, reportCompressedSize: false },
});
