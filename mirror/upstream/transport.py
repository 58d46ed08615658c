"""One HTTP exchange with an upstream: pooled connections, deadlines, address rules, and no foreign exception.

Everything above this file sees aiohttp's answers but never its errors, and never a URL in an error:
URLs carry signatures.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mirror.errors import Forbidden, TimedOut, Unreachable
from mirror.upstream.addresses import AddressRules, Place, place_of_address
from mirror.upstream.registries import place_of
from swarm.blob.errors import SourceBroken, SourceError, SourceRefused, SourceSilent


@dataclass(frozen=True)
class Deadlines:
    """How long each step of an exchange may take, in seconds."""

    connect: float = 5.0
    """DNS, TCP and TLS. Two lost SYNs (1 s, 3 s) still get through."""

    first_byte: float = 10.0
    """From the beginning to the headers, where the host answers nothing at all: a black hole is known after that."""

    slow: float = 40.0
    """The same where the host is alive: caches and cold object stores fetch a layer before its first byte."""

    stall: float = 10.0
    """Without a single byte in the body."""


T = TypeVar("T")

UNACKNOWLEDGED = 4500
"""Milliseconds for which sent bytes may stay without an acknowledgement. A pooled connection that a firewall forgot
is found out after that; two lost SYNs still get through."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
"""An idle connection that was forgotten is found out while it is idle."""

HOP_HEADER = "Shoal-Hop"
"""Marks the requests of agents. An agent that is asked by an agent answers 404: rings of mirrors end at once."""

ALWAYS = {"User-Agent": "shoal", "Accept-Encoding": "identity", HOP_HEADER: "1"}
"""Sent with every request."""

READ_BUFFER = 64 << 10
"""Bytes that may wait unread per connection before reading pauses (at twice this). More seems faster, and is not:
what waits is in the kernel's buffer anyway, and bytes that are taken while they are in the CPU's cache cost less.
512 KiB and more took 0.84-1.1 CPU-seconds per GiB where this takes 0.46-0.75 (loopback, uvloop; asyncio: equal)."""


PING = 1.0
"""Seconds that a host has at least to show that it is alive."""

_IDEMPOTENT = frozenset({"GET", "HEAD"})


@dataclass(frozen=True)
class Request:
    """One request as it goes out. *url* and *headers* hold secrets and must not be shown."""

    method: str
    url: URL = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None
    form: Mapping[str, str] | None = field(default=None, repr=False)
    proxy: URL | None = field(default=None, repr=False)
    first_byte: float | None = None
    """Seconds to the headers, in place of the general bound: there is another place to ask."""

    @property
    def is_idempotent(self) -> bool:
        """Whether it may be sent once more."""
        return self.method in _IDEMPOTENT


@dataclass
class _Connection:
    """What became of one request's connection."""

    reused: bool = False
    sock: socket.socket | None = None

    def received(self) -> int:
        """Bytes that the kernel has received on it (Linux, `struct tcp_info`)."""
        if self.sock is None:
            return 0
        with contextlib.suppress(OSError):
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
            if len(info) == _BYTES_RECEIVED + 8:
                return int.from_bytes(info[_BYTES_RECEIVED:], sys.byteorder)
        return 0


_BYTES_RECEIVED = 128
"""Offset of `tcpi_bytes_received`."""

_ASKING: ContextVar[_Connection] = ContextVar("shoal-upstream-connection")


class _Connector(aiohttp.TCPConnector):
    """Tells the request that asks for a connection which one it got."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """See aiohttp."""
        found = await super().connect(req, traces, timeout)
        asking = _ASKING.get(None)
        if asking is not None and found.transport is not None:
            asking.sock = found.transport.get_extra_info("socket")
        return found


async def _reused(_: aiohttp.ClientSession, trace: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams) -> None:
    trace.trace_request_ctx.reused = True


def _by(request: Request, headers: Mapping[str, str]) -> dict[str, Any]:
    """How aiohttp is told of the request's proxy and *headers*: what opens the proxy apart from where it is."""
    proxy = request.proxy
    if proxy is None:
        return {"headers": headers}
    told: dict[str, str] = {}
    if proxy.user:
        pair = f"{proxy.user}:{proxy.password or ''}".encode()
        told["Proxy-Authorization"] = f"Basic {base64.b64encode(pair).decode('ascii')}"
    if request.url.scheme == "https":  # it is for the tunnel, and not for who is at its end
        return {"headers": headers, "proxy": proxy.with_user(None), "proxy_headers": told}
    return {"headers": {**headers, **told}, "proxy": proxy.with_user(None)}


Places = MutableMapping[str, Place]
"""Where hosts turned out to be, by name."""


