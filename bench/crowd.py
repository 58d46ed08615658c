"""Thousands of agents in one process: what real ones would say by swarm.protocol.wire, over raw connections.

aiohttp's client would take more time than the tracker that is looked at.

`python -m bench.crowd COUNT HOST:PORT` is a rollout on a large cluster, and prints one JSON object: COUNT agents have
their channel open at the tracker, and all pull a layer of 128 MiB at once. All would bring windows in; those that get
claims do, as fast as a link of 200 Mbit/s lets them in. Fetching from peers takes no time here.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import bencodepy

from bench.load import digest_of, hashes_of
from swarm.blob.digest import Digest
from swarm.blob.geometry import MIB, Geometry, geometry
from swarm.blob.metainfo import HASH_LENGTH
from swarm.protocol import wire
from swarm.protocol.board import MAX_CLAIMS

M = TypeVar("M", bound=wire.Wire)

SIZE = 128 * MIB
"""Of a layer."""

RATE = 200e6 / 8
"""Bytes per second at which a layer enters the cluster."""

DEADLINE = 400.0
"""Seconds for all of it."""

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Line(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length is not None and len(body) < int(length[1])):
            return
        self._buffer = b""
        if self._answer is not None and not self._answer.done():
            if head.startswith(b"HTTP/1.1 200"):
                self._answer.set_result(body)
            else:
                self._answer.set_exception(ConnectionError(f"{head[:40]!r} {body[:200]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the tracker closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer. Raises ConnectionError for any answer but 200, and if none comes."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    async def say(self, verb: str, message: wire.Wire, kind: type[M]) -> M:
        """One verb of the agents' protocol."""
        body = wire.encode(message)
        kind_of_body = "Content-Type: application/json"
        head = f"POST /v1/{verb} HTTP/1.1\r\nHost: tracker\r\n{kind_of_body}\r\nContent-Length: {len(body)}\r\n\r\n"
        return wire.decode(await self.ask(head.encode() + body), kind)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


async def line(host: str, port: int) -> Line:
    """A connection."""
    _, made = await asyncio.get_running_loop().create_connection(Line, host, port)
    return made


@dataclass
class Layer:
    """A blob that enters the cluster at *rate* bytes per second, however many bring it in."""

    digest: Digest
    hashes: bytes
    """Of all pieces."""
    layout: Geometry
    rate: float
    told: dict[int, float] = field(default_factory=dict)
    """Window -> when its publication was sent, seconds of time.monotonic()."""
    answered: list[float] = field(default_factory=list)
    """Seconds that each publication took."""
    free: float = 0.0
    """When upstream's link has sent all that was asked of it."""

    async def arrive(self, window: int) -> None:
        """Until *window* has come from upstream."""
        now = time.monotonic()
        self.free = max(now, self.free) + self.layout.windows[window].length / self.rate
        await asyncio.sleep(self.free - now)

    def of(self, window: int) -> bytes:
        """The hashes of *window*."""
        span = self.layout.windows[window].span
        return self.hashes[HASH_LENGTH * span.start : HASH_LENGTH * span.stop]


