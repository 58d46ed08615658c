"""The blobs on this node's disk: staged, finished, found again after a crash, evicted within a budget.

All methods are for the event loop; what blocks runs in threads. Every change of the books is made
between two awaits, and every name leaves its place by a rename, so no two tasks meet halfway.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from swarm.blob.digest import Digest
from swarm.blob.errors import StoreFull
from swarm.blob.geometry import Window, geometry
from swarm.blob.metainfo import check_hashes
from swarm.storage import disk
from swarm.storage.evict import Candidate, blocks, choose, cost, sidecars
from swarm.storage.hashing import Hasher
from swarm.storage.held import Held, OpenFile
from swarm.storage.sidecar import Stamp, encode_meta, stamp_of
from swarm.storage.staged import Staged

log = logging.getLogger("shoal.swarm")

RESERVE_FREE = 256 * 1024 * 1024
"""Bytes of the disk left to others: a node whose disk is full evicts pods."""

SAVE_USE = 60.0
"""Seconds between two times that the last use of a blob is written down: order survives a restart well enough."""

ROUNDS = 8
"""How often room is made again when a round freed less than it should, before the disk counts as full."""

CHECKS = 3
"""How often a blob is read again whose file changes while it is read."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Blob:
    """A complete blob."""

    digest: Digest
    stamp: Stamp
    hashes: bytes
    used: float
    saved: float = 0.0
    suspect: bool = False
    """Its file is not as it was verified: not served until it was read again."""
    file: OpenFile | None = None
    linger: Staged | None = None
    """Still has its staging name."""
    checking: asyncio.Task[bool] | None = None
    hurried: bool = False
    """Somebody waits for the check."""

    @property
    def pinned(self) -> bool:
        return self.linger is not None or self.open_file is not None

    @property
    def open_file(self) -> OpenFile | None:
        return self.file if self.file and self.file.users else None


