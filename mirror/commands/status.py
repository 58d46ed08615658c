"""`shoal status`: what the trackers' page shows, as text or JSON."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swarm.base.flags import TRACKER, options, setting, tracker_urls

ANSWER_WITHIN = 5.0
"""Seconds for a tracker to answer one question."""

MAX_ANSWER = 16 << 20
"""Bytes of an answer at most: a page of 500 entries takes a few hundred KiB."""

PAGE = 500
"""Entries asked for at once; what a tracker gives at most."""

REDRAW = 1.0
"""Seconds between two looks with --watch: as often as a person reads."""

BLAMED = 5
"""Lines of the record of blame shown as text."""

SHOWN = 20
"""Agents and swarms shown as text; --json has all of them."""


@dataclass(frozen=True)
class StatusSettings:
    """Every flag of `shoal status` that has an environment twin."""

    tracker: tuple[str, ...] = setting(
        ("http://127.0.0.1:6969",),
        TRACKER,
        "The tracker to ask, http://HOST:PORT, or dns+http://NAME:PORT for every address of a name. Repeatable.",
        unit="URL",
        reason="Where `shoal up` and `shoal tracker` listen unless told otherwise.",
    )


@click.command()
@options(StatusSettings)
@click.option("--json", "as_json", is_flag=True, help="Everything the trackers tell, as one JSON object.")
@click.option("--watch", is_flag=True, help="Stay, and show it anew every second.")
def status(*, as_json: bool, watch: bool, **values: Any) -> Coroutine[Any, Any, None]:
    """Show agents and swarms as the trackers know them."""
    if as_json and watch:
        raise click.UsageError("--watch is for people, --json for programs: choose one")
    return _status(StatusSettings(**values), as_json=as_json, watch=watch)


async def _status(settings: StatusSettings, *, as_json: bool, watch: bool) -> None:
    console = Console()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN)) as session:
        told = await _ask_all(session, settings.tracker)
        if not any("state" in one for one in told):
            raise click.ClickException("; ".join(f"{one['url']}: {one['error']}" for one in told))
        if as_json:
            click.echo(json.dumps({"trackers": told}, indent=2))
        elif not watch:
            console.print(render(told))
        else:
            with Live(render(told), console=console, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(REDRAW)
                    live.update(render(await _ask_all(session, settings.tracker)), refresh=True)


# --------------------------------------------------------------------------- what a tracker tells


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


class _Page(msgspec.Struct):
    total: int
    items: list[Any]


class Told(msgspec.Struct):
    """One tracker's answers."""

    url: str
    state: _State
    agents: list[_Agent]
    boards: list[_Board]


# --------------------------------------------------------------------------- asking


async def _ask_all(session: aiohttp.ClientSession, trackers: Sequence[str]) -> list[dict[str, Any]]:
    """What each tracker tells: url, and either state, agents and boards, or error."""
    urls = [url for urls in await asyncio.gather(*(addresses(one) for one in trackers)) for url in urls]
    return list(await asyncio.gather(*(_ask(session, url) for url in dict.fromkeys(urls))))


async def addresses(tracker: str) -> list[str]:
    """`dns+http://name:port` as one URL for each address of the name; another URL as it is."""
    if not tracker.startswith("dns+"):
        return [tracker]
    host = urlsplit(tracker.removeprefix("dns+")).hostname
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return [tracker.removeprefix("dns+")]  # the error comes with the question, in the same words as any other
    return list(tracker_urls(tracker, (str(place[4][0]) for place in found)))


async def _ask(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        told = {
            "url": url,
            "state": await _get(session, f"{url}/api/v1/state"),
            "agents": await _get_pages(session, f"{url}/api/v1/agents"),
            "boards": await _get_pages(session, f"{url}/api/v1/boards"),
        }
        msgspec.convert(told, Told)
        return told
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
        return {"url": url, "error": _why(problem)}


async def _get_pages(session: aiohttp.ClientSession, url: str) -> list[Any]:
    items: list[Any] = []
    while True:
        page = await _get(session, f"{url}?offset={len(items)}&limit={PAGE}")
        part = msgspec.convert(page, _Page)
        items += part.items
        if not part.items or len(items) >= part.total:
            return items


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url) as answer:
        answer.raise_for_status()
        body = bytearray()
        async for part in answer.content.iter_chunked(1 << 16):
            body += part
            if len(body) > MAX_ANSWER:
                raise ValueError("the answer is too long")
    return msgspec.json.decode(body, type=dict[str, Any])


