// The plot of the last hour: bytes per second from upstream and from peers, on one scale.

import { h } from "./dom.js";
import { bytes, clock, rate } from "./format.js";

const HEIGHT = 190, LEFT = 66, RIGHT = 12, TOP = 14, BOTTOM = 24;
let cursor;  // step under the pointer or chosen by key, counted from the newest

/** The hour as one entry per step, oldest first: {at, upstream, peers} in bytes per second. */
export function series(hour, now) {
  const count = hour.span / hour.step;
  const newest = Math.floor(now / hour.step) * hour.step;
  return Array.from({ length: count }, (_, place) => {
    const at = newest - (count - 1 - place) * hour.step;
    const [upstream, peers] = hour.steps[at] ?? [0, 0];
    return { at, upstream: upstream / hour.step, peers: peers / hour.step };
  });
}

export function sums(hour) {
  let upstream = 0, peers = 0;
  for (const [one, other] of Object.values(hour.steps)) { upstream += one; peers += other; }
  return { upstream, peers };
}

/** The next round number above *most*, so that the scale does not move with every step. */
function ceiling(most) {
  if (most <= 0) return 1024 * 1024;
  const unit = 1024 ** Math.floor(Math.log(most) / Math.log(1024));
  return unit * ([1, 2, 3, 4, 6, 8, 10, 16, 20, 30, 40, 60, 80, 100, 160, 200, 300, 400, 600, 800, 1000].find(step => step * unit >= most) ?? 1024);
}

export function plot(hour, now, redraw) {
  const WIDTH = document.querySelector(".plot")?.clientWidth || document.querySelector("main").clientWidth || 800;
  const points = series(hour, now);
  const top = ceiling(Math.max(...points.map(point => Math.max(point.peers, point.upstream))));
  const x = place => LEFT + (WIDTH - LEFT - RIGHT) * place / points.length;
  const y = value => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top;
  const area = name => {
    let path = `M${x(0)} ${y(0)}`;
    points.forEach((point, place) => { path += `V${y(point[name]).toFixed(1)}H${x(place + 1).toFixed(1)}`; });
    return `${path}V${y(0)}Z`;
  };
  const ticks = [];
  const every = WIDTH < 500 ? 1200 : 600;
  points.forEach((point, place) => { if (point.at % every < hour.step && x(place) > LEFT + 20 && x(place) < WIDTH - 20) ticks.push([x(place), clock(point.at)]); });
  const { upstream, peers } = sums(hour);
  const label = `Last hour: ${bytes(upstream)} from upstream, ${bytes(peers)} from peers. Left and right arrow keys read single steps.`;
  const chosen = cursor === undefined ? undefined : Math.max(0, points.length - 1 - cursor);
  const move = to => { cursor = to === undefined ? undefined : Math.min(points.length - 1, Math.max(0, to)); redraw(); };
  const at = chosen === undefined ? undefined : points[chosen];
  const picture = h("svg.plot", {
    role: "img", tabindex: 0, "aria-label": label, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    onpointermove: event => {
      const box = event.currentTarget.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
      move(points.length - 1 - Math.floor(share * points.length));
    },
    onpointerleave: () => move(undefined),
    onkeydown: event => {
      if (event.key === "ArrowLeft") move((cursor ?? -1) + 1);
      else if (event.key === "ArrowRight") move((cursor ?? 1) - 1);
      else if (event.key === "Escape") move(undefined);
      else return;
      event.preventDefault();
    },
  },
  [0, 0.5, 1].map(share => [
    h("line.grid", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(top * share), y2: y(top * share) }),
    h("text", { x: LEFT - 8, y: y(top * share) + 4, "text-anchor": "end" }, share ? rate(top * share) : "0"),
  ]),
  ticks.map(([place, text]) => h("text", { x: place, y: HEIGHT - 7, "text-anchor": "middle" }, text)),
  h("path.peers", { d: area("peers") }),
  h("path.upstream", { d: area("upstream") }),
  at && h("line.cursor", { x1: x(chosen + .5), x2: x(chosen + .5), y1: TOP, y2: HEIGHT - BOTTOM }));
  const said = at && `${clock(at.at)}: ${rate(at.peers)} from peers, ${rate(at.upstream)} from upstream`;
  return [picture, h("p.read.small.soft", { "aria-live": "polite" }, said ?? "")];
}

/** The same as a table, five minutes a row. */
export function figures(hour, now) {
  const rows = new Map();
  for (const { at, upstream, peers } of series(hour, now)) {
    const start = Math.floor(at / 300) * 300;
    const row = rows.get(start) ?? [0, 0];
    rows.set(start, [row[0] + upstream * hour.step, row[1] + peers * hour.step]);
  }
  return [...rows].map(([start, [upstream, peers]]) => [start, clock(start), bytes(upstream), bytes(peers)]);
}
