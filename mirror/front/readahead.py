"""How far to read ahead of range readers: sequential ones get a growing window, random ones none. Pure.

One reader of a layer is many connections (overlaybd has 16 requests under way), so what is followed is the
layer and not the connection: a few runs of bytes that reads keep extending, as in Linux's own read-ahead.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from swarm.blob.digest import Digest

FIRST_AHEAD = 512 * 1024
"""Bytes ahead of a run when it is recognised: two pieces."""

MOST_AHEAD = 8 * 1024 * 1024
"""Bytes ahead of a run that goes on and on: two windows, so that one is on its way while one is read."""

SLACK = 1024 * 1024
"""Bytes by which a read may miss a run's end and still extend it: 16 requests of 64 KiB overtake each other."""

RECOGNISED = 3
"""Reads in a row that make a run. Two neighbours happen by chance (a header and its index)."""

RUNS = 8
"""Runs that are followed per blob; the one that was not extended for longest is given up."""

BLOBS = 1024
"""Blobs that are followed."""


DENSITY = 2
"""A run has been read to at least 1/DENSITY: random reads close to each other leave more out."""


@dataclass(slots=True)
class _Run:
    begin: int
    end: int
    reads: int = 1
    read: int = 0
    """Bytes that its reads asked for."""
    window: int = 0
    ahead: int = 0


@dataclass
class Follower:
    """The runs of one blob."""

    runs: list[_Run] = field(default_factory=list)

    def read(self, start: int, stop: int, size: int) -> tuple[int, int] | None:
        """A reader reads [start, stop) of *size* bytes. Returns the bytes to fetch ahead of it, if any."""
        for run in self.runs:
            if run.end - SLACK <= start <= run.end + SLACK and stop > run.end:
                self.runs.remove(run)
                self.runs.append(run)
                run.begin = min(run.begin, start)
                run.read += stop - start
                return _extend(run, stop, size)
        for run in self.runs:
            if run.end - SLACK <= start and stop <= run.end:
                run.begin = min(run.begin, start)
                run.read += stop - start
                return None
        self.runs.append(_Run(start, stop, read=stop - start))
        del self.runs[:-RUNS]
        return None


def _extend(run: _Run, stop: int, size: int) -> tuple[int, int] | None:
    run.end = stop
    run.reads += 1
    if run.reads < RECOGNISED or run.read * DENSITY < run.end - run.begin:
        return None
    left = run.ahead - run.end
    if run.window and left > run.window // 2:
        return None  # half of it is still ahead: no need yet
    run.window = min(max(FIRST_AHEAD, run.window * 2), MOST_AHEAD)
    start, run.ahead = max(run.ahead, run.end), min(run.end + run.window, size)
    return (start, run.ahead) if start < run.ahead else None


class Readahead:
    """The followers of all blobs that are being read in ranges."""

    def __init__(self) -> None:
        self._followers: OrderedDict[Digest, Follower] = OrderedDict()

    def read(self, digest: Digest, start: int, stop: int, size: int) -> tuple[int, int] | None:
        """See Follower.read."""
        follower = self._followers.setdefault(digest, Follower())
        self._followers.move_to_end(digest)
        while len(self._followers) > BLOBS:
            self._followers.popitem(last=False)
        return follower.read(start, stop, size)
