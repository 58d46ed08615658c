"""Who was turned away at the door, and why: agents that work alone because of it. Pure."""

from __future__ import annotations

from typing import NamedTuple

FRESH = 60.0
"""Seconds after its last request for which a refusal counts: an agent asks every two seconds."""

MOST = 256
"""Addresses remembered at once; those heard of least recently go first."""


class Refusal(NamedTuple):
    """*address* was refused for *reason*. Times on the caller's clock."""

    address: str
    reason: str
    since: float
    seen: float


class Refusals:
    """The refusals that stand, by address."""

    def __init__(self) -> None:
        self._found: dict[str, Refusal] = {}

    def note(self, address: str, reason: str, now: float) -> None:
        """*address* was just refused."""
        before = self._found.pop(address, None)
        since = before.since if before is not None and now - before.seen <= FRESH else now
        self._found[address] = Refusal(address, reason[:200], since, now)
        while len(self._found) > MOST:
            del self._found[next(iter(self._found))]

    def forget(self, address: str) -> None:
        """*address* was taken."""
        self._found.pop(address, None)

    def standing(self, now: float) -> list[Refusal]:
        """Those not over, by address."""
        return sorted(found for found in self._found.values() if now - found.seen <= FRESH)
