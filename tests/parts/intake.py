"""A Host of claims that notes what it is told, and an upstream that sends what a test lets it send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from swarm.blob.digest import parse
from swarm.blob.errors import SizeChanged, SourceBroken, SourceError
from swarm.blob.geometry import Window
from swarm.fetch.claims import Claims
from swarm.fetch.demand import Wanted
from swarm.fetch.partial import Partial
from swarm.fetch.tasks import Tasks
from swarm.protocol.board import Failure
from swarm.storage.store import Store
from swarm.upstream.download import Begun
from tests.parts import data


class SentBody:
    """The body of one request."""

    def __init__(self, upstream: SentUpstream, start: int, stop: int) -> None:
        self.total = len(upstream.content)
        self.offset = start if upstream.ranges else 0
        self.whole = not upstream.ranges
        self._upstream = upstream
        self._stop = stop

    etag = ""

    async def chunks(self, *, everything: bool = False) -> AsyncIterator[bytes]:
        """Chunks of `step` bytes, each as soon as the test lets it come."""
        at, upstream = self.offset, self._upstream
        stop = len(upstream.content) if everything else self._stop
        while at < stop:
            await upstream.flow()
            chunk = upstream.content[at : min(stop, at + upstream.step)]
            at += len(chunk)
            upstream.sent += len(chunk)
            yield chunk
            if upstream.breaks and at - self.offset >= upstream.breaks:
                raise SourceBroken("reset")


class SentUpstream:
    """A Source of *content*. *breaks*: each body ends after so many bytes."""

    upstream = "registry.test"

    def __init__(self, content: bytes, *, step: int = 64 * 1024, breaks: int = 0) -> None:
        self.content = content
        self.step = step
        self.breaks = breaks
        self.broken = False
        """Whether every request fails."""
        self.ranges = True
        """Whether ranges are not ignored."""
        self.asked: list[tuple[int, int | None]] = []
        self.sent = 0
        self.answers = asyncio.Event()
        """Set while requests are answered."""
        self._passes = asyncio.Semaphore(0)
        self.flows = asyncio.Event()
        """Set while bytes come."""
        self.answers.set()
        self.flows.set()

    def pass_on(self, chunks: int) -> None:
        """Let so many chunks come although nothing flows."""
        for _ in range(chunks):
            self._passes.release()

    async def flow(self) -> None:
        """Until the next chunk may come."""
        if self.flows.is_set():
            return
        waits = [asyncio.ensure_future(self.flows.wait()), asyncio.ensure_future(self._passes.acquire())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    @asynccontextmanager
    async def open(self, start: int, stop: int | None) -> AsyncIterator[SentBody]:
        """Ask for bytes [start, stop)."""
        self.asked.append((start, stop))
        await self.answers.wait()
        if self.broken:
            raise SourceBroken("connection refused")
        yield SentBody(self, start, min(stop or len(self.content), len(self.content)))


class NotingHost:
    """What claims ask for and tell, noted."""

    def __init__(self, upstream: SentUpstream) -> None:
        self.upstream = upstream
        self.place: Partial | None = None
        self.free = asyncio.Event()
        """Set while windows may be written into."""
        self.free.set()
        self.count = 0
        self.pieces: list[int] = []
        self.whole = True
        self.done: list[int] = []
        self.failed: list[tuple[int, Failure]] = []
        self.errors: list[BaseException] = []
        self.writes = 0
        """Windows that are written into."""
        self.read_before = False
        """Somebody else reads what comes before each window."""
        self.open: Callable[[int], Any] | None = None

    def source(self, window: int | None = None) -> SentUpstream:
        return self.upstream

    def wanted(self) -> Wanted:
        return Wanted(whole=self.whole)

    async def learn(self, size: int) -> None:
        assert self.open is not None
        self.place = await self.open(size)

    async def learned(self) -> None:
        return None

    @asynccontextmanager
    async def writing(self, window: Window) -> AsyncIterator[None]:
        await self.free.wait()
        self.writes += 1
        try:
            yield
        finally:
            self.writes -= 1

    def came(self, piece: int, sha1: bytes) -> None:
        assert self.place is not None
        self.place.ready(piece, sha1, "upstream")
        self.pieces.append(piece)

    def received(self, count: int) -> None:
        self.count += count

    @asynccontextmanager
    async def covering(self, window: int) -> AsyncIterator[None]:
        yield

    def covered(self, window: int, count: int) -> None:
        return None

    def brought(self, window: int) -> None:
        self.done.append(window)

    def may_skip(self, window: int) -> bool:
        return not self.read_before

    def unable(self, window: int, failure: Failure, error: SourceError | None) -> None:
        self.failed.append((window, failure))

    def resized(self, error: SizeChanged) -> None:
        self.errors.append(error)

    def broken(self, error: BaseException) -> None:
        self.errors.append(error)

    def trace(self, event: str, window: int, **fields: Any) -> None:
        return None


@asynccontextmanager
async def claiming(
    tmp_path: Path, size: int, *, sized: bool = True, **upstream: Any
) -> AsyncIterator[tuple[Claims, NotingHost, SentUpstream]]:
    """Claims on a blob of *size* bytes, with a real store below. Whatever was begun ends with it."""
    content = data.blob(size, 7)
    source = SentUpstream(content, **upstream)
    host, failures = NotingHost(source), list[BaseException]()
    tasks, pool = Tasks(failures.append), ThreadPoolExecutor(2)
    store = Store(tmp_path / "store", 1 << 30)
    await store.open()

    async def no_room() -> bool:
        return False

    async def place(total: int) -> Partial:
        digest = parse(data.digest_of(content))
        return await Partial.open(digest, total, store, no_room, tasks.spawn, by_window=False)

    host.open = place
    if sized:
        await host.learn(size)
    claims = Claims(host, pool, tasks.spawn, Begun())
    try:
        yield claims, host, source
    finally:
        await claims.close()
        await tasks.close(None, claims.close)
        if host.place is not None:
            await host.place.close(keep=False)
        await store.close()
        pool.shutdown()
    assert not failures
