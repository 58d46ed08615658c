"""How answers of a board are applied: one at a time, whole, in order; and what is told to it, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from swarm.blob.geometry import MIB, geometry
from swarm.fetch.demand import Demand
from swarm.fetch.events import ClaimsChanged, Event, Restarted, Sized
from swarm.fetch.follower import Follower
from swarm.fetch.news import Asked
from swarm.fetch.standing import Standing
from swarm.fetch.tasks import Tasks
from swarm.protocol import wire
from swarm.protocol.board import Failure
from swarm.tracking import doubts
from swarm.tracking.boards import LocalBoard
from swarm.tracking.trackers import Trackers
from tests.parts.harbour import Nobody
from tests.parts.talk import Talker, digest_of, hashes_of, town, until

D = digest_of("blob")
SIZE = 3 * MIB


class Node:
    """A node that notes what it is told. *slow*: the event that takes until `go`."""

    def __init__(self, size: int, slow: type[Event] | None = None) -> None:
        self.size = size
        self.slow = slow
        self.go = asyncio.Event()
        self.events: list[Event] = []
        self.here: set[int] = set()
        self.applied_at: list[int] = []
        self.demand = Demand()
        self.hashes: dict[int, bytes] = {}

    def standing(self) -> Standing:
        have = sum(1 << window for window in self.here)
        return Standing(self.demand, size=self.size, have=have, wait=20.0)

    def sums(self, window: int) -> bytes | None:
        if window in self.here and window not in self.hashes:
            self.hashes[window] = hashes_of(self.size, window)
        return self.hashes.get(window) if window in self.here else None

    def origin(self) -> str:
        return ""

    async def offer(self, window: int) -> None:
        return None

    async def handle(self, event: Event) -> None:
        if self.slow is not None and isinstance(event, self.slow):
            await self.go.wait()
        self.events.append(event)

    async def applied(self) -> None:
        self.applied_at.append(len(self.events))

    def claims(self) -> list[frozenset[int]]:
        """Each set of claims that it was given, in order."""
        return [event.windows for event in self.events if isinstance(event, ClaimsChanged)]


class Deaf(LocalBoard):
    """A board that notes how long it may hold each poll, and how many were given up."""

    def __init__(self) -> None:
        super().__init__(D)
        self.waits: list[float] = []
        self.cut = 0
        self.go = asyncio.Event()

    async def poll(self, message: wire.BoardPoll) -> wire.BoardAnswer:
        self.waits.append(message.wait)
        try:
            if message.wait:
                await asyncio.Event().wait()
            elif len(self.waits) > 1:
                await self.go.wait()
        except asyncio.CancelledError:
            self.cut += 1
            raise
        return answer(len(self.waits), size=SIZE)


@asynccontextmanager
async def following(node: Node, *urls: str) -> AsyncIterator[Follower]:
    """A follower of the blob's board at the trackers *urls*; at none: on this node."""
    failures: list[BaseException] = []
    tasks, trackers = Tasks(failures.append), Trackers(urls, "node", Nobody())
    await trackers.start(6881)
    if urls:
        await trackers.ready.wait()
    follower = Follower(D, trackers, node, tasks.spawn)
    follower.sized(node.size)
    work: list[Coroutine[Any, Any, None]] = [follower.follow(), follower.apply()]
    running = [asyncio.ensure_future(each) for each in work]
    try:
        yield follower
    finally:
        for each in running:
            each.cancel()
        for each in running:
            with suppress(asyncio.CancelledError):
                await each
        await tasks.close(None, lambda: asyncio.sleep(0))
        await trackers.close()
    assert not failures


def answer(serial: int, **said: Any) -> wire.BoardAnswer:
    """An answer of the board that is followed on this node."""
    return wire.BoardAnswer(incarnation="one", version=serial, generation=0, serial=serial, **said)


