"""How a blob is fetched from peers, and when that changes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swarm.fetch.events import PeerAddress


class Mode(Enum):
    """See the module."""

    WINDOWS = "windows"
    """Each published window has a torrent of its own."""
    SOLE_SEED = "sole seed"
    """One agent alone holds the blob: its windows are claimed, and traded as in WINDOWS."""
    WHOLE = "whole"
    """One torrent for all that is missing."""


@dataclass(frozen=True, slots=True)
class Holding:
    """How the others hold a blob, as its board says."""

    sealed: bool = False
    sole: PeerAddress | None = None
    available: int | None = None


def is_over(before: Holding, now: Holding, missing: int) -> bool:
    """Whether a sole seed is none any more, and has left windows that only holders of the whole blob have.

    *missing*: bit w is set if window w is not here.
    """
    ended = before.sole is not None and now.sole is None and before.available is not None
    return ended and now.sealed and bool(missing & ~(before.available or 0))


def next_mode(mode: Mode, now: Holding, *, known: bool, idle: bool) -> Mode:
    """The mode that follows *mode*. *known*: the hashes of all windows are. *idle*: no window has a torrent."""
    if now.sole is not None:
        return Mode.SOLE_SEED
    if mode is Mode.SOLE_SEED or now.available is not None:
        mode = Mode.WINDOWS  # also from WHOLE: nobody holds it whole any more
    if mode is Mode.WINDOWS and now.sealed and known and idle and now.available is None:
        return Mode.WHOLE
    return mode