class Resolver(AbstractResolver):
    """DNS as ever, and a note of where each name leads: a name with any public address counts as public."""

    def __init__(self, places: Places) -> None:
        self._inner = aiohttp.DefaultResolver()
        self._places = places

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of *host*."""
        found = await self._inner.resolve(host, port, family)
        if found:
            self._places[host.lower()] = min(place_of_address(entry["host"]) for entry in found)
        return found

    async def close(self) -> None:
        """Ask no more."""
        await self._inner.close()


@dataclass
class _Patience:
    """How long one request waits for the head of its answer. *first*, *until*: seconds, and loop time at the most."""

    first: float
    until: float
    received: Callable[[], int]
    extended: bool = False
    _before: int = 0
    _look: asyncio.TimerHandle | None = None

    def watch(self, limit: asyncio.Timeout) -> None:
        """Look now and then whether the head comes byte by byte: then it is not waited for."""
        self._before = self.received()
        self._look = asyncio.get_running_loop().call_later(self.first / 2, self._trickles, limit)

    def extend(self, limit: asyncio.Timeout) -> None:
        """The host is alive."""
        if limit.when() is not None and not limit.expired():
            with contextlib.suppress(RuntimeError):  # it is over
                limit.reschedule(self.until)
                self.extended = True

    def end(self) -> None:
        """It waits no more."""
        if self._look is not None:
            self._look.cancel()

    def _trickles(self, limit: asyncio.Timeout) -> None:
        if self.received() == self._before:
            self.watch(limit)
            return
        with contextlib.suppress(RuntimeError):  # it is over
            limit.reschedule(asyncio.get_running_loop().time())
            self.extended = True


class AddressRefused(OSError):
    """The address rules forbid the connection."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "address not allowed")


@contextlib.contextmanager
def translated(host: str) -> Iterator[None]:
    """Turn what aiohttp, ssl and the system raise into our errors. *host* is all that a message tells.

    `from None` on purpose: the original's text and its request carry the URL.
    """
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            raise SourceBroken(f"{host}: its certificate cannot be verified") from None
        if isinstance(error.os_error, AddressRefused) or error.os_error.errno == errno.EACCES:
            raise Forbidden(f"{host} has an address that is not contacted") from None
        raise SourceBroken(f"{host}: {_reason(error)}") from None
    except TimeoutError:
        raise TimedOut(f"{host} did not answer in time") from None
    except aiohttp.ClientPayloadError:
        raise SourceBroken(f"{host} cut the body short") from None
    except aiohttp.InvalidURL:
        raise SourceRefused(f"{host}: the URL is invalid", status=400) from None
    except ssl.CertificateError:
        raise SourceBroken(f"{host}: its certificate cannot be verified") from None
    except aiohttp.ClientError as error:
        raise SourceBroken(f"{host}: {_reason(error)}") from None
    except OSError as error:
        raise SourceBroken(f"{host}: {_reason(error)}") from None
    except (ValueError, aiohttp.http_exceptions.HttpProcessingError):
        # A host name that IDNA refuses, a header that no parser takes.
        raise SourceBroken(f"{host} cannot be asked, or answered no HTTP") from None


def _reason(error: Exception) -> str:
    """A word for *error*, never its own text."""
    if isinstance(error, (aiohttp.ClientConnectorDNSError, socket.gaierror)):
        return "name not found"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return "no TLS connection"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "disconnected"
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "connection failed")
    return type(error).__name__


