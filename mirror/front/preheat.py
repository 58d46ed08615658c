"""Orders to have images on this node before somebody waits for them: resolved, fetched below every pull, reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Protocol

from mirror.front.gathering import Gathering, own_platform
from mirror.front.images import Part
from mirror.upstream.reference import Image, parse_image
from swarm.blob.errors import SwarmError

log = logging.getLogger("shoal.mirror")

MOST = 64
"""Orders remembered; a tracker that takes over tells them again, and they are not begun again."""

TELL_EVERY = 1.0
"""Seconds between two reports: as often as a person reads."""


class Telling(Protocol):
    """Says how far an order is: `Node.tell_preheat`."""

    def __call__(
        self, identity: str, state: str, done: int, total: int, sources: dict[str, int], error: str = ""
    ) -> Awaitable[None]: ...


class Preheater:
    """The orders of one agent, one after another; an order is known by its id."""

    def __init__(self, gathering: Gathering, tell: Telling) -> None:
        self._gathering, self._tell = gathering, tell
        self._orders: dict[str, _Running] = {}

    def take(self, identity: str, images: tuple[str, ...], wanted: str) -> None:
        """Begin an order, or say again how far it is."""
        running = self._orders.get(identity)
        if running is None:
            running = self._orders[identity] = _Running(identity)
            running.task = asyncio.create_task(self._run(running, images, wanted or own_platform()))
            self._forget()
        elif running.state != "fetching":
            running.again = asyncio.create_task(self._say(running))

    async def close(self) -> None:
        """Stop everything; what is on its way stays where it is, and goes on with the next pull."""
        tasks = [task for one in self._orders.values() for task in (one.task, one.again) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self) -> None:
        over = [name for name, one in self._orders.items() if one.state != "fetching"]
        for name in over[: max(0, len(self._orders) - MOST)]:
            del self._orders[name]

    async def _run(self, running: _Running, images: tuple[str, ...], wanted: str) -> None:
        teller = asyncio.create_task(self._say_often(running))
        begun = asyncio.get_running_loop().time()
        try:
            for text in images:
                try:
                    await self._image(running, parse_image(text), wanted)
                except (SwarmError, OSError, ValueError) as error:
                    running.error = running.error or f"{text}: {' '.join(str(error).split())}"
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
        running.state = "failed" if running.error else "done"
        fields = {
            "order": running.identity, "state": running.state, "bytes": running.done, "error": running.error,
            "seconds": round(asyncio.get_running_loop().time() - begun, 2), **running.sources,
        }  # fmt: skip
        log.info("preheated", extra={"fields": fields})
        await self._say(running)

    async def _image(self, running: _Running, image: Image, wanted: str) -> None:
        digest = await self._gathering.resolved(image)
        parts = await self._gathering.parts(image, digest, wanted, running.count)
        running.total += sum(part.size for part in parts.blobs)
        async with asyncio.TaskGroup() as group:
            for part in parts.blobs:
                group.create_task(self._blob(running, image, part))

    async def _blob(self, running: _Running, image: Image, part: Part) -> None:
        """Have one blob here. What fails is told; the others go on."""
        try:
            if not await self._gathering.blob(image, part, running.moved):
                running.done += part.size
        except (SwarmError, OSError) as error:
            running.error = running.error or f"{image}: {part.digest}: {' '.join(str(error).split())}"

    async def _say_often(self, running: _Running) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY)
            await self._say(running)

    async def _say(self, running: _Running) -> None:
        await self._tell(
            running.identity, running.state, running.done, running.total, dict(running.sources), running.error
        )


class _Running:
    """One order under way. *sources*: bytes by where they came from, without those that were here already."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.state = "fetching"
        self.done = self.total = 0
        self.sources: dict[str, int] = {}
        self.error = ""
        self.task: asyncio.Task[None] | None = None
        self.again: asyncio.Task[None] | None = None

    def count(self, origin: str, count: int) -> None:
        """*count* bytes came from *origin*."""
        if origin not in ("disk", "containerd"):
            self.sources[origin] = self.sources.get(origin, 0) + count

    def moved(self, origin: str, count: int) -> None:
        """The same, of a blob."""
        self.count(origin, count)
        self.done += count
