// One image: its layers, and the nodes that have it or pull it.

import { figure, h, meter, section, table } from "./dom.js";
import { bytes, number, parts, percent, plural, short, span } from "./format.js";
import { agentLink, filter, nothing, pages, since, tag } from "./rows.js";

const SIZE = 50;
const STATES = { whole: ["sealed", "all of it"], fetching: ["entering", "pulling"], part: ["new", "a part"] };

export const path = ({ name, query }) => `images/${encodeURIComponent(name)}?${new URLSearchParams({ q: query.get("q") ?? "", offset: query.get("offset") ?? "", limit: SIZE })}`;
export const title = data => data.image.names[0] ?? short(data.image.manifest);
export const say = data => `${number(data.image.nodes)} of ${plural(data.image.of, "node")} have all of it; ${plural(data.image.fetching, "node")} pulling.`;

function layers(data) {
  const columns = [["Blob"], ["State"], ["Size", "number"], ["On nodes", "gauge"], ["Fetching", "number"], ["From upstream", "number"]];
  return table("Layers", columns, Object.entries(data.layers).map(([digest, layer]) => {
    const line = layer.swarm;
    return [digest,
      h("span.mono.cut", { title: digest }, line ? h("a", { href: `#/swarms/${encodeURIComponent(digest)}` }, short(digest)) : short(digest)),
      line ? tag(line.state) : h("span.soft", "not here yet"), bytes(layer.size),
      h("div.cells", {}, meter(data.image.of ? layer.nodes / data.image.of : 0, `${number(layer.nodes)} of ${plural(data.image.of, "node")}`), h("span.count.small.soft", number(layer.nodes))),
      line ? number(line.fetching) : "–", line ? bytes(line.arrived) : "–"];
  }));
}

function nodes(data) {
  const columns = [["Node"], ["Zone"], ["State"], ["Has", "gauge"], ["Pulling for", "number"]];
  return table("Nodes", columns, data.order.map(key => {
    const row = data.rows[key];
    const there = row.held + row.arriving;
    return [key, agentLink(key, row.name), row.zone || "–", tag(...STATES[row.state]),
      h("div.cells", {}, meter(data.image.size ? there / data.image.size : 0, `${bytes(there)} of ${bytes(data.image.size)}`), h("span.count.small.soft", bytes(there))),
      row.began ? span(data.now - row.began) : "–"];
  }));
}

export function draw(data, { route, change, now }) {
  const line = data.image;
  const [amount, unit] = parts(line.size);
  return [
    h("p.small.soft", {}, h("a", { href: "#/images" }, "Images")),
    h("div.head", {}, h("h1.all", title(data)), line.platform && tag("sealed", line.platform), line.names.length > 1 && h("p.small", `also ${line.names.slice(1).join(", ")}`)),
    h("p.mono.all.soft", line.manifest),
    h("dl.figures", {},
      figure("Size", amount, unit, plural(line.blobs, "layer")),
      figure("Nodes with all of it", number(line.nodes), "", line.of ? `${percent(line.nodes / line.of)} of ${number(line.of)}` : "no node"),
      figure("Being pulled by", number(line.fetching), "", line.began ? `for ${since(line, now)}` : "nobody pulls it now"),
      figure("From upstream", ...parts(line.moved[0]), "all its layers, to all nodes"),
      figure("From peers", ...parts(line.moved[1]), line.moved[0] + line.moved[1] ? `${percent(line.moved[1] / (line.moved[0] + line.moved[1]))} of what moved` : "nothing moved yet")),
    section("Nodes", "", h("div.tools", {}, filter("Filter", route.query, "q", "Node, address or zone", change), pages({ ...data }, SIZE, change, "node")),
      data.order.length ? nodes(data) : nothing.match()),
    section("Layers", h("a", { href: "#/swarms" }, "all layers"), layers(data)),
  ];
}
