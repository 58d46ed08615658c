// How figures, times and names are written. Pure.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** A byte count as [number, unit], three digits. */
export function parts(count) {
  let unit = 0;
  while (count >= 1000 && unit < UNITS.length - 1) { count /= 1024; unit++; }
  const digits = unit === 0 || count >= 100 ? 0 : count >= 10 ? 1 : 2;
  return [count.toFixed(digits), UNITS[unit]];
}

export const bytes = count => count === undefined ? "unknown" : parts(count).join(" ");
export const rate = count => `${bytes(count)}/s`;
export const number = count => count.toLocaleString("en");

/** A share, 0 to 1, as a percentage that says 100 only when it is. */
export function percent(share) {
  if (share <= 0) return "0 %";
  if (share >= 1) return "100 %";
  return `${Math.min(99.9, Math.max(0.1, share * 100)).toFixed(share < 0.1 || share > 0.99 ? 1 : 0)} %`;
}

/** Seconds as a length of time. */
export function span(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export const clock = at => new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
export const short = digest => `${digest.slice(0, 19)}…`;

/** The name that people use: the first tag, else the image that it belongs to, else the digest. */
export const title = line => line.names[0] ?? (line.images?.length ? `blob of ${line.images[0]}` : short(line.digest));

/** Copies that upstream sent: 1.00 is the aim. */
export const copies = line => line.entered ? (line.arrived / line.entered).toFixed(2) : "";