async def test_an_answer_is_applied_whole_before_the_next_one() -> None:
    """Making room for a blob takes seconds; claims that a newer answer grants meanwhile must not be taken away."""
    node = Node(SIZE, slow=Sized)
    follower = Follower(D, Trackers((), "node", Nobody()), node, asyncio.ensure_future)
    applying = asyncio.ensure_future(follower.apply())
    board = follower._board
    older = asyncio.ensure_future(follower._hear(board, answer(1, size=SIZE, claims=(0,)), Asked(0)))
    newer = asyncio.ensure_future(follower._hear(board, answer(2, size=SIZE, claims=(0, 1, 2)), Asked(1)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert node.events == [], "the first is still being applied, and the second waits"
    node.go.set()
    await asyncio.gather(older, newer)
    assert node.claims() == [frozenset({0}), frozenset({0, 1, 2})], "the last word is the newest"
    assert len(node.applied_at) == 2
    applying.cancel()


async def test_hundreds_of_windows_are_published_without_recursion() -> None:
    """After a restart a blob of 31 GiB has as many to tell; each publication was three frames below the last one."""
    size = 31 * 1024 * MIB
    count = len(geometry(size).windows)
    node = Node(size)
    async with following(node) as follower:
        await until(lambda: bool(node.applied_at))
        node.here = set(range(count))
        for window in range(count):
            assert follower.publish(window)
        await follower.seal()
        assert not follower.publishing
        assert len(follower.hashes) == count


async def test_a_seal_leaves_after_every_publication_was_answered() -> None:
    """They travel on other connections: a seal that came first would come to an incomplete board, and be void."""
    async with town() as here:
        node = Node(SIZE)
        async with following(node, here.server.url) as follower:
            await until(lambda: bool(node.applied_at))
            node.here = {0, 1, 2}
            for window in range(3):
                follower.publish(window)
            await follower.seal()
            watcher = here.agent("watcher", 1)
            assert (await watcher.board(D)).sealed


async def test_news_between_a_release_and_the_next_poll_is_heard() -> None:
    """The answer to the release names the newest version: who took it for the news was deaf to the windows before."""
    async with town() as here:
        node, other = Node(SIZE), here.agent("other", 1)
        node.demand = Demand(want=1)
        async with following(node, here.server.url) as follower:
            await until(lambda: frozenset({0}) in node.claims())
            await _brings(other, windows=(1, 2))
            await follower.release((0,), Failure.BUSY)
            await until(lambda: {1, 2} <= follower.hashes.keys())


async def test_who_may_have_missed_an_answer_is_answered_at_once() -> None:
    """Who holds what is wished for is told once. A nudge that came with that answer lost it, and made a stall."""
    node = Node(SIZE)
    node.demand = Demand(prefer=(0,), only_preferred=True)
    board = Deaf()
    follower = Follower(D, Trackers((), "node", Nobody()), node, asyncio.ensure_future)
    follower.sized(SIZE)
    follower._board = board
    tasks = [asyncio.ensure_future(follower._use(None)), asyncio.ensure_future(follower.apply())]
    await until(lambda: len(board.waits) == 2 and board.waits[1] > 0)
    follower.poll()
    await until(lambda: len(board.waits) == 3)
    follower.poll()  # what is answered at once is not given up
    board.go.set()
    await until(lambda: len(board.waits) == 4)
    for task in tasks:
        task.cancel()
    assert [wait > 0 for wait in board.waits] == [False, True, False, True]
    assert board.cut == 1


async def test_a_rejection_that_the_board_ignores_is_no_dead_end() -> None:
    """One node's word may not be enough for a board: then that node goes on alone, with nothing of what it doubts."""
    async with town() as here:
        node = Node(SIZE)
        async with following(node, here.server.url) as follower:
            await until(lambda: bool(node.applied_at))
            here.server.cluster.reject = lambda agent, said: None  # type: ignore[method-assign]
            await follower.reject("sha256")
            async with asyncio.timeout(30):
                while not any(isinstance(event, Restarted) for event in node.events):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert not follower.shared
            left = here.server.cluster.swarms.get(D)
            await until(lambda: left is None or not left.board.participants)


async def _brings(agent: Talker, windows: Iterable[int]) -> None:
    await agent.hello()
    await agent.board(D, want=1, size=SIZE)
    for window in windows:
        await agent.publish(D, SIZE, window)


async def test_a_question_to_a_tracker_that_is_down_by_now_is_not_waited_for() -> None:
    """It was to be answered at once, and nothing ends it: each agent stood still until its connection timed out."""
    node, stuck, hung = Node(SIZE), asyncio.Event(), asyncio.Event()
    async with town() as here, following(node, here.server.url) as follower:
        await until(lambda: bool(node.applied_at))
        real = here.server._verbs["board"]

        async def never(*asked: Any) -> Any:
            hung.set()
            await stuck.wait()
            return await real(*asked)

        here.server._verbs["board"] = never
        follower._others._heard_at = float("-inf")
        follower.ask_of_others()
        await hung.wait()
        (link,) = follower._trackers.up()
        follower._trackers._down(link, "its cable was pulled")
        await until(lambda: not follower.shared)
        stuck.set()


async def test_what_works_is_not_left_for_a_tracker_that_has_failed_before_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is silent on boards cost each agent two seconds again and again."""
    monkeypatch.setattr(doubts, "FIRST", 0.01)
    node, well, asked_again = Node(SIZE), asyncio.Event(), asyncio.Event()
    node.demand = Demand(want=3)
    async with town() as here:
        real, calls = here.server._verbs["board"], 0

        async def half_dead(*asked: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("a proxy that fails")
            asked_again.set()
            await well.wait()
            return await real(*asked)

        here.server._verbs["board"] = half_dead
        async with following(node, here.server.url) as follower:
            await asked_again.wait()
            assert follower.tracker is None
            node.here.add(0)
            assert follower.publish(0), "its own board is told, and answers"
            await until(lambda: bool(node.claims()) and node.claims()[-1] == {1, 2})
            well.set()
            await until(lambda: follower.tracker == here.server.url)
