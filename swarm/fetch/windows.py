"""The torrents of single windows: those that are fetched from peers, and those that are offered to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from swarm.blob.digest import Digest
from swarm.blob.errors import BadHashes, SessionError
from swarm.blob.geometry import Window
from swarm.blob.metainfo import window_info
from swarm.fetch.demand import Wanted
from swarm.fetch.docking import Docking
from swarm.fetch.place import Place
from swarm.peer.peers import PeerAddress
from swarm.peer.session import Torrent

LAST_WINDOWS = 2
"""Missing windows at the end of a blob whose torrents may be in their end game."""

MOST_JOINED = 32 * 1024 * 1024
"""Bytes of windows that are fetched from peers at once, beside those that a reader waits for: sixteen of the usual
length, four of a blob of 2 GiB. More are no faster, and each has blocks, buffers and connections of its own: three
agents of such a blob grew to 270-400 MiB on a busy machine."""

TORRENT_IDLE = 10.0
"""Seconds for which the torrent of a window of which only some pieces were wanted stays, with its connections: the
next read of the window comes soon or not at all. Adding it again costs 5-10 ms."""

USUAL, URGENT = 4, 7
"""libtorrent's priorities of pieces."""


class WindowTorrents:
    """See the module. *hashes*: of the windows published. *dial*: whom to dial for a window. *clock*: seconds."""

    def __init__(
        self,
        digest: Digest,
        place: Place,
        docking: Docking,
        hashes: Mapping[int, bytes],
        dial: Callable[[int], Iterable[PeerAddress]],
        wanted: Callable[[], Wanted],
        spawn: Callable[..., asyncio.Task[None]],
        clock: Callable[[], float],
    ) -> None:
        self._digest = digest
        self._place = place
        self._docking = docking
        self._hashes = hashes
        self._dial = dial
        self._wanted = wanted
        self._spawn = spawn
        self._clock = clock
        self._available: int | None = None
        self._torrents: dict[int, Torrent] = {}
        self._joining: dict[int, asyncio.Task[None]] = {}
        self._dropped: set[int] = set()
        """Of those that are about to come, the ones that are wanted no more."""
        self._seeding: set[int] = set()
        self._asked: set[int] = set()
        """Pieces that torrents were told to fetch."""
        self._hurried: set[int] = set()
        """Those of them that come before others."""
        self._partly: dict[int, float] = {}
        """Window -> when pieces of it were wanted last, where only some were."""

    # -- what is known ----------------------------------------------------------------------------

    @property
    def torrents(self) -> list[Torrent]:
        """Those that are in the session."""
        return list(self._torrents.values())

    @property
    def windows(self) -> frozenset[int]:
        """Windows whose torrents are in the session."""
        return frozenset(self._torrents)

    def has(self, window: int) -> bool:
        """Whether *window* has a torrent, or is about to."""
        return window in self._torrents or window in self._joining or window in self._seeding

    @property
    def idle(self) -> bool:
        """Whether there is none."""
        return not self._torrents and not self._joining

    # -- what is done -----------------------------------------------------------------------------

    def want(self, available: int | None) -> None:
        """Fetch the published windows that are wanted. *available*: bit w is set if peers hold window w; None: all."""
        self._available = available
        wanted, place = self._wanted(), self._place
        windows, under_way = place.layout.windows, self._torrents.keys() | self._joining.keys()
        demanded: dict[int, set[int]] = {}
        for piece in {p for p in wanted.pieces if p not in place.pieces}:
            demanded.setdefault(place.window_of(piece).index, set()).add(piece)
        for index in (demanded.keys() | (self._partly.keys() if wanted.whole else set())) & self._torrents.keys():
            self._want_more(self._torrents[index], windows[index], demanded.get(index, set()), wanted)
        free = max(4, MOST_JOINED // max(window.length for window in windows))
        free -= sum(not place.pieces.holds(windows[index]) for index in under_way)
        for index in sorted(self._hashes.keys() - under_way - wanted.elsewhere):
            if available is not None and not available >> index & 1:
                continue
            first = demanded.get(index, set())
            if not (first or (wanted.whole and free > 0)) or place.pieces.holds(windows[index]):
                continue
            free -= 1
            self._joining[index] = self._spawn(self._join(windows[index], self._hashes[index], first, wanted))

    async def seed(self, window: Window, hashes: bytes) -> None:
        """Offer a window that is here."""
        if self.has(window.index):
            return
        self._seeding.add(window.index)
        try:
            info = window_info(self._digest, self._place.layout, window, hashes)
            dial = partial(self._dial, window.index)
            torrent = await self._docking.add(info, window.span, window.span, USUAL, dial)
            if torrent is not None:
                self._torrents[window.index] = torrent
        except (SessionError, BadHashes):
            pass  # it is not offered by this node, then
        finally:
            self._seeding.discard(window.index)

    async def vacate(self, window: int) -> None:
        """Until nothing of *window* is left for libtorrent to write."""
        if (joining := self._joining.get(window)) is not None:
            await asyncio.wait([joining])
        self._send_away(window)
        await self._docking.drained()

    def arrived(self, window: Window) -> None:
        """*window* is here: its torrent need not want in vain any more; at the end none does."""
        every = self._near_the_end(self._wanted())
        for index in list(self._torrents) if every else [window.index]:
            if (torrent := self._torrents.get(index)) is not None:
                torrent.want((piece, 0) for piece in self._outside(self._place.layout.windows[index]))

    def renew(self, torrent: Torrent) -> bool:
        """A peer spoiled *torrent*: it leaves. Whether it was one of these."""
        window = next((index for index, known in self._torrents.items() if known is torrent), None)
        if window is not None:
            self._send_away(window)
        return window is not None

    def reannounce(self) -> None:
        """There are new peers: dial those who came after our torrents were added, for they do not dial us."""
        for index, torrent in self._torrents.items():
            if not self._place.pieces.holds(self._place.layout.windows[index]):
                torrent.reannounce()

    def drop_unfinished(self) -> None:
        """What is not here comes by another way from now on."""
        for index in [i for i in self._torrents if not self._place.pieces.holds(self._place.layout.windows[i])]:
            self._send_away(index)
        self._dropped |= self._joining.keys()

    async def joined(self) -> None:
        """Until those that were about to come have come, or are on their way out."""
        if self._joining:
            await asyncio.wait(list(self._joining.values()))

    def restart(self) -> None:
        """The board began again: none of them is of use."""
        for index in list(self._torrents):
            self._send_away(index)
        self._joining.clear()
        self._dropped.clear()
        self._asked, self._hurried = set(), set()
        self._partly.clear()

    def let_go_of_idle(self) -> None:
        """Remove the torrents of windows of which range readers had all that they wanted a while ago."""
        waited_for = self._wanted().windows
        for index in list(self._partly.keys() - self._joining.keys() - waited_for):
            window = self._place.layout.windows[index]
            if self._place.pieces.holds(window) or index not in self._torrents:
                del self._partly[index]
            elif self._clock() - self._partly[index] > TORRENT_IDLE:
                del self._partly[index]
                # It has asked for nothing for so long: there is nothing left to be written, and nobody need wait.
                self._docking.remove(self._torrents.pop(index))
                self._forget(window)

    # -- inside -----------------------------------------------------------------------------------

    def _want_more(self, torrent: Torrent, window: Window, first: set[int], wanted: Wanted) -> None:
        """The torrent of *window* is to fetch the pieces *first* before others, and the others if all are wanted."""
        new = (set(self._place.pieces.missing(window)) if wanted.whole else first) - self._asked
        new |= (first & wanted.urgent) - self._hurried
        if wanted.whole:
            self._partly.pop(window.index, None)
        if new:
            if window.index in self._partly:
                self._partly[window.index] = self._clock()
            self._asked |= new
            self._hurried |= new & wanted.urgent
            torrent.want((piece, URGENT if piece in wanted.urgent else USUAL) for piece in new)
            torrent.reannounce()  # it may have let go of its peers

    async def _join(self, window: Window, hashes: bytes, first: set[int], wanted: Wanted) -> None:
        """Fetch *window* from peers: the pieces *first*, or all of it."""
        missing = set(self._place.pieces.missing(window))
        pieces = missing if wanted.whole else first
        urgent = first & wanted.urgent
        self._asked |= pieces
        if urgent:
            self._hurried |= pieces
        if not wanted.whole:
            self._partly[window.index] = self._clock()
        try:
            await self._place.reserve(window)
            torrent = await self._docking.add(
                window_info(self._digest, self._place.layout, window, hashes),
                [p for p in window.span if p not in missing],
                [*(window.span if wanted.whole else pieces), *self._outside(window)],
                URGENT if urgent else USUAL,
                partial(self._dial, window.index),
            )
            if torrent is None:
                return
            if window.index in self._dropped or self._joining.get(window.index) is not asyncio.current_task():
                self._docking.send_away(torrent)
                self._forget(window)
                return
            self._torrents[window.index] = torrent
            if self._place.pieces.holds(window) or self._near_the_end(wanted):
                torrent.want((piece, 0) for piece in self._outside(window))
        finally:
            if self._joining.get(window.index) is asyncio.current_task():
                del self._joining[window.index]
                self._dropped.discard(window.index)
        if not wanted.whole:
            self.want(self._available)  # other pieces may have been demanded meanwhile

    def _outside(self, window: Window) -> tuple[int, ...]:
        """One piece outside *window*, for its torrent to want in vain until the window is here.

        A torrent whose blocks are all asked for is in its end game: libtorrent asks several peers for the same
        blocks. So small a torrent is always there, and 18-22 % of all bytes came twice; nobody has this piece.
        """
        if window.pieces == self._place.layout.pieces:
            return ()
        return (window.first_piece - 1 if window.first_piece else window.last_piece + 1,)

    def _near_the_end(self, wanted: Wanted) -> bool:
        """Whether so little is missing that asking twice helps more than it costs."""
        missing = len(self._place.layout.windows) - self._place.pieces.have.bit_count()
        return wanted.whole and missing <= LAST_WINDOWS

    def _send_away(self, index: int) -> None:
        if (torrent := self._torrents.pop(index, None)) is not None:
            self._docking.send_away(torrent)
            self._forget(self._place.layout.windows[index])

    def _forget(self, window: Window) -> None:
        self._asked -= set(window.span)
        self._hurried -= set(window.span)
