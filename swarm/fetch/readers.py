"""Who reads a blob on this node, and what they want of it together. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarm.fetch.proof import Proof
from swarm.upstream.source import Source

MOST_PREFERRED = 64
"""Windows that the board is told to be wanted first."""


@dataclass(eq=False)
class Reader:
    """Somebody on this node who reads the blob."""

    whole: bool
    source: Source | None
    windows: tuple[int, ...] = ()
    """Windows that a range reader waits for, most urgent first."""
    pieces: tuple[int, ...] = ()
    """Pieces in them that its range touches."""
    low: bool = False
    """Nobody waits for it: every other reader comes first."""
    late: bool = False
    """The blob was complete when this reader came: for it, the bytes come from the disk."""
    origin: str = ""
    """Of what its source sends."""
    proof: Proof = Proof.NONE
    """What it asks of the bytes that it is given."""


class Readers(set[Reader]):
    """The readers of one blob."""

    @property
    def whole(self) -> bool:
        """Whether somebody reads all of the blob."""
        return any(reader.whole for reader in self)

    @property
    def bulk(self) -> bool:
        """Whether there are readers, and none of ranges."""
        return bool(self) and all(reader.whole for reader in self)

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for a range."""
        return any(reader.windows and not reader.low for reader in self)

    @property
    def windows(self) -> set[int]:
        """Windows that readers of ranges wait for."""
        return {window for reader in self for window in reader.windows}

    @property
    def pieces(self) -> set[int]:
        """Pieces that readers of ranges need."""
        return {piece for reader in self for piece in reader.pieces}

    @property
    def urgent(self) -> set[int]:
        """Those of `pieces` that somebody waits for."""
        return {piece for reader in self if not reader.low for piece in reader.pieces}

    def preferred(self) -> tuple[int, ...]:
        """`windows`, the most urgent first, as many as a board is told."""
        ranked: Iterable[Reader] = sorted(self, key=lambda reader: reader.low)
        found = dict.fromkeys(window for reader in ranked if not reader.whole for window in reader.windows)
        return tuple(found)[:MOST_PREFERRED]

    def source(self, window: int | None = None) -> Source | None:
        """Where to ask upstream; for *window* as who waits for it asks: not behind bulk downloads, or preheats."""
        found = [
            (not reader.low, window in reader.windows, reader.source) for reader in self if reader.source is not None
        ]
        return max(found, key=lambda known: known[:2], default=(False, False, None))[2]
