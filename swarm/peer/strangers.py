"""Who connects to the swarm port and proves nothing is gone soon, bounded by address, and then not even accepted.

libtorrent accepts by itself. It bounds connections by their number alone, and TLS handshakes not at all. Its sockets
are descriptors of this process, so they can be found from here, as `swarm/peer/nodelay.py` does. A connection counts
as proven from the moment at which libtorrent tells that its handshake succeeded.

`judge` decides and is pure. `Door` looks, shuts sockets down (libtorrent then reads an end), and tells the kernel to
drop the SYNs of an address that floods: a classic BPF filter on the listener, which needs no capability.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from swarm.base.seldom import Seldom

log = logging.getLogger("shoal.swarm")

PATIENCE = 5.0
"""Seconds in which a connection has to prove itself while few are unproven: both nodes may be overloaded."""

HURRY = 1.0
"""Seconds for it while more than CALM are unproven: two round trips, and libtorrent's tick."""

CALM = 64
"""Unproven connections up to which nobody is in a hurry."""

PER_ADDRESS = 512
"""Unproven connections of one address: an agent dials 500 a second at most, and each proves itself in milliseconds."""

IN_ALL = 2048
"""Unproven connections of all addresses: half of what libtorrent takes (`connections_limit`)."""

BARRED = 10.0
"""Seconds for which an address that floods is not accepted. Not if it has proven itself on another connection: behind
a NAT an agent and a stranger are one address."""

MOST_BARRED = 200
"""Addresses that the filter names: it is run for each packet."""

_AGAIN = 0.25
"""Seconds until the next look while there is a flood."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_LOAD_BYTE, _LOAD_WORD, _IF_EQUAL, _IF_SET, _RETURN = 0x30, 0x20, 0x15, 0x45, 0x06
_NET = 0xFFF00000
"""Offset of the IP header in a filter that begins at the TCP header (SKF_NET_OFF, linux/filter.h)."""
_SYN = 0x02
_FLAGS = 13


class Accepted(NamedTuple):
    """An accepted connection: descriptor, and the other end."""

    fd: int
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from a look."""

    close: tuple[Accepted, ...] = ()
    bar: frozenset[str] = frozenset()
    """Addresses that flood."""

    @property
    def flood(self) -> bool:
        """Whether to look again soon."""
        return len(self.close) > CALM or bool(self.bar)


def judge(since: Mapping[Accepted, float], proven: Collection[tuple[str, int]], now: float) -> Judgement:
    """Whom to close and to bar. *since*: the open connections and when each was seen first; *proven*: other ends."""
    unproven = sorted((at, one) for one, at in since.items() if (one.ip, one.port) not in proven)
    patience = HURRY if len(unproven) > CALM else PATIENCE
    of = Counter(one.ip for _, one in unproven)
    honest = {ip for ip, _ in proven}
    bar = frozenset(ip for ip, count in of.items() if count > PER_ADDRESS and ip not in honest)
    over, most = Counter({ip: count - PER_ADDRESS for ip, count in of.items()}), len(unproven) - IN_ALL
    close = []
    for at, one in unproven:  # the oldest first: who is honest is through in milliseconds
        if now - at >= patience or over[one.ip] > 0 or most > 0 or one.ip in bar:
            close.append(one)
            over[one.ip] -= 1
            most -= 1
    return Judgement(tuple(close), bar)


def program(barred: Iterable[str], family: socket.AddressFamily) -> bytes:
    """The filter that drops the SYNs of *barred* addresses of *family* and lets all else through (struct sock_filter).

    Accepted sockets inherit it: so it looks at nothing but SYNs.
    """
    steps = [(_LOAD_BYTE, 0, 0, _FLAGS), (_IF_SET, 1, 0, _SYN), (_RETURN, 0, 0, 0xFFFFFFFF)]
    source = 12 if family == socket.AF_INET else 8
    for ip in barred:
        packed = ip_address(ip).packed
        if len(packed) != (4 if family == socket.AF_INET else 16):
            continue
        words = struct.unpack(f">{len(packed) // 4}I", packed)
        for index, word in enumerate(words):
            steps.append((_LOAD_WORD, 0, 0, _NET + source + 4 * index))
            steps.append((_IF_EQUAL, 0, 2 * (len(words) - index - 1) + 1, word))  # else: past this address
        steps.append((_RETURN, 0, 0, 0))
    steps.append((_RETURN, 0, 0, 0xFFFFFFFF))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


