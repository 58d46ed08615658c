// The list of images.

import { h } from "./dom.js";
import { number, plural } from "./format.js";
import { choice, filter, imageTable, nothing, pages } from "./rows.js";

const SIZE = 50;
const STATES = [["", "all"], ["fetching", "being pulled"]];

export const path = ({ query }) => `images?${new URLSearchParams({ q: query.get("q") ?? "", state: query.get("state") ?? "", offset: query.get("offset") ?? "", limit: SIZE })}`;
export const title = () => "Images";
export const say = data => `${plural(data.list.total, "image")} listed.`;

export function draw(data, { route, change, now }) {
  const { query } = route;
  const filtered = query.get("q") || query.get("state");
  return [
    h("div.head", {}, h("h1", "Images"), h("p", `${number(data.list.total)} ${filtered ? "match" : "known"}`)),
    h("div.tools", {}, filter("Filter", query, "q", "Image, digest or node", change), choice("Show", query, "state", STATES, change), pages(data.list, SIZE, change, "image")),
    data.list.order.length ? imageTable("Images", data.list, now) : filtered ? nothing.match() : nothing.images(),
  ];
}
