"""Bytes brought in ahead of readers: bounded in workers, given up first, invisible when it fails."""

from __future__ import annotations

import asyncio
import contextlib

from mirror.blobs import Swarm
from mirror.metrics import FrontMetrics
from swarm.digest import Digest
from swarm.errors import SwarmError
from swarm.source import Source

WORKERS = 8
"""Read-aheads under way at once on this node; more are left out, not queued: a late read-ahead is worth nothing."""

DEADLINE = 60.0
"""Seconds after which one is given up."""


class Background:
    """The read-aheads of one agent; at most one per blob."""

    def __init__(self, swarm: Swarm, metrics: FrontMetrics, workers: int = WORKERS) -> None:
        self._swarm = swarm
        self._metrics = metrics
        self._workers = workers
        self._tasks: dict[Digest, asyncio.Task[None]] = {}

    def fetch(self, digest: Digest, source: Source, start: int, stop: int) -> bool:
        """Bring bytes [start, stop) of *digest* in, if a worker is free. Returns whether one was."""
        if digest in self._tasks or len(self._tasks) >= self._workers:
            self._metrics.read_ahead_dropped.inc()
            return False
        task = asyncio.create_task(self._fetch(digest, source, start, stop))
        self._tasks[digest] = task
        task.add_done_callback(lambda _: self._tasks.pop(digest, None))
        return True

    async def _fetch(self, digest: Digest, source: Source, start: int, stop: int) -> None:
        # Nobody waits for it: the reader that comes for these bytes will meet the error itself.
        with contextlib.suppress(SwarmError, OSError, TimeoutError):
            async with asyncio.timeout(DEADLINE), self._swarm.open(digest, source, whole=False) as blob:
                async for span in blob.read(start, min(stop, blob.size)):
                    self._metrics.prefetched.inc(span.count)

    async def close(self) -> None:
        """Stop everything."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
