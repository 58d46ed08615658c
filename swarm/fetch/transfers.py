"""What is fetched from peers, and offered to them: over the lane, or by torrents of windows and of the whole blob.

Owns what moves between peers of one blob, and the mode. Torrents are for peers without a lane, and for
what the lane does not bring. The rest of a fetch says what is wanted (`want`), in which
mode (`set_mode`), and asks for a window to be left alone (`writing`) before anybody else writes there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from swarm.blob.digest import Digest
from swarm.blob.geometry import Window
from swarm.blob.metainfo import HASH_LENGTH
from swarm.fetch.demand import Wanted
from swarm.fetch.docking import Docking, Harbour
from swarm.fetch.events import Holder, HoldersNamed
from swarm.fetch.lanes import LaneWindows
from swarm.fetch.modes import Mode
from swarm.fetch.place import Place
from swarm.fetch.whole import WholeTorrent
from swarm.fetch.windows import WindowTorrents
from swarm.metrics import SwarmMetrics
from swarm.peer.lane.lane import Lane
from swarm.peer.peers import PeerAddress, successors
from swarm.peer.session import Torrent
from swarm.peer.sole_seed import SoleSeed

MOST_DIALLED = 2
"""Peers that a window's torrent dials, the next ones on a ring: everybody has twice as many connections."""

MOST_REBUILT = 8
"""Torrents of one blob that begin anew because a peer sent wrong bytes."""

TORRENTS = 2.0
"""Seconds for which a piece by a torrent says that torrents bring what the lane does not. With four, an agent that
could not be dialled cost the others ten seconds in one pull of three: torrents brought what they had of each other."""


