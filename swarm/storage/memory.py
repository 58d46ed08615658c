"""Files in memory that stand in for a disk that takes nothing, within a bound."""

from __future__ import annotations

import os
from functools import partial

from swarm.blob.errors import StoreFull
from swarm.storage.errnos import translate
from swarm.storage.held import OpenFile
from swarm.storage.workers import Workers

UNKEPT = 32 * 1024 * 1024
"""Bytes of memory for blobs that the disk does not take: most layers fit, and a pod's limit still has room. What does
not fit is passed through."""


class Memory:
    """The memory files of one store."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._taken = 0

    def file(self, name: str, size: int) -> OpenFile:
        """A file of *size* bytes that others open as /proc/self/fd/<its descriptor>. Gone with its last user.

        Raises StoreFull if there is no room for it.
        """
        if self._taken + size > UNKEPT:
            raise StoreFull(f"neither the disk nor memory has room for {size} bytes")
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
        except OSError as error:
            raise translate(error) from None
        os.ftruncate(fd, size)
        self._taken += size
        return OpenFile(fd, partial(self._close, size))

    def _close(self, size: int, fd: int) -> None:
        self._taken -= size
        self._workers.close_fd(fd)
