/** Every number's formula, with the numbers put in, and the cells they came from. */
import { size } from "./data";
import { slope, spread } from "./engine";
import type { Symbols } from "./notation";
import type { Arr, Broken, Node, Pass, Rule, Scene } from "./types";

/** v: a value, d: a δ, p: a parameter, g: its gradient, n: the parameter after the step; e: the error, t: the target. */
export type Kind = "v" | "d" | "p" | "g" | "n" | "e" | "t";
export interface Cell {
  kind: Kind;
  of: number;
  i: number;
}

export const keyOf = (c: Cell): string => `${c.kind}${c.of}.${c.i}`;
/** The array that a cell is of. */
export const arrayOf = (c: Cell): string => `${c.kind}${c.of}`;
export function cellOf(text: string): Cell | null {
  const found = /^([vdpgnet])(\d+)\.(\d+)$/.exec(text);
  return found ? { kind: found[1] as Kind, of: Number(found[2]), i: Number(found[3]) } : null;
}

export interface Term {
  /** What the term is, in symbols. */
  symbols: string;
  /** The same with the numbers put in. */
  numbers: string;
  value: number;
  cells: Cell[];
  /** Of a sum over paths: which path. */
  path?: string;
}

export interface Explained {
  /** In words. */
  title: string;
  cell: Cell;
  value: number;
  symbol: string;
  /** The rule, in symbols. */
  rule: string;
  /** What is added up; one term where nothing is. */
  terms: Term[];
  /** What is done to the sum, such as tanh; with the sum as □. */
  around?: string;
  note?: string;
}

export interface Context {
  scene: Scene;
  pass: Pass;
  params: Arr[];
  target: Arr;
  /** The gradient that the step is made of, and what it is called. */
  grads: Arr[];
  after: Arr[];
  velocity: Arr[];
  rate: number;
  symbols: Symbols;
  rule: Rule | null;
  broken: Broken;
  live: boolean;
  gradient: "one" | "mean" | "clipped";
}

/** A number in four digits. */
export function short(v: number, digits = 4): string {
  if (Number.isNaN(v)) return "NaN";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (v === 0) return "0";
  const size = Math.abs(v);
  const text = size < 1e-3 || size >= 1e5 ? v.toExponential(digits - 2) : String(Number(v.toPrecision(digits)));
  return text.replace("-", "−").replace("e+", "e").replace("e-", "e−");
}

/** The same for KaTeX. */
export function tex(v: number, digits = 4): string {
  if (Number.isNaN(v)) return "\\text{NaN}";
  if (!Number.isFinite(v)) return v > 0 ? "\\infty" : "-\\infty";
  const [mantissa, exponent] = short(v, digits).replaceAll("−", "-").split("e");
  return exponent ? `${mantissa}\\cdot10^{${exponent}}` : mantissa!;
}

const factor = (v: number): string => (v < 0 || Object.is(v, -0) ? `(${tex(v)})` : tex(v));

export function valueOf(c: Cell, x: Context): number {
  switch (c.kind) {
    case "v": return x.pass.values[c.of]?.data[c.i] ?? NaN;
    case "d": return x.pass.deltas[c.of]?.data[c.i] ?? NaN;
    case "p": return x.params[c.of]?.data[c.i] ?? NaN;
    case "g": return x.grads[c.of]?.data[c.i] ?? NaN;
    case "n": return x.after[c.of]?.data[c.i] ?? NaN;
    case "e": return x.pass.error;
    case "t": return x.target.data[c.i] ?? NaN;
  }
}

export function explain(c: Cell, x: Context): Explained {
  const base = { cell: c, value: valueOf(c, x) };
  switch (c.kind) {
    case "v": return { ...base, ...ofValue(c, x) };
    case "d": return { ...base, ...ofDelta(c, x) };
    case "p": return { ...base, ...ofParam(c, x) };
    case "g": return { ...base, ...ofGradient(c, x) };
    case "n": return { ...base, ...ofStep(c, x) };
    case "e": return { ...base, ...ofError(x) };
    case "t":
      return { ...base, title: "the target", symbol: x.symbols.target(c.i), rule: x.symbols.target(c.i), terms: [alone(c, x, x.symbols.target(c.i))] };
  }
}

