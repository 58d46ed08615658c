"""Files whose URL names no digest: kept on this node only, never shared, gone with the process.

Nothing can vouch for such bytes, so no peer gets them and no restart trusts them. The files have no name in
their directory: whatever way the process ends, the disk space is free again.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mirror.front.access import fingerprint
from mirror.front.blobs import Span
from mirror.front.passthrough import ranged
from swarm.blob.errors import SourceBroken, SourceError, StoreFull
from swarm.storage.errnos import translate
from swarm.upstream.source import Source

BLOCK = 256 * 1024
"""Bytes that are asked from upstream at least: four of overlaybd's reads, or one of its background reads."""

RUN = 4 * 1024 * 1024
"""Bytes asked in one request at most; also what one reader waits for before it gets the next bytes."""

BUDGET = 1024 * 1024 * 1024
"""Bytes on disk. Without digests there is no sharing, so this cache only helps repeated reads of one node."""

FILES = 256
"""Files open at once: each costs a descriptor."""


@dataclass(eq=False)
class OpaqueFile:
    """One file, as far as it was read. *etag*: as upstream said when it was first read, "" if it did not."""

    size: int
    etag: str
    fd: int
    users: int = 0
    gone: bool = False
    blocks: set[int] = field(default_factory=set)
    coming: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Bytes on disk, rounded up to blocks."""
        return (len(self.blocks) + len(self.coming)) * BLOCK


class OpaqueCache:
    """The files of one agent. *budget* in bytes."""

    def __init__(self, directory: Path, budget: int = BUDGET, files: int = FILES) -> None:
        self._directory = directory
        self._budget = budget
        self._most = files
        self._files: OrderedDict[bytes, OpaqueFile] = OrderedDict()
        self._making: dict[bytes, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes on disk."""
        return sum(file.held for file in self._files.values())

    @asynccontextmanager
    async def open(self, place: str, url: str, size: int, etag: str) -> AsyncIterator[OpaqueFile]:
        """The file of *size* bytes at *url*, whose part without query is *place*. Raises StoreFull.

        A strong *etag* names the bytes, whatever the query says (signatures change). Without one the whole URL is
        the key: who asks for `?id=2` must not get what `?id=1` was.
        """
        named = bool(etag) and not etag.startswith("W/")
        key = fingerprint(place if named else url, etag, str(size))
        while (file := self._files.get(key)) is None:
            await asyncio.shield(self._made(key, size, etag))
        self._files.move_to_end(key)
        file.users += 1
        try:
            self._evict(0)
            yield file
        finally:
            file.users -= 1
            _close_unused(file)

    def _made(self, key: bytes, size: int, etag: str) -> asyncio.Task[None]:
        """The one task that makes the file of *key*, for all who come for it first."""
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._make(key, size, etag))
            self._making[key] = task
            task.add_done_callback(lambda _: self._making.pop(key, None))
        return task

    async def _make(self, key: bytes, size: int, etag: str) -> None:
        fd = await asyncio.to_thread(_nameless, self._directory, size)
        if self._closed:
            os.close(fd)
            raise StoreFull("the agent ends")
        self._files[key] = OpaqueFile(size, etag, fd)

    async def read(self, file: OpaqueFile, source: Source, start: int, stop: int) -> AsyncIterator[Span]:
        """Bytes [start, stop) in order; missing blocks come from *source*. Raises SourceError, StoreFull."""
        while start < stop:
            end = min(stop, (start // RUN + 1) * RUN)
            wanted = range(start // BLOCK, -(-end // BLOCK))
            origin = "disk" if all(block in file.blocks for block in wanted) else "upstream"
            if origin == "upstream":
                await self._bring(file, source, wanted)
            yield Span(file.fd, start, end - start, origin)
            start = end

    async def _bring(self, file: OpaqueFile, source: Source, wanted: range) -> None:
        # A block that another reader asked for may fail with that reader's credentials: then ours are tried.
        for attempt in (1, 2):
            missing = [block for block in wanted if block not in file.blocks and block not in file.coming]
            if missing:
                self._evict(len(missing) * BLOCK)
            for first, last in _runs(missing):
                task = asyncio.create_task(_fetch(file, source, first, last))
                file.users += 1
                for block in range(first, last + 1):
                    file.coming[block] = task
                task.add_done_callback(lambda done, a=first, b=last: _came(file, done, a, b))  # type: ignore[misc]
            mine = {file.coming[block] for block in missing}
            tasks = {file.coming[block] for block in wanted if block in file.coming}
            failures = [result for result in await _all(tasks) if result is not None]
            if not failures:
                if all(block in file.blocks for block in wanted):
                    return
            elif attempt == 2 or mine == tasks:
                raise failures[0]
        raise SourceBroken(f"{source.upstream} did not send every block")

    def _evict(self, room: int) -> None:
        """Give up files that nobody reads, the longest unused first. Raises StoreFull if that is not enough."""
        for key in list(self._files):
            if self.held + room <= self._budget and len(self._files) <= self._most:
                return
            if not self._files[key].users:
                self._drop(key)
        if room and self.held + room > self._budget:
            raise StoreFull("no room for files without a digest")

    def _drop(self, key: bytes) -> None:
        file = self._files.pop(key)
        file.gone = True
        _close_unused(file)

    def close(self) -> None:
        """Give up everything that nobody reads."""
        self._closed = True
        for key in list(self._files):
            self._drop(key)


def _close_unused(file: OpaqueFile) -> None:
    if file.gone and not file.users and file.fd >= 0:
        fd, file.fd = file.fd, -1
        os.close(fd)


def _nameless(directory: Path, size: int) -> int:
    """The descriptor of a sparse file without a name. Blocks. Raises StoreFull."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
    except OSError as error:
        raise StoreFull(f"no file for bytes without a digest: {error.strerror}") from None
    return fd


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Ascending *blocks* as runs (first, last) of neighbours."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


async def _all(tasks: set[asyncio.Task[None]]) -> list[SourceError | StoreFull | None]:
    """Wait for *tasks* without taking them along if this reader is cancelled; what each raised."""
    if tasks:
        await asyncio.wait(tasks)
    results: list[SourceError | StoreFull | None] = []
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, SourceError | StoreFull):
            raise error
        results.append(error)
    return results


async def _fetch(file: OpaqueFile, source: Source, first: int, last: int) -> None:
    start, stop = first * BLOCK, min((last + 1) * BLOCK, file.size)
    async with source.open(start, stop) as body:
        if body.total != file.size or body.etag != file.etag:
            raise SourceBroken(f"{source.upstream} has another file now")
        place = start
        async for chunk in ranged(body, start, stop):
            await asyncio.to_thread(_write, file.fd, chunk, place)
            place += len(chunk)


def _came(file: OpaqueFile, task: asyncio.Task[None], first: int, last: int) -> None:
    good = not task.cancelled() and task.exception() is None
    for block in range(first, last + 1):
        del file.coming[block]
        if good:
            file.blocks.add(block)
    file.users -= 1
    _close_unused(file)


def _write(fd: int, chunk: bytes, offset: int) -> None:
    """All of *chunk* into *fd*. Blocks. Raises StoreFull."""
    view = memoryview(chunk)
    try:
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise translate(error) from None
