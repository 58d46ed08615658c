"""The door of the streaming front: upstream decides who may read, by accepting the reader's own URL once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from mirror.access import Accepted, Standing, fingerprint
from swarm.errors import SourceBroken, SourceBusy, SourceRefused
from swarm.source import Source

TTL = 300.0
"""Seconds for which an accepted URL opens the door: about the life of a registry token or a short signature."""

KEEP = 24 * 3600.0
"""Seconds for which a former yes still counts while upstream is down: as long as a tag's last known digest."""

TRIES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds to wait between tries while upstream is broken: range readers forgive 30 s, but no 5xx."""

MOST = 65536
"""URLs remembered."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What upstream said of a file: its size in bytes, and its ETag ("" if it has none)."""

    size: int
    etag: str


class Door:
    """Remembers which URL with which credentials upstream accepted, and what it said of the file."""

    def __init__(self, ttl: float = TTL, keep: float = KEEP) -> None:
        self._accepted = Accepted(ttl, keep=keep, bound=MOST)
        self._said: OrderedDict[bytes, Opened] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Opened]] = {}

    async def enter(self, url: str, authorization: str, source: Source) -> Opened:
        """What upstream says of *url* to a reader with *authorization*; asked at most once per TTL.

        Raises SourceRefused if it says no, SourceBusy or SourceBroken if it says nothing and never said yes.
        """
        key = fingerprint(url, authorization)
        standing = self._accepted.standing(key, time.monotonic())
        said = self._said.get(key)
        if standing is Standing.FRESH and said is not None:
            return said
        try:
            said = await self._ask(key, source, patient=said is None or standing is Standing.NONE)
        except SourceRefused:
            self._accepted.forget(key)
            self._said.pop(key, None)
            raise
        except (SourceBusy, SourceBroken):
            if standing is Standing.OLD and said is not None:
                return said
            raise
        self._accepted.note(key, time.monotonic())
        self._said[key] = said
        self._said.move_to_end(key)
        while len(self._said) > MOST:
            self._said.popitem(last=False)
        return said

    async def _ask(self, key: bytes, source: Source, *, patient: bool) -> Opened:
        """One question for all readers that come with the same URL at once."""
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(_probe(source, TRIES if patient else ()))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        # A reader that leaves must not take the answer from the others; the question itself has deadlines.
        return await asyncio.shield(task)

    def _asked(self, key: bytes, task: asyncio.Task[Opened]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # everybody who waited has seen it

    async def close(self) -> None:
        """Ask no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _probe(source: Source, waits: tuple[float, ...]) -> Opened:
    for wait in waits:
        try:
            return await _opened(source)
        except SourceBroken:
            await asyncio.sleep(wait)
    return await _opened(source)


async def _opened(source: Source) -> Opened:
    # One byte: signatures do not always cover HEAD, and the answer to a range tells the whole size as well.
    async with source.open(0, 1) as body:
        return Opened(body.total, getattr(body, "etag", ""))
