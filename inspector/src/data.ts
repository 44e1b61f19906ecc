import type { Arr, Scene } from "./types";

export const FORMAT = "jbp-scene-1";

export const size = (shape: number[]): number => shape.reduce((a, b) => a * b, 1);

export function zeros(shape: number[]): Arr {
  return { shape: [...shape], data: new Float64Array(size(shape)) };
}

/** Base64 of little-endian float64 numbers. */
export function floats(text: string): Float64Array {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  if (bytes.length % 8) throw new Error("a number is cut short");
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(8 * i, true));
}

/** Every {shape, f64} inside becomes an array. Throws a sentence where the numbers do not fill the shape. */
export function decoded(node: any): any {
  if (node === null || typeof node !== "object") return node;
  if (Array.isArray(node)) return node.map(decoded);
  const { f64, ...rest } = node;
  const found: any = Object.fromEntries(Object.entries(rest).map(([key, value]) => [key, decoded(value)]));
  if (typeof f64 === "string") {
    found.data = floats(f64);
    const wanted = size(found.folded ?? found.shape);
    if (found.data.length !== wanted) throw new Error(`an array of ${wanted} numbers holds ${found.data.length}`);
  }
  return found;
}

/** The scenes in a page's text. Throws one sentence for a reader where they cannot be shown. */
export function scenesOf(text: string | null | undefined): Scene[] {
  let raw: any;
  try {
    raw = JSON.parse(text ?? "null");
  } catch {
    throw new Error("The numbers in this file are damaged: make the page again with jbp inspect.");
  }
  if (raw === null) throw new Error("This page holds no numbers: it is the empty form that jbp inspect fills in.");
  if (!Array.isArray(raw) || !raw.length) throw new Error("The numbers in this file are damaged: make the page again with jbp inspect.");
  for (const scene of raw)
    if (scene?.format !== FORMAT)
      throw new Error(
        `The numbers in this file are of the form ${String(scene?.format)}, and this page reads ${FORMAT}: make it again with the jbp that made the numbers.`,
      );
  try {
    return raw.map(decoded);
  } catch (error) {
    throw new Error(`The numbers in this file are damaged (${(error as Error).message}): make the page again with jbp inspect.`);
  }
}

/** Row n of an array whose first axis is the batch. */
export function row(a: Arr, n: number): Arr {
  const shape = a.shape.slice(1);
  const k = size(shape);
  return { shape, data: a.data.slice(n * k, (n + 1) * k) };
}

export const sum = (parts: (Arr | null)[]): Arr | null => {
  let found: Arr | null = null;
  for (const part of parts) {
    if (!part) continue;
    if (!found) found = { shape: part.shape, data: part.data.slice() };
    else for (let i = 0; i < part.data.length; i++) found.data[i]! += part.data[i]!;
  }
  return found;
};

export const norm = (arrays: Arr[]): number => {
  let s = 0;
  for (const a of arrays) for (const v of a.data) s += v * v;
  return Math.sqrt(s);
};

/** Σ wₙ of lists of arrays. */
export function weighed(lists: Arr[][], weights: ArrayLike<number>): Arr[] {
  return lists[0]!.map((first, p) => {
    const out = zeros(first.shape);
    lists.forEach((list, n) => {
      const w = weights[n]!;
      if (w === 0) return;
      const data = list[p]!.data;
      for (let i = 0; i < data.length; i++) out.data[i]! += w * data[i]!;
    });
    return out;
  });
}

/** The angle between two arrays, in degrees, in the form that keeps its digits when it is small. */
export function angle(g: Arr, r: Arr): number {
  const u = norm([g]), v = norm([r]);
  let apart = 0, along = 0;
  for (let i = 0; i < g.data.length; i++) {
    const a = g.data[i]! / u, b = r.data[i]! / v;
    apart += (a - b) ** 2;
    along += (a + b) ** 2;
  }
  return (2 * Math.atan2(Math.sqrt(apart), Math.sqrt(along)) * 180) / Math.PI;
}
