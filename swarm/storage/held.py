"""A complete or growing file that somebody reads: an open descriptor that lives as long as its users."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from swarm.blob.digest import Digest

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


class Held:
    """A blob's file, open for reading and safe from eviction until `close`, or the end of `with`.

    *size* in bytes of the whole blob. *hashes*: 20 bytes per piece, None if they are not known.
    """

    __slots__ = ("_file", "_open", "digest", "hashes", "origin", "path", "size")

    def __init__(
        self, digest: Digest, size: int, path: Path, hashes: bytes | None, origin: Origin, file: OpenFile
    ) -> None:
        self.digest = digest
        self.size = size
        self.path = path
        self.hashes = hashes
        self.origin: Origin = origin
        self._file = file
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

    def share(self) -> Held:
        """Another Held of the same file, for another user. Raises ValueError after close."""
        if not self._open:
            raise ValueError(f"closed: {self.digest}")
        return Held(self.digest, self.size, self.path, self.hashes, self.origin, self._file)

    def close(self) -> None:
        """This user is done. May be called again."""
        if self._open:
            self._open = False
            self._file.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
