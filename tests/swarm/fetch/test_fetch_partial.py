"""What is here of a blob: pieces become ready by one door, and what a node says it holds only grows."""

from __future__ import annotations

import ast
import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from swarm.blob.digest import parse
from swarm.blob.errors import BlobCorrupt, StoreFull
from swarm.blob.geometry import MIB
from swarm.fetch.partial import Partial
from swarm.fetch.tasks import Tasks
from swarm.storage.store import Store
from tests.parts import data

PROJECT = Path(__file__).parents[3]
SIZE = 3 * MIB


def sha1(text: str) -> bytes:
    """A piece hash."""
    return hashlib.sha1(text.encode()).digest()


@asynccontextmanager
async def partial(tmp_path: Path, budget: int = 64 * MIB, *, by_window: bool = False) -> AsyncIterator[Partial]:
    """A blob of SIZE bytes of which nothing is here."""
    failures: list[BaseException] = []
    tasks, store = Tasks(failures.append), Store(tmp_path / "store", budget, reserve_free=0)
    await store.open()

    async def no_room() -> bool:
        return False

    digest = parse(data.digest_of(b"some blob"))
    here = await Partial.open(digest, SIZE, store, no_room, tasks.spawn, by_window=by_window)
    try:
        yield here
    finally:
        await tasks.close(None, lambda: asyncio.sleep(0))
        await here.close(keep=False)
        await store.close()
    assert not failures


def test_a_piece_becomes_ready_through_its_owner_alone() -> None:
    """Nobody else writes into the ledger of pieces: by the source of the whole package."""
    writers = set()
    for path in sorted((PROJECT / "swarm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("put", "forget")
                and "pieces" in ast.unparse(node.value)
            ):
                writers.add(path.name)
    assert writers == {"partial.py"}


async def test_what_is_held_only_grows_within_a_generation(tmp_path: Path) -> None:
    async with partial(tmp_path) as here:
        said = [here.have]
        for piece in (0, 1, 2, 3, 9, 10, 11, 8, 3, 8):
            here.ready(piece, sha1(str(piece)), "peer")
            said.append(here.have)
        assert all(before & ~after == 0 for before, after in pairwise(said))
        assert here.have == 0b101


async def test_a_restart_takes_everything_back_until_the_board_says_the_same(tmp_path: Path) -> None:
    async with partial(tmp_path) as here:
        for piece in range(8):
            here.ready(piece, sha1(str(piece)), "upstream")
        here.doubt()
        assert here.have == 0, "nobody may be told of it"
        here.restart()
        assert (here.have, here.epoch, here.pieces.count) == (0, 1, 0)
        right = b"".join(sha1(str(piece)) for piece in range(4))
        assert [window.index for window in here.confirm(0, right)] == [0]
        assert here.confirm(1, bytes(80)) == []
        assert here.have == 0b1


async def test_a_reader_whose_bytes_were_wrong_is_cut_off(tmp_path: Path) -> None:
    async with partial(tmp_path) as here:
        here.ready(0, sha1("wrong"), "peer")
        here.restart()
        here.ready(0, sha1("right"), "upstream")
        with pytest.raises(BlobCorrupt):
            await here.same_bytes(0, 0, 1)


async def test_after_the_sha256_matched_no_restart_takes_anything_back(tmp_path: Path) -> None:
    async with partial(tmp_path) as here:
        for piece in range(12):
            here.ready(piece, sha1(str(piece)), "peer")
        here.verified()
        here.restart()
        assert here.complete


async def test_for_ranges_room_is_made_window_by_window(tmp_path: Path) -> None:
    async with partial(tmp_path, budget=5 * MIB // 2, by_window=True) as here:
        first, second, third = here.layout.windows
        await here.reserve(first)
        await here.reserve(second)
        assert [window.index for window in here.unreserved(range(12))] == [third.index]
        with pytest.raises(StoreFull):
            await here.reserve(third)
