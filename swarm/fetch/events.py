"""What a fetch learns from its board: one value per kind of news. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PeerAddress = tuple[str, int]
"""IP (v4 or v6) and swarm port."""


@dataclass(frozen=True, slots=True)
class Sized:
    """The board knows the size of the blob in bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class SizeConflict:
    """The board says another size than this node has."""

    size: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The board began again: nothing that its earlier generations said counts any more."""

    generation: int


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Too many generations of the board were wrong: each agent goes on alone."""


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """Other agents take part. *more*: some of them were not there before."""

    peers: tuple[PeerAddress, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """An agent that gives windows over the lane."""

    peer: PeerAddress
    lane: int
    """TCP port of its lane."""

    @property
    def address(self) -> PeerAddress:
        """Whom to connect to."""
        return self.peer[0], self.lane


@dataclass(frozen=True, slots=True)
class HoldersNamed:
    """Whom to ask for windows over the lane."""

    named: Mapping[int, tuple[Holder, ...]]
    """Window -> who holds it and has room to spare, best first; of some windows."""
    others: tuple[Holder, ...]
    """Other agents that take part, whatever they hold."""
    sole: Holder | None
    """The sole seed."""
    strangers: bool
    """Whether there are peers that speak BitTorrent alone."""


@dataclass(frozen=True, slots=True)
class Published:
    """The piece hashes of these windows are known now."""

    windows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """How the others hold the blob has changed."""

    sealed: bool
    """Some agent has checked the sha256 of the whole blob."""
    sole: PeerAddress | None
    """The only agent that holds the blob: claims are on windows to fetch from it."""
    available: int | None
    """Bit w is set if a peer holds window w. None: whatever is published is there."""


@dataclass(frozen=True, slots=True)
class ClaimsChanged:
    """The windows that this agent may bring in now, all of them. *sole*: from the sole seed, not from upstream."""

    windows: frozenset[int]
    sole: bool


@dataclass(frozen=True, slots=True)
class Hopeless:
    """The board knows nobody who holds what is missing, nor anybody who may bring it in."""


Event = (
    Sized
    | SizeConflict
    | Restarted
    | Poisoned
    | PeersChanged
    | HoldersNamed
    | Published
    | ModeChanged
    | ClaimsChanged
    | Hopeless
)
