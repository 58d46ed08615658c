"""The running sha256 of a blob, over its pieces in order as they become ready."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from swarm.blob.digest import Digest, hex_of
from swarm.blob.geometry import Geometry
from swarm.fetch.pieces import Pieces

HASH_RUN = 4 * 1024 * 1024
"""Bytes that are hashed in one thread job; also the most that one Span covers while a blob arrives."""


@dataclass(frozen=True, slots=True)
class Matched:
    """The sha256 of the pieces is the digest."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """It is not: something that this epoch of the pieces holds is wrong."""

    epoch: int


async def verify(
    digest: Digest, layout: Geometry, pieces: Pieces, fd: int, pool: Executor, epoch: Callable[[], int]
) -> Matched | Mismatch:
    """Hash the blob from its start, and again from its start after each restart. *epoch* counts the restarts."""
    loop = asyncio.get_running_loop()
    limit = max(1, HASH_RUN // layout.piece_length)
    while True:
        begun, sha256, piece = epoch(), hashlib.sha256(), 0
        while piece < layout.pieces and begun == epoch():
            await pieces.wait(min(piece + limit, layout.pieces) - 1)  # few long jobs: pieces come in runs
            await pieces.wait(piece)
            count = pieces.run(piece, limit)
            offset = piece * layout.piece_length
            length = min(count * layout.piece_length, layout.size - offset)
            await loop.run_in_executor(pool, _hash_region, sha256, fd, offset, length)
            piece += count
        if begun == epoch():
            return Matched() if sha256.hexdigest() == hex_of(digest) else Mismatch(begun)


def _hash_region(sha256: Any, fd: int, offset: int, length: int) -> None:
    """Feed bytes of *fd* to *sha256*. Blocks."""
    end = offset + length
    while offset < end:
        data = os.pread(fd, min(1 << 18, end - offset), offset)
        if not data:
            raise OSError("file is shorter than the blob")
        sha256.update(data)
        offset += len(data)
