/**
 * jbp's three steps once more, for one example, in float64: so that the page can answer when a number is changed. A test
 * holds every scene's numbers to those that jbp wrote.
 */
import { row, size, sum, weighed, zeros } from "./data";
import type { Arr, Broken, Node, Pass, Rule, Scene } from "./types";

/** Parameters, and parameters times examples, above which nothing is computed in the page. */
const LIVE = 200_000, LIVE_BATCH = 5_000_000;

/** Why nothing can be changed in a scene; "" where it can. */
export function whyNot(scene: Scene): string {
  const folded = scene.params.some((p) => p.folded) || scene.values.some((v) => v.folded);
  const count = scene.params.reduce((n, p) => n + size(p.shape), 0);
  if (scene.others.length)
    return `The numbers are those that jbp saved. They cannot be changed here, for the page does not compute ${scene.others.join(", ")}.`;
  if (folded || count > LIVE)
    return `The numbers are those that jbp saved. The net has ${count.toLocaleString("en")} parameters, too many to compute them anew here.`;
  if (count * scene.x.shape[0]! > LIVE_BATCH)
    return `The numbers are those that jbp saved. ${count.toLocaleString("en")} parameters and ${scene.x.shape[0]!.toLocaleString("en")} examples are too many to compute them anew here: give fewer examples.`;
  if (!scene.loss.known) return `The numbers are those that jbp saved. The page does not compute the loss ${scene.loss.name}.`;
  return "";
}

export interface Way {
  rule?: Rule | null;
  broken?: Broken;
}

/** Forward, loss, back and contracted, for one example. */
export function compute(scene: Scene, params: Arr[], x: Arr, y: Arr, way: Way = {}): Pass {
  const values: Arr[] = [x];
  for (const node of scene.nodes) values[node.id] = forward(node, node.inputs.map((i) => values[i]!), params);
  const output = values[scene.output]!;
  const { error, delta } = lossOf(scene.loss.name, output, y, scene.classes);
  const pass: Pass = { values, deltas: values.map(() => null), parts: {}, uses: [], grads: [], error };
  const came: Record<number, { node: number; part: Arr }[]> = { [scene.output]: [{ node: 0, part: delta }] };
  for (const node of [...scene.nodes].reverse()) {
    const d = met(came[node.id] ?? [], way.broken);
    pass.deltas[node.id] = d;
    if (!d) continue;
    const parts = backward(node, node.inputs.map((i) => values[i]!), values[node.id]!, d, params, way, delta);
    pass.parts[node.id] = parts;
    node.inputs.forEach((i, k) => parts[k] && (came[i] ??= []).unshift({ node: node.id, part: parts[k]! }));
    pass.uses.push(...contracted(node, values[node.inputs[0]!]!, d));
  }
  pass.deltas[0] = met(came[0] ?? [], way.broken);
  pass.grads = scene.params.map((p) => {
    const uses = pass.uses.filter((u) => scene.nodes[u.node - 1]!.params[u.name] === p.id);
    const kept = way.broken === "path" && uses.length > 1 ? uses.slice(0, 1) : uses;
    return sum(kept.map((u) => u.value)) ?? zeros(p.shape);
  });
  return pass;
}

/** The δ of a value: the sum of what came down its paths; with a path left out, all but one. */
function met(parts: { node: number; part: Arr }[], broken: Broken | undefined): Arr | null {
  const kept = broken === "path" && parts.length > 1 ? parts.slice(1) : parts;
  return sum(kept.map((p) => p.part));
}

