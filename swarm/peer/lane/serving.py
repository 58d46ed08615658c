"""One connection that asks this node: a state machine over a non-blocking socket, for the thread that serves it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from swarm.blob.digest import Digest
from swarm.blob.errors import Malformed
from swarm.peer.lane import message
from swarm.peer.lane.message import END, MOST_HEAD, Request
from swarm.peer.lane.offers import Offer
from swarm.peer.lane.throttle import Throttle

log = logging.getLogger("shoal.swarm")

HEAD_DEADLINE = 2.0
"""Seconds in which a request must be complete once the connection is open or its first byte came; a handshake too."""

IDLE = 60.0
"""Seconds for which a connection is kept on which nothing is asked."""

SLOW = 8.0
"""Seconds in which who is sent to must take a step of SLOW_BYTES; it is dropped otherwise."""

SLOW_BYTES = 64 * 1024

_COPY = 128 * 1024
"""Bytes that are read from the file at once where the connection is encrypted."""


class Phase(Enum):
    """What a connection waits for."""

    HANDSHAKE = auto()
    HEAD = auto()
    """A request, or the rest of it."""
    LOOKUP = auto()
    """The event loop says whether the blob is here."""
    SENDING = auto()
    CLOSED = auto()


class Want(Enum):
    """What the socket must be ready for before the connection can go on."""

    READ = auto()
    WRITE = auto()
    NOTHING = auto()
    TURN = auto()
    """Its next turn: as many bytes were sent as may be."""


@dataclass(slots=True)
class Counts:
    """What one serving thread did. Written by it alone."""

    sent: int = 0
    """Bytes of pieces."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were refused, by reason (`message.REFUSALS`, or "other")."""
    dropped: int = 0
    """Connections closed because the other end was slow or said no HTTP."""


