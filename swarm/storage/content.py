"""The blobs that containerd already has: its content directory, read-only and without its socket.

A blob there appears complete, by rename, and vanishes when containerd collects garbage. It is
offered by its name at once, but not one byte of it is served before its sha256 matched the name.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from swarm.blob.digest import Digest, from_hex, hex_of
from swarm.blob.errors import DigestInvalid
from swarm.blob.geometry import geometry
from swarm.storage.changes import Changes, Listener
from swarm.storage.disk import read_sums
from swarm.storage.errnos import is_scarcity
from swarm.storage.hashcache import HashCache
from swarm.storage.hashing import Hasher
from swarm.storage.held import BlobHandle, OpenFile
from swarm.storage.proof import Proof
from swarm.storage.sidecar import Meta, Stamp, stamp_of
from swarm.storage.watch import Watch

log = logging.getLogger("shoal.swarm")

BLOBS = Path("blobs/sha256")
"""Where blobs are below containerd's content directory (docs/contract.md, "Content store")."""

CHECKS = 3
"""How often a file is read again that changes while it is read: containerd sets its times after the rename."""


_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _File:
    """A blob in the directory."""

    stamp: Stamp
    hashes: bytes | None = None
    """Known once the sha256 matched, at this stamp."""
    proof: Proof | None = None
    """Made when it is first opened for reading; of these hashes."""
    file: OpenFile | None = None
    checking: asyncio.Task[bool] | None = None
    idle: bool = False
    """Nobody is in a hurry for the check."""
    waiters: int = 0

    @property
    def open_file(self) -> OpenFile | None:
        return self.file if self.file and self.file.users else None


