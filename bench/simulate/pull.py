"""One blob on its way to one node: what swarm/fetch does with the answers of its board, told again by windows.

The rules are the agents' own where they are pure: what is wanted (demand.py), in which order and of whom (turns.py),
what stands still (stalls.py), how long a reader waits for the cluster (patience.py). Bytes have no hashes here, all
tell the truth, and no processor is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from bench.simulate.lane import Errand, Lane
from bench.simulate.links import Flow
from bench.simulate.tracker import Poll, Tracker, fields
from swarm.blob.digest import Digest
from swarm.blob.geometry import Geometry, geometry
from swarm.fetch.demand import Demand, demand_of
from swarm.fetch.events import Holder
from swarm.fetch.intake import TELL_WITHIN
from swarm.fetch.lanes import AGAIN, MOST_COMING, UNNAMED
from swarm.fetch.others import Others
from swarm.fetch.patience import Awaited, Waiting, due
from swarm.fetch.readers import Reader, Readers
from swarm.fetch.stalls import Stalls
from swarm.fetch.turns import Said, candidates, in_turn, own_order
from swarm.peer.lane.holders import Address
from swarm.protocol import wire
from swarm.protocol.availability import bits
from swarm.protocol.board import MAX_CLAIMS
from swarm.settings import SwarmSettings
from tracker.members.gate import Visitor
from tracker.state.swarms import Raw

TICK = 1.0
"""Seconds between two looks after what only time brings about, and two reports of progress."""

READERS = Readers({Reader(whole=True, source=None)})
"""Of a pull: one client that reads all of it."""


@dataclass(frozen=True)
class Blob:
    """What is pulled."""

    digest: Digest
    size: int
    hashes: bytes
    tracker: Tracker

    def hashes_of(self, layout: Geometry, window: int) -> bytes:
        """Of one window."""
        span = layout.windows[window].span
        return self.hashes[20 * span.start : 20 * span.stop]


class Home(Protocol):
    """What a pull asks of its node, and tells it."""

    me: wire.Me
    visitor: Visitor
    lane: Lane
    chance: Random
    upstream_delay: float
    """Seconds until upstream's first byte."""

    def holder(self, peer: wire.Peer) -> Holder:
        """An agent, as answers name it."""

    def upstream(self, length: float, ended: Callable[[bool], None]) -> Flow:
        """Ask upstream for so many bytes."""

    def stop(self, flow: Flow) -> None:
        """Upstream need send no more of it."""

    def come(self, flow: Flow) -> float:
        """Bytes that have come."""

    def entering(self) -> int:
        """Blobs of this node of which much is not in the cluster yet."""

    def entering_changed(self) -> None:
        """There are more of those, or fewer."""

    def finished(self, pull: Pull) -> None:
        """All of a blob is here."""


@dataclass(slots=True)
class Bringing:
    """A window that upstream sends to this node."""

    since: float
    flow: Flow | None = None
    """None: upstream has not answered yet."""
    told: int = 0
    """Bytes of it, as the board was told."""


