"""Readers of one blob on one node who ask different places: none is given what another asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.blob.errors import Unproven
from swarm.fetch.fetch import Fetch
from swarm.fetch.proof import Proof, origin_of
from swarm.fetch.readers import Reader
from tests.parts.intake import SentUpstream
from tests.parts.talk import until
from tests.swarm.fetch.test_fetch_phases import CONTENT, fetching

REAL, OTHER = origin_of("registry.example"), origin_of("https://mine.example/x")


async def read(fetch: Fetch, reader: Reader, start: int, stop: int) -> int:
    """Read a range; its bytes."""
    return sum([span.count async for span in fetch.read(reader, start, stop)])


async def test_a_reader_of_ranges_does_not_join_who_asks_another_place(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, _):
        first = fetch.join(False, SentUpstream(CONTENT), origin=OTHER, proof=Proof.ORIGIN)
        assert await read(fetch, first, 0, 1000) == 1000
        with pytest.raises(Unproven):
            fetch.join(False, SentUpstream(CONTENT), origin=REAL, proof=Proof.ORIGIN)
        same = fetch.join(False, SentUpstream(CONTENT), origin=OTHER, proof=Proof.ORIGIN)
        assert await read(fetch, same, 10, 20) == 10


async def test_where_a_whole_reader_asks_another_place_nothing_is_given_until_the_sha256_matched(
    tmp_path: Path,
) -> None:
    async with fetching(tmp_path) as (fetch, _):
        ranges = fetch.join(False, SentUpstream(CONTENT), origin=REAL, proof=Proof.ORIGIN)
        assert await read(fetch, ranges, 0, 1000) == 1000
        slow = SentUpstream(CONTENT)
        slow.flows.clear()
        whole = fetch.join(True, slow, origin=OTHER)
        with pytest.raises(Unproven):
            await read(fetch, ranges, 0, 1000)
        slow.flows.set()
        assert await read(fetch, whole, 0, len(CONTENT)) == len(CONTENT)
        await until(lambda: fetch.is_verified)
        for reader in (ranges, fetch.join(False, None, origin=OTHER, proof=Proof.OWN)):
            assert await read(fetch, reader, 5, 1000) == 995


async def test_strictly_what_a_former_process_left_is_no_proof(tmp_path: Path) -> None:
    """It may have had it from a peer."""
    async with fetching(tmp_path) as (fetch, _):
        reader = fetch.join(False, SentUpstream(CONTENT), origin=REAL, proof=Proof.OWN)
        assert await read(fetch, reader, 0, 1000) == 1000
    async with fetching(tmp_path) as (fetch, _):
        reader = fetch.join(False, SentUpstream(CONTENT), origin=REAL, proof=Proof.OWN)
        with pytest.raises(Unproven):
            await read(fetch, reader, 0, 1000)
        other = fetch.join(False, SentUpstream(CONTENT), origin=REAL, proof=Proof.ORIGIN)
        assert await read(fetch, other, 0, 1000) == 1000
