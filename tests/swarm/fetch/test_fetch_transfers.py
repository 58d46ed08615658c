"""What is fetched from peers, by which torrent, and that nobody else writes where one may still write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from swarm.blob.geometry import MIB
from swarm.fetch.demand import Wanted
from swarm.fetch.modes import Mode
from swarm.fetch.partial import Partial
from swarm.fetch.tasks import Tasks
from swarm.fetch.transfers import MOST_REBUILT, Transfers
from swarm.metrics import SwarmMetrics
from swarm.peer.peers import PeerAddress
from swarm.storage.store import Store
from tests.parts.harbour import NotedSession
from tests.parts.lane import no_lane
from tests.parts.talk import digest_of, hashes_of, until

SIZE = 4 * MIB
PEER: PeerAddress = ("10.0.0.2", 6881)


class Host:
    """A fetch that wants all of the blob."""

    def __init__(self) -> None:
        self.want = Wanted(whole=True)
        self.banned_peers: list[PeerAddress] = []

    def wanted(self) -> Wanted:
        return self.want

    def peers(self) -> tuple[PeerAddress, ...]:
        return (PEER,)

    def me(self) -> str:
        return "10.0.0.1:6881"

    def came_from_peer(self, piece: int, sha1: bytes) -> None:
        raise AssertionError("no peer sends anything here")

    def moved(self) -> None:
        return None

    def banned(self, peer: PeerAddress) -> None:
        self.banned_peers.append(peer)

    def wrong(self, peer: PeerAddress) -> None:
        raise AssertionError("there is no lane here")


class Scene:
    """Transfers of a blob of SIZE bytes of which nothing is here."""

    def __init__(self, all_of_it: Transfers, session: NotedSession, host: Host, place: Partial) -> None:
        self.transfers = all_of_it
        self.session = session
        self.host = host
        self.place = place
        self.hashes: dict[int, bytes] = {}

    def publish(self, *windows: int) -> None:
        """The board tells the hashes of *windows*."""
        self.hashes.update({window: hashes_of(SIZE, window) for window in windows})
        self.transfers.want()

    def pieces(self, window: int) -> set[int]:
        return set(self.place.layout.windows[window].span)


@asynccontextmanager
async def transferring(tmp_path: Path) -> AsyncIterator[Scene]:
    failures: list[BaseException] = []
    tasks, pool, store = Tasks(failures.append), ThreadPoolExecutor(1), Store(tmp_path / "store", 1 << 30)
    await store.open()

    async def no_room() -> bool:
        return False

    place = await Partial.open(digest_of("blob"), SIZE, store, no_room, tasks.spawn, by_window=False)
    session, host, hashes = NotedSession(), Host(), dict[int, bytes]()
    transfers = Transfers(
        digest_of("blob"), place, host, hashes, session, no_lane(), pool, SwarmMetrics(CollectorRegistry()),
        tasks.spawn, time.monotonic,
    )  # fmt: skip
    scene = Scene(transfers, session, host, place)
    scene.hashes = hashes
    try:
        yield scene
    finally:
        session.flushed.set()
        await transfers.close()
        await tasks.close(None, lambda: asyncio.sleep(0))
        await place.close(keep=False)
        await store.close()
        pool.shutdown()
    assert not failures
    assert not session.torrents, "all torrents have left"


async def test_published_windows_are_fetched_and_others_are_not(tmp_path: Path) -> None:
    async with transferring(tmp_path) as scene:
        scene.publish(1, 3)
        await until(lambda: scene.transfers.windows == {1, 3})
        assert scene.pieces(1) | scene.pieces(3) <= scene.session.wants()
        assert not (scene.pieces(2) - scene.pieces(1)) & scene.session.torrents[0].had
        scene.transfers.want()
        assert scene.session.added == 2, "nothing is added twice"


async def test_a_window_has_one_writer(tmp_path: Path) -> None:
    """libtorrent writes blocks before it has checked them: upstream's bytes come only once its torrent has left."""
    async with transferring(tmp_path) as scene:
        scene.publish(1)
        await until(lambda: scene.transfers.windows == {1})
        scene.session.flushed.clear()
        window, begun = scene.place.layout.windows[1], asyncio.Event()
        done = asyncio.Event()

        async def write() -> None:
            async with scene.transfers.writing(window):
                begun.set()
                await done.wait()

        writing = asyncio.ensure_future(write())
        await until(lambda: len(scene.session.leaving) == 1)
        assert not begun.is_set(), "blocks are still to be written"
        scene.session.flushed.set()
        await begun.wait()
        scene.transfers.want()
        assert not scene.transfers.windows, "nor is it fetched meanwhile"
        done.set()
        await writing
        scene.transfers.want()
        await until(lambda: scene.transfers.windows == {1})


