"""Which pieces of a blob are on this node, verified and readable, and who waits for which."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from swarm.blob.geometry import Geometry, Window
from swarm.blob.metainfo import HASH_LENGTH

ORIGINS = ("upstream", "peer", "disk")
"""Where a piece came from; "disk": a former process of this agent had it."""


class Pieces:
    """The pieces of one blob. A piece is *ready* when its bytes are in the file and its SHA-1 is known."""

    def __init__(self, layout: Geometry) -> None:
        self.layout = layout
        self._ready = bytearray(layout.pieces)
        self._origin = bytearray(layout.pieces)
        self._sums = bytearray(layout.pieces * HASH_LENGTH)
        self._missing = [window.pieces for window in layout.windows]
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._failure: BaseException | None = None
        self.have = 0
        """Bit w is set if all pieces of window w are ready."""
        self.count = 0
        """How many pieces are ready."""

    def __contains__(self, piece: int) -> bool:
        return bool(self._ready[piece])

    def sum(self, piece: int) -> bytes:
        """The SHA-1 of a ready piece."""
        return bytes(self._sums[piece * HASH_LENGTH : (piece + 1) * HASH_LENGTH])

    def sums(self, window: Window | None = None) -> bytes:
        """The SHA-1s of a ready window, or of the whole blob, in order."""
        if window is None:
            return bytes(self._sums)
        return bytes(self._sums[window.first_piece * HASH_LENGTH : (window.last_piece + 1) * HASH_LENGTH])

    def origin(self, piece: int) -> str:
        """Where a ready piece came from."""
        return ORIGINS[self._origin[piece]]

    def put(self, piece: int, sha1: bytes, origin: str) -> bool:
        """*piece* is ready. True if its window is complete by that."""
        if self._ready[piece]:
            return False
        self._ready[piece] = 1
        self._origin[piece] = ORIGINS.index(origin)
        self._sums[piece * HASH_LENGTH : (piece + 1) * HASH_LENGTH] = sha1
        self.count += 1
        for future in self._waiting.pop(piece, ()):
            if not future.done():
                future.set_result(None)
        window = self.layout.window_at(piece * self.layout.piece_length).index
        self._missing[window] -= 1
        if not self._missing[window]:
            self.have |= 1 << window
            return True
        return False

    def forget(self) -> Pieces:
        """Nothing is ready any more; returns what was. Whoever waits goes on waiting."""
        old = Pieces(self.layout)
        old._ready, self._ready = self._ready, bytearray(self.layout.pieces)
        old._origin, self._origin = self._origin, bytearray(self.layout.pieces)
        old._sums, self._sums = self._sums, bytearray(len(self._sums))
        old.have, self.have = self.have, 0
        old.count, self.count = self.count, 0
        self._missing = [window.pieces for window in self.layout.windows]
        return old

    def missing(self, window: Window) -> Iterable[int]:
        """The pieces of *window* that are not ready, in order."""
        return (p for p in window.span if not self._ready[p])

    def holds(self, window: Window) -> bool:
        """Whether all pieces of *window* are ready."""
        return bool(self.have >> window.index & 1)

    def run(self, piece: int, limit: int) -> int:
        """How many pieces from *piece* on, at most *limit*, are ready and of one origin."""
        end, origin = piece, self._origin[piece]
        stop = min(piece + limit, self.layout.pieces)
        while end < stop and self._ready[end] and self._origin[end] == origin:
            end += 1
        return end - piece

    async def wait(self, piece: int) -> None:
        """Until *piece* is ready. Raises what `fail` was given."""
        while not self._ready[piece]:
            if self._failure is not None:
                raise self._failure
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(piece, [])
            waiting.append(future)
            try:
                await future
            finally:
                if future in waiting:
                    waiting.remove(future)

    def fail(self, error: BaseException) -> None:
        """No further piece will come: everybody who waits gets *error*."""
        self._failure = error
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
                    future.exception()
        self._waiting.clear()
