"""Piece hashes of files that are not ours, kept across restarts: a directory of Metas within a budget."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from swarm.blob.digest import Digest, hex_of
from swarm.storage.disk import write_whole
from swarm.storage.sidecar import Meta, Stamp, decode_meta, encode_meta

LIMIT = 16 * 1024 * 1024
"""Bytes on disk: the hashes of 600,000 pieces, or 150 GiB of blobs. Beside the store's budget."""


class HashCache:
    """All methods block, and are for one thread at a time. None raises: a lost entry costs a read of the file."""

    def __init__(self, directory: Path, limit: int = LIMIT) -> None:
        self._directory = directory
        self._limit = limit

    def load(self, digests: Iterable[Digest]) -> dict[Digest, Meta]:
        """What is known of *digests*; marks it as used, and deletes the least recently used past the limit."""
        found: dict[Digest, Meta] = {}
        now = time.time()
        for digest in digests:
            path = self._path(digest)
            with contextlib.suppress(OSError):
                meta = decode_meta(path.read_bytes())
                if meta:
                    found[digest] = meta
                    os.utime(path, (now, now))
        self._trim()
        return found

    def put(self, digest: Digest, stamp: Stamp, hashes: bytes) -> None:
        """Keep what was verified about a file."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(digest), encode_meta(stamp, hashes))
        self._trim()

    def _trim(self) -> None:
        entries = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._directory):
                with contextlib.suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    entries.append((stat.st_mtime_ns, stat.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit:
                return
            with contextlib.suppress(OSError):
                Path(path).unlink()
            total -= size

    def _path(self, digest: Digest) -> Path:
        return self._directory / f"{hex_of(digest)}.json"
