// The list of agents.

import { h } from "./dom.js";
import { number, plural } from "./format.js";
import { agentTable, choice, filter, nothing, pages } from "./rows.js";

const SIZE = 50;
const STATES = [["", "any state"], ["fetching", "fetching"], ["connected", "connected"], ["away", "away"], ["quarantined", "quarantined"]];

export const path = ({ query }) => `agents?${new URLSearchParams({ q: query.get("q") ?? "", state: query.get("state") ?? "", zone: query.get("zone") ?? "", offset: query.get("offset") ?? "", limit: SIZE })}`;
export const title = () => "Agents";
export const say = data => `${plural(data.list.total, "agent")} listed.`;

export function draw(data, { route, change }) {
  const { query } = route;
  const filtered = query.get("q") || query.get("state") || query.get("zone");
  const zones = Object.entries(data.zones).filter(([zone]) => zone);
  return [
    h("div.head", {}, h("h1", "Agents"), h("p", `${number(data.list.total)} ${filtered ? "match" : "known"}`)),
    h("div.tools", {}, filter("Filter", query, "q", "Node, address or zone", change), choice("State", query, "state", STATES, change),
      zones.length > 0 && choice("Zone", query, "zone", [["", "any zone"], ...zones.map(([zone, count]) => [zone, `${zone} (${number(count)})`])], change),
      pages(data.list, SIZE, change, "agent")),
    data.list.order.length ? agentTable("Agents", data.list) : filtered ? nothing.match() : nothing.agents(),
  ];
}
