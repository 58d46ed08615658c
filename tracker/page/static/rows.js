// Tables that several views show: swarms, agents, blame; and the tools above a list.

import { empty, h, meter, table } from "./dom.js";
import { bytes, copies, number, percent, plural, rate, short, span, title } from "./format.js";

export const swarmLink = line => h("a", { href: `#/swarms/${encodeURIComponent(line.digest)}` }, title(line));
export const agentLink = (key, name) => h("a", { href: `#/agents/${encodeURIComponent(key)}` }, name || key);
export const tag = (state, text = state) => h("span", { class: `tag ${state}` }, text);

/** How far a blob has come: into the cluster while it enters, else onto its agents. */
function progress(line) {
  const entering = line.state === "entering";
  const share = entering ? line.published / Math.max(1, line.windows) : line.spread;
  const text = entering ? `${line.published} of ${line.windows || "?"} windows in the cluster` : `${percent(share)} on its agents`;
  return h("div.cells", {}, meter(share, text, entering ? "amber" : ""), h("span.count.small.soft", entering ? `${line.published}/${line.windows || "?"}` : percent(share)));
}

export function swarmTable(caption, list) {
  const columns = [["Blob"], ["State"], ["Size", "number"], ["Progress", "gauge"], ["Fetching", "number"], ["Whole", "number"], ["Claims", "number"], ["From upstream", "number"], ["Copies", "number"]];
  return table(caption, columns, list.order.map(digest => {
    const line = list.rows[digest];
    return [digest,
      h("span.name.cut", { title: [...line.names, line.digest].join("\n") }, swarmLink(line), line.names.length ? h("span.sub.mono.soft", ` ${short(line.digest)}`) : ""),
      tag(line.state), bytes(line.size), progress(line), number(line.fetching), number(line.holders), number(line.claims),
      line.rate ? rate(line.rate) : "–", copies(line) || "–"];
  }));
}

export const imageLink = line => h("a", { href: `#/images/${encodeURIComponent(line.manifest)}` }, line.names[0] ?? short(line.manifest));

/** How far those who pull an image are, and how long it has taken; else nothing. */
export function pulling(line, now) {
  if (!line.fetching) return h("span.soft", "nobody");
  const names = Object.entries(line.fetchers).slice(0, 2).map(([key, name], place) => [place ? ", " : "", agentLink(key, name)]);
  return [names, line.fetching > 2 ? ` and ${number(line.fetching - 2)} more` : ""];
}

export const since = (line, now) => line.began ? `${span(now - line.began)}${line.ends > now ? `, ${span(line.ends - now)} left` : ""}` : "–";

export function imageTable(caption, list, now) {
  const columns = [["Image"], ["Platform"], ["Size", "number"], ["Layers", "number"], ["On nodes", "gauge"], ["Being pulled by"], ["Since", "number"], ["From upstream", "number"], ["From peers", "number"]];
  return table(caption, columns, list.order.map(manifest => {
    const line = list.rows[manifest];
    return [manifest,
      h("span.name.cut", { title: [...line.names, line.manifest].join("\n") }, imageLink(line)),
      line.platform || "–", bytes(line.size), number(line.blobs),
      h("div.cells", {}, meter(line.of ? line.nodes / line.of : 0, `${number(line.nodes)} of ${plural(line.of, "node")} have all of it`), h("span.count.small.soft", `${number(line.nodes)}/${number(line.of)}`)),
      pulling(line, now), since(line, now), bytes(line.moved[0]), bytes(line.moved[1])];
  }));
}

export function agentTable(caption, list) {
  const columns = [["Node"], ["Address"], ["Zone"], ["State"], ["Fetching", "number"], ["Blobs", "number"], ["Store", "gauge"], ["From upstream", "number"], ["From peers", "number"], ["To peers", "number"]];
  return table(caption, columns, list.order.map(key => {
    const line = list.rows[key];
    const share = line.budget ? line.store / line.budget : 0;
    return [key, agentLink(key, line.name), h("span.mono.soft", key), line.zone || "–", tag(line.state),
      number(line.fetching), number(line.held), h("div.cells", {}, meter(share, `${bytes(line.store)} of ${bytes(line.budget)}`), h("span.count.small.soft", bytes(line.store))),
      bytes(line.upstream), bytes(line.received), bytes(line.served)];
  }));
}

export function blameList(blame, now) {
  return h("ul.plain", {}, blame.map(entry => h("li", { "data-key": `${entry.at} ${entry.agent} ${entry.reason}` },
    tag(entry.what === "quarantined" ? "quarantined" : "doubted", entry.what), " ", agentLink(entry.agent, entry.name), " ",
    h("span.soft.small", `${span(now - entry.at)} ago`), h("br"), h("span.small.all", entry.reason))));
}

/** A filter field that changes the address as one types. */
export function filter(label, query, name, placeholder, change) {
  let timer;
  return h("label", {}, label, h("input", {
    type: "search", name, value: query.get(name) ?? "", placeholder, autocomplete: "off", spellcheck: "false", maxlength: 200,
    oninput: event => {
      const { value } = event.currentTarget;
      clearTimeout(timer);
      timer = setTimeout(() => change({ [name]: value.trim() }), 250);
    },
  }));
}

/** A choice; *options*: [value, text]. */
export function choice(label, query, name, options, change) {
  const now = query.get(name) ?? "";
  return h("label", {}, label, h("select", { name, onchange: event => change({ [name]: event.currentTarget.value }) },
    options.map(([value, text]) => h("option", { value, selected: value === now }, text))));
}

/** Backwards and forwards through a list. */
export function pages(list, size, change, what) {
  const last = Math.min(list.total, list.offset + list.order.length);
  return h("div.pages", {}, h("span", { role: "status" }, list.total ? `${number(list.offset + 1)} to ${number(last)} of ${plural(list.total, what)}` : `no ${what}s`),
    h("button", { type: "button", disabled: list.offset === 0, onclick: () => change({ offset: String(Math.max(0, list.offset - size)) }) }, "Previous"),
    h("button", { type: "button", disabled: last >= list.total, onclick: () => change({ offset: String(list.offset + size) }) }, "Next"));
}

export const nothing = { agents: () => empty("No agent yet.", ["Start one with ", h("code", "shoal agent --tracker " + location.origin), ". If one runs, see that ", h("code", "--member"), " or ", h("code", "--selector"), " covers its address: the tracker's log names who was refused."]),
  swarms: () => empty("No blob has been asked for yet.", ["Pull an image through an agent, for example ", h("code", "skopeo inspect docker://127.0.0.1:30000/library/alpine"), " on a node, or point containerd at it with ", h("code", "shoal containerd install"), "."]),
  images: () => empty("No image has been pulled yet.", "An image appears here once an agent has seen its manifest go by."),
  match: () => empty("Nothing matches.", "Shorten the search, or choose another state."),
};
