"""A BEP 3 tracker on loopback for this node's own libtorrent session.

libtorrent dials at once whom it is told when a torrent is added, and the peers of a tracker response, but
those given by hand later only at its next tick. The board says who takes part, so a torrent for which there
are other peers than at first announces here instead of at the cluster's tracker: nothing of it leaves the node.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

import bencodepy

from swarm.base.flags import Endpoint

PeerAddress = tuple[str, int]
"""IP (v4 or v6) and swarm port."""

_INTERVAL = 3600
_MAX_REQUEST = 8192
_IDLE = 10.0
_RING = 1 << 32


def compact(peers: Iterable[PeerAddress]) -> tuple[bytes, bytes]:
    """(v4, v6) compact forms of *peers* (BEP 23, BEP 7)."""
    v4, v6 = bytearray(), bytearray()
    for ip, port in peers:
        packed = ipaddress.ip_address(ip).packed
        (v4 if len(packed) == 4 else v6).extend(packed + struct.pack(">H", port))
    return bytes(v4), bytes(v6)


def successors(peers: Iterable[PeerAddress], me: str, salt: str, count: int) -> tuple[PeerAddress, ...]:
    """The *count* of *peers* that come next after *me* (`ip:port`) on a ring that *salt* has put them on.

    If everybody dials those, no two dial each other, all are within reach, and everybody has as many connections;
    with peers that each chooses by chance a third of the connections were made twice, and a few peers had one.
    """
    here = _place(me, salt)
    by_distance = sorted(peers, key=lambda peer: (_place(str(Endpoint(*peer)), salt) - here) % _RING)
    return tuple(by_distance[:count])


def _place(key: str, salt: str) -> int:
    # a CRC alone keeps differences: keys that differ in the last digit would be neighbours for every salt
    return zlib.crc32(f"{salt}/{key}".encode()) * 2654435761 % _RING


class LoopbackAnnounce:
    """Answers announces with what *peers_of* says for an info-hash. One connection, one request."""

    def __init__(self, peers_of: Callable[[bytes], Iterable[PeerAddress]]) -> None:
        self._peers_of = peers_of
        self._secret = secrets.token_hex(8)
        self._server: asyncio.Server | None = None
        self.connections: set[asyncio.Transport] = set()
        self.closed = False

    async def start(self, swarm_ip: str) -> str:
        """Listen; returns the announce URL. Raises OSError.

        libtorrent binds what it sends to the network device of *swarm_ip*, from which 127.0.0.1 cannot
        be reached: so the listener is on that address too, behind its secret.
        """
        ip = "127.0.0.1" if ipaddress.ip_address(swarm_ip).is_unspecified else swarm_ip
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), ip, 0, backlog=512)
        port = self._server.sockets[0].getsockname()[1]
        return f"http://{f'[{ip}]' if ':' in ip else ip}:{port}/announce?shoal={self._secret}"

    def close(self) -> None:
        """Stop listening, drop what is open."""
        self.closed = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()

    def answer(self, target: bytes) -> bytes:
        """The bencoded answer to a request for *target* (path and query)."""
        query = dict(part.partition(b"=")[::2] for part in target.partition(b"?")[2].split(b"&"))
        if query.get(b"shoal") != self._secret.encode():
            return bytes(bencodepy.encode({b"failure reason": b"not for you"}))
        info_hash = unquote_to_bytes(query.get(b"info_hash", b""))
        stopped = query.get(b"event") == b"stopped"
        v4, v6 = compact(() if stopped else self._peers_of(info_hash))
        answer: dict[bytes, object] = {b"interval": _INTERVAL, b"peers": v4}
        if v6:
            answer[b"peers6"] = v6
        return bytes(bencodepy.encode(answer))


class _Connection(asyncio.Protocol):
    """One request of our own libtorrent: a plain GET."""

    def __init__(self, announce: LoopbackAnnounce) -> None:
        self._announce = announce
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._announce.closed:  # accepted while the server was closed
            transport.abort()
            return
        self._announce.connections.add(transport)
        self._deadline = asyncio.get_running_loop().call_later(_IDLE, transport.abort)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._data += data
        if len(self._data) > _MAX_REQUEST:
            self._transport.abort()
        elif self._data.endswith(b"\r\n\r\n"):
            words = bytes(self._data).split(b" ", 2)
            body = self._announce.answer(words[1] if len(words) > 2 else b"")
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(head % len(body) + body)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._transport is not None:
            self._announce.connections.discard(self._transport)
