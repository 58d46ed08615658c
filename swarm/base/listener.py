"""A TCP listener that strangers cannot fill: who connects has to say something whole, soon, and not too often at once.

It stands before an HTTP server's protocol factory (aiohttp's `web.Server`). A connection counts as unproven until the
first request on it was read whole. Unproven connections are bounded per address and in time, TLS handshake included.
A later request of which only a part comes is bounded in time as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator

from swarm.base.seldom import Seldom

log = logging.getLogger("shoal.listener")

HEAD = 5.0
"""Seconds for the head of a request: a client that is alive sends it in one packet."""

HANDSHAKE = 2.0
"""Seconds for a TLS handshake: two round trips, and room for a node that is overloaded."""

UNPROVEN = 256
"""Unproven connections of one address at once."""

_ACCEPTS = 256
"""Connections taken in one turn of the loop."""

_FULL_PAUSE = 0.2
"""Seconds without accepting after the process ran out of descriptors."""

Factory = Callable[[], asyncio.BaseProtocol]


class _Guard(asyncio.Protocol):
    """Stands before the protocol of one connection and looks at when bytes come, not at what they say."""

    def __init__(self, inner: asyncio.Protocol, listener: Listener, address: str) -> None:
        self._inner = inner
        self._listener = listener
        self._address = address
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._busy = 0
        self._proven = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._listener.guards[transport] = self
        self._wait()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy and self._timer is None:
            self._wait()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        if self._transport is not None:
            self._listener.guards.pop(self._transport, None)
        self.prove()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        self._rest()
        self.prove()
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def prove(self) -> None:
        if not self._proven:
            self._proven = True
            self._listener.proven(self._address)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._listener.head, self._late)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._listener.late += 1
        if self._transport is not None:
            self._transport.abort()


class Listener:
    """See the module. `start`, then `close`; open connections are the protocol's business."""

    def __init__(
        self,
        factory: Factory,
        *,
        known: Callable[[str], bool] = lambda _ip: False,
        unproven: int = UNPROVEN,
        head: float = HEAD,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """*factory* makes the protocol of a connection. *known*(ip): addresses that are not bounded by number."""
        self._factory = factory
        self._known = known
        self._most = unproven
        self.head = head
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._unproven: Counter[str] = Counter()
        self._making: set[asyncio.Task[None]] = set()
        self._seldom = Seldom()
        self.guards: dict[asyncio.Transport, _Guard] = {}
        self.refused = 0
        """Connections that were closed at once: too many unproven ones of one address."""
        self.late = 0
        """Connections that were closed because a request, or a handshake, did not come in time."""

    def start(self, host: str, port: int, *, backlog: int = 1024) -> tuple[str, int]:
        """Listen; IP and port. `[::]` takes IPv4 as well. Raises OSError."""
        made = bound(host, port, backlog)
        self.take(made, backlog)
        address = made.getsockname()
        return str(address[0]), int(address[1])

    def take(self, place: socket.socket, backlog: int) -> None:
        """Listen on *place*, a bound socket, which is closed with this. Raises OSError."""
        place.setblocking(False)
        place.listen(backlog)
        self._sockets.append(place)
        asyncio.get_running_loop().add_reader(place, self._accept, place)

    def close(self) -> None:
        """No new connections."""
        places, self._sockets = self._sockets, []
        for place in places:
            asyncio.get_running_loop().remove_reader(place)
            place.close()
        for task in self._making:
            task.cancel()

    def busy(self, transport: object) -> contextlib.AbstractContextManager[None]:
        """Within it a request that came whole on *transport* is answered."""
        guard = self.guards.get(transport) if isinstance(transport, asyncio.Transport) else None
        return guard.busy() if guard is not None else contextlib.nullcontext()

    def proven(self, address: str) -> None:
        """A connection of *address* said something whole, or is gone."""
        self._unproven[address] -= 1
        if self._unproven[address] <= 0:
            del self._unproven[address]

    def _accept(self, place: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                taken, address = place.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(place)
                    return
                raise
            ip = str(address[0])
            if self._unproven[ip] >= self._most and not self._known(ip):
                self.refused += 1
                taken.close()
                continue
            self._unproven[ip] += 1
            taken.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._connect(taken, ip))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _connect(self, taken: socket.socket, ip: str) -> None:
        made: list[_Guard] = []

        def guarded() -> _Guard:
            inner = self._factory()
            assert isinstance(inner, asyncio.Protocol)
            made.append(_Guard(inner, self, ip))
            return made[0]

        timeout = HANDSHAKE if self._tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                guarded, taken, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            if isinstance(error, TimeoutError | ConnectionAbortedError):
                self.late += 1
            taken.close()
            if made:
                made[0].prove()
            else:
                self.proven(ip)
            if isinstance(error, asyncio.CancelledError):
                raise

    def _pause(self, place: socket.socket) -> None:
        """Out of descriptors: those that are open end first."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(place)
        if (before := self._seldom.due("descriptors", loop.time())) is not None:
            log.warning("connections-wait", extra={"fields": {"open": len(self.guards), "held_back": before}})

        def again() -> None:
            if place in self._sockets:
                loop.add_reader(place, self._accept, place)

        loop.call_later(_FULL_PAUSE, again)


def bound(host: str, port: int, backlog: int) -> socket.socket:
    """A listening TCP socket. `::` takes both families where the kernel has both. Raises OSError."""
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = infos[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        made.bind(address)
        made.listen(backlog)
    except OSError:
        made.close()
        raise
    return made
