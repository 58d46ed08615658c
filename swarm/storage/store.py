"""The blobs on this node's disk: staged, finished, found again after a crash, evicted within a budget.

All methods are for the event loop; what blocks runs in threads. Every change of the books is made
between two awaits, and every name leaves its place by a rename, so no two tasks meet halfway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path

from swarm.blob.digest import Digest
from swarm.blob.errors import StoreFull
from swarm.blob.metainfo import check_hashes
from swarm.storage import disk
from swarm.storage.books import BlobRecord, Books, PartialRecord, gaps
from swarm.storage.changes import Changes, Listener
from swarm.storage.errnos import is_scarcity
from swarm.storage.evict import blocks, cost, sidecars
from swarm.storage.eviction import Eviction
from swarm.storage.hashing import Hasher
from swarm.storage.held import BlobHandle, OpenFile
from swarm.storage.memory import Memory
from swarm.storage.proof import LASTS, Proof
from swarm.storage.recheck import Recheck
from swarm.storage.sidecar import stamp_of
from swarm.storage.staged import Staged
from swarm.storage.trash import Trash
from swarm.storage.workers import Workers

log = logging.getLogger("shoal.swarm")

RESERVE_FREE = 256 * 1024 * 1024
"""Bytes of the disk left to others: a node whose disk is full evicts pods."""

SAVE_USE = 60.0
"""Seconds between two times that the last use of a blob is written down: order survives a restart well enough."""


class Store:
    """A directory of blobs. *budget*: bytes that it may take, with all that lies beside the blobs.

    *reserve_free*: bytes of the disk that it leaves free. *spared*: blobs that are not evicted (swarm.storage.kept).
    *clock*: seconds since the epoch.
    """

    def __init__(
        self,
        root: Path,
        budget: int,
        *,
        reserve_free: int = RESERVE_FREE,
        spared: Container[Digest] = (),
        hasher: Hasher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.budget = budget
        self.trouble = ""
        """Why nothing can be kept, as long as the directory is gone; else empty."""
        self.hasher = hasher or Hasher()
        self._owns_hasher = hasher is None
        self._clock = clock
        self._directory = disk.Directory(root)
        self._books = Books()
        self._changes = Changes()
        self._workers = Workers()
        self._trash = Trash(self._directory.trash, self._workers)
        self._eviction = Eviction(
            self._books,
            self._directory,
            self._workers,
            self._trash,
            budget=budget,
            reserve_free=reserve_free,
            remove=self._remove,
            spared=spared,
        )
        self._recheck = Recheck(self._books, self._directory, self._workers, self.hasher, self)
        self._memory = Memory(self._workers)
        self._lock_fd = -1
        self._closing = False

    # -- life ------------------------------------------------------------------------------------

    def on_change(self, listener: Listener) -> None:
        """Tell *listener* of blobs that are evicted, vanish or are found wrong, and of those that were in doubt and are
        right. A blob that is finished is told by whoever brought it in."""
        self._changes.add(listener)

    async def open(self) -> None:
        """Take the directory, find what a former process left. Raises StoreUnusable.

        Blobs whose file is not as it was verified are read again in the background: see `on_change`.
        """
        self._lock_fd = await self._workers.run(disk.prepare, self._directory)
        blobs, partials = await self._workers.run(disk.scan, self._directory)
        for found in blobs:
            blob = BlobRecord(
                found.digest, found.stamp, found.meta.hashes if found.meta else b"", found.used, found.used
            )
            self._books.blobs[found.digest] = blob
            if found.meta is None:
                self._recheck.doubt(blob)
        for part in partials:
            self._books.partials[part.digest] = PartialRecord(
                part.digest, part.size, part.allocated, part.pieces, part.used, origin=part.origin
            )
        await self._eviction.fit()

    async def close(self) -> None:
        """Leave everything as a restart wants to find it. Staged blobs are kept; checks are broken off."""
        self._closing = True
        for blob in self._books.blobs.values():
            if blob.checking:
                blob.checking.cancel()
        await self._workers.drain()
        for blob in list(self._books.blobs.values()):
            if blob.linger:
                self.forget(blob.linger)
        for staged in list(self._books.staged.values()):
            await self.abandon(staged, keep=True)
        await self._workers.drain()
        for blob in self._books.blobs.values():
            if blob.used > blob.saved:
                await self._workers.run(_save_use, self._directory.meta(blob.digest), blob.used)
        if self._owns_hasher:
            self.hasher.close()
        await self._workers.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- complete blobs --------------------------------------------------------------------------

    def get(self, digest: Digest) -> BlobHandle | None:
        """The complete blob, safe from eviction until the Held is closed. None: not here, or in doubt."""
        blob = self._books.blobs.get(digest)
        if blob is None or self._closing:
            return None
        if blob.suspect:
            self._recheck.doubt(blob)
            return None
        path = self._directory.blob(digest)
        file = blob.open_file
        fd = -1
        try:
            if file is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # By path if it is open: another file may have taken the name.
            stamp = stamp_of(path.stat() if file else os.fstat(fd))
        except FileNotFoundError:
            log.warning("blob-vanished", extra={"fields": {"digest": digest}})
            self.wrong(blob)
            return None
        except OSError as error:
            log.warning("blob-unreadable", extra={"fields": {"digest": digest, "error": error.strerror}})
            if not is_scarcity(error):
                self.wrong(blob)
            return None
        if stamp != blob.stamp:
            if fd >= 0:
                os.close(fd)
            self._recheck.doubt(blob)
            return None
        if file is None:
            file = blob.file = OpenFile(fd, self._workers.close_fd)
        self._use(blob)
        if blob.proof is None:
            blob.proof = Proof(digest, stamp.size, blob.hashes, self.hasher, partial(self._recheck.unproven, blob))
        return BlobHandle(digest, stamp.size, path, blob.hashes, "disk", file, blob.proof)

    async def get_checked(self, digest: Digest) -> BlobHandle | None:
        """Like `get`, but waits until a blob in doubt was read again."""
        held = self.get(digest)
        blob = self._books.blobs.get(digest)
        if held is None and blob is not None and blob.suspect:
            await self.check(digest)
            held = self.get(digest)
        return held

    async def check(self, digest: Digest) -> bool:
        """Read the blob again now: is it right? Dropped if not. False too if it is not here."""
        blob = self._books.blobs.get(digest)
        if blob is None or self._closing:
            return False
        return await self._recheck.now(blob)

    def complete(self) -> Iterator[tuple[Digest, int]]:
        """(digest, size) of every complete blob that is not in doubt."""
        return iter([(b.digest, b.stamp.size) for b in self._books.blobs.values() if not b.suspect])

    def size_of(self, digest: Digest) -> int | None:
        """Bytes of a complete blob that is not in doubt."""
        blob = self._books.blobs.get(digest)
        return None if blob is None or blob.suspect else blob.stamp.size

    def partial_size(self, digest: Digest) -> int | None:
        """Bytes of the whole blob of which pieces are here, while nobody brings it in."""
        part = self._books.partials.get(digest)
        return part.size if part is not None and part.pieces else None

    @property
    def evictions(self) -> int:
        """Blobs and windows evicted since the start."""
        return self._eviction.count

    @property
    def used(self) -> int:
        """Bytes of the budget that are taken or promised."""
        return self._books.used

    # -- blobs on their way in -------------------------------------------------------------------

    async def stage(
        self, digest: Digest, size: int, *,
        promise: int | None = None, spare: int = 0, origin: str = "", only: bool = False,
    ) -> Staged:  # fmt: skip
        """Begin a blob of *size* bytes, or go on with a partial one; makes room for it.

        *promise*: bytes to reserve instead of *size*, for a blob that is only read in parts (see
        Staged.grow). *spare*: bytes to have free beside a partial blob, if windows can be given up for them, its own
        among them. *origin*: of which origin its pieces will be; *only*: a partial blob of another is of no use.
        Raises StoreFull; ValueError if it is staged already.
        """
        if digest in self._books.staged:
            raise ValueError(f"already staged: {digest}")
        if self._closing:
            raise StoreFull("the store is closing")
        await self._make_directories()
        if spare and digest in self._books.partials:
            await self._eviction.spare(min(spare, self.budget // 8))
        if digest in self._books.staged:
            raise ValueError(f"already staged: {digest}")
        old = self._books.partials.pop(digest, None)
        staged = self._books.staged[digest] = Staged(self, digest, size, self._directory.staging(digest))
        staged.promised = staged.before = old.cost if old else 0
        try:
            if old:
                async with old.lock:  # windows of it may just be given up
                    staged.promised = staged.before = old.cost
            wanted = size if promise is None else min(promise, size)
            await self._eviction.reserve(staged, max(staged.promised, blocks(wanted) + sidecars(size)))
            pieces: dict[int, bytes] = {}
            if old and old.size == size and not (only and old.origin != origin):
                # As long as a proof lasts: the disk may have lost pieces since.
                trusted = old.trusted if self._clock() - old.used < LASTS else None
                verify = partial(disk.verify, staged.path, size, old.pieces, trusted)
                pieces = await self.hasher.run(verify)
                staged.used = dict(old.windows)
            old = old if pieces else None
            staged.origin = origin if not old or old.origin == origin else ""
            await self._workers.to_end(self._open_staged(staged, pieces))
        except BaseException:
            if staged.file:  # cancelled when all was done
                await self.abandon(staged, keep=True)
            else:
                del self._books.staged[digest]
                if old:
                    self._books.partials[digest] = old
            raise
        return staged

    async def stage_unkept(self, digest: Digest, size: int, *, origin: str = "") -> Staged:
        """A place in memory for a blob that the disk does not take: shared while it comes in, gone once abandoned.

        Raises StoreFull if there is no memory for it either; ValueError if it is staged already.
        """
        if digest in self._books.staged:
            raise ValueError(f"already staged: {digest}")
        if self._closing:
            raise StoreFull("the store is closing")
        file = self._memory.file(digest, size)
        staged = Staged(self, digest, size, Path(f"/proc/self/fd/{file.fd}"))
        staged.kept = staged.named = False
        staged.origin = origin
        staged.attach(file, -1, {})
        self._books.staged[digest] = staged
        return staged

    async def grow(self, staged: Staged, promised: int) -> None:
        """Reserve *promised* bytes of the blob itself in all. Raises StoreFull."""
        await self._eviction.reserve(
            staged, max(staged.promised, blocks(min(promised, staged.size)) + sidecars(staged.size))
        )

    async def finish(self, staged: Staged, hashes: bytes) -> BlobHandle:
        """See Staged.finish."""
        check_hashes(hashes, staged.geometry.pieces)
        if staged.done or staged.file is None:
            raise ValueError(f"not staged: {staged.digest}")
        if not staged.kept:
            raise StoreFull("it is in memory only")
        file = staged.file
        file.enter()
        try:
            await self._workers.to_end(self._finish(staged, file, hashes))
            return BlobHandle(staged.digest, staged.size, self._directory.blob(staged.digest), hashes, "disk", file)
        finally:
            file.leave()

    def forget(self, staged: Staged) -> None:
        """See Staged.forget."""
        if not staged.done:
            raise ValueError(f"not finished: {staged.digest}")
        if not staged.finished:
            return  # abandoned
        blob = self._books.blobs.get(staged.digest)
        if blob and blob.linger is staged:
            blob.linger = None
        self._drop_names(staged)
        staged.detach()

    async def abandon(self, staged: Staged, keep: bool) -> None:
        """See Staged.abandon."""
        if staged.finished:
            self.forget(staged)
        else:
            await self._workers.to_end(self._abandon(staged, keep))

    async def punch(self, digest: Digest, offset: int, length: int) -> int:
        """Give up the pieces that lie within [offset, offset+length) of a partial blob: bytes freed on disk.

        Of a staged blob only what nobody reads: that is the caller's to know.
        """
        return await self._eviction.punch(digest, offset, length)

    async def emptied(self) -> None:
        """What was given up so far is off the disk."""
        await self._trash.emptied()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    # -- verdicts of checks (Verdicts) -----------------------------------------------------------

    def right(self, blob: BlobRecord) -> None:
        """See Verdicts."""
        self._changes.tell(blob.digest, blob.stamp.size)

    def wrong(self, blob: BlobRecord) -> None:
        """See Verdicts."""
        if self._books.blobs.get(blob.digest) is blob:
            if file := blob.open_file:
                file.lost = True
            self._remove(blob)

    # -- inside ----------------------------------------------------------------------------------

    async def _make_directories(self) -> None:
        """They may have been taken away under us: made again, and the blobs that went with them forgotten.

        Raises StoreFull if they cannot be made.
        """
        try:
            missing = await self._workers.run(disk.make, self._directory)
        except OSError as error:
            if not self.trouble:
                # Told once, and without a traceback: whoever took the directory away knows how.
                log.error("store-gone", extra={"fields": {"directory": str(self.root), "error": error.strerror}})  # noqa: TRY400
            self.trouble = f"the store directory is gone and cannot be made: {error.strerror}"
            raise StoreFull(self.trouble) from None
        self.trouble = ""
        if missing:
            log.error("store-emptied", extra={"fields": {"directory": str(self.root)}})
            for digest in list(self._books.blobs):
                if held := self.get(digest):  # forgets it if it is not there
                    held.close()

    async def _open_staged(self, staged: Staged, pieces: dict[int, bytes]) -> None:
        log_path = self._directory.log(staged.digest)
        if pieces:
            fd, log_fd = await self._workers.run(disk.reopen, staged.path, log_path, staged.size, pieces, staged.origin)
        else:
            fd, log_fd = await self._workers.run(disk.create, staged.path, log_path, staged.size, staged.origin)
        staged.attach(OpenFile(fd, self._workers.close_fd), log_fd, pieces)

    async def _finish(self, staged: Staged, file: OpenFile, hashes: bytes) -> None:
        await self._make_directories()
        stamp = await self._workers.run(disk.commit, self._directory, staged.digest, file.fd, hashes)
        old = self._books.blobs.pop(staged.digest, None)
        if old and old.checking:
            old.checking.cancel()
        now = self._clock()
        staged.done = staged.finished = True
        del self._books.staged[staged.digest]
        self._books.blobs[staged.digest] = BlobRecord(staged.digest, stamp, hashes, now, now, file=file, linger=staged)

    async def _abandon(self, staged: Staged, keep: bool) -> None:
        if staged.done or staged.file is None:
            return
        staged.done = True
        if keep and staged.pieces and staged.kept:
            now, file = self._clock(), staged.file
            used, size = dict(staged.used), staged.size
            kept = PartialRecord(staged.digest, size, 0, staged.pieces, now, used, origin=staged.origin)
            try:
                await self._workers.run(staged.close_log)
                # What was not noted cannot be used later.
                self._eviction.can_punch &= await self._workers.run(
                    disk.punch, file.fd, list(gaps(staged.geometry, staged.pieces))
                )
                stat = os.fstat(file.fd)
                kept.allocated, kept.trusted = stat.st_blocks * 512, stamp_of(stat)
                staged.named = False
                self._books.partials[staged.digest] = kept
            except OSError as error:
                log.warning("partial-dropped", extra={"fields": {"digest": staged.digest, "error": error.strerror}})
        self._drop_names(staged)
        self._books.staged.pop(staged.digest, None)
        staged.detach()

    def _drop_names(self, staged: Staged) -> None:
        if staged.named:
            staged.named = False
            blob = self._books.blobs.get(staged.digest)
            size = 0 if blob and blob.file is staged.file else staged.allocated()
            self._trash.throw_away([staged.path, self._directory.log(staged.digest)], size)
            self._workers.spawn(self._workers.run(staged.close_log))

    def _remove(self, blob: BlobRecord) -> None:
        del self._books.blobs[blob.digest]
        if blob.linger:
            self._drop_names(blob.linger)
        if blob.checking and blob.checking is not asyncio.current_task():
            blob.checking.cancel()  # its descriptor holds the space
            self._trash.await_too(blob.checking)
        self._changes.tell(blob.digest, None)  # first: nobody is promised a blob that is no longer there
        # The name before the meta: killed in between, a meta alone is rubbish, a blob alone is read again.
        paths = [self._directory.blob(blob.digest), self._directory.meta(blob.digest)]
        self._trash.throw_away(paths, 0 if blob.open_file else cost(blob.stamp.size))

    def _use(self, blob: BlobRecord) -> None:
        blob.used = self._clock()
        if blob.used - blob.saved >= SAVE_USE:
            blob.saved = blob.used
            self._workers.submit(_save_use, self._directory.meta(blob.digest), blob.used)


def _save_use(meta: Path, used: float) -> None:
    """Write down when a blob was used last. Blocks."""
    with contextlib.suppress(OSError):
        os.utime(meta, (used, used))