def _why(problem: Exception) -> str:
    match problem:
        case aiohttp.ClientResponseError():
            return f"HTTP {problem.status}"
        case aiohttp.ClientConnectorError():
            return "no answer: nothing listens there, or it is not reachable"
        case TimeoutError():
            return f"no answer within {ANSWER_WITHIN:g} s"
        case msgspec.MsgspecError():
            return f"the answer is none of a tracker ({problem})"
        case _:
            return str(problem) or type(problem).__name__


# --------------------------------------------------------------------------- showing


def render(told: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All trackers below one another."""
    parts: list[RenderableType] = []
    for raw in told:
        if "error" in raw:
            parts.append(_text(f"tracker {raw['url']}: {raw['error']}"))
            continue
        one = msgspec.convert(raw, Told)
        parts += [_text("\n".join(_summary(one))), _agents(one.agents), _boards(one.boards)]
    return Group(*parts)


def _summary(one: Told) -> Iterator[str]:
    state, boards, totals = one.state, one.state.boards, one.state.totals
    yield f"tracker {one.url}: {'ready' if state.ready else 'not ready'}, up {_age(state.uptime)}"
    swarms = ", ".join(f"{boards.get(which, 0)} {which}" for which in ("sealed", "entering", "poisoned"))
    yield f"{state.agents} agents; swarms: {swarms}; {state.names} tags"
    yield (
        f"from upstream {size_text(totals.get('upstream_bytes'))} ({size_text(state.rate)}/s now), "
        f"from peers {size_text(totals.get('peer_bytes_in'))}"
    )
    for blame in state.blame[:BLAMED]:
        yield f"blamed: {blame.name} ({blame.agent}), {blame.what}: {blame.reason}"
    for rival in state.conflicts:
        yield (
            f"conflict: {rival.taken} and {rival.refused} both announce {rival.key}, so {rival.refused} works alone: "
            "give one of them another --swarm-listen"
        )
    for turned in state.refused:
        yield f"without this tracker: {turned.address}, refused: {turned.reason}"
    for upstream in state.upstreams:
        yield f"upstream {upstream.host} asked us to wait {upstream.seconds:.0f} s more"


def _agents(agents: Sequence[_Agent]) -> RenderableType:
    if not agents:
        return _text(
            "no agents: start one with shoal agent --tracker URL, and see that --member or --selector covers it"
        )
    table = _table("agent", "address", "zone", "seen", "blobs", "store", "from upstream", "from peers", "to peers")
    for agent in agents[:SHOWN]:
        state = f" (quarantined {agent.quarantined:.0f} s)" if agent.quarantined else ""
        amounts = [agent.stats.get(key) for key in ("store_bytes", "upstream_bytes", "peer_bytes_in", "peer_bytes_out")]
        words = (agent.name + state, agent.key, agent.zone, f"{_age(agent.seen)} ago", str(agent.held))
        table.add_row(*map(_text, words), *map(size_text, amounts))
    return _with_rest(table, len(agents))


def _boards(boards: Sequence[_Board]) -> RenderableType:
    if not boards:
        return _text("no swarms yet: pull an image")
    table = _table("swarm", "state", "size", "windows", "holders", "taking part", "claims", "rate")
    for board in boards[:SHOWN]:
        words = (
            board.digest[:19], board.state, "?" if board.size is None else size_text(board.size),
            f"{board.published}/{board.windows}", str(board.holders), str(board.participants), str(board.claims),
            f"{size_text(board.rate)}/s",
        )  # fmt: skip
        table.add_row(*map(_text, words))
    return _with_rest(table, len(boards))


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    return table


def _with_rest(table: Table, count: int) -> RenderableType:
    return Group(table, _text(f"... and {count - SHOWN} more (--json has all)")) if count > SHOWN else table


def _text(text: str) -> Text:
    """*text* without control characters: names come from other nodes, and a terminal obeys what it is told."""
    return Text("".join(char if char.isprintable() or char == "\n" else "?" for char in text))


def size_text(count: float | None) -> str:
    value = float(count or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _age(seconds: float | None) -> str:
    value = float(seconds or 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.0f} s"