type Found = Omit<Explained, "cell" | "value">;
const cell = (kind: Kind, of: number, i: number): Cell => ({ kind, of, i });
const alone = (c: Cell, x: Context, symbols: string): Term => ({ symbols, numbers: tex(valueOf(c, x)), value: valueOf(c, x), cells: [] });
/** A layer as a sentence calls it: layer 2, or 2.tanh. */
export const layerOf = (node: Node): string => (/^\d+$/.test(node.name) ? `layer ${node.name}` : node.name);

/** A product of two cells. */
function product(a: Cell, b: Cell, names: [string, string], x: Context, other?: number): Term {
  const u = valueOf(a, x), v = other ?? valueOf(b, x);
  return { symbols: `${names[0]}\\,${names[1]}`, numbers: `${factor(u)}\\cdot${factor(v)}`, value: u * v, cells: [a, b] };
}

function ofValue(c: Cell, x: Context): Found {
  const s = x.symbols, symbol = s.value(c.of, c.i);
  if (c.of === 0) return { title: "the input", symbol, rule: symbol, terms: [alone(c, x, symbol)] };
  const node = x.scene.nodes[c.of - 1]!;
  const title = `what ${layerOf(node)} makes`;
  const input = node.inputs[0]!;
  switch (node.op) {
    case "dense": {
      const w = node.params.weight!, b = node.params.bias, [n, o] = x.params[w]!.shape as [number, number];
      const j = c.i % o, t = (c.i - j) / o;
      const terms = Array.from({ length: n }, (_, k) =>
        product(cell("v", input, t * n + k), cell("p", w, k * o + j), [s.value(input, t * n + k), s.param(w, k * o + j)], x));
      if (b !== undefined) {
        const at = cell("p", b, j);
        terms.push({ symbols: s.param(b, j), numbers: tex(valueOf(at, x)), value: valueOf(at, x), cells: [at] });
      }
      const rule = `${s.value(c.of, "j")} = \\sum_i ${s.value(input, "i")}\\,${s.param(w)}{\\scriptstyle[i,j]}${b === undefined ? "" : ` + ${s.param(b)}{\\scriptstyle[j]}`}`;
      return { title, symbol, rule, terms };
    }
    case "act": {
      if (node.facts.function === "softmax") {
        const k = node.shape.at(-1)!, from = c.i - (c.i % k), u = x.pass.values[input]!.data;
        const cells = Array.from({ length: k }, (_, q) => cell("v", input, from + q));
        const inner = s.value(input, c.i);
        return {
          title, symbol, rule: `${symbol} = e^{${inner}} \\big/ \\sum_k e^{${s.value(input, "k")}}`,
          terms: [{ symbols: "", numbers: `\\frac{e^{${tex(u[c.i]!)}}}{${cells.slice(0, 6).map((q) => `e^{${tex(u[q.i]!)}}`).join("+")}${k > 6 ? "+\\dots" : ""}}`, value: valueOf(c, x), cells }],
        };
      }
      const at = cell("v", input, c.i), u = valueOf(at, x), written = theta(node, s.value(input, c.i), tex(u));
      return { title, symbol, rule: `${symbol} = ${written[0]}`, terms: [{ symbols: written[0], numbers: written[1], value: valueOf(c, x), cells: [at] }] };
    }
    case "same": {
      const at = cell("v", input, c.i);
      return { title: `${title}: the same numbers`, symbol, rule: `${symbol} = ${s.value(input, c.i)}`, terms: [{ ...alone(at, x, s.value(input, c.i)), cells: [at] }] };
    }
    case "add": {
      const terms = node.inputs.map((v) => {
        const at = cell("v", v, c.i);
        return { ...alone(at, x, s.value(v, c.i)), cells: [at], path: v === 0 ? "from the input" : `from ${layerOf(x.scene.nodes[v - 1]!)}` };
      });
      return { title: `${title}: where paths meet`, symbol, rule: `${symbol} = ${terms.map((t) => t.symbols).join(" + ")}`, terms };
    }
    case "concat": {
      const [v, i] = behind(node, c.i, x.scene);
      const at = cell("v", v, i);
      return { title: `${title}: side by side`, symbol, rule: `${symbol} = ${s.value(v, i)}`, terms: [{ ...alone(at, x, s.value(v, i)), cells: [at] }] };
    }
    default:
      return {
        title, symbol, rule: text(node.formulas[0]), note: "A number that jbp saved; the page has this layer's formula, and not its terms.",
        terms: [{ ...alone(c, x, symbol), cells: [] }],
      };
  }
}

