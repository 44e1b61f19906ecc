export * from "../src/data";
export * from "../src/engine";
export * from "../src/explain";
export * from "../src/layout";
export * from "../src/notation";
export * from "../src/planes";
export * from "../src/steps";
