"""How long a reader waits for the cluster before it asks upstream itself. One policy, pure; time is passed in.

A client's own bytes never wait for the cluster. A reader whose next byte does not come goes past
claims, board, peers and quarantine: a direct stream of its own brings it, from its own position on,
and what the stream brings is the same blob's pieces. How long that takes depends on what is waited for:

    awaited     comes from                       waited for
    MINE        upstream, by this node           as long as bytes come, or upstream may still answer
    TRADED      peers, its hashes are known      SILENT seconds without a byte from any of them
    OTHERS      upstream, by somebody else       what a window takes here, or STRANGE seconds; longer while a trial of
                                                 this node's own shows that upstream is no quicker here

While this node's own line to the same upstream moves, for whatever blob, a stream would take from it what it gives:
who reads the whole blob does not go past the cluster then for BUSY seconds more. A range is a few pieces, and its
reader has been patient already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

SILENT = 6.0
"""Seconds without any byte from peers after which a window that they hold comes from upstream. After four the board is
told that they stall (stalls.py), and gives out claims. With two, eight agents on a busy machine sent 1.3 copies."""

QUIET = 2.0
"""Seconds without a byte from an upstream after which this node's line to it is not what everybody waits for."""

BUSY = 10.0
"""Seconds more for TRADED and OTHERS while it is."""

STRANGE = 5.0
"""Seconds for a window that somebody else brings in, where this node does not know how long upstream takes."""

UNHEARD = 2.5
"""The same where no board has answered: nobody is known to bring anything in."""

COMING = 40.0
"""The same while the board says that somebody does, by a claim that is alive, and upstream has not answered a trial of
this node's own either: as long as upstream may take."""

BETTER = 2.0
"""How many times quicker a trial has to be than who brings the window in, for this node not to wait for that one."""

SOONEST = 2.5
"""Seconds for such a window at least."""

RANGES = 8.0
"""The same for a reader of ranges, which has 30 s. With 5 s, 16 agents on two busy cores asked for 1.5 copies."""

STOPPED = 3.0
"""Seconds without a byte in mid-body after which what this node brings in comes on another connection."""

AGAIN = 1.0
"""Seconds to wait where the cluster has left the same reader waiting a moment ago."""

REMEMBERED = 10.0
"""Seconds for which that is remembered."""

FORESEEN = 0.3
"""Seconds to wait for peers none of which has sent anything when it was asked last."""

AHEAD = 1.2
"""Seconds without a first byte after which one request runs ahead of the claims, so that upstream's next pause is not
waited for once more."""

FIRST = 10.0
"""Seconds within which something must come of a blob, or upstream be asked: else the client is told to go elsewhere."""

LATER = 45.0
"""The same once its first bytes were sent; then the body is cut. Below a minute, above upstream's own deadlines."""


class Awaited(Enum):
    """Where the piece that a reader waits for is to come from."""

    MINE = "mine"
    TRADED = "traded"
    OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Waiting:
    """One reader and the piece that it waits for. Times are seconds of one monotonic clock."""

    since: float
    """When it began to wait."""
    awaited: Awaited
    ranges: bool = False
    """It reads a range, and may wait longer."""
    moved: float = 0.0
    """When a byte came last: MINE of that window, TRADED from any peer of the blob."""
    begun: bool = False
    """MINE: upstream has sent something of it."""
    takes: float | None = None
    """Seconds that upstream takes for a window, as far as this node has seen it."""
    left_at: float = float("-inf")
    """When this reader was left waiting last."""
    unheard: bool = False
    """OTHERS: no board has answered yet."""
    coming: float | None = None
    """OTHERS: bytes per second of who brings it in, as the board says; None: nobody does."""
    tried: float | None = None
    """OTHERS: when upstream answered a trial of this node's own; None: it has not."""
    rate: float = float("inf")
    """Bytes per second of that trial."""
    busy: float = float("-inf")
    """When this node got a byte from the same upstream last, for whatever blob."""
    failed: bool = False
    """OTHERS: upstream failed this node last, so all wait for it: they must not all ask at once when it is back."""
    foreseen: bool = False
    """TRADED: none of the peers has sent anything lately."""
    lost: bool = False
    """TRADED: who holds it does not answer, whatever comes from others."""


