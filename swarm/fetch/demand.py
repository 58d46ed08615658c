"""What the readers of a blob on this node want, as two values: for the board, and for transfers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from swarm.fetch.readers import Readers

URGENT_CLAIMS = 2
"""Claims beyond the usual ones while a range reader waits: it need not wait until one of a bulk pull ends."""

TURNS = 2
"""Windows that are fetched at once from a sole seed: one comes, and the next is there to be asked for."""


class Demand(NamedTuple):
    """What a board is told of the readers here."""

    want: int = 0
    """Claims."""
    prefer: tuple[int, ...] = ()
    """Windows that are waited for, most urgent first."""
    only_preferred: bool = False
    turns: int = 0
    """Windows to fetch at once from a sole seed."""
    concurrent: int = 0
    """Other blobs that enter the cluster at the same time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched from peers."""

    whole: bool
    """All of the blob."""
    pieces: frozenset[int] = frozenset()
    """Pieces that readers of ranges need."""
    urgent: frozenset[int] = frozenset()
    """Those of them that somebody waits for."""
    windows: frozenset[int] = frozenset()
    """Windows that readers of ranges wait for."""
    elsewhere: frozenset[int] = frozenset()
    """Windows that come from upstream, or from a sole seed: not to be fetched from peers."""


def demand_of(readers: Readers, *, sized: bool, claims: int, turning: bool, concurrent: int) -> Demand:
    """What the board must know. *claims*: that this node may hold at once, 0 if upstream cannot be asked from here.

    *sized*: the size is known. *turning*: claims on the windows of a sole seed are wanted.
    """
    prefer, only = readers.preferred(), not readers.whole
    asking = not sized or bool(prefer) or not only
    want = claims + (URGENT_CLAIMS if claims and readers.waiting else 0)
    turns = TURNS if turning and readers.bulk else 0
    return Demand(want if asking else 0, prefer, only, turns, concurrent)


def wanted_of(readers: Readers, elsewhere: frozenset[int]) -> Wanted:
    """What transfers are to bring, of the windows that do not come from *elsewhere*."""
    return Wanted(
        readers.whole,
        frozenset(readers.pieces),
        frozenset(readers.urgent),
        frozenset(readers.windows),
        elsewhere,
    )
