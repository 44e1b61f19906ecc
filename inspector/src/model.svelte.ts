/** What the page knows: which scene, which step, which number; everything else follows. */
import { row, weighed, zeros } from "./data";
import { angle, norm, sum } from "./data";
import { clipFactors, compared, compute, saved, stepped, whyNot } from "./engine";
import { arrayOf, cellOf, explain, keyOf, type Cell, type Context } from "./explain";
import { NOTATIONS, Symbols, type Notation } from "./notation";
import { stepsOf, type Step } from "./steps";
import type { Arr, Broken, Pass, Rule, Scene } from "./types";

export type Gradient = "one" | "mean" | "clipped";
const BROKEN: Broken[] = ["", "transpose", "slope", "path", "sum"];

export class Model {
  readonly scenes: Scene[];
  index = $state(0);
  step = $state(0);
  cell = $state.raw<Cell | null>(null);
  notation = $state<Notation>("jbp");
  example = $state(0);
  gradient = $state<Gradient>("one");
  bound = $state(1);
  left = $state.raw<number[]>([]);
  rule = $state("");
  broken = $state<Broken>("");
  drawing = $state<"net" | "maps">("net");
  playing = $state(false);
  dark = $state(false);
  rate = $state(0.1);
  /** What was changed: parameters, and per example x and y. */
  params = $state.raw<Arr[]>([]);
  velocity = $state.raw<Arr[]>([]);
  back = $state.raw<Record<string, Record<string, Arr>>>({});
  changedX = $state.raw<Record<number, Arr>>({});
  changedY = $state.raw<Record<number, Arr>>({});
  steps_taken = $state(0);

  scene = $derived.by(() => this.scenes[this.index]!);
  why = $derived(whyNot(this.scene));
  live = $derived(this.why === "");
  steps = $derived<Step[]>(stepsOf(this.scene));
  now = $derived(this.steps[Math.min(this.step, this.steps.length - 1)]!);
  symbols = $derived(new Symbols(this.scene, this.notation));
  count = $derived(this.scene.x.shape[0]!);
  x = $derived(this.xOf(this.example));
  y = $derived(this.yOf(this.example));
  changed = $derived(this.steps_taken > 0 || this.params.some((p, i) => p !== this.scene.params[i]) || Object.keys(this.changedX).length + Object.keys(this.changedY).length > 0);

  /** The rule that is on, with the weights it has come to. */
  ruleNow = $derived.by<Rule | null>(() => {
    const rule = this.scene.rules[this.rule];
    if (!rule) return null;
    return this.back[this.rule] ? { ...rule, back: this.back[this.rule]! } : rule;
  });

  /** Backpropagation's own numbers of this example. */
  truth = $derived.by<Pass>(() => {
    return this.live ? compute(this.scene, this.params, this.x, this.y) : saved(this.scene, this.example)!;
  });

  /** The numbers that are shown: under a rule, or with a mistake. */
  pass = $derived.by<Pass>(() => {
    if (this.live) return this.ruleNow || this.broken ? compute(this.scene, this.params, this.x, this.y, { rule: this.ruleNow, broken: this.broken }) : this.truth;
    const rule = this.ruleNow;
    if (!rule || this.example !== this.scene.example) return this.truth;
    return { ...this.truth, deltas: rule.deltas.map((d) => d && (d.folded ? { ...d, shape: d.shape.slice(1) } : row(d, 0))), grads: rule.grads };
  });

  /** What it was before numbers were changed; null where none were. */
  before = $derived.by<Pass | null>(() => (this.live && this.changed ? compute(this.scene, this.scene.params, row(this.scene.x, this.example), row(this.scene.y, this.example)) : null));

  /** Of every example: its pass, if the page computes it. */
  passes = $derived.by<Pass[]>(() => {
    if (!this.live) return [];
    return Array.from({ length: this.count }, (_, n) => compute(this.scene, this.params, this.xOf(n), this.yOf(n), { rule: this.ruleNow, broken: this.broken }));
  });

