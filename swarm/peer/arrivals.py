"""Pieces that peers sent: read back from the file and checked before they count.

libtorrent's word that a piece came does not mean that the file has its bytes (docs/engine.md). Each is read back and
its SHA-1 compared with what the board says; the few that are behind are asked from libtorrent itself, and written here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from swarm.blob.digest import Digest
from swarm.blob.errors import SessionError
from swarm.blob.geometry import Geometry
from swarm.peer.session import Torrent
from swarm.storage.held import BlobHandle
from swarm.storage.staged import Staged

log = logging.getLogger("shoal.swarm")

BATCH = 16
"""Pieces that are checked in one thread job."""

READ_BACKS = 10
"""Tries to get a piece from libtorrent that is not in the file although its alert came."""

_AT_ONCE = 2
"""Pieces asked back at once: each is in memory three times meanwhile."""


class Host(Protocol):
    """What arrivals ask of who waits for them, and tell it."""

    @property
    def turn(self) -> int:
        """Counts the board's restarts: what was looked at before the last one is void."""

    def expected(self, piece: int) -> bytes | None:
        """The SHA-1 of *piece*, if the board has told it."""

    def has(self, piece: int) -> bool:
        """Whether *piece* is here already."""

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""

    def late(self) -> None:
        """A piece is not in the file although its alert came."""


class Arrivals:
    """See the module. *file* is the one that *staged* writes to; *spawn* starts a task that ends with the fetch."""

    def __init__(
        self,
        digest: Digest,
        host: Host,
        layout: Geometry,
        staged: Staged,
        file: BlobHandle,
        pool: ThreadPoolExecutor,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._digest = digest
        self._host = host
        self._layout = layout
        self._staged = staged
        self._file = file
        self._pool = pool
        self._spawn = spawn
        self._waiting: list[tuple[Torrent, int]] = []
        self._checking = False
        self._late = 0
        """Pieces that are here and not readable yet."""
        self._reading_back = asyncio.Semaphore(_AT_ONCE)

    @property
    def busy(self) -> bool:
        """Whether something has come that does not count yet: it is our own disk that is waited for."""
        return self._checking or self._late > 0

    def put(self, torrent: Torrent, piece: int) -> None:
        """*torrent* says that *piece* has come."""
        if self._host.has(piece):
            return
        self._waiting.append((torrent, piece))
        if not self._checking:
            self._checking = True
            self._spawn(self._check())

    async def _check(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                turn = self._host.turn
                expected = [self._host.expected(piece) for _, piece in batch]
                good = await self._are_right([piece for _, piece in batch], expected)
                for (torrent, piece), sha1, right in zip(batch, expected, good, strict=True):
                    if turn != self._host.turn or sha1 is None or self._host.has(piece):
                        continue
                    if right:
                        self._host.came(piece, sha1)
                    else:
                        self._late += 1
                        self._spawn(self._read_back(torrent, piece, sha1)).add_done_callback(self._ended)
        finally:
            self._checking = False

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._late -= 1

    async def _read_back(self, torrent: Torrent, piece: int, sha1: bytes) -> None:
        """Not in the file yet: get the bytes from libtorrent, and put them there ourselves.

        A slow disk keeps libtorrent busy for long; then it may have written them itself by the next look.
        """
        self._host.late()
        turn = self._host.turn
        for attempt in range(READ_BACKS):
            try:
                async with self._reading_back:
                    data = await torrent.read_piece(piece)
            except SessionError as error:
                fields = {"digest": self._digest, "piece": piece, "error": str(error)}
                log.warning("read-back-failed", extra={"fields": fields})
                (right,) = await self._are_right([piece], [sha1])
            else:
                right = hashlib.sha1(data, usedforsecurity=False).digest() == sha1
                if right:
                    await self._staged.write(data, self._layout.piece_span(piece)[0])
            if turn != self._host.turn or torrent.removed:
                return
            if right:
                self._host.came(piece, sha1)
                return
            await asyncio.sleep(0.1 * 2 ** min(attempt, 5))

    async def _are_right(self, pieces: Sequence[int], expected: Sequence[bytes | None]) -> list[bool]:
        spans = [self._layout.piece_span(piece) for piece in pieces]
        return await asyncio.get_running_loop().run_in_executor(self._pool, _check, self._file.fd, spans, expected)


def _check(fd: int, spans: Sequence[tuple[int, int]], expected: Sequence[bytes | None]) -> list[bool]:
    """Whether the SHA-1 of each span of *fd* is what is expected. Blocks."""
    return [
        sha1 is not None and hashlib.sha1(os.pread(fd, length, offset), usedforsecurity=False).digest() == sha1
        for (offset, length), sha1 in zip(spans, expected, strict=True)
    ]