function forward(node: Node, inputs: Arr[], params: Arr[]): Arr {
  const [x] = inputs as [Arr];
  switch (node.op) {
    case "same":
      return { shape: node.shape, data: x.data };
    case "add": {
      return { ...sum(inputs)!, shape: node.shape };
    }
    case "concat": {
      const out = zeros(node.shape);
      const width = node.shape.at(-1)!;
      let start = 0;
      for (const part of inputs) {
        const w = part.shape.at(-1)!;
        for (let t = 0; t < part.data.length / w; t++)
          out.data.set(part.data.subarray(t * w, (t + 1) * w), t * width + start);
        start += w;
      }
      return out;
    }
    case "dense": {
      const w = params[node.params.weight!]!, b = node.params.bias === undefined ? null : params[node.params.bias]!;
      const [i, o] = w.shape as [number, number];
      const out = zeros(node.shape);
      for (let t = 0; t < x.data.length / i; t++)
        for (let j = 0; j < o; j++) {
          let s = 0;
          for (let k = 0; k < i; k++) s += x.data[t * i + k]! * w.data[k * o + j]!;
          out.data[t * o + j] = s + (b ? b.data[j]! : 0);
        }
      return out;
    }
    case "act":
      return { shape: node.shape, data: activation(node, x) };
    default:
      throw new Error(`the page does not compute ${node.layer}`);
  }
}

function backward(node: Node, inputs: Arr[], y: Arr, d: Arr, params: Arr[], way: Way, error: Arr): (Arr | null)[] {
  const [x] = inputs as [Arr];
  const feedback = way.rule?.feedback?.[node.id];
  if (feedback) return [fed(error, feedback, x.shape)];
  switch (node.op) {
    case "same":
      return [{ shape: x.shape, data: d.data }];
    case "add":
      return inputs.map((a) => ({ shape: a.shape, data: d.data }));
    case "concat": {
      const width = y.shape.at(-1)!;
      let start = 0;
      return inputs.map((a) => {
        const w = a.shape.at(-1)!, out = zeros(a.shape);
        for (let t = 0; t < a.data.length / w; t++)
          out.data.set(d.data.subarray(t * width + start, t * width + start + w), t * w);
        start += w;
        return out;
      });
    }
    case "dense": {
      const w = way.rule?.back?.[node.params.weight!] ?? params[node.params.weight!]!;
      const [i, o] = w.shape as [number, number];
      const out = zeros(x.shape);
      for (let t = 0; t < out.data.length / i; t++)
        for (let k = 0; k < i; k++) {
          let s = 0;
          for (let j = 0; j < o; j++) s += d.data[t * o + j]! * w.data[way.broken === "transpose" ? j * i + k : k * o + j]!;
          out.data[t * i + k] = s;
        }
      return [out];
    }
    case "act": {
      if (way.broken === "slope") return [{ shape: x.shape, data: d.data }];
      if (node.facts.function === "softmax") return [softmaxBack(y, d)];
      const slopes = slope(node, x, y);
      const chooses = node.facts.function === "relu"; // it selects, so that 0·NaN is 0 there
      return [{ shape: x.shape, data: d.data.map((v, i) => (chooses && slopes[i] === 0 ? 0 : v * slopes[i]!)) }];
    }
    default:
      throw new Error(`the page does not compute ${node.layer}`);
  }
}

/** e B, in the shape of a layer's input. */
export function fed(error: Arr, b: Arr, shape: number[]): Arr {
  const out = zeros(shape);
  const [k, i] = b.shape as [number, number];
  for (let t = 0; t < out.data.length / i; t++)
    for (let c = 0; c < i; c++) {
      let s = 0;
      for (let j = 0; j < k; j++) s += error.data[t * k + j]! * b.data[j * i + c]!;
      out.data[t * i + c] = s;
    }
  return out;
}

function contracted(node: Node, h: Arr, d: Arr): Pass["uses"] {
  if (node.op !== "dense") return [];
  const o = d.shape.at(-1)!, i = h.shape.at(-1)!, uses = d.data.length / o;
  const weight = zeros([i, o]), bias = zeros([o]);
  for (let t = 0; t < uses; t++)
    for (let j = 0; j < o; j++) {
      const v = d.data[t * o + j]!;
      bias.data[j]! += v;
      for (let k = 0; k < i; k++) weight.data[k * o + j]! += h.data[t * i + k]! * v;
    }
  const found = [{ node: node.id, name: "weight", value: weight }];
  return node.params.bias === undefined ? found : [...found, { node: node.id, name: "bias", value: bias }];
}

const sigmoid = (s: number): number => 1 / (1 + Math.exp(-s));
const C = Math.sqrt(2 / Math.PI);

