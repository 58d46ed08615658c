"""A long body, read part after part: one that upstream sends whole, or one that was asked for to the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any


class Sequential:
    """The blob's bytes from an offset on, in turns.

    *everything*: the body goes on past what was asked for, to the end of the blob, and is to be read so.
    """

    def __init__(self, body: Any, *, everything: bool = True) -> None:
        self.total: int = body.total
        self._chunks: AsyncIterator[bytes] = body.chunks(everything=True) if everything else body.chunks()
        self._left = b""
        self._at: int = body.offset
        self.broken = False
        """It ended before the blob did: nothing more will come of it."""

    def part(self, end: int) -> Part:
        """The Body (swarm/upstream/source.py) up to offset *end*. The one before was read as far as anybody wants."""
        return Part(self, end)

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
    """A share of a Sequential."""

    whole = False
    etag = ""

    def __init__(self, through: Sequential, end: int) -> None:
        self._through = through
        self._end = end
        self.total = through.total
        self.offset = through.offset

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes up to its end."""
        while chunk := await self._through.next(self._end):
            yield chunk
