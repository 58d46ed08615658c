"""A connection to somebody who gives bytes over HTTP/1.1, for a thread that blocks on it."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
import threading
import time

from swarm.base.sealed import Sealed

END = b"\r\n\r\n"
"""What a head ends with."""

TICK = 0.5
"""Seconds after which a read that brings nothing returns, so that the thread can look at its deadlines."""

WHOLE_HEAD = 3.0
"""Seconds in which a head must be complete, once its first byte has come."""

LOW_WATER = 64 * 1024
"""Bytes that the kernel gathers before it wakes the thread. On links of 200 Mbit/s a wakeup for every few KiB costs
a fifth of all CPU. At most half of the receive buffer, or a reader would stand still for ever."""


class Silent(OSError):
    """Nothing came within TICK."""

    def __init__(self) -> None:
        super().__init__("nothing came")


class Link:
    """See the module. All but `cut` is for the one thread that uses it."""

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLContext | None = None, host: str | None = None, patience: float = 2.0
    ) -> None:
        """*sock* is connected. *tls*: encrypted; the other end must show a certificate of *host*, within *patience*
        seconds. Raises OSError.
        """
        self._sock = sock
        self._lock = threading.Lock()
        self._open = True
        self._lead = b""
        """Bytes of the body that came with the head."""
        self._low = 1
        with contextlib.suppress(OSError):  # a socket pair has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's own deadline: a timeout of Python's costs a poll() before every read.
        sock.settimeout(None)
        deadline = struct.pack("@ll", int(TICK), int(TICK % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
        self._sealed = None if tls is None else Sealed(sock, tls, host, patience)

    def send(self, data: bytes) -> None:
        """Send a request. Raises OSError."""
        (self._sealed or self._sock).sendall(data)

    def head(self, buffer: memoryview, patience: float, most: int) -> bytes:
        """The head of the answer without its end, at most *most* bytes; the body follows from `fill`.

        *patience*: seconds without a byte. Raises Silent after that, and goes on when called again; OSError.
        """
        self._gather(1)
        head = bytearray(self._lead)
        self._lead = b""
        ticks = max(1, int(patience / TICK))
        began: float | None = None
        while END not in head:
            if len(head) > most or (began is not None and time.monotonic() - began > WHOLE_HEAD):
                raise OSError(errno.EMSGSIZE, "the head has no end")
            try:
                count = self._receive(buffer[: most + 1])
            except Silent:
                ticks -= 1
                if ticks <= 0:
                    self._lead = bytes(head)
                    raise
                continue
            if not count:
                raise ConnectionResetError("closed before an answer")
            head += buffer[:count]
            began = began or time.monotonic()
        spelled, _, self._lead = bytes(head).partition(END)
        return spelled

    def fill(self, buffer: memoryview, left: int, *, fast: bool = True) -> int:
        """Bytes of the body into *buffer*; 0: the other end closed. *left*: bytes of the body that are to come.

        *fast*: many may be gathered before the thread is woken. Raises Silent after TICK, OSError.
        """
        if self._lead:
            count = min(len(self._lead), len(buffer))
            buffer[:count] = self._lead[:count]
            self._lead = self._lead[count:]
            return count
        self._gather(LOW_WATER if fast and left >= 2 * LOW_WATER else 1)
        return self._receive(buffer)

    def _receive(self, buffer: memoryview) -> int:
        try:
            return (self._sealed or self._sock).recv_into(buffer)
        except BlockingIOError:
            raise Silent from None

    def _gather(self, low: int) -> None:
        if low != self._low:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
            self._low = low

    def stale(self) -> bool:
        """Whether the other end has closed a kept connection, or said something unasked."""
        if self._sealed is not None and self._sealed.pending:
            return True
        try:
            look = select.poll()
            look.register(self._sock, select.POLLIN)
            return bool(look.poll(0))
        except (OSError, ValueError):
            return True

    def cut(self) -> None:
        """Wake the thread that reads: the connection is of no use any more. From any thread."""
        with self._lock:
            if self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """The end. May be called again."""
        with self._lock:
            self._open = False
            with contextlib.suppress(OSError):
                self._sock.close()


def dial(
    address: tuple[str, int],
    *,
    source: str | None = None,
    tls: ssl.SSLContext | None = None,
    host: str | None = None,
    patience: float = 2.0,
) -> Link:
    """A connection to *address*, from the address *source* if given. Blocks for *patience* seconds. Raises OSError.

    *tls*: encrypted; the other end must show a certificate of *host*.
    """
    sock = socket.create_connection(address, timeout=patience, source_address=(source, 0) if source else None)
    try:
        return Link(sock, tls, host, patience)
    except BaseException:
        sock.close()
        raise
