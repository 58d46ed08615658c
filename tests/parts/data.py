"""Bytes to put into blobs: random enough that no two pieces are alike, fast enough for gigabytes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1024 * 1024
STAMP = 16 * 1024


def blocks(size: int, seed: int) -> Iterator[bytes]:
    """*size* bytes in blocks of 1 MiB, the same for the same *seed*; every 16 KiB carries its own number."""
    base = bytearray(random.Random(seed).randbytes(min(BLOCK, size) or 1))
    done = 0
    while done < size:
        count = min(BLOCK, size - done)
        for offset in range(0, count, STAMP):
            stamp = ((done + offset) // STAMP).to_bytes(8, "big")[: count - offset]
            base[offset : offset + len(stamp)] = stamp
        yield bytes(base[:count])
        done += count


def blob(size: int, seed: int) -> bytes:
    """The same as one value."""
    return b"".join(blocks(size, seed))


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of *data*."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write(path: Path, size: int, seed: int) -> str:
    """Write such a blob to *path*; its digest."""
    told = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for block in blocks(size, seed):
            told.update(block)
            file.write(block)
    return "sha256:" + told.hexdigest()
