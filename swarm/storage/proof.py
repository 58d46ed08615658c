"""Proof that the bytes of a complete file are still those that were verified, made as they are sent.

The problem: a disk may return other bytes than were written to it, or none, and size, times and inode of the
file do not tell. A client must not get a complete body that is wrong.

The plain answer is to hash every byte on its way out. That costs about one processor second per GiB, and a
finished blob would no longer leave as fast as from nginx. Another is to read everything again in the background:
a store of 200 GiB takes hours of disk time per round, and what rotted since is sent all the same.

The rule here: bytes that come from the disk are compared with the SHA-1 of their piece before they leave, and the
same bytes in the page cache need no second look. So a piece is proven before it is first sent, after a start as
well as after it came in. Its proof ends

* after LASTS seconds, because the kernel does not say that it read a page again for somebody else;
* for all pieces of the file at once, when any byte asked for is no longer in the page cache: what was evicted in
  one place was evicted in others, and read-ahead would bring it back unseen.

Repeated reads cost two system calls per piece; bytes from the disk cost their SHA-1 beside the wait for the disk.
A piece is proven in a thread, STEP bytes at a time, while the step before is being sent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnreadable, ShortFile
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import HASH_LENGTH
from swarm.storage.hashing import Hasher, chunks, piece_hash

LASTS = 300.0
"""Seconds for which a piece that stayed in the page cache counts as proven: one SHA-1 in five minutes is little, and
a client that came twice for the same bytes gets right ones in minutes, whatever happened below the page cache."""

STEP = 4 * 1024 * 1024
"""Bytes that are proven, and then sent, at once: 3 ms of hashing, and few enough to stay in the page cache until they
have left."""

NEVER = -LASTS

_CANNOT_TELL = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class Proof:
    """Which pieces of one complete file are proven. *hashes*: 20 bytes per piece. *wrong*(why): called once one is not.

    *clock*: monotonic seconds. Outlives the descriptors of its file: a file that is replaced gets another Proof.
    """

    def __init__(
        self,
        digest: Digest,
        size: int,
        hashes: bytes,
        hasher: Hasher,
        wrong: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest, self._layout, self._hashes = digest, geometry(size), hashes
        self._hasher, self._wrong, self._clock = hasher, wrong, clock
        self._since = array("d", [NEVER]) * self._layout.pieces
        self._turn = asyncio.Lock()

    def stands(self, fd: int, start: int, stop: int) -> bool:
        """Whether bytes [start, stop) may be sent as they are. Does not wait for the disk."""
        oldest = self._clock() - LASTS
        pieces = self._pieces(start, stop)
        if any(self._since[piece] <= oldest for piece in pieces):
            return False
        if all(_is_cached(fd, offset) for piece in pieces for offset in self._ends(piece)):
            return True
        self._since = array("d", [NEVER]) * self._layout.pieces
        return False

    async def make(self, fd: int, start: int, stop: int) -> None:
        """Read and compare what is not proven of [start, stop). Raises BlobUnreadable, after *wrong* was called."""
        async with self._turn:  # readers of the same bytes wait for one reading
            if self.stands(fd, start, stop):
                return
            oldest = self._clock() - LASTS
            missing = [piece for piece in self._pieces(start, stop) if self._since[piece] <= oldest]
            try:
                bad = await self._hasher.prove(lambda stop: self._first_bad(fd, missing, stop))
                why = "" if bad is None else f"piece {bad} is not as it was verified"
            except (OSError, ShortFile) as error:
                why = str(error)
            if why:
                self._wrong(why)
                raise BlobUnreadable(f"{self._digest}: {why}")
            now = self._clock()
            for piece in missing:
                self._since[piece] = now

    def _first_bad(self, fd: int, pieces: list[int], stop: threading.Event) -> int | None:
        buffer = memoryview(bytearray(min(1024 * 1024, self._layout.piece_length)))
        for piece in pieces:
            expected = self._hashes[piece * HASH_LENGTH : (piece + 1) * HASH_LENGTH]
            if piece_hash(chunks(fd, *self._layout.piece_span(piece), buffer, stop)) != expected:
                return piece
        return None

    def _pieces(self, start: int, stop: int) -> range:
        length = self._layout.piece_length
        return range(start // length, -(-stop // length))

    def _ends(self, piece: int) -> Iterator[int]:
        offset, length = self._layout.piece_span(piece)
        yield offset
        yield offset + length - 1


def _is_cached(fd: int, offset: int) -> bool:
    """Whether a byte is in the page cache. True where the file system cannot tell: then only LASTS counts."""
    try:
        return bool(os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT))
    except OSError as error:
        return error.errno in _CANNOT_TELL