/** The complementary error function, by its series of positive terms and, further out, by its continued fraction. */
export function erfc(x: number): number {
  if (Number.isNaN(x)) return NaN;
  if (x < 0) return 2 - erfc(-x);
  if (x > 27) return 0;
  if (x < 2.5) {
    let term = x, total = x;
    for (let n = 1; term > 1e-18 * total; n++) total += term *= (2 * x * x) / (2 * n + 1);
    return 1 - (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
  }
  let f = 0;
  for (let n = 80; n > 0; n--) f = n / 2 / (x + f);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + f);
}

function activation(node: Node, x: Arr): Float64Array {
  const { function: name, negative_slope: a = 0.01, alpha = 1, approximate = true } = node.facts;
  switch (name) {
    case "identity": return x.data.slice();
    case "relu": return x.data.map((s) => (s > 0 || s !== s ? s : 0));
    case "leaky_relu": return x.data.map((s) => (s >= 0 ? s : a * s));
    case "tanh": return x.data.map(Math.tanh);
    case "sigmoid": return x.data.map(sigmoid);
    case "softplus": return x.data.map((s) => Math.max(s, 0) + Math.log1p(Math.exp(-Math.abs(s))));
    case "elu": return x.data.map((s) => (s > 0 ? s : alpha * Math.expm1(s)));
    case "silu": return x.data.map((s) => s * sigmoid(s));
    case "gelu": return x.data.map((s) => approximate ? s * 0.5 * (1 + Math.tanh(C * (s + 0.044715 * s ** 3))) : s * 0.5 * erfc(-s * Math.SQRT1_2));
    case "softmax": return softmax(x);
    default: throw new Error(`the page does not compute ${node.layer}`);
  }
}

/** θ′ of every number, of an activation that takes one number at a time. */
export function slope(node: Node, x: Arr, y: Arr): Float64Array {
  const { function: name, negative_slope: a = 0.01, alpha = 1, approximate = true } = node.facts;
  switch (name) {
    case "identity": return x.data.map(() => 1);
    case "relu": return y.data.map((v) => (v > 0 ? 1 : 0));
    case "leaky_relu": return y.data.map((v) => (v >= 0 ? 1 : a));
    case "tanh": return y.data.map((v) => (1 - v) * (1 + v));
    case "sigmoid": return y.data.map((v) => v * (1 - v));
    case "softplus": return y.data.map((v) => -Math.expm1(-v));
    case "elu": return y.data.map((v) => (v > 0 ? 1 : v + alpha));
    case "silu": return x.data.map((s) => sigmoid(s) * (1 + s * (1 - sigmoid(s))));
    case "gelu":
      return x.data.map((s) => {
        if (!approximate) return 0.5 * erfc(-s * Math.SQRT1_2) + (s * Math.exp(-0.5 * s * s)) / Math.sqrt(2 * Math.PI);
        const t = Math.tanh(C * (s + 0.044715 * s ** 3));
        return 0.5 * (1 + t) + 0.5 * s * (1 - t) * (1 + t) * C * (1 + 3 * 0.044715 * s * s);
      });
    default: throw new Error(`the page does not compute ${node.layer}`);
  }
}

function softmax(x: Arr): Float64Array {
  const k = x.shape.at(-1)!, out = new Float64Array(x.data.length);
  for (let t = 0; t < out.length; t += k) {
    let top = -Infinity, total = 0;
    for (let j = 0; j < k; j++) top = Math.max(top, x.data[t + j]!);
    for (let j = 0; j < k; j++) total += out[t + j] = Math.exp(x.data[t + j]! - top);
    for (let j = 0; j < k; j++) out[t + j]! /= total;
  }
  return out;
}

function softmaxBack(y: Arr, d: Arr): Arr {
  const k = y.shape.at(-1)!, out = zeros(y.shape);
  for (let t = 0; t < out.data.length; t += k) {
    let s = 0;
    for (let j = 0; j < k; j++) s += y.data[t + j]! * d.data[t + j]!;
    for (let j = 0; j < k; j++) out.data[t + j] = y.data[t + j]! * (d.data[t + j]! - s);
  }
  return out;
}