def due(waiting: Waiting) -> float:
    """When to ask upstream past the cluster; infinity: not while things stand as they do."""
    since = waiting.since
    if waiting.awaited is Awaited.MINE:
        # Upstream has its own deadlines for an answer; a body that stands still is begun anew.
        return max(since, waiting.moved) + STOPPED if waiting.begun else float("inf")
    at = _due_of_cluster(waiting)
    return at if waiting.ranges else min(max(at, waiting.busy + QUIET), at + BUSY)


def is_idle(waiting: Waiting, now: float) -> bool:
    """Whether what this node brings in itself has not moved for so long that it is left to who has it."""
    return now - max(waiting.since, waiting.moved) >= STOPPED


def comes_anyway(given: bool, pace: float | None, rate: float, at_once: int) -> bool:
    """Whether a direct stream of *rate* bytes per second leaves a window to the cluster.

    *given*: peers hold it, and give. *pace*: bytes per second of who brings it in, also where holders do not answer;
    None: nobody does. *at_once*: windows that others bring in at the same time.
    """
    return given or (pace is not None and pace > 0 and rate <= pace * at_once)


def _due_of_cluster(waiting: Waiting) -> float:
    """The same for what others are to bring, whatever this node's line does."""
    since = waiting.since
    if waiting.awaited is Awaited.TRADED and waiting.ranges:
        return float("inf")  # the board gives out claims on what peers do not deliver
    if since - waiting.left_at < REMEMBERED and not waiting.ranges and waiting.coming is None:
        return since + AGAIN
    if waiting.awaited is Awaited.TRADED:
        if waiting.foreseen:
            return since + FORESEEN
        return (since if waiting.lost else max(since, waiting.moved)) + SILENT
    if waiting.coming is not None and not waiting.ranges and (waiting.takes is None or waiting.coming > 0):
        return _believed(waiting, waiting.coming)
    if waiting.takes is None:
        return since + (RANGES if waiting.ranges else UNHEARD if waiting.unheard else STRANGE)
    least = RANGES if waiting.ranges else STRANGE if waiting.failed else SOONEST
    return since + max(least, 1.5 * waiting.takes + 1.0)


def _believed(waiting: Waiting, pace: float) -> float:
    """When to ask upstream although somebody brings the window in at *pace*."""
    if waiting.tried is None:
        return waiting.since + COMING
    if not pace:
        return max(waiting.since, waiting.tried) + SOONEST  # upstream answers: its first byte is due there as well
    return waiting.since + SOONEST if waiting.rate > BETTER * pace else float("inf")


def is_over(now: float, alive: float, *, first: bool, asking: bool, refused: bool) -> bool:
    """Whether it is time to give the blob up.

    *alive*: when anything of it came last. *first*: nothing has been given to a reader. *asking*: upstream is being
    asked, by this node or another, and has not failed since then: it has deadlines of its own. *refused*: the last
    that this node had of upstream was a failure, or headers, or it cannot be asked. A node that is only crowded has
    not been told no.
    """
    return not asking and now - alive >= (FIRST if first and refused else LATER)


class Silence:
    """Peers from which nothing came when something was asked of them, on this node, for any blob."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}

    def noted(self, peers: Iterable[tuple[str, int]], now: float) -> None:
        """None of *peers* has sent anything, though asked."""
        for peer in peers:
            self._until[peer] = now + REMEMBERED
        for peer in [peer for peer, until in self._until.items() if until < now]:
            del self._until[peer]

    def broken(self, peers: Iterable[tuple[str, int]]) -> None:
        """Some of *peers* has sent something."""
        for peer in peers:
            self._until.pop(peer, None)

    def is_foreseen(self, peers: Iterable[tuple[str, int]], now: float) -> bool:
        """Whether all of *peers*, one at least, are known for it."""
        asked = list(peers)
        return bool(asked) and all(self._until.get(peer, now) > now for peer in asked)