  errors = $derived(this.live ? Float64Array.from(this.passes, (p) => p.error) : this.scene.errors.data);
  norms = $derived(this.live ? Float64Array.from(this.passes, (p) => norm(p.grads)) : this.scene.norms.data);
  factors = $derived(clipFactors(this.norms, this.bound));
  taking = $derived(Array.from({ length: this.count }, (_, n) => !this.left.includes(n)));
  /** 1/N, or with the mistake 1, of those that take part. */
  share = $derived(this.broken === "sum" ? 1 : 1 / Math.max(1, this.count - this.left.length));

  mean = $derived.by<Arr[]>(() => (this.live ? weighed(this.passes.map((p) => p.grads), this.taking.map((on) => (on ? this.share : 0))) : this.scene.mean));
  whole = $derived.by<Arr[]>(() => (this.live ? weighed(this.passes.map((p) => p.grads), this.taking.map(() => 1 / this.count)) : this.scene.mean));
  clipped = $derived.by<Arr[]>(() =>
    this.live
      ? weighed(this.passes.map((p) => p.grads), this.taking.map((on, n) => (on ? this.share * this.factors[n]! : 0)))
      : this.scene.clipped.map((a) => ({ ...a, data: a.data.map((v) => v / this.count) })));

  /** The gradients that are shown; none where jbp saved none of this example. */
  grads = $derived<Arr[]>(this.gradient === "one" ? this.pass.grads : this.gradient === "mean" ? this.mean : this.clipped);
  stepped = $derived.by(() => {
    if (!this.grads.length) return { params: [] as Arr[], velocity: [] as Arr[] };
    if (this.scene.update.kind === "other" || this.scene.params.some((p) => p.folded)) return { params: this.scene.update.new, velocity: [] as Arr[] };
    return stepped(this.scene, this.params, this.grads, this.velocity, this.rate);
  });

  angles = $derived.by<(number | null)[]>(() => {
    const rule = this.ruleNow;
    if (!rule) return [];
    if (!this.live) return rule.angles;
    const n = this.count, even = new Array(n).fill(1 / n);
    const truths = Array.from({ length: n }, (_, k) => compute(this.scene, this.params, this.xOf(k), this.yOf(k)).grads);
    const mine = weighed(this.passes.map((p) => p.grads), even);
    return weighed(truths, even).map((g, i) => (norm([g]) > 0 && norm([mine[i]!]) > 0 ? angle(g, mine[i]!) : null));
  });

  context = $derived<Context>({
    scene: this.scene, pass: this.pass, params: this.params, target: this.y, grads: this.grads, after: this.stepped.params,
    velocity: this.velocity, rate: this.rate, symbols: this.symbols, rule: this.ruleNow, broken: this.broken, live: this.live, gradient: this.gradient,
  });
  explained = $derived(this.cell && this.exists(this.cell) ? explain(this.cell, this.context) : null);
  sources = $derived(new Set(this.explained?.terms.flatMap((t) => t.cells.map(keyOf)) ?? []));
  /** The arrays in which a number is framed. */
  touched = $derived(new Set([...(this.cell ? [this.cell] : []), ...(this.explained?.terms.flatMap((t) => t.cells) ?? [])].map(arrayOf)));

  /** How far the page's own computation is from jbp's numbers, of this scene as it came. */
  check = $derived.by(() => {
    if (!this.live) return null;
    const found = compared(this.scene);
    return { leaves: found.length, error: Math.max(...found.map((f) => f.error)) };
  });

  constructor(scenes: Scene[]) {
    this.scenes = scenes;
    this.enter(0);
  }

  xOf(n: number): Arr {
    return this.changedX[n] ?? row(this.scene.x, n);
  }
  yOf(n: number): Arr {
    return this.changedY[n] ?? row(this.scene.y, n);
  }