@dataclass(eq=False)
class Agent:
    """One agent: its channel, and a connection for the board that it follows. Told apart by its swarm port."""

    number: int
    address: tuple[str, int]
    """Of the tracker."""
    channel: Line
    board: Line
    windows: dict[int, float] = field(default_factory=dict)
    """When it first heard of each, seconds of time.monotonic()."""
    answers: int = 0
    """Of the board."""
    peers: int = 0

    def me(self) -> dict[str, object]:
        """Who it is."""
        return {"node": f"crowd-{self.number}", "port": 20_000 + self.number, "session": f"session-{self.number}"}

    async def hello(self) -> None:
        """It is there, and holds nothing. Said on both lines: the tracker closes one that is silent for seconds."""
        for line in (self.board, self.channel):
            await line.say("agent", wire.AgentPoll(**self.me(), full=True), wire.AgentAnswer)  # type: ignore[arg-type]

    async def wait(self) -> None:
        """Its channel, for ever."""
        while True:
            await self.channel.say("agent", wire.AgentPoll(**self.me(), wait=wire.MAX_WAIT), wire.AgentAnswer)  # type: ignore[arg-type]

    async def pull(self, layer: Layer) -> None:
        """Bring in what it gets claims on, hear of the rest, seal."""
        seen = wire.BoardAnswer(incarnation="", version=0, generation=0)
        bringing: dict[int, asyncio.Task[None]] = {}
        has_all = False
        while not seen.sealed:
            poll = wire.BoardPoll(
                **self.me(),  # type: ignore[arg-type]
                digest=layer.digest, incarnation=seen.incarnation, generation=seen.generation, since=seen.version,
                wait=wire.MAX_WAIT if seen.incarnation else 0.0, size=layer.layout.size,
                want=MAX_CLAIMS, claims=seen.claims,
                have=wire.bitmap(sum(1 << window for window in self.windows)),
            )  # fmt: skip
            seen = await self.board.say("board", poll, wire.BoardAnswer)
            now = time.monotonic()
            for window in seen.published:
                self.windows.setdefault(window, now)
            self.answers += 1
            for window in seen.claims:
                if window not in bringing:
                    bringing[window] = asyncio.create_task(self._bring(layer, window, seen))
            if len(self.windows) == len(layer.layout.windows) and not has_all:
                has_all = True
                said = wire.Seal(**self.me(), digest=layer.digest, incarnation=seen.incarnation, generation=0)  # type: ignore[arg-type]
                await self.board.say("seal", said, wire.Ok)
        await asyncio.gather(*bringing.values())

    async def _bring(self, layer: Layer, window: int, seen: wire.BoardAnswer) -> None:
        await layer.arrive(window)
        said = wire.Publish(
            **self.me(),  # type: ignore[arg-type]
            digest=layer.digest, incarnation=seen.incarnation, generation=seen.generation,
            size=layer.layout.size, window=window, hashes=layer.of(window),
        )  # fmt: skip
        layer.told[window] = time.monotonic()
        other = await line(*self.address)
        await other.say("publish", said, wire.BoardAnswer)
        layer.answered.append(time.monotonic() - layer.told[window])
        other.close()

    async def announce(self, info_hash: bytes) -> None:
        """As a BitTorrent client does (BEP 3). Raises ConnectionError if it is refused."""
        query = f"info_hash={quote(info_hash)}&peer_id={f'-SH0001-{self.number:012d}'}&port={20_000 + self.number}"
        head = f"GET /announce?{query}&uploaded=0&downloaded=0&left=1&compact=1 HTTP/1.1\r\nHost: tracker\r\n\r\n"
        answer = bencodepy.decode(await self.board.ask(head.encode()))
        if b"failure reason" in answer:
            raise ConnectionError(answer[b"failure reason"].decode())
        self.peers = len(answer[b"peers"]) // 6


async def crowd(host: str, port: int, count: int) -> Sequence[Agent]:
    """*count* agents, connected, that have said hello."""
    gate = asyncio.Semaphore(200)  # a listener's backlog is finite

    async def one(number: int) -> Agent:
        async with gate:
            found = Agent(number, (host, port), await line(host, port), await line(host, port))
            await found.hello()
            return found

    return await asyncio.gather(*(one(number) for number in range(count)))


async def rollout(host: str, port: int, count: int) -> dict[str, float]:
    """*count* agents of one tracker pull a layer. What they saw; seconds."""
    began = time.monotonic()
    agents = await crowd(host, port, count)
    channels = [asyncio.create_task(agent.wait()) for agent in agents]
    layer = Layer(digest_of(port), hashes_of(port, SIZE), geometry(SIZE), RATE)
    start = time.monotonic()
    await asyncio.gather(*(agent.pull(layer) for agent in agents))
    ended = time.monotonic()
    lags = sorted(at - layer.told[window] for agent in agents for window, at in agent.windows.items())
    dropped = sum(channel.done() for channel in channels)
    for channel in channels:
        channel.cancel()
    await asyncio.gather(*channels, return_exceptions=True)
    entered = max(layer.told.values())
    return {
        "agents": count,
        "connecting": start - began,
        "entering": entered - start,
        "sealed_after": ended - entered,
        "answers": sum(agent.answers for agent in agents),
        "news": len(lags),
        "lag_p50": lags[len(lags) // 2],
        "lag_max": lags[-1],
        "publish_max": max(layer.answered),
        "dropped": dropped,
    }


async def main() -> None:
    """See the module."""
    count, address = sys.argv[1:]
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(DEADLINE):
        print(json.dumps(await rollout(host, int(port), int(count))))


if __name__ == "__main__":
    asyncio.run(main())