@dataclass(slots=True, eq=False)
class _Partial:
    """A partial blob that nobody brings in now."""

    digest: Digest
    size: int
    allocated: int
    pieces: dict[int, bytes]
    used: float
    windows: dict[int, float] = field(default_factory=dict)
    trusted: Stamp | None = None
    """The stamp at which this process knew the pieces to be right; None: they are a former process's word."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def last(self) -> float:
        return max(self.windows.values(), default=self.used)

    @property
    def cost(self) -> int:
        return self.allocated + sidecars(self.size)


class Store:
    """A directory of blobs. *budget*: bytes that it may take, with all that lies beside the blobs.

    *reserve_free*: bytes of the disk that it leaves free. *clock*: seconds since the epoch.
    """

    def __init__(
        self,
        root: Path,
        budget: int,
        *,
        reserve_free: int = RESERVE_FREE,
        hasher: Hasher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.budget = budget
        self.evictions = 0
        """Blobs and windows evicted since the start."""
        self.hasher = hasher or Hasher()
        self.on_lost: Callable[[Digest], None] = lambda _digest: None
        """A complete blob goes: evicted, vanished, or found wrong. Called before its file is taken away."""
        self.on_found: Callable[[Digest, int], None] = lambda _digest, _size: None
        """A blob that had been in doubt was read again and is right (digest, size)."""
        self._owns_hasher = hasher is None
        self._reserve_free = reserve_free
        self._clock = clock
        self._layout = disk.Layout(root)
        self._blobs: dict[Digest, _Blob] = {}
        self._partials: dict[Digest, _Partial] = {}
        self._staged: dict[Digest, Staged] = {}
        self._threads = ThreadPoolExecutor(4, "shoal-store")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trashing: set[asyncio.Task[Any]] = set()
        self._trash_bytes = 0
        self._trash_count = 0
        self._can_punch = True
        self._lock_fd = -1
        self._closing = False

    # -- life ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the directory, find what a former process left. Raises StoreUnusable.

        Blobs whose file is not as it was verified are read again in the background: see `on_found`.
        """
        self._lock_fd = await self._run(disk.prepare, self._layout)
        blobs, partials = await self._run(disk.scan, self._layout)
        for found in blobs:
            blob = _Blob(found.digest, found.stamp, found.meta.hashes if found.meta else b"", found.used, found.used)
            self._blobs[found.digest] = blob
            if found.meta is None:
                self._doubt(blob)
        for part in partials:
            self._partials[part.digest] = _Partial(part.digest, part.size, part.allocated, part.pieces, part.used)
        if (excess := self._excess()) > 0:
            candidates = list(self._candidates(whole=True))
            await self._evict(choose(candidates, excess) or candidates)
            await self._emptied()

    async def close(self) -> None:
        """Leave everything as a restart wants to find it. Staged blobs are kept; checks are broken off."""
        self._closing = True
        for blob in self._blobs.values():
            if blob.checking:
                blob.checking.cancel()
        while pending := self._tasks | self._trashing:
            await asyncio.wait(pending)
        for blob in list(self._blobs.values()):
            if blob.linger:
                self.forget(blob.linger)
        for staged in list(self._staged.values()):
            await self.abandon(staged, keep=True)
        while pending := self._tasks | self._trashing:
            await asyncio.wait(pending)
        for blob in self._blobs.values():
            if blob.used > blob.saved:
                await self._run(self._save_use, blob)
        if self._owns_hasher:
            self.hasher.close()
        await asyncio.to_thread(self._threads.shutdown)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- complete blobs --------------------------------------------------------------------------

    def get(self, digest: Digest) -> Held | None:
        """The complete blob, safe from eviction until the Held is closed. None: not here, or in doubt."""
        blob = self._blobs.get(digest)
        if blob is None or self._closing:
            return None
        if blob.suspect:
            self._doubt(blob)
            return None
        path = self._layout.blob(digest)
        file = blob.open_file
        fd = -1
        try:
            if file is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # By path if it is open: another file may have taken the name.
            stamp = stamp_of(path.stat() if file else os.fstat(fd))
        except FileNotFoundError:
            log.warning("blob-vanished", extra={"fields": {"digest": digest}})
            self._lose(blob)
            return None
        except OSError as error:
            log.warning("blob-unreadable", extra={"fields": {"digest": digest, "error": error.strerror}})
            return None
        if stamp != blob.stamp:
            if fd >= 0:
                os.close(fd)
            self._doubt(blob)
            return None
        if file is None:
            file = blob.file = OpenFile(fd, self._close_fd)
        self._use(blob)
        return Held(digest, blob.stamp.size, path, blob.hashes, "disk", file)

    async def get_checked(self, digest: Digest) -> Held | None:
        """Like `get`, but waits until a blob in doubt was read again."""
        held = self.get(digest)
        blob = self._blobs.get(digest)
        if held is None and blob is not None and blob.suspect:
            await self.check(digest)
            held = self.get(digest)
        return held

    async def check(self, digest: Digest) -> bool:
        """Read the blob again now: is it right? Dropped if not. False too if it is not here."""
        blob = self._blobs.get(digest)
        if blob is None or self._closing:
            return False
        if blob.checking is None or not blob.hurried:
            if blob.checking:
                blob.checking.cancel()  # it waits its turn among the others in the background
            self._begin_check(blob, hurried=True)
        task = blob.checking
        assert task is not None
        await asyncio.wait([task])
        return not task.cancelled() and task.result()

    def complete(self) -> Iterator[tuple[Digest, int]]:
        """(digest, size) of every complete blob that is not in doubt."""
        return iter([(b.digest, b.stamp.size) for b in self._blobs.values() if not b.suspect])

    def size_of(self, digest: Digest) -> int | None:
        """Bytes of a complete blob that is not in doubt."""
        blob = self._blobs.get(digest)
        return None if blob is None or blob.suspect else blob.stamp.size

    def partial_size(self, digest: Digest) -> int | None:
        """Bytes of the whole blob of which pieces are here, while nobody brings it in."""
        part = self._partials.get(digest)
        return part.size if part is not None and part.pieces else None

    @property
    def used(self) -> int:
        """Bytes of the budget that are taken or promised."""
        whole = sum(cost(blob.stamp.size) for blob in self._blobs.values())
        idle = sum(part.cost for part in self._partials.values())
        return whole + idle + sum(staged.promised for staged in self._staged.values())

    # -- blobs on their way in -------------------------------------------------------------------

    async def stage(self, digest: Digest, size: int, *, promise: int | None = None, spare: int = 0) -> Staged:
        """Begin a blob of *size* bytes, or go on with a partial one; makes room for it.

        *promise*: bytes to reserve instead of *size*, for a blob that is only read in parts (see
        Staged.grow). *spare*: bytes to have free beside a partial blob, if windows can be given up for them, its own
        among them. Raises StoreFull; ValueError if it is staged already.
        """
        if digest in self._staged:
            raise ValueError(f"already staged: {digest}")
        if self._closing:
            raise StoreFull("the store is closing")
        if spare and digest in self._partials:
            await self._spare(min(spare, self.budget // 8))
            if digest in self._staged:
                raise ValueError(f"already staged: {digest}")
        old = self._partials.pop(digest, None)
        staged = self._staged[digest] = Staged(self, digest, size, self._layout.staging(digest))
        staged.promised = staged.before = old.cost if old else 0
        try:
            if old:
                async with old.lock:  # windows of it may just be given up
                    staged.promised = staged.before = old.cost
            wanted = size if promise is None else min(promise, size)
            await self._reserve(staged, max(staged.promised, blocks(wanted) + sidecars(size)))
            pieces: dict[int, bytes] = {}
            if old and old.size == size:
                verify = partial(disk.verify, staged.path, size, old.pieces, old.trusted)
                pieces = await self.hasher.run(verify)
                staged.used = dict(old.windows)
            if not pieces:
                old = None
            await self._to_end(self._open_staged(staged, pieces))
        except BaseException:
            if staged.file:  # cancelled when all was done
                await self.abandon(staged, keep=True)
            else:
                del self._staged[digest]
                if old:
                    self._partials[digest] = old
            raise
        return staged

    async def grow(self, staged: Staged, promised: int) -> None:
        """Reserve *promised* bytes of the blob itself in all. Raises StoreFull."""
        await self._reserve(staged, max(staged.promised, blocks(min(promised, staged.size)) + sidecars(staged.size)))

    async def finish(self, staged: Staged, hashes: bytes) -> Held:
        """See Staged.finish."""
        check_hashes(hashes, staged.geometry.pieces)
        if staged.done or staged.file is None:
            raise ValueError(f"not staged: {staged.digest}")
        file = staged.file
        file.enter()
        try:
            await self._to_end(self._finish(staged, file, hashes))
            return Held(staged.digest, staged.size, self._layout.blob(staged.digest), hashes, "disk", file)
        finally:
            file.leave()

    def forget(self, staged: Staged) -> None:
        """See Staged.forget."""
        if not staged.done:
            raise ValueError(f"not finished: {staged.digest}")
        if not staged.finished:
            return  # abandoned
        blob = self._blobs.get(staged.digest)
        if blob and blob.linger is staged:
            blob.linger = None
        self._drop_names(staged)
        staged.detach()

    async def abandon(self, staged: Staged, keep: bool) -> None:
        """See Staged.abandon."""
        if staged.finished:
            self.forget(staged)
        else:
            await self._to_end(self._abandon(staged, keep))

    async def punch(self, digest: Digest, offset: int, length: int) -> int:
        """Give up the pieces that lie within [offset, offset+length) of a partial blob: bytes freed on disk.

        Of a staged blob only what nobody reads: that is the caller's to know.
        """
        part = self._staged.get(digest) or self._partials.get(digest)
        if part is None:
            return 0
        cut = geometry(part.size)
        stop = min(offset + length, cut.size)
        # Whole pieces only; the last one may end short.
        first, last = -(-offset // cut.piece_length), cut.pieces if stop == cut.size else stop // cut.piece_length
        gone = [piece for piece in range(first, last) if piece in part.pieces]
        for piece in gone:
            del part.pieces[piece]
        spans = [cut.piece_span(piece) for piece in gone]
        if isinstance(part, _Partial):
            before = part.allocated
            await self._to_end(self._thin(part, spans))
            return max(0, before - part.allocated)
        with part.share() as reader:
            before = part.allocated()
            await part.dropped(gone)
            self._can_punch &= await self._to_end(self._run(disk.punch, reader.fd, spans))
            return max(0, before - os.fstat(reader.fd).st_blocks * 512)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    # -- inside ----------------------------------------------------------------------------------

    async def _open_staged(self, staged: Staged, pieces: dict[int, bytes]) -> None:
        log_path = self._layout.log(staged.digest)
        if pieces:
            fd, log_fd = await self._run(disk.reopen, staged.path, log_path, staged.size, pieces)
        else:
            fd, log_fd = await self._run(disk.create, staged.path, log_path, staged.size)
        staged.attach(OpenFile(fd, self._close_fd), log_fd, pieces)

    async def _finish(self, staged: Staged, file: OpenFile, hashes: bytes) -> None:
        stamp = await self._run(disk.commit, self._layout, staged.digest, file.fd, hashes)
        old = self._blobs.pop(staged.digest, None)
        if old and old.checking:
            old.checking.cancel()
        now = self._clock()
        staged.done = staged.finished = True
        del self._staged[staged.digest]
        self._blobs[staged.digest] = _Blob(staged.digest, stamp, hashes, now, now, file=file, linger=staged)

    async def _abandon(self, staged: Staged, keep: bool) -> None:
        if staged.done or staged.file is None:
            return
        staged.done = True
        if keep and staged.pieces:
            now, file = self._clock(), staged.file
            kept = _Partial(staged.digest, staged.size, 0, staged.pieces, now, dict(staged.used))
            try:
                await self._run(staged.close_log)
                # What was not noted cannot be used later.
                self._can_punch &= await self._run(disk.punch, file.fd, list(_gaps(staged)))
                stat = os.fstat(file.fd)
                kept.allocated, kept.trusted = stat.st_blocks * 512, stamp_of(stat)
                staged.named = False
                self._partials[staged.digest] = kept
            except OSError as error:
                log.warning("partial-dropped", extra={"fields": {"digest": staged.digest, "error": error.strerror}})
        self._drop_names(staged)
        self._staged.pop(staged.digest, None)
        staged.detach()

    def _drop_names(self, staged: Staged) -> None:
        if staged.named:
            staged.named = False
            blob = self._blobs.get(staged.digest)
            size = 0 if blob and blob.file is staged.file else staged.allocated()
            self._throw_away([staged.path, self._layout.log(staged.digest)], size)
            self._spawn(self._run(staged.close_log))

    def _excess(self) -> int:
        """Bytes that must come free so that all that is promised fits the budget and the disk."""
        over = self.used - self.budget
        coming = sum(max(0, staged.promised - staged.allocated()) for staged in self._staged.values())
        if coming:
            stat = os.statvfs(self.root)
            free = stat.f_bavail * stat.f_frsize + self._trash_bytes
            over = max(over, coming + self._reserve_free - free)
        return over

    async def _spare(self, room: int) -> None:
        """Have *room* bytes free if that can be had: the windows that were not read for longest go first."""
        if (excess := self.used + room - self.budget) > 0 and (plan := choose(self._candidates(), excess)):
            await self._evict(plan)
            await self._emptied()

    async def _reserve(self, staged: Staged, promised: int) -> None:
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
            await self._emptied()
        except BaseException:
            staged.promised = before
            raise

    def _candidates(self, *, whole: bool = False) -> Iterator[Candidate]:
        for blob in self._blobs.values():
            if not blob.pinned:
                yield Candidate(blob.digest, blob.used, cost(blob.stamp.size))
        for part in self._partials.values():
            if whole or not self._can_punch or part.lock.locked():
                yield Candidate(part.digest, part.last, part.cost, partial=True)
                continue
            for window, size in _windows(part).items():
                yield Candidate(part.digest, part.windows.get(window, part.used), size, True, window)

    async def _evict(self, plan: list[Candidate]) -> None:
        thin: dict[Digest, set[int]] = {}
        for candidate in plan:
            self.evictions += 1
            if candidate.window is not None:
                thin.setdefault(candidate.digest, set()).add(candidate.window)
            elif candidate.partial:
                self._delete(self._partials[candidate.digest])
            else:
                log.info("evicted", extra={"fields": {"digest": candidate.digest, "bytes": candidate.frees}})
                self._remove(self._blobs[candidate.digest])
        jobs = []
        for digest, windows in thin.items():
            part = self._partials[digest]
            if windows >= _windows(part).keys():
                self._delete(part)
                continue
            cut = geometry(part.size)
            gone = [piece for index in sorted(windows) for piece in _among(part, cut.windows[index])]
            for piece in gone:
                del part.pieces[piece]
            jobs.append(self._thin(part, [cut.piece_span(piece) for piece in gone]))
        if jobs:
            await self._to_end(_all(jobs))

    async def _thin(self, part: _Partial, spans: list[tuple[int, int]]) -> None:
        async with part.lock:
            try:
                allocated, stamp, punched = await self._run(
                    disk.thin, self._layout, part.digest, part.size, dict(part.pieces), spans
                )
            except OSError as error:
                log.warning("cannot-thin", extra={"fields": {"digest": part.digest, "error": error.strerror}})
                return
            self._can_punch &= punched
            part.allocated = allocated
            if part.trusted:
                part.trusted = stamp

    def _delete(self, part: _Partial) -> None:
        del self._partials[part.digest]
        self._throw_away([self._layout.staging(part.digest), self._layout.log(part.digest)], part.cost)

    def _remove(self, blob: _Blob) -> None:
        del self._blobs[blob.digest]
        if blob.linger:
            self._drop_names(blob.linger)
        if blob.checking and blob.checking is not asyncio.current_task():
            blob.checking.cancel()  # its descriptor holds the space
            self._trashing.add(blob.checking)
            blob.checking.add_done_callback(self._trashing.discard)
        self.on_lost(blob.digest)  # first: nobody is promised a blob that is no longer there
        # The name before the meta: killed in between, a meta alone is rubbish, a blob alone is read again.
        paths = [self._layout.blob(blob.digest), self._layout.meta(blob.digest)]
        self._throw_away(paths, 0 if blob.open_file else cost(blob.stamp.size))

    def _lose(self, blob: _Blob) -> None:
        if self._blobs.get(blob.digest) is blob:
            if file := blob.open_file:
                file.lost = True
            self._remove(blob)

    def _use(self, blob: _Blob) -> None:
        blob.used = self._clock()
        if blob.used - blob.saved >= SAVE_USE:
            self._save_use(blob)

    def _save_use(self, blob: _Blob) -> None:
        blob.saved = blob.used
        with contextlib.suppress(OSError):
            os.utime(self._layout.meta(blob.digest), (blob.used, blob.used))

    def _doubt(self, blob: _Blob) -> None:
        blob.suspect = True
        if blob.checking is None:
            self._begin_check(blob, hurried=False)

    def _begin_check(self, blob: _Blob, *, hurried: bool) -> asyncio.Task[bool]:
        task = self._spawn(self._read_again(blob, idle=not hurried))
        blob.checking, blob.hurried = task, hurried
        task.add_done_callback(partial(_checked, blob))
        return task

    async def _read_again(self, blob: _Blob, idle: bool) -> bool:
        read = partial(disk.read_sums, self._layout.blob(blob.digest))
        for _ in range(CHECKS):
            try:
                found = await self.hasher.run(read, idle=idle)
            except FileNotFoundError:
                break
            except OSError as error:
                if isinstance(disk.translate(error), StoreFull) and error.errno != errno.EIO:
                    return False  # out of descriptors or the like: says nothing about the blob
                break
            if self._blobs.get(blob.digest) is not blob:
                return False
            if found is None:
                continue
            stamp, sums = found
            if sums.digest != blob.digest:
                break
            if (stamp, sums.pieces) != (blob.stamp, blob.hashes):
                blob.stamp, blob.hashes = stamp, sums.pieces
                # Not written: read once more after a restart.
                with contextlib.suppress(OSError):
                    await self._run(disk.write_whole, self._layout.meta(blob.digest), encode_meta(stamp, sums.pieces))
            if blob.suspect:
                blob.suspect = False
                self.on_found(blob.digest, stamp.size)
            return True
        else:
            return False  # somebody keeps writing to it: in doubt until he stops
        log.warning("blob-wrong", extra={"fields": {"digest": blob.digest}})
        self._lose(blob)
        return False

    def _throw_away(self, paths: list[Path], size: int) -> None:
        """Take the files from their names at once, delete them in a thread. *size*: bytes that come free."""
        moved = []
        for path in paths:
            self._trash_count += 1
            aside = self._layout.trash / str(self._trash_count)
            try:
                path.rename(aside)
                moved.append(aside)
            except OSError:
                # Not there; or a disk so full that it cannot even rename.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if moved:
            self._trash_bytes += size
            task = self._spawn(self._delete_trash(moved, size))
            self._trashing.add(task)
            task.add_done_callback(self._trashing.discard)

    async def _delete_trash(self, paths: list[Path], size: int) -> None:
        try:
            await self._run(disk.delete, paths)
        finally:
            self._trash_bytes -= size

    async def _emptied(self) -> None:
        """What was thrown away so far is deleted."""
        if self._trashing:
            await asyncio.wait(set(self._trashing))

    def _close_fd(self, fd: int) -> None:
        try:
            self._threads.submit(os.close, fd)
        except RuntimeError:  # a reader outlived the store
            os.close(fd)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _to_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Await *work*; cancelled, still wait until it is done: what is half done on disk would stay so."""
        task = self._spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # retrieved: the cancellation is what is raised
            raise


async def _all(jobs: list[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*jobs)


def _checked(blob: _Blob, task: asyncio.Task[bool]) -> None:
    if blob.checking is task:
        blob.checking = None


def _windows(part: _Partial) -> dict[int, int]:
    """Window -> bytes of the pieces that the partial blob has there."""
    cut = geometry(part.size)
    found: dict[int, int] = {}
    for window in cut.windows:
        if pieces := _among(part, window):
            # Only the last piece of a blob is short.
            short = cut.size % cut.piece_length if pieces[-1] == cut.pieces - 1 else 0
            found[window.index] = len(pieces) * cut.piece_length - (short and cut.piece_length - short)
    return found


def _among(part: _Partial, window: Window) -> list[int]:
    """The pieces of *window* that the partial blob has, in order."""
    return [piece for piece in window.span if piece in part.pieces]


def _gaps(staged: Staged) -> Iterator[tuple[int, int]]:
    """(offset, length) of the runs of pieces that were not noted."""
    cut = staged.geometry
    start = 0
    for piece in sorted(staged.pieces):
        offset, length = cut.piece_span(piece)
        if offset > start:
            yield start, offset - start
        start = offset + length
    if start < cut.size:
        yield start, cut.size - start
