"""What of a blob comes over the lane: whom it is asked of, and what is known without a tracker."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from swarm.blob.digest import Digest
from swarm.blob.geometry import MIB
from swarm.fetch.demand import Wanted
from swarm.fetch.events import Holder, HoldersNamed
from swarm.fetch.lanes import GONE, LOST, UNNAMED_URGENT, LaneWindows
from swarm.fetch.partial import Partial
from swarm.fetch.tasks import Tasks
from swarm.peer.lane import message
from swarm.peer.lane.lane import Lane
from swarm.peer.lane.message import Request
from swarm.peer.lane.offers import Offer
from swarm.peer.peers import PeerAddress
from swarm.storage.store import Store
from tests.parts.lane import Odd, Sample, head_of, honest, lacking, sample
from tests.parts.procs import free_port
from tests.parts.talk import until

SIZE = 3 * MIB
ALONE = HoldersNamed({}, (), None, strangers=False)
"""What a board of this node's own says of others."""


class Fetching:
    """The windows of a blob that one other agent holds. *wants* is for the test to set."""

    def __init__(self, blob: Sample, here: Partial, lane: Lane, tasks: Tasks) -> None:
        self.wants = Wanted(whole=True)
        self.now = 0.0
        self.hashes: dict[int, bytes] = {}
        self.liars: list[PeerAddress] = []
        self.left: list[frozenset[int]] = []
        """What the lane still took upon itself each time that nobody gave a window."""
        self.here = here
        self.blob = blob
        self.lane = lane
        self.windows = LaneWindows(
            blob.digest, here, self, lane, self.hashes, me="me", spawn=tasks.spawn, clock=lambda: self.now
        )

    def publish(self, *windows: int) -> None:
        """The board tells the hashes of *windows*."""
        for window in windows:
            self.hashes[window] = b"".join(self.blob.sums[piece] for piece in self.blob.cut.windows[window].span)

    def wanted(self) -> Wanted:
        return self.wants

    def given(self, piece: int, sha1: bytes) -> None:
        done = self.here.ready(piece, sha1, "peer")
        if done is not None:
            self.windows.arrived(done)

    def unserved(self) -> None:
        self.left.append(self.windows.taken)

    def wrong(self, peer: PeerAddress) -> None:
        self.liars.append(peer)


@asynccontextmanager
async def fetching(
    tmp_path: Path, *, by_window: bool = False, on: bool = True
) -> AsyncIterator[tuple[Fetching, Holder, Odd]]:
    """A fetch with a real store and lane, and a holder of the whole blob that notes what it is asked."""
    blob = sample(tmp_path, SIZE)
    failures: list[BaseException] = []
    tasks, store, lane = Tasks(failures.append), Store(tmp_path / "store", 64 * MIB, reserve_free=0), Lane(nothing)
    await store.open()

    async def no_room() -> bool:
        return False

    here = await Partial.open(blob.digest, SIZE, store, no_room, tasks.spawn, by_window=by_window)
    if on:
        lane.start("127.0.0.1", 0)
    other = Odd(honest(blob))
    fetch = Fetching(blob, here, lane, tasks)
    ip, port = other.address
    try:
        yield fetch, Holder((ip, 1), port), other
    finally:
        fetch.windows.close()
        await fetch.windows.drained()
        other.close()
        await lane.close()
        await tasks.close(None, _nothing)
        await here.close(keep=False)
        await store.close()
    assert not failures


async def _nothing() -> None:
    return None


def _busy(sock: socket.socket, _request: Request, _count: int) -> bool:
    sock.sendall(message.answer(503, 0, why="busy"))
    return True


async def nothing(_digest: Digest) -> Offer | None:
    """This node holds no complete blob."""
    return None


async def test_a_named_holder_is_asked_at_once_and_for_whole_windows(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, holder, other):
        fetch.publish(0, 2)
        fetch.windows.named(HoldersNamed({0: (holder,), 2: (holder,)}, (), None, strangers=False))
        fetch.windows.want(None)
        await until(lambda: fetch.here.have == 0b101)
        assert sorted((r.start, r.stop) for r in other.requests) == [(0, MIB), (2 * MIB, 3 * MIB)]
        assert fetch.liars == []


