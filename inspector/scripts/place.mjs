// Puts the built page where the wheel takes it from.
import { copyFileSync, readFileSync } from "node:fs";

const built = new URL("../dist/index.html", import.meta.url);
const text = readFileSync(built, "utf8");
if (!text.includes('<script id="scenes" type="application/json">null</script>')) throw new Error("the place for the numbers is gone");
if (/(?:src|href)="(?!data:)[^"]*"/.test(text.split("<script", 1)[0])) throw new Error("the page would load something");
copyFileSync(built, new URL("../../jbp/inspect/page.html", import.meta.url));
console.log(`jbp/inspect/page.html: ${text.length.toLocaleString("en")} characters`);
