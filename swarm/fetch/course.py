"""Where a fetch stands, and the owners that it works with: what its three coordinators share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from swarm.blob.digest import Digest
from swarm.blob.errors import SwarmError
from swarm.fetch.claims import Claims
from swarm.fetch.docking import Harbour
from swarm.fetch.follower import Follower
from swarm.fetch.line import Line, Traffic
from swarm.fetch.partial import Partial
from swarm.fetch.patience import Silence
from swarm.fetch.readers import Readers
from swarm.fetch.stalls import Stalls
from swarm.fetch.tasks import Tasks
from swarm.fetch.transfers import Transfers
from swarm.metrics import SwarmMetrics
from swarm.peer.lane.lane import Lane
from swarm.peer.peers import PeerAddress
from swarm.settings import SwarmSettings
from swarm.storage.store import Store
from swarm.tracking.trackers import Trackers
from swarm.upstream.download import Begun

if TYPE_CHECKING:
    from swarm.fetch.fetch import Fetch

log = logging.getLogger("shoal.swarm")


class Phase(Enum):
    """Where a fetch stands."""

    SIZING = "sizing"
    """The size is not known."""
    FILLING = "filling"
    """Pieces come."""
    VERIFIED = "verified"
    """The sha256 matched."""
    KEPT = "kept"
    """The blob is complete in the store."""
    CLOSED = "closed"
    """Nothing that the fetch started runs any more."""
    FAILED = "failed"
    """It cannot go on; `error` says why."""


class Home(Protocol):
    """Where all fetches of this node are known."""

    async def finished(self, fetch: Fetch) -> None:
        """A blob is verified, and kept where there is room: returns once it is offered."""

    def closed(self, fetch: Fetch) -> None:
        """Nothing that *fetch* began runs any more."""

    def entering(self) -> int:
        """Blobs that enter the cluster for readers on this node (`Fetch.enters`)."""

    def entering_changed(self) -> None:
        """There are more of those, or fewer."""

    async def make_room(self) -> bool:
        """The store is full: close what nobody reads. Whether there was anything."""


@dataclass(eq=False)
class Parts:
    """The parts of the agent that every fetch works with."""

    settings: SwarmSettings
    session: Harbour
    store: Store
    trackers: Trackers
    pool: ThreadPoolExecutor
    metrics: SwarmMetrics
    lane: Lane
    on_wrong: Callable[[Digest, PeerAddress], None]
    """An agent sent a piece over the lane that does not match its hash."""
    silence: Silence = field(default_factory=Silence)
    """Peers that sent nothing when asked."""
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(eq=False)
class Course:
    """See the module. *partial* and *transfers* are there once the size is known."""

    digest: Digest
    parts: Parts
    home: Home
    tasks: Tasks
    started: float = field(default_factory=time.monotonic)
    readers: Readers = field(default_factory=Readers)
    phase: Phase = Phase.SIZING
    error: SwarmError | None = None
    closing: bool = False
    origin: str | None = None
    """Of what upstream sends to this node; "": of several, or not known; None: nobody has asked."""
    ranged: bool = False
    """Ranges of the blob were read on this node."""
    enters: bool = False
    """Much of it is still to be brought into the cluster, for those who read all of it."""
    sized: asyncio.Event = field(default_factory=asyncio.Event)
    """The size is known, or the fetch has failed."""
    partial: Partial | None = None
    transfers: Transfers | None = None
    begun: Begun = field(default_factory=Begun)
    """Parts of pieces from upstream, whoever asked for them."""
    piece_at: float = float("-inf")
    """When a piece became ready last."""
    heard_peers: bool = False
    """Some peer has sent a piece."""
    line: Line = field(init=False)
    follower: Follower = field(init=False)
    claims: Claims = field(init=False)
    stalls: Stalls = field(init=False)

    def __post_init__(self) -> None:
        self.stalls = Stalls(self.started)
        self.line = Line(self.parts.traffic, time.monotonic)

    @property
    def alive(self) -> float:
        """When anything came last, from anywhere."""
        return max(self.piece_at, self.line.moved)

    @property
    def is_verified(self) -> bool:
        """Whether the whole blob is here, and its sha256 matched."""
        return self.phase in (Phase.VERIFIED, Phase.KEPT) or (self.phase is Phase.CLOSED and self.error is None)

    def mixed(self) -> None:
        """What comes from now on is of another origin than what came: nobody can tell them apart any more."""
        if self.origin and not self.is_verified:
            self.origin = ""
            if self.partial is not None:
                self.tasks.spawn(self.partial.mixed())

    def want(self) -> None:
        """Fetch from peers what the readers want now, where there is somebody to fetch it from."""
        if self.transfers is not None and not self.is_verified and not self.closing:
            self.transfers.want(shared=self.follower.shared)

    def trace(self, event: str, window: int, **fields: Any) -> None:
        """What happens to a window, for `bench.timeline`."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug(event, extra={"fields": {"digest": self.digest, "window": window, **fields}})
