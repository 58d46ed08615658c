"""What this node gives on the lane: open files and which of their pieces are verified."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Self

from swarm.blob.digest import Digest
from swarm.blob.geometry import Geometry

_DIGITS = b"01" + bytes(254)
"""A byte of `Offer._ready` as the digit of a binary number."""


class Offer:
    """A blob's file with the pieces that may be given out. Closed by its last user.

    *fd* is a descriptor of the offer's own: it stays readable however the store moves the file.
    *release* is called, in any thread, when nobody uses it any more.
    """

    def __init__(
        self,
        digest: Digest,
        layout: Geometry,
        fd: int,
        pieces: Collection[int] | None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """*fd* is duplicated. *pieces*: None: all of them."""
        self.digest = digest
        self.layout = layout
        self.fd = os.dup(fd)
        self.lost = False
        """The file was found wrong: nothing of it is sent any more."""
        self._ready = bytearray(b"\1" * layout.pieces if pieces is None else layout.pieces)
        for piece in pieces or ():
            self._ready[piece] = 1
        self._release = release
        self._users = 1
        self._lock = threading.Lock()

    def add(self, pieces: Iterable[int]) -> None:
        """These are verified and in the file."""
        for piece in pieces:
            self._ready[piece] = 1

    def drop(self, pieces: Iterable[int] | None = None) -> None:
        """These (None: all) are in the file no more, or in doubt."""
        for piece in range(self.layout.pieces) if pieces is None else pieces:
            self._ready[piece] = 0

    def ready(self, start: int, stop: int) -> int:
        """How far the bytes from *start* on are there, at most to *stop*."""
        length = self.layout.piece_length
        gap = self._ready.find(0, start // length, -(-stop // length))
        return stop if gap < 0 else max(start, gap * length)

    def bitmap(self) -> bytes:
        """The pieces that are here: little-endian, bit p of the integer is piece p."""
        digits = bytes(self._ready[::-1]).translate(_DIGITS) or b"0"
        return int(digits, 2).to_bytes((self.layout.pieces + 7) // 8, "little")

    def enter(self) -> bool:
        """One more user; False: it is closed already."""
        with self._lock:
            if not self._users:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """One user less. The last one closes the file."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            os.close(self.fd)
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.leave()
