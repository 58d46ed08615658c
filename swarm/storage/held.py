"""A complete or growing file that somebody reads: an open descriptor that lives as long as its users."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnreadable
from swarm.storage.proof import STEP, Proof

Origin = Literal["disk", "containerd"]


class OpenFile:
    """A descriptor shared by users; the last one to leave closes it. Begins with no user.

    It stays readable after the file was unlinked. *close* is called with the descriptor (closing the
    last one of an unlinked file frees its blocks, which takes time: a thread should do it).
    """

    __slots__ = ("_close", "fd", "lost", "users")

    def __init__(self, fd: int, close: Callable[[int], None] = os.close) -> None:
        self.fd = fd
        self.users = 0
        self.lost = False
        """The file was found to be wrong: readers should break off."""
        self._close = close

    def enter(self) -> None:
        """One more user."""
        self.users += 1

    def leave(self) -> None:
        """One user less."""
        self.users -= 1
        if not self.users:
            fd, self.fd = self.fd, -1
            self._close(fd)


class BlobHandle:
    """A blob's file, open for reading and safe from eviction until `close`, or the end of `with`.

    *size* in bytes of the whole blob. *hashes*: 20 bytes per piece, None if they are not known. *proof*: of a
    complete blob; a blob on its way in has none.
    """

    __slots__ = ("_file", "_open", "_proof", "digest", "hashes", "origin", "path", "size")

    def __init__(
        self,
        digest: Digest,
        size: int,
        path: Path,
        hashes: bytes | None,
        origin: Origin,
        file: OpenFile,
        proof: Proof | None = None,
    ) -> None:
        self.digest = digest
        self.size = size
        self.path = path
        self.hashes = hashes
        self.origin: Origin = origin
        self._file = file
        self._proof = proof
        self._open = True
        file.enter()

    @property
    def fd(self) -> int:
        """The open descriptor. Raises ValueError after close."""
        if not self._open:
            raise ValueError(f"closed: {self.digest}")
        return self._file.fd

    @property
    def lost(self) -> bool:
        """Whether the file was found to be wrong since."""
        return self._file.lost

    async def runs(self, start: int, stop: int) -> AsyncGenerator[tuple[int, int]]:
        """(offset, count) of consecutive runs of [start, stop), each proven to be right when it is given out.

        Send each before asking for the next. Raises BlobUnreadable where the copy rotted, cannot be read, or was
        found wrong by somebody else: what was given out before is right, and the rest must come from elsewhere.
        """
        ahead: asyncio.Task[None] | None = None
        try:
            while start < stop:
                end = min(start + STEP, stop)
                if ahead is not None:
                    await ahead
                else:
                    await self._prove(start, end)
                if self.lost:
                    raise BlobUnreadable(f"{self.digest}: found to be wrong while it was read")
                upto = min(end + STEP, stop)
                ahead = None
                if end < upto and not self._stands(end, upto):
                    ahead = asyncio.get_running_loop().create_task(self._prove(end, upto))
                yield start, end - start
                start = end
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    def _stands(self, start: int, stop: int) -> bool:
        return self._proof is None or self._proof.stands(self.fd, start, stop)

    async def _prove(self, start: int, stop: int) -> None:
        if self._proof is not None and not self._proof.stands(self.fd, start, stop):
            with self.share() as reader:  # a thread reads: the descriptor stays open until it has ended
                await self._proof.make(reader.fd, start, stop)

    def share(self) -> BlobHandle:
        """Another Held of the same file, for another user. Raises ValueError after close."""
        if not self._open:
            raise ValueError(f"closed: {self.digest}")
        return BlobHandle(self.digest, self.size, self.path, self.hashes, self.origin, self._file, self._proof)

    def close(self) -> None:
        """This user is done. May be called again."""
        if self._open:
            self._open = False
            self._file.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
