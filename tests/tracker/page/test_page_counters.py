"""How fresh an agent's figures on the page are: told at once when something begins to move, then every five seconds."""

from __future__ import annotations

import asyncio

from swarm.tracking.trackers import TELL_EVERY, Trackers
from tests.parts.harbour import Nobody
from tests.parts.talk import town


class Holder(Nobody):
    """Holds nothing; counts."""

    def __init__(self) -> None:
        self.counters = {"fetches": 0.0, "peer_bytes_in": 0.0, "upstream_bytes": 0.0}
        self.asked: asyncio.Queue[float] = asyncio.Queue()

    def stats(self) -> dict[str, float]:
        self.asked.put_nowait(asyncio.get_running_loop().time())
        return dict(self.counters)


async def test_counters_are_told_when_a_fetch_begins_and_while_it_runs() -> None:
    """An idle channel says nothing for 25 s; a fetch that begins is told at once, and again within five seconds."""
    async with town() as here:
        holder = Holder()
        trackers = Trackers([here.server.url], "node", holder)
        await trackers.start(6881)
        try:
            await asyncio.wait_for(trackers.ready.wait(), 10)
            (link,) = trackers.links()
            while link.wait <= TELL_EVERY:  # until the channel waits for long
                await asyncio.wait_for(holder.asked.get(), 10)
                await asyncio.sleep(0)
            while not holder.asked.empty():
                holder.asked.get_nowait()
            holder.counters.update(fetches=1.0, peer_bytes_in=5.0)
            trackers.stir()
            first = await asyncio.wait_for(holder.asked.get(), 10)
            trackers.stir()  # a second fetch begins: told already
            holder.counters.update(peer_bytes_in=9.0)
            second = await asyncio.wait_for(holder.asked.get(), 20)
            assert second - first >= TELL_EVERY * 0.9
            await asyncio.wait_for(holder.asked.get(), 20)
            (agent,) = here.server.cluster.agents.all()
            assert agent.stats["peer_bytes_in"] == 9.0
            assert here.server.cluster.history.total == (0, 9)
        finally:
            await trackers.close()
