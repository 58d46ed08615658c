"""TLS over a plain socket that a thread blocks on, by memory BIOs.

The socket stays a plain one: the kernel gathers bytes before it wakes the thread, and one read takes many records.
An `ssl.SSLSocket` reads each record of 16 KiB by itself, in two reads and a poll.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable

WIRE = 128 * 1024
"""Bytes that are read from the socket at once."""


class Sealed:
    """See the module. For one thread. *sock* has its deadlines in the kernel (SO_RCVTIMEO, SO_SNDTIMEO)."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str | None, patience: float) -> None:
        """Shake hands within *patience* seconds; the other end must show a certificate of *host*. Raises OSError."""
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]  # with a buffer
        self._wire = memoryview(bytearray(WIRE))
        until = time.monotonic() + patience
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                with contextlib.suppress(BlockingIOError):
                    if not self._more():
                        raise ConnectionResetError("closed amid the handshake") from None
                if time.monotonic() > until:
                    raise TimeoutError("no handshake in time") from None
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the other end is told why
                raise
        self._flush()

    @property
    def pending(self) -> bool:
        """Whether something came that nobody has read."""
        return self._in.pending > 0 or self._tls.pending() > 0

    def sendall(self, data: bytes) -> None:
        """Send all of *data*. Raises OSError."""
        self._tls.write(data)
        self._flush()

    def recv_into(self, buffer: memoryview) -> int:
        """What is there, as far as *buffer* goes; 0: the other end closed. Raises BlockingIOError, OSError."""
        come = 0
        while come < len(buffer):
            try:
                count = self._read(len(buffer) - come, buffer[come:])
            except ssl.SSLWantReadError:
                if come:
                    return come
                if not self._more():
                    return 0
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return come
            if not count:
                return come
            come += count
        return come

    def _more(self) -> int:
        """Bytes that came from the socket; 0: the other end closed. Raises BlockingIOError, OSError."""
        self._flush()  # TLS itself may have something to say, as after a KeyUpdate (RFC 8446, 4.6.3)
        count = self._sock.recv_into(self._wire)
        if count:
            self._in.write(self._wire[:count])
        return count

    def _flush(self) -> None:
        if self._out.pending:
            self._sock.sendall(self._out.read())
