/** What Python writes (jbp/inspect/scene.py), decoded. */
export interface Arr {
  shape: number[];
  data: Float64Array;
  /** Of an array too large for the page: the shape of the means of blocks in `data`. */
  folded?: number[];
}

export interface Node {
  id: number;
  op: "dense" | "act" | "same" | "add" | "concat" | "other";
  name: string;
  layer: string;
  inputs: number[];
  params: Record<string, number>;
  path: number[];
  repetition: number[];
  formulas: [string, string];
  facts: { function?: string; negative_slope?: number; alpha?: number; approximate?: boolean };
  shape: number[];
}

export interface Param extends Arr {
  id: number;
  name: string;
  path: string[];
  repetition: number[];
}

export interface Rule {
  label: string;
  deltas: (Arr | null)[];
  grads: Arr[];
  angles: (number | null)[];
  decay: number | null;
  back?: Record<string, Arr>;
  feedback?: Record<string, Arr>;
}

export interface Scene {
  title: string;
  net: string;
  about?: string;
  loss: { name: string; formulas: [string, string]; known: boolean };
  classes: boolean;
  nodes: Node[];
  output: number;
  x: Arr;
  y: Arr;
  integer_x: boolean;
  labels: string[] | null;
  /** What the numbers of a whole input stand for, such as letters. */
  words?: string[];
  rows: string[] | null;
  others: string[];
  params: Param[];
  saved: "batch" | "example";
  example: number;
  values: Arr[];
  deltas: (Arr | null)[];
  grads: Arr[];
  uses: (Arr & { node: number; name: string })[];
  errors: Arr;
  norms: Arr;
  max_norm: number;
  factors: Arr;
  mean: Arr[];
  clipped: Arr[];
  update: {
    rate: number | null;
    momentum: number;
    nesterov: boolean;
    kind: "sgd" | "momentum" | "other";
    words: string;
    new: Arr[];
    velocity: Arr[];
  };
  rules: Record<string, Rule>;
  /** By the number of a node: what more jbp saved of it, as P of attention. */
  maps?: Record<string, (Arr & { label: string })[]>;
  reports: Record<string, { title: string; code: string; text: string }>;
}

/** One example's numbers: forward, loss, back, contracted. */
export interface Pass {
  values: Arr[];
  deltas: (Arr | null)[];
  /** What each node hands down to each of its inputs, in their order. */
  parts: Record<number, (Arr | null)[]>;
  uses: { node: number; name: string; value: Arr }[];
  grads: Arr[];
  error: number;
}

export type Broken = "" | "transpose" | "slope" | "path" | "sum";
