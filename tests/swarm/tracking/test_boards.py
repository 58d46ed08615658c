"""What a fetch may expect of a board, be it at a tracker or in its own process: one list for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from swarm.blob.geometry import MIB
from swarm.protocol import wire
from swarm.tracking.boards import BoardLink, LocalBoard, RemoteBoard
from swarm.tracking.trackers import Link
from tests.parts.talk import digest_of, hashes_of, town

D = digest_of("blob")
SIZE = 3 * MIB
ME: dict[str, Any] = {"node": "n", "port": 6881, "session": "s", "digest": D}


@asynccontextmanager
async def local() -> AsyncIterator[BoardLink]:
    yield LocalBoard(D)


@asynccontextmanager
async def remote() -> AsyncIterator[BoardLink]:
    async with town() as here, aiohttp.ClientSession() as http:
        yield RemoteBoard(Link(here.server.url, http))


@pytest.fixture(params=[local, remote], ids=["local", "remote"])
async def board(request: pytest.FixtureRequest) -> AsyncIterator[BoardLink]:
    async with request.param() as made:
        yield made


def knowing(answer: wire.BoardAnswer, **said: Any) -> wire.BoardPoll:
    """The poll of somebody who has heard *answer*."""
    return wire.BoardPoll(
        **{
            **ME,
            "incarnation": answer.incarnation,
            "generation": answer.generation,
            "since": answer.version,
            "claims": answer.claims,
            **said,
        }
    )


def publication(answer: wire.BoardAnswer, window: int, **said: Any) -> wire.Publish:
    """The true hashes of *window*."""
    about = {"incarnation": answer.incarnation, "generation": answer.generation, "since": answer.version}
    return wire.Publish(**{**ME, **about, "size": SIZE, "window": window, "hashes": hashes_of(SIZE, window), **said})


async def test_who_would_bring_it_in_gets_claims_at_once(board: BoardLink) -> None:
    first = await board.poll(wire.BoardPoll(**ME, want=2))
    assert (first.claims, first.size, first.sealed, first.hope) == ((0,), None, False, True)
    told = await board.poll(knowing(first, want=2, size=SIZE))
    assert (told.claims, told.size) == ((0, 1), SIZE)


async def test_what_is_published_is_told_once_and_ends_the_claim(board: BoardLink) -> None:
    first = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    told = await board.publish(publication(first, 0))
    assert (told.claims, told.published) == ((1,), {0: hashes_of(SIZE, 0)})
    again = await board.poll(knowing(told, want=1, size=SIZE, have=wire.bitmap(1)))
    assert again.published == {}


async def test_a_poll_waits_for_news(board: BoardLink) -> None:
    first = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    waiting = asyncio.create_task(board.poll(knowing(first, want=1, size=SIZE, wait=20.0)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await board.publish(publication(first, 0))
    async with asyncio.timeout(10):
        assert (await waiting).published == {0: hashes_of(SIZE, 0)}


async def test_a_poll_without_news_ends_when_its_time_is_over(board: BoardLink) -> None:
    first = await board.poll(wire.BoardPoll(**ME, size=SIZE))
    answer = await board.poll(knowing(first, size=SIZE, wait=0.05))
    assert (answer.version, answer.claims) == (first.version, ())


async def test_a_whole_board_is_sealed(board: BoardLink) -> None:
    told = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    for window in range(3):
        told = await board.publish(publication(told, window))
    await board.seal(wire.Seal(**ME, incarnation=told.incarnation, generation=told.generation))
    last = await board.poll(knowing(told, size=SIZE))
    assert (last.sealed, last.claims, last.hope) == (True, (), True)


async def test_after_a_wrong_digest_it_begins_again(board: BoardLink) -> None:
    told = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    told = await board.publish(publication(told, 0))
    await board.reject(wire.Reject(**ME, incarnation=told.incarnation, generation=told.generation))
    again = await board.poll(knowing(told, want=1))
    assert (again.generation, again.published, again.claims) == (told.generation + 1, {}, (0,))


async def test_who_is_refused_by_upstream_is_told_that_there_is_no_hope(board: BoardLink) -> None:
    told = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    release = wire.Release(**ME, incarnation=told.incarnation, windows=told.claims, failure="refused")
    assert not (await board.release(release)).hope


async def test_progress_keeps_the_claims(board: BoardLink) -> None:
    told = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    progress = wire.Progress(**ME, incarnation=told.incarnation, generation=told.generation, done={0: 1000})
    answer = await board.progress(progress)
    assert (answer.claims, answer.published) == ((0,), {})


async def test_who_leaves_has_no_claims(board: BoardLink) -> None:
    told = await board.poll(wire.BoardPoll(**ME, want=1, size=SIZE))
    await board.leave(wire.Leave(**ME))
    assert (await board.poll(knowing(told, size=SIZE, claims=()))).claims == ()
