"""What the store knows of the blobs on its disk: one record per blob, and what they take of the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from swarm.blob.digest import Digest
from swarm.blob.geometry import Geometry, Window, geometry
from swarm.storage.evict import cost, sidecars
from swarm.storage.held import OpenFile
from swarm.storage.proof import Proof
from swarm.storage.sidecar import Stamp
from swarm.storage.staged import Staged


@dataclass(slots=True, eq=False)
class BlobRecord:
    """A complete blob. *hashes*: 20 bytes per piece. *used*, *saved*: seconds since the epoch."""

    digest: Digest
    stamp: Stamp
    hashes: bytes
    used: float
    saved: float = 0.0
    suspect: bool = False
    """Its file is not as it was verified: not served until it was read again."""
    proof: Proof | None = None
    """Made when it is first opened for reading, and anew when its file changed and was right."""
    file: OpenFile | None = None
    linger: Staged | None = None
    """Still has its staging name."""
    checking: asyncio.Task[bool] | None = None
    urgent: bool = False
    """Somebody waits for the check."""

    @property
    def pinned(self) -> bool:
        """Whether somebody reads it, or may write to it by its staging name."""
        return self.linger is not None or self.open_file is not None

    @property
    def open_file(self) -> OpenFile | None:
        """Its descriptor, if somebody reads it."""
        return self.file if self.file and self.file.users else None


@dataclass(slots=True, eq=False)
class PartialRecord:
    """A partial blob that nobody brings in now. *pieces*: index -> SHA-1. *windows*: window -> time of last use."""

    digest: Digest
    size: int
    allocated: int
    pieces: dict[int, bytes]
    used: float
    windows: dict[int, float] = field(default_factory=dict)
    trusted: Stamp | None = None
    """The stamp at which this process knew the pieces to be right; None: they are a former process's word."""
    origin: str = ""
    """As that of a Staged."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def last(self) -> float:
        """Time of the last use of any window, in seconds since the epoch."""
        return max(self.windows.values(), default=self.used)

    @property
    def cost(self) -> int:
        """Bytes of the budget that it takes."""
        return self.allocated + sidecars(self.size)

    def among(self, window: Window) -> list[int]:
        """The pieces of *window* that are here, in order."""
        return [piece for piece in window.span if piece in self.pieces]

    def bytes_by_window(self) -> dict[int, int]:
        """Window -> bytes of the pieces that are here."""
        layout = geometry(self.size)
        found: dict[int, int] = {}
        for window in layout.windows:
            if pieces := self.among(window):
                # Only the last piece of a blob is short.
                short = layout.size % layout.piece_length if pieces[-1] == layout.pieces - 1 else 0
                found[window.index] = len(pieces) * layout.piece_length - (short and layout.piece_length - short)
        return found


class Books:
    """The records of one store. Only the event loop changes them, and never across an await."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, BlobRecord] = {}
        self.partials: dict[Digest, PartialRecord] = {}
        self.staged: dict[Digest, Staged] = {}

    @property
    def used(self) -> int:
        """Bytes of the budget that are taken or promised."""
        whole = sum(cost(blob.stamp.size) for blob in self.blobs.values())
        idle = sum(part.cost for part in self.partials.values())
        return whole + idle + sum(staged.promised for staged in self.staged.values())

    @property
    def coming(self) -> int:
        """Bytes that were promised to blobs on their way in and are not on the disk yet."""
        return sum(max(0, staged.promised - staged.allocated()) for staged in self.staged.values())


def gaps(layout: Geometry, pieces: dict[int, bytes]) -> Iterator[tuple[int, int]]:
    """(offset, length) of the runs of bytes that belong to none of *pieces*."""
    start = 0
    for piece in sorted(pieces):
        offset, length = layout.piece_span(piece)
        if offset > start:
            yield start, offset - start
        start = offset + length
    if start < layout.size:
        yield start, layout.size - start
