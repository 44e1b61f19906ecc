/** A grid of numbers on a canvas, whole pixels at a time: a thousand numbers in about a millisecond. */

interface Colours {
  shades: Uint32Array;
  bad: number;
  empty: number;
}
const STEPS = 254;
const known: Record<string, Colours> = {};

/** The page's colours in light or in dark, as a canvas has them in memory; read once. */
function colours(dark: boolean): Colours {
  const theme = dark ? "dark" : "light";
  if (known[theme]) return known[theme];
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string): number[] => [0, 2, 4].map((k) => parseInt(style.getPropertyValue(name).trim().slice(1 + k, 3 + k), 16));
  const packed = ([r, g, b]: number[]): number => new Uint32Array(Uint8Array.of(r!, g!, b!, 255).buffer)[0]!;
  const cell = colour("--cell"), ends = [colour("--low"), colour("--high")];
  const shades = Uint32Array.from({ length: 2 * STEPS + 1 }, (_, i) => {
    const part = (0.9 * Math.abs(i - STEPS)) / STEPS, to = ends[i < STEPS ? 0 : 1]!;
    return packed(cell.map((v, k) => Math.round(v + part * (to[k]! - v))));
  });
  const found = { shades, bad: packed(colour("--bad")), empty: packed(colour("--empty")) };
  if (document.documentElement.dataset.theme === theme) known[theme] = found;
  return found;
}

/** `get` gives the numbers; none are shown where it is null, and their places are outlined. */
export function paint(canvas: HTMLCanvasElement, rows: number, cols: number, px: number, most: number, dark: boolean, get: ((r: number, c: number) => number) | null): void {
  const ratio = window.devicePixelRatio || 1, gap = px > 8 ? 1 : 0, { shades, bad, empty } = colours(dark);
  const width = Math.round(cols * px * ratio), height = Math.round(rows * px * ratio), g = canvas.getContext("2d")!;
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const image = g.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let r = 0; r < rows; r++) {
    const top = Math.round(r * px * ratio), bottom = Math.round((r * px + px - gap) * ratio);
    for (let c = 0; c < cols; c++) {
      const left = Math.round(c * px * ratio), right = Math.round((c * px + px - gap) * ratio);
      if (!get) {
        if (px <= 4) continue;
        for (const y of [top, bottom - 1]) pixels.fill(empty, y * width + left, y * width + right);
        for (let y = top; y < bottom; y++) pixels[y * width + left] = pixels[y * width + right - 1] = empty;
        continue;
      }
      const v = get(r, c), part = Math.round(STEPS * Math.sqrt(Math.min(1, Math.abs(v) / (most || 1))));
      const shade = Number.isFinite(v) ? shades[STEPS + (v < 0 ? -part : part)]! : bad;
      for (let y = top; y < bottom; y++) pixels.fill(shade, y * width + left, y * width + right);
    }
  }
  g.putImageData(image, 0, 0);
}
