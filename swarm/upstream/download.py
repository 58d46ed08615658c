"""Bring one window in from upstream: range request, pieces hashed and written as they arrive."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial

from swarm.blob.errors import SourceBroken, SourceError
from swarm.blob.geometry import Geometry, Window
from swarm.storage.errnos import translate
from swarm.storage.staged import Staged
from swarm.upstream.source import Body, Source

ATTEMPTS = 3
"""Tries per claim without a new piece, each at the offset that the last one reached."""

MOST_WAITING = 1024 * 1024
"""Bytes of complete pieces that wait for the thread while it writes earlier ones: then upstream has to wait."""

LINGER = 0.01
"""Seconds that a complete piece waits for others to go to the thread together, up to MOST_WAITING. A job costs about
0.1 ms of the loop's time, a third of what a piece needs on a fast network; on a slow one pieces are further apart."""

_IOV_MAX = 512


class SizeChanged(SourceError):
    """Upstream says another size than the board."""


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


async def download_window(
    source: Source,
    cut: Geometry,
    window: Window,
    staged: Staged,
    pool: Executor,
    *,
    ready: Callable[[int], bool],
    on_bytes: Callable[[int], None],
    on_piece: Callable[[int, bytes], None],
    first: Body | None = None,
) -> None:
    """Fetch the pieces of *window* that are not *ready* and write them into *staged*.

    *on_bytes*(n): n more bytes arrived from upstream. *on_piece*(piece, sha1): it is in the file.
    *first*: a body already opened at the window's start. Raises SourceError, SizeChanged, StoreFull.
    """
    failures = 0
    while (piece := next((p for p in window.span if not ready(p)), None)) is not None:
        before = piece
        try:
            if first is not None:
                body, first = first, None
                await _take(body, cut, window, piece, staged, pool, on_bytes, on_piece)
            else:
                async with source.open(piece * cut.piece_length, window.end) as body:
                    await _take(body, cut, window, piece, staged, pool, on_bytes, on_piece)
        except SourceBroken:
            failures = failures + 1 if not ready(before) else 1
            if failures >= ATTEMPTS:
                raise
            await asyncio.sleep(0.05 * 2**failures)


async def _take(
    body: Body,
    cut: Geometry,
    window: Window,
    piece: int,
    staged: Staged,
    pool: Executor,
    on_bytes: Callable[[int], None],
    on_piece: Callable[[int, bytes], None],
) -> None:
    if body.total != cut.size:
        raise SizeChanged(f"{body.total} bytes upstream, {cut.size} on the board")
    writer = _Writer(staged, pool, cut, piece, on_piece)
    try:
        async for chunks in _in_pieces(body, cut, piece, window.last_piece, on_bytes):
            await writer.put(chunks)
        await writer.end()
    finally:
        await writer.stop()
    if writer.next <= window.last_piece:
        raise SourceBroken("upstream ended the body early")


class _Writer:
    """Gives pieces to a thread as they become complete: several at once on a fast network, one by one on a slow one."""

    def __init__(
        self, staged: Staged, pool: Executor, cut: Geometry, piece: int, on_piece: Callable[[int, bytes], None]
    ) -> None:
        self.next = piece
        """The first piece that the thread was not given."""
        self._staged, self._pool, self._cut, self._on_piece = staged, pool, cut, on_piece
        self._loop = asyncio.get_running_loop()
        self._batch: list[list[memoryview]] = []
        self._job: asyncio.Future[list[bytes]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._given_at = 0.0
        self._most = max(1, MOST_WAITING // cut.piece_length)

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
        offset = first * self._cut.piece_length
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
    body: Body, cut: Geometry, piece: int, last: int, on_bytes: Callable[[int], None]
) -> AsyncIterator[list[memoryview]]:
    """The chunks of *body* grouped into pieces, from *piece* to *last*; not copied."""
    skip = piece * cut.piece_length - body.offset
    if skip < 0:
        raise SourceBroken("upstream began past the offset that it was asked for")
    need = cut.piece_span(piece)[1]
    chunks: list[memoryview] = []
    arrived = 0
    try:
        async for received in body.chunks():
            chunk = memoryview(received)
            arrived += len(chunk)
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
                on_bytes(arrived)
                arrived = 0
                yield chunks
                chunks = []
                piece += 1
                if piece > last:
                    return
                need = cut.piece_span(piece)[1]
    finally:
        if arrived:
            on_bytes(arrived)
