"""The running sha256: it waits for pieces, says in which epoch they were wrong, and begins again with the board."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from swarm.blob.digest import parse
from swarm.blob.geometry import MIB, Geometry, geometry
from swarm.fetch.pieces import Pieces
from swarm.fetch.verifier import Matched, Mismatch, verify
from tests.parts import data

SIZE = 5 * MIB + 7
CONTENT = data.blob(SIZE, 41)


class Bench:
    """A file, the ledger of its pieces, and how often the board began again."""

    def __init__(self, fd: int, pool: ThreadPoolExecutor) -> None:
        self.layout: Geometry = geometry(SIZE)
        self.pieces = Pieces(self.layout)
        self.epoch = 0
        self._fd, self._pool = fd, pool

    def come(self, content: bytes, pieces: range) -> None:
        """Pieces of *content* are in the file, and ready."""
        for piece in pieces:
            offset, length = self.layout.piece_span(piece)
            os.pwrite(self._fd, content[offset : offset + length], offset)
            self.pieces.put(piece, hashlib.sha1(content[offset : offset + length]).digest(), "peer")

    def restart(self) -> None:
        """The board began again."""
        self.pieces.forget()
        self.epoch += 1

    def verify(self) -> asyncio.Task[Matched | Mismatch]:
        """Begin to hash."""
        digest = parse(data.digest_of(CONTENT))
        return asyncio.ensure_future(verify(digest, self.layout, self.pieces, self._fd, self._pool, lambda: self.epoch))


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    fd = os.open(tmp_path / "blob", os.O_RDWR | os.O_CREAT)
    with ThreadPoolExecutor(1) as pool:
        yield Bench(fd, pool)
    os.close(fd)


async def test_pieces_in_any_order_match_once_the_last_one_is_there(tmp_path: Path) -> None:
    async with bench(tmp_path) as here:
        count = here.layout.pieces
        result = here.verify()
        here.come(CONTENT, range(count // 2, count))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not result.done()
        here.come(CONTENT, range(count // 2))
        assert await result == Matched()


async def test_a_wrong_piece_is_told_with_its_epoch(tmp_path: Path) -> None:
    async with bench(tmp_path) as here:
        here.epoch = 3
        here.come(bytes(MIB) + CONTENT[MIB:], range(here.layout.pieces))
        assert await here.verify() == Mismatch(3)


async def test_after_a_restart_it_is_hashed_from_the_start(tmp_path: Path) -> None:
    """What was hashed of the former generation may have been wrong, and is not counted."""
    async with bench(tmp_path) as here:
        count = here.layout.pieces
        result = here.verify()
        here.come(bytes(SIZE), range(count - 1))
        for _ in range(20):
            await asyncio.sleep(0)
        here.restart()
        here.come(CONTENT, range(count))
        assert await result == Matched()
