"""Memory of a server: Python's cyclic garbage collector out of the way, and freed bytes given back.

A started agent has half a million long-lived objects (modules, classes, metrics); every full collection walks all of
them: half of the main thread's time in a profile of an agent under load, and pauses of tens of milliseconds.

glibc gives each thread an arena of its own and, once some large block was freed, keeps blocks up to 32 MiB for later:
an agent that moved 2 GiB through a dozen threads stood at 275-340 MiB. One arena ends that. The other extreme, handing
every buffer straight back to the kernel, costs a page fault for each 4 KiB received: aiohttp took 1.7 CPU-seconds per
GiB so, and takes 0.3-0.4 where buffers of a socket's or a piece's size are kept.
"""

from __future__ import annotations

import ctypes
import gc

YOUNG = 20_000
"""Allocations between two collections of the youngest generation: Python's 700 runs several times per request."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


KEPT = 1024 * 1024
"""Bytes. Blocks below are kept for the next buffer of that kind: asyncio reads sockets into 256 KiB, pieces are up to
1 MiB. Longer ones go straight back to the kernel."""

SPARE = 8 * 1024 * 1024
"""Bytes at the end of the heap that are kept: a few windows' worth of buffers."""


def give_back() -> None:
    """Call before the first thread starts: one arena, no more than SPARE kept for later. glibc only."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, KEPT)
        mallopt(_M_TRIM_THRESHOLD, SPARE)


def settle() -> None:
    """Call once after start-up: what exists now is never looked at again, the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
