"""The HTTP side of preheating: orders by POST, progress by GET, both with a token. Off unless one is set."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from aiohttp import web

from swarm.protocol import wire
from tracker.errors import Forbidden, Malformed, Unknown
from tracker.http.doors import PREHEATS
from tracker.members.discovery import Labelled
from tracker.members.selectors import fits, parse_selector
from tracker.state import keeps, preheats
from tracker.state.cluster import Cluster

LONGEST = 10.0
"""Seconds for which a question about progress is held at most."""

STEP = 1.0
"""Seconds between two answers while nobody changes: an agent that is lost becomes so by the clock alone."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How far an order is. *kept*: the images that it says are to stay."""

    id: str
    serial: int
    finished: bool
    agents: dict[str, preheats.Told]
    kept: list[keeps.Held]


class PreheatApi:
    """`/api/v1/preheats` on one cluster. *token*: the file that holds it; None: everything is refused."""

    def __init__(self, cluster: Cluster, token: Path | None, labelled: Labelled | None = None) -> None:
        """*labelled*: knows the labels of nodes; None: orders cannot choose by them."""
        self._cluster = cluster
        self._labelled = labelled
        self._token = token

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """POST an order, or GET /api/v1/preheats/{id}?since=SERIAL. Raises Refused, ValueError."""
        await self._check(request.headers.get("Authorization", ""))
        name = request.path.removeprefix(PREHEATS).strip("/")
        if request.method == "POST" and not name:
            return await self._post(request)
        if request.method != "GET" or not name:
            return web.Response(text="method not allowed\n", status=405, headers={"Allow": "POST, GET"})
        return await self._get(name, int(request.query.get("since", "-1")))

    async def open(self) -> None:
        """Know the token, so that keepers of images are believed."""
        if self._token is not None:
            with contextlib.suppress(Forbidden):
                await self._cluster.keeping.use((await self._read()).encode())

    async def _read(self) -> str:
        if self._token is None:
            raise Forbidden("preheating over HTTP is off: start the tracker with --preheat-token FILE")
        try:
            return (await asyncio.to_thread(self._token.read_text, encoding="utf-8")).strip()
        except (OSError, UnicodeDecodeError):
            raise Forbidden("the tracker cannot read its --preheat-token") from None

    async def _check(self, said: str) -> None:
        token = await self._read()
        if not token or not hmac.compare_digest(said.encode(), f"Bearer {token}".encode()):
            raise Forbidden("the token is missing or wrong")
        await self._cluster.keeping.use(token.encode())

    async def _post(self, request: web.BaseRequest) -> web.Response:
        try:
            order = msgspec.json.decode(await request.read(), type=preheats.Order)
        except msgspec.MsgspecError as error:
            raise Malformed(str(error)) from None
        if reason := preheats.check(order):
            raise Malformed(reason)
        if order.serial > (time.time() + keeps.AHEAD) * 1000:
            raise Malformed("the serial is of the future: is the clock right where the order comes from?")
        chosen = self._chosen(order) if order.labels and order.keep != 0 else order
        for keep in self._keeps(order):
            if reason := self._cluster.keeping.order(keep):
                raise Malformed(reason)
        self._cluster.warming.order(chosen)
        return self._answer(order.id)

    async def _get(self, name: str, since: int) -> web.Response:
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST
        while True:
            found = self._progress(name)
            if found is None:
                raise Unknown("no such order here: post it again")
            if found.serial > since or found.finished or loop.time() >= end or self._cluster.stopping:
                return self._answer(name)
            await self._cluster.warming.news(STEP)

    def _keeps(self, order: preheats.Order) -> Iterator[wire.Keep]:
        """What *order* says about images that stay."""
        if order.keep is not None:
            for image in order.images:
                yield wire.Keep(
                    image=image, copies=order.keep, serial=order.serial, platform=order.platform, zone=order.zone,
                    labels=order.labels,
                )  # fmt: skip

    def _progress(self, name: str) -> Answer | None:
        """How far an order is."""
        found, order = self._cluster.warming.progress(name), self._cluster.warming.known(name)
        if found is None or order is None:
            return None
        keeping = self._cluster.keeping
        kept = [held for keep in self._keeps(order) if (held := keeping.held(keep.name)) is not None]
        return Answer(
            id=found.id,
            serial=found.serial + (keeping.serial if kept else 0),
            finished=found.finished and all(one.settled for one in kept),
            agents=found.agents,
            kept=kept,
        )

    def _chosen(self, order: preheats.Order) -> preheats.Order:
        """*order* with the names of the nodes that its labels mean. Raises Malformed."""
        wanted = parse_selector(order.labels)
        known = {
            agent.name: labels
            for agent in self._cluster.agents.all()
            if self._labelled is not None and (labels := self._labelled.labels(agent.ip)) is not None
        }
        if not known:
            raise Malformed(
                "this tracker does not know the labels of nodes: it needs --discovery kubernetes, zones, and the right "
                "to list nodes; else name them, or ask where kubectl is"
            )
        names = tuple(name for name, labels in known.items() if fits(wanted, labels))
        names = tuple(name for name in names if not order.nodes or name in order.nodes)
        if not names:
            raise Malformed(f"no agent is on a node with the labels {order.labels[:100]}")
        return msgspec.structs.replace(order, nodes=names)

    def _answer(self, name: str) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._progress(name)), content_type="application/json")
