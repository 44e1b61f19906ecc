/** The scrubber's steps: four phases, layer by layer. */
import type { Node, Scene } from "./types";

export type Phase = "forward" | "loss" | "backward" | "gradient" | "update";
export const PHASES: Record<Phase, string> = {
  forward: "1 Forward",
  loss: "2 Loss",
  backward: "3 Backward",
  gradient: "4 Contract",
  update: "Update",
};

export interface Step {
  phase: Phase;
  node: Node | null;
  /** In a link: backward.2. */
  key: string;
  /** What happens. */
  words: string;
}

const WORDS: Record<Node["op"], [string, string]> = {
  dense: ["every output is the sum of inputs times weights, plus a bias", "δ of its outputs goes back along the same weights, each input collecting its sum"],
  act: ["every number goes through the function", "δ is multiplied by the slope θ′ of the function at each number"],
  same: ["the same numbers in another shape", "δ takes the old shape again"],
  add: ["the paths meet, and add up", "each path gets the whole δ; where they part again, their δ add up"],
  concat: ["the paths are put side by side", "each path gets its own part of δ"],
  other: ["", ""],
};

export function stepsOf(scene: Scene): Step[] {
  const back = [...scene.nodes].reverse(), holders = scene.nodes.filter((n) => Object.keys(n.params).length);
  const at = (phase: Phase, node: Node, words: string): Step => ({ phase, node, key: `${phase}.${node.name}`, words });
  const named = (n: Node): string => (n.op === "dense" ? `Layer ${n.name}, ${n.layer}` : n.op === "other" ? n.layer : n.name);
  const plain = (n: Node): string => (n.op === "dense" ? `layer ${n.name}` : n.op === "other" ? n.layer : n.name);
  return [
    { phase: "forward", node: null, key: "start", words: "The input x is known, and every weight. Nothing else is yet." },
    ...scene.nodes.map((n) => at("forward", n, `${named(n)}: ${WORDS[n.op][0] || n.formulas[0]}.`)),
    { phase: "loss", node: null, key: "loss", words: `The loss, ${scene.loss.name}, compares the output with the target. δ, how the error changes with each output, begins here.` },
    ...back.map((n) => at("backward", n, `Back through ${plain(n)}: ${WORDS[n.op][1] || n.formulas[1]}.`)),
    ...[...holders].reverse().map((n) => at("gradient", n, `The gradient of ${plain(n)}: what came in, h, times what came back, δ, for each pair of them: h ⊗ δ.`)),
    ...holders.map((n) => at("update", n, `The step of ${plain(n)}: against the gradient, by the learning rate.`)),
  ];
}
