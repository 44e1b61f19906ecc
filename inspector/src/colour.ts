/** One diverging scale for the whole page: blue below 0, orange above, nothing at 0. */
export function shade(v: number, most: number): string {
  if (!Number.isFinite(v)) return "color-mix(in srgb, var(--bad) 45%, var(--cell))"; // the number on it must be read
  const part = Math.min(1, Math.abs(v) / (most || 1));
  return `color-mix(in srgb, var(${v < 0 ? "--low" : "--high"}) ${(100 * Math.sqrt(part) * 0.8).toFixed(1)}%, var(--cell))`;
}

export const largest = (data: ArrayLike<number>): number => {
  let most = 0;
  for (let i = 0; i < data.length; i++) if (Number.isFinite(data[i]!)) most = Math.max(most, Math.abs(data[i]!));
  return most;
};
