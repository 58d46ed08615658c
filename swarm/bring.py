"""Bring one window in from upstream: range request, pieces hashed and written as they arrive."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from swarm.errors import SourceBroken, SourceError, StoreFull
from swarm.geometry import Geometry, Window
from swarm.source import Body, Source
from swarm.staged import Staged

ATTEMPTS = 3
"""Tries per claim without a new piece, each at the offset that the last one reached."""

MOST_WAITING = 4
"""Complete pieces that wait for the thread while it writes earlier ones: then upstream has to wait."""

_IOV_MAX = 512


class SizeChanged(SourceError):
    """Upstream says another size than the board."""


def write_pieces(fd: int, pieces: list[list[bytes]], offset: int) -> list[bytes]:
    """Write consecutive *pieces*, each a list of chunks, from *offset* on; their SHA-1s. Blocks. Raises StoreFull."""
    sums = []
    for chunks in pieces:
        sha1 = hashlib.sha1(usedforsecurity=False)
        for chunk in chunks:
            sha1.update(chunk)
        sums.append(sha1.digest())
    chunks = [chunk for piece in pieces for chunk in piece]
    if len(chunks) > _IOV_MAX:
        chunks = [b"".join(chunks)]
    try:
        written, total = 0, sum(map(len, chunks))
        while written < total:
            written += os.pwritev(fd, chunks, offset + written)
            if written < total:
                chunks = [b"".join(chunks)[written - total :]]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"cannot write: {error.strerror}") from None
        raise
    return sums


async def bring_window(
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
    while (
        piece := next((p for p in range(window.first_piece, window.last_piece + 1) if not ready(p)), None)
    ) is not None:
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
    """Pieces go to a thread as they become complete: several at once while it is busy with earlier ones."""
    if body.total != cut.size:
        raise SizeChanged(f"{body.total} bytes upstream, {cut.size} on the board")
    loop = asyncio.get_running_loop()
    job: asyncio.Future[list[bytes]] | None = None
    batch: list[list[bytes]] = []
    writing = first = piece  # the first piece that the thread was not given; that it was given last

    def settle(sums: list[bytes]) -> None:
        for place, sha1 in enumerate(sums):
            on_piece(first + place, sha1)

    try:
        async for chunks in _in_pieces(body, cut, piece, window.last_piece, on_bytes):
            batch.append(chunks)
            if job is not None and (job.done() or len(batch) >= MOST_WAITING):
                sums, job = await job, None
                settle(sums)
            if job is None:
                first, given, batch = writing, batch, []
                writing += len(given)
                job = _write(loop, pool, staged, given, first * cut.piece_length)
        if batch:
            if job is not None:
                sums, job = await job, None
                settle(sums)
            first, writing = writing, writing + len(batch)
            job = _write(loop, pool, staged, batch, first * cut.piece_length)
    finally:
        if job is not None:
            settle(await asyncio.shield(job))
    if writing <= window.last_piece:
        raise SourceBroken("upstream ended the body early")


def _write(
    loop: asyncio.AbstractEventLoop, pool: Executor, staged: Staged, pieces: list[list[bytes]], offset: int
) -> asyncio.Future[list[bytes]]:
    file = staged.share()  # the thread must not write to a descriptor that was closed meanwhile
    job = loop.run_in_executor(pool, write_pieces, file.fd, pieces, offset)
    job.add_done_callback(lambda _: file.close())
    return job


async def _in_pieces(
    body: Body, cut: Geometry, piece: int, last: int, on_bytes: Callable[[int], None]
) -> AsyncIterator[list[bytes]]:
    """The chunks of *body* grouped into pieces, from *piece* to *last*."""
    skip = piece * cut.piece_length - body.offset
    if skip < 0:
        raise SourceBroken("upstream began past the offset that it was asked for")
    need = cut.piece_span(piece)[1]
    chunks: list[bytes] = []
    arrived = 0
    try:
        async for chunk in body.chunks():
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
