// What a search finds: blobs by image, digest or node, and agents.

import { h, section } from "./dom.js";
import { plural } from "./format.js";
import { agentTable, imageTable, nothing, swarmTable } from "./rows.js";

export const path = ({ query }) => `search?${new URLSearchParams({ q: query.get("q") ?? "" })}`;
export const title = (_data, { query }) => `Search: ${query.get("q") ?? ""}`;
export const say = data => `Found ${plural(data.swarms.total, "swarm")} and ${plural(data.agents.total, "agent")}.`;

const more = (kind, list, q) => list.total > list.order.length ? h("a", { href: `#/${kind}?q=${encodeURIComponent(q)}` }, `all ${list.total}`) : "";

export function draw(data, { route }) {
  const q = route.query.get("q") ?? "";
  return [
    h("div.head", {}, h("h1.all", `Search: ${q}`), h("p", `${plural(data.images.total, "image")}, ${plural(data.swarms.total, "layer")}, ${plural(data.agents.total, "agent")}`)),
    data.agents.order.length + data.swarms.order.length + data.images.order.length === 0 && nothing.match(),
    data.images.order.length > 0 && section("Images", more("images", data.images, q), imageTable("Images found", data.images, data.now)),
    data.agents.order.length > 0 && section("Agents", more("agents", data.agents, q), agentTable("Agents found", data.agents)),
    data.swarms.order.length > 0 && section("Layers", more("swarms", data.swarms, q), swarmTable("Layers found", data.swarms)),
  ];
}
