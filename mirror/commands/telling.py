"""What trackers tell, as text that is read at 80 columns: nothing is cut, and each figure says what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

BLAMED = 5
"""Lines of the record of blame shown."""

SHOWN = 20
"""Images, agents and layers shown; --json has all of them."""


class _Blamed(msgspec.Struct):
    agent: str
    name: str
    what: str
    reason: str


class _Upstream(msgspec.Struct):
    host: str
    seconds: float


class _Conflict(msgspec.Struct):
    key: str
    taken: str
    refused: str


class _Turned(msgspec.Struct):
    address: str
    reason: str


class _Kept(msgspec.Struct):
    image: str
    platform: str
    copies: int
    whole: int
    keepers: dict[str, str]
    failed: dict[str, str]


class _State(msgspec.Struct):
    uptime: float
    ready: bool
    agents: int
    boards: dict[str, int]
    names: int
    rate: float
    totals: dict[str, float]
    blame: list[_Blamed]
    upstreams: list[_Upstream]
    conflicts: list[_Conflict] = []
    refused: list[_Turned] = []
    kept: list[_Kept] = []


class _Agent(msgspec.Struct):
    key: str
    name: str
    zone: str
    seen: float
    held: int
    quarantined: float
    stats: dict[str, float]


class _Board(msgspec.Struct):
    digest: str
    state: str
    size: int | None
    windows: int
    published: int
    holders: int
    participants: int
    claims: int
    rate: float


class _Image(msgspec.Struct):
    manifest: str
    names: list[str]
    platform: str
    size: int
    blobs: int
    nodes: int
    of: int
    fetching: int
    fetchers: dict[str, str]
    began: float = 0.0
    ends: float = 0.0
    moved: tuple[int, int] = (0, 0)


class _Images(msgspec.Struct):
    now: float = 0.0
    total: int = 0
    items: list[_Image] = []


class Page(msgspec.Struct):
    """A part of a list."""

    total: int
    items: list[Any]


class Told(msgspec.Struct):
    """One tracker's answers."""

    url: str
    state: _State
    images: _Images
    agents: list[_Agent]
    boards: list[_Board]


