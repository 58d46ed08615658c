"""`shoal preheat`: images onto nodes before somebody waits for them, with a table and an exit code that are true."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from mirror.commands.asking import Asking, addresses, bearer, place, secured
from mirror.commands.doctor import IMAGE
from mirror.commands.telling import size_text
from mirror.doctor import kubectl
from mirror.upstream.reference import Image
from swarm.base.flags import PATH, options, setting

ANSWER_WITHIN = 20.0
"""Seconds for a tracker to answer: it holds a question about progress for ten."""

GIVE_UP = 60.0
"""Seconds without any tracker that answers after which the outcome counts as unknown: a restart takes a few."""

PAUSE = 0.5
"""Seconds between two rounds over trackers that do not answer."""


@dataclass(frozen=True)
class PreheatSettings(Asking):
    """Every flag of `shoal preheat` that has an environment twin."""

    preheat_token: Path | None = setting(
        None,
        PATH,
        "File with the token that the tracker's --preheat-token holds.",
        unit="file",
        reason="A file, since arguments and environments are seen by others.",
    )


class Told(msgspec.Struct):
    """How far one agent is."""

    name: str
    zone: str
    state: str
    done: int
    total: int
    sources: dict[str, int]
    error: str
    seconds: float


class Held(msgspec.Struct):
    """How far an image is that is to stay. *keepers*: node -> state; *failed*: node -> reason."""

    image: str
    copies: int
    whole: int
    keepers: dict[str, str]
    failed: dict[str, str]


class Answer(msgspec.Struct):
    """What a tracker says of an order."""

    id: str
    serial: int
    finished: bool
    agents: dict[str, Told]
    kept: list[Held] = []


@click.command()
@click.argument("images", nargs=-1, type=IMAGE, metavar="IMAGE...")
@click.option(
    "--nodes",
    default="",
    help="Only nodes with these labels (as kubectl's -l; asks kubectl, or the trackers where there is none).",
)
@click.option("--zone", default="", help="Only nodes of this zone.")
@click.option("--count", default=0, type=click.IntRange(0), help="So many nodes, spread over zones; 0: all.")
@click.option("--percent", default=0.0, type=click.FloatRange(0, 100), help="So many of a hundred nodes; 0: all.")
@click.option(
    "--keep",
    default=None,
    type=click.IntRange(0),
    metavar="N",
    help="Have the images stay on N nodes, in different zones where there are any: not evicted, and on another node "
    "where one is lost. 0: let them go again, and fetch nothing.",
)
@click.option("--platform", default="", help="os/architecture of indexes; each node's own if empty.")
@click.option("--wait", is_flag=True, help="Stay until it is done; show how far each node is.")
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
@options(PreheatSettings)
def preheat(
    images: tuple[Image, ...],
    *,
    nodes: str,
    zone: str,
    count: int,
    percent: float,
    keep: int | None,
    platform: str,
    wait: bool,
    as_json: bool,
    **values: Any,
) -> Coroutine[Any, Any, None]:
    """Have IMAGEs on nodes before somebody pulls them. With --wait, exits 1 unless every node has all of them."""
    if not images:
        raise click.UsageError("name an IMAGE to preheat")
    settings = PreheatSettings(**values)
    order = {
        "id": secrets.token_hex(8), "images": [str(image) for image in images], "zone": zone, "count": count,
        "percent": percent, "platform": platform,
    }  # fmt: skip
    if keep is not None:
        order |= {"keep": keep, "serial": time.time_ns() // 1_000_000}
    return _preheat(settings, order, nodes=nodes, wait=wait, as_json=as_json)


async def _preheat(settings: PreheatSettings, order: dict[str, Any], *, nodes: str, wait: bool, as_json: bool) -> None:
    keep = order.get("keep")
    if nodes and (keep is not None or shutil.which("kubectl") is None):
        order["labels"] = nodes  # trackers in a cluster know nodes' labels, of nodes that are still to come as well
    elif nodes:
        order["nodes"] = await kubectl.nodes(nodes)
        if not order["nodes"]:
            raise click.ClickException(f"no node has the labels {nodes}")
    begun = time.monotonic()
    async with aiohttp.ClientSession(
        headers={"Content-Type": "application/json"} | bearer(settings.preheat_token)
    ) as session:
        desk = _Desk(session, settings.tracker, order, secured(settings.tls_ca))
        answer = await desk.post()
        if not answer.agents and keep != 0:
            raise click.ClickException("no agent is a member there, or none fits the choice: shoal status shows them")
        if not wait:
            if as_json:
                click.echo(msgspec.json.encode(answer).decode())
            else:
                click.echo(f"told {len(answer.agents)} nodes, as order {answer.id}; --wait shows how it goes")
                if keep is not None:
                    click.echo("what is kept: shoal status")
            return
        answer = await _follow(desk, answer, quiet=as_json)
    problems = list(_problems(answer))
    _show(answer, time.monotonic() - begun, as_json=as_json)
    for problem in problems:
        click.echo(_plain(problem), err=True)
    if problems:
        raise SystemExit(1)


def _show(answer: Answer, seconds: float, *, as_json: bool) -> None:
    """The outcome, after so many seconds."""
    if as_json:
        click.echo(msgspec.json.encode({"seconds": round(seconds, 1), **msgspec.to_builtins(answer)}).decode())
        return
    if answer.agents:
        Console().print(_table(answer.agents))
        click.echo(_sum(answer.agents, seconds))
    for held in answer.kept:
        click.echo(_kept(held))


def _problems(answer: Answer) -> Iterator[str]:
    """What is not as it was ordered, a line each."""
    for told in answer.agents.values():
        if told.state != "done":
            yield f"{told.name}: {told.state}{': ' if told.error else ''}{told.error}"
    for held in answer.kept:
        if held.whole < held.copies:
            yield f"{held.image}: {held.whole} of {held.copies} copies are kept"
            for name, reason in held.failed.items():
                yield f"{name} does not keep it: {reason}"


class _Desk:
    """Whoever of the trackers answers; an order that one forgot is posted again under its id."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        trackers: Sequence[str],
        order: Mapping[str, Any],
        secured: dict[str, Any],
    ) -> None:
        """*secured*: how aiohttp is to connect by TLS; empty: in clear."""
        self._session, self._trackers, self._order, self._secured = session, trackers, order, secured

    async def post(self) -> Answer:
        """Post the order to the first tracker that takes it. Raises click.ClickException."""
        return await self._ask("POST", "/api/v1/preheats", "")

    async def look(self, serial: int) -> Answer:
        """How far it is, once that changed since *serial*. Raises click.ClickException."""
        return await self._ask("GET", f"/api/v1/preheats/{self._order['id']}", f"?since={serial}")

    async def _ask(self, method: str, path: str, query: str) -> Answer:
        loop = asyncio.get_running_loop()
        end, why = loop.time() + GIVE_UP, "no tracker is named"
        while True:
            for url in [url for one in self._trackers for url in await addresses(one)]:
                try:
                    status, body = await self._one(method, url + path + query)
                    if status == 404 and method == "GET":  # restarted, or another one: it is told, and asked
                        status, body = await self._one("POST", f"{url}/api/v1/preheats")
                except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                    why = f"{url}: {str(problem) or type(problem).__name__}"
                    continue
                if status == 200:
                    return _decoded(body)
                why = f"{url}: {_problem(status, body)}"
                if status < 500:
                    raise click.ClickException(why)
            if method == "POST" or loop.time() >= end:
                raise click.ClickException(f"the order's outcome is unknown: {why}" if method == "GET" else why)
            await asyncio.sleep(PAUSE)

    async def _one(self, method: str, url: str) -> tuple[int, bytes]:
        data = msgspec.json.encode(self._order) if method == "POST" else None
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN, sock_connect=3.0)
        async with self._session.request(
            method, place(url, self._secured), data=data, timeout=timeout, **self._secured
        ) as answer:
            return answer.status, await answer.read()


