"""One HTTP exchange with an upstream: pooled connections, deadlines, address rules, and no foreign exception.

Everything above this file sees aiohttp's answers but never its errors, and never a URL in an error:
URLs carry signatures.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from mirror.upstream.addresses import AddressRules
from mirror.upstream.registries import Forbidden, place_of
from swarm.blob.errors import SourceBroken, SourceRefused


@dataclass(frozen=True)
class Deadlines:
    """How long each step of an exchange may take, in seconds."""

    connect: float = 5.0
    """TCP and TLS. Two lost SYNs (1 s, 3 s) still get through."""

    first_byte: float = 15.0
    """From the request to the headers; registries in front of cold object stores need seconds."""

    stall: float = 30.0
    """Without a single byte in the body."""


READ_BUFFER = 64 << 10
"""Bytes that may wait unread per connection before reading pauses (at twice this). More seems faster, and is not:
what waits is in the kernel's buffer anyway, and bytes that are taken while they are in the CPU's cache cost less.
512 KiB and more took 0.84-1.1 CPU-seconds per GiB where this takes 0.46-0.75 (loopback, uvloop; asyncio: equal)."""


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
        raise SourceBroken(f"{host} did not answer in time") from None
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


class Transport:
    """A pool of connections that obeys one set of address rules. Made inside a running loop."""

    def __init__(self, rules: AddressRules, deadlines: Deadlines) -> None:
        self._rules = rules
        self._deadlines = deadlines
        connector = aiohttp.TCPConnector(
            limit=0,  # mirror/upstream/guard.py bounds requests per host, and can say which wait; the pool could not
            limit_per_host=0,
            keepalive_timeout=30.0,
            ttl_dns_cache=30,
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            trust_env=False,
            skip_auto_headers=("Accept",),
            headers={"User-Agent": "shoal", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=deadlines.connect, sock_read=deadlines.stall, ceil_threshold=60.0
            ),
        )

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Called for every connection with the address that DNS gave: the only moment at which a rule is safe."""
        family, kind, protocol, _, address = info
        if not self._rules.allow(str(address[0])):
            raise AddressRefused
        return socket.socket(family=family, type=kind, proto=protocol)

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        tls: ssl.SSLContext | None = None,
        data: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; redirects are not followed.

        Leaving before the body's end closes the connection; after it, the connection is kept.
        Raises SourceBroken or SourceRefused.
        """
        answer = await self._send(method, url, headers, tls, data)
        try:
            yield answer
        finally:
            if answer.content.at_eof():
                answer.release()
            else:
                answer.close()

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        data: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        with translated(place_of(url)):
            async with asyncio.timeout(self._deadlines.connect + self._deadlines.first_byte):
                return await self._session.request(
                    method, url, headers=headers, ssl=True if tls is None else tls, data=data, allow_redirects=False
                )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
