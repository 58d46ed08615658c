"""Pieces from other agents: whoever is slow, silent, short or wrong is left, and what comes is right."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from swarm.base.link import Link, dial
from swarm.blob.errors import Cancelled, Unserved
from swarm.peer.lane import message, scout
from swarm.peer.lane import receiver as receivers
from swarm.peer.lane.errand import Errand
from swarm.peer.lane.holders import FAILED_FOR, GIVEN_UP_AFTER, MOST_OF_ONE, WANTED_FOR, Address, Holders
from swarm.peer.lane.receiver import Receiver
from tests.parts.lane import Odd, Sample, asked, head_of, honest, lacking, sample

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sample(tmp_path_factory.mktemp("lane"), 3 * MIB + 12345)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver(dial)
    yield made
    await made.close()


@pytest.fixture
def odd() -> Iterator[list[Odd]]:
    every: list[Odd] = []
    yield every
    for holder in every:
        holder.close()


class Told:
    """What an errand said."""

    def __init__(self, blob: Sample, fd: int, holders: list[Address], first: int = 0, last: int | None = None) -> None:
        self.pieces: list[int] = []
        self.wrong: list[Address] = []
        self.lacking: list[tuple[Address, int]] = []
        self.errand = Errand(
            blob.digest, blob.cut, fd, first, blob.cut.pieces - 1 if last is None else last,
            owner=self, holders=holders, expected=blob.sums,
        )  # fmt: skip

    def came(self, _errand: Errand, piece: int, _sha1: bytes) -> None:
        self.pieces.append(piece)

    def blamed(self, holder: Address) -> None:
        self.wrong.append(holder)

    def refused(self, holder: Address, pieces: int) -> None:
        self.lacking.append((holder, pieces))


async def bring(blob: Sample, receiver: Receiver, holders: list[Odd], deadline: float = 30.0) -> Told:
    """All of *blob* from *holders*: every piece once, in order, and the file is right."""
    with blob.empty() as fd:
        told = Told(blob, fd, [holder.address for holder in holders])
        receiver.submit(told.errand)
        async with asyncio.timeout(deadline):
            await told.errand.ended
        assert told.pieces == list(range(blob.cut.pieces))
        assert os.pread(fd, blob.cut.size, 0) == blob.data
        return told


async def test_what_is_asked_comes_in_one_request(blob: Sample, receiver: Receiver, odd: list[Odd]) -> None:
    odd.append(Odd(honest(blob)))
    told = await bring(blob, receiver, odd)
    assert [(r.start, r.stop) for r in odd[0].requests] == [(0, blob.cut.size)]
    assert told.errand.moved == blob.cut.size


async def test_a_holder_that_stops_in_mid_window_is_left_and_its_bytes_stay(
    blob: Sample, receiver: Receiver, odd: list[Odd]
) -> None:
    stopped = threading.Event()

    def stops(sock: socket.socket, request: message.Request, _count: int) -> bool:
        sock.sendall(head_of(blob, request) + asked(blob, request)[: MIB + 1000])
        return stopped.wait(60) and False

    odd += [Odd(stops), Odd(honest(blob))]
    told = await bring(blob, receiver, odd)
    stopped.set()
    assert odd[1].requests[0].start == MIB + 1000  # in mid-piece
    assert told.errand.moved == blob.cut.size
    assert not told.wrong


async def test_a_holder_that_sends_slowly_is_left_where_another_is_free(
    blob: Sample, receiver: Receiver, odd: list[Odd]
) -> None:
    ended = threading.Event()

    def trickles(sock: socket.socket, request: message.Request, _count: int) -> bool:
        sock.sendall(head_of(blob, request))
        body = asked(blob, request)
        for at in range(0, len(body), 100):
            sock.sendall(body[at : at + 100])
            if ended.wait(0.2):
                return False
        return True

    odd += [Odd(trickles), Odd(honest(blob))]
    await bring(blob, receiver, odd)
    ended.set()
    assert odd[1].requests


@pytest.mark.parametrize("many", [1, 3], ids=["the only one", "one of three"])
async def test_wrong_bytes_in_mid_piece_are_blamed_and_never_count(
    blob: Sample, receiver: Receiver, odd: list[Odd], many: int
) -> None:
    def lies(sock: socket.socket, request: message.Request, _count: int) -> bool:
        body = bytearray(asked(blob, request))
        body[300_000] ^= 1  # in the second piece
        sock.sendall(head_of(blob, request) + body)
        return True

    odd += [Odd(lies), *(Odd(honest(blob)) for _ in range(many - 1))]
    if many > 1:
        told = await bring(blob, receiver, odd)
        assert odd[1].requests[0].start == 256 * 1024  # what was right of it stays
    else:
        with blob.empty() as fd:
            told = Told(blob, fd, [odd[0].address])
            receiver.submit(told.errand)
            with pytest.raises(Unserved):
                await told.errand.ended
        assert told.pieces == [0]
    assert told.wrong == [odd[0].address]


async def test_who_sent_the_end_of_a_piece_is_not_blamed_for_its_beginning(
    blob: Sample, receiver: Receiver, odd: list[Odd]
) -> None:
    def half(sock: socket.socket, request: message.Request, _count: int) -> bool:
        sock.sendall(head_of(blob, request) + bytes(100_000))
        return False

    odd += [Odd(half), Odd(honest(blob))]
    told = await bring(blob, receiver, odd)
    assert not told.wrong
    assert [r.start for r in odd[1].requests] == [100_000, 0]


@pytest.mark.parametrize("at", [0, 1, 17, 100, 200, 262_143, 262_144, 262_145, 1_000_000])
async def test_a_connection_may_close_at_every_offset(
    blob: Sample, receiver: Receiver, odd: list[Odd], at: int
) -> None:
    def closes(sock: socket.socket, request: message.Request, count: int) -> bool:
        answer = head_of(blob, request) + asked(blob, request)
        sock.sendall(answer[:at] if count == 0 else answer)
        return count > 0

    odd += [Odd(closes), Odd(closes)]
    await bring(blob, receiver, odd)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(message.answer(503, 2, why="lacking", total=1) + b"\x00\x00", id="lacking"),
        pytest.param(message.answer(404, 0, why="unknown"), id="unknown"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 206 x\r\nContent-Length: 5\r\n\r\nhello", id="no range"),
        pytest.param(message.answer(206, 10, start=7, total=100), id="another range"),
        pytest.param(b"HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", id="chunked"),
        pytest.param(b"x" * 20_000, id="endless head"),
    ],
)
async def test_who_claims_windows_that_it_lacks_is_left_at_once(
    blob: Sample, receiver: Receiver, odd: list[Odd], answer: bytes
) -> None:
    def lacks(sock: socket.socket, _request: message.Request, _count: int) -> bool:
        sock.sendall(answer)
        return True

    odd += [Odd(lacks), Odd(honest(blob))]
    told = await bring(blob, receiver, odd)
    assert len(odd[0].requests) == 1
    assert not told.wrong


async def test_what_a_holder_says_that_it_has_is_passed_on(blob: Sample, receiver: Receiver, odd: list[Odd]) -> None:
    odd += [Odd(lacking(0b101)), Odd(honest(blob))]
    told = await bring(blob, receiver, odd)
    assert told.lacking == [(odd[0].address, 0b101)]
    assert receiver.refusals == {"lacking": 1}


async def test_who_says_nothing_is_left_once_somebody_else_has_come_to_have_it(
    blob: Sample, receiver: Receiver, odd: list[Odd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was waited for as the only holder, though others had brought the window in since: six seconds for each."""
    monkeypatch.setattr(receivers, "PATIENCE", 3600.0)
    monkeypatch.setattr(receivers, "SILENT", 0.5)
    asked_it, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def mute(_sock: socket.socket, _request: message.Request, _count: int) -> bool:
        loop.call_soon_threadsafe(asked_it.set)
        return ended.wait(60) and False

    odd += [Odd(mute), Odd(honest(blob))]
    with blob.empty() as fd:
        told = Told(blob, fd, [odd[0].address])
        receiver.submit(told.errand)
        await asked_it.wait()
        told.errand.holders = (odd[0].address, odd[1].address)
        async with asyncio.timeout(30):
            await told.errand.ended
    ended.set()
    assert odd[1].requests