/** Which input of a join, and which of its numbers, stands at place i. */
function behind(node: Node, i: number, scene: Scene): [number, number] {
  const width = node.shape.at(-1)!, t = Math.floor(i / width);
  let at = i % width;
  for (const v of node.inputs) {
    const w = scene.values[v]!.shape.at(-1)!;
    if (at < w) return [v, t * w + at];
    at -= w;
  }
  throw new Error("outside");
}

function ofDelta(c: Cell, x: Context): Found {
  const { scene, symbols: s } = x, symbol = s.delta(c.of, c.i);
  const title = `δ of ${c.of === 0 ? "the input" : layerOf(scene.nodes[c.of - 1]!)}: how the error changes with ${c.of === 0 ? "it" : "what it makes"}`;
  const terms: Term[] = [], rules: string[] = [];
  const users = scene.nodes.filter((n) => n.inputs.includes(c.of));
  const paths = users.length + (scene.output === c.of ? 1 : 0);
  const left = x.broken === "path" && paths > 1 ? 1 : 0; // the first of the paths is the one left out
  if (scene.output === c.of) {
    const at = ofLossDelta(c, x);
    terms.push(at.term);
    rules.push(at.rule);
  }
  users.slice(left).forEach((node) => {
    const path = paths > 1 ? `through ${layerOf(node)}` : undefined;
    const found = through(node, c, x);
    rules.push(found.rule);
    terms.push(...found.terms.map((t) => (path ? { ...t, path } : t)));
  });
  const note = left ? `The path through ${layerOf(users[0]!)} is left out.` : undefined;
  if (!x.live && !terms.length) return { title, symbol, rule: symbol, terms: [alone(c, x, symbol)] };
  return { title: paths > 1 ? `${title}, a sum over paths` : title, symbol, rule: `${symbol} = ${rules.join(" + ") || "0"}`, terms, note };
}