class Serving:
    """See the module. `step` is called when the socket is ready, `late` now and then."""

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        now: float,
        *,
        find: Callable[[Serving, Digest], Offer | None],
        may_send: Callable[[Serving], bool],
        counts: Counts,
        throttle: Throttle,
    ) -> None:
        """*find*: the offer, entered; None: `found` is called later. *may_send*: whether one more body may go out."""
        self.sock = sock
        self.address = address
        self.phase = Phase.HANDSHAKE if isinstance(sock, ssl.SSLSocket) else Phase.HEAD
        self.want = Want.READ
        self._find, self._may_send, self._counts, self._throttle = find, may_send, counts, throttle
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        self._in = bytearray()
        self._out = b""
        self._chunk = b""
        """Bytes of the file that are being encrypted."""
        self._offer: Offer | None = None
        self._at = self._stop = 0
        self._asked: Request | None = None
        self._keep = True
        self._since = now
        """When the phase began, or (sending) the last SLOW_BYTES had gone."""
        self._sent_then = 0
        self._sent = 0
        self._fresh = True
        """Nothing was asked on it yet."""

    @property
    def sending(self) -> bool:
        """Whether a body is on its way, or about to be: two hundred may ask before the first is looked up."""
        return self.phase is Phase.LOOKUP or (self.phase is Phase.SENDING and self._offer is not None)

    @property
    def length(self) -> int:
        """Bytes that are asked for; more than any blob has where that is not said."""
        asked = self._asked
        return sys.maxsize if asked is None or asked.stop is None else asked.stop - (asked.start or 0)

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for just these bytes, as who asks says."""
        return self._asked is not None and self._asked.urgent

    @property
    def since(self) -> float:
        """When what it does now began."""
        return self._since

    @property
    def idle(self) -> bool:
        """Whether nothing is asked of it."""
        return self.phase is Phase.HEAD and not self._in and not self._fresh

    def late(self, now: float) -> bool:
        """Whether the other end has taken too long; it is to be closed then."""
        if self.phase is Phase.SENDING:
            if self.want is Want.TURN or self._sent - self._sent_then >= SLOW_BYTES:
                self._since, self._sent_then = now, self._sent
            return now - self._since > SLOW
        if self.phase is Phase.LOOKUP:
            return False  # that is ours to answer, and bounded there
        return now - self._since > (IDLE if self.idle else HEAD_DEADLINE)

    def step(self, now: float, buffer: memoryview) -> None:
        """Go on as far as the socket lets us. *buffer*: for bytes on their way; nothing of it is kept."""
        try:
            self._step(now, buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as wait:
            self.want = Want.READ if isinstance(wait, ssl.SSLWantReadError) else Want.WRITE
        except BlockingIOError:
            self.want = Want.WRITE if self.phase is Phase.SENDING else Want.READ
        except Malformed:
            self._counts.dropped += 1
            self._refuse(400, b"", now)
            self._keep = False
        except (OSError, ValueError):
            self.close()

    def _step(self, now: float, buffer: memoryview) -> None:
        if self.phase is Phase.HANDSHAKE:
            assert isinstance(self.sock, ssl.SSLSocket)
            self.sock.do_handshake()
            self.phase, self._since = Phase.HEAD, now
        while True:
            if self.phase is Phase.HEAD:
                self._read(now, buffer)
            if self.phase is Phase.SENDING:
                self._send(now)
            if self.phase is not Phase.HEAD or END not in self._in:
                return

    # -- reading ----------------------------------------------------------------------------------

    def _read(self, now: float, buffer: memoryview) -> None:
        while END not in self._in:
            if len(self._in) > MOST_HEAD:
                raise Malformed("the head is too long")
            count = self.sock.recv_into(buffer, MOST_HEAD)
            if not count:
                self.close()
                return
            if not self._in and not self._fresh:
                self._since = now  # of a request on a kept connection
            self._in += buffer[:count]
        head, _, rest = bytes(self._in).partition(END)
        self._in = bytearray(rest)
        self._fresh = False
        self._take(message.read_request(head), now)

    def _take(self, asked: Request, now: float) -> None:
        self._asked, self._keep = asked, asked.keep
        if asked.method not in ("GET", "HEAD"):
            self._refuse(405, b"", now)
        elif asked.digest is None:
            self._refuse(404, b"", now, why="unknown")
        elif asked.method == "GET" and not self._may_send(self):
            self._refuse(503, b"", now, why="busy")
        else:
            self.phase, self.want = Phase.LOOKUP, Want.NOTHING
            if (offer := self._find(self, asked.digest)) is not None:
                self.found(offer, now)

    def found(self, offer: Offer | None, now: float) -> None:
        """What the event loop has of the blob that was asked for; an *offer* is entered, and left by us."""
        if self.phase is not Phase.LOOKUP or self._asked is None:
            if offer is not None:
                offer.leave()
            return
        asked = self._asked
        if offer is None:
            self._refuse(404, b"", now, why="unknown")
            return
        size = offer.layout.size
        start, stop = asked.start or 0, size if asked.stop is None else min(asked.stop, size)
        if asked.method == "HEAD":
            self._out = message.answer(200, size)
            offer.leave()
        elif asked.start is not None and start >= size:
            self._refuse(416, b"", now, total=size)
            offer.leave()
            return
        elif offer.lost or (ready := offer.ready(start, stop)) <= start or (asked.start is None and ready < size):
            self._refuse(503, offer.bitmap(), now, why="lacking", total=size)
            offer.leave()
            return
        else:
            # RFC 9110, 15.3.7: a server may send a part of what was asked. What is here goes out at once.
            partly = asked.start is not None
            self._out = message.answer(
                206 if partly else 200, ready - start, start=start if partly else None, total=size
            )
            self._offer, self._at, self._stop = offer, start, ready
            with contextlib.suppress(OSError):
                os.posix_fadvise(offer.fd, start, ready - start, os.POSIX_FADV_WILLNEED)
        self._begin(now)

    def _refuse(self, status: int, body: bytes, now: float, *, why: str = "", total: int | None = None) -> None:
        self._counts.refused[why or "other"] += 1
        if log.isEnabledFor(logging.DEBUG):
            digest = self._asked.digest if self._asked is not None else None
            log.debug(
                "lane-refused", extra={"fields": {"peer": self.address, "digest": digest, "why": why or str(status)}}
            )
        head = message.answer(status, len(body), total=total, why=why)
        self._out = head + (body if self._asked is None or self._asked.method != "HEAD" else b"")
        self._begin(now)

    def _begin(self, now: float) -> None:
        self.phase, self.want = Phase.SENDING, Want.WRITE
        self._since, self._sent_then = now, self._sent

    # -- sending ----------------------------------------------------------------------------------

    def _send(self, now: float) -> None:
        while self._out:
            flags = 0 if self._offer is None or self._encrypted else socket.MSG_MORE
            count = self.sock.send(self._out, flags) if flags else self.sock.send(self._out)
            self._out = self._out[count:]
        left = self._throttle.step(now)
        if not left and self._at < self._stop:
            self.want = Want.TURN
            return
        while self._at < self._stop:
            if left <= 0:
                self.want = Want.WRITE
                return
            assert self._offer is not None
            if self._offer.lost:
                self.close()  # the other end sees a short body
                return
            count = self._some(self._offer, min(left, self._stop - self._at))
            if not count:
                self.close()  # the file is shorter than its verified pieces: somebody truncated it
                return
            left -= count
            self._at += count
            self._sent += count
            self._counts.sent += count
            self._throttle.took(count, now)
        self._ended(now)

    def _some(self, offer: Offer, most: int) -> int:
        if not self._encrypted:
            return os.sendfile(self.sock.fileno(), offer.fd, self._at, most)
        if not self._chunk:  # what did not fit is sent by the next call: OpenSSL wants it with the same bytes
            self._chunk = os.pread(offer.fd, min(_COPY, most), self._at)
        count = self.sock.send(self._chunk) if self._chunk else 0
        self._chunk = self._chunk[count:]
        return count

    def _ended(self, now: float) -> None:
        offer, self._offer = self._offer, None
        if offer is not None:
            offer.leave()
        if not self._keep:
            self.close()
            return
        self.phase, self.want, self._since, self._asked = Phase.HEAD, Want.READ, now, None
        self._at = self._stop = 0

    def close(self) -> None:
        """The connection ends."""
        if self.phase is Phase.CLOSED:
            return
        self.phase, self.want = Phase.CLOSED, Want.NOTHING
        offer, self._offer = self._offer, None
        if offer is not None:
            offer.leave()
        with contextlib.suppress(OSError):
            self.sock.close()
