"""Load on a tracker: `python -m bench.load HOST:PORT KIND COUNT`, prints one JSON object.

announce    BEP 3 announces for 100 sealed blobs by 1,000 peers
agent       an agent's poll (nothing new), by 1,000 agents
board       joins of boards of 128 MiB: 1,000 boards, 8 agents each
crowd       joins of one board of 1 GiB by 1,000 agents
fill-agent  COUNT agents that hold 20 blobs each
fill-board  COUNT boards of 1 GiB, published whole, with 20 agents each
warmup      announces, before memory is looked at

Keep-alive connections, one request at a time on each, all encoded before the clock starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

from swarm.blob.digest import Digest, parse
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import info_hash, sealed_info
from swarm.protocol import wire

MIB = 1024 * 1024
CONNECTIONS = 64
DEADLINE = 300.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def digest_of(number: int) -> Digest:
    """The digest of the blob that has this number."""
    return parse("sha256:" + hashlib.sha256(b"load %d" % number).hexdigest())


def hashes_of(number: int, size: int) -> bytes:
    """Its piece hashes: the same in every process."""
    pieces = geometry(size).pieces
    return hashlib.shake_128(b"load %d" % number).digest(20 * pieces)


def me(number: int) -> dict[str, object]:
    """Who agent *number* is: told apart by its port, since all have the address 127.0.0.1."""
    return {"node": f"load-{number}", "port": 20_000 + number, "session": f"session-{number}"}


def post(verb: str, message: wire.Wire) -> bytes:
    """The bytes of a request."""
    body = wire.encode(message)
    return (
        b"POST /v1/%s HTTP/1.1\r\nHost: tracker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (verb.encode(), len(body), body)
    )


def hello(number: int, held: range = range(0), size: int = 128 * MIB) -> bytes:
    """Agent *number* says that it is there and what it holds."""
    add = tuple(wire.CompleteBlob(digest=digest_of(blob), size=size) for blob in held)
    return post("agent", wire.AgentPoll(**me(number), full=True, add=add))  # type: ignore[arg-type]


def join(number: int, blob: int, size: int) -> bytes:
    """Agent *number* joins the board of *blob*."""
    return post("board", wire.BoardPoll(**me(number), digest=digest_of(blob), size=size, want=4))  # type: ignore[arg-type]


def whole(number: int, blob: int, size: int) -> bytes:
    """Agent *number* tells all hashes of *blob*."""
    told = hashes_of(blob, size)
    return post("whole", wire.Whole(**me(number), digest=digest_of(blob), size=size, hashes=told))  # type: ignore[arg-type]


def announce(number: int, blob: int, size: int) -> bytes:
    """Peer *number* announces the sealed torrent of *blob*."""
    key = info_hash(sealed_info(digest_of(blob), geometry(size), hashes_of(blob, size)))
    peer = b"-LD0001-%012d" % number
    return (
        f"GET /announce?info_hash={quote(key)}&peer_id={quote(peer)}&port={20_000 + number}&uploaded=0&downloaded=0"
        "&left=0&compact=1&numwant=50 HTTP/1.1\r\nHost: tracker\r\n\r\n"
    ).encode()


class Line(asyncio.Protocol):
    """One connection: sends the next request when the last is answered."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None], seen: Callable[[bytes], None]) -> None:
        self._requests, self._done, self._seen = requests, done, seen
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        if length is None or len(rest) >= int(length[1]):
            self._seen(self._buffer)
            self._buffer = b""
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("the tracker closed the connection"))

    def _next(self) -> None:
        assert self._transport is not None
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self._done.done():
            self._done.set_result(None)
            self._transport.close()


async def run(host: str, port: int, requests: list[bytes]) -> dict[str, float]:
    """Send all *requests*; how many, in how many seconds, and how many were refused."""
    loop = asyncio.get_running_loop()
    errors: list[bytes] = []

    def seen(answer: bytes) -> None:
        if not answer.startswith(b"HTTP/1.1 200") or b"failure reason" in answer:
            errors.append(answer)

    waiting = iter(requests)
    lines = [loop.create_future() for _ in range(min(CONNECTIONS, len(requests)))]
    begun = time.perf_counter()
    async with asyncio.timeout(DEADLINE):
        for line in lines:
            await loop.create_connection(lambda line=line: Line(waiting, line, seen), host, port)  # type: ignore[misc]
        await asyncio.gather(*lines)
    seconds = time.perf_counter() - begun
    for answer in errors[:3]:
        print(answer[:400], file=sys.stderr)
    return {"requests": len(requests), "seconds": seconds, "errors": len(errors)}


def before(kind: str) -> list[bytes]:
    """What the tracker must have been told first."""
    size = 128 * MIB
    if kind in {"announce", "warmup"}:
        return [hello(0), *(whole(0, blob, size) for blob in range(100))]
    if kind in {"agent", "crowd"}:
        return [hello(number) for number in range(1000)]
    if kind in {"board", "fill-board"}:
        return [hello(number) for number in range(20)]
    return []


def of(kind: str, count: int) -> Iterator[bytes]:
    """The requests of *kind*, more than are needed."""
    small, large = 128 * MIB, 1024 * MIB
    for turn in range(count):
        if kind in {"announce", "warmup"}:
            yield announce(turn % 1000, turn % 100, small)
        elif kind == "agent":
            yield post("agent", wire.AgentPoll(**me(turn % 1000)))  # type: ignore[arg-type]
        elif kind == "board":
            yield join(turn // 1000 % 8, turn % 1000, small)
        elif kind == "crowd":
            yield join(turn % 1000, 1_000_000, large)
        elif kind == "fill-agent":
            yield hello(100 + turn, range(10_000 + turn % 100, 10_020 + turn % 100))
        elif kind == "fill-board":
            yield whole(0, 20_000 + turn, large)
            yield from (join(number, 20_000 + turn, large) for number in range(20))
        else:
            raise SystemExit(f"no such load: {kind}")


async def main() -> None:
    """See the module."""
    address, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    host, _, port = address.rpartition(":")
    if prepared := before(kind):
        await run(host, int(port), prepared)
    print(json.dumps(await run(host, int(port), list(of(kind, count)))))


if __name__ == "__main__":
    asyncio.run(main())
