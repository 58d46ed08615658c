// The list of blobs.

import { h } from "./dom.js";
import { number, plural } from "./format.js";
import { choice, filter, nothing, pages, swarmTable } from "./rows.js";

const SIZE = 50;
const STATES = [["", "any state"], ["entering", "entering"], ["sealed", "sealed"], ["new", "new"], ["poisoned", "poisoned"]];

export const path = ({ query }) => `swarms?${new URLSearchParams({ q: query.get("q") ?? "", state: query.get("state") ?? "", offset: query.get("offset") ?? "", limit: SIZE })}`;
export const title = () => "Layers";
export const say = data => `${plural(data.list.total, "swarm")} listed.`;

export function draw(data, { route, change }) {
  const { query } = route;
  const filtered = query.get("q") || query.get("state");
  return [
    h("div.head", {}, h("h1", "Layers"), h("p", `${number(data.list.total)} ${filtered ? "match" : "blobs known"}`)),
    h("div.tools", {}, filter("Filter", query, "q", "Image, digest or node", change), choice("State", query, "state", STATES, change), pages(data.list, SIZE, change, "swarm")),
    data.list.order.length ? swarmTable("Layers", data.list) : filtered ? nothing.match() : nothing.swarms(),
  ];
}