/** The target in the output's shape: of a class, 1 there and 0 elsewhere. */
export function spread(y: Arr, output: Arr, classes: boolean): Float64Array {
  if (!classes) return y.data;
  const k = output.shape.at(-1)!, out = new Float64Array(output.data.length);
  y.data.forEach((c, t) => (out[t * k + c] = 1));
  return out;
}

/** e of an example, and δ = ∂e/∂output; summed over outputs, averaged over positions. */
export function lossOf(name: string, output: Arr, y: Arr, classes: boolean): { error: number; delta: Arr } {
  const p = output.data, t = spread(y, output, classes), k = output.shape.at(-1) ?? 1, n = Math.max(1, p.length / k);
  const delta = zeros(output.shape);
  let e = 0;
  const each = (f: (p: number, t: number) => [number, number], scale = 1 / n): void =>
    p.forEach((v, i) => {
      const [value, slope] = f(v, t[i]!);
      e += value * scale;
      delta.data[i] = slope * scale;
    });
  switch (name) {
    case "squared_error": each((v, u) => [(v - u) ** 2, 2 * (v - u)]); break;
    case "l2_loss": each((v, u) => [0.5 * (v - u) ** 2, v - u]); break;
    case "mean_squared_error": each((v, u) => [(v - u) ** 2, 2 * (v - u)], 1 / p.length); break;
    case "sigmoid_binary_cross_entropy":
      each((v, u) => [Math.max(v, 0) - v * u + Math.log1p(Math.exp(-Math.abs(v))), sigmoid(v) - u]); break;
    case "cross_entropy": each((v, u) => (u === 0 ? [0, 0] : [-u * Math.log(v), -u / v])); break;
    case "softmax_cross_entropy": {
      const s = softmax(output);
      for (let c = 0; c < p.length; c += k) {
        let top = -Infinity, total = 0, mass = 0;
        for (let j = 0; j < k; j++) top = Math.max(top, p[c + j]!);
        for (let j = 0; j < k; j++) (total += Math.exp(p[c + j]! - top)), (mass += t[c + j]!);
        e += (mass * Math.log(total)) / n;
        for (let j = 0; j < k; j++) {
          if (t[c + j] !== 0) e -= (t[c + j]! * (p[c + j]! - top)) / n;
          delta.data[c + j] = (s[c + j]! * mass - t[c + j]!) / n;
        }
      }
      break;
    }
    default: throw new Error(`the page does not compute the loss ${name}`);
  }
  return { error: e, delta };
}

/** What was saved of one example, as a pass; of others than the one shown only where the batch was saved. */
export function saved(scene: Scene, n: number): Pass | null {
  const at = scene.saved === "batch" ? n : n === scene.example ? 0 : -1;
  if (at < 0) return null;
  const whole = (a: Arr): Arr => (a.folded ? { ...a, shape: a.shape.slice(1) } : row(a, at));
  const mine = n === scene.example;
  return {
    values: scene.values.map(whole),
    deltas: scene.deltas.map((d) => d && whole(d)),
    parts: {},
    uses: mine ? scene.uses.map(({ node, name, ...value }) => ({ node, name, value })) : [],
    grads: mine ? scene.grads : [],
    error: scene.errors.data[n]!,
  };
}

/** The largest difference of two arrays over the largest magnitude of the second. */
export function apart(found: Arr, wanted: Arr): number {
  let most = 0, scale = 0;
  if (found.data.length !== wanted.data.length) return Infinity;
  wanted.data.forEach((v, i) => {
    const f = found.data[i]!;
    if (Object.is(v, f) || v === f || (Number.isNaN(v) && Number.isNaN(f))) return;
    const difference = Math.abs(v - f);
    most = Math.max(most, Number.isNaN(difference) ? Infinity : difference);
  });
  wanted.data.forEach((v) => Number.isFinite(v) && (scale = Math.max(scale, Math.abs(v))));
  return most === 0 ? 0 : most / (scale || 1);
}

