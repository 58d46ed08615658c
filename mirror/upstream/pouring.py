"""Ranges of a blob past the event loop: threads that block on connections of their own, and fill a Sink.

A way is learned from a good answer to an ordinary request: its URL, its authorization, its address. Whatever a way
does not answer with just the range that was asked, is asked in the ordinary manner, which knows all that may happen.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from multidict import CIMultiDict

from mirror.errors import NotAsAsked
from mirror.upstream.addresses import AddressRules
from mirror.upstream.answers import content_range
from mirror.upstream.coding import is_identity
from mirror.upstream.transport import prepared
from swarm.base.kept import Kept
from swarm.base.link import Link, Silent
from swarm.base.mailbox import Mailbox
from swarm.base.settled import settled
from swarm.blob.errors import SourceBroken, SourceSilent
from swarm.storage.intake import scratch
from swarm.upstream.download import PAUSE_IN_BODY
from swarm.upstream.source import Sink

THREADS = 16
"""Ranges at once, of all upstreams. Who finds no thread free goes by the loop: a slow upstream keeps nobody waiting."""

MOST_HEAD = 64 * 1024
"""Bytes of the longest head of an answer."""

MOST_KEPT = 32
"""Connections that are kept for the next range."""

KEPT_FOR = 15.0
"""Seconds for which one is kept. Many servers close an idle connection after a minute, some after twenty seconds."""

FAST = 4 * 1024 * 1024
"""Bytes per second from which on the kernel may gather bytes before it wakes the thread."""

SETTLED = 0.05
"""Seconds after which it is known how fast bytes come."""

_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n]*)?\r?\n")


@dataclass(frozen=True)
class Way:
    """Where a thread asks for ranges of one file. Holds secrets: not to be shown."""

    host: str
    """For errors and for the guard: host and port."""
    name: str = field(repr=False)
    """Of whom the certificate must be."""
    address: tuple[socket.AddressFamily, tuple[str, int]] = field(repr=False)
    rules: AddressRules = field(repr=False)
    encrypted: bool
    tls: ssl.SSLContext | None = field(repr=False)
    """None: as everybody does it."""
    path: str = field(repr=False)
    """With its query."""
    headers: Mapping[str, str] = field(repr=False)
    connect: float = 5.0
    """Seconds for TCP and TLS, each."""
    stall: float = 10.0
    """Seconds without a byte of a body."""
    patience: float = 40.0
    """Seconds without a byte of a head, after which it is over whatever the loop thinks."""

    @property
    def door(self) -> tuple[object, ...]:
        """What a kept connection must have in common with it."""
        return self.address, self.name, self.rules, self.encrypted, self.tls

    def request(self, start: int, stop: int) -> bytes:
        """A request for bytes [start, stop) (RFC 9110, 14.2). Raises NotAsAsked where a line would not stay one."""
        lines = [f"GET {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers.items())]
        lines.append(f"Range: bytes={start}-{stop - 1}")
        if any(end in line for line in lines for end in "\r\n\0"):
            raise NotAsAsked
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Head:
    """The head of an answer."""

    status: int
    headers: http.client.HTTPMessage
    keeps: bool
    """Whether the connection may be used again."""


def read_head(spelled: bytes) -> Head:
    """The head that *spelled* (without its end) is. Raises NotAsAsked: it is no HTTP/1."""
    match = _STATUS.match(spelled + b"\r\n")
    if match is None:
        raise NotAsAsked
    try:
        headers = http.client.parse_headers(io.BytesIO(spelled[match.end() :] + b"\r\n\r\n"))
    except (http.client.HTTPException, ValueError):
        raise NotAsAsked from None
    said = (headers.get("Connection") or "").lower()
    return Head(int(match[2]), headers, "close" not in said if match[1] == b"1" else "keep-alive" in said)


class Pouring:
    """The threads of one agent, and the connections that they keep. `pour` is for the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="shoal-upstream")
        self._busy = 0
        self.kept = Kept(MOST_KEPT, KEPT_FOR)
        """Connections by `Way.door`."""
        self._lock = threading.Lock()
        self._local = threading.local()
        self._tls: ssl.SSLContext | None = None

    @property
    def is_free(self) -> bool:
        """Whether a thread has nothing to do."""
        return self._busy < THREADS

    async def pour(self, way: Way, start: int, stop: int, total: int, sink: Sink, begun: Callable[[], None]) -> None:
        """Give bytes [start, stop) of a file of *total* bytes to *sink*. *begun*: the head of the answer is here.

        Cancelled, it returns when no thread touches *sink* any more. Raises NotAsAsked, SourceBroken, OSError of the
        connection (then *sink* got nothing), and what *sink* raises.
        """
        loop = asyncio.get_running_loop()
        run = _Run(self, way, start, stop, total, sink, Mailbox(loop), begun)
        self._busy += 1
        job = loop.run_in_executor(self._threads, run.run)
        try:
            await asyncio.shield(job)
        except asyncio.CancelledError:
            run.cut()
            await settled(job)  # the cancellation is what is raised
            raise
        finally:
            self._busy -= 1

    async def close(self) -> None:
        """End the threads, when nothing is under way any more."""
        await asyncio.to_thread(self._threads.shutdown)
        self.kept.close()

    # -- for the threads --------------------------------------------------------------------------

    def buffer(self) -> memoryview:
        """The calling thread's."""
        known: memoryview | None = getattr(self._local, "buffer", None)
        if known is None:
            known = self._local.buffer = scratch()
        return known

    def tls(self) -> ssl.SSLContext:
        """How everybody encrypts. To load the authorities takes milliseconds."""
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
                self._tls.set_alpn_protocols(["http/1.1"])
            return self._tls