async def test_the_only_holder_is_not_waited_for_once_it_has_been_silent(
    blob: Sample, odd: list[Odd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was silent where another could be asked. Where none could, each window waited for it for six seconds."""
    monkeypatch.setattr(receivers, "PATIENCE", 3600.0)
    monkeypatch.setattr(receivers, "SILENT", 0.5)
    receiver, ended = Receiver(dial), threading.Event()
    asked_it, loop = asyncio.Event(), asyncio.get_running_loop()

    def mute(_sock: socket.socket, _request: message.Request, _count: int) -> bool:
        loop.call_soon_threadsafe(asked_it.set)
        return ended.wait(60) and False

    odd += [Odd(mute), Odd(honest(blob))]
    with blob.empty() as fd:
        alone, either = (Told(blob, fd, [holder.address for holder in found]) for found in (odd[:1], odd))
        receiver.submit(either.errand)
        await asked_it.wait()
        receiver.submit(alone.errand)
        await either.errand.ended
        async with asyncio.timeout(30):
            with pytest.raises(Unserved):
                await alone.errand.ended
    ended.set()
    await receiver.close()


@pytest.mark.parametrize("connected", [True, False], ids=["it was silent", "it could not be connected to"])
async def test_who_was_given_up_gives_as_soon_as_it_is_well_again(
    blob: Sample, odd: list[Odd], monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    """For five seconds nothing was asked of it: what it alone held came from upstream once more."""
    monkeypatch.setattr(receivers, "PATIENCE", 0.5)
    monkeypatch.setattr(receivers, "SILENT", 0.5)
    monkeypatch.setattr(scout, "ANSWERS", 0.5)
    well, tried, known = threading.Event(), threading.Event(), asyncio.Event()
    ended = threading.Event()

    def mute_at_first(sock: socket.socket, request: message.Request, count: int) -> bool:
        if not well.is_set():
            tried.set()
            return ended.wait(60) and False
        return honest(blob)(sock, request, count)

    def refuses_at_first(address: Address) -> Link:
        if connected or well.is_set():
            return dial(address)
        tried.set()
        raise TimeoutError("timed out")

    odd.append(Odd(mute_at_first))
    receiver, holder = Receiver(refuses_at_first), odd[0].address
    receiver.well = lambda _holder: known.set()
    with blob.empty() as fd:
        while holder not in receiver.dead():
            told = Told(blob, fd, [holder])
            receiver.submit(told.errand)
            with pytest.raises(Unserved):
                await told.errand.ended
        tried.clear()
        await asyncio.to_thread(tried.wait, 30)  # once more, and no errand asks for it
        well.set()
        ended.set()
        async with asyncio.timeout(30):
            await known.wait()
        assert receiver.dead() == frozenset()
        told = Told(blob, fd, [holder])
        receiver.submit(told.errand)
        await told.errand.ended
    await receiver.close()


async def test_who_never_answers_is_soon_not_asked_at_all(blob: Sample) -> None:
    """A firewall that swallows what is sent to the lane: each dial takes seconds, and torrents wait for its end."""
    dialled: list[Address] = []

    def swallowed(address: Address) -> Link:
        dialled.append(address)
        raise TimeoutError("timed out")

    receiver, holders = Receiver(swallowed, threads=1, urgent=0), [("10.0.0.1", 1), ("10.0.0.2", 1)]
    with blob.empty() as fd:
        every = [Told(blob, fd, holders, piece, piece) for piece in range(5)]
        for told in every:
            receiver.submit(told.errand)
        for told in every:
            with pytest.raises(Unserved):
                await told.errand.ended
            assert told.errand.unanswered
    await receiver.close()
    assert sorted(dialled) == sorted(holders), "one dial each: its seconds are enough"


async def test_a_thread_that_meets_what_nobody_thought_of_ends_its_errand_and_goes_on(
    blob: Sample, odd: list[Odd]
) -> None:
    odd.append(Odd(honest(blob)))

    def breaks(address: Address) -> Link:
        if address[1] > 65535:
            raise OverflowError("port must be 0-65535")
        return dial(address)

    receiver = Receiver(breaks, threads=1, urgent=0)
    with blob.empty() as fd:
        told = Told(blob, fd, [("127.0.0.1", 70_000)])
        receiver.submit(told.errand)
        with pytest.raises(Unserved):
            await told.errand.ended
    await bring(blob, receiver, odd)
    await receiver.close()


async def test_who_is_busy_is_asked_again(blob: Sample, receiver: Receiver, odd: list[Odd]) -> None:
    honestly = honest(blob)

    def busy(sock: socket.socket, request: message.Request, count: int) -> bool:
        if count < 2:
            sock.sendall(message.answer(503, 0, why="busy"))
            return True
        return honestly(sock, request, count)

    odd.append(Odd(busy))
    await bring(blob, receiver, odd)
    assert len(odd[0].requests) == 3


async def test_nobody_there_is_told_and_not_waited_for(blob: Sample, receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()[:2]
    with blob.empty() as fd:
        told = Told(blob, fd, [address])
        receiver.submit(told.errand)
        with pytest.raises(Unserved):
            await told.errand.ended


async def test_what_is_not_wanted_any_more_ends_at_once(blob: Sample, receiver: Receiver, odd: list[Odd]) -> None:
    asking, ended = threading.Event(), threading.Event()

    def silent(sock: socket.socket, request: message.Request, _count: int) -> bool:
        sock.sendall(head_of(blob, request) + asked(blob, request)[:300_000])
        asking.set()
        return ended.wait(60) and False

    odd.append(Odd(silent))
    with blob.empty() as fd:
        told = Told(blob, fd, [odd[0].address])
        receiver.submit(told.errand)
        await asyncio.to_thread(asking.wait, 30)
        receiver.cancel(told.errand)
        with pytest.raises(Cancelled):
            await told.errand.ended
    ended.set()


async def test_a_read_that_somebody_waits_for_passes_windows_that_queue(blob: Sample, odd: list[Odd]) -> None:
    receiver = Receiver(dial, threads=1, urgent=1)
    let_go = threading.Event()

    def slow(sock: socket.socket, request: message.Request, _count: int) -> bool:
        if request.start == 0:  # the first window; the urgent request may come before it
            let_go.wait(60)
        sock.sendall(head_of(blob, request) + asked(blob, request))
        return True

    odd.append(Odd(slow))
    with blob.empty() as fd:
        bulk = [Told(blob, fd, [odd[0].address], p, p) for p in range(3)]
        urgent = Told(blob, fd, [odd[0].address], 5, 5)
        urgent.errand.rank = -1
        for told in (*bulk, urgent):
            receiver.submit(told.errand)
        await urgent.errand.ended
        assert urgent.pieces == [5]
        assert not any(told.errand.ended.done() for told in bulk)
        let_go.set()
        for told in bulk:
            await told.errand.ended
    await receiver.close()


def test_holders_are_asked_least_busy_first_and_none_too_often() -> None:
    holders, a, b = Holders(), ("10.0.0.1", 1), ("10.0.0.2", 1)
    asked_for: list[Address] = []
    while (address := holders.pick([a, b], 0.0)) is not None:
        holders.began(address)
        asked_for.append(address)
    assert asked_for == [a, b] * MOST_OF_ONE
    holders.ended(b)
    assert holders.pick([a, b], 0.0) == b
    holders.failed(b, 0.0)
    holders.ended(a)
    assert holders.pick([a, b], 1.0) == a
    assert holders.pick([b], 1.0) == b  # where nobody else is
    holders.said_busy(b, 2.0)
    assert holders.pick([b], 1.0) is None
    assert holders.free_at([b], 1.0) == 2.0
    assert holders.pick([b], 2.5) == b


def test_whoever_is_named_is_waited_for_before_others_are_asked_by_chance() -> None:
    holders, a, b, c = Holders(), ("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 1)
    for _ in range(MOST_OF_ONE):
        assert holders.pick([a, b, c], 0.0, named={a}) == a
        holders.began(a)
    assert holders.pick([a, b, c], 0.0, named={a}) is None, "it has it, and will have time"
    assert holders.pick([a, b, c], 0.0, named={a, b}) == b
    holders.ended(a)
    holders.failed(a, 0.0)
    assert holders.pick([a, b, c], 0.0, named={a}) == b, "who has failed is not waited for"


def test_a_holder_that_only_fails_is_given_up_for_a_while_and_not_for_ever() -> None:
    holders, a, b = Holders(), ("10.0.0.1", 1), ("10.0.0.2", 1)
    for _ in range(GIVEN_UP_AFTER):
        assert holders.pick([a], 0.0) == a
        holders.failed(a, 0.0)
    assert holders.pick([a], 0.0) is None
    assert holders.hopeless([a], 0.0)
    assert not holders.hopeless([a, b], 0.0)
    assert holders.pick([a], FAILED_FOR) == a
    holders.failed(a, FAILED_FOR)
    assert holders.hopeless([a], FAILED_FOR), "one failure more is enough"
    holders.gave(a)
    assert holders.pick([a], FAILED_FOR) == a
    holders.failed(a, 0.0, unreached=True)
    assert holders.hopeless([a], 0.0), "it cannot even be dialled"


def test_who_is_given_up_is_dead_until_it_gives_or_nobody_has_tried_it_for_a_while() -> None:
    holders, there, other, mute = Holders(), ("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 1)
    assert holders.failed(there, 10.0, unreached=True), "it is given up"
    assert [holders.failed(mute, 10.0) for _ in range(GIVEN_UP_AFTER)] == [False] * (GIVEN_UP_AFTER - 1) + [True]
    assert not holders.failed(other, 10.0)
    assert holders.doubted(other, 10.0 + FAILED_FOR - 0.1)
    assert not holders.doubted(other, 10.0 + FAILED_FOR)
    assert holders.dead(10.0 + FAILED_FOR - 0.1) == {there, mute}
    assert holders.dead(10.0 + FAILED_FOR) == frozenset()
    assert holders.dead(10.1, gone=False) == {there, mute}
    holders.failed(there, 10.0, unreached=True, gone=True)
    assert holders.dead(10.1, gone=False) == {mute}, "the tracker names another"
    holders.gave(there)
    assert holders.dead(10.1) == {mute}
    assert not holders.doubted(there, 10.1)


def test_who_is_tried_in_vain_stays_given_up_for_as_long_as_it_is_wanted() -> None:
    """All errands tried it again each five seconds, and each waited for it once more."""
    holders, there = Holders(), ("10.0.0.1", 1)
    holders.failed(there, 0.0, unreached=True)
    now = 0.0
    while now < 2 * WANTED_FOR:
        now += FAILED_FOR - 1
        assert holders.still_fails(there, now)
        assert holders.pick([there], now) is None, "and it is wanted"
        assert holders.dead(now) == {there}
    assert not holders.still_fails(there, now + WANTED_FOR), "nobody asks for it"
    holders.well(there)
    assert holders.pick([there], now) == there
    assert holders.dead(now) == frozenset()
