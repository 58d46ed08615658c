"""The windows that are brought in from upstream: begun, kept, given back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from swarm.blob.geometry import MIB
from swarm.protocol.board import Failure
from tests.parts.intake import claiming
from tests.parts.talk import until

SIZE = 4 * MIB


async def test_nothing_is_downloaded_before_the_window_is_vacated(tmp_path: Path) -> None:
    """libtorrent writes unverified bytes into the same file: they must not come down on right ones."""
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        host.free.clear()
        claims.set({1})
        for _ in range(20):
            await asyncio.sleep(0)
        assert upstream.asked == []
        host.free.set()
        await until(lambda: host.done == [1])
        assert upstream.asked == [(MIB, 2 * MIB)]


async def test_a_claim_that_is_still_held_goes_on_and_others_end(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.flows.clear()
        claims.set({0, 1})
        await until(lambda: len(upstream.asked) == 2)
        claims.set({1, 2})
        await until(lambda: len(upstream.asked) == 3)
        assert claims.windows == (1, 2)
        upstream.flows.set()
        await until(lambda: sorted(host.done) == [1, 2])
        assert len(upstream.asked) == 3, "window 1 was not asked again"


async def test_the_first_claim_tells_the_size(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE, sized=False) as (claims, host, upstream):
        claims.set({0})
        await until(lambda: host.done == [0])
        assert host.place is not None
        assert host.place.layout.size == SIZE
        assert upstream.asked == [(0, MIB)], "the body that told the size is read on"


async def test_a_window_that_is_here_ends_its_claim_without_a_request(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        claims.set({0})
        await until(lambda: host.done == [0])
        claims.set({0})
        assert host.done == [0, 0]
        assert len(upstream.asked) == 1


async def test_dropped_claims_are_told_to_nobody(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.answers.clear()
        claims.set({0, 1})
        await until(lambda: len(upstream.asked) == 2)
        claims.restart()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (claims.windows, host.done, host.failed) == ((), [], [])


async def test_a_broken_upstream_gives_the_claim_back(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.broken = True
        claims.set({0})
        await until(lambda: bool(host.failed))
        assert host.failed == [(0, Failure.BROKEN)]


async def test_a_claim_on_its_way_back_is_not_begun_again_by_an_older_answer(tmp_path: Path) -> None:
    """It failed once more then, and each time its node was barred for twice as long: 404 after ten seconds, not two."""
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.broken = True
        claims.set({0})
        await until(lambda: bool(host.failed))
        claims.set({0, 1})
        assert [*claims.windows] == [1]
        claims.returned(0)
        claims.set({0, 1})
        assert [*claims.windows] == [0, 1], "the board gave it again"


async def test_where_ranges_are_ignored_nothing_is_thrown_away_that_somebody_else_brings_in(tmp_path: Path) -> None:
    """Each of several agents read all of the blob up to its window, and threw that away."""
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.ranges, host.read_before = False, True
        claims.set({2})
        await until(lambda: bool(host.failed))
        assert (host.failed, upstream.sent) == ([(2, Failure.BUSY)], 0)
        claims.returned(2)
        host.read_before = False
        claims.set({2})
        await until(lambda: bool(host.done))
        assert host.done == [2]


async def test_a_whole_body_that_stands_still_is_left_to_who_has_the_window(tmp_path: Path) -> None:
    """Its window was nobody else's to bring for as long as it lasted: one client of four never got the end."""
    async with claiming(tmp_path, SIZE, sized=False) as (claims, host, upstream):
        upstream.ranges = False
        upstream.flows.clear()
        claims.set({0})
        upstream.pass_on(MIB // upstream.step + 1)
        await until(lambda: 1 not in claims.windows and bool(claims.moved(1)))
        assert set(host.done) == {0}
        upstream.broken = True
        claims.let_go(0)
        assert claims.moved(1) is not None, "that is not where it is"
        claims.let_go(1)
        await until(lambda: claims.moved(1) is None)
        assert not host.writes


async def test_an_upstream_that_resets_every_connection_is_read_on_where_it_broke(tmp_path: Path) -> None:
    """Below the length of a piece nothing would ever be complete, if each began at its first byte again."""
    async with claiming(tmp_path, SIZE, step=10_000, breaks=100_000) as (claims, host, upstream):
        claims.set({1, 2})
        await until(lambda: sorted(host.done) == [1, 2])
        assert upstream.sent < 2 * MIB + 20 * 10_000, "what came is not asked for again"
        assert {start for start, _ in upstream.asked} > {MIB, MIB + 100_000}


async def test_what_a_claim_brought_of_a_piece_is_there_for_the_next_one(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE, step=10_000) as (claims, host, upstream):
        upstream.flows.clear()
        claims.set({1})
        await until(lambda: len(upstream.asked) == 1)
        upstream.pass_on(15)
        await until(lambda: claims.done == {1: 150_000})
        claims.set(())
        await asyncio.sleep(0)
        upstream.flows.set()
        claims.set({1})
        await until(lambda: host.done == [1])
        assert upstream.asked == [(MIB, 2 * MIB), (MIB + 150_000, 2 * MIB)]


async def test_a_claim_tells_how_long_it_waits_and_every_byte_that_comes(tmp_path: Path) -> None:
    """Both keep it alive at the tracker: on a line too thin for a piece per lease, and while upstream thinks."""
    async with claiming(tmp_path, SIZE, step=10_000) as (claims, _host, upstream):
        upstream.flows.clear()
        claims.set({1, 3})
        await until(lambda: len(upstream.asked) == 2)
        assert (set(claims.waiting()), claims.done) == ({1, 3}, {1: 0, 3: 0})
        upstream.pass_on(1)
        await until(lambda: sum(claims.done.values()) == 10_000)
        assert len(claims.waiting()) == 1


async def test_a_direct_stream_takes_a_claims_work_over_and_the_claim_stays(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.answers.clear()
        claims.set({1})
        await until(lambda: len(upstream.asked) == 1)
        async with claims.covering(1):
            assert claims.windows == (1,)
            assert claims.elsewhere == {1}
            claims.covered(1, 5_000)
            assert claims.done[1] == 5_000
            claims.set({1})
            assert len(upstream.asked) == 1, "nobody else brings it in"
        upstream.answers.set()
        await until(lambda: host.done == [1])
        assert len(upstream.asked) == 2, "the stream ended before: the claim goes on"


async def test_nothing_outlives_the_close(tmp_path: Path) -> None:
    async with claiming(tmp_path, SIZE) as (claims, host, upstream):
        upstream.flows.clear()
        claims.set({0, 1, 2})
        await until(lambda: len(upstream.asked) == 3)
        await claims.close()
        upstream.flows.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (upstream.sent, claims.windows, host.pieces) == (0, (), [])
