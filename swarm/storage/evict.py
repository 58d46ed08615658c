"""What to give up when the store needs room: a pure choice, least recently used first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarm.blob.digest import Digest
from swarm.blob.geometry import piece_length
from swarm.storage.sidecar import HEADER, RECORD

BLOCK = 4096
"""Bytes in which file systems give out space."""

META_EXTRA = 256
"""Bytes of a Meta around its hashes, rounded up. A hash takes 27 bytes in base64, less than RECORD."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may go: a complete or partial blob, or one window of a partial one.

    *used*: time of the last use in seconds. *frees*: bytes. *partial*: of a partial blob; then
    *window* is the window, or None for all of it.
    """

    digest: Digest
    used: float
    frees: int
    partial: bool = False
    window: int | None = None


def blocks(size: int) -> int:
    """Bytes that a file of *size* bytes takes on disk."""
    return -(-size // BLOCK) * BLOCK


def sidecars(size: int) -> int:
    """Bytes that the files beside a blob of *size* bytes may take: its piece log and its Meta."""
    records = (-(-size // piece_length(size)) + 1) * RECORD
    return blocks(HEADER + records) + blocks(META_EXTRA + records)


def cost(size: int) -> int:
    """Bytes of the budget that a blob of *size* bytes takes."""
    return blocks(size) + sidecars(size)


def choose(candidates: Iterable[Candidate], need: int) -> list[Candidate] | None:
    """The candidates to give up so that at least *need* bytes come free; None if all are not enough.

    Least recently used first. What turns out not to be needed, because a later one frees more, is
    spared, the most recently used first: a small manifest does not go for a large layer.
    """
    chosen: list[Candidate] = []
    freed = 0
    for candidate in sorted(candidates, key=lambda c: (c.used, c.digest, c.partial, c.window or 0)):
        if freed >= need:
            break
        chosen.append(candidate)
        freed += candidate.frees
    if freed < need:
        return None
    kept: list[Candidate] = []
    for candidate in reversed(chosen):
        if freed - candidate.frees >= need:
            freed -= candidate.frees
        else:
            kept.append(candidate)
    kept.reverse()
    return kept