/** What a node hands down to the number at a cell of its input. */
function through(node: Node, c: Cell, x: Context): { rule: string; terms: Term[] } {
  const s = x.symbols;
  const b = x.rule?.feedback?.[node.id];
  if (b) {
    const [k, n] = b.shape as [number, number], i = c.i % n, t = Math.floor(c.i / n);
    const terms = Array.from({ length: k }, (_, j) => {
      const at = cell("d", x.scene.output, t * k + j), u = valueOf(at, x), v = b.data[j * n + i]!;
      return { symbols: `${s.delta(x.scene.output, t * k + j)}\\,B_{${j + 1},${i + 1}}`, numbers: `${factor(u)}\\cdot${factor(v)}`, value: u * v, cells: [at] };
    });
    return { rule: `\\sum_k ${s.delta(x.scene.output, "k")}\\,B_{k,i}`, terms };
  }
  switch (node.op) {
    case "dense": {
      const w = node.params.weight!, back = x.rule?.back?.[w], matrix = back ?? x.params[w]!, [n, o] = matrix.shape as [number, number];
      const i = c.i % n, t = (c.i - i) / n, swapped = x.broken === "transpose";
      const terms = Array.from({ length: o }, (_, j) => {
        const at = swapped ? j * n + i : i * o + j, mine = cell("p", w, at), d = cell("d", node.id, t * o + j);
        return product(d, mine, [s.delta(node.id, t * o + j), back ? `B_{${i + 1},${j + 1}}` : s.param(w, at)], x, back ? matrix.data[at]! : undefined);
      });
      const weight = back ? "B[i,j]" : swapped ? `${s.param(w)}{\\scriptstyle\\text{ (not transposed)}}` : `${s.param(w)}{\\scriptstyle[i,j]}`;
      return { rule: `\\sum_j ${s.delta(node.id, "j")}\\,${weight}`, terms };
    }
    case "act": {
      if (node.facts.function === "softmax" && x.broken !== "slope") {
        const k = node.shape.at(-1)!, from = c.i - (c.i % k), y = cell("v", node.id, c.i), p = valueOf(y, x), d = x.pass.deltas[node.id]!.data;
        const terms = Array.from({ length: k }, (_, q) => {
          const dq = cell("d", node.id, from + q), yq = cell("v", node.id, from + q), own = from + q === c.i;
          const slope = own ? p * (1 - p) : -p * valueOf(yq, x);
          return {
            symbols: own ? `y_{${q + 1}}(1-y_{${q + 1}})\\,\\delta_{${q + 1}}` : `-y_{${(c.i % k) + 1}}y_{${q + 1}}\\,\\delta_{${q + 1}}`,
            numbers: `${factor(slope)}\\cdot${factor(d[from + q]!)}`, value: slope * d[from + q]!, cells: own ? [dq, y] : [dq, yq, y],
          };
        });
        return { rule: `\\sum_k ${s.delta(node.id, "k")}\\,y_k\\,([i{=}k] - y_i)`, terms };
      }
      const d = cell("d", node.id, c.i), v = valueOf(d, x);
      if (x.broken === "slope") return { rule: `${s.delta(node.id, c.i)}\\quad(\\theta' \\text{ forgotten})`, terms: [{ symbols: s.delta(node.id, c.i), numbers: tex(v), value: v, cells: [d] }] };
      if (!x.pass.values[node.inputs[0]!]) return { rule: "", terms: [] };
      const k = slope(node, x.pass.values[node.inputs[0]!]!, x.pass.values[node.id]!)[c.i]!;
      const at = cell("v", node.id, c.i), written = thetaPrime(node, s.value(node.id, c.i), tex(valueOf(at, x)), s.value(node.inputs[0]!, c.i));
      return {
        rule: `\\theta'\\cdot${s.delta(node.id, c.i)},\\quad \\theta' = ${written[0]}`,
        terms: [{ symbols: `\\theta'\\,${s.delta(node.id, c.i)}`, numbers: `${written[1] ? `\\underbrace{${written[1]}}_{${tex(k)}}` : factor(k)}\\cdot${factor(v)}`, value: k * v, cells: [d, at, cell("v", node.inputs[0]!, c.i)] }],
      };
    }
    case "add":
    case "same": {
      const d = cell("d", node.id, c.i);
      return { rule: s.delta(node.id, c.i), terms: [{ symbols: s.delta(node.id, c.i), numbers: tex(valueOf(d, x)), value: valueOf(d, x), cells: [d] }] };
    }
    case "concat": {
      const w = x.scene.values[c.of]!.shape.at(-1)!, width = node.shape.at(-1)!;
      let start = 0;
      for (const v of node.inputs) {
        if (v === c.of) break;
        start += x.scene.values[v]!.shape.at(-1)!;
      }
      const i = Math.floor(c.i / w) * width + start + (c.i % w), d = cell("d", node.id, i);
      return { rule: s.delta(node.id, i), terms: [{ symbols: s.delta(node.id, i), numbers: tex(valueOf(d, x)), value: valueOf(d, x), cells: [d] }] };
    }
    default: {
      const v = x.pass.deltas[c.of]?.data[c.i] ?? NaN;
      return { rule: text(node.formulas[1]), terms: [{ symbols: s.delta(c.of, c.i), numbers: tex(v), value: v, cells: [] }] };
    }
  }
}

/** Plain words in a formula. */
const text = (words: string): string => `\\text{${words.replace(/([_%#&{}])/g, "\\$1").replace("⊗", "$\\otimes$").replace("∘", "$\\circ$").replaceAll("^", "\\^{}").replaceAll("−", "−")}}`;