class Content:
    """What lies in *directory* (`<containerd's content directory>/BLOBS`).

    *hasher*: shared with the store. *cache*: directory for piece hashes, so that a restart does not
    read everything again.
    """

    def __init__(
        self,
        directory: Path,
        hasher: Hasher,
        cache: Path,
    ) -> None:
        self.directory = directory
        self._changes = Changes()
        self._hasher = hasher
        self._cache = HashCache(cache)
        self._files: dict[Digest, _File] = {}
        self._refused: dict[Digest, Stamp] = {}
        self._watch = Watch(directory, self._changed)
        self._threads = ThreadPoolExecutor(1, "shoal-content")
        self._pending: set[str] | None = set()
        """Names to look at; None: all of them."""
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._complaint = ""
        self._closing = False

    def on_change(self, listener: Listener) -> None:
        """Tell *listener* of blobs that come and go."""
        self._changes.add(listener)

    async def open(self) -> None:
        """Begin to watch; returns when what is there now was listed. The directory may be missing."""
        if not await self._in_thread(self.directory.is_dir):
            # Quite right where containerd comes later, and all there is to see where the path is wrong.
            log.warning("content-absent", extra={"fields": {"directory": str(self.directory)}})
        self._watch.open()
        self._worker = asyncio.get_running_loop().create_task(self._work())
        await self._settled.wait()

    async def close(self) -> None:
        """End. Hashing is broken off; Held ones stay open."""
        self._closing = True
        self._watch.close()
        tasks: list[asyncio.Task[Any]] = [file.checking for file in self._files.values() if file.checking]
        if self._worker:
            tasks.append(self._worker)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.to_thread(self._threads.shutdown)

    def complete(self) -> Iterator[tuple[Digest, int]]:
        """(digest, size) of all that is offered. Not all of it has been read yet."""
        return iter([(digest, file.stamp.size) for digest, file in self._files.items()])

    def size_of(self, digest: Digest) -> int | None:
        """Bytes of a blob that is offered."""
        file = self._files.get(digest)
        return file.stamp.size if file else None

    def get(self, digest: Digest) -> BlobHandle | None:
        """The blob if its sha256 is known to match, and its file is as it was then; else None."""
        entry = self._files.get(digest)
        if entry is None or entry.hashes is None or self._closing:
            return None
        path = self._path(digest)
        file = entry.open_file
        fd = -1
        try:
            if file is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stamp = stamp_of(path.stat() if file else os.fstat(fd))
        except FileNotFoundError:
            self._gone(digest)
            return None
        except OSError as error:
            self._complain(error)
            if not is_scarcity(error):
                self._refuse(digest, entry)
            return None
        if stamp != entry.stamp:
            if fd >= 0:
                os.close(fd)
            entry.hashes = entry.proof = None
            return None
        if file is None:
            file = entry.file = OpenFile(fd, self._close_fd)
        if entry.proof is None:
            unproven = partial(self._unproven, digest, entry)
            entry.proof = Proof(digest, stamp.size, entry.hashes, self._hasher, unproven)
        return BlobHandle(digest, stamp.size, path, entry.hashes, "containerd", file, entry.proof)

    async def get_checked(self, digest: Digest) -> BlobHandle | None:
        """The blob, after its sha256 was computed if it was not known. None: not here, or wrong."""
        if await self._verified(digest, idle=False):
            return self.get(digest)
        return None

    async def hashes(self, digest: Digest, *, idle: bool = True) -> bytes | None:
        """Its piece hashes, 20 bytes each; None: not here, or wrong. *idle*: at low priority, one blob at a time."""
        if await self._verified(digest, idle=idle) and (file := self._files.get(digest)):
            return file.hashes
        return None

    # -- inside ----------------------------------------------------------------------------------

    def _path(self, digest: Digest) -> Path:
        return self.directory / hex_of(digest)

    async def _verified(self, digest: Digest, *, idle: bool) -> bool:
        """Whether the blob is right. Reads it unless that is known; given up when nobody waits any more."""
        if self._closing:
            return False
        if digest not in self._files:
            # It may be there although nothing was heard of it: no inotify, or not yet.
            await self._look({hex_of(digest)})
        else:
            with_held = self.get(digest)
            if with_held:
                with_held.close()
                return True
        file = self._files.get(digest)
        if file is None or self._closing:
            return False
        if file.checking is None or (file.idle and not idle):
            if file.checking:
                file.checking.cancel()  # it waits its turn among others; who waits for it waits for the new one
            file.idle = idle
            file.checking = asyncio.get_running_loop().create_task(self._check(digest, file))
            file.checking.add_done_callback(partial(_checked, file))
        file.waiters += 1
        try:
            return await _outcome(file)
        finally:
            file.waiters -= 1
            if not file.waiters and file.checking is not None:
                file.checking.cancel()

    async def _check(self, digest: Digest, file: _File) -> bool:
        try:
            for _ in range(CHECKS):
                found = await self._hasher.run(partial(read_sums, self._path(digest)), idle=file.idle)
                if found:
                    break
            else:
                return False
        except FileNotFoundError:
            if self._files.get(digest) is file:
                self._gone(digest)
            return False
        except OSError as error:
            self._complain(error)
            if not is_scarcity(error):
                self._refuse(digest, file)
            return False
        if self._files.get(digest) is not file:
            return False
        stamp, sums = found
        if sums.digest != digest:
            log.warning("content-wrong", extra={"fields": {"digest": digest, "path": str(self._path(digest))}})
            file.stamp = stamp
            self._refuse(digest, file)
            return False
        file.stamp, file.hashes, file.proof = stamp, sums.pieces, None
        await self._in_thread(self._cache.put, digest, stamp, sums.pieces)
        return True

    def _refuse(self, digest: Digest, file: _File) -> None:
        """Not offered while the file is as it is now: it is wrong, or cannot be read."""
        if self._files.get(digest) is file:
            self._refused[digest] = file.stamp
            self._gone(digest, file)

    def _unproven(self, digest: Digest, file: _File, why: str) -> None:
        log.warning(
            "content-wrong", extra={"fields": {"digest": digest, "path": str(self._path(digest)), "error": why}}
        )
        self._refuse(digest, file)

    def _changed(self, names: set[str] | None) -> None:
        if names is None or self._pending is None:
            self._pending = None
        else:
            self._pending |= names
        self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            names, self._pending = self._pending, set()
            await self._look(names)
            if not self._wake.is_set():
                self._settled.set()

    async def _look(self, names: set[str] | None) -> None:
        """Bring the books up to date for *names*; None: for all."""
        try:
            found = await self._in_thread(self._list, names, set(self._files))
        except OSError as error:
            self._complain(error)
            found = {}
        else:
            self._complaint = ""
        if names is None:
            gone = self._files.keys() - found.keys()
            self._refused = {digest: stamp for digest, stamp in self._refused.items() if digest in found}
        else:
            gone = _digests(names) - found.keys()
            for digest in gone:
                self._refused.pop(digest, None)
        for digest in gone:
            self._gone(digest)
        for digest, (stamp, meta) in found.items():
            self._seen(digest, stamp, meta)

    def _seen(self, digest: Digest, stamp: Stamp, meta: Meta | None) -> None:
        if self._refused.get(digest) == stamp:
            return
        self._refused.pop(digest, None)
        old = self._files.get(digest)
        if old and old.stamp == stamp:
            return
        hashes = meta.hashes if meta and meta.stamp == stamp else None
        if hashes is not None and len(hashes) != 20 * geometry(stamp.size).pieces:
            hashes = None
        if old and old.stamp.size == stamp.size:
            old.stamp, old.hashes, old.proof = stamp, hashes, None
            return
        if old:
            self._gone(digest)
        self._files[digest] = _File(stamp, hashes)
        self._changes.tell(digest, stamp.size)

    def _gone(self, digest: Digest, wrong: _File | None = None) -> None:
        file = self._files.pop(digest, None)
        if file is None:
            return
        if wrong and file.open_file:
            file.open_file.lost = True
        if file.checking and file.checking is not asyncio.current_task():
            file.checking.cancel()
        self._changes.tell(digest, None)

    def _list(self, names: set[str] | None, known: set[Digest]) -> dict[Digest, tuple[Stamp, Meta | None]]:
        """Files there, of *names* or all, and what a former process knew of the rest but *known*. Blocks; OSError."""
        try:
            present = os.listdir(self.directory) if names is None else names  # noqa: PTH208 (one call, no objects)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        stamps: dict[Digest, Stamp] = {}
        for digest in _digests(present):
            try:
                stat = self._path(digest).lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if S_ISREG(stat.st_mode):
                stamps[digest] = stamp_of(stat)
        metas = self._cache.load(stamps.keys() - known)
        return {digest: (stamp, metas.get(digest)) for digest, stamp in stamps.items()}

    def _complain(self, error: OSError) -> None:
        """Say what is wrong with the directory, once until it is well again."""
        complaint = error.strerror or str(error)
        if complaint != self._complaint:
            self._complaint = complaint
            log.warning("content-unreadable", extra={"fields": {"directory": str(self.directory), "error": complaint}})

    def _close_fd(self, fd: int) -> None:
        try:
            self._threads.submit(os.close, fd)
        except RuntimeError:  # a reader outlived us
            os.close(fd)

    async def _in_thread(self, work: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))


def _checked(file: _File, task: asyncio.Task[bool]) -> None:
    if file.checking is task:
        file.checking = None


async def _outcome(file: _File) -> bool:
    """What the check of *file* says, also if it is begun again in between."""
    while task := file.checking:
        await asyncio.wait([task])
        if not task.cancelled():
            return task.result()
        if file.checking is task:
            break
    return False


def _digests(names: Iterable[str]) -> set[Digest]:
    found = set()
    for name in names:
        try:
            found.add(from_hex(name))
        except DigestInvalid:
            continue  # not a blob: containerd's business
    return found
