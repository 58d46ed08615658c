"""In which order a node asks others for the windows of a blob, and whom. Pure: the simulator runs it as it is.

Where all ask in the same order, nobody has what another lacks. Where all ask the same holder, all share its link.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from swarm.fetch.events import Holder
from swarm.peer.lane.holders import Address

IN_ORDER = 2
"""Windows that come first for who reads the whole blob, in order: its client waits for them."""

ASKED = 4
"""Agents beside those that the tracker named that an errand may turn to."""


BELIEVED = 2.5
"""Seconds for which a holder that said what it has is taken at its word about what it lacks: longer than until a window
that nobody gave is asked for again, so that others are asked then."""


def own_order(me: str, windows: int) -> tuple[int, ...]:
    """The *windows* of a blob in an order that only *me* has."""
    return tuple(sorted(range(windows), key=lambda window: mixed(me, window)))


def in_turn(order: Sequence[int], missing: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(rank, window) of the *missing* windows for who reads all of the blob: after a few, in an *order* of its own."""
    yield from ((0, window) for window in missing[:IN_ORDER])
    rest = set(missing[IN_ORDER:])
    yield from ((1, window) for window in order if window in rest)


def candidates(
    me: str,
    window: int,
    named: Sequence[Holder],
    others: Sequence[Holder],
    lacking: Callable[[Address], bool] = lambda _address: False,
) -> tuple[Address, ...]:
    """Whom to ask for *window*: those that the tracker *named*, best first, and then a few of the *others*.

    *lacking*: whether one of the others has said that it has nothing of it.
    """
    told = [holder.address for holder in named]
    rest = [holder.address for holder in others if holder.address not in told and not lacking(holder.address)]
    return (*told, *sorted(rest, key=lambda address: mixed(f"{me}{window}", address))[:ASKED])


class Said:
    """What holders said that they have of a blob, when they refused. It is believed for a while: more comes to them."""

    def __init__(self) -> None:
        self._said: dict[Address, tuple[float, int]] = {}

    def hear(self, address: Address, pieces: int, now: float) -> None:
        """*address* has *pieces* (bit p: piece p) at *now*, in seconds."""
        self._said = {other: (at, had) for other, (at, had) in self._said.items() if now - at < BELIEVED}
        self._said[address] = now, pieces

    def lacks(self, address: Address, first: int, now: float) -> bool:
        """Whether *address* has said that it has not even piece *first* of a window."""
        at, had = self._said.get(address, (-BELIEVED, 0))
        return now - at < BELIEVED and not had >> first & 1


def mixed(salt: str, what: object) -> bytes:
    """A place of *what* in an order that only *salt* knows."""
    return hashlib.blake2b(f"{salt}\n{what}".encode(), digest_size=8).digest()
