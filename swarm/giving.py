"""What a node gives to other agents over the lane, and whom it accuses for what they gave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from swarm.blob.errors import TrackerError
from swarm.blob.geometry import geometry
from swarm.metrics import SwarmMetrics
from swarm.peer.lane.offers import Offer
from swarm.peer.peers import PeerAddress
from swarm.protocol import wire
from swarm.storage.held import BlobHandle
from swarm.tracking.trackers import Trackers

log = logging.getLogger("shoal.swarm")


def offer_of(held: BlobHandle) -> Offer:
    """The complete blob *held* for the lane, which closes it on the running loop. *held* is the offer's from now on."""
    loop = asyncio.get_running_loop()

    def release() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the store
            loop.call_soon_threadsafe(held.close)

    return Offer(held.digest, geometry(held.size), held.fd, None, release)


class Accuser:
    """Names agents that sent wrong bytes to the tracker of the blob. *spawn*: starts a task of the node."""

    def __init__(
        self, trackers: Trackers, metrics: SwarmMetrics, spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._trackers, self._metrics, self._spawn = trackers, metrics, spawn

    def sent_wrong(self, digest: str, peer: PeerAddress) -> None:
        """*peer* sent a wrong piece of *digest*; empty: of what is not here any more."""
        self._metrics.banned_peers.inc()
        log.error("peer-banned", extra={"fields": {"peer": f"{peer[0]}:{peer[1]}", "digest": digest}})
        if digest:
            self._spawn(self._tell(digest, peer))

    async def _tell(self, digest: str, peer: PeerAddress) -> None:
        link = self._trackers.pick(digest)
        if link is not None:
            with contextlib.suppress(TrackerError):
                message = wire.Corrupt(**self._trackers.me(), digest=digest, peer_ip=peer[0], peer_port=peer[1])
                await link.call("/v1/corrupt", message, wire.Ok)