function ofLossDelta(c: Cell, x: Context): { rule: string; term: Term } {
  const s = x.symbols, output = x.pass.values[c.of]!, name = x.scene.loss.name, k = output.shape.at(-1) ?? 1;
  const n = Math.max(1, output.data.length / k), p = output.data[c.i]!, value = valueOf(c, x);
  const from = cell("v", c.of, c.i), t = spread(x.target, output, x.scene.classes)[c.i]!;
  const target = cell("t", 0, x.scene.classes ? Math.floor(c.i / k) : c.i);
  const ps = s.output(c.i), ts = x.scene.classes ? `[\\text{class}]` : s.target(c.i);
  const scale = name === "mean_squared_error" ? `\\tfrac{2}{${output.data.length}}` : name === "squared_error" ? (n > 1 ? `\\tfrac{2}{${n}}` : "2") : n > 1 ? `\\tfrac{1}{${n}}` : "";
  const term = (rule: string, numbers: string, cells: Cell[] = [from, target]): { rule: string; term: Term } => ({
    rule: `${scale}\\,${rule}`, term: { symbols: rule, numbers: `${scale}\\,${numbers}`, value, cells },
  });
  switch (name) {
    case "squared_error":
    case "l2_loss":
    case "mean_squared_error":
      return term(`(${ps} - ${ts})`, `(${tex(p)} - ${factor(t)})`);
    case "softmax_cross_entropy": {
      const row = c.i - (c.i % k), cells = Array.from({ length: k }, (_, j) => cell("v", c.of, row + j));
      const y = value * n + t;
      return term(`\\big(\\mathrm{softmax}(${s.output()})_i - ${s.target()}_i\\big)`, `(${tex(y)} - ${factor(t)})`, [...cells, target]);
    }
    case "sigmoid_binary_cross_entropy":
      return term(`(\\sigma(${ps}) - ${ts})`, `(\\sigma(${tex(p)}) - ${factor(t)})`);
    case "cross_entropy":
      return term(`(-${ts} / ${ps})`, `(-${tex(t)} / ${factor(p)})`);
  }
  return { rule: text(x.scene.loss.formulas[1]), term: { symbols: "", numbers: tex(value), value, cells: [from, target] } };
}

function ofError(x: Context): Found {
  const { scene, symbols: s } = x, output = x.pass.values[scene.output]!, k = output.shape.at(-1) ?? 1, n = Math.max(1, output.data.length / k);
  const t = spread(x.target, output, scene.classes), name = scene.loss.name, classes = scene.classes;
  const terms: Term[] = [];
  const scale = name === "mean_squared_error" ? 1 / output.data.length : 1 / n;
  const add = (i: number, numbers: string, value: number, cells: Cell[]): void => {
    terms.push({ symbols: "", numbers: scale === 1 ? numbers : `\\tfrac{1}{${Math.round(1 / scale)}}\\cdot ${numbers}`, value: value * scale, cells });
  };
  const target = (i: number): Cell => cell("t", 0, classes ? Math.floor(i / k) : i);
  for (let i = 0; i < output.data.length && scene.loss.known; i++) {
    const p = output.data[i]!, at = [cell("v", scene.output, i), target(i)];
    if (name === "squared_error" || name === "mean_squared_error") add(i, `(${tex(p)} - ${factor(t[i]!)})^2`, (p - t[i]!) ** 2, at);
    else if (name === "l2_loss") add(i, `\\tfrac12(${tex(p)} - ${factor(t[i]!)})^2`, 0.5 * (p - t[i]!) ** 2, at);
    else if (name === "sigmoid_binary_cross_entropy") {
      const value = Math.max(p, 0) - p * t[i]! + Math.log1p(Math.exp(-Math.abs(p)));
      add(i, t[i] === 1 ? `-\\log\\sigma(${tex(p)})` : t[i] === 0 ? `-\\log(1-\\sigma(${tex(p)}))` : `-${tex(t[i]!)}\\log\\sigma(${tex(p)})-${tex(1 - t[i]!)}\\log(1-\\sigma(${tex(p)}))`, value, at);
    } else if (t[i] !== 0) {
      if (name === "cross_entropy") add(i, `-${t[i] === 1 ? "" : tex(t[i]!)}\\log ${factor(p)}`, -t[i]! * Math.log(p), at);
      else {
        const row = i - (i % k);
        let top = -Infinity, total = 0;
        for (let j = 0; j < k; j++) top = Math.max(top, output.data[row + j]!);
        for (let j = 0; j < k; j++) total += Math.exp(output.data[row + j]! - top);
        const share = Math.exp(p - top) / total;
        add(i, `-${t[i] === 1 ? "" : tex(t[i]!)}\\log ${tex(share)}`, t[i]! * (Math.log(total) - (p - top)), [...Array.from({ length: k }, (_, j) => cell("v", scene.output, row + j)), target(i)]);
      }
    }
  }
  const rule: Record<string, string> = {
    squared_error: `\\sum_k (${s.output("k")} - ${s.target("k")})^2`,
    l2_loss: `\\tfrac12 \\sum_k (${s.output("k")} - ${s.target("k")})^2`,
    mean_squared_error: `\\tfrac1K \\sum_k (${s.output("k")} - ${s.target("k")})^2`,
    softmax_cross_entropy: `-\\sum_k ${s.target("k")} \\log \\mathrm{softmax}(${s.output()})_k`,
    cross_entropy: `-\\sum_k ${s.target("k")} \\log ${s.output("k")}`,
    sigmoid_binary_cross_entropy: `-\\sum_k ${s.target("k")} \\log \\sigma(${s.output("k")}) + (1-${s.target("k")}) \\log (1-\\sigma(${s.output("k")}))`,
  };
  if (!terms.length) terms.push({ symbols: "", numbers: tex(x.pass.error), value: x.pass.error, cells: [] });
  return { title: "the error of this example", symbol: s.error(), rule: `${s.error()} = ${rule[name] ?? text(scene.loss.formulas[0])}`, terms };
}

