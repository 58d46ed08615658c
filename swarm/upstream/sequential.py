"""A body that upstream sends whole although a range was asked for, read window after window."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from swarm.blob.geometry import Window


class Sequential:
    """The blob's bytes from the first on, in turns. *body*: begins at offset 0, and goes on to the end of the blob."""

    def __init__(self, body: Any) -> None:
        self.total: int = body.total
        self._chunks: AsyncIterator[bytes] = body.chunks(everything=True)
        self._left = b""
        self._at = 0
        self.broken = False
        """It ended before the blob did: nothing more will come of it."""

    def part(self, window: Window) -> Part:
        """The Body (swarm/upstream/source.py) of *window*. The one before was read as far as anybody wants."""
        return Part(self, window.end)

    @property
    def offset(self) -> int:
        """Offset in the blob of the next byte."""
        return self._at

    async def next(self, end: int) -> bytes:
        """The next bytes before offset *end*; none: it is reached, or the body ended. Raises SourceBroken."""
        if self._at >= end:
            return b""
        self.broken = not self._left  # unless what follows says otherwise
        chunk = self._left or await anext(self._chunks, b"")
        self.broken = not chunk
        chunk, self._left = chunk[: end - self._at], chunk[end - self._at :]
        self._at += len(chunk)
        return chunk


class Part:
    """One window's share of a Sequential."""

    def __init__(self, through: Sequential, end: int) -> None:
        self._through = through
        self._end = end
        self.total = through.total
        self.offset = through.offset

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes up to the window's end."""
        while chunk := await self._through.next(self._end):
            yield chunk
