"""Makes room in the store: carries out what `evict` chooses, within the budget and what the disk has free."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Container, Coroutine, Iterator
from typing import Any

from swarm.blob.digest import Digest
from swarm.blob.errors import StoreFull
from swarm.blob.geometry import geometry
from swarm.storage import disk
from swarm.storage.books import BlobRecord, Books, PartialRecord
from swarm.storage.errnos import translate
from swarm.storage.evict import Candidate, choose, cost
from swarm.storage.staged import Staged
from swarm.storage.trash import Trash
from swarm.storage.workers import Workers

log = logging.getLogger("shoal.swarm")

ROUNDS = 8
"""How often room is made again when a round freed less than it should, before the disk counts as full."""


class Eviction:
    """Gives up blobs and windows of one store. *remove* takes a complete blob out of it.

    *budget*, *reserve_free*: bytes that the store may take, and that it leaves free on the disk. *spared*: blobs that
    never go to make room, complete or not.
    """

    def __init__(
        self,
        books: Books,
        directory: disk.Directory,
        workers: Workers,
        trash: Trash,
        *,
        budget: int,
        reserve_free: int,
        remove: Callable[[BlobRecord], None],
        spared: Container[Digest] = (),
    ) -> None:
        self.count = 0
        """Blobs and windows evicted since the start."""
        self.can_punch = True
        """Whether the file system can give back parts of a file."""
        self._books, self._directory, self._workers, self._trash = books, directory, workers, trash
        self._budget, self._reserve_free = budget, reserve_free
        self._remove = remove
        self._spared = spared

    async def fit(self) -> None:
        """Give up what is too much already: after a start with a smaller budget. What is spared never fills it all."""
        if (excess := self._excess()) > 0:
            candidates = list(self._candidates(whole=True))
            await self._evict(choose(candidates, excess) or candidates)
            await self._trash.emptied()

    async def spare(self, room: int) -> None:
        """Have *room* bytes free if that can be had: the windows that were not read for longest go first."""
        if (excess := self._books.used + room - self._budget) > 0 and (plan := choose(self._candidates(), excess)):
            await self._evict(plan)
            await self._trash.emptied()

    async def reserve(self, staged: Staged, promised: int) -> None:
        """Promise *promised* bytes in all to *staged*, and make room for them. Raises StoreFull."""
        before, staged.promised = staged.promised, promised
        try:
            for _ in range(ROUNDS):
                excess = self._excess()
                if excess <= 0:
                    break
                # A window frees less than its share of a partial blob: there are its sidecars, and what was not noted.
                plan = choose(self._candidates(), excess) or choose(self._candidates(whole=True), excess)
                if plan is None:
                    raise StoreFull(f"no room for {promised} bytes")
                await self._evict(plan)
            else:
                raise StoreFull(f"no room for {promised} bytes")
            await self._trash.emptied()
        except BaseException:
            staged.promised = before
            raise

    async def punch(self, digest: Digest, offset: int, length: int) -> int:
        """Give up the pieces that lie within [offset, offset+length) of a partial blob: bytes freed on disk.

        Of a staged blob only what nobody reads: that is the caller's to know.
        """
        part = self._books.staged.get(digest) or self._books.partials.get(digest)
        if part is None:
            return 0
        layout = geometry(part.size)
        stop = min(offset + length, layout.size)
        # Whole pieces only; the last one may end short.
        first = -(-offset // layout.piece_length)
        last = layout.pieces if stop == layout.size else stop // layout.piece_length
        gone = [piece for piece in range(first, last) if piece in part.pieces]
        for piece in gone:
            del part.pieces[piece]
        spans = [layout.piece_span(piece) for piece in gone]
        if isinstance(part, PartialRecord):
            before = part.allocated
            await self._workers.to_end(self.thin(part, spans))
            return max(0, before - part.allocated)
        with part.share() as reader:
            before = part.allocated()
            await part.dropped(gone)
            self.can_punch &= await self._workers.to_end(self._workers.run(disk.punch, reader.fd, spans))
            return max(0, before - os.fstat(reader.fd).st_blocks * 512)

    async def thin(self, part: PartialRecord, spans: list[tuple[int, int]]) -> None:
        """Give back the (offset, length) *spans* of a partial blob, whose record has lost those pieces already."""
        async with part.lock:
            try:
                allocated, stamp, punched = await self._workers.run(
                    disk.thin, self._directory, part.digest, part.size, dict(part.pieces), part.origin, spans
                )
            except OSError as error:
                log.warning("cannot-thin", extra={"fields": {"digest": part.digest, "error": error.strerror}})
                return
            self.can_punch &= punched
            part.allocated = allocated
            if part.trusted:
                part.trusted = stamp

    def _excess(self) -> int:
        """Bytes that must come free so that all that is promised fits the budget and the disk."""
        over = self._books.used - self._budget
        if coming := self._books.coming:
            try:
                stat = os.statvfs(self._directory.root)
            except OSError as error:
                raise translate(error) from None
            free = stat.f_bavail * stat.f_frsize + self._trash.bytes
            over = max(over, coming + self._reserve_free - free)
        return over

    def _candidates(self, *, whole: bool = False) -> Iterator[Candidate]:
        for blob in self._books.blobs.values():
            if not blob.pinned and blob.digest not in self._spared:
                yield Candidate(blob.digest, blob.used, cost(blob.stamp.size))
        for part in self._books.partials.values():
            if part.digest in self._spared:
                continue
            if whole or not self.can_punch or part.lock.locked():
                yield Candidate(part.digest, part.last, part.cost, partial=True)
                continue
            for window, size in part.bytes_by_window().items():
                yield Candidate(part.digest, part.windows.get(window, part.used), size, True, window)

    async def _evict(self, plan: list[Candidate]) -> None:
        thin: dict[Digest, set[int]] = {}
        for candidate in plan:
            self.count += 1
            if candidate.window is not None:
                thin.setdefault(candidate.digest, set()).add(candidate.window)
            elif candidate.partial:
                self._delete(self._books.partials[candidate.digest])
            else:
                log.info("evicted", extra={"fields": {"digest": candidate.digest, "bytes": candidate.frees}})
                self._remove(self._books.blobs[candidate.digest])
        jobs = []
        for digest, windows in thin.items():
            part = self._books.partials[digest]
            if windows >= part.bytes_by_window().keys():
                self._delete(part)
                continue
            layout = geometry(part.size)
            gone = [piece for index in sorted(windows) for piece in part.among(layout.windows[index])]
            for piece in gone:
                del part.pieces[piece]
            jobs.append(self.thin(part, [layout.piece_span(piece) for piece in gone]))
        if jobs:
            await self._workers.to_end(_all(jobs))

    def _delete(self, part: PartialRecord) -> None:
        del self._books.partials[part.digest]
        self._trash.throw_away([self._directory.staging(part.digest), self._directory.log(part.digest)], part.cost)


async def _all(jobs: list[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*jobs)
