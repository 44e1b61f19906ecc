/** An array as grids of numbers side by side. */
import { size } from "./data";
import type { Arr, Node, Scene } from "./types";

export interface Plane {
  label: string;
  rows: number;
  cols: number;
  index: (r: number, c: number) => number;
}
const MOST = 32;

/** The grids of an array; of a weight [h·w, o] on an image of h × w, one image for each output. */
export function planes(a: Arr, image?: [number, number]): { planes: Plane[]; left: number } {
  const s = a.folded ?? a.shape;
  if (image && !a.folded && (s.length !== 2 || s[0] !== image[0] * image[1])) throw new Error(`an array of ${s.join(" × ")} is no images of ${image.join(" × ")}`);
  const plain = (rows: number, cols: number): { planes: Plane[]; left: number } => ({ planes: [{ label: "", rows, cols, index: (r, c) => r * cols + c }], left: 0 });
  if (a.folded) return plain(s[0]!, s[1]!);
  if (image && s.length === 2) {
    const [h, w] = image, o = s[1]!, n = Math.min(o, MOST);
    return { planes: Array.from({ length: n }, (_, k) => ({ label: String(k), rows: h, cols: w, index: (r, c) => (r * w + c) * o + k })), left: o - n };
  }
  if (s.length <= 1) return plain(1, size(s));
  if (s.length === 2) return plain(s[0]!, s[1]!);
  const [h, w] = s as [number, number], rest = size(s.slice(2)), n = Math.min(rest, MOST);
  return { planes: Array.from({ length: n }, (_, k) => ({ label: rest > 1 ? String(k) : "", rows: h, cols: w, index: (r, c) => (r * w + c) * rest + k })), left: rest - n };
}

/** The height and width of an image of one channel. */
export function imageOf(shape: number[]): [number, number] | undefined {
  const s = shape.filter((k, i) => i < 2 || k !== 1);
  return s.length === 2 && s[0]! > 3 && s[1]! > 3 && s[0]! * s[1]! <= 4096 ? [s[0]!, s[1]!] : undefined;
}

const shapeOf = (scene: Scene, v: number): number[] => (v === 0 ? scene.x.shape.slice(1) : scene.nodes[v - 1]!.shape);

/**
 * The image whose numbers, laid flat, are the rows of a dense layer's weight: then its columns are images. Nothing where
 * the layer stands on positions of a sequence, each of which is a row of the input and not a pixel.
 */
export function pictureOf(scene: Scene, node: Node): [number, number] | undefined {
  let v = node.inputs[0]!;
  if (node.op !== "dense" || shapeOf(scene, v).length !== 1) return undefined;
  const rows = scene.params[node.params.weight!]!.shape[0]!;
  for (;;) {
    const shape = shapeOf(scene, v);
    if (shape.length > 1) {
      const image = imageOf(shape);
      return image && image[0] * image[1] === rows ? image : undefined;
    }
    if (v === 0 || scene.nodes[v - 1]!.op !== "same") return undefined;
    v = scene.nodes[v - 1]!.inputs[0]!;
  }
}
