"""This node's own line to upstream, for one blob: which requests wait for an answer, and when bytes came.

It watches the Source that claims and direct streams ask, and decides nothing. What all blobs share is Traffic.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from swarm.blob.errors import SourceError
from swarm.upstream.source import Body, Pours, Sink, Source

MOST_UPSTREAMS = 64
"""Upstreams of which it is known when bytes came last."""


class Traffic:
    """When bytes came to this node from each upstream, for whatever blob, and how many direct streams it has."""

    def __init__(self) -> None:
        self._moved: dict[str, float] = {}
        self.streams = 0
        """Direct streams of all blobs."""

    def received(self, upstream: str, now: float) -> None:
        """Bytes came from *upstream*, a host (and port)."""
        self._moved.pop(upstream, None)
        self._moved[upstream] = now
        if len(self._moved) > MOST_UPSTREAMS:
            del self._moved[next(iter(self._moved))]

    def moved(self, upstream: str) -> float:
        """When bytes came from it last."""
        return self._moved.get(upstream, float("-inf"))


class Line:
    """See the module. *clock*: seconds."""

    def __init__(self, traffic: Traffic, clock: Callable[[], float]) -> None:
        self._traffic = traffic
        self._upstream = ""
        self._clock = clock
        self._asked: dict[object, float] = {}
        self._failed = float("-inf")
        self._heard = float("-inf")
        self._moved = float("-inf")

    def watched(self, source: Source) -> Source:
        """*source*, with an eye on it."""
        self._upstream = source.upstream
        return _Watched(self, source)

    def received(self) -> None:
        """Bytes came."""
        self._moved = self._clock()
        self._traffic.received(self._upstream, self._moved)

    @property
    def moved(self) -> float:
        """When bytes came last."""
        return self._moved

    @property
    def refused(self) -> bool:
        """Whether upstream's last word was that a request failed, or the beginning of an answer without a byte yet."""
        return self._heard > self._moved

    def asking(self, since: float) -> bool:
        """Whether an answer is awaited, and none has failed after *since*."""
        return bool(self._asked) and not self.failed_since(since)

    def failed_since(self, since: float) -> bool:
        """Whether a request has failed after *since*."""
        return self._failed >= since

    def asked(self, request: object) -> None:
        """A request goes out."""
        self._asked[request] = self._clock()

    def answered(self, request: object) -> None:
        """Its answer has begun, or nobody waits for it."""
        if self._asked.pop(request, None) is not None:
            self._heard = self._clock()

    def forgotten(self, request: object) -> None:
        """Nobody waits for it any more: it was answered, was not sent, or is asked in another manner."""
        self._asked.pop(request, None)

    def failed(self, request: object) -> None:
        """It failed."""
        self._asked.pop(request, None)
        self._failed = self._heard = self._clock()


class _Watched:
    """A Source that tells a Line."""

    def __init__(self, line: Line, source: Source) -> None:
        self._line = line
        self._source = source

    @property
    def upstream(self) -> str:
        """Host (and port)."""
        return self._source.upstream

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[Body]:
        """See Source."""
        return self._open(start, stop)

    async def pour(self, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]) -> bool:
        """See Pours."""
        source = self._source
        if not isinstance(source, Pours):
            return False
        request = object()

        def answered() -> None:
            self._line.answered(request)
            begun()

        self._line.asked(request)
        try:
            return await source.pour(start, stop, total, sink, answered)
        except SourceError:
            self._line.failed(request)
            raise
        finally:
            self._line.forgotten(request)

    @contextlib.asynccontextmanager
    async def _open(self, start: int, stop: int | None) -> AsyncIterator[Body]:
        request = object()
        self._line.asked(request)
        try:
            async with self._source.open(start, stop) as body:
                self._line.answered(request)
                yield body
        except SourceError:
            self._line.failed(request)
            raise
        finally:
            self._line.answered(request)
