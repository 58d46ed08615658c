"""Bring one window in from upstream: range request, pieces hashed and written as they arrive.

Bytes of a piece that is not complete when a body ends are kept: the next body begins after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from functools import partial

from swarm.base.mailbox import Mailbox
from swarm.blob.errors import SizeChanged, SourceBroken, SourceBusy, SourceError, SourceSilent
from swarm.blob.geometry import Geometry, Window
from swarm.storage.errnos import translate
from swarm.storage.intake import Intake
from swarm.storage.staged import Staged
from swarm.upstream.source import Body, Pours, Source

ATTEMPTS = 3
"""Tries in a row without a byte, each at the offset that the last one reached."""

PAUSE = 0.1
"""Seconds before the first try of those after one that brought nothing; twice as many before the next."""

PAUSE_IN_BODY = 5.0
"""Seconds without a byte after which a body that has begun is continued by another request: as long as a claim lives
without progress."""

BEGUN = 16
"""Pieces of one blob of which a part is kept, in memory: as many as a board hands out claims, twice."""

MOST_WAITING = 1024 * 1024
"""Bytes of complete pieces that wait for the thread while it writes earlier ones: then upstream has to wait."""

LINGER = 0.01
"""Seconds that a complete piece waits for others to go to the thread together, up to MOST_WAITING. A job costs about
0.1 ms of the loop's time, a third of what a piece needs on a fast network; on a slow one pieces are further apart."""

TOLD_EVERY = 0.05
"""Seconds after which a thread tells the loop of bytes that came: a claim lives by them."""

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
    may_skip: Callable[[], bool] = lambda: True,
) -> None:
    """Fetch the pieces of *window* that are not *ready* and write them into *staged*.

    *on_bytes*(n): n more bytes arrived from upstream. *on_piece*(piece, sha1): it is in the file.
    *begun*: parts of pieces, and where those are left that do not become complete.
    *first*: a body already opened at the window's start. *may_skip*: whether what comes before the window may be thrown
    away, where upstream ignores ranges. Raises SourceError, SizeChanged, StoreFull; SourceBusy if it may not.
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
            elif not await _pour(source, layout, (piece, window.last_piece), staged, counted, on_piece, begun):
                at = piece * layout.piece_length + begun.length(piece)
                async with source.open(at, window.end) as body:
                    left = body.whole and body.offset < at and not may_skip()
                    if not left:
                        await take(body, layout, (piece, window.last_piece), staged, pool, counted, on_piece, begun)
                if left:
                    raise SourceBusy("upstream ignores ranges, and another agent reads what comes before")
        except SourceSilent:
            raise
        except SourceBroken:
            failures = failures + 1 if not came else 0
            if failures >= ATTEMPTS:
                raise
            await asyncio.sleep(PAUSE * 2 ** (failures - 1) if failures else 0.0)


async def _pour(
    source: Source,
    layout: Geometry,
    pieces: tuple[int, int],
    staged: Staged,
    on_bytes: Callable[[int], None],
    on_piece: Callable[[int, bytes], None],
    begun: Begun,
) -> bool:
    """Have *pieces*, first and last, brought in by a thread, if *source* can do that: see `download_window`."""
    if not isinstance(source, Pours):
        return False
    first, last = pieces
    inflow = Inflow(layout, staged, first, last, on_bytes, on_piece, begun.take(first))
    try:
        end = sum(layout.piece_span(last))
        return await source.pour(inflow.at, end, layout.size, inflow, _pass)
    finally:
        begun.keep(*inflow.close())


def _pass() -> None:
    """Nobody here wants to know when an answer begins."""


class Inflow:
    """A Sink: hashes and writes pieces in the thread that receives them, and tells the loop of them.

    *begun*: the first bytes of the first piece, which came before.
    """

    def __init__(
        self,
        layout: Geometry,
        staged: Staged,
        first: int,
        last: int,
        on_bytes: Callable[[int], None],
        on_piece: Callable[[int, bytes], None],
        begun: list[memoryview],
    ) -> None:
        self._file = staged.share()  # the thread must not write to a descriptor that was closed meanwhile
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._on_bytes, self._on_piece = on_bytes, on_piece
        self._intake = Intake(layout, self._file.fd, first, last, expected=lambda _: None, on_piece=self._piece)
        self._layout, self._begun = layout, begun
        self._untold = 0
        self._told_at = time.monotonic()
        self.at = self._intake.at + sum(map(len, begun))
        """Offset in the blob of the first byte that is to come."""

    @property
    def room(self) -> int:
        """See Sink."""
        return self._intake.room - sum(map(len, self._begun))

    def put(self, data: memoryview) -> None:
        """See Sink. Raises StoreFull, Unwritable."""
        chunks, self._begun = self._begun, []
        for chunk in (*chunks, data):
            self._intake.put(chunk)
        self._untold += len(data)
        if (now := time.monotonic()) - self._told_at >= TOLD_EVERY:
            count, self._untold, self._told_at = self._untold, 0, now
            self._mailbox.put(partial(self._on_bytes, count))

    def close(self) -> tuple[int, list[memoryview]]:
        """No thread uses it any more. The piece that is half here, and its bytes."""
        if self._untold:
            self._on_bytes(self._untold)
        piece, half = self._intake.half
        try:
            if half and not self._begun:
                self._begun.append(memoryview(os.pread(self._file.fd, half, piece * self._layout.piece_length)))
        finally:
            self._file.close()
        return piece, self._begun

    def _piece(self, piece: int, sha1: bytes) -> None:
        self._mailbox.put(partial(self._on_piece, piece, sha1))


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
        try:
            async with contextlib.aclosing(_in_pieces(body, layout, piece, last, on_bytes, begun)) as found:
                async for chunks in found:
                    await writer.put(chunks)
        except SourceError:
            await writer.end()  # complete pieces that wait for others are not to come again
            raise
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
        async with contextlib.aclosing(_moving(body)) as moving:
            async for received in moving:
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


async def _moving(body: Body) -> AsyncGenerator[bytes, None]:
    """The chunks of *body*, while it moves. Raises SourceBroken."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            async for chunk in body.chunks():
                limit.reschedule(None)  # what the bytes are used for may take as long as it does
                yield chunk
                limit.reschedule(loop.time() + PAUSE_IN_BODY)
    except TimeoutError:
        raise SourceBroken("upstream stands still in mid-body") from None
