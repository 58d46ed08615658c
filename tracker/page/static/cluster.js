// Everything at a glance.

import { empty, figure, h, section, table } from "./dom.js";
import { bytes, number, parts, percent, plural, rate, span } from "./format.js";
import { figures, plot, sums } from "./plot.js";
import { agentLink, blameList, imageTable, nothing, swarmTable } from "./rows.js";

export const path = () => "";
export const title = () => "Cluster";
export const say = data => `${plural(data.agents.total, "agent")}, ${data.agents.fetching} fetching, ${data.agents.quarantined} quarantined; ${plural(data.swarms.entering ?? 0, "blob")} entering the cluster at ${rate(data.rate)}.`;

const WHY = {
  refused: ["refused", "Check the agents' credentials for that registry."],
  busy: ["asked us to wait", "Shoal waits by itself; a pull-through limit may be reached."],
  broken: ["broke off", "Look at the registry and the way to it."],
};

function warnings(data) {
  const lost = Object.entries(data.replicas).filter(([, replica]) => replica.error);
  return [
    lost.length && h("p.notice", { role: "alert" }, h("strong", `${plural(lost.length, "tracker does", "trackers do")} not answer; what only it knows is missing here.`),
      lost.map(([url, replica]) => `${url}: ${replica.error}. `), "Agents go to the others meanwhile. See that it runs, and that this tracker may reach it."),
    ...Object.entries(data.conflicts).map(([key, found]) => h("p.notice", { role: "alert", "data-key": `conflict ${key}` }, h("strong", `${found.taken} and ${found.refused} both announce ${key}.`),
      " They replace each other, and the one that is refused works alone. Give one of them another --swarm-listen port, or an address of its own.")),
    Object.keys(data.refused).length && h("p.notice", { role: "alert" }, h("strong", `${plural(Object.keys(data.refused).length, "address is", "addresses are")} refused, and whoever is there works alone.`),
      Object.entries(data.refused).map(([address, found]) => ` ${address}: ${found.reason}.`), " See that --member, --member-name or --selector covers the agents."),
    !data.replicas[""].ready && h("p.notice", { role: "alert" }, h("strong", "This tracker is not ready."), "It does not know the members yet, or it stops. Look for discovery_failing in its log."),
  ];
}

function share(data) {
  const { upstream, peers } = sums(data.hour);
  const [saved, unit] = parts(peers);
  const ratio = data.entered ? (data.arrived / data.entered).toFixed(2) : "–";
  const moving = rate(data.rate).split(" ");
  return h("dl.figures", {},
    figure("Agents", number(data.agents.total), "", data.agents.quarantined ? h("span.bad", `${data.agents.quarantined} quarantined`) : `${number(data.agents.fetching)} fetching`),
    figure("Blobs in the cluster", number(data.swarms.sealed), "", `${number(data.swarms.entering)} entering`),
    figure("From upstream now", moving[0], moving[1], `${bytes(upstream)} in the last hour`),
    figure("Egress avoided, last hour", saved, unit, upstream + peers ? `${percent(peers / (upstream + peers))} came from peers` : "nothing moved yet"),
    figure("Upstream copies", ratio, "", data.entered ? "of each blob; 1.00 is the aim" : "nothing came from upstream yet"));
}

function zones(data) {
  const columns = [["Zone"], ["Agents", "number"], ["Connected", "number"], ["Away", "number"], ["Fetching", "number"], ["Quarantined", "number"]];
  return table("Agents by zone", columns, Object.entries(data.zones).sort(([one], [other]) => one < other ? -1 : 1).map(([zone, count]) => [
    zone, h("a", { href: `#/agents?zone=${encodeURIComponent(zone)}` }, zone || "unknown"), number(count.total), number(count.connected), number(count.away), number(count.fetching),
    count.quarantined ? h("span.bad", number(count.quarantined)) : "0"]), { stack: false });
}

