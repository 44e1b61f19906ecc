/** The symbols of docs/notation.md: jbp's own, and those of each of the five lectures. */
import type { Node, Scene } from "./types";

export type Notation = "jbp" | "A" | "B" | "C" | "D" | "E";

export const NOTATIONS: Record<Notation, string> = {
  jbp: "jbp",
  A: "lecture A: h, p, ε",
  B: "lecture B: s, x, δ, η",
  C: "lecture C: z, ∂C/∂z",
  D: "lecture D: i, a, ∂C/∂i, α",
  E: "lecture E: net, h, ∂L/∂net, α",
};

type Role = "input" | "pre" | "post";

/** What a value is: the input, what goes into an activation, or what comes out of one. */
function role(scene: Scene, v: number): Role {
  if (v === 0) return "input";
  const node = scene.nodes[v - 1]!;
  return node.op === "act" || node.op === "same" || node.op === "concat" ? "post" : "pre";
}

const place = (node: Node | undefined): string => node?.name ?? "";
const number = (node: Node | undefined): string => place(node).split(".")[0] ?? "";
const word = (s: string): string => s.replace(/_/g, "\\_");
const up = (n: string): string => (/^\d+$/.test(n) ? n : `\\text{${word(n)}}`);

export class Symbols {
  constructor(private scene: Scene, readonly notation: Notation) {}

  /** An index, from 1 in the lectures, and from 0 in jbp. */
  index(shape: number[], i: number): string {
    const at: number[] = [];
    for (let k = shape.length - 1; k >= 0; k--) (at.unshift(i % shape[k]!), (i = Math.floor(i / shape[k]!)));
    return at.map((k) => (this.notation === "jbp" ? k : k + 1)).join(",");
  }

  private at(symbol: string, l: string, shape: number[], i: number | string | null): string {
    const index = typeof i === "number" ? this.index(shape, i) : i;
    if (this.notation === "jbp") return `${symbol}${l === "" ? "" : `^{${up(l)}}`}${index === null ? "" : `[${index}]`}`;
    return `${symbol}${index === null ? "" : `_{${index}}`}${l === "" ? "" : `^{(${up(l)})}`}`;
  }

  /** A value, an entry of it, or with a letter for its index. */
  value(v: number, i: number | string | null = null): string {
    const node = this.scene.nodes[v - 1], r = role(this.scene, v), shape = v ? node!.shape : this.scene.x.shape.slice(1);
    if (r === "input") return this.at(this.notation === "D" ? "i_1" : "x", "", shape, i).replace("i_1_{", "i_{1,");
    const symbol = {
      jbp: "y", A: "h", B: r === "pre" ? "s" : "x", C: r === "pre" ? "z" : "a", D: r === "pre" ? "i" : "a",
      E: r === "pre" ? "\\mathrm{net}" : "h",
    }[this.notation];
    return this.at(symbol, this.notation === "jbp" ? place(node) : this.layer(node), shape, i);
  }

  /** The number of a layer in a lecture; where several values would share it, with the kind. */
  private layer(node: Node | undefined): string {
    const own = place(node), n = number(node), r = role(this.scene, node!.id);
    const same = this.scene.nodes.filter((other) => number(other) === n && role(this.scene, other.id) === r);
    return same.length > 1 && same[0]!.id !== node!.id ? own : n;
  }

  /** δ of a value: ∂e/∂value, as the lecture writes it. */
  delta(v: number, i: number | string | null = null): string {
    const node = this.scene.nodes[v - 1], r = role(this.scene, v), shape = v ? node!.shape : this.scene.x.shape.slice(1);
    if (this.notation === "jbp") return this.at("\\delta", v ? place(node) : "\\mathrm{x}".replace("\\mathrm{x}", "x"), shape, i);
    if (this.notation === "A") return this.at("p", v ? this.layer(node) : "0", shape, i);
    if (this.notation === "B" && r === "pre") return this.at("\\delta", this.layer(node), shape, i);
    return `\\frac{\\partial ${this.error()}}{\\partial ${this.value(v, i)}}`;
  }

  error(): string {
    return { jbp: "e", A: "R", B: "e", C: "C", D: "C", E: "L" }[this.notation];
  }

  rate(): string {
    return { jbp: "\\eta", A: "\\varepsilon", B: "\\eta", C: "\\eta", D: "\\alpha", E: "\\alpha" }[this.notation];
  }

  target(i: number | string | null = null): string {
    const symbol = this.notation === "jbp" || this.notation === "E" ? "t" : "y";
    return i === null ? symbol : this.at(symbol, "", [this.scene.y.data.length], i);
  }

  output(i: number | string | null = null): string {
    if (this.notation === "jbp") return this.at("p", "", this.scene.nodes[this.scene.output - 1]?.shape ?? [], i);
    if (this.notation === "A") return this.at("\\hat y", "", this.scene.nodes[this.scene.output - 1]?.shape ?? [], i);
    return this.value(this.scene.output, i);
  }

  /** A parameter, or an entry of it. */
  param(p: number, i: number | null = null): string {
    const { name, shape, path } = this.scene.params[p]!;
    const l = name.split(".")[0]!, local = String(path.at(-1) ?? "");
    const kind = local === "weight" ? "w" : local === "bias" ? "b" : `\\text{${word(local)}}`;
    if (i === null) return this.at(kind === "w" ? "W" : kind, l, shape, null);
    if (this.notation === "E" && kind === "w" && shape.length === 2) {
      const [a, b] = this.index(shape, i).split(",");
      return this.at("w", l, shape, `${b},${a}`);
    }
    if (this.notation === "B" && kind === "b") return this.at("w", l, shape, `0,${this.index(shape, i)}`);
    return this.at(kind, l, shape, i);
  }

  gradient(p: number, i: number | null = null): string {
    return `\\frac{\\partial ${this.error()}}{\\partial ${this.param(p, i)}}`;
  }
}