function ofParam(c: Cell, x: Context): Found {
  const symbol = x.symbols.param(c.of, c.i), uses = x.scene.nodes.filter((n) => Object.values(n.params).includes(c.of));
  const shared = uses.length > 1 ? `, used by ${uses.map(layerOf).join(" and ")}` : "";
  return { title: `a parameter: ${x.scene.params[c.of]!.name}${shared}`, symbol, rule: symbol, terms: [alone(c, x, symbol)] };
}

function ofGradient(c: Cell, x: Context): Found {
  const s = x.symbols, p = x.scene.params[c.of]!, symbol = s.gradient(c.of, c.i);
  if (x.gradient !== "one") {
    const what = x.gradient === "mean" ? "the mean over the batch" : "the clipped mean over the batch";
    return {
      title: `the gradient of ${p.name}, ${what}`, symbol, rule: x.gradient === "mean" ? "\\tfrac1N \\sum_n g_n" : "\\tfrac1N \\sum_n \\min(1, C/\\lVert g_n\\rVert)\\, g_n",
      terms: [alone(c, x, symbol)], note: "Choose “this example” beside the batch to see h ⊗ δ.",
    };
  }
  const uses = x.scene.nodes.flatMap((n) => Object.entries(n.params).filter(([, id]) => id === c.of).map(([name]) => ({ node: n, name })));
  const kept = x.broken === "path" && uses.length > 1 ? uses.slice(-1) : uses;
  const terms: Term[] = [];
  for (const { node, name } of kept) {
    const path = uses.length > 1 ? `its use in ${layerOf(node)}` : undefined, input = node.inputs[0]!;
    if (node.op !== "dense") {
      const value = x.pass.uses.find((u) => u.node === node.id && u.name === name)?.value.data[c.i] ?? valueOf(c, x);
      terms.push({ symbols: symbol, numbers: tex(value), value, cells: [], path });
      continue;
    }
    const o = node.shape.at(-1)!, j = name === "bias" ? c.i : c.i % o, k = Math.floor(c.i / o), n = x.pass.values[input]!.shape.at(-1)!;
    for (let t = 0; t < size(node.shape) / o; t++) {
      const d = cell("d", node.id, t * o + j);
      if (name === "bias") terms.push({ symbols: s.delta(node.id, t * o + j), numbers: tex(valueOf(d, x)), value: valueOf(d, x), cells: [d], path });
      else terms.push({ ...product(cell("v", input, t * n + k), d, [s.value(input, t * n + k), s.delta(node.id, t * o + j)], x), path });
    }
  }
  const first = kept[0]!, form = first.node.op === "dense" ? (first.name === "bias" ? s.delta(first.node.id, "j") : `${s.value(first.node.inputs[0]!, "i")}\\,${s.delta(first.node.id, "j")}`) : text(`from its ${first.node.layer}`);
  const rule = uses.length > 1 ? `\\sum_{\\text{uses}} h \\otimes \\delta` : form;
  const note = kept.length < uses.length ? `The use in ${layerOf(uses[0]!.node)} is left out.` : undefined;
  return { title: `the gradient of ${p.name}${uses.length > 1 ? ": the sum over its uses" : ""}`, symbol, rule: `${symbol} = ${rule}`, terms, note };
}

