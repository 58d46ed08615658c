// One agent.

import { empty, figure, h, meter, section, table } from "./dom.js";
import { bytes, number, parts, percent, plural, span } from "./format.js";
import { agentLink, blameList, pages, swarmLink, tag } from "./rows.js";
import { has, legend, strip } from "./strip.js";

const SIZE = 50;
const ERRORS = {
  upstream_failures: "windows that upstream did not deliver", bad_pieces: "pieces from peers with a wrong hash", banned_peers: "peers banned for wrong bytes",
  direct_streams: "streams from upstream past the cluster, for readers who could not wait", stalls: "waits for peers that delivered nothing", rejections: "blobs whose sha256 was wrong",
};

export const path = ({ name, query }) => `agents/${encodeURIComponent(name)}?${new URLSearchParams({ offset: query.get("offset") ?? "", limit: SIZE })}`;
export const title = data => data.agent.name;
export const say = data => `${data.agent.name} is ${data.agent.state}, fetches ${plural(data.agent.fetching, "blob")} and holds ${data.total}.`;

function downloads(data) {
  const entries = Object.entries(data.downloads);
  if (!entries.length) return empty("Nothing.", "It waits for the next pull on its node.");
  return [legend(), h("br"), table("Downloads", [["Blob"], ["State"], ["Size", "number"], ["Windows, first to last", "wide"], ["Has", "number"]], entries.map(([digest, { swarm, strip: own }]) => [
    digest, swarmLink(swarm), tag(swarm.state), bytes(swarm.size), strip(own.cells), `${has(own.cells)}/${own.cells.length}`]))];
}

function errors(data) {
  const told = Object.entries(ERRORS).filter(([name]) => data.stats[name]);
  return [
    told.length ? h("ul.plain", {}, told.map(([name, text]) => h("li", { "data-key": name }, h("strong", number(data.stats[name])), ` ${text}`))) : h("p.soft", "None since it started."),
    data.blame.length > 0 && blameList(data.blame, data.now),
  ];
}

export function draw(data, { change }) {
  const line = data.agent;
  const [used, unit] = parts(line.store);
  const peers = Object.entries(data.peers);
  const total = line.upstream + line.received;
  return [
    h("p.small.soft", {}, h("a", { href: "#/agents" }, "Agents")),
    h("div.head", {}, h("h1.all", line.name), tag(line.state), h("p", {}, h("span.mono", data.key), line.zone && ` in ${line.zone}`, `, here for ${span(data.now - line.since)}, heard ${span(data.now - data.seen)} ago`)),
    data.quarantined && h("p.notice", { role: "alert" }, h("strong", `In quarantine for ${span(data.quarantined.until - data.now)} more: no claims, and nobody fetches from it.`), `${data.quarantined.reason}. Check the disk and memory of this node; it comes back by itself.`),
    h("dl.figures", {},
      figure("Store", used, unit, [meter(line.budget ? line.store / line.budget : 0, `${bytes(line.store)} of ${bytes(line.budget)}`), ` of ${bytes(line.budget)}`]),
      figure("Blobs held", number(data.total), "", `${number(line.fetching)} on their way`),
      figure("From upstream", ...parts(line.upstream), "since it started"),
      figure("From peers", ...parts(line.received), total ? `${percent(line.received / total)} of all that came` : "since it started"),
      figure("To peers", ...parts(line.served), "since it started")),
    section("Downloads", "", downloads(data)),
    h("div.two", {},
      h("div", {}, section("Peers", "agents in the same swarms", peers.length ? table("Peers", [["Node"], ["Zone"], ["Swarms shared", "number"], ["Whole in", "number"]], peers.map(([key, peer]) => [
        key, agentLink(key, peer.name), peer.zone || "–", number(peer.swarms), number(peer.whole)]), { stack: false }) : h("p.soft", "None: it takes part in no swarm now."))),
      h("div", {}, section("Errors", "", errors(data)))),
    section("Blobs held", "", h("div.tools", {}, pages(data, SIZE, change, "blob")), data.order.length ? table("Blobs held", [["Blob"], ["Size", "number"], [""]], data.order.map(digest => {
      const blob = data.held[digest];
      return [digest, h("a", { href: `#/swarms/${encodeURIComponent(digest)}` }, blob.names[0] ?? h("span.mono.all", digest)), bytes(blob.size), blob.doubted ? tag("doubted") : ""];
    }), { stack: false }) : empty("None yet.", "What this node pulls stays in its store, within its budget, for others to fetch.")),
  ];
}
