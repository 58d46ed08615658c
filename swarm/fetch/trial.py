"""A few bytes asked of upstream by this node itself, to learn whether it could do better than somebody else does.

Whoever says that it brings a window in, and that upstream is slow, is believed as long as upstream is no quicker here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from swarm.blob.errors import SourceError
from swarm.upstream.source import Body, Source

LENGTH = 64 * 1024
"""Bytes asked for: more than a shaped line lets pass at once."""

LONG_ENOUGH = 0.25
"""Seconds after the first bytes within which it is seen how fast others follow: then no more are taken."""


class Trial:
    """See the module. *clock*: seconds."""

    def __init__(self, source: Source, offset: int, clock: Callable[[], float]) -> None:
        self._source = source
        self._offset = offset
        self._clock = clock
        self._first: float | None = None
        self._last = 0.0
        self._count = 0
        """Bytes after the first chunk."""
        self._whole = False
        """All that was asked for came."""

    @property
    def answered(self) -> float | None:
        """When its first byte came; None: none has."""
        return self._first

    @property
    def rate(self) -> float:
        """Bytes per second; infinity where all came at once, or nothing yet."""
        if self._first is None or self._last <= self._first:
            return float("inf")
        return self._count / (self._last - self._first)

    async def run(self) -> None:
        """Ask once. An upstream that fails has not shown to be quicker."""
        with contextlib.suppress(SourceError, TimeoutError):
            async with self._source.open(self._offset, self._offset + LENGTH) as body:
                await self._read(body)
        if self._first is not None and not self._whole:
            self._last = max(self._last, self._clock())

    async def _read(self, body: Body) -> None:
        """What comes of *body*. Raises TimeoutError after LONG_ENOUGH, SourceError."""
        came = 0
        async with contextlib.aclosing(body.chunks()) as chunks:  # type: ignore[type-var]  # all are generators
            async with asyncio.timeout(None) as limit:
                async for chunk in chunks:
                    self._last = self._clock()
                    if self._first is None:
                        self._first = self._last
                        limit.reschedule(asyncio.get_running_loop().time() + LONG_ENOUGH)
                    else:
                        self._count += len(chunk)
                    came += len(chunk)
                    if came >= LENGTH:
                        break
            self._whole = True