function ofStep(c: Cell, x: Context): Found {
  const s = x.symbols, u = x.scene.update, w = cell("p", c.of, c.i), g = cell("g", c.of, c.i), symbol = s.param(c.of, c.i);
  const title = `${x.scene.params[c.of]!.name} after the step`;
  if (u.kind === "other") return { title, symbol, rule: `\\text{${u.words.replaceAll("_", "\\_")}}`, terms: [alone(c, x, symbol)], note: `jbp's own number, of the first step of ${u.words} on the mean of the batch.` };
  const before = valueOf(w, x), slope = valueOf(g, x), terms: Term[] = [{ symbols: symbol, numbers: tex(before), value: before, cells: [w] }];
  if (u.kind === "sgd") {
    terms.push({ symbols: "", numbers: `-${tex(x.rate)}\\cdot${factor(slope)}`, value: -x.rate * slope, cells: [g] });
    return { title, symbol, rule: `${symbol} \\leftarrow ${symbol} - ${s.rate()}\\,${s.gradient(c.of, c.i)}`, terms };
  }
  const v = x.velocity[c.of]?.data[c.i] ?? 0, moved = u.momentum * v + slope;
  const along = u.nesterov ? slope + u.momentum * moved : moved;
  terms.push({ symbols: "", numbers: `-${tex(x.rate)}\\cdot(${tex(u.momentum)}\\cdot${factor(u.nesterov ? moved : v)}+${factor(slope)})`, value: -x.rate * along, cells: [g] });
  return { title, symbol, rule: `v \\leftarrow \\beta v + g,\\quad ${symbol} \\leftarrow ${symbol} - ${s.rate()}\\,${u.nesterov ? "(g + \\beta v)" : "v"}`, terms };
}

function theta(node: Node, s: string, n: string): [string, string] {
  const f = (form: (v: string) => string): [string, string] => [form(s), form(n)];
  const { negative_slope: a = 0.01, alpha = 1 } = node.facts;
  switch (node.facts.function) {
    case "relu": return f((v) => `\\max(0, ${v})`);
    case "leaky_relu": return f((v) => `\\max(${v}, ${a}\\cdot ${v})`);
    case "tanh": return f((v) => `\\tanh(${v})`);
    case "sigmoid": return f((v) => `\\frac{1}{1 + e^{-(${v})}}`);
    case "softplus": return f((v) => `\\log(1 + e^{${v}})`);
    case "elu": return f((v) => `\\mathrm{elu}_{${alpha}}(${v})`);
    case "silu": return f((v) => `${v}\\cdot\\sigma(${v})`);
    case "gelu": return f((v) => `\\mathrm{gelu}(${v})`);
    default: return f((v) => v);
  }
}

function thetaPrime(node: Node, y: string, n: string, x: string): [string, string] {
  const { negative_slope: a = 0.01, alpha = 1 } = node.facts;
  switch (node.facts.function) {
    case "relu": return [`1 \\text{ where } ${y} > 0, \\text{ else } 0`, ""];
    case "leaky_relu": return [`1 \\text{ where } ${y} \\ge 0, \\text{ else } ${a}`, ""];
    case "tanh": return [`1 - (${y})^2`, `(1 - (${n})^2)`];
    case "sigmoid": return [`${y}\\,(1 - ${y})`, `${n}\\,(1 - ${n})`];
    case "softplus": return [`1 - e^{-${y}}`, `(1 - e^{-${n}})`];
    case "elu": return [`1 \\text{ where } ${y} > 0, \\text{ else } ${y} + ${alpha}`, ""];
    case "silu": return [`\\sigma(x)(1 + x(1 - \\sigma(x))),\\ x = ${x}`, ""];
    case "gelu": return [`\\Phi(x) + x\\,\\varphi(x),\\ x = ${x}`, ""];
    default: return ["1", ""];
  }
}
