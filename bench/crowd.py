"""Thousands of agents in one process: what real ones would say by swarm.wire, over raw connections.

aiohttp's client would take more time than the tracker that is looked at.

`python -m bench.crowd COUNT HOST:PORT...` is a rollout on a large cluster, and prints one JSON object: each of COUNT
agents has its channel open at every tracker, and all pull a layer of 128 MiB from each at once, whose windows enter
the cluster as fast as a link of 200 Mbit/s lets them in.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import bencodepy

from bench.load import digest_of, hashes_of
from swarm import wire
from swarm.digest import Digest
from swarm.geometry import MIB, Window, geometry
from swarm.metainfo import HASH_LENGTH

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
        head = f"POST /v1/{verb} HTTP/1.1\r\nHost: tracker\r\nContent-Length: {len(body)}\r\n\r\n"
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
class Follower:
    """One agent: its channel, and a board that it follows until it is sealed. Told apart by its swarm port."""

    number: int
    channel: Line
    board: Line
    windows: dict[int, float] = field(default_factory=dict)
    """When it first heard of each, in seconds of time.monotonic()."""
    answers: int = 0
    peers: int = 0

    def me(self) -> dict[str, object]:
        """Who it is."""
        return {"node": f"crowd-{self.number}", "port": 20_000 + self.number, "session": f"session-{self.number}"}

    async def hello(self) -> None:
        """It is there, and holds nothing."""
        await self.channel.say("agent", wire.AgentPoll(**self.me(), full=True), wire.AgentAnswer)  # type: ignore[arg-type]

    async def wait(self) -> None:
        """Its channel, for ever."""
        while True:
            await self.channel.say("agent", wire.AgentPoll(**self.me(), wait=wire.MAX_WAIT), wire.AgentAnswer)  # type: ignore[arg-type]
            self.answers += 1

    async def follow(self, digest: Digest, size: int) -> None:
        """Long-poll the board until it is sealed."""
        seen = wire.BoardAnswer(incarnation="", version=0, generation=0)
        while not seen.sealed:
            poll = wire.BoardPoll(
                **self.me(),  # type: ignore[arg-type]
                digest=digest, size=size, incarnation=seen.incarnation, generation=seen.generation,
                since=seen.version, wait=wire.MAX_WAIT if seen.incarnation else 0.0, have=wire.bitmap(0),
            )  # fmt: skip
            seen = await self.board.say("board", poll, wire.BoardAnswer)
            now = time.monotonic()
            for window in seen.published:
                self.windows.setdefault(window, now)
            self.answers += 1

    async def bring(
        self, digest: Digest, size: int, hashes: Callable[[Window], bytes], rate: float = math.inf
    ) -> dict[int, float]:
        """Publish every window, at *rate* bytes per second, then seal. When each was told (time.monotonic())."""
        me = self.me()
        poll = wire.BoardPoll(**me, digest=digest, size=size, want=1)  # type: ignore[arg-type]
        board = await self.board.say("board", poll, wire.BoardAnswer)
        about = {**me, "digest": digest, "incarnation": board.incarnation, "generation": board.generation}
        start, told = time.monotonic(), dict[int, float]()
        for window in geometry(size).windows:
            await asyncio.sleep(max(0.0, start + window.end / rate - time.monotonic()))
            said = wire.Publish(**about, size=size, window=window.index, hashes=hashes(window))  # type: ignore[arg-type]
            await self.board.say("publish", said, wire.BoardAnswer)
            told[window.index] = time.monotonic()
        await self.board.say("seal", wire.Seal(**about), wire.Ok)  # type: ignore[arg-type]
        return told

    async def announce(self, info_hash: bytes) -> None:
        """As a BitTorrent client does (BEP 3). Raises ConnectionError if it is refused."""
        query = f"info_hash={quote(info_hash)}&peer_id={f'-SH0001-{self.number:012d}'}&port={20_000 + self.number}"
        head = f"GET /announce?{query}&uploaded=0&downloaded=0&left=1&compact=1 HTTP/1.1\r\nHost: tracker\r\n\r\n"
        answer = bencodepy.decode(await self.board.ask(head.encode()))
        if b"failure reason" in answer:
            raise ConnectionError(answer[b"failure reason"].decode())
        self.peers = len(answer[b"peers"]) // 6


async def crowd(host: str, port: int, count: int) -> Sequence[Follower]:
    """*count* agents, connected, that have said hello."""
    gate = asyncio.Semaphore(200)  # a listener's backlog is finite

    async def one(number: int) -> Follower:
        async with gate:
            found = Follower(number, await line(host, port), await line(host, port))
            await found.hello()
            return found

    return await asyncio.gather(*(one(number) for number in range(count)))


async def rollout(host: str, port: int, count: int, layer: int) -> dict[str, float]:
    """*count* agents of one tracker pull layer number *layer*. What they saw; seconds."""
    began = time.monotonic()
    first, *others = await crowd(host, port, count)
    channels = [asyncio.create_task(agent.wait()) for agent in (first, *others)]
    ready = time.monotonic()
    digest, whole = digest_of(layer), hashes_of(layer, SIZE)
    boards = [asyncio.create_task(agent.follow(digest, SIZE)) for agent in others]
    start = time.monotonic()
    told = await first.bring(
        digest, SIZE, lambda window: whole[HASH_LENGTH * window.span.start : HASH_LENGTH * window.span.stop], RATE
    )
    published = max(told.values())
    await asyncio.gather(*boards)
    ended = time.monotonic()
    lags = sorted(at - told[window] for agent in others for window, at in agent.windows.items())
    dropped = sum(channel.done() for channel in channels)
    for channel in channels:
        channel.cancel()
    await asyncio.gather(*channels, return_exceptions=True)
    return {
        "agents": count,
        "connecting": ready - began,
        "publishing": published - start,
        "after_the_last_window": ended - published,
        "answers": sum(agent.answers for agent in others),
        "news": len(lags),
        "lag_p50": lags[len(lags) // 2],
        "lag_max": lags[-1],
        "dropped": dropped,
    }


async def main() -> None:
    """See the module."""
    count, *addresses = sys.argv[1:]
    places = [address.rpartition(":") for address in addresses]
    async with asyncio.timeout(DEADLINE):
        found = await asyncio.gather(
            *(rollout(host, int(port), int(count), layer) for layer, (host, _, port) in enumerate(places))
        )
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
