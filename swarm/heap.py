"""Memory of a server: Python's cyclic garbage collector out of the way, and freed bytes given back.

A started agent has half a million long-lived objects (modules, classes, metrics); every full collection walks all of
them: half of the main thread's time in a profile of an agent under load, and pauses of tens of milliseconds.

glibc gives each thread an arena of its own and, once some large block was freed, keeps blocks up to that size for
later: an agent that moved 2 GiB through a dozen threads stood at 275-340 MiB, and at 160-230 MiB without both.
"""

from __future__ import annotations

import ctypes
import gc

YOUNG = 20_000
"""Allocations between two collections of the youngest generation: Python's 700 runs several times per request."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def give_back() -> None:
    """Call before the first thread starts: one arena, large blocks straight from and to the kernel. glibc only."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 256 * 1024)


def settle() -> None:
    """Call once after start-up: what exists now is never looked at again, the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
