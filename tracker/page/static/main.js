// The page: which view the address names, followed live, drawn anew with every event.

import { h, update } from "./dom.js";
import { follow } from "./live.js";
import * as agent from "./agent.js";
import * as agents from "./agents.js";
import * as cluster from "./cluster.js";
import * as image from "./image.js";
import * as images from "./images.js";
import * as search from "./search.js";
import * as swarm from "./swarm.js";
import * as swarms from "./swarms.js";

const VIEWS = { "": cluster, cluster, images, swarms, agents, search };
const DETAILS = { images: image, swarms: swarm, agents: agent };
const place = document.getElementById("view");
const link = document.getElementById("link");
const said = document.getElementById("said");
const box = document.getElementById("q");

let stop = () => {}, view, route, data, spoken = 0, first = true;

/** The address after #: {kind, name, query}. */
function read() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, ...name] = path.split("/");
  return { kind, name: decodeURIComponent(name.join("/")), query: new URLSearchParams(query) };
}

/** The address of a view. */
function address({ kind, name, query }) {
  const words = new URLSearchParams([...query].filter(([, value]) => value));
  return `#/${kind}${name ? `/${encodeURIComponent(name)}` : ""}${words.size ? `?${words}` : ""}`;
}

/** Go where the view is as *changes* say (a filter, a page), without a new line in the history. */
function change(changes) {
  const query = new URLSearchParams(route.query);
  query.delete("offset");
  for (const [key, value] of Object.entries(changes)) query.set(key, value);
  history.replaceState(null, "", address({ ...route, query }));
  show(false);
}

function draw(nodes) {
  const fresh = h("main");
  for (const node of nodes.flat(Infinity)) if (node) fresh.append(node);
  const old = place;
  for (const { name, value } of [...old.attributes]) fresh.setAttribute(name, value);
  update(old, fresh);
}

function redraw() {
  if (!data) return;
  draw(view.draw(data, { route, change, redraw, now: data.now }));
  document.title = `${view.title(data, route)} · Shoal`;
  if (Date.now() - spoken > 20000 && view.say) {  // a screen reader hears a summary, not every event
    spoken = Date.now();
    said.textContent = view.say(data);
  }
}

function connected(live) {
  link.className = live ? "link live" : "link lost";
  const text = live ? "Live" : "Not connected: trying again";
  if (link.textContent !== text) link.textContent = text;
}

function show(moved = true) {
  stop();
  route = read();
  view = (route.name ? DETAILS : VIEWS)[route.kind] ?? cluster;
  data = undefined;
  for (const anchor of document.querySelectorAll("[data-nav]")) {
    if (anchor.dataset.nav === (route.kind || "cluster")) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (document.activeElement !== box) box.value = route.kind === "search" ? route.query.get("q") ?? "" : "";
  if (moved) {
    spoken = 0;
    draw([h("p.empty", "Asking the tracker …")]);
    window.scrollTo(0, 0);
    if (!first && document.activeElement !== box) place.focus({ preventScroll: true });
  }
  first = false;
  stop = follow(view.path(route), {
    shown: fresh => { data = fresh; redraw(); },
    missing: message => {
      data = undefined;
      draw([h("p.notice", { role: "alert" }, h("strong", "Nothing here"), message), h("p", {}, h("a", { href: `#/${route.kind}` }, `All ${route.kind}`))]);
    },
    state: connected,
  });
}

let typing;
box.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { if (box.value.trim()) location.hash = `#/search?q=${encodeURIComponent(box.value.trim())}`; }, 250);
});
document.getElementById("search").addEventListener("submit", event => {
  event.preventDefault();
  if (box.value.trim()) location.hash = `#/search?q=${encodeURIComponent(box.value.trim())}`;
  place.focus();
});
document.addEventListener("keydown", event => {
  const busy = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.nodeName ?? "");
  if (event.key === "/" && !busy && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); box.focus(); box.select(); }
  else if (event.key === "Escape" && document.activeElement === box) { box.value = ""; place.focus(); }
});
document.querySelector(".skip").addEventListener("click", event => { event.preventDefault(); place.focus(); });
window.addEventListener("hashchange", () => show());
// A browser has six connections per host for all its tabs: one that nobody looks at lets go of its stream.
const followed = yes => { stop(); if (yes) show(false); };
document.addEventListener("visibilitychange", () => followed(!document.hidden));
window.addEventListener("pagehide", () => followed(false));
window.addEventListener("pageshow", event => { if (event.persisted) followed(true); });
window.addEventListener("resize", redraw);
show();