  /** Whether a value, a δ, a gradient or a new parameter has been reached by the scrubber. */
  shown(c: { kind: Cell["kind"]; of: number }): boolean {
    if (c.kind === "g" && !this.grads[c.of]) return false;
    if (c.kind === "n" && !this.stepped.params[c.of]) return false;
    return this.step >= this.reach(c);
  }
  /** Whether the numbers of an example are known. */
  has(n: number): boolean {
    return this.live || this.scene.saved === "batch" || n === this.scene.example;
  }
  reach({ kind, of }: { kind: Cell["kind"]; of: number }): number {
    const at = (match: (s: Step) => boolean): number => this.steps.findIndex(match);
    switch (kind) {
      case "v": return of === 0 ? 0 : at((s) => s.phase === "forward" && s.node?.id === of);
      case "p": case "t": return 0;
      case "e": return at((s) => s.phase === "loss");
      case "d": {
        const users = this.scene.nodes.filter((n) => n.inputs.includes(of));
        return Math.max(at((s) => s.phase === "loss"), ...users.map((n) => at((s) => s.phase === "backward" && s.node?.id === n.id)));
      }
      case "g": case "n": {
        const users = this.scene.nodes.filter((n) => Object.values(n.params).includes(of));
        return Math.max(...users.map((n) => at((s) => s.phase === (kind === "g" ? "gradient" : "update") && s.node?.id === n.id)));
      }
    }
  }

  /** Begin with a scene as it came. */
  enter(i: number): void {
    this.index = i;
    const scene = this.scenes[i]!;
    this.step = 0;
    this.cell = null;
    this.example = scene.example;
    this.gradient = "one";
    this.bound = scene.max_norm;
    this.left = [];
    this.rule = "";
    this.broken = "";
    this.rate = scene.update.rate ?? 0.1;
    this.reset();
  }

  reset(): void {
    this.params = this.scene.params;
    this.velocity = this.scene.update.velocity.length ? this.scene.update.velocity : this.scene.params.map((p) => (p.folded ? p : zeros(p.shape)));
    this.changedX = {};
    this.changedY = {};
    this.back = {};
    this.steps_taken = 0;
  }

  /** Put another number in a cell of the input, the target or a parameter. */
  change(c: Cell, value: number): void {
    if (!this.live || !Number.isFinite(value)) return;
    const put = (a: Arr): Arr => {
      const data = a.data.slice();
      data[c.i] = value;
      return { ...a, data };
    };
    if (c.kind === "v" && c.of === 0) this.changedX = { ...this.changedX, [this.example]: put(this.x) };
    else if (c.kind === "t") {
      const k = this.scene.nodes[this.scene.output - 1]?.shape.at(-1) ?? 1;
      if (this.scene.classes) value = Math.min(k - 1, Math.max(0, Math.round(value)));
      this.changedY = { ...this.changedY, [this.example]: put(this.y) };
      if (this.scene.classes) this.changedY[this.example]!.data[c.i] = value;
    } else if (c.kind === "p") this.params = this.params.map((p, i) => (i === c.of ? put(p) : p));
  }

  /** Whether a cell can be changed by hand. */
  free(c: Cell | null): boolean {
    return this.live && !!c && (c.kind === "p" || c.kind === "t" || (c.kind === "v" && c.of === 0 && !this.scene.integer_x));
  }

  /** Take the step: the parameters become those after it, and begin again. Of Kolen and Pollack's rule B follows. */
  take(times = 1): void {
    if (!this.live || this.scene.update.kind === "other") return;
    for (let k = 0; k < times; k++) {
      const before = this.params, after = this.stepped, rule = this.ruleNow;
      if (rule?.back && rule.decay !== null && this.rule === "kolen_pollack") {
        const decay = rule.decay;
        const back = Object.fromEntries(Object.entries(rule.back).map(([p, b]) => [p, { ...b, data: b.data.map((v, i) => v + after.params[+p]!.data[i]! - before[+p]!.data[i]! - decay * v) }]));
        this.back = { ...this.back, [this.rule]: back };
        this.params = after.params.map((w, p) => (rule.back![p] ? { ...w, data: w.data.map((v, i) => v - decay * before[p]!.data[i]!) } : w));
      } else this.params = after.params;
      if (after.velocity.length) this.velocity = after.velocity;
      this.steps_taken++;
    }
  }

  go(step: number): void {
    this.step = Math.min(this.steps.length - 1, Math.max(0, step));
  }
  /** The step at which every δ is there. */
  get back_done(): number {
    return this.steps.findLastIndex((s) => s.phase === "backward");
  }
  jump(phase: string): void {
    const at = this.steps.findIndex((s) => s.phase === phase);
    if (at >= 0) this.step = at;
  }

