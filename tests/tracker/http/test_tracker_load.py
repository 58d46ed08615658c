"""Thousands of agents on one tracker that has one core: everybody is answered, nobody is forgotten."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from bench.crowd import RATE, Layer, crowd
from swarm.blob.geometry import MIB, geometry
from swarm.blob.metainfo import info_hash, sealed_info
from tests.parts.cluster import cluster
from tests.parts.talk import digest_of, whole_of

COUNT = 2000
SIZE = 12 * MIB
WINDOWS = len(geometry(SIZE).windows)
D = digest_of("crowd")

MOST_MEMORY = 200 * MIB
"""Bound of a leak; what it is, the test prints."""


@pytest.mark.timeout(150)
async def test_2000_agents_announce_and_wait_on_one_core(tmp_path: Path, record_property: Any) -> None:
    """Each has its channel open, and all pull one blob at once. Those that get claims bring it in: each agent hears of
    every window, seals, then announces as a BitTorrent client and is told of peers."""
    async with cluster(tmp_path, agents=0) as shoal:
        tracker = shoal.tracker
        os.sched_setaffinity(tracker.process.pid, {min(os.sched_getaffinity(0))})
        empty = tracker.process.peak_rss()
        agents = await crowd("127.0.0.1", tracker.port, COUNT)
        channels = [asyncio.create_task(agent.wait()) for agent in agents]
        layer = Layer(D, whole_of(SIZE), geometry(SIZE), RATE)
        before = tracker.process.cpu_seconds()

        await asyncio.gather(*(agent.pull(layer) for agent in agents))
        spent = tracker.process.cpu_seconds() - before
        torrent = info_hash(sealed_info(D, geometry(SIZE), whole_of(SIZE)))
        await asyncio.gather(*(agent.announce(torrent) for agent in agents))

        state = await tracker.state()
        assert (state["agents"], state["boards"]["sealed"]) == (COUNT, 1)
        assert {frozenset(agent.windows) for agent in agents} == {frozenset(range(WINDOWS))}
        assert len(layer.answered) == WINDOWS, "each window was claimed once"
        assert min(agent.peers for agent in agents) == 50
        assert not any(channel.done() for channel in channels), "nobody's channel was dropped"
        peak = tracker.process.peak_rss()
        answers = sum(agent.answers for agent in agents)
        facts = {
            "memory with nobody, MiB": round(empty / MIB, 1),
            "peak memory, MiB": round(peak / MIB, 1),
            "per agent, KiB": round((peak - empty) / COUNT / 1024, 1),
            "answers": answers,
            "CPU per answer, ms": round(1000 * spent / answers, 3),
        }
        print(facts)
        for name, value in facts.items():
            record_property(name, value)
        assert peak < MOST_MEMORY
        for channel in channels:
            channel.cancel()
        await asyncio.gather(*channels, return_exceptions=True)
        for agent in agents:
            agent.channel.close()
            agent.board.close()