function upstreams(data) {
  const waiting = Object.entries(data.upstreams).filter(([, until]) => until > data.now);
  const failed = Object.entries(data.failures).filter(([, count]) => count);
  if (!waiting.length && !failed.length) return h("p.soft", "No upstream has failed or asked us to wait since this tracker started.");
  return h("ul.plain", {},
    waiting.map(([host, until]) => h("li", { "data-key": host }, h("strong.up", host), ` asked us to wait ${span(until - data.now)} more. No agent asks it until then; what the cluster holds is served.`)),
    failed.map(([why, count]) => h("li", { "data-key": why }, `Upstream ${(WHY[why] ?? [why])[0]} ${plural(count, "time")} since this tracker started. `, h("span.soft", (WHY[why] ?? ["", ""])[1]))));
}

function kept(data) {
  const columns = [["Image"], ["Copies"], ["Nodes"]];
  return section("Kept images", "never evicted on these nodes", table("Kept images", columns, Object.entries(data.kept).map(([name, one]) => [
    name, h("span.mono", one.platform ? `${one.image} ${one.platform}` : one.image),
    one.whole < one.copies ? h("span.bad", `${one.whole} of ${one.copies}`) : `${one.whole} of ${one.copies}`,
    [Object.entries(one.keepers).map(([node, state]) => state === "whole" ? node : `${node} (${state})`).sort().join(", "),
      Object.entries(one.failed).map(([node, reason]) => h("span.bad", ` ${node} does not keep it: ${reason}`))]])));
}

function trackers(data) {
  return table("Trackers", [["Tracker"], ["State"], ["Agents", "number"], ["Up for", "number"]], Object.entries(data.replicas).map(([url, replica]) => [
    url, h("span.mono", url || "this one"), replica.error ? h("span.bad", replica.error) : replica.ready ? "ready" : "not ready",
    replica.error ? "–" : number(replica.agents), replica.error ? "–" : span(data.now - replica.started)]), { stack: false });
}

export function draw(data, { redraw }) {
  const quarantined = Object.entries(data.quarantined);
  return [
    h("div.head", {}, h("h1", "Cluster"), h("p", `${plural(data.agents.total, "agent")} in ${plural(Object.keys(data.zones).length, "zone")}, ${plural(Object.keys(data.replicas).length, "tracker")}`)),
    warnings(data),
    section("Images", h("a", { href: "#/images" }, "all images"), data.images.order.length ? imageTable("Images", data.images, data.now) : nothing.images()),
    share(data),
    section("Bytes in the last hour", h("span.legend", {}, h("span.key.p", { "aria-hidden": "true" }), "from peers ", h("span.key.u", { "aria-hidden": "true" }), "from upstream"),
      plot(data.hour, data.now, redraw),
      h("details", {}, h("summary", "The same as figures"), table("Bytes in the last hour, by five minutes", [["From"], ["From upstream", "number"], ["From peers", "number"]], figures(data.hour, data.now), { stack: false }))),
    Object.keys(data.kept).length && kept(data),
    section("Latest layers", h("a", { href: "#/swarms" }, "all layers"), data.active.order.length ? swarmTable("Latest layers", data.active) : nothing.swarms()),
    h("div.two", {},
      h("div", {}, section("Agents by zone", h("a", { href: "#/agents" }, "all agents"), data.agents.total ? zones(data) : nothing.agents())),
      h("div", {}, section("Upstream", "", upstreams(data)),
        section("Trackers", "", trackers(data)))),
    section("Proven wrong", "agents whose bytes did not match", quarantined.length ? h("p.small", {}, "In quarantine, without claims and peers: ", quarantined.map(([key, entry]) => [agentLink(key, entry.name), ` (${span(entry.until - data.now)} more) `])) : "",
      data.blame.length ? blameList(data.blame, data.now) : empty("Nobody.", "Every byte that moved had the hash that it should have.")),
  ];
}
