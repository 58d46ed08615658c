// The strip: one agent's windows of a blob from first to last, coloured by where each came from.
// A run of equal windows is one rectangle, so a page of strips stays small.

import { h } from "./dom.js";
import { percent, plural } from "./format.js";

export const CELLS = {
  u: "has it, brought in from upstream",
  p: "has it, from peers",
  h: "has it as part of a whole copy",
  c: "on its way from upstream (claim)",
  w: "on its way from peers",
  ".": "not in the cluster yet",
};

const WORDS = { u: "from upstream", p: "from peers", h: "held", c: "arriving from upstream", w: "arriving from peers", ".": "not in the cluster yet" };
const HAS = "uph";

/** Cells as runs: [letter, start, length]. */
export function runs(cells) {
  const found = [];
  for (let at = 0; at < cells.length; at++) {
    const last = found[found.length - 1];
    if (last && last[0] === cells[at]) last[2]++; else found.push([cells[at], at, 1]);
  }
  return found;
}

export const has = cells => [...cells].filter(cell => HAS.includes(cell)).length;

/** The strip in words. */
export function words(cells) {
  const counts = {};
  for (const cell of cells) counts[cell] = (counts[cell] ?? 0) + 1;
  const told = Object.keys(WORDS).filter(cell => counts[cell]).map(cell => `${counts[cell]} ${WORDS[cell]}`);
  return `${has(cells)} of ${plural(cells.length, "window")}: ${told.join(", ") || "none"}`;
}

const gaps = count => count > 1 && count <= 96
  ? h("path.gap", { d: Array.from({ length: count - 1 }, (_, place) => `M${place + 1} 0V1`).join("") })
  : undefined;

export function strip(cells) {
  return h("svg.strip", { role: "img", "aria-label": words(cells), "data-cells": cells, viewBox: `0 0 ${Math.max(1, cells.length)} 1`, preserveAspectRatio: "none" },
    runs(cells).filter(([cell]) => cell !== ".").map(([cell, start, length]) => h("rect", { class: cell, x: start, width: length, height: 1 })),
    gaps(cells.length));
}

/** How many agents have each window, as heights. *copies*: a digit per window, 9: all agents. */
export function coverage(copies, share) {
  const missing = [...copies].filter(digit => digit === "0").length;
  const label = `Copies in the cluster: ${percent(share)} of all windows of all its agents are there; ${plural(missing, "window")} not in the cluster yet`;
  return h("svg.strip.tall", { role: "img", "aria-label": label, viewBox: `0 0 ${Math.max(1, copies.length)} 9`, preserveAspectRatio: "none" },
    runs(copies).filter(([digit]) => digit !== "0").map(([digit, start, length]) => h("rect.copies", { x: start, y: 9 - digit, width: length, height: Number(digit) })));
}

export const legend = () => h("ul.legend", { "aria-label": "Colours of the strips" },
  Object.entries(CELLS).map(([cell, text]) => h("li", {}, h("span.key", { class: `key ${cell}`, "aria-hidden": "true" }), text)));
