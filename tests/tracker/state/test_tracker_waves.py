"""News for many: a wave goes forward in steps, hears what is said meanwhile, and forgets nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from swarm.blob.geometry import MIB, geometry
from swarm.protocol import wire
from swarm.protocol.board import Board
from tests.parts.talk import DEADLINE, Talker, digest_of, town, until, whole_of
from tracker.state import swarms
from tracker.state.swarms import STEP, Swarm

D = digest_of("waves")
SIZE = 12 * MIB
WINDOWS = len(geometry(SIZE).windows)


def waiting(count: int) -> tuple[Swarm, Sequence[asyncio.Future[None]]]:
    """A swarm for whose news *count* agents wait."""
    loop = asyncio.get_running_loop()
    swarm = Swarm(Board(D), "incarnation", 0.0)
    swarm.waiters = {str(number): loop.create_future() for number in range(count)}
    return swarm, [*swarm.waiters.values()]


def answered(polls: Sequence[asyncio.Future[None]]) -> int:
    """How many."""
    return sum(poll.done() for poll in polls)


async def test_a_few_are_woken_at_once() -> None:
    swarm, polls = waiting(STEP)
    swarm.spread(asyncio.get_running_loop().time())
    assert answered(polls) == STEP
    assert not swarm.rolling


async def test_many_are_woken_step_by_step_who_waits_for_longest_first() -> None:
    loop = asyncio.get_running_loop()
    swarm, polls = waiting(3 * STEP + 1)
    swarm.spread(loop.time())
    assert [poll.done() for poll in polls] == [True] * STEP + [False] * (2 * STEP + 1)
    assert swarm.rolling
    between = loop.create_future()
    loop.call_soon(lambda: between.set_result(answered(polls)))
    assert await between == STEP, "something that was said is heard before the next step"
    async with asyncio.timeout(DEADLINE):
        await polls[-1]
    assert answered(polls) == len(polls)
    assert not swarm.rolling


async def test_news_during_a_wave_goes_out_with_the_next_one() -> None:
    loop = asyncio.get_running_loop()
    swarm, polls = waiting(2 * STEP)
    swarm.spread(loop.time())
    again = swarm.waiters["0"] = loop.create_future()  # told by the first step, and asks again
    swarm.spread(loop.time())
    async with asyncio.timeout(DEADLINE):
        await polls[-1]
        assert not again.done()
        await again


async def test_a_swarm_that_is_dropped_in_a_wave_answers_everybody_at_once() -> None:
    swarm, polls = waiting(3 * STEP)
    swarm.spread(asyncio.get_running_loop().time())
    swarm.close()
    assert answered(polls) == len(polls)
    assert not swarm.rolling


async def follow(agent: Talker) -> dict[int, bytes]:
    """Long-poll until the board is sealed; the hashes it was told."""
    told: dict[int, bytes] = {}
    while True:
        answer = await agent.board(D, wait=wire.MAX_WAIT)
        told |= answer.published
        if answer.sealed:
            return told


async def test_everybody_hears_everything_however_slowly_waves_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarms, "STEP", 1)
    async with town() as here:
        first, *others = (here.agent(f"n{number}", 1000 + number) for number in range(30))
        followers = [asyncio.create_task(follow(agent)) for agent in others]
        async with asyncio.timeout(DEADLINE):
            await first.bring_in(D, SIZE)
            await first.seal(D)
            told = await asyncio.gather(*followers)
    assert all(b"".join(hashes[w] for w in range(WINDOWS)) == whole_of(SIZE) for hashes in told)


async def test_who_asks_for_news_during_the_last_wave_is_told_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarms, "STEP", 1)
    async with town() as here:
        first, late = here.agent("first", 1001), here.agent("late", 1002)
        await late.board(D)
        await first.bring_in(D, SIZE)
        swarm = here.server.cluster.swarms.get(D)
        assert swarm is not None
        loop = asyncio.get_running_loop()
        swarm.waiters |= {str(number): loop.create_future() for number in range(2_000)}
        swarm.spread(loop.time())
        poll = asyncio.create_task(late.board(D, wait=wire.MAX_WAIT))
        await until(lambda: len(swarm.waiters) == 2_001)
        assert swarm.rolling
        assert len((await poll).published) == WINDOWS