def render(told: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All trackers below one another."""
    answered = [msgspec.convert(raw, Told) for raw in told if "error" not in raw]
    parts: list[RenderableType] = [_text(f"tracker {raw['url']}: {raw['error']}") for raw in told if "error" in raw]
    for one in answered:
        parts += _tracker(one, answered)
    return Group(*parts)


def size_text(count: float | None) -> str:
    """A byte count with its unit."""
    value = float(count or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _tracker(one: Told, answered: Sequence[Told]) -> Iterator[RenderableType]:
    state, boards, totals = one.state, one.state.boards, one.state.totals
    yield _text(f"tracker {one.url}: {'ready' if state.ready else 'not ready'}, up {_age(state.uptime)}")
    yield _below(
        f"{_count(state.agents, 'agent')}; {_count(boards.get('sealed', 0), 'layer')} whole, "
        f"{boards.get('entering', 0)} on the way in, {boards.get('poisoned', 0)} given up as wrong; "
        f"{_count(state.names, 'tag')}"
    )
    yield _below(
        f"from upstream {size_text(totals.get('upstream_bytes'))} ({size_text(state.rate)}/s now), "
        f"from peers {size_text(totals.get('peer_bytes_in'))}"
    )
    for line in _warnings(one, answered):
        yield _below(f"! {line}")
    yield _text("")
    yield from _images(one.images)
    yield _text("")
    if state.kept:
        yield from _keeps(state.kept)
        yield _text("")
    yield from _agents(one.agents)
    moving = [board for board in one.boards if board.state in ("entering", "poisoned")]
    if moving:
        yield _text("")
        yield from _layers(moving)


def _warnings(one: Told, answered: Sequence[Told]) -> Iterator[str]:
    """What is wrong: first which agents have no tracker, and why."""
    state = one.state
    for turned in state.refused:
        yield f"without this tracker: {turned.address}, refused: {turned.reason}"
    for rival in state.conflicts:
        yield (
            f"without this tracker: {rival.refused}, since {rival.taken} announces {rival.key} as well: "
            "give one of them another --swarm-listen"
        )
    here = {agent.key for agent in one.agents}
    elsewhere = {agent.key: agent.name for other in answered for agent in other.agents if agent.key not in here}
    turned_away = {turned.address for turned in state.refused}
    for key, name in sorted(elsewhere.items()):
        if key.rpartition(":")[0] not in turned_away:
            yield f"without this tracker: {name} ({key}), which another tracker knows: see its /status"
    for blame in state.blame[:BLAMED]:
        yield f"blamed: {blame.name} ({blame.agent}), {blame.what}: {blame.reason}"
    for upstream in state.upstreams:
        yield f"upstream {upstream.host} asked us to wait {upstream.seconds:.0f} s more"


def _images(images: _Images) -> Iterator[RenderableType]:
    if not images.items:
        yield _text("no image yet: one is known once an agent saw its manifest go by")
        return
    yield _text(f"images ({images.total})", bold=True)
    for image in images.items[:SHOWN]:
        platform = f"  {image.platform}" if image.platform else ""
        yield _text((image.names[0] if image.names else image.manifest) + platform)
        yield _below(
            f"{size_text(image.size)} in {_count(image.blobs, 'layer')}; "
            f"{image.nodes} of {_count(image.of, 'node')} have all of it; "
            f"{size_text(image.moved[0])} came from upstream, {size_text(image.moved[1])} from peers"
        )
        if image.fetching:
            yield _below(_pulled(image, images.now))
    yield from _rest(images.total)


def _pulled(image: _Image, now: float) -> str:
    names = list(image.fetchers.values())
    more = f" and {image.fetching - len(names)} more" if image.fetching > len(names) else ""
    since = f" for {_age(now - image.began)}" if image.began else ""
    left = f", about {_age(image.ends - now)} left" if image.ends > now else ""
    return f"being pulled by {', '.join(names)}{more}{since}{left}"


def _keeps(kept: Sequence[_Kept]) -> Iterator[RenderableType]:
    yield _text(f"kept images ({len(kept)})", bold=True)
    for image in kept[:SHOWN]:
        yield _text(image.image + (f"  {image.platform}" if image.platform else ""))
        names = [name if state == "whole" else f"{name} ({state})" for name, state in sorted(image.keepers.items())]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        by = f", by {', '.join(names[:SHOWN])}{more}" if names else ""
        yield _below(f"{image.whole} of {_count(image.copies, 'copy', 'copies')}{by}")
        for name, reason in list(image.failed.items())[:BLAMED]:
            yield _below(f"! {name} does not keep it: {reason}")
    yield from _rest(len(kept))


def _agents(agents: Sequence[_Agent]) -> Iterator[RenderableType]:
    if not agents:
        yield _text(
            "no agents: start one with shoal agent --tracker URL, and see that --member or --selector covers it"
        )
        return
    yield _text(f"agents ({len(agents)})", bold=True)
    for agent in agents[:SHOWN]:
        zone = f", zone {agent.zone}" if agent.zone else ""
        yield _text(f"{agent.name}  {agent.key}{zone}, heard {_age(agent.seen)} ago")
        stats = agent.stats
        store, budget = stats.get("store_bytes"), stats.get("store_budget")
        yield _below(
            f"{_count(agent.held, 'blob')}; store {size_text(store)} of {size_text(budget)}; "
            f"{size_text(stats.get('upstream_bytes'))} from upstream, {size_text(stats.get('peer_bytes_in'))} "
            f"from peers, {size_text(stats.get('peer_bytes_out'))} to peers"
        )
        if agent.quarantined:
            yield _below(f"! in quarantine for {_age(agent.quarantined)} more: nobody relies on it")
    yield from _rest(len(agents))


def _layers(boards: Sequence[_Board]) -> Iterator[RenderableType]:
    yield _text(f"layers on the way in ({len(boards)})", bold=True)
    for board in boards[:SHOWN]:
        yield _text(board.digest)
        size = "size not known yet" if board.size is None else size_text(board.size)
        if board.state == "poisoned":
            yield _below(f"{size}; its bytes were wrong too often, so agents fetch it from upstream alone")
            continue
        yield _below(
            f"{size}; {board.published} of {board.windows} windows are in the cluster, {board.claims} are being "
            f"brought in at {size_text(board.rate)}/s; {_count(board.participants, 'node')} taking part, "
            f"{board.holders} with all of it"
        )
    yield from _rest(len(boards))


def _rest(count: int) -> Iterator[RenderableType]:
    if count > SHOWN:
        yield _text(f"... and {count - SHOWN} more (--json has all)")


def _text(text: str, *, bold: bool = False) -> Text:
    """*text* without control characters: names come from other nodes, and a terminal obeys what it is told."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return Text(plain, style="bold" if bold else "", overflow="fold")


def _below(text: str) -> RenderableType:
    return Padding(_text(text), (0, 0, 0, 2))


def _count(count: int, what: str, many: str = "") -> str:
    return f"{count} {what if count == 1 else many or what + 's'}"


def _age(seconds: float | None) -> str:
    value = float(seconds or 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{max(0.0, value):.0f} s"
