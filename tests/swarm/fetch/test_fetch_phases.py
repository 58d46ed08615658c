"""One blob from its first reader to its end, on a node that is alone: phases in order, and nothing that outlives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from swarm.blob.digest import parse
from swarm.blob.errors import BlobUnavailable
from swarm.blob.geometry import MIB
from swarm.fetch.course import Parts
from swarm.fetch.fetch import Fetch
from swarm.metrics import SwarmMetrics
from swarm.settings import SwarmSettings
from swarm.storage.store import Store
from swarm.tracking.trackers import Trackers
from tests.parts import data
from tests.parts.harbour import Nobody, NotedSession
from tests.parts.intake import SentUpstream
from tests.parts.lane import no_lane
from tests.parts.talk import until

CONTENT = data.blob(4 * MIB, 77)


class Home:
    """Where fetches are known, and what they have told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def finished(self, fetch: Fetch) -> None:
        self.told.append(f"finished {fetch.status()['phase']}")

    def closed(self, fetch: Fetch) -> None:
        self.told.append(f"closed {fetch.status()['phase']}")

    def entering(self) -> int:
        return 0

    def entering_changed(self) -> None:
        return None

    async def make_room(self) -> bool:
        return False


@asynccontextmanager
async def fetching(tmp_path: Path) -> AsyncIterator[tuple[Fetch, Home]]:
    """A fetch of CONTENT, not begun, with a real store and no tracker."""
    settings = SwarmSettings(tmp_path / "store", "node", linger=0.0)
    store, trackers, pool = Store(settings.store, 1 << 30), Trackers((), "node", Nobody()), ThreadPoolExecutor(2)
    await store.open()
    await trackers.start(6881)
    home = Home()
    metrics = SwarmMetrics(CollectorRegistry())
    parts = Parts(settings, NotedSession(), store, trackers, pool, metrics, no_lane(), lambda *_wrong: None)
    fetch = Fetch(parse(data.digest_of(CONTENT)), parts, home)
    try:
        yield fetch, home
    finally:
        await fetch.close()
        await trackers.close()
        await store.close()
        pool.shutdown()


async def test_a_fetch_goes_through_its_phases_in_order(tmp_path: Path) -> None:
    async with fetching(tmp_path) as (fetch, home):
        upstream = SentUpstream(CONTENT)
        reader = fetch.join(True, upstream)
        phases = [fetch.status()["phase"]]
        assert await fetch.sized() == len(CONTENT)
        phases.append(fetch.status()["phase"])
        sent = bytearray()
        async for span in fetch.read(reader, 0, len(CONTENT)):
            sent += os.pread(span.fd, span.count, span.offset)
        assert bytes(sent) == CONTENT
        await until(lambda: fetch.is_kept)
        phases.append(fetch.status()["phase"])
        fetch.part(reader)
        await fetch.closed.wait()
        assert [*phases, fetch.status()["phase"]] == ["sizing", "filling", "kept", "closed"]
        assert home.told == ["finished kept", "closed closed"]
        assert upstream.sent == len(CONTENT), "nothing is asked for twice"


def tasks() -> set[asyncio.Task[Any]]:
    """All that run, but for the store's own: it writes and takes away in threads, and waits for them when it closes."""
    return {task for task in asyncio.all_tasks() if "swarm/storage/" not in task.get_coro().cr_code.co_filename}  # type: ignore[union-attr]


async def test_nothing_that_a_fetch_began_outlives_it(tmp_path: Path) -> None:
    """Closed in the middle: no task runs, no byte is asked for, and whoever waits is told."""
    async with fetching(tmp_path) as (fetch, home):
        before = tasks()
        upstream = SentUpstream(CONTENT)
        reader = fetch.join(True, upstream)
        await fetch.sized()
        upstream.flows.clear()
        waiting = asyncio.ensure_future(anext(fetch.read(reader, 2 * MIB, 3 * MIB)))
        await until(lambda: len(upstream.asked) > 1)
        await fetch.close()
        with pytest.raises(BlobUnavailable):
            await waiting
        sent = upstream.sent
        upstream.flows.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert upstream.sent == sent
        assert tasks() == before
        assert home.told == ["closed closed"]
