"""Bring one window in from upstream: range request, pieces hashed and written as they arrive.

Bytes of a piece that is not complete when a body ends are kept: the next body begins after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from functools import partial

from swarm.blob.errors import SizeChanged, SourceBroken, SourceSilent
from swarm.blob.geometry import Geometry, Window
from swarm.storage.errnos import translate
from swarm.storage.staged import Staged
from swarm.upstream.source import Body, Source

ATTEMPTS = 3
"""Tries in a row without a byte, each at the offset that the last one reached."""

PAUSE = 0.1
"""Seconds before the first try of those after one that brought nothing; twice as many before the next."""

BEGUN = 16
"""Pieces of one blob of which a part is kept, in memory: as many as a board hands out claims, twice."""

MOST_WAITING = 1024 * 1024
"""Bytes of complete pieces that wait for the thread while it writes earlier ones: then upstream has to wait."""

LINGER = 0.01
"""Seconds that a complete piece waits for others to go to the thread together, up to MOST_WAITING. A job costs about
0.1 ms of the loop's time, a third of what a piece needs on a fast network; on a slow one pieces are further apart."""

_IOV_MAX = 512


def write_pieces(fd: int, pieces: list[list[memoryview]], offset: int) -> list[bytes]:
    """Write consecutive *pieces*, each a list of chunks, from *offset* on; their SHA-1s. Blocks. Raises StoreFull."""
    sums = []
    for chunks in pieces:
        sha1 = hashlib.sha1(usedforsecurity=False)
        for chunk in chunks:
            sha1.update(chunk)
        sums.append(sha1.digest())
    chunks = [chunk for piece in pieces for chunk in piece]
    if len(chunks) > _IOV_MAX:
        chunks = [memoryview(b"".join(chunks))]
    try:
        written, total = 0, sum(map(len, chunks))
        while written < total:
            written += os.pwritev(fd, chunks, offset + written)
            if written < total:
                chunks = [memoryview(b"".join(chunks))[written - total :]]
    except OSError as error:
        raise translate(error) from None
    return sums


class Begun:
    """Parts of pieces, from the first byte of each on: what bodies brought that ended in the middle of one."""

    def __init__(self) -> None:
        self._parts: dict[int, list[memoryview]] = {}

    def take(self, piece: int) -> list[memoryview]:
        """What is there of *piece*; it is the caller's from now on."""
        return self._parts.pop(piece, [])

    def keep(self, piece: int, chunks: list[memoryview]) -> None:
        """*chunks* came of *piece*, and it is not complete."""
        if not chunks:
            return
        if sum(map(len, chunks)) > sum(map(len, self._parts.get(piece, []))):
            self._parts[piece] = chunks
        while len(self._parts) > BEGUN:
            del self._parts[next(iter(self._parts))]

    def length(self, piece: int) -> int:
        """Bytes of *piece* that are there."""
        return sum(map(len, self._parts.get(piece, [])))

    def clear(self) -> None:
        """Nothing of it is of use."""
        self._parts.clear()


async def download_window(
    source: Source,
    layout: Geometry,
    window: Window,
    staged: Staged,
    pool: Executor,
    *,
    ready: Callable[[int], bool],
    on_bytes: Callable[[int], None],
    on_piece: Callable[[int, bytes], None],
    begun: Begun,
    first: Body | None = None,
) -> None:
    """Fetch the pieces of *window* that are not *ready* and write them into *staged*.

    *on_bytes*(n): n more bytes arrived from upstream. *on_piece*(piece, sha1): it is in the file.
    *begun*: parts of pieces, and where those are left that do not become complete.
    *first*: a body already opened at the window's start. Raises SourceError, SizeChanged, StoreFull.
    """
    failures, came = 0, 0

    def counted(count: int) -> None:
        nonlocal came
        came += count
        on_bytes(count)

    while (piece := next((p for p in window.span if not ready(p)), None)) is not None:
        came = 0
        try:
            if first is not None:
                body, first = first, None
                await take(body, layout, (piece, window.last_piece), staged, pool, counted, on_piece, begun)
            else:
                async with source.open(piece * layout.piece_length + begun.length(piece), window.end) as body:
                    await take(body, layout, (piece, window.last_piece), staged, pool, counted, on_piece, begun)
        except SourceSilent:
            raise
        except SourceBroken:
            failures = failures + 1 if not came else 0
            if failures >= ATTEMPTS:
                raise
            await asyncio.sleep(PAUSE * 2 ** (failures - 1) if failures else 0.0)