  /** The link to what is seen: everything that a teacher would want to send. */
  get link(): string {
    const found = new URLSearchParams();
    if (this.index) found.set("scene", String(this.index + 1));
    found.set("at", this.now.key);
    if (this.cell) found.set("cell", keyOf(this.cell));
    if (this.example !== this.scene.example) found.set("example", String(this.example));
    if (this.gradient !== "one") found.set("gradient", this.gradient);
    if (this.bound !== this.scene.max_norm) found.set("C", String(this.bound));
    if (this.left.length) found.set("without", this.left.join("."));
    if (this.rule) found.set("rule", this.rule);
    if (this.broken) found.set("broken", this.broken);
    if (this.notation !== "jbp") found.set("notation", this.notation);
    if (this.rate !== this.scene.update.rate) found.set("rate", String(this.rate));
    const edits = [
      ...this.params.flatMap((p, i) => edited(p, this.scene.params[i]!, `p${i}`)),
      ...Object.entries(this.changedX).flatMap(([n, a]) => edited(a, row(this.scene.x, +n), `x${n}`)),
      ...Object.entries(this.changedY).flatMap(([n, a]) => edited(a, row(this.scene.y, +n), `y${n}`)),
    ];
    if (edits.length && edits.length <= 40) found.set("changed", edits.join("_"));
    return found.toString();
  }

  /** Go to where a link leads; what it says wrongly is passed over. */
  follow(link: string): void {
    const said = new URLSearchParams(link.replace(/^#/, ""));
    const whole = (text: string | null, n: number): number | null => (text !== null && /^\d+$/.test(text) && +text < n ? +text : null);
    const number = (text: string | null): number | null => (text !== null && text !== "" && Number.isFinite(+text) ? +text : null);
    const scene = number(said.get("scene"));
    const at = scene !== null && this.scenes[scene - 1] ? scene - 1 : 0;
    this.enter(at);
    const example = whole(said.get("example"), this.count);
    if (example !== null && this.has(example)) this.example = example;
    const gradient = said.get("gradient");
    if (gradient === "mean" || gradient === "clipped") this.gradient = gradient;
    const bound = number(said.get("C"));
    if (bound !== null && bound > 0) this.bound = bound;
    this.left = (said.get("without") ?? "").split(".").map((t) => whole(t, this.count)).filter((n): n is number => n !== null).slice(0, this.count - 1);
    if (this.scene.rules[said.get("rule") ?? ""]) this.rule = said.get("rule")!;
    if (BROKEN.includes(said.get("broken") as Broken)) this.broken = said.get("broken") as Broken;
    this.notation = (said.get("notation") ?? "") in NOTATIONS ? (said.get("notation") as Notation) : "jbp";
    const rate = number(said.get("rate"));
    if (rate !== null && rate >= 0) this.rate = rate;
    for (const edit of (said.get("changed") ?? "").split("_")) {
      const found = /^([pxy])(\d+)\.(\d+):(.+)$/.exec(edit);
      if (!found || !this.live) continue;
      const [, kind, of, i, value] = found, v = Number(value);
      const size = kind === "p" ? this.params[+of!]?.data.length : +of! < this.count ? (kind === "x" ? this.x : this.y).data.length : 0;
      if (!size || +i! >= size || !Number.isFinite(v)) continue;
      const example = this.example;
      if (kind !== "p") this.example = +of!;
      this.change({ kind: kind === "p" ? "p" : kind === "x" ? "v" : "t", of: kind === "p" ? +of! : 0, i: +i! }, v);
      this.example = example;
    }
    const step = this.steps.findIndex((s) => s.key === said.get("at"));
    if (step >= 0) this.step = step;
    const cell = cellOf(said.get("cell") ?? "");
    this.cell = cell && this.exists(cell) ? cell : null;
  }

  private exists(c: Cell): boolean {
    const of = { v: this.pass.values, d: this.pass.deltas, p: this.params, g: this.grads, n: this.stepped.params, e: [{ data: [0] }], t: [this.y] }[c.kind][c.of];
    return !!of && c.i < of.data.length;
  }
}

function edited(a: Arr, before: Arr, name: string): string[] {
  if (a === before || a.folded) return [];
  return Array.from(a.data, (v, i) => (v === before.data[i] ? "" : `${name}.${i}:${v}`)).filter(Boolean);
}

export { sum };