class _Run:
    """One range, in a thread."""

    def __init__(
        self,
        pouring: Pouring,
        way: Way,
        start: int,
        stop: int,
        total: int,
        sink: Sink,
        mailbox: Mailbox,
        begun: Callable[[], None],
    ) -> None:
        self._pouring, self._way, self._sink, self._mailbox, self._begun = pouring, way, sink, mailbox, begun
        self._start, self._stop, self._total = start, stop, total
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        """Ends what the thread waits for."""
        self._over = False

    def cut(self) -> None:
        """It is not wanted any more. From any thread."""
        with self._lock:
            self._over = True
            if self._wake is not None:
                with suppress(OSError):
                    self._wake()

    def run(self) -> None:
        """See `Pouring.pour`."""
        link = self._pouring.kept.take(self._way.door)
        if link is not None:
            with suppress(ConnectionResetError):  # it may have died unseen: what a new one says counts
                self._ask(link)
                return
        self._ask(self._dial())

    def _waits(self, wake: Callable[[], None] | None) -> None:
        """The thread waits for something that *wake* ends; None: for nothing. Raises NotAsAsked: it is over."""
        with self._lock:
            self._wake = wake
            if self._over and wake is not None:
                raise NotAsAsked

    def _dial(self) -> Link:
        """A new connection. Raises OSError, NotAsAsked."""
        way = self._way
        family, address = way.address
        if not way.rules.allow(*address[:2]):
            raise NotAsAsked
        sock = prepared(socket.socket(family, socket.SOCK_STREAM))
        try:
            self._waits(partial(socket.socket.shutdown, sock, socket.SHUT_RDWR))
            sock.settimeout(way.connect)
            sock.connect(address)
            tls = (way.tls or self._pouring.tls()) if way.encrypted else None
            return Link(sock, tls, way.name, way.connect)
        except BaseException:
            self._waits(None)
            sock.close()
            raise

    def _ask(self, link: Link) -> None:
        keep = False
        try:
            self._waits(link.cut)
            buffer = self._pouring.buffer()
            head = self._head(link, buffer)
            self._check(head)
            self._mailbox.put(self._begun)
            self._body(link, buffer)
            keep = head.keeps
        finally:
            self._waits(None)
            if keep:
                self._pouring.kept.put(self._way.door, link)
            else:
                link.close()

    def _head(self, link: Link, buffer: memoryview) -> Head:
        try:
            link.send(self._way.request(self._start, self._stop))
            while True:
                head = read_head(link.head(buffer, self._way.patience, MOST_HEAD))
                if not 100 <= head.status < 200:  # RFC 9110, 15.2: any number of these may come before
                    return head
        except (ConnectionError, ssl.SSLError) as error:
            raise ConnectionResetError("closed before an answer") from error

    def _check(self, head: Head) -> None:
        """Raises NotAsAsked unless the answer is just the range."""
        headers = CIMultiDict(head.headers.items())
        if head.status != 206 or not is_identity(headers.get("Content-Encoding")):
            raise NotAsAsked(head.status)
        if "Transfer-Encoding" in headers or "Content-Length" not in headers:
            raise NotAsAsked
        try:
            at = content_range(head.status, headers, self._start, self._way.host)
        except SourceBroken:
            raise NotAsAsked from None
        if (at.offset, at.end, at.total) != (self._start, self._stop, self._total):
            raise NotAsAsked

    def _body(self, link: Link, buffer: memoryview) -> None:
        host, left = self._way.host, self._stop - self._start
        began = heard = time.monotonic()
        while left:
            if self._over:
                raise SourceBroken(f"{host}: not wanted any more")
            came = self._stop - self._start - left
            room = min(left, self._sink.room, len(buffer))
            try:
                count = link.fill(buffer[:room], left, fast=came > FAST * max(SETTLED, heard - began))
            except Silent:
                if time.monotonic() - heard > (min(self._way.stall, PAUSE_IN_BODY) if came else self._way.stall):
                    kind = SourceBroken if came else SourceSilent
                    raise kind(f"{host} did not answer in time") from None
                continue
            except OSError as error:
                raise SourceBroken(f"{host} cut the body short") from error
            if not count:
                raise SourceBroken(f"{host} cut the body short")
            heard, left = time.monotonic(), left - count
            self._sink.put(buffer[:count])