@dataclass(slots=True)
class _Seen:
    """What there is at the port: listeners as (descriptor, family), and accepted connections."""

    listeners: list[tuple[int, socket.AddressFamily]] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)


def look(port: int) -> _Seen:
    """The sockets of this process at TCP *port*. Blocks for some microseconds per descriptor."""
    seen = _Seen()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # thousands of them: no Path for each
        with contextlib.suppress(OSError):  # no socket, or gone since
            _place(int(name), port, seen)
    return seen


def _place(fd: int, port: int, seen: _Seen) -> None:
    sock = socket.socket(fileno=fd)
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            return
        if sock.getsockname()[1] != port:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            seen.listeners.append((fd, socket.AddressFamily(sock.family)))
        else:
            ip, theirs = sock.getpeername()[:2]
            seen.accepted.append(Accepted(fd, _plain(str(ip)), int(theirs)))
    finally:
        sock.detach()


def _plain(ip: str) -> str:
    return ip.removeprefix("::ffff:") if "." in ip else ip


def shut(one: Accepted) -> bool:
    """Shut *one* down, if the descriptor is still that connection's. libtorrent sees its end and closes it."""
    try:
        sock = socket.socket(fileno=one.fd)
    except OSError:
        return False
    try:
        ip, port = sock.getpeername()[:2]
        if (_plain(str(ip)), port) != (one.ip, one.port):
            return False
        sock.shutdown(socket.SHUT_RDWR)
    except (OSError, ValueError):
        return False
    finally:
        sock.detach()
    return True


def bar(fd: int, family: socket.AddressFamily, addresses: Collection[str]) -> bool:
    """Have the kernel drop the SYNs that come to the listener *fd* from *addresses*; False: it cannot."""
    with contextlib.suppress(OSError):
        sock = socket.socket(fileno=fd)
        try:
            if not addresses:
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
                return True
            code = program(sorted(addresses), family)
            buffer = ctypes.create_string_buffer(code, len(code))
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))
            )
            return True
        finally:
            sock.detach()
    return False


class Door:
    """Keeps the swarm port of a session free of strangers. On the event loop; looks in a thread."""

    def __init__(self, port: int, heard: Callable[[], None]) -> None:
        """*heard*: takes in what libtorrent has told until now, so that nobody who is proven counts as a stranger."""
        self._port = port
        self._heard = heard
        self._proven: set[tuple[str, int]] = set()
        self._since: dict[Accepted, float] = {}
        self._barred: dict[str, float] = {}
        """Address -> until when."""
        self._looking: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._seldom = Seldom()
        self._closed = False
        self.shut = 0
        """Connections shut down so far."""

    def proven(self, ip: str, port: int) -> None:
        """A handshake with the other end *ip*:*port* succeeded."""
        self._proven.add((_plain(ip), port))

    def gone(self, ip: str, port: int) -> None:
        """That connection ended."""
        self._proven.discard((_plain(ip), port))

    def look(self) -> None:
        """Look who is at the door, unless that goes on already."""
        if not self._closed and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self.tidy())

    def close(self) -> None:
        """No more looks."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()

    async def tidy(self) -> None:
        """One look, and what follows from it."""
        loop = asyncio.get_running_loop()
        seen = await asyncio.to_thread(look, self._port)
        if self._closed:
            return
        self._heard()
        now = loop.time()
        self._since = {one: self._since.get(one, now) for one in seen.accepted}
        found = judge(self._since, self._proven, now)
        for one in found.close:
            self.shut += shut(one)
        self._bar(found.bar, seen.listeners, now)
        for ip, count in Counter(one.ip for one in found.close).items():
            if (before := self._seldom.due(ip, now)) is not None:
                fields = {"from": ip, "closed": count, "not_accepted": ip in self._barred, "held_back": before}
                log.warning("strangers-closed", extra={"fields": fields})
        if found.flood:
            self._again = loop.call_later(_AGAIN, self.look)

    def _bar(self, more: Collection[str], listeners: Iterable[tuple[int, socket.AddressFamily]], now: float) -> None:
        kept = {ip: until for ip, until in self._barred.items() if until > now}
        for ip in more:
            if len(kept) < MOST_BARRED:
                kept[ip] = now + BARRED
        if kept.keys() != self._barred.keys():
            for fd, family in listeners:
                bar(fd, family, kept)
        self._barred = kept
