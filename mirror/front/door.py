"""The door of the streaming front: upstream decides who may read, by accepting the reader's own URL once.

What it accepted is kept on disk, as salted fingerprints that only their owner's URL matches: a node that restarts
while upstream is down goes on serving its readers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mirror.front.access import AuthCache, Standing, fingerprint
from swarm.blob.errors import SourceBroken, SourceBusy, SourceRefused
from swarm.storage.disk import write_whole
from swarm.upstream.source import Source

TTL = 300.0
"""Seconds for which an accepted URL opens the door: about the life of a registry token or a short signature."""

KEEP = 24 * 3600.0
"""Seconds for which a former yes still counts while upstream is down: as long as a tag's last known digest."""

TRIES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds to wait between tries while upstream is broken: range readers forgive 30 s, but no 5xx."""

OLD_WAIT = 2.0
"""Seconds that a reader who was accepted before waits for upstream to say so again; then it is served on the former
yes, and the answer counts for the next."""

MOST = 65536
"""URLs remembered."""

MOST_KEPT = 8192
"""Of these, on disk, the last ones accepted: about 1 MiB."""

SAVE_AFTER = 1.0
"""Seconds after which a yes is written down, with all that came meanwhile."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What upstream said of a file: its size in bytes, and its ETag ("" if it has none)."""

    size: int
    etag: str


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """One yes on disk. *told*: seconds since the epoch."""

    key: bytes
    size: int
    etag: str
    told: float


class _File(msgspec.Struct, frozen=True):
    salt: bytes
    kept: list[_Kept]


class Door:
    """Remembers which URL with which credentials upstream accepted, and what it said of the file.

    *path*: where it is kept over a restart; None: nowhere.
    """

    def __init__(self, ttl: float = TTL, keep: float = KEEP, path: Path | None = None) -> None:
        self._path = path
        self._keep = keep
        self._salt = secrets.token_bytes(16)
        self._told: dict[bytes, float] = {}
        self._saving: asyncio.TimerHandle | None = None
        self._saves: set[asyncio.Task[None]] = set()
        self._accepted = AuthCache(ttl, keep=keep, bound=MOST)
        self._said: OrderedDict[bytes, Opened] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Opened]] = {}

    async def load(self) -> None:
        """Read what a former process was told; a torn or strange file counts as empty."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            file = msgspec.msgpack.decode(await asyncio.to_thread(self._path.read_bytes), type=_File)
            if not 16 <= len(file.salt) <= 64:
                return
            self._salt, wall, now = file.salt, time.time(), time.monotonic()
            for kept in file.kept:
                if 0 <= (age := wall - kept.told) < self._keep:
                    self._accepted.note(kept.key, now - age)
                    self._said[kept.key] = Opened(kept.size, kept.etag)
                    self._told[kept.key] = kept.told

    async def save(self) -> None:
        """Write all down, atomically. A full disk loses it and harms nothing else."""
        self._saving = None
        if self._path is None:
            return
        last = list(self._said.items())[-MOST_KEPT:]
        kept = [_Kept(key, said.size, said.etag, self._told[key]) for key, said in last]
        data = msgspec.msgpack.encode(_File(self._salt, kept))
        with contextlib.suppress(OSError):
            await asyncio.to_thread(write_whole, self._path, data)

    def _save_soon(self) -> None:
        def begin() -> None:
            task = asyncio.create_task(self.save())
            self._saves.add(task)
            task.add_done_callback(self._saves.discard)

        if self._path is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_AFTER, begin)

    def _forget(self, key: bytes) -> None:
        self._said.pop(key, None)
        self._told.pop(key, None)
        self._save_soon()

    async def enter(self, url: str, authorization: str, source: Source) -> Opened:
        """What upstream says of *url* to a reader with *authorization*; asked at most once per TTL.

        Raises SourceRefused if it says no, SourceBusy or SourceBroken if it says nothing and never said yes.
        """
        key = fingerprint(url, authorization, salt=self._salt)
        standing = self._accepted.standing(key, time.monotonic())
        said = self._said.get(key)
        if standing is Standing.FRESH and said is not None:
            return said
        if standing is Standing.NONE or said is None:
            return await self._ask(key, source, patient=True)
        try:
            async with asyncio.timeout(OLD_WAIT):
                return await self._ask(key, source, patient=False)
        except (SourceBusy, SourceBroken, TimeoutError):
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
        if task.cancelled():
            return
        error = task.exception()  # everybody who waited has seen it
        if error is None:
            self._accepted.note(key, time.monotonic())
            self._said[key], self._told[key] = task.result(), time.time()
            self._said.move_to_end(key)
            while len(self._said) > MOST:
                self._forget(next(iter(self._said)))
            self._save_soon()
        elif isinstance(error, SourceRefused):
            self._accepted.forget(key)
            self._forget(key)

    async def close(self) -> None:
        """Ask no more; write down what is new."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._saves, return_exceptions=True)
        if self._saving is not None:
            self._saving.cancel()
            await self.save()


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
        return Opened(body.total, body.etag)
