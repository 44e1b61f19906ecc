/** Where the values of a small net stand in its drawing. */
import { size } from "./data";
import type { Node, Scene } from "./types";

export const BOX = { w: 94, h: 48 };

export interface Column {
  v: number;
  x: number;
  /** Of the middle of each unit. */
  ys: number[];
  shape: number[];
}
export interface Layout {
  columns: Column[];
  width: number;
  height: number;
  lossX: number;
  labels: boolean;
  pitch: number;
  /** The y of the 1 whose weights are a dense node's biases. */
  ones: Record<number, number>;
  /** Where along the edges of a dense node the labels stand. */
  along: Record<number, number>;
  skips: { from: number; to: number; y: number }[];
}

const MOST = 8, MOST_NODES = 22;

/** Whether the units of a net can be drawn one by one. */
export function drawable(scene: Scene): boolean {
  const shapes = [scene.x.shape.slice(1), ...scene.nodes.map((n) => n.shape)];
  return !scene.integer_x && scene.nodes.length <= MOST_NODES && shapes.every((s) => size(s) <= MOST && s.length <= 1) && !scene.params.some((p) => p.shape.length > 2);
}

export function layout(scene: Scene): Layout {
  const shapes = [scene.x.shape.slice(1), ...scene.nodes.map((n) => n.shape)];
  const depth: number[] = [0];
  for (const n of scene.nodes) depth[n.id] = Math.max(...n.inputs.map((i) => depth[i]!)) + 1;
  const dense = scene.nodes.filter((n) => n.op === "dense");
  const labels = dense.every((n) => n.shape[0]! <= 3 && size(shapes[n.inputs[0]!]!) <= 3);
  const sources = (n: Node): number => size(shapes[n.inputs[0]!]!) + (n.params.bias === undefined ? 0 : 1);
  /** Whether another dense node stands in the same column: then labels go to the targets, which are apart. */
  const beside = (n: Node): boolean => dense.some((m) => m.id !== n.id && depth[m.id] === depth[n.id]);
  const fan = Math.max(1, ...dense.map((n) => (beside(n) ? sources(n) : sources(n) > 1 ? n.shape[0]! : 1)));
  const places = Object.fromEntries(dense.map((n) => [n.id, beside(n) ? sources(n) / (sources(n) + 1) : along(sources(n), n.shape[0]!)]));
  /** Between two columns: so much that no label touches a box. */
  const room = (nodes: Node[]): number => Math.max(118, ...nodes.filter((n) => n.op === "dense").map((n) => 40 / Math.min(places[n.id]!, 1 - places[n.id]!)));
  const levels = Math.max(...depth);
  const at: number[] = [20];
  for (let d = 1; d <= levels; d++) {
    const nodes = scene.nodes.filter((n) => depth[n.id] === d);
    const single = nodes.every((n) => size(n.shape) === 1 && size(shapes[n.inputs[0]!]!) === 1 && n.params.bias === undefined);
    const step = nodes.some((n) => n.op === "dense") ? (single ? 190 : labels ? BOX.w + room(nodes) : 180) : 130;
    at[d] = at[d - 1]! + step;
  }
  const pitch = labels ? Math.max(104, 42 * (fan + 1)) : 74;
  const lanes: number[][] = Array.from({ length: levels + 1 }, (_, d) => shapes.map((_, v) => v).filter((v) => depth[v] === d));
  const units = (v: number): number => Math.max(1, size(shapes[v]!));
  const ground = labels ? 1 : 0;
  const rows = Math.max(...lanes.map((lane) => lane.reduce((n, v) => n + units(v), 0) + (lane.length - 1) * ground));
  const far = scene.nodes.flatMap((n) => n.inputs.filter((i) => depth[n.id]! - depth[i]! > 1).map((i) => ({ from: i, to: n.id, y: 0 })));
  // Heights above the middle line, in units of the pitch; an activation stands beside what goes into it.
  const middles: number[] = [];
  for (const lane of lanes) {
    const own = lane.reduce((n, v) => n + units(v), 0) + (lane.length - 1) * ground;
    let y = -own / 2;
    for (const v of lane) {
      const node = scene.nodes[v - 1], flat = node && node.op !== "dense" && node.inputs.length === 1 && lane.length === 1;
      middles[v] = flat ? middles[node.inputs[0]!]! : y + units(v) / 2;
      y += units(v) + ground;
    }
  }
  const skips = far.filter((s) => middles[s.from] === middles[s.to]);
  skips.forEach((s, k) => (s.y = 26 + 22 * k));
  const top = 30 + 24 * skips.length + BOX.h / 2 + 14;
  const columns: Column[] = [];
  const ones: Record<number, number> = {};
  shapes.forEach((shape, v) => {
    const first = top + (rows / 2 + middles[v]! - units(v) / 2) * pitch;
    columns[v] = { v, x: at[depth[v]!]!, ys: Array.from({ length: units(v) }, (_, i) => first + i * pitch), shape };
  });
  for (const n of dense) {
    const ys = columns[n.inputs[0]!]!.ys;
    if (labels && n.params.bias !== undefined) ones[n.id] = ys.at(-1)! + pitch;
  }
  const lossX = at[levels]! + 122;
  const last = Math.max(...Object.values(ones).map((y) => y + 24), ...columns.flatMap((c) => c.ys.map((y) => y + BOX.h / 2 + 26)));
  return { columns, width: lossX + 2 * BOX.w + 34, height: last, lossX, labels, pitch, ones, along: places, skips };
}

/** Where along an edge its label stands, so that those of a layer come apart. */
export const along = (sources: number, targets: number): number => (sources === 1 && targets === 1 ? 0.5 : targets === 1 ? 0.42 : 1 / (targets + 1) + (sources === 1 ? 0.1 : 0));

/** A column's heading. */
export const heading = (node: Node): string => (node.op === "dense" ? `layer ${node.name}` : node.op === "other" ? node.layer : node.name);