class Host(Protocol):
    """What transfers ask of the fetch, and tell it."""

    def wanted(self) -> Wanted:
        """What the readers want."""

    def peers(self) -> tuple[PeerAddress, ...]:
        """Other agents that take part."""

    def me(self) -> str:
        """Under which name this node stands among them."""

    def came_from_peer(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""

    def moved(self) -> None:
        """Something is on its way."""

    def banned(self, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes."""

    def wrong(self, peer: PeerAddress) -> None:
        """*peer* sent a wrong piece over the lane."""


class Transfers:
    """See the module. *hashes*: window -> piece hashes of what is published. *spawn* starts a task of the fetch.

    Above the bound of methods: it is the one door to what is fetched from peers, and most of them forward to the
    owner of one mode.
    """

    def __init__(
        self,
        digest: Digest,
        place: Place,
        host: Host,
        hashes: Mapping[int, bytes],
        session: Harbour,
        lane: Lane,
        pool: ThreadPoolExecutor,
        metrics: SwarmMetrics,
        spawn: Callable[..., asyncio.Task[None]],
        clock: Callable[[], float],
    ) -> None:
        self._place = place
        self._host = host
        self._hashes = hashes
        self._session = session
        self._lane = lane
        self._spawn = spawn
        self._mode = Mode.WINDOWS
        self._sole: PeerAddress | None = None
        self._sole_lane: Holder | None = None
        self._available: int | None = None
        self._claimed: list[int] = []
        """Windows that come from the sole seed, first claimed first."""
        self._written: Counter[int] = Counter()
        """Windows that somebody else writes into."""
        self._rebuilt = 0
        self._stopped = False
        self._shared = True
        """Whether others see the same board."""
        self._clock = clock
        self._torrents_at = float("-inf")
        """When a piece came by a torrent last that nobody gave over the lane."""
        self._docking = Docking(digest, place, self, session, pool, metrics, spawn)
        self._lanes = LaneWindows(digest, place, self, lane, hashes, me=host.me(), spawn=spawn, clock=clock)
        self._windows = WindowTorrents(digest, place, self._docking, hashes, self._dial, self._left, spawn, clock)
        self._whole = WholeTorrent(
            digest, place, self._docking, hashes, host.peers, self._left, spawn, lane=lane.port > 0
        )
        self._from_sole = SoleSeed(self._add_sole, session)
        self._sole_leaving: asyncio.Task[None] | None = None

    # -- what is known ----------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How the blob is fetched from peers."""
        return self._mode

    @property
    def idle(self) -> bool:
        """Whether no window has a torrent."""
        return self._windows.idle

    @property
    def windows(self) -> frozenset[int]:
        """Windows that peers are sending, or are offered by torrents."""
        return self._windows.windows | self._lanes.coming

    @property
    def checking(self) -> bool:
        """Whether something has come that does not count yet: it is our own disk that is waited for."""
        return self._docking.checking

    async def received(self) -> int:
        """Payload bytes that have come from peers, whole pieces or not."""
        return self._lanes.received + sum([await torrent.received() for torrent in self._all()])

    def waiting(self) -> tuple[int, ...]:
        """Published windows that are wanted from peers and not here, those without a torrent last."""
        wanted, place = self.wanted(), self._place
        unheld = ~self._available if self._available is not None and self._sole is None else 0
        here = self.windows
        return tuple(
            w
            for w in sorted(self._hashes, key=lambda index: (index not in here, index))
            if not place.pieces.holds(place.layout.windows[w])
            and w not in wanted.elsewhere
            and (wanted.whole or w in wanted.windows)
            and not unheld >> w & 1
        )

    @property
    def lost(self) -> tuple[int, ...]:
        """Published windows that are to come from peers for who reads the whole blob, and whose holders do not answer.

        None while torrents bring what the lane does not: a firewall may let them pass, and no lane.
        """
        wanted = self.wanted()
        if not wanted.whole or self._clock() - self._torrents_at < TORRENTS:
            return ()
        elsewhere = wanted.elsewhere if self._sole is None else frozenset()
        return tuple(window for window in self._lanes.lost if window not in elsewhere)

    # -- what is decided elsewhere ----------------------------------------------------------------

    def named(self, news: HoldersNamed) -> None:
        """Whom to ask for windows over the lane."""
        self._sole_lane = news.sole if self._lane.port else None
        self._lanes.named(news)

    def set_mode(self, mode: Mode, sole: PeerAddress | None, available: int | None) -> None:
        """How to fetch from now on. *sole*: the only holder. *available*: bit w is set if peers hold window w."""
        before, self._mode = self._mode, mode
        self._available = available
        if sole != self._sole:
            self._sole = sole
            self._sole_leaving = self._spawn(self._from_sole.leave())
        if mode is before:
            return
        if mode is Mode.WHOLE:
            self._windows.drop_unfinished()
            self._spawn(self._start_whole())
        elif before is Mode.WHOLE:
            self._whole.stop()

    def want(self, *, shared: bool = True) -> None:
        """Fetch what the readers want now. *shared*: others see the same board, so there is somebody to ask."""
        if self._stopped:
            return
        self._shared = shared
        self._lanes.want(self._available)  # whoever is known by name gives, whatever has become of the tracker
        self._want_torrents()

    @contextlib.asynccontextmanager
    async def writing(self, window: Window) -> AsyncIterator[None]:
        """Entered once no thread and no torrent writes into *window*, and nothing of it is fetched meanwhile.

        They write into the same file what is not verified yet: wrong bytes of a peer came down on right ones.
        """
        self._written[window.index] += 1
        try:
            await self.vacate(window)
            yield
        finally:
            self._written[window.index] -= 1
            if not self._written[window.index]:
                del self._written[window.index]

    async def vacate(self, window: Window) -> None:
        """Until nobody is left who writes into *window*. It must not be wanted any more."""
        await self._vacate(window)
        await self._from_sole.want(self._sole_wants)

    def may_offer(self, window: int) -> bool:
        """Whether *window* is not offered by a torrent, though it could be, and somebody may need one."""
        return (
            not self._lanes.alone
            and self._mode is not Mode.WHOLE
            and not self._stopped
            and not self._windows.has(window)
        )

    async def seed(self, window: Window, hashes: bytes) -> None:
        """Offer a window that is here, unless the torrent of the whole blob does."""
        if self.may_offer(window.index):
            await self._windows.seed(window, hashes)

    def brought(self, piece: int) -> None:
        """*piece* came from upstream."""
        self._whole.came(piece)

    def arrived(self, window: Window) -> None:
        """*window* is here, from wherever."""
        self._lanes.arrived(window)
        self._windows.arrived(window)

    def reannounce(self) -> None:
        """There are new peers."""
        self._windows.reannounce()
        self._whole.reannounce()

    def restart(self) -> None:
        """The board began again: nothing that was fetched or known counts any more, unless the blob is verified."""
        if self._stopped:
            return  # the windows are right, are published again, and nobody else may offer them
        self._docking.restart()
        self._lanes.restart()
        self._windows.restart()
        self._whole.stop()
        self._mode, self._available, self._sole = Mode.WINDOWS, None, None
        self._sole_leaving = self._spawn(self._from_sole.leave())

    async def tidy(self) -> None:
        """What is to be looked after once a second."""
        await self._docking.offer_again()
        self._windows.let_go_of_idle()
        if not self._stopped:
            self._lanes.want(self._available)

    async def verified(self) -> None:
        """The blob is here: nothing more is fetched, and it is offered whole from now on."""
        self._stopped = True
        self._lanes.close(offered=True)
        await self._lanes.drained()
        await self._from_sole.leave()

    async def close(self) -> None:
        """All torrents leave the session, no thread writes any more, and nothing is given."""
        self._stopped = True
        self._lanes.close()
        await self._lanes.drained()
        for torrent in self._all():
            self._session.remove(torrent)

    # -- Origin of claims on the windows of a sole seed -----------------------------------------------

    async def bring(self, window: int) -> None:
        """Fetch a claimed window from the sole seed."""
        place = self._place.layout.windows[window]
        await self._vacate(place)
        if self._sole_lane is not None and await self._lanes.fetch(place, self._sole_lane):
            return
        self._claimed.append(window)
        try:
            await self._from_sole.want(self._sole_wants)
            for piece in place.span:
                await self._place.pieces.wait(piece)
        finally:
            self._claimed.remove(window)
            if not self._place.pieces.holds(place) and not self._stopped:
                self._spawn(self._from_sole.want(self._sole_wants))

    def arriving(self, window: int) -> int:
        """Bytes of *window* that have come over the lane by what is under way; torrents tell of whole pieces alone."""
        return self._lanes.arriving(window)

    # -- Host of the windows of the lane, and Listener of the docking ---------------------------------

    def wanted(self) -> Wanted:
        """What the readers want. Windows that somebody else writes into come from elsewhere."""
        wanted = self._host.wanted()
        return replace(wanted, elsewhere=wanted.elsewhere | self._written.keys()) if self._written else wanted

    def unserved(self) -> None:
        """Nobody gave a window over the lane, and torrents may bring it."""
        self._want_torrents()

    def wrong(self, peer: PeerAddress) -> None:
        """*peer* sent a wrong piece over the lane."""
        self._host.wrong(peer)

    def expected(self, piece: int) -> bytes | None:
        """The SHA-1 of *piece*, if the board has told it."""
        window = self._place.window_of(piece)
        hashes = self._hashes.get(window.index)
        if hashes is None:
            return None
        at = (piece - window.first_piece) * HASH_LENGTH
        return hashes[at : at + HASH_LENGTH]

    def given(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""
        if piece not in self._place.pieces:
            self._from_sole.arrived(piece)
            self._host.came_from_peer(piece, sha1)

    def came(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file by a torrent, and right."""
        if self._place.window_of(piece).index in self._lanes.ungiven:
            self._torrents_at = self._clock()
        self.given(piece, sha1)

    def moved(self) -> None:
        """Something is on its way."""
        self._host.moved()

    def spoiled(self, torrent: Torrent, peer: PeerAddress) -> None:
        """*peer* sent wrong bytes: its torrent begins anew, without what it had sent of other pieces.

        libtorrent bans it, but keeps those blocks, and then bans whoever sends the rest of such a piece as well.
        """
        self._host.banned(peer)
        if self._rebuilt < MOST_REBUILT and not self._stopped:
            self._rebuilt += 1
            if self._windows.renew(torrent):
                self.want()
            else:
                self._spawn(self._whole.renew(torrent))

    # -- inside -----------------------------------------------------------------------------------

    def _want_torrents(self) -> None:
        if self._stopped:
            return
        if self._mode is Mode.WHOLE:
            self._whole.want()
        elif self._shared and not self._lanes.alone:
            self._windows.want(self._available)

    def _left(self) -> Wanted:
        """What the lane leaves to torrents."""
        wanted = self.wanted()
        return replace(wanted, elsewhere=wanted.elsewhere | self._lanes.taken)

    def _all(self) -> list[Torrent]:
        sole = self._from_sole.torrent
        return [*self._windows.torrents, *self._whole.torrents, *([sole] if sole is not None else [])]

    def _dial(self, window: int) -> tuple[PeerAddress, ...]:
        """Whom to dial for a window: few, and as many dial us.

        All with all is a connection per window and pair of nodes: half as many bytes per wakeup, and more CPU.
        """
        return successors(self._host.peers(), self._host.me(), str(window), MOST_DIALLED)

    async def _vacate(self, window: Window) -> None:
        await self._lanes.vacate(window.index)
        await self._windows.vacate(window.index)
        await self._sole_left()
        await self._whole.vacate(window.span)

    async def _start_whole(self) -> None:
        await self._sole_left()
        await self._windows.joined()
        if self._mode is Mode.WHOLE:
            await self._whole.start()

    async def _sole_left(self) -> None:
        if self._sole_leaving is not None:
            await asyncio.wait([self._sole_leaving])

    async def _add_sole(self, wanted: Iterable[int]) -> Torrent | None:
        if len(self._hashes) < len(self._place.layout.windows):
            return None
        return await self._whole.add(self._whole.ready(), wanted, 1, lambda: (self._sole,) if self._sole else ())

    def _sole_wants(self) -> list[list[int]]:
        """The missing pieces of each window that is to come from the sole seed."""
        if self._sole is None or self._stopped:
            return []
        windows = self._place.layout.windows
        return [
            list(self._place.pieces.missing(windows[index])) for index in self._claimed if index not in self._written
        ]
