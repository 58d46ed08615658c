"""One node: its lane, its pulls, and its line to upstream."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from bench.simulate.lane import Lane
from bench.simulate.links import Flow, Links
from bench.simulate.pull import Blob, Pull
from swarm.fetch.events import Holder
from swarm.protocol import wire
from tracker.members.gate import Visitor

UPSTREAM = 0
"""The number of upstream among the ends of links."""

PORT, LANE = 6881, 6882

TOGETHER = 3
"""Layers that a node pulls at once, as containerd does unless told otherwise."""


class Node:
    """See the module. *number*: of its link. *connection*: bytes per second of one connection to upstream at most."""

    def __init__(
        self, number: int, ip: str, zone: str, lane: Lane, links: Links, blobs: Sequence[Blob], chance: Random,
        holders: dict[str, Holder], *, connection: float, upstream_delay: float, now: Callable[[], float],
    ) -> None:  # fmt: skip
        self.number, self.lane, self.chance = number, lane, chance
        self.me = wire.Me(node=f"n{number}", port=PORT, session=f"session-{number}", lane=LANE)
        self.visitor = Visitor(ip, True, zone)
        self.upstream_delay = upstream_delay
        self.pulls: list[Pull] = []
        self.started = self.finished_at = math.nan
        self.killed = False
        self.on_finished: Callable[[], None] = lambda: None
        self._links, self._blobs, self._holders, self._now = links, blobs, holders, now
        self._connection = connection
        self._queue = list(blobs)
        self._done = 0

    @property
    def key(self) -> str:
        """As trackers name it."""
        return f"{self.visitor.ip}:{PORT}"

    @property
    def asked(self) -> int:
        """Messages to trackers."""
        return sum(pull.polls for pull in self.pulls)

    @property
    def past(self) -> int:
        """Windows that came from upstream past the cluster."""
        return sum(pull.past for pull in self.pulls)

    def start(self) -> None:
        """Its client asks for the image."""
        self.started = self._now()
        for _ in range(TOGETHER):
            self._next()

    def kill(self) -> None:
        """It is gone, with all that it has."""
        self.killed = self.lane.gone = True
        for pull in self.pulls:
            pull.close()
        self._links.cut(self.number)
        for blob in self._blobs:
            blob.tracker.lost(self.key)

    # -- Home of the pulls ------------------------------------------------------------------------

    def holder(self, peer: wire.Peer) -> Holder:
        """An agent, as answers name it."""
        return self._holders[peer.ip]

    def upstream(self, length: float, ended: Callable[[bool], None]) -> Flow:
        """Ask upstream for so many bytes."""
        return self._links.start(UPSTREAM, self.number, length, ended, self._connection)

    def stop(self, flow: Flow) -> None:
        """Upstream need send no more of it."""
        self._links.stop(flow)

    def come(self, flow: Flow) -> float:
        """Bytes that have come."""
        return self._links.come(flow)

    def entering(self) -> int:
        """Blobs of which much is not in the cluster yet."""
        return sum(pull.enters for pull in self.pulls)

    def entering_changed(self) -> None:
        """There are more of those, or fewer."""
        for pull in self.pulls:
            pull.tell()

    def finished(self, pull: Pull) -> None:
        """All of a blob is here."""
        assert pull in self.pulls
        self._done += 1
        if self._done == len(self._blobs):
            self.finished_at = self._now()
            self.on_finished()
        self._next()

    def _next(self) -> None:
        if self._queue and not self.killed:
            pull = Pull(self._queue.pop(0), self)
            self.pulls.append(pull)
            pull.begin()
