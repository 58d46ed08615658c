// One blob: what is where, who brings in what.

import { empty, figure, h, meter, section, table } from "./dom.js";
import { bytes, copies, number, parts, percent, plural, rate, span, title as name } from "./format.js";
import { agentLink, filter, nothing, pages, tag } from "./rows.js";
import { coverage, has, legend, strip } from "./strip.js";

const SIZE = 50;
let seen = [];  // [digest, now, held]: how fast the cluster's copies grow

export const path = ({ name: digest, query }) => `swarms/${encodeURIComponent(digest)}?${new URLSearchParams({ q: query.get("q") ?? "", offset: query.get("offset") ?? "", limit: SIZE })}`;
export const title = data => name(data.swarm);
export const say = data => `${data.swarm.published} of ${plural(data.swarm.windows, "window")} in the cluster, ${percent(data.swarm.spread)} on its agents; ${plural(data.swarm.fetching, "agent")} fetching, ${plural(data.swarm.holders, "agent")} with all of it.`;

/** Bytes per second at which agents get windows, over the last ten seconds. */
function throughput(data) {
  seen = seen.filter(([digest, at]) => digest === data.swarm.digest && at >= data.now - 10 && at < data.now);
  seen.push([data.swarm.digest, data.now, data.held]);
  const [, at, held] = seen[0];
  return data.now > at ? Math.max(0, (data.held - held) / (data.now - at)) : 0;
}

function claims(data) {
  const entries = Object.entries(data.claims);
  if (!entries.length) return h("p.soft", data.swarm.state === "sealed" ? "None: the blob is sealed, upstream is not needed any more." : "None now.");
  return table("Claims", [["Window", "nowrap"], ["Agent"], ["Arrived", "gauge"], ["Age", "number"], ["Lease", "number"]], entries.map(([window, claim]) => [
    window, window, agentLink(claim.agent, claim.name),
    h("div.cells", {}, meter(claim.length ? claim.bytes / claim.length : 0, `${bytes(claim.bytes)} of ${bytes(claim.length)}`, "amber"), h("span.count.small.soft", bytes(claim.bytes))),
    span(data.now - claim.since), `${span(claim.deadline - data.now)} left`]), { stack: false });
}

function agents(data) {
  return table("Agents and their windows", [["Node"], ["Zone"], ["Windows, first to last", "wide"], ["Has", "number"], ["", "nowrap"]], data.order.map(key => {
    const row = data.rows[key];
    return [key, agentLink(key, row.name), row.zone || "–", strip(row.cells), `${has(row.cells)}/${row.cells.length}`,
      row.whole ? tag("sealed", "whole") : row.barred > data.now ? tag("barred", `no claims for ${span(row.barred - data.now)}`) : tag("entering", "fetching")];
  }));
}

export function draw(data, { route, change }) {
  const line = data.swarm;
  const [amount, unit] = line.size === undefined ? ["?", ""] : parts(line.size);
  const moving = throughput(data);
  return [
    h("p.small.soft", {}, h("a", { href: "#/swarms" }, "Layers")),
    h("div.head", {}, h("h1.all", name(line)), tag(line.state), line.names.length > 1 && h("p.small", `also ${line.names.slice(1).join(", ")}`)),
    h("p.mono.all.soft", line.digest),
    line.images.length > 0 && h("p.small", {}, "Belongs to ", line.images.map((image, place) => [place ? ", " : "", h("a", { href: `#/images?q=${encodeURIComponent(image)}` }, image)])),
    line.state === "poisoned" && h("p.notice", { role: "alert" }, h("strong", "Its bytes were wrong too often."), "Agents fetch this blob from upstream alone. Look at who was proven wrong, and whether upstream itself serves what its digest says."),
    h("dl.figures", {},
      figure("Size", amount, unit, plural(line.windows, "window")),
      figure("In the cluster", percent(line.windows ? line.published / line.windows : 0), "", line.state === "sealed" ? "sealed: sha256 proven" : `${line.published} of ${line.windows || "?"} windows, not sealed`),
      figure("On its agents", percent(line.spread), "", `${number(line.holders)} whole, ${number(line.fetching)} fetching`),
      figure("Agents get", ...rate(moving).split(" "), `${rate(line.rate)} of it from upstream`),
      figure("Upstream copies", copies(line) || "–", "", line.arrived ? `${bytes(line.arrived)} came from upstream` : "it was found on a node")),
    section("Copies of each window", "height: share of its agents that have it", line.windows ? coverage(data.copies, line.spread) : empty("The size is not known yet.", "The first agent that reaches upstream tells it.")),
    section("Claims", "who brings what in from upstream", claims(data)),
    section("Agents", "", h("div.tools", {}, filter("Filter", route.query, "q", "Node, address or zone", change), pages({ ...data }, SIZE, change, "agent")), legend(), h("br"),
      data.order.length ? agents(data) : route.query.get("q") ? nothing.match() : empty("No agent has it or wants it.", "It appears here with the next pull.")),
    section("As a torrent", "", data.info_hash
      ? h("p", {}, h("a", { href: `torrents/${line.digest}.torrent`, download: true }, ".torrent"), " ", h("span.mono.soft.all", data.info_hash), h("span.soft.small", " – any BitTorrent client of a member can fetch it"))
      : h("p.soft", "There is one as soon as the blob is sealed.")),
  ];
}
