"""What a follower of a board asks of the node for which it speaks, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from swarm.fetch.demand import Demand
from swarm.fetch.events import Event
from swarm.protocol import wire


@dataclass(frozen=True, slots=True)
class Standing:
    """What a poll says of this node."""

    demand: Demand
    size: int | None = None
    """Bytes of the blob; None: not known, or not to be told."""
    claims: tuple[int, ...] = ()
    """Windows that are being brought in."""
    have: int = 0
    """Bit w is set if window w is here."""
    stalled: tuple[int, ...] = ()
    """Published windows that no peer delivers."""
    coming: tuple[int, ...] = ()
    """Windows that peers are sending."""
    direct: tuple[int, ...] = ()
    """Windows that direct streams bring in, without a claim."""
    wait: float = wire.MAX_WAIT
    """Seconds for which an answer may be held back."""


class Node(Protocol):
    """What a follower asks of the node for which it speaks."""

    def standing(self) -> Standing:
        """What to say now."""

    def sums(self, window: int) -> bytes | None:
        """The piece hashes of a window that is here."""

    def origin(self) -> str:
        """Of which origin the windows are that are here."""

    async def offer(self, window: int) -> None:
        """Offer a window to peers: it is about to be published."""

    async def handle(self, event: Event) -> None:
        """Something changed. Raises SwarmError: the fetch has failed."""

    async def applied(self) -> None:
        """All events of an answer were handled."""