async def test_the_torrent_of_the_whole_blob_leaves_too_and_comes_back_without_the_window(tmp_path: Path) -> None:
    async with transferring(tmp_path) as scene:
        scene.hashes.update({window: hashes_of(SIZE, window) for window in range(4)})
        scene.transfers.set_mode(Mode.WHOLE, None, None)
        await until(lambda: scene.session.wants() >= scene.pieces(2))
        async with scene.transfers.writing(scene.place.layout.windows[2]):
            assert not scene.session.wants() & scene.pieces(2)
            assert scene.session.wants() >= scene.pieces(3)


async def test_torrents_of_windows_that_were_about_to_come_give_way_to_that_of_the_whole_blob(tmp_path: Path) -> None:
    """Two torrents in the session would write into the same file."""
    async with transferring(tmp_path) as scene:
        scene.publish(0, 1, 2, 3)
        scene.transfers.set_mode(Mode.WHOLE, None, None)
        await until(lambda: scene.session.added > 4 and not scene.session.leaving)
        assert not scene.transfers.windows
        assert [torrent.wants for torrent in scene.session.torrents] == [set(range(scene.place.layout.pieces))]


async def test_what_comes_from_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    async with transferring(tmp_path) as scene:
        scene.host.want = Wanted(whole=True, elsewhere=frozenset({0, 1}))
        scene.publish(0, 1, 2)
        await until(lambda: scene.transfers.windows == {2})


async def test_a_range_reader_gets_its_pieces_alone(tmp_path: Path) -> None:
    async with transferring(tmp_path) as scene:
        piece = min(scene.pieces(2))
        scene.host.want = Wanted(
            whole=False, pieces=frozenset({piece}), urgent=frozenset({piece}), windows=frozenset({2})
        )
        scene.publish(0, 1, 2, 3)
        await until(lambda: scene.transfers.windows == {2})
        assert scene.session.wants() & scene.pieces(2) == {piece}


async def test_a_restart_sends_every_torrent_away(tmp_path: Path) -> None:
    async with transferring(tmp_path) as scene:
        scene.publish(0, 1)
        await until(lambda: scene.transfers.windows == {0, 1})
        scene.hashes.clear()
        scene.transfers.restart()
        await until(lambda: not scene.session.torrents)
        assert (scene.transfers.mode, scene.transfers.waiting()) == (Mode.WINDOWS, ())


@pytest.mark.parametrize("verified", [False, True])
async def test_a_board_that_begins_again_takes_the_offers_of_what_is_not_verified(
    tmp_path: Path, verified: bool
) -> None:
    """The windows of a verified blob are published again, and nobody offers them but the torrents that are there."""
    async with transferring(tmp_path) as scene:
        for window in scene.place.layout.windows:
            await scene.transfers.seed(window, hashes_of(SIZE, window.index))
        offered = scene.transfers.windows
        assert offered
        if verified:
            await scene.transfers.verified()
        scene.transfers.restart()
        assert scene.transfers.windows == (offered if verified else frozenset())
        await until(lambda: len(scene.session.torrents) == len(scene.transfers.windows))


async def test_a_spoiled_torrent_begins_anew_a_few_times(tmp_path: Path) -> None:
    """libtorrent keeps the blocks of whom it banned, and would ban whoever sends the rest of such a piece."""
    async with transferring(tmp_path) as scene:
        scene.publish(1)
        for time_ in range(MOST_REBUILT + 2):
            await until(lambda: len(scene.session.torrents) == 1 and scene.transfers.windows == {1})
            scene.session.torrents[0].owner.spoiled((f"10.0.1.{time_}", 6881))
        await until(lambda: not scene.session.leaving)
        assert len(scene.host.banned_peers) == MOST_REBUILT + 2
        assert scene.session.added == 1 + MOST_REBUILT


async def test_a_claimed_window_of_a_sole_seed_is_wanted_of_it_alone(tmp_path: Path) -> None:
    async with transferring(tmp_path) as scene:
        scene.publish(0, 1, 2, 3)
        await until(lambda: len(scene.transfers.windows) == 4)
        scene.transfers.set_mode(Mode.SOLE_SEED, PEER, 0)
        bringing = asyncio.ensure_future(scene.transfers.bring(1))
        await until(lambda: 1 not in scene.transfers.windows and scene.session.wants() >= scene.pieces(1))
        for piece in scene.pieces(1):
            scene.place.ready(piece, bytes(20), "peer")
        await bringing