def prepared(made: socket.socket) -> socket.socket:
    """*made*, which will notice when the other end is gone."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


class Transport:
    """A pool of connections that obeys one set of address rules. Made inside a running loop."""

    def __init__(self, rules: AddressRules, deadlines: Deadlines, places: Places | None = None) -> None:
        """*places*: where the hosts that are asked turn out to be is noted there."""
        self.rules = rules
        """Which addresses it connects to."""
        self.deadlines = deadlines
        """How long it waits."""
        self._patience = max(deadlines.slow, deadlines.stall)
        self._resolver = None if places is None else Resolver(places)
        self._pooled = self._session(keep=True)
        self._fresh = self._session(keep=False)
        self._pings: dict[str, asyncio.Task[bool]] = {}

    def _session(self, *, keep: bool) -> aiohttp.ClientSession:
        connector = _Connector(
            limit=0,  # mirror/upstream/guard.py bounds requests per host, and can say which wait; the pool could not
            limit_per_host=0,
            ttl_dns_cache=30,
            socket_factory=self._socket,
            resolver=self._resolver,
            **({"keepalive_timeout": 30.0} if keep else {"force_close": True}),
        )
        traces = aiohttp.TraceConfig()
        traces.on_connection_reuseconn.append(_reused)
        session = aiohttp.ClientSession(
            connector=connector,
            trace_configs=[traces],
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            trust_env=False,
            skip_auto_headers=("Accept",),
            headers=ALWAYS,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self.deadlines.connect, sock_read=self._patience, ceil_threshold=60.0
            ),
        )
        # aiohttp would try once more on another pooled connection, which may be as dead; we take a new one.
        session._retry_connection = False  # noqa: SLF001
        return session

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Called for every connection with the address that DNS gave: the only moment at which a rule is safe."""
        family, kind, protocol, _, address = info
        if not self.rules.allow(str(address[0]), int(address[1])):
            raise AddressRefused
        return prepared(socket.socket(family=family, type=kind, proto=protocol))

    @contextlib.asynccontextmanager
    async def exchange(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; redirects are not followed.

        Leaving before the body's end closes the connection; after it, the connection is kept.
        Raises SourceBroken or SourceRefused.
        """
        answer = await self._send(request)
        if answer.connection is not None and (protocol := answer.connection.protocol) is not None:
            protocol.read_timeout = self.deadlines.stall  # until here the time to the first byte counted
        try:
            yield answer
        finally:
            if answer.content.at_eof():
                answer.release()
            else:
                answer.close()

    async def _send(self, request: Request) -> aiohttp.ClientResponse:
        host = place_of(request.url)
        connection = _Connection()
        try:
            return await self._within(self._pooled, request, host, connection)
        except SourceBroken:
            if not (request.is_idempotent and connection.reused):
                raise
            # It may have died unseen: what a new one says counts.
            return await self._within(self._fresh, request, host, connection)

    async def _within(
        self, session: aiohttp.ClientSession, request: Request, host: str, connection: _Connection
    ) -> aiohttp.ClientResponse:
        """The answer in the time that upstream is given."""
        token = _ASKING.set(connection)
        try:
            with translated(host):
                return await self.in_time(
                    request,
                    session.request(
                        request.method,
                        request.url,
                        ssl=True if request.tls is None else request.tls,
                        data=request.form,
                        allow_redirects=False,
                        trace_request_ctx=connection,
                        **_by(request, request.headers),
                    ),
                    connection.received,
                )
        finally:
            _ASKING.reset(token)

    async def in_time(self, request: Request, answer: Awaitable[T], received: Callable[[], int] = lambda: 0) -> T:
        """*answer*, in the time that upstream is given for its first byte: more of it while a ping shows that the host
        is alive. *received*: bytes of this answer's head so far. Raises Unreachable, SourceSilent.
        """
        loop, host = asyncio.get_running_loop(), place_of(request.url)
        first = self.deadlines.first_byte if request.first_byte is None else request.first_byte
        patient = _Patience(first, loop.time() + self.deadlines.slow, received)
        try:
            async with asyncio.timeout(first) as limit:
                look = loop.call_later(first / 2, self._extend, request, limit, patient)
                try:
                    return await answer
                finally:
                    look.cancel()
                    patient.end()
        except TimeoutError:
            if patient.extended or request.first_byte is not None:
                raise SourceSilent(f"{host} did not answer in time") from None
            raise Unreachable(f"{host} did not answer in time") from None

    def _extend(self, request: Request, limit: asyncio.Timeout, patient: _Patience) -> None:
        """Give a request more time if the host answers something else meanwhile."""
        if request.first_byte is not None:
            return
        patient.watch(limit)

        def told(done: asyncio.Task[bool]) -> None:
            if not done.cancelled() and done.result():
                patient.extend(limit)

        self.ping(request).add_done_callback(told)

    def ping(self, request: Request) -> asyncio.Task[bool]:
        """Whether the host of *request* answers anything at all on a new connection; one question for all who ask."""
        key = str(request.url.origin()) if request.url.host else ""
        task = self._pings.get(key)
        if task is None:
            task = asyncio.create_task(self._ping(request))
            self._pings[key] = task
            task.add_done_callback(lambda _: self._pings.pop(key, None))
        return task

    async def _ping(self, request: Request) -> bool:
        url = request.url.with_path("/v2/").with_query(None)
        with contextlib.suppress(SourceError), translated(place_of(url)):
            async with (
                asyncio.timeout(max(self.deadlines.first_byte / 2, PING)),
                self._fresh.get(
                    url,
                    ssl=True if request.tls is None else request.tls,
                    allow_redirects=False,
                    trace_request_ctx=_Connection(),
                    **_by(request, {}),
                ),
            ):
                return True
        return False

    async def close(self) -> None:
        """Close every connection."""
        pings = list(self._pings.values())
        for ping in pings:
            ping.cancel()
        await asyncio.gather(*pings, return_exceptions=True)
        await self._pooled.close()
        await self._fresh.close()
        if self._resolver is not None:  # aiohttp closes only one of its own
            await self._resolver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
