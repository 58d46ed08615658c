"""Blobs as a store takes them: their piece hashes, and the shortest way in."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path

import pytest

from swarm.blob.digest import Digest, parse
from swarm.blob.geometry import MIB, geometry
from swarm.storage.content import Content
from swarm.storage.store import Store
from tests.parts.data import digest_of


@lru_cache(maxsize=64)
def hashes_of(data: bytes) -> bytes:
    """20 bytes per piece."""
    layout = geometry(len(data))
    spans = map(layout.piece_span, range(layout.pieces))
    return b"".join(hashlib.sha1(data[offset : offset + length]).digest() for offset, length in spans)


def pieces_of(data: bytes) -> dict[int, bytes]:
    """Index -> hash."""
    hashes = hashes_of(data)
    return {i: hashes[i * 20 : i * 20 + 20] for i in range(len(hashes) // 20)}


class Told:
    """What a store or containerd's content has told, in order."""

    def __init__(self, storage: Store | Content) -> None:
        self.lost: list[Digest] = []
        self.found: list[tuple[Digest, int]] = []
        storage.on_change(self._changed)

    def _changed(self, digest: Digest, size: int | None) -> None:
        if size is None:
            self.lost.append(digest)
        else:
            self.found.append((digest, size))


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Store]:
    """A store of 64 MiB at *root*, by the real clock."""
    store = Store(root, 64 * MIB, reserve_free=0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def put(store: Store, data: bytes) -> Digest:
    """Bring a whole blob in, nothing left open."""
    digest = parse(digest_of(data))
    staged = await store.stage(digest, len(data))
    await staged.write(data, 0)
    (await staged.finish(hashes_of(data))).close()
    staged.forget()
    return digest


def content(store: Store, digest: Digest) -> bytes | None:
    """The bytes that the store would serve; None if it has none."""
    held = store.get(digest)
    if held is None:
        return None
    with held:
        return os.pread(held.fd, held.size, 0)


def taken(root: Path) -> int:
    """Bytes on disk of all files below *root*."""
    total = 0
    seen: set[int] = set()  # two names of one file count once
    for directory, _, names in os.walk(root):
        for name in names:
            try:
                stat = Path(directory, name).lstat()
            except FileNotFoundError:
                continue  # the store empties its trash meanwhile
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                total += stat.st_blocks * 512
    return total


@contextmanager
def small_file_system(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of *size* (as mount(8) writes it) at *place*. Skips the test where it may not be mounted."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    """Take every block that is left on the disk of *path*."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return
