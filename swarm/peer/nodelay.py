"""Turn Nagle's algorithm off on the sockets that libtorrent opens.

libtorrent 2.1 leaves it on and has no setting for it. A fresh peer connection then waits 40-45 ms
between its handshake and its first request, for the other side's delayed ACK (measured with one
window on loopback: 45 ms until the first piece, 3 ms without); every window pays that. Accepted
sockets inherit the option from the listener, dialled ones must be found: the kernel refuses the
option on anything that is no TCP socket, so asking for it on every descriptor is safe.
"""

from __future__ import annotations

import ctypes
import os
import socket

_libc = ctypes.CDLL(None, use_errno=True)
_one = ctypes.c_int(1)
_size = ctypes.sizeof(_one)


def quicken(known: set[int]) -> set[int]:
    """Set TCP_NODELAY on every TCP socket of this process but those with the descriptors *known*; all that have it now.

    About 1 us for each that is not known, and 0.4 for each that is.
    """
    quick = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # called per dial: no Path for each
        fd = int(name)
        if fd in known or not _libc.setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_NODELAY, ctypes.byref(_one), _size):
            quick.add(fd)
    return quick
