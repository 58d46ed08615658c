"""Views for people: made of all trackers' parts, as one answer or as server-sent events that say what changed.

All who watch the same view share one channel, which looks at most once per PAUSE seconds, and less often
when looking costs more than a SHARE of this process: agents come first. A channel keeps only the newest
view; each listener gets the difference between what it was sent last and what is there when it can take more,
so a slow one gets fewer events, and nothing is queued for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from tracker.errors import Unknown, Unready
from tracker.page.ask import Ask
from tracker.page.look import Look
from tracker.page.merge import merge
from tracker.page.patch import diff
from tracker.page.replicas import Part, Replicas
from tracker.page.views import AnyView, ClusterView, Replica
from tracker.state.cluster import Cluster

log = logging.getLogger("shoal.tracker")

PAUSE = 1.0
"""Seconds between two looks: as often as a person reads."""

SHARE = 0.1
"""Of one core that all looks together take at most."""

LISTENERS = 100
"""Open streams at once: more people than look after a cluster; each costs a connection and one encoding per second."""

DEEP = 1000
"""Rows down to which lists of all trackers are merged; below that this tracker's own list is shown."""

Json = dict[str, Any]


class Live:
    """Views of *cluster* and its *replicas*. *ready*: whether agents should come to this tracker."""

    def __init__(self, cluster: Cluster, replicas: Replicas, ready: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._replicas = replicas
        self._ready = ready
        self._channels: dict[Ask, _Channel] = {}
        self._closed = False
        self.listeners = 0
        """Open streams."""

    async def view(self, ask: Ask) -> tuple[AnyView, float]:
        """What *ask* wants to see, and the seconds of this process that it took. Raises Unknown."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            own: AnyView | None = Look(self._cluster).view(ask)
        except Unknown:
            own = None
        cost = clock() - begun
        if ask.offset + ask.limit > DEEP:
            if own is None:
                raise Unknown(_missing(ask))
            return own, cost
        replicas, others = await self._replicas.ask(ask)
        begun = clock()
        parts = [own, *others] if own is not None else others
        if not parts:
            raise Unknown(_missing(ask))
        view = merge(parts, ask)
        if isinstance(view, ClusterView):
            view = msgspec.structs.replace(view, replicas={"": self.replica(), **replicas})
        return view, cost + clock() - begun

    def part(self, ask: Ask) -> Part:
        """What this tracker alone knows."""
        try:
            view = msgspec.json.encode(Look(self._cluster).view(ask))
        except Unknown:
            return Part(replica=self.replica())
        return Part(replica=self.replica(), view=msgspec.Raw(view))

    def replica(self) -> Replica:
        """This tracker."""
        cluster = self._cluster
        started = round(cluster.epoch + cluster.started, 1)
        return Replica(
            incarnation=cluster.incarnation, ready=self._ready(), started=started, agents=len(cluster.agents)
        )

    async def follow(self, ask: Ask) -> AsyncGenerator[tuple[str, Json], None]:
        """("view", the whole view), then ("patch", what changed); ("missing", {message}) while there is none of that
        name. Ends when the tracker stops. Raises Unready if too many listen."""
        if self._closed or self.listeners >= LISTENERS:
            raise Unready("too many people watch this tracker: close a page, or watch another one")
        channel = self._channels.get(ask)
        if channel is None:
            channel = self._channels[ask] = _Channel()
            channel.task = asyncio.create_task(self._look(ask, channel))
        channel.listeners += 1
        self.listeners += 1
        sent: Json | None = None
        serial = 0
        try:
            while True:
                while channel.serial == serial:
                    await channel.changed.wait()
                serial, view = channel.serial, channel.view
                if not view:
                    return
                if "missing" in view:
                    yield "missing", view
                    sent = None
                elif sent is None:
                    yield "view", view
                    sent = view
                else:
                    yield "patch", diff(sent, view)
                    sent = view
        finally:
            self.listeners -= 1
            channel.listeners -= 1
            if not channel.listeners and self._channels.get(ask) is channel:
                del self._channels[ask]
                if channel.task is not None:
                    channel.task.cancel()

    async def close(self) -> None:
        """All streams end."""
        self._closed = True
        tasks = [channel.task for channel in self._channels.values() if channel.task is not None]
        for channel in self._channels.values():
            channel.tell({})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._replicas.close()

    async def _look(self, ask: Ask, channel: _Channel) -> None:
        while True:
            cost = 0.0
            try:
                view, cost = await self.view(ask)
                channel.tell(msgspec.to_builtins(view, str_keys=True))
            except Unknown as unknown:
                channel.tell({"missing": str(unknown)})
            except Exception:
                log.exception("view.failed", extra={"fields": {"view": ask.path()}})
                channel.tell({"missing": "This view failed; the tracker's log says why."})
            await asyncio.sleep(max(PAUSE, cost * len(self._channels) / SHARE))


class _Channel:
    """What those see who watch one view."""

    def __init__(self) -> None:
        self.view: Json = {}
        """The newest; empty: there will be none."""
        self.serial = 0
        self.listeners = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def tell(self, view: Json) -> None:
        """*view* is the newest; whoever waits is woken."""
        self.view = view
        self.serial += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def _missing(ask: Ask) -> str:
    if ask.kind == "agent":
        return f"No tracker knows an agent {ask.name}. It may have stopped: look for its node among the agents."
    if ask.kind == "image":
        return f"No tracker knows an image {ask.name}. It appears once an agent saw its manifest go by."
    return f"No tracker knows a swarm {ask.name}. It appears as soon as an agent asks for this blob."