def _decoded(body: bytes) -> Answer:
    try:
        return msgspec.json.decode(body, type=Answer)
    except msgspec.MsgspecError as problem:
        raise click.ClickException(f"the answer is none of a tracker ({problem})") from None


def _problem(status: int, body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"HTTP {status}"


async def _follow(desk: _Desk, answer: Answer, *, quiet: bool) -> Answer:
    """Show each node's bar until everybody is done, failed or lost."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bars:
        tasks: dict[str, Any] = {}
        while True:
            for key, told in answer.agents.items():
                if key not in tasks:
                    tasks[key] = bars.add_task(_plain(told.name))
                bars.update(tasks[key], completed=told.done, total=told.total or None)
            if answer.finished:
                return answer
            answer = await desk.look(answer.serial)


def _table(agents: Mapping[str, Told]) -> Table:
    table = Table("node", "state", "seconds", "size", "upstream", "peers", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for told in sorted(agents.values(), key=lambda told: told.name):
        sources = [size_text(told.sources.get(name, 0)) for name in ("upstream", "peer")]
        table.add_row(_plain(told.name), told.state, f"{told.seconds:.1f}", size_text(told.total), *sources)
    return table


def _sum(agents: Mapping[str, Told], seconds: float) -> str:
    """The last lines: bytes by source, and copies from upstream of what had to be brought in."""
    upstream = sum(told.sources.get("upstream", 0) for told in agents.values())
    peers = sum(told.sources.get("peer", 0) for told in agents.values())
    largest = max((told.total for told in agents.values()), default=0)
    copies = f"{upstream / largest:.2f} copies from upstream" if largest else "nothing to bring in"
    done = sum(told.state == "done" for told in agents.values())
    return (
        f"{done} of {len(agents)} nodes have it after {seconds:.1f} s\n"
        f"{size_text(upstream)} from upstream, {size_text(peers)} from peers: {copies}"
    )


def _kept(held: Held) -> str:
    """One line of an image that is to stay."""
    if not held.copies:
        return _plain(f"{held.image}: kept by nobody any more")
    names = ", ".join(name for name, state in sorted(held.keepers.items()) if state == "whole")
    return _plain(f"{held.image}: {held.whole} of {held.copies} copies are kept{' by ' if names else ''}{names}")


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text).replace("[", "(")
