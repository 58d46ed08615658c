"""What is offered to peers while the board of a blob begins again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from swarm.blob.digest import parse
from swarm.blob.geometry import MIB
from swarm.fetch.demand import Wanted
from swarm.fetch.partial import Partial
from swarm.fetch.tasks import Tasks
from swarm.fetch.transfers import Transfers
from swarm.metrics import SwarmMetrics
from swarm.peer.peers import PeerAddress
from swarm.peer.session import Session
from swarm.storage.store import Store
from tests.parts import data
from tests.parts.lane import no_lane


class Alone:
    """A fetch that nobody shares."""

    def wanted(self) -> Wanted:
        return Wanted(whole=False)

    def peers(self) -> tuple[PeerAddress, ...]:
        return ()

    def me(self) -> str:
        return "me"

    def came_from_peer(self, piece: int, sha1: bytes) -> None:
        return None

    def moved(self) -> None:
        return None

    def banned(self, peer: PeerAddress) -> None:
        return None

    def wrong(self, peer: PeerAddress) -> None:
        return None


@asynccontextmanager
async def offering(tmp_path: Path) -> AsyncIterator[Transfers]:
    """A blob of three windows that are all here, and offered."""
    content = data.blob(3 * MIB, 11)
    digest = parse(data.digest_of(content))
    failures: list[BaseException] = []
    tasks, pool, store = Tasks(failures.append), ThreadPoolExecutor(1), Store(tmp_path / "store", 1 << 30)
    session = Session(("127.0.0.1", 0), on_bad_peer=lambda *_: None)
    await store.open()
    await session.start()

    async def no_room() -> bool:
        return False

    here = await Partial.open(digest, len(content), store, no_room, tasks.spawn, by_window=False)
    hashes: dict[int, bytes] = {}
    transfers = Transfers(
        digest,
        here,
        Alone(),
        hashes,
        session,
        no_lane(),
        pool,
        SwarmMetrics(CollectorRegistry()),
        tasks.spawn,
        time.monotonic,
    )
    for window in here.layout.windows:
        spans = [here.layout.piece_span(piece) for piece in window.span]
        hashes[window.index] = b"".join(hashlib.sha1(content[at : at + count]).digest() for at, count in spans)
        await transfers.seed(window, hashes[window.index])
    try:
        yield transfers
    finally:
        await transfers.close()
        await tasks.close(None, lambda: asyncio.sleep(0))
        await session.close()
        await here.close(keep=False)
        await store.close()
        pool.shutdown()
    assert not failures


@pytest.mark.parametrize("verified", [False, True])
async def test_a_board_that_begins_again_takes_the_offers_of_what_is_not_verified(
    tmp_path: Path, verified: bool
) -> None:
    """The windows of a verified blob are published again, and nobody offers them but the torrents that are there."""
    async with offering(tmp_path) as transfers:
        offered = transfers.windows
        assert offered
        if verified:
            await transfers.verified()
        transfers.restart()
        assert transfers.windows == (offered if verified else frozenset())
