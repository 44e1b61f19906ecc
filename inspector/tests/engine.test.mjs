// The page's engine beside jbp: every number of every scene that Python wrote, and every formula's own numbers.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";
import { gunzipSync } from "node:zlib";
import { sources } from "./build.mjs";

const page = await sources();
const folders = [new URL("../../docs/scenes/", import.meta.url), new URL("./scenes/", import.meta.url)];
const scenes = folders.flatMap((folder) =>
  readdirSync(folder).filter((name) => name.endsWith(".json.gz")).flatMap((name) => {
    const text = gunzipSync(readFileSync(new URL(name, folder))).toString();
    return page.scenesOf(text).map((scene) => ({ name: `${name.replace(".json.gz", "")}: ${scene.title}`, scene }));
  }));
const live = scenes.filter(({ scene }) => page.whyNot(scene) === "");
const BOUND = 1e-12;
const worst = (found) => found.reduce((a, b) => (b.error > a.error ? b : a));

test("there are scenes, and most of them are live", () => {
  assert.ok(scenes.length >= 8 && live.length >= 7, `${scenes.length} scenes, ${live.length} live`);
});

for (const { name, scene } of live)
  test(`the engine has jbp's numbers: ${name}`, (t) => {
    const found = page.compared(scene);
    const most = worst(found);
    t.diagnostic(`${found.length} leaves, largest error ${most.error.toExponential(1)} (${most.leaf})`);
    assert.ok(found.length > 10 && most.error <= BOUND, `${most.leaf}: ${most.error}`);
  });

// A comparison that cannot fail shows nothing: each of these plants one mistake in the engine.
const mistakes = {
  "δ of the first layer a billionth too large": (pass) => pass.deltas.slice(0, 2).forEach((d) => d && (d.data = d.data.map((v) => v * (1 + 1e-9)))),
  "one gradient transposed in place": (pass) => pass.grads.forEach((g) => { if (g.shape.length === 2) g.data = g.data.slice().reverse(); }),
  "the bias forgotten in the gradient": (pass) => pass.grads.forEach((g) => { if (g.shape.length === 1) g.data = g.data.map(() => 0); }),
  "the error of a class less": (pass) => { pass.error += 1e-9; },
  "a δ that is missing": (pass) => { pass.deltas[1] = null; },
  "NaN in one value": (pass) => { pass.values.at(-1).data = pass.values.at(-1).data.map(() => NaN); },
};
for (const [what, plant] of Object.entries(mistakes))
  test(`a planted mistake is seen: ${what}`, () => {
    const { scene } = live.find(({ name }) => name.startsWith("by_hand"));
    const wrong = (...given) => {
      const pass = page.compute(...given);
      plant(pass);
      return pass;
    };
    assert.ok(worst(page.compared(scene, wrong)).error > BOUND);
  });

for (const broken of ["transpose", "slope", "path"])
  test(`the page's own mistake, ${broken}, is one: some scene's δ or gradient changes`, () => {
    const changed = live.filter(({ scene }) => worst(page.compared(scene, (s, p, x, y, way = {}) => page.compute(s, p, x, y, { ...way, broken }))).error > 1e-3);
    assert.ok(changed.length >= 1);
  });

function context(scene, name = "jbp", way = {}) {
  const x = page.row(scene.x, scene.example), y = page.row(scene.y, scene.example);
  const pass = page.compute(scene, scene.params, x, y, way);
  const velocity = scene.update.velocity.length ? scene.update.velocity : scene.params.map((p) => page.zeros(p.shape));
  const after = scene.update.kind === "other" ? scene.update.new : page.stepped(scene, scene.params, pass.grads, velocity).params;
  return { scene, pass, params: scene.params, target: y, grads: pass.grads, after, velocity, rate: scene.update.rate, symbols: new page.Symbols(scene, name), rule: way.rule ?? null, broken: way.broken ?? "", live: true, gradient: "one" };
}

function* cells(context) {
  const some = (n) => Array.from({ length: Math.min(n, 12) }, (_, i) => Math.floor((i * n) / Math.min(n, 12)));
  for (const [v, a] of context.pass.values.entries()) for (const i of some(a.data.length)) yield { kind: "v", of: v, i };
  for (const [v, a] of context.pass.deltas.entries()) if (a) for (const i of some(a.data.length)) yield { kind: "d", of: v, i };
  for (const [p, a] of context.params.entries()) for (const i of some(a.data.length)) yield* ["p", "g", "n"].map((kind) => ({ kind, of: p, i }));
  yield { kind: "e", of: 0, i: 0 };
  yield { kind: "t", of: 0, i: 0 };
}

function check(ctx, what) {
  let count = 0;
  for (const cell of cells(ctx)) {
    const found = page.explain(cell, ctx), total = found.terms.reduce((s, t) => s + t.value, 0);
    const scale = Math.max(1e-300, Math.abs(found.value), ...found.terms.map((t) => Math.abs(t.value)));
    if (Number.isFinite(found.value)) assert.ok(Math.abs(total - found.value) <= 1e-12 * scale, `${what} ${page.keyOf(cell)}: ${total} is not ${found.value}`);
    for (const source of found.terms.flatMap((t) => t.cells)) assert.ok(page.valueOf(source, ctx) !== undefined, `${what}: a source that there is not`);
    count++;
  }
  return count;
}

