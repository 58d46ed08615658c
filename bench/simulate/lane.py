"""What a node asks of others and gives to them: the rules of swarm/peer/lane, with windows for requests.

Whom to ask is the agents' own code (swarm/fetch/turns.py, swarm/peer/lane/holders.py), and so are the numbers. What
threads, sockets and the event loop do between them is told again here, in the same order.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from bench.simulate.links import Flow, Links
from swarm.fetch.events import Holder
from swarm.peer.lane.holders import Address, Holders
from swarm.peer.lane.receiver import BUSY_FOR, MOST_TRIES, THREADS
from swarm.peer.lane.sender import MOST_SENDING_TO_ONE
from swarm.peer.lane.throttle import BODIES


class Owner(Protocol):
    """The blob that an errand is for."""

    digest: str

    def length(self, window: int) -> int:
        """Bytes of *window*."""

    def candidates(self, window: int) -> tuple[Address, ...]:
        """Whom to ask, those first who are known to hold it."""

    def came(self, errand: Errand) -> None:
        """All of it is here."""

    def unserved(self, errand: Errand) -> None:
        """Nobody gives it."""

    def refused(self, holder: Address, windows: int) -> None:
        """*holder* lacks it; it has *windows* (bit w: window w)."""


@dataclass(eq=False, slots=True)
class Errand:
    """A window to bring from others. *named*: who is known to hold it. *sole*: of no others."""

    owner: Owner
    window: int
    rank: int
    named: tuple[Holder, ...]
    sole: bool = False
    every: tuple[Address, ...] | None = None
    """Whom to ask, in order; None: to be found out, since others are named."""
    useless: set[Address] = field(default_factory=set)
    tries: int = 0
    holder: Address | None = None
    """Who is asked now."""
    flow: Flow | None = None
    over: bool = False


class Lane:
    """Of one node. *at*: address -> lane of who is there. *has*: digest -> windows that are here (bit w: window w)."""

    def __init__(
        self, number: int, address: Address, zone: str, at: dict[Address, Lane], links: Links,
        loop: asyncio.AbstractEventLoop, chance: Random, delay: float,
    ) -> None:  # fmt: skip
        self.number, self.address, self.zone = number, address, zone
        self.has: dict[str, int] = {}
        self.asked = 0
        """Requests to others."""
        self.most = 0
        """Of requests that were answered at once, the most."""
        self.taken = self.crossed = 0
        """Bytes of windows that came from others, and those of them that came from another zone."""
        self.gone = False
        self._at, self._links, self._loop, self._chance, self._delay = at, links, loop, chance, delay
        self._holders = Holders()
        self._waiting: list[Errand] = []
        self._running = 0
        self._giving: Counter[Address] = Counter()
        self._total = 0
        self._wake_at = float("inf")

    # -- asking -----------------------------------------------------------------------------------

    def submit(self, errand: Errand) -> None:
        """Ask for it as soon as its turn comes."""
        bisect.insort(self._waiting, errand, key=lambda other: other.rank)
        self.work()

    def cancel(self, errand: Errand) -> None:
        """It is not wanted any more."""
        if errand.over:
            return
        errand.over = True
        if errand.holder is None:
            self._waiting.remove(errand)
            return
        self._let_go(errand)
        self.work()

    def work(self) -> None:
        """Have every thread that is free take what it may."""
        place, now = 0, self._loop.time()
        while self._running < THREADS and place < len(self._waiting):
            errand = self._waiting[place]
            holder, candidates = self._pick(errand, now)
            if holder is None and not self._holders.hopeless(candidates, now):
                if (free := self._holders.free_at(candidates, now)) is not None:
                    self._wake(free)
                place += 1
                continue
            del self._waiting[place]
            if holder is None:
                self._unserved(errand)
                place = 0
            else:
                self._ask(errand, holder)

    def _pick(self, errand: Errand, now: float) -> tuple[Address | None, tuple[Address, ...]]:
        """Whom to ask, and of whom that was chosen."""
        told = tuple([holder.address for holder in errand.named if holder.address not in errand.useless])
        if told:
            found = self._holders.pick(told, now, named=frozenset(told))
            if errand.sole or (found is not None and self._holders.better(self.address, [found], now)):
                return found, told  # most often: then the others need not be put into their order
        if errand.every is None:
            errand.every = told if errand.sole else errand.owner.candidates(errand.window)
        candidates = tuple([address for address in errand.every if address not in errand.useless])
        return self._holders.pick(candidates, now, named=frozenset(told)), candidates

    def _ask(self, errand: Errand, holder: Address) -> None:
        errand.holder = holder
        self._running += 1
        self._holders.began(holder)
        self.asked += 1
        self._loop.call_later(2 * self._delay, self._reach, errand, holder)

    def _reach(self, errand: Errand, holder: Address) -> None:
        """The request is at *holder*, and its answer here."""
        if errand.over or errand.holder != holder:
            return
        other, now = self._at[holder], self._loop.time()
        if other.gone:
            self._leave(errand, holder)
            self._holders.failed(holder, now, unreached=True)
            errand.tries += 1
            self._again(errand)
            return
        windows = other.has.get(errand.owner.digest, 0)
        if not windows >> errand.window & 1:
            self._leave(errand, holder)
            errand.useless.add(holder)
            errand.owner.refused(holder, windows)
            self._again(errand)
        elif not other.gives(self.address):
            self._leave(errand, holder)
            self._holders.said_busy(holder, now + self._chance.uniform(*BUSY_FOR))
            self._again(errand)
        else:
            length = errand.owner.length(errand.window)
            errand.flow = self._links.start(other.number, self.number, length, lambda whole: self._ended(errand, whole))

    def _ended(self, errand: Errand, whole: bool) -> None:
        holder = errand.holder
        if errand.over or holder is None:
            return
        self._let_go(errand)
        if whole:
            errand.over = True
            self._holders.gave(holder)
            length = errand.owner.length(errand.window)
            self.taken += length
            self.crossed += length if self._at[holder].zone != self.zone else 0
            errand.owner.came(errand)
            self.work()
        else:
            self._holders.failed(holder, self._loop.time())
            errand.tries += 1
            self._again(errand)

    def _again(self, errand: Errand) -> None:
        """Somebody else is to be asked, if there is anybody."""
        if errand.tries >= MOST_TRIES:
            self._unserved(errand)
        else:
            bisect.insort(self._waiting, errand, key=lambda other: other.rank)
        self.work()

    def _unserved(self, errand: Errand) -> None:
        errand.over = True
        errand.owner.unserved(errand)

    def _leave(self, errand: Errand, holder: Address) -> None:
        errand.holder = None
        self._running -= 1
        self._holders.ended(holder)

    def _let_go(self, errand: Errand) -> None:
        """A request that is under way ends, on both sides."""
        assert errand.holder is not None
        if errand.flow is not None:
            self._links.stop(errand.flow)
            self._at[errand.holder].given(self.address)
            errand.flow = None
        self._leave(errand, errand.holder)

    def _wake(self, at: float) -> None:
        if at < self._wake_at:
            self._wake_at = at
            self._loop.call_at(at, self._woken, at)

    def _woken(self, at: float) -> None:
        if self._wake_at == at:
            self._wake_at = float("inf")
            self.work()

    # -- giving -----------------------------------------------------------------------------------

    def gives(self, asker: Address) -> bool:
        """Whether one more body may go to *asker*; it is on its way then."""
        if self._giving[asker] >= MOST_SENDING_TO_ONE or self._total >= BODIES:
            return False
        self._giving[asker] += 1
        self._total += 1
        self.most = max(self.most, self._total)
        return True

    def given(self, asker: Address) -> None:
        """One body less."""
        self._giving[asker] -= 1
        self._total -= 1
        if not self._giving[asker]:
            del self._giving[asker]