/** Every leaf that both the engine and jbp have, with how far they are apart. */
export function compared(scene: Scene, engine: typeof compute = compute): { leaf: string; error: number }[] {
  const found: { leaf: string; error: number }[] = [];
  const see = (leaf: string, a: Arr | null | undefined, b: Arr | null | undefined): void => {
    if (a && b) found.push({ leaf, error: apart(a, b) });
    else if (!a !== !b) found.push({ leaf, error: Infinity });
  };
  const number = (v: number): Arr => ({ shape: [], data: Float64Array.of(v) });
  const n = scene.x.shape[0]!;
  const passes = Array.from({ length: n }, (_, k) => engine(scene, scene.params, row(scene.x, k), row(scene.y, k)));
  passes.forEach((pass, k) => {
    see(`example ${k} error`, number(pass.error), number(scene.errors.data[k]!));
    const theirs = saved(scene, k);
    if (!theirs) return;
    scene.values.forEach((_, v) => see(`example ${k} value ${v}`, pass.values[v], theirs.values[v]));
    scene.values.forEach((_, v) => !(v === 0 && scene.integer_x) && see(`example ${k} delta ${v}`, pass.deltas[v], theirs.deltas[v]));
    if (k !== scene.example) return;
    scene.params.forEach((p, i) => see(`gradient ${p.name}`, pass.grads[i], scene.grads[i]));
    for (const use of theirs.uses)
      see(`use ${use.node}.${use.name}`, pass.uses.find((u) => u.node === use.node && u.name === use.name)?.value, use.value);
    for (const [name, rule] of Object.entries(scene.rules)) {
      const went = engine(scene, scene.params, row(scene.x, k), row(scene.y, k), { rule });
      scene.values.forEach((_, v) => !(v === 0 && scene.integer_x) && see(`${name} delta ${v}`, went.deltas[v], rule.deltas[v]));
      scene.params.forEach((p, i) => see(`${name} gradient ${p.name}`, went.grads[i], rule.grads[i]));
    }
  });
  const grads = passes.map((p) => p.grads);
  const norms = { shape: [n], data: Float64Array.from(grads, (g) => Math.sqrt(g.reduce((s, a) => s + a.data.reduce((q, v) => q + v * v, 0), 0))) };
  see("norms", norms, scene.norms);
  const factors = clipFactors(norms.data, scene.max_norm);
  see("clip factors", { shape: [n], data: factors }, scene.factors);
  const mean = weighed(grads, new Array(n).fill(1 / n));
  scene.params.forEach((p, i) => see(`mean ${p.name}`, mean[i], scene.mean[i]));
  // Where a norm is not finite its factor is 0, and 0·NaN is jbp's NaN and the page's 0.
  if (norms.data.every(Number.isFinite)) weighed(grads, factors).forEach((g, i) => see(`clipped ${scene.params[i]!.name}`, g, scene.clipped[i]));
  if (scene.update.kind !== "other") {
    const after = stepped(scene, scene.params, mean, scene.update.velocity).params;
    scene.params.forEach((p, i) => see(`update ${p.name}`, after[i], scene.update.new[i]));
  }
  return found;
}

/** cₙ = min(1, C/‖gₙ‖); 0 where the norm is not finite. */
export function clipFactors(norms: ArrayLike<number>, most: number): Float64Array {
  return Float64Array.from(norms, (v) => (Number.isFinite(v) ? (v > most ? most / v : 1) : 0));
}

/** The parameters, and the velocity, after a step on these gradients. */
export function stepped(scene: Scene, params: Arr[], grads: Arr[], velocity: Arr[], rate = scene.update.rate ?? 0): { params: Arr[]; velocity: Arr[] } {
  const beta = scene.update.momentum, moving = scene.update.kind === "momentum";
  const after = moving ? grads.map((g, p) => ({ shape: g.shape, data: g.data.map((v, i) => beta * velocity[p]!.data[i]! + v) })) : [];
  const along = moving
    ? scene.update.nesterov
      ? grads.map((g, p) => ({ shape: g.shape, data: g.data.map((v, i) => v + beta * after[p]!.data[i]!) }))
      : after
    : grads;
  return {
    params: params.map((w, p) => ({ shape: w.shape, data: w.data.map((v, i) => v - rate * along[p]!.data[i]!) })),
    velocity: after,
  };
}