async def test_a_reader_of_ranges_gets_its_pieces_and_no_more(tmp_path: Path) -> None:
    async with fetching(tmp_path, by_window=True) as (fetch, holder, other):
        fetch.publish(0, 1, 2)
        fetch.wants = Wanted(False, frozenset({5}), frozenset({5}), frozenset({1}))
        fetch.windows.named(HoldersNamed({1: (holder,)}, (), None, strangers=False))
        fetch.windows.want(None)
        await until(lambda: 5 in fetch.here.pieces)
        assert [(r.start, r.stop) for r in other.requests] == [(5 * MIB // 4, 6 * MIB // 4)]
        assert fetch.here.pieces.count == 1


async def test_what_others_hold_is_still_had_from_them_when_the_tracker_is_lost(tmp_path: Path) -> None:
    """A node that takes its tracker for dead follows a board of its own. Without this it went upstream for all."""
    async with fetching(tmp_path) as (fetch, holder, other):
        fetch.windows.named(HoldersNamed({0: (holder,)}, (holder,), None, strangers=False))
        fetch.publish(0, 1)
        fetch.windows.named(ALONE)
        assert fetch.windows.coming == {0, 1}, "not from upstream"
        fetch.wants = replace(fetch.wants, windows=frozenset({0, 1}))
        fetch.windows.want(None)
        fetch.now = UNNAMED_URGENT
        await until(lambda: fetch.here.have == 0b011 and not fetch.windows.coming)
        assert len(other.requests) == 2


async def test_a_window_whose_holder_cannot_be_dialled_is_lost_though_others_come(tmp_path: Path) -> None:
    """Until somebody else is named for it, or it is here."""
    async with fetching(tmp_path) as (fetch, holder, _):
        gone = Holder(("127.0.0.1", 1), free_port())
        fetch.publish(0, 1)
        fetch.windows.named(HoldersNamed({0: (gone,), 1: (holder,)}, (), None, strangers=False))
        fetch.windows.want(None)
        await until(lambda: fetch.here.have == 0b10 and bool(fetch.left))
        assert not fetch.windows.lost, "it may be late"
        fetch.now += LOST
        assert not fetch.windows.lost, "its process has ended: the tracker will name another"
        fetch.now += GONE
        assert [*fetch.windows.lost] == [0]
        fetch.publish(2)
        fetch.windows.named(HoldersNamed({0: (gone,), 2: (gone,)}, (), None, strangers=False))
        assert [*fetch.windows.lost] == [0, 2], "what it alone holds is not tried window by window"
        fetch.windows.named(HoldersNamed({0: (holder,)}, (), None, strangers=False))
        assert [*fetch.windows.lost] == []
        fetch.windows.want(None)
        await until(lambda: fetch.here.have == 0b11)


async def test_a_read_waits_a_moment_for_the_tracker_to_say_who_has_it(tmp_path: Path) -> None:
    """Of sixteen agents that read ranges, fifteen have nothing of what is asked of them by chance."""
    async with fetching(tmp_path) as (fetch, holder, other):
        fetch.wants = Wanted(False, frozenset({0}), frozenset({0}), frozenset({0}))
        fetch.publish(0)
        fetch.windows.named(HoldersNamed({}, (holder,), None, strangers=False))
        fetch.windows.want(None)
        assert not fetch.windows.windows
        fetch.windows.named(HoldersNamed({0: (holder,)}, (holder,), None, strangers=False))
        fetch.windows.want(None)
        await until(lambda: 0 in fetch.here.pieces)
        assert len(other.requests) == 1


async def test_what_nobody_holds_or_upstream_brings_is_not_expected_of_others(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, holder, _):
        fetch.publish(0, 1, 2)
        assert fetch.windows.coming == set(), "nobody is known"
        fetch.windows.named(HoldersNamed({}, (holder,), None, strangers=False))
        fetch.wants = Wanted(whole=True, elsewhere=frozenset({1}))
        assert fetch.windows.coming == {0, 2}


async def test_a_window_that_nobody_gave_is_expected_of_nobody(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, holder, other):
        fetch.publish(0)
        other.close()
        fetch.windows.named(HoldersNamed({0: (holder,)}, (), None, strangers=False))
        fetch.windows.want(None)
        assert fetch.windows.coming == {0}
        await until(lambda: not fetch.windows.windows)
        assert fetch.windows.coming == set()
        assert fetch.windows.taken == set(), "a torrent may bring it"
        assert fetch.left[0] == set(), "and is told at once"
        assert not fetch.windows.alone, "who gives nothing by HTTP may give it by BitTorrent"


async def test_who_lacks_a_window_is_no_reason_to_offer_it_by_torrents(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, holder, other):
        other.behaves = lacking(0b1111)
        fetch.publish(0, 1)
        fetch.windows.named(HoldersNamed({1: (holder,)}, (), None, strangers=False))
        fetch.windows.want(None)
        await until(lambda: bool(fetch.left) and not fetch.windows.windows)
        assert fetch.windows.alone
        fetch.windows.named(HoldersNamed({}, (holder,), None, strangers=False))
        other.behaves = honest(fetch.blob)
        fetch.wants = Wanted(False, frozenset({0}), frozenset({0}), frozenset({0}))
        fetch.windows.want(None)
        fetch.now = UNNAMED_URGENT
        await until(lambda: 0 in fetch.here.pieces)
        assert [r.start for r in other.requests] == [MIB, 0], "it was not asked again for what it lacks"


async def test_who_lacked_a_window_is_asked_once_it_is_named_for_it(tmp_path: Path) -> None:
    """It was left out for as long as another holder only said that it is busy, though it had brought the window in."""
    async with fetching(tmp_path) as (fetch, holder, other):
        other.behaves = lacking(0)
        busy = Odd(_busy)
        named = Holder((busy.address[0], 2), busy.address[1])
        fetch.publish(0)
        fetch.windows.named(HoldersNamed({0: (named,)}, (holder,), None, strangers=False))
        fetch.windows.want(None)
        (errand,) = fetch.windows._errands
        await until(lambda: holder.address in errand.useless and len(busy.requests) > 1)
        other.behaves = honest(fetch.blob)
        fetch.windows.named(HoldersNamed({0: (named, holder)}, (holder,), None, strangers=False))
        await until(lambda: fetch.here.have == 0b1)
        busy.close()


async def test_what_holders_alone_hold_that_are_given_up_is_lost_before_it_is_asked_of_them(tmp_path: Path) -> None:
    """Each window waited until it had been tried: with two racks cut from each other no byte came for 7 s."""
    async with fetching(tmp_path) as (fetch, holder, _):
        assert fetch.lane._receiver is not None
        fetch.lane._receiver._holders.failed(holder.address, time.monotonic(), unreached=True)
        fetch.publish(0, 1)
        fetch.windows.named(HoldersNamed({0: (holder,), 1: (holder, Holder(("127.0.0.2", 1), 1))}, (), None, False))
        assert [*fetch.windows.lost] == [0]


async def test_what_a_holder_did_not_give_is_asked_again_as_soon_as_it_is_well(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, _, _):
        port = free_port()
        gone = Holder(("127.0.0.1", 1), port)
        fetch.publish(0)
        fetch.windows.named(HoldersNamed({0: (gone,)}, (), None, strangers=False))
        fetch.windows.want(None)
        await until(lambda: bool(fetch.left))
        fetch.now += LOST + GONE
        assert [*fetch.windows.lost] == [0]
        again = Odd(honest(fetch.blob), port)
        await until(lambda: fetch.here.have == 0b1)
        assert [*fetch.windows.lost] == []
        again.close()


async def test_once_another_seeks_the_sole_seed_only_what_is_on_its_way_comes_without_a_claim(tmp_path: Path) -> None:
    """It went on to ask for all that was left, and the holder sent 1.4 copies."""
    async with fetching(tmp_path) as (fetch, holder, other):
        asked, go_on = threading.Event(), threading.Event()

        def slow(sock: socket.socket, request: Request, count: int) -> bool:
            sock.sendall(head_of(fetch.blob, request) + fetch.blob.data[request.start or 0 :][:1000])
            asked.set()
            go_on.wait(30)
            sock.sendall(fetch.blob.data[(request.start or 0) + 1000 : request.stop])
            return count >= 0

        other.behaves = slow
        fetch.publish(0)
        fetch.windows.named(HoldersNamed({0: (holder,)}, (holder,), None, strangers=False))
        fetch.windows.want(None)
        await asyncio.to_thread(asked.wait, 30)
        await until(lambda: fetch.windows.received > 0)
        fetch.windows.named(HoldersNamed({}, (), holder, strangers=False))
        fetch.publish(1, 2)
        fetch.windows.want(None)
        assert fetch.windows.coming == {0}
        go_on.set()
        await until(lambda: fetch.here.have == 0b1 and not fetch.windows.windows)
        assert await fetch.windows.fetch(fetch.blob.cut.windows[2], holder), "by a claim"
        assert fetch.here.have == 0b101
        assert [(r.start or 0) // MIB for r in other.requests] == [0, 2]


async def test_a_node_without_a_lane_asks_nobody_and_leaves_all_to_torrents(tmp_path: Path) -> None:
    async with fetching(tmp_path, on=False) as (fetch, holder, other):
        fetch.publish(0)
        fetch.windows.named(HoldersNamed({0: (holder,)}, (holder,), None, strangers=False))
        fetch.windows.want(None)
        assert not fetch.windows.coming and not fetch.windows.taken
        assert not fetch.windows.alone
        assert other.requests == []
