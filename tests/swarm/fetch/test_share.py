"""Layers of one image that a node pulls at the same time share upstream's claims."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from swarm.blob.geometry import MIB
from swarm.protocol.board import MAX_CLAIMS, Board
from tests.mirror.test_metrics import counted
from tests.parts.counter import Counter
from tests.parts.front import agent
from tests.parts.registry import Blob, Registry
from tests.parts.talk import town, until


@pytest.mark.needs_registry
@pytest.mark.timeout(90)
async def test_an_agent_says_what_else_it_has_enter_the_cluster(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """Two large layers, and later one alone; a small one is no competition."""
    large = [origin.plant(f"share/large-{number}", 24 * MIB, 950 + number) for number in range(2)]
    small = origin.plant("share/small", 2 * MIB, 952)
    await upstream.shape(total=8 * MIB)
    async with town() as here, agent(tmp_path / "one", tracker=(here.server.url,)) as one:
        await until(lambda: counted(one.front.metrics.registry, "shoal_swarm_trackers_up") == 1)

        def board_of(blob: Blob) -> Board | None:
            swarm = here.server.cluster.swarms.get(blob.digest)
            return swarm.board if swarm is not None else None

        def beside(blob: Blob) -> list[int]:
            board = board_of(blob)
            return [who.concurrent for who in board.participants.values()] if board is not None else []

        async def pull(blob: Blob) -> bool:
            body = (await one.ask(f"/v2/{blob.repository}/blobs/{blob.digest}?ns={upstream.host}"))[2]
            return f"sha256:{hashlib.sha256(body).hexdigest()}" == blob.digest

        pulls = [asyncio.create_task(pull(blob)) for blob in (*large, small)]
        await until(lambda: [*beside(large[0]), *beside(large[1])] == [1, 1])
        boards = [board for blob in large if (board := board_of(blob)) is not None]
        await until(lambda: all(len(board.claims) <= board.share == MAX_CLAIMS // 2 for board in boards))
        await upstream.shape()
        assert all(await asyncio.gather(*pulls))
        await until(lambda: max(beside(large[0]) + beside(large[1]), default=0) == 0)
