"""Reads complete blobs again that are in doubt: in the background, or at once for somebody who waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Protocol

from swarm.storage import disk
from swarm.storage.books import BlobRecord, Books
from swarm.storage.errnos import is_scarcity
from swarm.storage.hashing import Hasher
from swarm.storage.sidecar import encode_meta
from swarm.storage.workers import Workers

log = logging.getLogger("shoal.swarm")

CHECKS = 3
"""How often a blob is read again whose file changes while it is read."""


class Verdicts(Protocol):
    """What is told of blobs that were read again."""

    def right(self, blob: BlobRecord) -> None:
        """It had been in doubt, and is right."""

    def wrong(self, blob: BlobRecord) -> None:
        """It is not what its name says, or cannot be read."""


class Recheck:
    """The checks under way of one store."""

    def __init__(
        self, books: Books, directory: disk.Directory, workers: Workers, hasher: Hasher, verdicts: Verdicts
    ) -> None:
        self._books, self._directory, self._workers, self._hasher = books, directory, workers, hasher
        self._verdicts = verdicts

    def doubt(self, blob: BlobRecord) -> None:
        """Not served any more until it was read again, which begins in the background."""
        blob.suspect = True
        if blob.checking is None:
            self._begin(blob, urgent=False)

    def unproven(self, blob: BlobRecord, why: str) -> None:
        """It failed while it was read: given up."""
        log.warning("blob-wrong", extra={"fields": {"digest": blob.digest, "error": why}})
        self._verdicts.wrong(blob)

    async def now(self, blob: BlobRecord) -> bool:
        """Read the blob again before all others: is it right?"""
        if blob.checking is None or not blob.urgent:
            if blob.checking:
                blob.checking.cancel()  # it waits its turn among the others in the background
            self._begin(blob, urgent=True)
        task = blob.checking
        assert task is not None
        await asyncio.wait([task])
        return not task.cancelled() and task.result()

    def _begin(self, blob: BlobRecord, *, urgent: bool) -> None:
        task = self._workers.spawn(self._read(blob, idle=not urgent))
        blob.checking, blob.urgent = task, urgent
        task.add_done_callback(partial(_checked, blob))

    async def _read(self, blob: BlobRecord, idle: bool) -> bool:
        read = partial(disk.read_sums, self._directory.blob(blob.digest))
        for _ in range(CHECKS):
            try:
                found = await self._hasher.run(read, idle=idle)
            except FileNotFoundError:
                break
            except OSError as error:
                if is_scarcity(error):
                    return False
                break
            if self._books.blobs.get(blob.digest) is not blob:
                return False
            if found is None:
                continue
            stamp, sums = found
            if sums.digest != blob.digest:
                break
            if (stamp, sums.pieces) != (blob.stamp, blob.hashes):
                blob.stamp, blob.hashes, blob.proof = stamp, sums.pieces, None
                await self._note(blob)
            if blob.suspect:
                blob.suspect = False
                self._verdicts.right(blob)
            return True
        else:
            return False  # somebody keeps writing to it: in doubt until he stops
        log.warning("blob-wrong", extra={"fields": {"digest": blob.digest}})
        self._verdicts.wrong(blob)
        return False

    async def _note(self, blob: BlobRecord) -> None:
        # Not written: read once more after a restart.
        with contextlib.suppress(OSError):
            content = encode_meta(blob.stamp, blob.hashes)
            await self._workers.run(disk.write_whole, self._directory.meta(blob.digest), content)


def _checked(blob: BlobRecord, task: asyncio.Task[bool]) -> None:
    if blob.checking is task:
        blob.checking = None
