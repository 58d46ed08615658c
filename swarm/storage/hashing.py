"""Hash what lies in files: SHA-1 per piece and SHA-256 over all, in threads that can be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from swarm.blob.digest import Digest, from_hex
from swarm.blob.errors import ShortFile, Stopped
from swarm.blob.geometry import Geometry

CHUNK = 1024 * 1024
"""Bytes read at once: the longest piece, so one read feeds both hashes while it is in the CPU's cache."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sums:
    """*pieces*: 20 bytes of SHA-1 per piece, in order. *digest*: of all bytes."""

    pieces: bytes
    digest: Digest


def chunks(
    fd: int, offset: int, length: int, buffer: memoryview, stop: threading.Event | None = None
) -> Iterator[memoryview]:
    """Bytes [offset, offset+length) of *fd* in order, as slices of *buffer*: each is void after the next.

    Blocks: for threads. Raises ShortFile if the file ends early, Stopped once *stop* is set.
    """
    end = offset + length
    while offset < end:
        if stop is not None and stop.is_set():
            raise Stopped
        count = os.preadv(fd, [buffer[: min(len(buffer), end - offset)]], offset)
        if not count:
            raise ShortFile(f"ends at byte {offset}, expected {end}")
        yield buffer[:count]
        offset += count


def sums(fd: int, layout: Geometry, stop: threading.Event | None = None) -> Sums:
    """Both kinds of hashes of a whole blob in one pass over *fd*. Blocks; raises ShortFile, Stopped."""
    whole = hashlib.sha256()
    pieces = bytearray()
    buffer = memoryview(bytearray(min(CHUNK, max(layout.size, 1))))
    for piece in range(layout.pieces):
        sha1 = hashlib.sha1(usedforsecurity=False)
        for chunk in chunks(fd, *layout.piece_span(piece), buffer, stop):
            sha1.update(chunk)
            whole.update(chunk)
        pieces += sha1.digest()
    return Sums(bytes(pieces), from_hex(whole.hexdigest()))


def digest_of(fd: int, size: int, stop: threading.Event | None = None) -> Digest:
    """The sha256 digest of the first *size* bytes of *fd*. Blocks; raises ShortFile, Stopped."""
    whole = hashlib.sha256()
    for chunk in chunks(fd, 0, size, memoryview(bytearray(min(CHUNK, max(size, 1)))), stop):
        whole.update(chunk)
    return from_hex(whole.hexdigest())


def piece_hashes(
    fd: int, layout: Geometry, pieces: Iterable[int], stop: threading.Event | None = None
) -> dict[int, bytes]:
    """SHA-1 of each of *pieces* as it lies in *fd*; pieces past the file's end are left out.

    Blocks; raises Stopped.
    """
    found: dict[int, bytes] = {}
    buffer = memoryview(bytearray(min(CHUNK, layout.piece_length)))
    for piece in pieces:
        with contextlib.suppress(ShortFile):
            found[piece] = piece_hash(chunks(fd, *layout.piece_span(piece), buffer, stop))
    return found


def piece_hash(content: Iterable[memoryview]) -> bytes:
    """The SHA-1 of a piece's bytes. Raises what *content* raises."""
    sha1 = hashlib.sha1(usedforsecurity=False)
    for chunk in content:
        sha1.update(chunk)
    return sha1.digest()


class Hasher:
    """Threads for hashing: two for whole blobs that somebody waits for, two for a few pieces that are about to be sent,
    one of low priority for the rest."""

    def __init__(self) -> None:
        self._urgent = ThreadPoolExecutor(2, "shoal-hash")
        self._few = ThreadPoolExecutor(2, "shoal-prove")
        self._idle = ThreadPoolExecutor(1, "shoal-hash-idle", initializer=_be_nice)

    async def run(self, work: Callable[[threading.Event], T], *, idle: bool = False) -> T:
        """What *work* returns. Cancelled: *work* sees its event set, and is waited for."""
        return await self._run(self._idle if idle else self._urgent, work)

    async def prove(self, work: Callable[[threading.Event], T]) -> T:
        """Like `run`, for a few pieces: does not wait behind whole blobs."""
        return await self._run(self._few, work)

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[threading.Event], T]) -> T:
        stop = threading.Event()
        job = threads.submit(work, stop)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            if not job.cancel():
                await asyncio.wait([future])
                if not future.cancelled():
                    future.exception()  # retrieved: nobody else will ask
            raise

    def close(self) -> None:
        """End the threads; what was not begun is dropped. The runs still awaited must be cancelled first."""
        for threads in (self._urgent, self._few, self._idle):
            threads.shutdown(wait=False, cancel_futures=True)


def _be_nice() -> None:
    # On Linux a thread has a nice value of its own: hashing in the background yields to transfers.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
