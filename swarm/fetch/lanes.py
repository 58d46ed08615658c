"""The pieces of one blob that come over the window lane: which are asked, of whom, and what becomes of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import groupby
from typing import Protocol

from swarm.blob.digest import Digest
from swarm.blob.errors import Cancelled, Unserved
from swarm.blob.geometry import Window
from swarm.blob.metainfo import HASH_LENGTH
from swarm.fetch.demand import Wanted
from swarm.fetch.events import Holder, HoldersNamed
from swarm.fetch.place import Place
from swarm.fetch.turns import Said, candidates, in_turn, own_order
from swarm.peer.lane.errand import Errand
from swarm.peer.lane.holders import Address
from swarm.peer.lane.lane import Lane
from swarm.peer.lane.offers import Offer
from swarm.peer.peers import PeerAddress

MOST_COMING = 16
"""Windows asked at once for who reads the whole blob: a few more than there are threads."""

UNNAMED = 0.6
"""Seconds after which a window that the tracker names no holder for is asked of whoever takes part."""

UNNAMED_URGENT = 0.2
"""The same where a reader waits for just these bytes: the tracker names who holds what is wished for at once, and of
sixteen agents that read ranges fifteen lack what is asked of them by chance: 4,000 refusals in a session of 15 s."""

AGAIN = 1.0
"""Seconds after which a window that nobody gave is asked for again."""

LOST = 0.5
"""Seconds after which a window is lost whose holders do not answer. To find that out has taken two of dialling, or four
of silence; torrents may have begun to bring it."""

GONE = 2.0
"""Seconds more where a holder's process has ended: the tracker hears of that, and names another."""

NOTHING = 4.0
"""Seconds without a byte of a window that was asked for, after which it is lost as well: as for a whole blob."""


