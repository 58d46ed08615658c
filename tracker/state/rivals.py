"""Agents that announce one address and port, so that each replaces the other. Pure.

A restarted agent replaces its own earlier session once, and at most a late request of the dead process follows.
Where the replaced session keeps asking, both processes are alive: two agents behind one address, or two that
listen on one node with the same `--swarm-listen`.
"""

from __future__ import annotations

from typing import NamedTuple

PROOF = 3
"""Requests of a replaced session after which its process is taken for alive: one or two may have been under way."""

FRESH = 60.0
"""Seconds after its last request for which a replaced session counts: an agent asks every two seconds."""

MOST = 256
"""Addresses remembered at once; those heard of least recently go first."""


class Rival(NamedTuple):
    """Two agents at *key*: the one the tracker takes, and the one that it refuses. Times on the caller's clock."""

    key: str
    taken: str
    refused: str
    since: float
    seen: float
    times: int


class Rivals:
    """Who asks although another agent has its address, by that address."""

    def __init__(self) -> None:
        self._found: dict[str, Rival] = {}

    def note(self, key: str, taken: str, refused: str, now: float) -> Rival:
        """A replaced session, of the node *refused*, asked again; *taken* is the node that replaced it."""
        before = self._found.pop(key, None)
        if before is None or now - before.seen > FRESH:
            before = Rival(key, taken, refused, now, now, 0)
        found = before._replace(taken=taken, refused=refused, seen=now, times=before.times + 1)
        self._found[key] = found
        while len(self._found) > MOST:
            del self._found[next(iter(self._found))]
        return found

    def standing(self, now: float) -> list[Rival]:
        """Those proven and not over, by address."""
        return sorted(found for found in self._found.values() if found.times >= PROOF and now - found.seen <= FRESH)


def explain(rival: Rival) -> str:
    """One line for both sides: what is wrong, and what mends it."""
    return (
        f"{rival.taken} and {rival.refused} both announce {rival.key} and replace each other: "
        "give one of them another --swarm-listen port, or an address of its own"
    )