for (const { name, scene } of live)
  test(`the terms of every formula add up to the number: ${name}`, (t) => {
    let count = check(context(scene), name);
    for (const [key, rule] of Object.entries(scene.rules)) count += check(context(scene, "jbp", { rule }), `${name} ${key}`);
    for (const broken of ["transpose", "slope", "path"]) count += check(context(scene, "jbp", { broken }), `${name} ${broken}`);
    t.diagnostic(`${count} formulas`);
  });

test("every lecture's symbols are TeX that KaTeX reads", async () => {
  const { default: katex } = await import("katex");
  const written = new Set();
  for (const { scene } of live)
    for (const name of ["jbp", "A", "B", "C", "D", "E"]) {
      const ctx = context(scene, name);
      for (const cell of cells(ctx)) {
        const found = page.explain(cell, ctx);
        for (const tex of [found.rule, found.symbol, ...found.terms.flatMap((t) => [t.symbols, t.numbers])]) written.add(tex);
      }
    }
  for (const tex of written) katex.renderToString(tex, { strict: false });
});

test("first-layer weights are images on an image alone, and every grid's places are those of its array", () => {
  const pictures = {};
  for (const { name, scene } of scenes)
    for (const node of scene.nodes) {
      const found = page.pictureOf(scene, node);
      if (found) (pictures[name] ??= []).push([node.name, ...found]);
      for (const p of Object.values(node.params)) {
        const { planes, left } = page.planes(scene.params[p], node.op === "dense" && node.params.weight === p ? found : undefined);
        const seen = planes.flatMap((one) => Array.from({ length: one.rows * one.cols }, (_, i) => one.index(Math.floor(i / one.cols), i % one.cols)));
        const wanted = page.size(scene.params[p].folded ?? scene.params[p].shape);
        assert.ok(seen.every((i) => Number.isInteger(i) && i >= 0 && i < wanted) && new Set(seen).size === seen.length, `${name} ${scene.params[p].name}`);
        if (!left) assert.equal(seen.length, wanted, `${name} ${scene.params[p].name}`);
      }
    }
  assert.deepEqual(Object.values(pictures), [[["1", 8, 8]]]);
  assert.ok(Object.keys(pictures)[0].startsWith("digits_mlp"));
});

test("a dense layer on a sequence has no images, whatever its sizes; on an image laid flat it has", () => {
  const scene = (shape, nodes, rows) => ({ x: { shape: [1, ...shape] }, params: [{ shape: [rows, 5] }], nodes: nodes.map((node, k) => ({ id: k + 1, inputs: [k], params: {}, ...node })) });
  const dense = { op: "dense", shape: [5], params: { weight: 0 } };
  const asked = (found) => page.pictureOf(found, found.nodes.at(-1));
  assert.equal(asked(scene([8, 6], [dense], 6)), undefined);
  assert.equal(asked(scene([8, 8], [dense], 8)), undefined);
  assert.equal(asked(scene([7, 8, 6], [{ op: "same", shape: [56, 6] }, dense], 6)), undefined);
  assert.equal(asked(scene([48], [dense], 48)), undefined);
  assert.deepEqual(asked(scene([8, 6], [{ op: "same", shape: [48] }, dense], 48)), [8, 6]);
  assert.deepEqual(asked(scene([8, 6, 1], [{ op: "same", shape: [8, 6] }, { op: "same", shape: [48] }, dense], 48)), [8, 6]);
  assert.equal(asked(scene([8, 6, 3], [{ op: "same", shape: [144] }, dense], 144)), undefined);
  assert.throws(() => page.planes({ shape: [6, 18], data: new Float64Array(108) }, [8, 6]), /no images/);
});

test("what cannot be changed says why, by the numbers of this net and batch", () => {
  const { scene } = live.find(({ name }) => name.startsWith("digits_mlp"));
  const many = { ...scene, x: { shape: [5000, 8, 8], data: new Float64Array(0) } };
  assert.match(page.whyNot(many), /1,210 parameters and 5,000 examples/);
  assert.match(page.whyNot({ ...scene, params: [{ shape: [1000, 201] }] }), /201,000 parameters, too many/);
  assert.match(page.whyNot({ ...scene, others: ["Cube()"] }), /does not compute Cube/);
});

test("erfc has its digits", () => {
  // From the series in 50 digits.
  for (const [x, y] of [[0, 1], [0.5, 0.4795001221869535], [1, 0.15729920705028513], [2, 0.004677734981047266], [2.5, 0.0004069520174449589], [3, 2.209049699858544e-5], [6, 2.1519736712498913e-17], [-1, 1.8427007929497148]])
    assert.ok(Math.abs(page.erfc(x) - y) <= 2e-15 * Math.max(1, y) && Math.abs(page.erfc(x) / y - 1) < 1e-11, `${x}: ${page.erfc(x)}`);
});

test("numbers are written short, with the sign of the book", () => {
  assert.deepEqual([0, -0.5, 123456, 1e-7, NaN, Infinity, -Infinity].map((v) => page.short(v)), ["0", "−0.5", "1.23e5", "1.00e−7", "NaN", "∞", "−∞"]);
});

test("damaged, foreign and empty files are refused in a sentence", () => {
  for (const text of [undefined, "null", "{", "[]", '[{"format":"jbp-scene-0"}]', '[{"format":"jbp-scene-1","x":{"shape":[3],"f64":"AAAA"}}]'])
    assert.throws(() => page.scenesOf(text), (error) => /^(This page|The numbers)/.test(error.message) && error.message.endsWith("."));
});
