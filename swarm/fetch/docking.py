"""The torrents of one blob on their way into the session and out of it, and the pieces that arrive by them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from swarm.blob.digest import Digest
from swarm.fetch.place import Place
from swarm.metrics import SwarmMetrics
from swarm.peer.arrivals import Arrivals
from swarm.peer.owner import Owner
from swarm.peer.peers import PeerAddress
from swarm.peer.session import Torrent

log = logging.getLogger("shoal.swarm")

Peers = Callable[[], Iterable[PeerAddress]]


class Listener(Protocol):
    """Who is told what arrives."""

    def expected(self, piece: int) -> bytes | None:
        """The SHA-1 of *piece*, if the board has told it."""

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""

    def moved(self) -> None:
        """Something is on its way."""

    def spoiled(self, torrent: Torrent, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes, and was banned."""


class Harbour(Protocol):
    """Where torrents are while other agents can reach them: the session (swarm/peer/session.py)."""

    async def add(
        self,
        info: bytes,
        *,
        path: Path,
        have: Iterable[int],
        wanted: Iterable[int],
        owner: Owner,
        priority: int,
    ) -> Torrent:
        """The torrent of *info* over the file *path*. Raises SessionError."""

    async def retire(self, torrent: Torrent) -> None:
        """It leaves; returns once nothing of it is left to be written."""

    def remove(self, torrent: Torrent) -> None:
        """It leaves at once."""


class _Berth:
    """Owner of one torrent. *peers*: whom it dials."""

    def __init__(
        self, digest: Digest, arrivals: Arrivals, listener: Listener, metrics: SwarmMetrics, peers: Peers
    ) -> None:
        self._digest = digest
        self._arrivals = arrivals
        self._listener = listener
        self._metrics = metrics
        self._peers = peers
        self._torrent: Torrent | None = None
        self._early: list[int] = []
        """Pieces that came before `enter`."""

    def enter(self, torrent: Torrent) -> None:
        """The session has added *torrent*."""
        self._torrent = torrent

    def catch_up(self) -> None:
        """Have those pieces looked at that came before the torrent was known here."""
        for piece in self._early:
            self.arrived(piece)

    def dialled(self) -> Iterable[PeerAddress]:
        """Whom to dial."""
        return self._peers()

    def arrived(self, piece: int) -> None:
        """It came, and may not be in the file yet."""
        if self._torrent is None:
            self._early.append(piece)
        else:
            self._arrivals.put(self._torrent, piece)

    def mismatched(self, piece: int) -> None:
        """Its hash did not match."""
        self._metrics.bad_pieces.inc()

    def spoiled(self, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes."""
        if self._torrent is not None:
            self._listener.spoiled(self._torrent, peer)

    def failed(self, text: str) -> None:
        """The torrent met an error."""
        log.error("torrent-error", extra={"fields": {"digest": self._digest, "error": text}})


class Docking:
    """See the module: the Host of Arrivals. *spawn* starts a task that ends with the fetch."""

    def __init__(
        self,
        digest: Digest,
        place: Place,
        listener: Listener,
        session: Harbour,
        pool: ThreadPoolExecutor,
        metrics: SwarmMetrics,
        spawn: Callable[..., asyncio.Task[None]],
    ) -> None:
        self._digest = digest
        self._place = place
        self._listener = listener
        self._session = session
        self._pool = pool
        self._metrics = metrics
        self._spawn = spawn
        self._turn = 0
        self._leaving: set[asyncio.Task[None]] = set()
        """Torrents on their way out: until then, libtorrent may still write into the file."""
        self._offered: dict[int, Torrent] = {}
        """Pieces that were offered to a torrent and are not known to be in it."""
        self._arrivals = Arrivals(digest, self, place.layout, place.staged, place.file, pool, spawn)

    @property
    def turn(self) -> int:
        """Counts the restarts."""
        return self._turn

    @property
    def checking(self) -> bool:
        """Whether something has come that does not count yet: it is our own disk that is waited for."""
        return self._arrivals.busy

    def restart(self) -> None:
        """The board began again: what has come and is not ready yet is void."""
        self._turn += 1
        self._offered.clear()

    async def add(
        self, info: bytes, have: Iterable[int], wanted: Iterable[int], priority: int, peers: Peers
    ) -> Torrent | None:
        """Add the torrent of *info*; None if the board began again meanwhile. Raises SessionError."""
        turn = self._turn
        await self.drained()  # the session takes a torrent once
        self._listener.moved()
        berth = _Berth(self._digest, self._arrivals, self._listener, self._metrics, peers)
        torrent = await self._session.add(
            info, path=self._place.path, have=have, wanted=wanted, owner=berth, priority=priority
        )
        berth.enter(torrent)
        if turn != self._turn:
            await self._session.retire(torrent)
            return None
        berth.catch_up()
        return torrent

    def send_away(self, torrent: Torrent) -> asyncio.Task[None]:
        """Have *torrent* leave the session; what it has written by then stays."""
        task = self._spawn(self._session.retire(torrent))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    def remove(self, torrent: Torrent) -> None:
        """Take a torrent out that has nothing left to write."""
        self._session.remove(torrent)

    async def drained(self) -> None:
        """Until no torrent is on its way out."""
        while self._leaving:
            await asyncio.wait(self._leaving)

    async def offer(self, torrent: Torrent, piece: int) -> None:
        """A piece that came by another way, in a torrent that waits for it too: its peers may have it from us.

        libtorrent drops it if meanwhile it finds that a peer had sent it wrong bytes of that piece: see `offer_again`.
        """
        self._offered[piece] = torrent
        torrent.give(piece, await self._place.read(piece, self._pool))

    async def offer_again(self) -> None:
        """Offer what was offered a while ago and is not in its torrent."""
        offered, self._offered = self._offered, {}
        for torrent in set(offered.values()):
            have = await torrent.have()
            for piece in [p for p, to in offered.items() if to is torrent and p < len(have) and not have[p]]:
                await self.offer(torrent, piece)

    # -- Host of the arrivals -------------------------------------------------------------------------

    def expected(self, piece: int) -> bytes | None:
        """The SHA-1 of *piece*, if the board has told it."""
        return self._listener.expected(piece)

    def has(self, piece: int) -> bool:
        """Whether *piece* is here already."""
        return piece in self._place.pieces

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""
        self._listener.came(piece, sha1)

    def late(self) -> None:
        """A piece is not in the file although its alert came."""
        self._listener.moved()
        self._metrics.read_back.inc()
