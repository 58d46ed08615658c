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
    async with claiming(tmp_path, SIZE, breaks=1) as (claims, host, upstream):
        upstream.content = upstream.content[:SIZE]
        upstream.step = 1
        claims.set({0})
        async with asyncio.timeout(60):
            await until(lambda: bool(host.failed))
        assert host.failed == [(0, Failure.BROKEN)]


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
