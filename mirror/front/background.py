"""Bytes brought in ahead of readers: bounded in workers, rate and disk, given up first, invisible when it fails."""

from __future__ import annotations

import asyncio
import contextlib

from mirror.front.blobs import Blob, Node
from mirror.metrics import FrontMetrics
from swarm.blob.digest import Digest
from swarm.blob.errors import SwarmError
from swarm.fetch.proof import Proof
from swarm.upstream.source import Source

WORKERS = 8
"""Read-aheads under way at once on this node; more are left out, not queued: a late read-ahead is worth nothing."""

PREFETCHES = 2
"""Whole blobs on their way in the background at once; the others' turn comes with their next read."""

DEADLINE = 60.0
"""Seconds after which a read-ahead, or a step of a prefetch, is given up."""

STEP = 1024 * 1024
"""Bytes after which a prefetch looks at rate and room again."""


class Background:
    """The read-aheads and prefetches of one agent; at most one of each per blob.

    *rate*: bytes per second of all prefetches together; 0: no bound.
    """

    def __init__(self, swarm: Node, metrics: FrontMetrics, workers: int = WORKERS, rate: float = 0.0) -> None:
        self._swarm = swarm
        self._metrics = metrics
        self._workers = workers
        self._rate = rate
        self._free_at = 0.0
        self._tasks: dict[Digest, asyncio.Task[None]] = {}
        self._whole: dict[Digest, asyncio.Task[None]] = {}

    def fetch(self, digest: Digest, source: Source, origin: str, start: int, stop: int) -> bool:
        """Bring bytes [start, stop) of *digest* in, if a worker is free. Returns whether one was.

        *origin*: of what *source* sends; what others have of another is not brought in.
        """
        if digest in self._tasks or len(self._tasks) >= self._workers:
            self._metrics.read_ahead_dropped.inc()
            return False
        task = asyncio.create_task(self._fetch(digest, source, origin, start, stop))
        self._tasks[digest] = task
        task.add_done_callback(lambda _: self._tasks.pop(digest, None))
        return True

    def prefetch(self, digest: Digest, source: Source, origin: str) -> bool:
        """Bring all of *digest* in, if there is room for one more. Returns whether it is on its way."""
        if digest not in self._whole:
            if len(self._whole) >= PREFETCHES:
                return False
            task = asyncio.create_task(self._prefetch(digest, source, origin))
            self._whole[digest] = task
            task.add_done_callback(lambda _: self._whole.pop(digest, None))
        return True

    async def _fetch(self, digest: Digest, source: Source, origin: str, start: int, stop: int) -> None:
        # Nobody waits for it: the reader that comes for these bytes will meet the error itself.
        with contextlib.suppress(SwarmError, OSError, TimeoutError):
            opened = self._swarm.open(digest, source, whole=False, low=True, origin=origin, proof=Proof.ORIGIN)
            async with asyncio.timeout(DEADLINE), opened as blob:
                await self._bring(blob, start, min(stop, blob.size))

    async def _prefetch(self, digest: Digest, source: Source, origin: str) -> None:
        with contextlib.suppress(SwarmError, OSError, TimeoutError):
            async with self._swarm.open(digest, source, whole=False, low=True, origin=origin) as blob:
                for start in range(0, blob.size, STEP):
                    stop = min(start + STEP, blob.size)
                    if self._swarm.room < 2 * STEP:
                        return  # what others read is not given up for what perhaps nobody reads
                    await self._pace(stop - start)
                    async with asyncio.timeout(DEADLINE):
                        await self._bring(blob, start, stop)

    async def _pace(self, count: int) -> None:
        """Wait for the turn of *count* bytes."""
        if self._rate:
            now = asyncio.get_running_loop().time()
            turn = max(self._free_at, now)
            self._free_at = turn + count / self._rate
            await asyncio.sleep(turn - now)

    async def _bring(self, blob: Blob, start: int, stop: int) -> None:
        async for span in blob.read(start, stop):
            if span.origin != "disk":
                self._metrics.prefetched.inc(span.count)

    async def close(self) -> None:
        """Stop everything."""
        tasks = [*self._tasks.values(), *self._whole.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
