// A view as it changes: server-sent events of the tracker, applied to one object.

/** JSON Merge Patch, RFC 7386: null removes. */
export function apply(old, patch) {
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete old[key];
    else if (typeof value === "object" && !Array.isArray(value)) {
      const before = old[key];
      old[key] = apply(before && typeof before === "object" && !Array.isArray(before) ? before : {}, value);
    } else old[key] = value;
  }
  return old;
}

const AGAIN = 3000;  // milliseconds before a stream that was refused is asked for again
const SILENT = 15000;  // milliseconds without an event after which a stream counts as dead

/** Follow *view*, a path below api/v1/cluster. Returns how to stop. */
export function follow(view, { shown, missing, state }) {
  let source, timer, watch, stopped = false, data;
  const alive = () => { clearTimeout(watch); watch = setTimeout(lost, SILENT); };
  const lost = () => {
    if (stopped) return;
    clearTimeout(watch);
    clearTimeout(timer);
    source.close();
    state(false);
    timer = setTimeout(open, AGAIN);
  };
  const open = () => {
    source = new EventSource(`api/v1/cluster/live?view=${encodeURIComponent(view)}`);
    alive();
    source.addEventListener("view", event => { alive(); data = JSON.parse(event.data); state(true); shown(data); });
    source.addEventListener("patch", event => { alive(); data = apply(data, JSON.parse(event.data)); state(true); shown(data); });
    source.addEventListener("missing", event => { alive(); data = undefined; state(true); missing(JSON.parse(event.data).missing); });
    source.onerror = lost;
  };
  open();
  return () => { stopped = true; clearTimeout(timer); clearTimeout(watch); source.close(); };
}
