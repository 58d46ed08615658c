"""A blob on its way into the store: a sparse file that pieces are written to in any order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from swarm.blob.digest import Digest
from swarm.blob.geometry import Geometry, geometry
from swarm.storage import disk
from swarm.storage.errnos import translate
from swarm.storage.held import BlobHandle, OpenFile
from swarm.storage.sidecar import HEADER, OWNER, RECORD, Stamp, log_records, log_removals, stamp_of


class Shelf(Protocol):
    """What a Staged asks of the store."""

    async def finish(self, staged: Staged, hashes: bytes) -> BlobHandle:
        """Make it a complete blob."""

    async def abandon(self, staged: Staged, keep: bool) -> None:
        """Nobody brings it in any more."""

    async def grow(self, staged: Staged, promised: int) -> None:
        """Reserve more of the budget."""

    def forget(self, staged: Staged) -> None:
        """Its staging name is no longer needed."""

    def now(self) -> float:
        """Seconds since the epoch."""


class Staged:
    """One blob on its way in. Whoever staged it ends with `forget` (after `finish`) or with `abandon`.

    *path* stays valid until then: others may write there by name. *pieces*: index -> SHA-1 of what
    the file is known to have; read it, change it only by `note` and the store's `punch`.
    """

    def __init__(self, shelf: Shelf, digest: Digest, size: int, path: Path) -> None:
        self.digest = digest
        self.size = size
        self.path = path
        self.geometry: Geometry = geometry(size)
        self.pieces: dict[int, bytes] = {}
        self.origin = ""
        """Of which origin all pieces are (swarm/fetch/proof.py); "": of several, or of none that is known."""
        self.used: dict[int, float] = {}
        """Window -> time of its last use (`touch`), for eviction."""
        self.promised = 0
        """Bytes of the budget that are reserved for it."""
        self.before = 0
        """Bytes that it took when it was staged again."""
        self.done = False
        """Whether it is complete (`finish`), or was given up."""
        self.finished = False
        """Whether it is complete."""
        self.kept = True
        """Whether it is on the disk; else in memory, and never complete."""
        self.named = True
        """Whether its names in the staging directory are still its own."""
        self._shelf = shelf
        self._file: OpenFile | None = None
        self._log_fd = -1
        self._log_end = 0
        self._log_lock = threading.Lock()

    def attach(self, file: OpenFile, log_fd: int, pieces: dict[int, bytes]) -> None:
        """The store opened the files: not for others."""
        file.enter()
        self._file, self._log_fd, self.pieces = file, log_fd, pieces
        self._log_end = HEADER + RECORD * (len(pieces) + bool(self.origin))

    @property
    def file(self) -> OpenFile | None:
        """The shared descriptor, None before and after: for the store."""
        return self._file

    def detach(self) -> None:
        """No more reading, writing and noting: for the store, which closes the log by `close_log`."""
        file, self._file = self._file, None
        if file:
            file.leave()

    def close_log(self) -> None:
        """Close the log once nobody writes to it. Blocks: for threads of the store."""
        with self._log_lock:
            log_fd, self._log_fd = self._log_fd, -1
            if log_fd >= 0:
                os.close(log_fd)

    def allocated(self) -> int:
        """Bytes that the file takes on disk now."""
        return os.fstat(self._file.fd).st_blocks * 512 if self._file else self.before

    @property
    def fd(self) -> int:
        """The descriptor, for reading and writing. Raises ValueError after the end."""
        if self._file is None:
            raise ValueError(f"closed: {self.digest}")
        return self._file.fd

    def share(self) -> BlobHandle:
        """The file for one more reader: open until the reader closes it, even after the end."""
        if self._file is None:
            raise ValueError(f"closed: {self.digest}")
        return BlobHandle(self.digest, self.size, self.path, None, "disk", self._file)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data* at *offset*. Blocks: for threads. Raises StoreFull, OSError."""
        _pwrite(self.fd, data, offset)

    async def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data* at *offset* in a thread. Raises StoreFull, OSError."""
        reader = self.share()  # keeps the descriptor open while the thread writes, even if cancelled
        job = asyncio.ensure_future(asyncio.to_thread(_pwrite, reader.fd, data, offset))
        job.add_done_callback(lambda _: reader.close())
        await asyncio.shield(job)

    async def grow(self, promised: int) -> None:
        """Reserve *promised* bytes in all, for a blob staged with less than its size. Raises StoreFull."""
        await self._shelf.grow(self, promised)

    async def note(self, pieces: Mapping[int, bytes]) -> None:
        """Verified *pieces* (index -> SHA-1) are in the file now: a restart will find them.

        That is a hint for later: a full disk loses it, and harms nothing else.
        """
        self.pieces.update(pieces)
        await asyncio.to_thread(self._append, log_records(pieces))

    async def mixed(self) -> None:
        """What comes from now on is of another origin than what is here."""
        if self.origin:
            self.origin = ""
            await asyncio.to_thread(self._append, log_removals([OWNER]))

    async def dropped(self, pieces: list[int]) -> None:
        """Those pieces were given up: for the store."""
        await asyncio.to_thread(self._append, log_removals(pieces))

    def touch(self, start: int, stop: int) -> None:
        """Bytes [start, stop) were read: their windows are not the next to be evicted."""
        now = self._shelf.now()
        for window in self.geometry.windows_of(start, stop):
            self.used[window.index] = now

    async def finish(self, hashes: bytes) -> BlobHandle:
        """All bytes are there and match the digest: make it a complete blob, readable at once and after a crash.

        *hashes*: 20 bytes per piece. Cancelled: it is finished all the same. Raises BadHashes; StoreFull
        (then it is as before). The Held is the caller's to close.
        """
        return await self._shelf.finish(self, hashes)

    def forget(self) -> None:
        """Nobody uses *path* any more. After `finish`; may be called again."""
        self._shelf.forget(self)

    async def abandon(self, keep: bool) -> None:
        """Nobody brings it in any more. *keep*: leave its noted pieces for later. May be called again."""
        await self._shelf.abandon(self, keep)

    def stamp(self) -> Stamp:
        """The state of its file now. Blocks a little."""
        return stamp_of(os.fstat(self.fd))

    def _append(self, data: bytes) -> None:
        with self._log_lock:
            if self._log_fd < 0:
                return
            try:
                if self._log_end + len(data) > HEADER + RECORD * (self.geometry.pieces + 1):
                    self._log_end = disk.rewrite_log(self._log_fd, self.size, self.pieces.copy(), self.origin)
                else:
                    disk.write_at(self._log_fd, data, self._log_end)
                    self._log_end += len(data)
            except OSError:
                return  # the next append writes over what was torn


def _pwrite(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    try:
        disk.write_at(fd, data, offset)
    except OSError as error:
        raise translate(error) from None
