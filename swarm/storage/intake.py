"""Pieces on their way from a socket into a file: hashed and written from one buffer, while it is in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from swarm.blob.errors import StoreFull, Unwritable
from swarm.blob.geometry import Geometry
from swarm.storage import disk
from swarm.storage.errnos import translate

BUFFER = 256 * 1024
"""Bytes of the buffer that a receiving thread uses again and again. It fits into the second cache of a core."""


class Intake:
    """Consecutive pieces, from *first* to *last* (inclusive), on their way into the file *fd*. For one thread.

    Bytes that are not verified yet stand in the file, in a place that nobody reads before the piece counts.
    """

    def __init__(
        self,
        layout: Geometry,
        fd: int,
        first: int,
        last: int,
        *,
        expected: Callable[[int], bytes | None],
        on_piece: Callable[[int, bytes], None],
    ) -> None:
        """*expected*: SHA-1 of a piece; None: any. *on_piece*(piece, sha1): it is in the file, and as expected."""
        self.at = first * layout.piece_length
        """Offset in the blob of the next byte."""
        self.stop = min((last + 1) * layout.piece_length, layout.size)
        """Offset after the last byte."""
        self._layout, self._fd, self._expected, self._on_piece = layout, fd, expected, on_piece
        self._piece = first
        self._end = layout.piece_span(first)[0] + layout.piece_span(first)[1]
        self._sha1 = hashlib.sha1(usedforsecurity=False)

    @property
    def done(self) -> bool:
        """Whether all pieces are here."""
        return self.at >= self.stop

    @property
    def begun(self) -> bool:
        """Whether a piece is half here."""
        return self.at > self._piece * self._layout.piece_length

    @property
    def half(self) -> tuple[int, int]:
        """The piece under way, and how many bytes of it are here."""
        return self._piece, max(0, self.at - self._piece * self._layout.piece_length)

    @property
    def room(self) -> int:
        """Bytes until the end of the piece under way: no more may be put at once."""
        return self._end - self.at

    def put(self, data: memoryview) -> int | None:
        """The next bytes, at most `room`. The piece that is wrong by them, which begins again; None: all is well.

        Raises StoreFull, Unwritable.
        """
        self._sha1.update(data)
        try:
            disk.write_at(self._fd, data, self.at)
        except OSError as error:
            failure = translate(error)
            raise failure if isinstance(failure, StoreFull) else Unwritable(str(error.strerror)) from None
        self.at += len(data)
        if self.at < self._end:
            return None
        piece, sha1 = self._piece, self._sha1.digest()
        if (expected := self._expected(piece)) is not None and sha1 != expected:
            self.again()
            return piece
        self._on_piece(piece, sha1)
        self._piece += 1
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        if not self.done:
            offset, length = self._layout.piece_span(self._piece)
            self._end = offset + length
        return None

    def again(self) -> None:
        """Begin the piece under way again: nothing of it counts."""
        self.at = self._piece * self._layout.piece_length
        self._sha1 = hashlib.sha1(usedforsecurity=False)


def scratch() -> memoryview:
    """A buffer for a receiving thread."""
    return memoryview(bytearray(BUFFER))
