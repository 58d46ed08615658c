"""The torrent of a whole blob, for what of it is missing here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from swarm.blob.digest import Digest
from swarm.blob.metainfo import sealed_info
from swarm.fetch.demand import Wanted
from swarm.fetch.docking import Docking, Peers
from swarm.fetch.place import Place
from swarm.peer.session import Torrent


class WholeTorrent:
    """See the module. *hashes*: of all windows, once it is started. *wanted*: what the readers want now."""

    def __init__(
        self,
        digest: Digest,
        place: Place,
        docking: Docking,
        hashes: Mapping[int, bytes],
        peers: Peers,
        wanted: Callable[[], Wanted],
        spawn: Callable[..., asyncio.Task[None]],
        *,
        lane: bool,
    ) -> None:
        """*lane*: what is here is given over the lane as well, and most of what is missing comes by it."""
        self._lane = lane
        self._digest = digest
        self._place = place
        self._docking = docking
        self._hashes = hashes
        self._peers = peers
        self._wanted = wanted
        self._spawn = spawn
        self._torrent: Torrent | None = None
        self._asked: set[int] = set()
        """Pieces that it was told to fetch."""
        self._hurried: set[int] = set()
        """Those of them that come before others."""
        self._active = asyncio.Event()
        """Set while it is to be fetched by."""
        self._switching = asyncio.Lock()
        """Held while it comes or goes."""

    @property
    def torrents(self) -> list[Torrent]:
        """The torrent, if it is in the session."""
        return [self._torrent] if self._torrent is not None else []

    async def start(self) -> None:
        """Fetch by it from now on."""
        self._active.set()
        async with self._switching:
            if self._torrent is None and self._active.is_set():
                await self._add()

    def stop(self) -> None:
        """Fetch by it no longer."""
        self._active.clear()
        torrent, self._torrent = self._torrent, None
        self._asked, self._hurried = set(), set()
        if torrent is not None:
            self._docking.send_away(torrent)

    async def vacate(self, span: range) -> None:
        """Until nothing of the pieces of *span* is left for libtorrent to write. They must not be wanted any more."""
        while True:
            async with self._switching:
                await self._docking.drained()
            if self._torrent is None or self._asked.isdisjoint(span):
                return
            await asyncio.wait([self._spawn(self.renew(self._torrent))])  # to its end, even if nobody waits any more

    async def renew(self, torrent: Torrent) -> None:
        """It leaves, and comes back with what is wanted now."""
        async with self._switching:
            if torrent is self._torrent:
                self._torrent = None
                await self._docking.send_away(torrent)
                await self._add()

    def want(self) -> None:
        """Have it fetch what is wanted now; it may have let go of its peers meanwhile."""
        wanted = self._wanted()
        now = self._missing(wanted)
        new = (now - self._asked) | ((now & wanted.urgent) - self._hurried)
        if not new or not self._active.is_set():
            return
        if self._torrent is None:
            if self._lane and not self._switching.locked():
                self._spawn(self.start())
            return
        self._asked |= new
        self._hurried |= new & wanted.urgent
        if self._place.unreserved(new):
            self._spawn(self._reserve_and_want(new))
        else:
            self._fetch(new)

    def reannounce(self) -> None:
        """There are new peers."""
        if self._torrent is not None:
            self._torrent.reannounce()

    def came(self, piece: int) -> None:
        """*piece* came by another way."""
        if self._torrent is not None:
            self._spawn(self._docking.offer(self._torrent, piece))

    async def add(self, ready: Iterable[int], wanted: Iterable[int], priority: int, peers: Peers) -> Torrent | None:
        """Add a torrent of the whole blob to the session. All hashes must be known."""
        info = sealed_info(self._digest, self._place.layout, b"".join(self._in_order()))
        have = set(ready)
        return await self._docking.add(info, have, have.union(wanted), priority, peers)

    def ready(self) -> set[int]:
        """The pieces that are here."""
        return {piece for piece in range(self._place.layout.pieces) if piece in self._place.pieces}

    # -- inside -----------------------------------------------------------------------------------

    def _in_order(self) -> list[bytes]:
        return [self._hashes[window.index] for window in self._place.layout.windows]

    async def _add(self) -> None:
        ready, layout = self.ready(), self._place.layout
        if not self._active.is_set() or len(ready) == layout.pieces or len(self._hashes) < len(layout.windows):
            return
        missing = self._missing(self._wanted())
        if not missing and self._lane:
            return  # nothing is left to it: no connection is made for that
        self._asked = set() if self._place.by_window else missing
        torrent = await self.add(ready, self._asked, 4, self._peers)
        if torrent is None:
            return
        if not self._active.is_set():
            self._docking.send_away(torrent)
            return
        self._torrent = torrent
        for piece in range(layout.pieces):
            if piece in self._place.pieces and piece not in ready:
                self._spawn(self._docking.offer(torrent, piece))  # brought in meanwhile
        self.want()

    def _missing(self, wanted: Wanted) -> set[int]:
        """Pieces that the readers here need from peers: all that are missing, or those that range readers wait for."""
        place = self._place
        pieces: Iterable[int] = range(place.layout.pieces) if wanted.whole else wanted.pieces
        elsewhere = {piece for index in wanted.elsewhere for piece in place.layout.windows[index].span}
        return {piece for piece in pieces if piece not in place.pieces and piece not in elsewhere}

    async def _reserve_and_want(self, pieces: set[int]) -> None:
        for window in self._place.unreserved(pieces):
            await self._place.reserve(window)
        self._fetch(pieces)

    def _fetch(self, pieces: set[int]) -> None:
        if self._torrent is not None:
            urgent = self._wanted().urgent
            self._torrent.want((piece, 7 if piece in urgent else 4) for piece in pieces)
            self._torrent.reannounce()
