// Making and keeping up elements. A view is drawn anew with every event; what did not change is left
// alone, so that focus, selection and scrolling stay where they are. Nothing is ever set as HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "path", "line", "rect", "text", "g"]);

/** h("td.number", {title: "…"}, "text", node, …): an element. `key` tells rows apart; on…: a listener. */
export function h(kind, attributes = {}, ...children) {
  if (typeof attributes !== "object" || attributes instanceof Node || Array.isArray(attributes)) {
    children.unshift(attributes);
    attributes = {};
  }
  const [tag, ...classes] = kind.split(".");
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag || "div");
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false || value === null) continue;
    if (name.startsWith("on")) { node[name] = value; (node.listeners ??= new Set()).add(name); }
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false && child !== "") node.append(child);
  }
  return node;
}

/** Make *old* look like *fresh*, reusing what is there. */
export function update(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) { old.replaceWith(fresh); return; }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of fresh.listeners ?? []) old[name] = fresh[name];
  old.listeners = fresh.listeners;
  if (old.nodeName === "SELECT" || old.nodeName === "INPUT") {
    if (old.nodeName === "SELECT" && old.options.length !== fresh.options.length) old.replaceChildren(...fresh.childNodes);
    return;
  }
  children(old, [...fresh.childNodes]);
}

/** Make the children of *parent* look like *fresh*; those with a data-key are moved, not rewritten. */
function children(parent, fresh) {
  const byKey = new Map();
  for (const child of parent.children) if (child.dataset?.key !== undefined) byKey.set(child.dataset.key, child);
  let at = parent.firstChild;
  for (const node of fresh) {
    const key = node.dataset?.key;
    const same = key === undefined ? undefined : byKey.get(key);
    if (same) {
      byKey.delete(key);
      if (same !== at) parent.insertBefore(same, at); else at = at.nextSibling;
      update(same, node);
    } else if (key === undefined && at && at.dataset?.key === undefined) {
      const next = at.nextSibling;
      update(at, node);
      at = next;
    } else parent.insertBefore(node, at);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

/** A table. *columns*: [heading, class]; *rows*: [key, cells…], a cell being what `h` takes; the first is the row's header. */
export function table(caption, columns, rows, { stack = true } = {}) {
  return h(stack ? "div.frame.stack" : "div.frame", { role: "region", "aria-label": caption, tabindex: 0 },
    h("table", {},
      h("caption.hidden", caption),
      h("thead", {}, h("tr", {}, columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))),
      h("tbody", {}, rows.map(([key, ...cells]) => h("tr", { "data-key": key }, cells.map((cell, place) => {
        const [heading, kind] = columns[place];
        return place === 0
          ? h("th", { scope: "row", class: kind }, cell)
          : h("td", { class: kind, "data-label": heading }, cell);
      })))),
    ));
}

export const section = (title, note, ...content) => {
  const id = `t-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return h("section", { "aria-labelledby": id }, h("header", {}, h("h2", { id }, title), note && h("p", {}, note)), content);
};

/** What to do when there is nothing to show. */
export const empty = (what, next) => h("p.empty", {}, h("strong", what), next);

export const figure = (name, value, unit, note) => h("div", {}, h("dt", name), h("dd.value", {}, value, unit && h("small", unit)), note && h("dd.note", {}, note));

/** A bar that is *share* full, 0 to 1. */
export const meter = (share, label, kind = "") => h("svg.meter", { role: "img", "aria-label": label, viewBox: "0 0 100 1", preserveAspectRatio: "none" },
  h("rect", { class: kind, width: 100 * Math.min(1, Math.max(0, share)), height: 1 }));