class Pull:
    """See the module. Made and used on the running clock."""

    def __init__(self, blob: Blob, home: Home) -> None:
        self.digest: str = blob.digest
        self.blob, self.home = blob, home
        self.layout: Geometry | None = None
        self.have = 0
        self.enters = False
        self.done = False
        self.past = 0
        """Windows that this node asked of upstream past the cluster."""
        self.polls = 0
        self._loop = asyncio.get_running_loop()
        self._poll: Poll | None = None
        self._token = object()
        """Of the question whose answer is waited for."""
        self._told: Demand | None = None
        self._incarnation, self._generation, self._since, self._serial = "", 0, 0, 0
        self._published = 0
        self._order: tuple[int, ...] = ()
        self._named: dict[int, tuple[Holder, ...]] = {}
        self._others: tuple[Holder, ...] = ()
        self._sole: Holder | None = None
        self._available: int | None = None
        self._coming = Others()
        self._bringing: dict[int, Bringing] = {}
        """Window -> what upstream sends, by claim."""
        self._turns: dict[int, float] = {}
        """Windows of a sole seed, by claim, and since when."""
        self._direct: dict[int, Bringing] = {}
        self._publishing: set[int] = set()
        self._errands: dict[int, Errand] = {}
        self._said = Said()
        self._seen: dict[int, float] = {}
        self._failed: dict[int, float] = {}
        self._telling = self._looking = self._closed = self._sealed = False
        self._received = 0.0
        self._front, self._front_since = 0, self._loop.time()
        self._stalls = Stalls(self._loop.time())
        self._took: float | None = None
        self._line_at = self._left_at = float("-inf")

    # -- life -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The node's client asks."""
        self.home.lane.has.setdefault(self.digest, 0)
        self.poll()
        self._loop.call_later(TICK, self._tick)

    def close(self) -> None:
        """The node is gone."""
        self._closed = True
        if self._poll is not None:
            self._poll.cancel()

    def length(self, window: int) -> int:
        """Bytes of *window*."""
        assert self.layout is not None
        return self.layout.windows[window].length

    # -- the board --------------------------------------------------------------------------------

    def demand(self) -> Demand:
        """What the board is told of the reader here."""
        claims = 0 if self.done else SwarmSettings.claims
        concurrent = self.home.entering() - self.enters
        return demand_of(
            READERS, sized=self.layout is not None, claims=claims, turning=not self.done, concurrent=concurrent
        )

    def tell(self) -> None:
        """Ask the board if it does not know what is wanted."""
        if not self._closed and self.demand() != self._told:
            self.poll()

    def poll(self) -> None:
        """Ask the board, and give up the question that waits. One that does not wait is followed by the next."""
        if self._closed or (self._poll is not None and not self._poll.waits):
            return
        if self._poll is not None:
            self._poll.cancel()
        self._ask()

    def _ask(self) -> None:
        self._told = want = self.demand()
        self.polls += 1
        message = wire.BoardPoll(
            **fields(self.home.me), digest=self.digest, incarnation=self._incarnation, generation=self._generation,
            since=self._since, wait=wire.MAX_WAIT if self._incarnation else 0.0,
            size=self.layout.size if self.layout is not None else None,
            want=want.want, prefer=want.prefer, only_preferred=want.only_preferred, turns=want.turns,
            concurrent=want.concurrent, claims=tuple(sorted(self._bringing.keys() | self._turns.keys())),
            have=wire.bitmap(self.have), stalled=self._stalls.windows, direct=tuple(sorted(self._direct)),
        )  # fmt: skip
        token = self._token = object()
        self._poll = self.blob.tracker.ask(message, self.home.visitor, partial(self._answered, token, self._since))

    def _answered(self, token: object, since: int, told: Raw, published: int) -> None:
        if self._closed or token is not self._token:
            return  # the question was given up while its answer was on its way
        self._poll = None
        self._hear(since, told, published)
        if self._poll is None:
            self._ask()

    def _hear(self, since: int, told: Raw, published: int) -> None:
        """Take an answer in whole, unless it is older than the last one."""
        if self._closed or (told.incarnation == self._incarnation and told.serial < self._serial):
            return
        now = self._loop.time()
        self._incarnation, self._generation, self._serial = told.incarnation, told.generation, told.serial
        if since <= self._since and told.version:
            self._since = max(self._since, told.version)
        if told.size is not None:
            self._learn(told.size)
        self._published |= published
        self._coming.hear(told.incarnation, told.coming, now)
        holder = self.home.holder
        for window, peers in told.holders.items():
            holders = tuple([holder(peer) for peer in peers])
            if holders != self._named.get(window):
                self._named[window] = holders
                self._failed.pop(window, None)
                if (errand := self._errands.get(window)) is not None and not errand.sole:
                    errand.named, errand.every = holders, None
        if told.peers:
            self._others = tuple([holder(peer) for peer in told.peers])
        self._turn(holder(told.sole) if told.sole is not None else None)
        self._available = None if told.available is None else wire.from_bitmap(told.available)
        self._claim(told.claims)
        self._look_at_entering()
        self._want()

    def _learn(self, size: int) -> None:
        if self.layout is None:
            self.layout = geometry(size)
            self._order = own_order(self.home.lane.address[0], len(self.layout.windows))

    def _turn(self, sole: Holder | None) -> None:
        """The sole seed is another one, or none, than before."""
        if sole == self._sole:
            return
        if sole is not None and self._sole is None:
            self._others = tuple(other for other in self._others if other != sole)
            left = ((w, tuple(h for h in found if h != sole)) for w, found in self._named.items())
            self._named = {window: holders for window, holders in left if holders}
            for window, errand in list(self._errands.items()):
                if errand.flow is None and sole in errand.named:
                    self._drop(window)
        self._sole = sole
        self._claim(())

    def _look_at_entering(self) -> None:
        windows = len(self.layout.windows) if self.layout is not None else 0
        enters = windows - self._published.bit_count() > MAX_CLAIMS and not self.done
        if enters != self.enters:
            self.enters = enters
            self.home.entering_changed()

    # -- claims -----------------------------------------------------------------------------------

    def _claim(self, windows: tuple[int, ...]) -> None:
        """These are all claims now."""
        for window in [w for w in self._bringing if w not in windows or self._sole is not None]:
            self._give_up(self._bringing.pop(window))
        for window in [w for w in self._turns if w not in windows or self._sole is None]:
            del self._turns[window]
            self._drop(window)
        for window in windows:
            if window in self._bringing or window in self._turns or window in self._publishing:
                continue
            if self.have >> window & 1:
                self._publish(window)
            elif self._sole is not None:
                self._drop(window)
                self._turns[window] = self._loop.time()
                self._submit(window, 0, (self._sole,), sole=True)
            else:
                self._drop(window)
                self._bringing[window] = bringing = Bringing(self._loop.time())
                self._bring(window, bringing)

    def _bring(self, window: int, bringing: Bringing) -> None:
        """Ask upstream for *window*."""

        def ended(whole: bool) -> None:
            if not whole or self._closed:
                return
            self._took = self._loop.time() - bringing.since
            self._line_at = self._loop.time()
            known = self._bringing if self._bringing.get(window) is bringing else self._direct
            if known.get(window) is bringing:
                del known[window]
                self._here(window)
                self._publish(window)

        def begin() -> None:
            if self._closed or bringing not in (self._bringing.get(window), self._direct.get(window)):
                return
            if self.layout is None:  # the head of the answer says it
                self._learn(self.blob.size)
                self.poll()
            bringing.flow = self.home.upstream(self.length(window), ended)

        self._loop.call_later(self.home.upstream_delay, begin)

    def _give_up(self, bringing: Bringing) -> None:
        if bringing.flow is not None:
            self.home.stop(bringing.flow)

    def _publish(self, window: int) -> None:
        """Tell the board that *window* is here, with its hashes."""
        if window in self._publishing:
            return
        assert self.layout is not None
        self._publishing.add(window)
        said = wire.Publish(
            **fields(self.home.me), digest=self.digest, incarnation=self._incarnation, generation=self._generation,
            size=self.layout.size, window=window, hashes=self.blob.hashes_of(self.layout, window), since=self._since,
        )  # fmt: skip
        self.polls += 1

        def heard(since: int, told: Raw, published: int) -> None:
            self._publishing.discard(window)
            if not self._closed:
                self._hear(since, told, published)
                self._verify()

        self.blob.tracker.publish(said, self.home.visitor, partial(heard, self._since))

    # -- windows of others ------------------------------------------------------------------------

    def _want(self) -> None:
        """Ask for what is published and missing: as LaneWindows.want (swarm/fetch/lanes.py)."""
        if self.layout is None or self.done or self._closed:
            return
        now, have, published = self._loop.time(), self.have, self._published
        room = MOST_COMING - len(self._errands)
        if room <= 0:
            return
        free = published & ~have
        for taken in (self._errands, self._bringing, self._direct):
            for window in taken:
                free &= ~(1 << window)
        if not free:
            return
        missing = [w for w in range(len(self.layout.windows)) if not have >> w & 1]
        later: float | None = None
        for rank, window in in_turn(self._order, missing):
            if not free >> window & 1 or window in self._turns:
                continue
            if room <= 0:
                break
            wait = self._wait(window, now)
            if wait is None:
                continue
            if wait > 0:
                later = wait if later is None else min(later, wait)
                continue
            self._submit(window, rank, self._named.get(window, ()))
            room -= 1
        if later is not None and not self._looking:
            self._looking = True
            self._loop.call_later(later, self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._want()

    def _wait(self, window: int, now: float) -> float | None:
        """Seconds until *window* may be asked for; None: there is nobody to ask."""
        seen = self._seen.setdefault(window, now)
        named = self._named.get(window)
        if named and window not in self._failed:
            return 0.0
        held = self._available is None or self._available >> window & 1
        if not named and not (self._others and held):
            return None
        at = self._failed[window] + AGAIN if window in self._failed else seen + UNNAMED
        return max(0.0, at - now)

    def _submit(self, window: int, rank: int, named: tuple[Holder, ...], *, sole: bool = False) -> None:
        errand = self._errands[window] = Errand(self, window, rank, named, sole)
        self.home.lane.submit(errand)

    def _drop(self, window: int) -> None:
        if (errand := self._errands.pop(window, None)) is not None:
            self._received += self.home.come(errand.flow) if errand.flow is not None else 0.0
            self.home.lane.cancel(errand)

    def candidates(self, window: int) -> tuple[Address, ...]:
        """Whom to ask for *window*."""
        now = self._loop.time()
        lacks = partial(self._lacks, window, now)
        return candidates(self.home.lane.address[0], window, self._named.get(window, ()), self._others, lacks)

    def _lacks(self, window: int, now: float, address: Address) -> bool:
        return self._said.lacks(address, window, now)

    def came(self, errand: Errand) -> None:
        """A window is here, from another node."""
        window = errand.window
        del self._errands[window]
        now = self._loop.time()
        self._received += self.length(window)
        self._stalls.moved(now)
        mine = self._turns.pop(window, None) is not None
        self._here(window)
        if mine:
            self._publish(window)
        elif not self._telling:
            self._telling = True
            self._loop.call_later(TELL_WITHIN, self._tell)
        self._want()

    def unserved(self, errand: Errand) -> None:
        """Nobody gives a window."""
        window, now = errand.window, self._loop.time()
        self._errands.pop(window, None)
        if window in self._turns and self._sole is not None:
            self._loop.call_later(AGAIN, self._turn_again, window)
            return
        self._failed[window] = now + self.home.chance.uniform(0.0, AGAIN / 2)
        self._loop.call_soon(self._want)

    def refused(self, holder: Address, windows: int) -> None:
        """*holder* said what it has."""
        self._said.hear(holder, windows, self._loop.time())

    def _turn_again(self, window: int) -> None:
        if window in self._turns and self._sole is not None and window not in self._errands and not self._closed:
            self._submit(window, 0, (self._sole,), sole=True)

    def _tell(self) -> None:
        self._telling = False
        self.poll()

    def _here(self, window: int) -> None:
        """A window is here, from wherever."""
        assert self.layout is not None
        self.have |= 1 << window
        self.home.lane.has[self.digest] = self.have
        self._named.pop(window, None)
        self._drop(window)
        if window == self._front:
            while self.have >> self._front & 1:
                self._front += 1
            self._front_since = self._loop.time()
        self._verify()

    def _verify(self) -> None:
        """When all is here: done, and told once every publication was answered."""
        if self.layout is None or self.have.bit_count() < len(self.layout.windows) or self._sealed:
            return
        if not self.done:
            self.done = True
            self._look_at_entering()
            self.home.finished(self)
        if self._publishing:
            return
        self._sealed = True
        me, tracker, visitor = self.home.me, self.blob.tracker, self.home.visitor
        held = wire.CompleteBlob(digest=self.digest, size=self.layout.size)
        tracker.holds(wire.AgentPoll(**fields(me), add=(held,)), visitor)
        seal = wire.Seal(**fields(me), digest=self.digest, incarnation=self._incarnation, generation=self._generation)
        tracker.seal(seal, visitor)
        self.polls += 2
        self.poll()

    # -- what only time brings about --------------------------------------------------------------

    def _tick(self) -> None:
        if self._closed or self.done:
            return
        now = self._loop.time()
        self._loop.call_later(TICK, self._tick)
        self._report()
        if self.layout is not None:
            self._want()
            self._look_at_stalls(now)
            self._look_at_reader(now)

    def _report(self) -> None:
        """Keep claims alive while bytes come."""
        done = {w: int(self.home.come(b.flow)) if b.flow is not None else 0 for w, b in self._bringing.items()}
        waiting = {w: self._loop.time() - b.since for w, b in self._bringing.items() if b.flow is None}
        done |= {w: self._arrived(w) for w in self._turns}
        if not done:
            return
        said = wire.Progress(
            **fields(self.home.me), digest=self.digest, incarnation=self._incarnation, generation=self._generation,
            done=done, have=wire.bitmap(self.have), waiting=waiting, upstream_timeout=SwarmSettings.upstream_timeout,
        )  # fmt: skip
        self.polls += 1
        self.blob.tracker.progress(said, self.home.visitor, partial(self._hear, self._since + 1))

    def _arrived(self, window: int) -> int:
        errand = self._errands.get(window)
        return int(self.home.come(errand.flow)) if errand is not None and errand.flow is not None else 0

    def _look_at_stalls(self, now: float) -> None:
        missing = self._published & ~self.have
        if self._available is not None and self._sole is None:
            missing &= self._available
        waiting = tuple(w for w in bits(missing) if w not in self._bringing and w not in self._turns)
        if not waiting:
            self._stalls.moved(now)
        if self._stalls.restless(now):
            self._stalls.received(int(self._received + sum(map(self._arrived, self._errands))), now)
        if self._stalls.look(waiting, now):
            self.poll()

    def _look_at_reader(self, now: float) -> None:
        """Have what the client waits for brought past the cluster, once it is due."""
        window = self._front
        if window in self._direct:
            return
        bringing = self._bringing.get(window)
        moving = any(self._arrived(w) for w in self._errands)
        awaited = Awaited.MINE if bringing else Awaited.TRADED if self._published >> window & 1 else Awaited.OTHERS
        if any(b.flow is not None for b in self._bringing.values()):
            self._line_at = now
        waiting = Waiting(
            self._front_since, awaited, moved=now if moving or bringing else self._front_since,
            begun=bringing is not None and bringing.flow is not None, takes=self._took, left_at=self._left_at,
            coming=self._coming.pace(window, now), busy=self._line_at,
        )  # fmt: skip
        if due(waiting) <= now:
            self.past += 1
            self._left_at = now
            self._drop(window)
            self._direct[window] = direct = Bringing(now)
            self._bring(window, direct)
            self.poll()