class Host(Protocol):
    """What the windows of the lane ask of who fetches by it, and tell it."""

    def wanted(self) -> Wanted:
        """What the readers want."""

    def given(self, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""

    def unserved(self) -> None:
        """Nobody gave a window, and torrents may bring it."""

    def wrong(self, peer: PeerAddress) -> None:
        """*peer* sent a wrong piece."""


class LaneWindows:
    """See the module. *hashes*: window -> piece hashes of what is published. *spawn* starts a task of the fetch.

    Above the bound of methods: eight of them are questions of a line or two about what comes and what does not.
    """

    def __init__(
        self,
        digest: Digest,
        place: Place,
        host: Host,
        lane: Lane,
        hashes: Mapping[int, bytes],
        *,
        me: str,
        spawn: Callable[..., asyncio.Task[None]],
        clock: Callable[[], float],
    ) -> None:
        self._digest, self._place, self._host, self._lane, self._hashes = digest, place, host, lane, hashes
        self._me, self._spawn, self._clock = me, spawn, clock
        self._order = own_order(me, len(place.layout.windows))
        self._offer = _offered(digest, place, lane) if lane.port else None
        """None: nothing is given; there is no lane, or no descriptor was left."""
        self._named: dict[int, tuple[Holder, ...]] = {}
        self._named_at: dict[int, float] = {}
        """Window -> when somebody was named for it who was not before."""
        self._others: tuple[Holder, ...] = ()
        self._sole: Holder | None = None
        """The sole seed, while its windows are fetched by claims."""
        self._peers: dict[Address, PeerAddress] = {}
        self._strangers = False
        self._unanswered = False
        """Agents that should give windows did not answer: a firewall may let BitTorrent pass, and no lane."""
        self._said = Said()
        self._available: int | None = None
        self._errands: dict[Errand, int] = {}
        """Errand -> window, until no thread works on it any more."""
        self._pieces: set[int] = set()
        """Pieces of errands that are wanted."""
        self._seen: dict[int, float] = {}
        """Window -> when it was wanted first."""
        self._failed: dict[int, float] = {}
        """Window -> when nobody gave it."""
        self._silent: dict[int, tuple[float, frozenset[Address]]] = {}
        """Of those, the ones whose holders do not answer: since when, and who they are."""
        self._moved = 0
        """Bytes of errands that have ended."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._deafen = lane.on_well(self._well)

    # -- what is known ----------------------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether all others that take part give windows over the lane: then BitTorrent need not."""
        return self._lane.port > 0 and not self._strangers and not self._unanswered

    @property
    def windows(self) -> frozenset[int]:
        """Windows that are being asked for."""
        return frozenset(self._errands.values())

    @property
    def coming(self) -> frozenset[int]:
        """Windows that are wanted, and that agents are known for who give them. They need not come from upstream.

        Also those whose turn has not come: a node that took its tracker for dead went upstream for all of these.
        """
        if not self._others and not self._named:
            return self.windows
        wanted = self._host.wanted()
        known = {w.index for _, w in self._in_turn(wanted) if self._is_held(w.index) and w.index not in self._failed}
        return self.windows | (known & self._hashes.keys()) - wanted.elsewhere

    @property
    def taken(self) -> frozenset[int]:
        """Windows that are to come from here, if anybody is known who gives them."""
        if not self._others and not self._named:
            return self.windows
        return frozenset(self._hashes.keys() - self._failed.keys()) | self.windows

    @property
    def received(self) -> int:
        """Bytes that have come, of whole pieces or not."""
        return self._moved + sum(errand.moved for errand in self._errands)

    @property
    def lost(self) -> tuple[int, ...]:
        """Published windows whose holders do not answer this node, or send nothing, in order, whatever else comes."""
        pieces, windows, now = self._place.pieces, self._place.layout.windows, self._clock()
        late = {window for window, (since, _) in self._silent.items() if now - since >= LOST}
        for errand, window in self._errands.items():
            known = now - self._named_at.get(window, float("-inf"))  # whoever was named since has his time, too
            if min(errand.silence(now), known) >= NOTHING:
                late.add(window)
        if dead := self._lane.dead(gone=bool(late)):  # what they alone hold is not tried window by window
            late |= {w for w, found in self._named.items() if found and {h.address for h in found} <= dead}
        return tuple(sorted(w for w in late if w in self._hashes and not pieces.holds(windows[w])))

    @property
    def ungiven(self) -> frozenset[int]:
        """Windows that nobody gave when they were asked for last."""
        return frozenset(self._failed)

    def arriving(self, window: int) -> int:
        """Bytes that have come by the errands that *window* has now, of whole pieces or not."""
        return sum(errand.moved for errand, of in self._errands.items() if of == window)

    # -- what is decided elsewhere ----------------------------------------------------------------

    def named(self, news: HoldersNamed) -> None:
        """Whom to ask; nobody, where this node has no lane."""
        if not self._lane.port:
            return
        for window, holders in news.named.items():
            if not set(holders) <= set(self._named.get(window, ())):
                self._named_at[window] = self._clock()
            if holders != self._named.get(window):
                self._named[window] = holders
                self._failed.pop(window, None)  # somebody else may give it
                if window in self._silent and not {h.address for h in holders} <= self._silent[window][1]:
                    del self._silent[window]
        if news.sole is not None and self._sole is None:
            self._spare(news.sole)
        self._sole = news.sole
        self._others = news.others or self._others
        self._strangers = news.strangers
        every = (*self._others, *(holder for found in news.named.values() for holder in found))
        self._peers |= {holder.address: holder.peer for holder in every}
        for errand, window in self._errands.items():
            if window in news.named:
                errand.holders, errand.named = self._candidates(window), self._named_for(window)
                errand.forget_lacking()

    def want(self, available: int | None) -> None:
        """Ask for the published windows that are wanted. *available*: bit w is set if others hold it; None: all."""
        if self._closed:
            return
        self._available = available
        wanted, now = self._host.wanted(), self._clock()
        later: float | None = None
        room = MOST_COMING - len(self.windows)
        for rank, window in self._in_turn(wanted):
            if window.index in wanted.elsewhere or window.index not in self._hashes:
                continue
            urgent = window.index in wanted.windows
            if not urgent and room <= 0:
                break  # urgent ones come first, and what is asked for looks again when it ends
            wait = self._wait(window.index, now, urgent) if self._is_held(window.index) else None
            if wait is None:
                continue
            if wait > 0:
                later = wait if later is None else min(later, wait)
                continue
            if self._begin(window, rank, wanted):
                room -= not urgent
        if later is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(later, self._look_again)

    def arrived(self, window: Window) -> None:
        """*window* is here, from wherever: others may have it."""
        if self._offer is not None:
            self._offer.add(window.span)
        self._named.pop(window.index, None)
        self._silent.pop(window.index, None)

    async def fetch(self, window: Window, sole: Holder) -> bool:
        """Bring what is missing of *window* from the *sole* seed; whether all of it came."""
        self._peers[sole.address] = sole.peer
        missing = [p for p in self._place.pieces.missing(window) if p not in self._pieces]
        errands = [self._submit(window, run, (sole.address,), 0) for run in _runs(missing)]
        try:
            await asyncio.gather(*(asyncio.shield(errand.ended) for errand in errands), return_exceptions=True)
        finally:
            for errand in errands:
                self._lane.cancel(errand)
        return self._place.pieces.holds(window)

    async def drained(self) -> None:
        """Until no thread writes into the file any more. After `close`."""
        await self.vacate(None)

    async def vacate(self, window: int | None) -> None:
        """Until no thread writes into *window*; None: into any. It must not be wanted any more."""
        while errands := [errand for errand, of in self._errands.items() if window is None or of == window]:
            for errand in errands:
                self._lane.cancel(errand)
            await asyncio.wait([errand.ended for errand in errands])
            await asyncio.sleep(0)  # `_ended` runs after whoever waits

    def restart(self) -> None:
        """The board began again: nothing of what comes counts."""
        if self._offer is not None:
            self._offer.drop()
        self._named.clear()
        self._failed.clear()
        self._silent.clear()
        self._named_at.clear()
        self._seen.clear()
        self._pieces.clear()
        for errand in list(self._errands):
            self._lane.cancel(errand)

    def close(self, *, offered: bool = False) -> None:
        """Nothing more is fetched. *offered*: what is here is given on."""
        if not self._closed:
            self._deafen()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for errand in list(self._errands):
            self._lane.cancel(errand)
        if not offered and self._offer is not None:
            self._lane.withdraw(self._digest, self._offer)

    # -- Owner of the errands -------------------------------------------------------------------------

    def came(self, errand: Errand, piece: int, sha1: bytes) -> None:
        """*piece* is in the file, and right."""
        if not errand.cancelled and not self._closed:
            self._pieces.discard(piece)
            self._host.given(piece, sha1)

    def blamed(self, holder: Address) -> None:
        """A piece that came whole from *holder* is wrong: nothing more is asked of it."""
        peer = self._peers.get(holder)
        if peer is not None:
            self._others = tuple(other for other in self._others if other.peer != peer)
            for window, holders in self._named.items():
                self._named[window] = tuple(other for other in holders if other.peer != peer)
            self._host.wrong(peer)

    def refused(self, holder: Address, pieces: int) -> None:
        """*holder* gives nothing of what it was asked for. Bit p of *pieces*: it has piece p."""
        self._said.hear(holder, pieces, self._clock())

    # -- inside -----------------------------------------------------------------------------------

    def _spare(self, sole: Holder) -> None:
        """Nothing is asked of *sole* any more but by claims: others fetch from it what is not on its way here."""
        self._others = tuple(other for other in self._others if other.peer != sole.peer)
        left = ((window, tuple(h for h in found if h.peer != sole.peer)) for window, found in self._named.items())
        self._named = {window: holders for window, holders in left if holders}
        for errand in [e for e in self._errands if not e.moved and e.rank >= 0 and sole.address in e.holders]:
            self._lane.cancel(errand)

    def _well(self, holder: Address) -> None:
        """*holder* gives again: what it did not give is not lost, and is asked of it now."""
        for window, (_, silent) in list(self._silent.items()):
            if holder in silent:
                del self._silent[window]
                self._failed.pop(window, None)
        self.want(self._available)

    def _look_again(self) -> None:
        self._timer = None
        self.want(self._available)

    def _in_turn(self, wanted: Wanted) -> Iterable[tuple[int, Window]]:
        """Windows of which something is missing and wanted, the most urgent first, each with its rank."""
        windows, pieces = self._place.layout.windows, self._place.pieces
        for index in sorted(wanted.windows):
            if not pieces.holds(windows[index]):
                yield (-1 if wanted.urgent.intersection(windows[index].span) else 0), windows[index]
        if not wanted.whole:
            return
        have = pieces.have
        missing = [index for index in range(len(windows)) if not have >> index & 1 and index not in wanted.windows]
        for rank, index in in_turn(self._order, missing):
            yield rank, windows[index]

    def _is_held(self, window: int) -> bool:
        """Whether somebody else may give *window*."""
        if window in self._named:
            return True
        return bool(self._others) and (self._available is None or bool(self._available >> window & 1))

    def _wait(self, window: int, now: float, urgent: bool) -> float | None:
        """Seconds until *window* may be asked for; None: there is nobody to ask."""
        seen = self._seen.setdefault(window, now)
        named = self._named.get(window)
        if named and window not in self._failed:
            return 0.0
        if not self._others and not named:
            return None
        unnamed = UNNAMED_URGENT if urgent else UNNAMED
        at = self._failed[window] + AGAIN if window in self._failed else seen + unnamed
        return max(0.0, at - now)

    def _begin(self, window: Window, rank: int, wanted: Wanted) -> bool:
        """Ask for what is missing and wanted of *window*; whether that is anything."""
        missing = [p for p in self._place.pieces.missing(window) if p not in self._pieces]
        if not wanted.whole:
            missing = [p for p in missing if p in wanted.pieces]
        if not missing or any(errand.cancelled for errand, of in self._errands.items() if of == window.index):
            return False  # a thread may still write there; it is asked for when that has ended
        if self._place.unreserved(missing):
            self._spawn(self._reserve(window))
            return False
        holders = self._candidates(window.index)
        for run in _runs(missing):
            self._submit(window, run, holders, rank)
        return True

    async def _reserve(self, window: Window) -> None:
        await self._place.reserve(window)
        self.want(self._available)

    def _named_for(self, window: int) -> frozenset[Address]:
        """Who is known to hold *window*."""
        return frozenset(holder.address for holder in self._named.get(window, ()))

    def _candidates(self, window: int) -> tuple[Address, ...]:
        now, missing = self._clock(), next(iter(self._place.pieces.missing(self._place.layout.windows[window])), 0)
        return candidates(
            self._me, window, self._named.get(window, ()), self._others,
            lambda address: self._said.lacks(address, missing, now),
        )  # fmt: skip

    def _submit(self, window: Window, run: list[int], holders: tuple[Address, ...], rank: int) -> Errand:
        hashes, first = self._hashes[window.index], window.first_piece
        expected = {p: hashes[(p - first) * HASH_LENGTH : (p - first + 1) * HASH_LENGTH] for p in run}
        errand = Errand(
            self._digest, self._place.layout, self._place.file.fd, run[0], run[-1],
            owner=self, holders=holders, expected=expected, rank=rank,
        )  # fmt: skip
        errand.named = self._named_for(window.index)
        self._errands[errand] = window.index
        self._pieces.update(run)
        file = self._place.file.share()  # a thread must not write to a descriptor that was closed meanwhile
        errand.ended.add_done_callback(partial(self._ended, errand, run, file.close))
        self._lane.submit(errand)
        return errand

    def _ended(self, errand: Errand, run: list[int], close: Callable[[], None], ended: asyncio.Future[None]) -> None:
        close()
        window = self._errands.pop(errand)
        self._moved += errand.moved
        self._pieces.difference_update(run)  # nobody else asks for them before this has ended
        error = ended.exception()
        if isinstance(error, Unserved):
            self._failed[window] = self._clock() + random.uniform(0.0, AGAIN / 2)
            self._unanswered = self._unanswered or errand.unanswered
            if errand.unanswered:
                now = self._clock() + (GONE if errand.gone else 0.0)
                since, silent = self._silent.get(window, (now, frozenset()))
                self._silent[window] = since, silent | frozenset(errand.candidates)
            else:
                self._silent.pop(window, None)
            self._host.unserved()
        elif error is not None and not isinstance(error, Cancelled):
            self._spawn(_raise(error))
        self.want(self._available)


def _offered(digest: Digest, place: Place, lane: Lane) -> Offer | None:
    """What is here of the blob, given over *lane* from now on; None: no descriptor was left."""
    held = [piece for w in place.layout.windows if place.pieces.holds(w) for piece in w.span]
    try:
        offer = Offer(digest, place.layout, place.file.fd, held)
    except OSError:
        return None
    lane.offer(offer)
    return offer


async def _raise(error: BaseException) -> None:
    """The fetch ends by *error*, as by that of any of its tasks."""
    raise error


def _runs(pieces: Iterable[int]) -> list[list[int]]:
    """*pieces* as runs of consecutive ones."""
    ordered = sorted(pieces)
    keyed = groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])
    return [[piece for _, piece in run] for _, run in keyed]
