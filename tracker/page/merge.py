"""One view of what several trackers know. Pure.

A digest belongs to one tracker at a time, and the others know at most that somebody holds it whole; so of
two pictures of a swarm the fuller one is taken. An agent has a channel to every tracker, so each knows all of
them; quarantines and blame are known where they happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from tracker.page import views
from tracker.page.ask import Ask
from tracker.page.look import ACTIVE, BLAME, FOUND, order_of
from tracker.page.pictures import FETCHERS, ends, node_rank, ordered
from tracker.state.history import Steps
from tracker.state.history import merge as merge_steps

V = TypeVar("V", bound=views.AnyView)


def merge(parts: Sequence[V], ask: Ask) -> V:
    """One of *parts*, views of the same kind, the own one first."""
    first = parts[0]
    if len(parts) == 1:
        return first
    merged: views.AnyView
    match first:
        case views.ClusterView():
            merged = _clusters([part for part in parts if isinstance(part, views.ClusterView)])
        case views.SwarmsView():
            lists = [part.list for part in parts if isinstance(part, views.SwarmsView)]
            merged = replace(first, list=swarms(lists, ask.offset, ask.limit))
        case views.ImagesView():
            pictures = [part.list for part in parts if isinstance(part, views.ImagesView)]
            merged = replace(first, list=images(pictures, ask.offset, ask.limit, first.now))
        case views.ImageView():
            merged = _image([part for part in parts if isinstance(part, views.ImageView)])
        case views.AgentsView():
            lines = [part.list for part in parts if isinstance(part, views.AgentsView)]
            merged = replace(first, list=agents(lines, ask.offset, ask.limit))
        case views.SearchView():
            found = [part for part in parts if isinstance(part, views.SearchView)]
            merged = replace(
                first,
                images=images([part.images for part in found], 0, FOUND, first.now),
                swarms=swarms([part.swarms for part in found], 0, FOUND),
                agents=agents([part.agents for part in found], 0, FOUND),
            )
        case views.SwarmView():
            merged = _swarm([part for part in parts if isinstance(part, views.SwarmView)])
        case _:
            merged = _agent([part for part in parts if isinstance(part, views.AgentView)])
    return merged  # type: ignore[return-value]  # of the kind of the first


def swarms(lists: Sequence[views.SwarmList], offset: int, limit: int) -> views.SwarmList:
    """Rows [offset, offset + limit) of all; each of *lists* begins at row 0."""
    rows: dict[str, views.SwarmLine] = {}
    for part in lists:
        for digest, line in part.rows.items():
            rows[digest] = _fuller(rows[digest], line) if digest in rows else line
    shown = {line.digest: line for line in order_of(rows.values())[offset : offset + limit]}
    count = max(len(rows), *(part.total for part in lists))
    return views.SwarmList(total=count, offset=offset, order=tuple(shown), rows=shown)


def agents(lists: Sequence[views.AgentList], offset: int, limit: int) -> views.AgentList:
    """Rows [offset, offset + limit) of all; each of *lists* begins at row 0."""
    rows: dict[str, views.AgentLine] = {}
    for part in lists:
        for key, line in part.rows.items():
            known = rows.get(key)
            rows[key] = line if known is None else _nearer(known, line)
    keys = sorted(rows, key=lambda key: (rows[key].name, key))[offset : offset + limit]
    count = max(len(rows), *(part.total for part in lists))
    return views.AgentList(total=count, offset=offset, order=tuple(keys), rows={key: rows[key] for key in keys})


def _clusters(parts: Sequence[views.ClusterView]) -> views.ClusterView:
    most = max(parts, key=lambda part: part.agents.total)
    quarantined = {key: entry for part in parts for key, entry in part.quarantined.items()}
    zones = {}
    for zone, count in most.zones.items():
        bad = sum(entry.zone == zone for entry in quarantined.values())
        gone = max(0, bad - count.quarantined)  # those that *most* takes for connected
        zones[zone] = replace(count, quarantined=bad, connected=max(0, count.connected - gone))
    states = Counter[str]()
    for which in most.swarms:
        states[which] = max(part.swarms.get(which, 0) for part in parts)
    states["entering"] = sum(part.swarms.get("entering", 0) for part in parts)
    failures = Counter[str]()
    upstreams: dict[str, float] = {}
    for part in parts:
        failures.update(part.failures)
        for host, until in part.upstreams.items():
            upstreams[host] = max(until, upstreams.get(host, 0.0))
    steps: Steps = merge_steps({int(at): step for at, step in part.hour.steps.items()} for part in parts)
    blame = sorted({entry for part in parts for entry in part.blame}, key=lambda entry: -entry.at)
    gone = sum(zone.quarantined for zone in zones.values()) - most.agents.quarantined
    return replace(
        parts[0],
        agents=replace(
            most.agents,
            connected=max(0, most.agents.connected - max(0, gone)),
            quarantined=most.agents.quarantined + max(0, gone),
        ),
        zones=zones,
        swarms=dict(states),
        names=max(part.names for part in parts),
        rate=sum(part.rate for part in parts),
        arrived=sum(part.arrived for part in parts),
        entered=sum(part.entered for part in parts),
        moved=max(part.moved for part in parts),
        hour=replace(parts[0].hour, steps={str(at): (step[0], step[1]) for at, step in steps.items()}),
        upstreams=upstreams,
        failures=dict(failures),
        quarantined=quarantined,
        refused={key: found for part in parts for key, found in part.refused.items()},
        conflicts={key: found for part in parts for key, found in part.conflicts.items()},
        kept=_kept(parts),
        blame=tuple(blame[:BLAME]),
        active=swarms([part.active for part in parts], 0, ACTIVE),
        images=images([part.images for part in parts], 0, ACTIVE, parts[0].now),
    )


def _kept(parts: Sequence[views.ClusterView]) -> dict[str, views.Kept]:
    """Of each image the newest order, as the tracker tells it that knows of most copies."""
    found: dict[str, views.Kept] = {}
    for part in parts:
        for name, one in part.kept.items():
            known = found.get(name)
            if known is None or (one.serial, one.whole) > (known.serial, known.whole):
                found[name] = one
    return dict(sorted(found.items()))


def _swarm(parts: Sequence[views.SwarmView]) -> views.SwarmView:
    best = max(parts, key=lambda part: _weight(part.swarm))
    return replace(best, now=parts[0].now, swarm=replace(best.swarm, names=_names(part.swarm for part in parts)))


def _agent(parts: Sequence[views.AgentView]) -> views.AgentView:
    first = parts[0]
    line = first.agent
    downloads: dict[str, views.Download] = {}
    peers: dict[str, views.Sharer] = {}
    for part in parts:
        line = _nearer(line, part.agent)
        for digest, download in part.downloads.items():
            known = downloads.get(digest)
            if known is None or _weight(download.swarm) > _weight(known.swarm):
                downloads[digest] = download
        for key, sharer in part.peers.items():
            before = peers.get(key)
            peers[key] = (
                sharer
                if before is None
                else replace(sharer, swarms=sharer.swarms + before.swarms, whole=sharer.whole + before.whole)
            )
    blame = sorted({entry for part in parts for entry in part.blame}, key=lambda entry: -entry.at)
    return replace(
        first,
        agent=line,
        seen=max(part.seen for part in parts),
        quarantined=next((part.quarantined for part in parts if part.quarantined is not UNSET), UNSET),
        blame=tuple(blame[:BLAME]),
        downloads=downloads,
        peers=peers,
    )


def images(lists: Sequence[views.ImageList], offset: int, limit: int, now: float) -> views.ImageList:
    """Rows [offset, offset + limit) of all; each of *lists* begins at row 0."""
    rows: dict[str, views.ImageLine] = {}
    for part in lists:
        for manifest, line in part.rows.items():
            rows[manifest] = _pictured(rows[manifest], line, now) if manifest in rows else line
    order = ordered(rows.values())
    shown = {line.manifest: line for line in order[offset : offset + limit]}
    total = max(len(rows), *(part.total for part in lists))
    return views.ImageList(total=total, offset=offset, order=tuple(shown), rows=shown)


def _pictured(one: views.ImageLine, other: views.ImageLine, now: float) -> views.ImageLine:
    """An image of which each tracker knows the blobs that are its own."""
    fetchers = {**one.fetchers, **other.fetchers}
    began = [line.began for line in (one, other) if line.began]
    merged = replace(
        one if one.names else other,
        nodes=max(one.nodes, other.nodes),
        of=max(one.of, other.of),
        fetching=max(one.fetching, other.fetching, len(fetchers)),
        fetchers=dict(list(fetchers.items())[:FETCHERS]),
        began=min(began, default=0.0),
        held=max(one.held, other.held),
        arriving=one.arriving + other.arriving,
        moved=(one.moved[0] + other.moved[0], one.moved[1] + other.moved[1]),
        seen=max(one.seen, other.seen),
    )
    return replace(merged, ends=ends(merged, now))


def _image(parts: Sequence[views.ImageView]) -> views.ImageView:
    first = parts[0]
    line, layers, rows = first.image, dict(first.layers), dict(first.rows)
    for part in parts[1:]:
        line = _pictured(line, part.image, first.now)
        for digest, layer in part.layers.items():
            known = layers.get(digest)
            if known is None or known.swarm is UNSET:
                layers[digest] = layer
            elif isinstance(layer.swarm, views.SwarmLine) and isinstance(known.swarm, views.SwarmLine):
                layers[digest] = replace(known, swarm=_fuller(known.swarm, layer.swarm))
        for key, row in part.rows.items():
            before = rows.get(key)
            if before is None:
                rows[key] = row
                continue
            moving = before if before.state == "fetching" else row
            rows[key] = replace(moving, held=max(before.held, row.held), arriving=before.arriving + row.arriving)
    order = sorted(rows, key=lambda key: node_rank(key, rows[key]))
    return replace(first, image=line, layers=layers, order=tuple(order), rows=rows, total=max(first.total, len(rows)))


def _weight(line: views.SwarmLine) -> tuple[int, int, int, int]:
    return line.fetching, line.arrived, line.published, line.holders


def _fuller(one: views.SwarmLine, other: views.SwarmLine) -> views.SwarmLine:
    best = max(one, other, key=_weight)
    return replace(
        best,
        names=_names((one, other)),
        used=max(one.used, other.used),
        images=tuple(sorted({*one.images, *other.images})[:3]),
    )


def _names(lines: Iterable[views.SwarmLine]) -> tuple[str, ...]:
    return tuple(sorted({name for line in lines for name in line.names}))


def _nearer(one: views.AgentLine, other: views.AgentLine) -> views.AgentLine:
    """Quarantined where one of the trackers says so; else connected where one of them has its channel."""
    states = (one.state, other.state)
    for state in ("quarantined", "connected"):
        if state in states:
            return replace(one, state=state)
    return one
