"""How a blob is cut into pieces and windows: a pure function of its size.

A *piece* is the unit that is hashed, fetched from a peer and verified. A *window* is a run of
consecutive pieces: the unit in which a blob enters the cluster. Every node computes the same layout
from the size alone, so the same bytes have the same info-hash everywhere. The trade-off and the
measurements behind the constants are in ARCHITECTURE.md, "Pieces and windows".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

KIB = 1024
MIB = 1024 * KIB

FIRST_WINDOW = 1 * MIB
"""Length in bytes of window 0, whatever the size: it can be asked for before the size is known."""

PLAIN_WINDOW = 512 * KIB
"""Length in bytes of the windows after the lead, until MAX_WINDOWS makes them longer; of a blob with longer pieces, one
piece. What is traded is whole windows: with 2 MiB eight nodes take 1.33 x the bound and a hundred 2.00
(bench/simulate), so 1.18 and 1.51."""

LEAD_WINDOWS = 8
"""How many windows at the start are FIRST_WINDOW long, whatever the size."""

SHARE = 9
"""No window after the lead is longer than this part of what lies before it, and of what is left, down to
PLAIN_WINDOW. Peers have something to trade early; what arrives last is still to be traded by all; and about so many
are on their way at once."""

MAX_WINDOWS = 128
"""About how many windows a blob has at most, but for the short ones at both ends: the tracker hears of each."""

_PIECE_STEPS = ((64 * MIB, 256 * KIB), (4096 * MIB, 512 * KIB))
_LONGEST_PIECE = 1 * MIB


@dataclass(frozen=True, slots=True)
class Window:
    """One window. *offset*, *length* in bytes; *first_piece*, *pieces* in pieces."""

    index: int
    offset: int
    length: int
    first_piece: int
    pieces: int

    @property
    def end(self) -> int:
        """Offset of the byte after the last."""
        return self.offset + self.length

    @property
    def last_piece(self) -> int:
        """Index of the last piece, inclusive."""
        return self.first_piece + self.pieces - 1

    @property
    def span(self) -> range:
        """Indexes of its pieces."""
        return range(self.first_piece, self.first_piece + self.pieces)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The layout of a blob of *size* bytes. A blob of 0 bytes has no pieces and no windows."""

    size: int
    piece_length: int
    windows: tuple[Window, ...]

    @property
    def pieces(self) -> int:
        """How many pieces the blob has."""
        return -(-self.size // self.piece_length)

    def piece_span(self, piece: int) -> tuple[int, int]:
        """(offset, length) in bytes of *piece*; the last may be short."""
        offset = piece * self.piece_length
        return offset, min(self.piece_length, self.size - offset)

    def window_at(self, offset: int) -> Window:
        """The window that holds the byte at *offset*. Raises IndexError past the end."""
        if not 0 <= offset < self.size:
            raise IndexError(offset)
        low, high = 0, len(self.windows) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.windows[middle].offset <= offset:
                low = middle
            else:
                high = middle - 1
        return self.windows[low]

    def windows_of(self, start: int, stop: int) -> tuple[Window, ...]:
        """The windows that bytes [start, stop) touch; empty if the range is."""
        if stop <= start:
            return ()
        return self.windows[self.window_at(start).index : self.window_at(stop - 1).index + 1]


def piece_length(size: int) -> int:
    """Bytes per piece of a blob of *size* bytes."""
    for limit, length in _PIECE_STEPS:
        if size <= limit:
            return length
    return _LONGEST_PIECE


@lru_cache(maxsize=256)
def geometry(size: int) -> Geometry:
    """The layout of a blob of *size* bytes. Raises ValueError if *size* is negative."""
    if size < 0:
        raise ValueError(f"negative size: {size}")
    length = piece_length(size)
    shortest = plain = max(PLAIN_WINDOW, length)
    while -(-size // plain) > MAX_WINDOWS:
        plain *= 2
    windows: list[Window] = []
    offset = 0
    while offset < size:
        left = size - offset
        shorter = min(offset, left) // SHARE // shortest * shortest
        lead = len(windows) < LEAD_WINDOWS
        step = min(left, FIRST_WINDOW if lead else max(shortest, min(plain, shorter)))
        windows.append(Window(len(windows), offset, step, offset // length, -(-step // length)))
        offset += step
    return Geometry(size, length, tuple(windows))
