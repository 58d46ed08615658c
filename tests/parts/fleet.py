"""Many agents of one tracker that pull blobs without bytes: they say by swarm.protocol.wire what agents say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from swarm.blob.geometry import geometry
from swarm.protocol import wire
from tests.parts.talk import Talker, Town, digest_of
from tracker.members.static import StaticDiscovery

ZONES = ("eu-west-1a", "eu-west-1b", "eu-west-1c")


class Zoned(StaticDiscovery):
    """All of 127.0.0.0/8 are members; the last number of the address says the zone."""

    def __init__(self, zones: Sequence[str] = ZONES) -> None:
        super().__init__(["127.0.0.0/8"])
        self._names = tuple(zones)

    def zone(self, ip: str) -> str:
        """The zone of *ip*."""
        return self._names[int(ip.rpartition(".")[2]) % len(self._names)]


class Puller:
    """One agent that takes part in one blob, step by step."""

    def __init__(self, talker: Talker, name: str) -> None:
        self.talker = talker
        self.digest = digest_of(name)
        self.have = 0
        self.done: dict[int, int] = {}
        """Bytes that have arrived in the windows that it has claims on."""
        self.stats: dict[str, float] = {
            "store_bytes": 0.0, "store_budget": 20 * 2.0**30, "upstream_bytes": 0.0, "peer_bytes_in": 0.0,
            "peer_bytes_out": 0.0, "fetches": 0.0,
        }  # fmt: skip

    async def tell(self, **stats: float) -> None:
        """Its channel, once: counters as they are, with *stats* of them set."""
        self.stats.update(stats)
        await self.talker.poll(stats=self.stats)

    async def board(self, **said: Any) -> wire.BoardAnswer:
        """Take part, with what it has."""
        return self._heard(await self.talker.board(self.digest, have=wire.bitmap(self.have), **said))

    async def bring(self, size: int, window: int) -> None:
        """Publish a window that it has a claim on."""
        self._heard(await self.talker.publish(self.digest, size, window))
        self.have |= 1 << window
        length = geometry(size).windows[window].length
        await self.tell(upstream_bytes=self.stats["upstream_bytes"] + length)

    async def get(self, size: int, windows: Sequence[int]) -> None:
        """Have *windows* from peers."""
        lengths = [geometry(size).windows[w].length for w in windows if not self.have >> w & 1]
        for window in windows:
            self.have |= 1 << window
        await self.board()
        await self.tell(peer_bytes_in=self.stats["peer_bytes_in"] + sum(lengths))

    async def arrive(self, window: int, done: int) -> None:
        """*done* bytes of a claimed window are here."""
        self.done[window] = done
        await self._progress()

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """Meanwhile a byte arrives per second in each of its claims, so that it keeps them."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(1.0)
                self.done = {window: count + 1 for window, count in self.done.items()}
                await self._progress()

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _progress(self) -> None:
        message = wire.Progress(**self.talker._board(self.digest), done=self.done, have=wire.bitmap(self.have))
        self._heard(await self.talker.say("progress", message, wire.BoardAnswer))

    def _heard(self, answer: wire.BoardAnswer) -> wire.BoardAnswer:
        self.done = {window: self.done.get(window, 0) for window in answer.claims}
        return answer


async def pullers(here: Town, count: int, name: str, first: int = 0) -> list[Puller]:
    """*count* agents that have said hello, on addresses of their own."""
    found = []
    for index in range(first, first + count):
        ip = f"127.0.{1 + index // 200}.{1 + index % 200}"
        puller = Puller(here.agent(f"node-{index:04d}", ip=ip), name)
        await puller.talker.hello()
        await puller.tell()
        found.append(puller)
    return found