async def take(
    body: Body,
    layout: Geometry,
    pieces: tuple[int, int],
    staged: Staged,
    pool: Executor,
    on_bytes: Callable[[int], None],
    on_piece: Callable[[int, bytes], None],
    begun: Begun,
) -> None:
    """Read *pieces*, first and last, out of *body*: see `download_window`."""
    if body.total != layout.size:
        raise SizeChanged(f"{body.total} bytes upstream, {layout.size} on the board")
    piece, last = pieces
    writer = _Writer(staged, pool, layout, piece, on_piece)
    try:
        async with contextlib.aclosing(_in_pieces(body, layout, piece, last, on_bytes, begun)) as found:
            async for chunks in found:
                await writer.put(chunks)
        await writer.end()
    finally:
        await writer.stop()
    if writer.next <= last:
        raise SourceBroken("upstream ended the body early")


class _Writer:
    """Gives pieces to a thread as they become complete: several at once on a fast network, one by one on a slow one."""

    def __init__(
        self, staged: Staged, pool: Executor, layout: Geometry, piece: int, on_piece: Callable[[int, bytes], None]
    ) -> None:
        self.next = piece
        """The first piece that the thread was not given."""
        self._staged, self._pool, self._layout, self._on_piece = staged, pool, layout, on_piece
        self._loop = asyncio.get_running_loop()
        self._batch: list[list[memoryview]] = []
        self._job: asyncio.Future[list[bytes]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._given_at = 0.0
        self._most = max(1, MOST_WAITING // layout.piece_length)

    async def put(self, chunks: list[memoryview]) -> None:
        """The next piece. Waits while too many do. Raises StoreFull, OSError."""
        self._batch.append(chunks)
        while len(self._batch) >= self._most and self._job is not None:
            await self._settle()
        if self._job is not None:
            return
        wait = self._given_at + LINGER - self._loop.time()
        if len(self._batch) >= self._most or wait <= 0:
            self._give()
        elif self._timer is None:
            self._timer = self._loop.call_later(wait, self._give)

    async def end(self) -> None:
        """No more pieces: wait until all are in the file. Raises StoreFull, OSError."""
        while self._batch or self._job is not None:
            if self._job is None:
                self._give()
            await self._settle()

    async def stop(self) -> None:
        """Give the thread nothing more; what it was given is still told."""
        if self._timer is not None:
            self._timer.cancel()
        self._batch.clear()
        if self._job is not None:
            await asyncio.wait([self._job])

    async def _settle(self) -> None:
        job = self._job
        assert job is not None
        await asyncio.wait([job])
        job.result()

    def _give(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        first, pieces, self._batch = self.next, self._batch, []
        self.next += len(pieces)
        self._given_at = self._loop.time()
        file = self._staged.share()  # the thread must not write to a descriptor that was closed meanwhile
        offset = first * self._layout.piece_length
        job = self._job = self._loop.run_in_executor(self._pool, write_pieces, file.fd, pieces, offset)
        job.add_done_callback(lambda _: file.close())
        job.add_done_callback(partial(self._written, first))

    def _written(self, first: int, job: asyncio.Future[list[bytes]]) -> None:
        if job.cancelled() or job.exception() is not None:
            return  # whoever waits for the job is told
        self._job = None
        for place, sha1 in enumerate(job.result()):
            self._on_piece(first + place, sha1)
        if self._batch and self._timer is None:
            self._give()


async def _in_pieces(
    body: Body, layout: Geometry, piece: int, last: int, on_bytes: Callable[[int], None], begun: Begun
) -> AsyncGenerator[list[memoryview], None]:
    """The chunks of *body* grouped into pieces, from *piece* to *last*; not copied."""
    chunks = begun.take(piece)
    have = sum(map(len, chunks))
    skip = piece * layout.piece_length + have - body.offset
    if skip < 0:
        begun.keep(piece, chunks)
        raise SourceBroken("upstream began past the offset that it was asked for")
    need = layout.piece_span(piece)[1] - have
    try:
        async for received in body.chunks():
            chunk = memoryview(received)
            on_bytes(len(chunk))
            if skip:
                if len(chunk) <= skip:
                    skip -= len(chunk)
                    continue
                chunk, skip = chunk[skip:], 0
            while chunk:
                if len(chunk) < need:
                    chunks.append(chunk)
                    need -= len(chunk)
                    break
                chunks.append(chunk[:need])
                chunk = chunk[need:]
                whole, chunks = chunks, []
                piece += 1
                yield whole
                if piece > last:
                    return
                need = layout.piece_span(piece)[1]
    finally:
        begun.keep(piece, chunks)
