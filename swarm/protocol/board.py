"""The record of one blob while it enters the cluster: windows, claims, hashes. No I/O, no clock.

The tracker keeps one Board per blob; an agent without a tracker keeps one for itself alone. Time
is passed in as seconds of any monotonic clock. Agents are named by an opaque key. Whoever acts on
a board calls a method, then `assign`, then tells the agents whose `view` changed.

A window is *available* when its hashes are published and somebody alive holds it. Any window that
is not available, nor being brought in, is claimable: that covers the first copy, a claimant that
died, and a publisher that left before anybody had fetched its window.

Where one agent alone holds a sealed blob that others fetch whole, it is to them what
upstream is on a cold start: claims are on windows to fetch from it (`Board.lone`), so that it sends
each byte about once. Without that it was asked for everything by everybody, and sent 1.7 copies.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from statistics import median
from types import MappingProxyType

from swarm.blob.digest import Digest
from swarm.blob.errors import BadHashes
from swarm.blob.geometry import FIRST_WINDOW, Geometry, geometry
from swarm.blob.metainfo import check_hashes

LEASE = 5.0
"""Seconds that a claim lives without progress (promise P2)."""

LONGEST_WAIT = 60.0
"""Seconds without a byte from upstream that are believed, whatever an agent says of its timeout."""

LAGGING = 4.0
"""Who is so many times slower than the other claimants of the board loses the claim, if somebody else would take it."""

SLOWEST = 8 * 1024
"""Bytes per second below which nobody brings a window in: a claim that lives on beyond it is made up."""

PACES = 16
"""Finished claims whose pace is remembered, to compare those under way with."""

MAX_CLAIMS = 8
"""Claims that may be out at once on one board: as many upstream connections."""

FEWEST_CLAIMS = 2
"""Claims that may be out at once on a board where those who bring it in bring in many others as well."""

ASKED = 16
"""Participants whose word it takes that they do: all ask for the layers of one image at about the same time."""

MAX_GENERATIONS = 3
"""How often a board is begun again after a wrong digest before its agents are sent upstream alone."""

SILENCE = 60.0
"""Seconds without a word after which a participant is forgotten."""

TURNS = 16
"""Claims that may be out at once on the windows of a lone holder: two for each of eight agents."""

LONE_AGAIN = 30.0
"""Seconds for which everybody fetches from a lone holder as they like, after one claim on its windows failed."""

_BARS = {"refused": 30.0, "busy": 1.0, "broken": 0.5}
_LONGEST_BAR = 60.0

PATIENCE = 5.0
"""Seconds of pause, asked for by upstream, that are waited out. A client that is kept for longer gets nothing from us
and does not ask elsewhere; told that nobody can bring the blob in, it goes on by itself."""


class Failure(StrEnum):
    """Why an agent gives a claim back."""

    HANDED_OVER = "handed-over"
    """Its client is gone, or it stops: nothing is wrong with upstream."""
    REFUSED = "refused"
    BUSY = "busy"
    BROKEN = "broken"


@dataclass(slots=True)
class Participant:
    """An agent that joined a board."""

    want: int = 0
    """Claims that it would hold at once; 0: it cannot or must not go upstream."""
    prefer: tuple[int, ...] = ()
    """Windows that it needs first, most urgent first."""
    only_preferred: bool = False
    """True: it wants claims on those only (a reader of ranges)."""
    turns: int = 0
    """Claims that it would hold at once on windows of a lone holder."""
    beside: int = 0
    """Other blobs that it has enter the cluster at the same time."""
    have: int = 0
    """Bit w is set if it holds window w of the current generation."""
    seen: float = 0.0
    barred_until: float = 0.0
    failures: int = 0
    """Failed claims in a row."""
    refused: bool = False
    stalled: frozenset[int] = frozenset()
    """Published windows that it cannot get from anybody."""
    brought: int = 0
    """Windows that it published in this generation: who brought few comes first."""


@dataclass(slots=True)
class Claim:
    """The right to bring one window in from upstream."""

    agent: str
    since: float
    deadline: float
    done: int = 0
    """Bytes that have arrived."""
    moved: float = 0.0
    """When the last of them came; 0: none has."""

    def pace(self, now: float) -> float:
        """Bytes per second since it was granted."""
        return self.done / max(0.001, now - self.since)


@dataclass(slots=True)
class Published:
    """The piece hashes of one window, and who told them."""

    hashes: bytes
    agent: str
    version: int


@dataclass(frozen=True, slots=True)
class Blame:
    """What an agent was proven to have done wrong, once the sha256 settled it."""

    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """What one agent is told of a board."""

    version: int
    generation: int
    size: int | None
    sealed: bool
    published: dict[int, bytes]
    """Window -> hashes, of the windows that changed since the version that the agent knew."""
    claims: tuple[int, ...]
    """All windows that this agent holds a claim on now."""
    hope: bool
    """False: whoever waits for this blob waits in vain."""
    poisoned: bool
    """True: too many wrong copies; go upstream alone."""
    lone: str = ""
    """The only holder of the blob, if *claims* are on windows to fetch from it."""
    spread: int | None = None
    """Bit w is set if somebody else holds window w. None: whatever is published is there."""


@dataclass(slots=True)
class Board:
    """See the module. *digest* names the blob; *size* is None until some agent has learned it."""

    digest: Digest
    size: int | None = None
    generation: int = 0
    version: int = 1
    sealed: bool = False
    poisoned: bool = False
    windows: dict[int, Published] = field(default_factory=dict)
    claims: dict[int, Claim] = field(default_factory=dict)
    participants: dict[str, Participant] = field(default_factory=dict)
    holders: set[str] = field(default_factory=set)
    """Agents that hold the whole blob."""
    max_claims: int = MAX_CLAIMS
    zone_of: Callable[[str], str] | None = None
    """Given: each zone brings in a copy of its own. The zone of an agent; "" is a zone too."""
    lone: str = ""
    """The only holder of this sealed blob, while claims are on windows to fetch from it."""
    orphaned: bool = False
    """Sealed, but nobody who delivers holds it whole: its windows come from upstream once more, or from each other."""
    _rejected: list[tuple[str, dict[int, Published]]] = field(default_factory=list)
    """Per earlier generation: who rejected it ("": a conflict), and what was published in it."""
    _mask: int = 0
    """Bit w is set if window w is published."""
    _held: int = 0
    """Bit w is set if a participant holds window w."""
    _holding: dict[int, int] = field(default_factory=dict)
    """Window -> how many participants hold it."""
    _barred: set[str] = field(default_factory=set)
    _able: dict[str, None] = field(default_factory=dict)
    """Who would take a claim of upstream now. These four spare a walk over thousands who only wait, for each poll."""
    _reading: dict[str, None] = field(default_factory=dict)
    """Those of them who read ranges."""
    _turning: dict[str, None] = field(default_factory=dict)
    """Who would take a claim of a lone holder."""
    _hopeful: dict[str, None] = field(default_factory=dict)
    """Who may yet bring something in."""
    _stalled: set[str] = field(default_factory=set)
    _deaf: set[str] = field(default_factory=set)
    """Holders that deliver to nobody: most who fetch have said so, and they have not spoken since."""
    _paces: list[tuple[str, float]] = field(default_factory=list)
    """Agent and bytes per second of the claims that were finished last."""
    _gained: dict[str, int] = field(default_factory=dict)
    """Agent -> windows that it holds since `take_gained` was called last."""
    _quiet_at: float | None = None
    """No participant is silent for too long before."""
    _lone_at: float = 0.0
    """No lone holder before."""

    # -- what agents say ------------------------------------------------------------------------

    def join(
        self,
        agent: str,
        now: float,
        *,
        size: int | None = None,
        want: int = 0,
        prefer: Iterable[int] = (),
        only_preferred: bool = False,
        have: int = 0,
        generation: int | None = None,
        stalled: Collection[int] = (),
        turns: int = 0,
        beside: int = 0,
    ) -> Participant:
        """Take part, or say that one still does. *have* counts only for the current generation."""
        who = self._join(agent, now)
        who.want = max(0, want)
        who.turns = max(0, turns)
        who.beside = max(0, beside)
        who.only_preferred = only_preferred
        self._sort(agent, who)
        if self.lone and not turns:
            self.revoke(agent)
        who.prefer = tuple(prefer)
        if size is not None and self.size is None:
            self._learn(size)
        if generation is None or generation == self.generation:
            if agent not in self._deaf:
                self._have(agent, who, who.have | have & self._mask)  # polls may overtake publications: it only grows
            self._stall(agent, who, stalled)
        return who

    def hold(self, agent: str, have: int, generation: int) -> None:
        """*agent* holds these windows of *generation* too, if it takes part."""
        who = self.participants.get(agent)
        if who is not None and generation == self.generation and agent not in self._deaf:
            self._have(agent, who, who.have | have & self._mask)

    def distrust(self, agent: str) -> None:
        """What *agent* holds does not count any more."""
        self.holders.discard(agent)
        if (who := self.participants.get(agent)) is not None:
            self._have(agent, who, 0)

    def hold_whole(self, agent: str) -> None:
        """*agent* says that it holds the whole blob, sha256 checked."""
        self._deaf.discard(agent)
        if not self.holders or (self.zone_of is not None and agent not in self.holders):
            self.version += 1  # whoever found nobody to fetch from must hear of it
        self.holders.add(agent)

    def resume(self, agent: str, now: float, windows: Iterable[int]) -> None:
        """*agent* is bringing *windows* in by claims of another tracker: let it, where nobody else does."""
        who = self.participants.get(agent)
        if who is None or not who.want or self.size is None or self.sealed or self.poisoned:
            return
        free = set(self._claimable(self._zone(agent)))
        for window in windows:
            if window in free and len(self.claims) < self.max_claims:
                self.claims[window] = Claim(agent, now, now + LEASE)
                free.discard(window)

    def publish(self, agent: str, now: float, *, generation: int, size: int, window: int, hashes: bytes) -> bool:
        """Hashes of a window that *agent* brought in and holds. False: told too late, for another generation.

        The same window with other hashes is a conflict: the board begins again. Raises BadHashes.
        """
        if generation != self.generation or self.poisoned:
            return False
        cut = geometry(size)
        if not 0 <= window < len(cut.windows):
            raise BadHashes(f"no window {window} in a blob of {size} bytes")
        check_hashes(hashes, cut.windows[window].pieces)
        if self.size is None:
            self._learn(size)
        if size != self.size:
            self._rejected.append(("", {window: Published(hashes, agent, 0)}))
            self.reject("", generation)
            return False
        known = self.windows.get(window)
        if known is not None and known.hashes != hashes:
            self._rejected.append(("", {window: Published(hashes, agent, 0)}))
            self.reject("", generation)
            return False
        who = self._join(agent, now)
        if known is None:
            self._publish(window, hashes, agent)
        if known is None or self.lone:
            who.brought += 1
        claim = self.claims.get(window)
        if claim is not None and claim.agent == agent:
            took = max(0.001, now - claim.since)
            self._paces = [*self._paces, (agent, cut.windows[window].length / took)][-PACES:]
        if claim is not None and (known is None or claim.agent == agent):
            del self.claims[window]  # whoever else was bringing it in gets it from a peer now
            self._lone_delivers(agent, now)
        for name in list(self._stalled):
            other = self.participants[name]
            self._stall(name, other, other.stalled - {window})
        self._have(agent, who, who.have | 1 << window)
        who.failures = 0
        who.refused = False
        self._sort(agent, who)
        return True

    def contradicts(self, agent: str, generation: int, window: int, hashes: bytes) -> Blame | None:
        """Whether *hashes* differ from those of a sealed board: it is final, so *agent* is wrong."""
        known = self.windows.get(window)
        if not self.sealed or generation != self.generation or known is None or known.hashes == hashes:
            return None
        return Blame(agent, f"published wrong hashes for window {window} of {self.digest}")

    def progress(
        self,
        agent: str,
        now: float,
        done: Mapping[int, int],
        *,
        waiting: Mapping[int, float] = MappingProxyType({}),
        timeout: float = 0.0,
    ) -> None:
        """How far *agent* is with its claims. A lease goes on while bytes come, or while upstream has time to answer.

        *done*: window -> bytes that have arrived. *waiting*: window -> seconds since upstream was asked, without a byte
        so far. *timeout*: seconds that the agent gives upstream for the first byte.
        """
        for window, arrived in done.items():
            claim = self.claims.get(window)
            if claim is None or claim.agent != agent:
                continue
            arrived = min(arrived, self._length(window))
            if arrived > claim.done:
                claim.done, claim.moved = arrived, now
                self._renew(claim, window, now)
                self._lone_delivers(agent, now)
        patience = min(timeout, LONGEST_WAIT)
        for window, waited in waiting.items():
            claim = self.claims.get(window)
            # The agent's own clock says how long upstream was asked; ours, how long it may say so.
            early = claim is not None and max(waited, now - claim.since) < patience
            if claim is not None and early and claim.agent == agent and not claim.done:
                self._renew(claim, window, now)
        if agent in self.participants:
            self.participants[agent].seen = now

    def release(
        self, agent: str, now: float, windows: Iterable[int], failure: Failure, retry_after: float | None = None
    ) -> None:
        """Give claims back. After a failure the agent gets no claim on this board for a while."""
        for window in list(windows):
            if (claim := self.claims.get(window)) is not None and claim.agent == agent:
                del self.claims[window]
        who = self.participants.get(agent)
        if who is None or failure is Failure.HANDED_OVER:
            return
        if self.lone:
            self._lone_at = now + LONE_AGAIN
            return
        who.failures += 1
        pause = retry_after or 0.0
        who.refused = failure is Failure.REFUSED or pause > PATIENCE
        bar = _BARS[failure.value] * 2 ** min(who.failures - 1, 4)
        # A longer pause is kept by the agent itself, for all blobs of that upstream (mirror/upstream/guard.py).
        self._bar(agent, who, now + min(_LONGEST_BAR, max(bar, min(pause, PATIENCE))))

    def revoke(self, agent: str, but: Collection[int] = ()) -> None:
        """Take all claims from *agent*, *but* those."""
        for window in [w for w, claim in self.claims.items() if claim.agent == agent and w not in but]:
            del self.claims[window]

    def busy(self, since: float) -> bool:
        """Whether somebody who brings a window in has said something after *since*."""
        return any(self._heard(claim.agent) > since for claim in self.claims.values())

    def take_back(self, since: float) -> None:
        """Take the claims from those who said nothing after *since*: they went to another tracker."""
        for window in [w for w, claim in self.claims.items() if self._heard(claim.agent) <= since]:
            del self.claims[window]

    def seal(self, agent: str, generation: int) -> list[Blame]:
        """*agent* saw the whole blob and its sha256 matched. Returns who had told wrong hashes."""
        if generation != self.generation or not self.complete:
            return []
        if self.sealed:
            self.hold_whole(agent)
            return []
        self.holders.add(agent)
        self.sealed = True
        self.poisoned = False
        self.version += 1
        if self.zone_of is None:
            self.claims.clear()
        return self._blame()

    def seal_whole(self, agent: str, size: int, hashes: bytes) -> list[Blame]:
        """*agent* holds the whole blob, sha256 checked; *hashes* of all its pieces. Raises BadHashes."""
        cut = geometry(size)
        check_hashes(hashes, cut.pieces)
        told = {w.index: hashes[20 * w.first_piece : 20 * (w.last_piece + 1)] for w in cut.windows}
        if self._was_rejected(agent, told) and any(
            who.want > 0 and not who.refused for other, who in self.participants.items() if other != agent
        ):
            return []
        if self.size is not None and (
            self.size != size or any(told[w] != known.hashes for w, known in self.windows.items())
        ):
            if self.sealed:
                return []
            self.reject(agent, self.generation)
        if self.size is None:
            self._learn(size)
        for window, part in told.items():
            if window not in self.windows:
                self._publish(window, part, agent)
        return self.seal(agent, self.generation)

    def reject(self, agent: str, generation: int) -> bool:
        """The sha256 of what the board describes is wrong: begin again, and remember who told what."""
        if generation != self.generation:
            return False
        self._rejected.append((agent, dict(self.windows)))
        self.generation += 1
        self.version += 1
        self.sealed = False
        self.size = None
        self.poisoned = self.generation > MAX_GENERATIONS
        self.windows.clear()
        self.claims.clear()
        self.holders.clear()
        self._deaf.clear()
        self._mask = self._held = 0
        self._holding.clear()
        self._stalled.clear()
        for who in self.participants.values():
            who.have = who.brought = 0
            who.stalled = frozenset()
        return True

    def leave(self, agent: str) -> None:
        """*agent* is no longer interested, or gone. Its claims are free at once."""
        who = self.participants.pop(agent, None)
        if who is not None:
            self._have(agent, who, 0)
        self._barred.discard(agent)
        self._stalled.discard(agent)
        for place in (self._able, self._reading, self._turning, self._hopeful):
            place.pop(agent, None)
        self.revoke(agent)

    def drop(self, agent: str) -> None:
        """*agent* no longer holds the whole blob."""
        self.holders.discard(agent)

    # -- what follows from it -------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether the hashes of all windows are published."""
        return self.size is not None and len(self.windows) == len(self._cut().windows)

    @property
    def hashes(self) -> bytes:
        """The hashes of all pieces, in order; only when `complete`."""
        return b"".join(self.windows[w].hashes for w in range(len(self.windows)))

    def claims_of(self, agent: str) -> tuple[int, ...]:
        """The windows that *agent* holds a claim on, in order."""
        return tuple(sorted([w for w, claim in self.claims.items() if claim.agent == agent]))

    def arrived(self, agent: str) -> int:
        """Bytes that have arrived under the claims of *agent*."""
        return sum(claim.done for claim in self.claims.values() if claim.agent == agent)

    def published_since(self, version: int) -> dict[int, bytes]:
        """Window -> hashes, of the windows published after *version* in this generation."""
        newer: dict[int, bytes] = {}
        for window, published in reversed(self.windows.items()):
            if published.version <= version:
                break
            newer[window] = published.hashes
        return newer

    def take_gained(self) -> dict[str, int]:
        """Agent -> windows that it has come to hold since this was called last (bit w: window w)."""
        gained, self._gained = self._gained, {}
        return gained

    def holds(self, agent: str, window: int) -> bool:
        """Whether *agent* takes part and holds *window*."""
        who = self.participants.get(agent)
        return who is not None and bool(who.have >> window & 1)

    def missing(self, agent: str) -> Iterator[int]:
        """Published windows that *agent* lacks and wants, those that it needs first in front."""
        who = self.participants.get(agent)
        lacking = self._mask & ~who.have if who is not None else 0
        if who is None or not lacking:
            return
        for window in who.prefer:
            if lacking >> window & 1:
                lacking &= ~(1 << window)
                yield window
        if not who.only_preferred:
            yield from _bits(lacking)

    @property
    def window_count(self) -> int:
        """How many windows the blob has; 0 while the size is unknown."""
        return len(self._cut().windows) if self.size is not None else 0

    def copies(self, window: int) -> int:
        """How many participants hold *window*."""
        return self._holding.get(window, 0)

    def window_length(self, window: int) -> int:
        """Bytes of *window*; only once the size is known."""
        return self._cut().windows[window].length

    def next_deadline(self) -> float | None:
        """When `assign` should be called although nothing happened; None: no need."""
        times = [claim.deadline for claim in self.claims.values()]
        times += [who.barred_until for a in self._barred if (who := self.participants[a]).want]
        if self._quiet_at is not None and self.participants:
            times.append(self._quiet_at)
        return min(times, default=None)

    def assign(
        self,
        now: float,
        may_claim: Callable[[str], bool] | None = None,
        near: Callable[[str], bool] | None = None,
    ) -> set[str]:
        """End the leases that ran out, hand out claims; returns the agents whose claims changed.

        *near*: whether an agent is near to upstream; those that are get claims before the others, except readers of
        ranges, who wait for windows of their own.
        """
        self._doubt_holders()
        changed = self._expire(now) | self._look_at_holders(now)
        zones = {self._zone(agent) for agent in self.participants} if self.zone_of is not None else {""}
        most = TURNS if self.lone else self.max_claims * len(zones)
        shared = most if self.lone else self.share * len(zones)
        takers = self._takers(len(self.claims) < shared)
        if self.poisoned or not takers or len(self.claims) >= most:
            return changed
        free = {zone: self._claimable(zone) for zone in zones}
        if not any(free.values()) and not self._stalled:
            return changed
        held = Counter(claim.agent for claim in self.claims.values())
        able: list[str] = []
        queue: list[tuple[bool, int, int, int, str]] = []
        for rank, agent in enumerate(takers):
            who = self.participants[agent]
            if (limit := self._limit(agent, who)) and (may_claim is None or may_claim(agent)):
                able.append(agent)
                if (count := held[agent]) < limit:
                    far = near is not None and not self.lone and not who.only_preferred and not near(agent)
                    queue.append((far, count, who.brought, rank, agent))
        heapq.heapify(queue)
        while queue and len(self.claims) < most:
            far, count, brought, rank, agent = heapq.heappop(queue)
            who = self.participants[agent]
            in_turn = len(self.claims) < shared or who.only_preferred
            window = self._choose(agent, able, free[self._zone(agent)]) if in_turn else None
            if window is None:
                continue
            self.claims[window] = Claim(agent, now, now + LEASE)
            for open_windows in free.values():
                if window in open_windows:
                    open_windows.remove(window)
            changed.add(agent)
            if count + 1 < self._limit(agent, who):
                heapq.heappush(queue, (far, count + 1, brought, rank, agent))
        return changed

    @property
    def share(self) -> int:
        """Claims that may be out at once, but for readers of ranges: all boards together as many as one alone.

        Three layers at eight claims each are 24 windows that come slowly instead of eight that come fast, and until the
        first is there nobody has anything to trade.
        """
        beside = min((self.participants[agent].beside for agent in islice(self._able, ASKED)), default=0)
        return min(self.max_claims, max(FEWEST_CLAIMS, -(-self.max_claims // (1 + beside))))

    def view(self, agent: str, since: int = 0, generation: int | None = None) -> View:
        """What *agent* is told, who last heard version *since* of *generation*."""
        if generation is not None and generation != self.generation:
            since = 0
        return View(
            version=self.version,
            generation=self.generation,
            size=self.size,
            sealed=self.sealed_for(agent),
            published=self.published_since(since),
            claims=self.claims_of(agent),
            hope=self.hope(),
            poisoned=self.poisoned,
            lone=self.lone if self.has_turn(agent) else "",
            spread=self.spread_for(agent),
        )

    def has_turn(self, agent: str) -> bool:
        """Whether *agent* is to fetch from the lone holder by claims."""
        who = self.participants.get(agent)
        return bool(self.lone) and agent != self.lone and who is not None and who.turns > 0

    def sealed_for(self, agent: str) -> bool:
        """Whether *agent* is to fetch the blob whole, from whom it likes."""
        return self.sealed and not self.orphaned and not self.has_turn(agent)

    def spread_for(self, agent: str) -> int | None:
        """`spread`, where *agent* must know it: not all that is published is there for it to take."""
        return self.spread if self.orphaned or self.has_turn(agent) else None

    @property
    def spread(self) -> int:
        """Bit w is set if somebody holds window w who is not the lone holder."""
        alone = self.participants[self.lone].have if self.lone in self.participants else 0
        if not alone:
            return self._held
        held = self._held
        for window, count in self._holding.items():
            if count == 1 and alone >> window & 1:
                held &= ~(1 << window)
        return held

    def hope(self) -> bool:
        """Whether somebody holds what is missing, brings it in, or may yet try to."""
        if self.holders or self.claims:
            return True
        if self._hopeful:
            return True
        return self.complete and self._held == self._mask

    def has(self, zone: str) -> bool:
        """Whether somebody in *zone* holds the whole blob."""
        return any(self._zone(agent) == zone for agent in self.holders)

    def can_bring(self, zone: str) -> bool:
        """Whether somebody in *zone* can bring the blob in."""
        return any(self._zone(agent) == zone for agent in self._hopeful)

    # -- inside ---------------------------------------------------------------------------------

    def _zone(self, agent: str) -> str:
        return self.zone_of(agent) if self.zone_of is not None else ""

    def _held_in(self, zone: str) -> int:
        """Bit w is set if somebody in *zone* holds window w; the zone does not matter if all zones share a copy."""
        if self.lone:
            return self.spread
        if self.zone_of is None:
            return self._held if self.holders <= self._deaf else self._mask
        if self.has(zone):
            return self._mask
        held = 0
        for agent, who in self.participants.items():
            if who.have and self._zone(agent) == zone:
                held |= who.have
        return held

    def _cut(self) -> Geometry:
        assert self.size is not None
        return geometry(self.size)

    def _learn(self, size: int) -> None:
        geometry(size)
        self.size = size
        self.version += 1

    def _join(self, agent: str, now: float) -> Participant:
        who = self.participants.get(agent)
        if who is None:
            who = self.participants[agent] = Participant()
        who.seen = now
        if self._quiet_at is None:
            self._quiet_at = now + SILENCE
        return who

    def _heard(self, agent: str) -> float:
        who = self.participants.get(agent)
        return who.seen if who is not None else float("-inf")

    def _publish(self, window: int, hashes: bytes, agent: str) -> None:
        self.version += 1
        self.windows[window] = Published(hashes, agent, self.version)
        self._mask |= 1 << window

    def _have(self, agent: str, who: Participant, have: int) -> None:
        changed = moved = who.have ^ have
        watched = changed and (self.lone or self.orphaned)
        before = self.spread if watched else 0
        who.have = have
        if changed & have:
            self._gained[agent] = self._gained.get(agent, 0) | changed & have
        while moved:
            bit = moved & -moved
            moved ^= bit
            window = bit.bit_length() - 1
            count = self._holding.get(window, 0) + (1 if have & bit else -1)
            self._holding[window] = count
            self._held = self._held | bit if count else self._held & ~bit
        if watched and self.spread != before:
            self.version += 1  # who waits for these windows must hear that they are there

    def _stall(self, agent: str, who: Participant, stalled: Collection[int]) -> None:
        who.stalled = frozenset(w for w in stalled if self._mask >> w & 1) if stalled else frozenset()
        (self._stalled.add if who.stalled else self._stalled.discard)(agent)

    def _bar(self, agent: str, who: Participant, until: float) -> None:
        who.barred_until = until
        self._barred.add(agent)
        self._sort(agent, who)

    def _sort(self, agent: str, who: Participant) -> None:
        """Bring who would take a claim up to date."""
        for place, belongs in (
            (self._able, who.want > 0 and not who.barred_until),
            (self._reading, who.want > 0 and not who.barred_until and who.only_preferred),
            (self._turning, who.turns > 0),
            (self._hopeful, who.want > 0 and not who.refused and who.failures < 3),
        ):
            if belongs:
                place[agent] = None
            else:
                place.pop(agent, None)

    def _takers(self, shared: bool) -> Collection[str]:
        """Who may get a claim, first come first; *shared*: not only readers of ranges may."""
        if self.lone:
            return self._turning
        # After a rejection it matters who else would take a window.
        return self._able if shared or self._rejected else self._reading

    def _lone_delivers(self, agent: str, now: float) -> None:
        """The lone holder sends *agent* one window after the other: while one comes, the next has not failed."""
        if self.lone:
            for claim in self.claims.values():
                if claim.agent == agent:
                    claim.deadline = now + LEASE

    def _limit(self, agent: str, who: Participant) -> int:
        """Claims that *agent* may hold at once: of upstream, or of the lone holder."""
        if self.lone:
            return who.turns if agent != self.lone else 0
        return 0 if who.barred_until else who.want

    def _claimable(self, zone: str) -> list[int]:
        if self.size is None:
            return [] if 0 in self.claims else [0]
        held = self._held_in(zone)
        missing = (1 << len(self._cut().windows)) - 1 & ~held
        for window in self.claims:
            missing &= ~(1 << window)
        return [*_bits(missing)]

    def _choose(self, agent: str, able: list[str], open_windows: list[int]) -> int | None:
        who = self.participants[agent]
        count = len(self._cut().windows) if self.size is not None else 1
        stuck = [w for w in sorted(who.stalled) if w < count and w not in self.claims and not who.have >> w & 1]
        free = set(open_windows) | set(stuck)
        ordered = [w for w in who.prefer if w in free] + stuck
        if not who.only_preferred or self.size is None:
            ordered += open_windows
        for window in ordered:
            if (
                self._rejected
                and self._told_before(agent, window)
                and not all(self._told_before(other, window) for other in able if self._wants(other, window))
            ):
                continue
            return window
        return None

    def _wants(self, agent: str, window: int) -> bool:
        """Whether *agent* would take a claim on *window*."""
        who = self.participants[agent]
        return not who.only_preferred or window in who.prefer or window in who.stalled

    def _told_before(self, agent: str, window: int) -> bool:
        """After a rejection a window is brought in by somebody else than the one who told its hashes."""
        return any(window in told and told[window].agent == agent for _, told in self._rejected)

    def _was_rejected(self, agent: str, told: dict[int, bytes]) -> bool:
        """Whether *agent* told the same in a generation that was rejected."""
        return any(
            published.agent == agent and told.get(window) == published.hashes
            for _, rejected in self._rejected
            for window, published in rejected.items()
        )

    def _expire(self, now: float) -> set[str]:
        changed: set[str] = set()
        for window, claim in list(self.claims.items()):
            if claim.deadline > now:
                continue
            if self.lone:
                self._lone_at = now + LONE_AGAIN
                break
            del self.claims[window]
            changed.add(claim.agent)
            if (who := self.participants.get(claim.agent)) is not None:
                who.failures += 1
                self._bar(claim.agent, who, now + LEASE)
        for agent in list(self._barred):
            who = self.participants[agent]
            if who.barred_until <= now:
                who.barred_until = 0.0
                self._barred.discard(agent)
                self._sort(agent, who)
        if self._quiet_at is not None and self._quiet_at <= now:
            for agent in [a for a, who in self.participants.items() if who.seen + SILENCE <= now]:
                self.leave(agent)
            self._quiet_at = min((who.seen + SILENCE for who in self.participants.values()), default=None)
        return changed

    def _renew(self, claim: Claim, window: int, now: float) -> None:
        """Let the lease of *claim* go on, unless somebody else would have the window much sooner, or it is too old."""
        oldest = claim.since + LONGEST_WAIT + self._length(window) / SLOWEST
        if self._lags(claim, now):
            claim.deadline = now
        else:
            claim.deadline = max(claim.deadline, min(now + LEASE, oldest))

    def _lags(self, claim: Claim, now: float) -> bool:
        """Whether *claim* is much slower than those of others, and somebody else would take it."""
        if self.lone or now - claim.since < LEASE or not self._rival(claim.agent):
            return False
        paces = [pace for agent, pace in self._paces if agent != claim.agent]
        paces += [
            other.pace(now)
            for other in self.claims.values()
            if other.agent != claim.agent and now - other.since >= LEASE
        ]
        return bool(paces) and claim.pace(now) * LAGGING < median(paces)

    def _length(self, window: int) -> int:
        """Bytes of *window*; before the size is known, of the largest first one."""
        if self.size is None:
            return FIRST_WINDOW
        windows = self._cut().windows
        return windows[window].length if window < len(windows) else 0

    def _doubt_holders(self) -> None:
        """Where nobody gets what only holders of the whole blob have, they count no more: it comes from upstream.

        Window by window, as for a few that stall, a blob took ten times as long as from upstream.
        """
        if not self.sealed or not self._stalled or self.holders <= self._deaf:
            return
        seekers = [who for a, who in self.participants.items() if a not in self.holders and (who.want or who.turns)]
        held = 0
        for who in seekers:
            held |= who.have
        in_vain = sum(any(not held >> w & 1 for w in who.stalled) for who in seekers)
        if 2 * in_vain > len(seekers):
            self._deaf |= self.holders
            for agent in self.holders & self.participants.keys():
                self._have(agent, self.participants[agent], 0)

    def _look_at_holders(self, now: float) -> set[str]:
        """Bring `lone` and `orphaned` up to date; returns the agents whose claims end by that."""
        orphaned = self.sealed and self.zone_of is None and self.holders <= self._deaf
        if orphaned != self.orphaned:
            self.orphaned = orphaned
            self.version += 1
        lone = ""
        single = self.sealed and len(self.holders) == 1 and not self.holders & self._deaf and self.zone_of is None
        if single and not self._stalled and now >= self._lone_at:
            (holder,) = self.holders
            # From the first who seeks it on: to change over when the second comes costs it seconds (it would leave the
            # holder, and libtorrent waits before it dials the same peer again).
            sought = len(self._turning) > (holder in self._turning)
            lone = holder if sought and self.window_count > 1 else ""
        if lone == self.lone:
            return set()
        self.lone = lone
        self.version += 1
        over = {claim.agent for claim in self.claims.values()}
        self.claims.clear()
        return over

    def _rival(self, agent: str) -> bool:
        return len(self._able) > (agent in self._able)

    def _blame(self) -> list[Blame]:
        blamed: dict[str, Blame] = {}
        for rejecter, told in self._rejected:
            wrong = {w: p for w, p in told.items() if w not in self.windows or p.hashes != self.windows[w].hashes}
            for window, published in sorted(wrong.items()):
                reason = f"published wrong hashes for window {window} of {self.digest}"
                blamed.setdefault(published.agent, Blame(published.agent, reason))
            if rejecter and told and not wrong and len(told) == len(self.windows):
                reason = f"rejected the right bytes of {self.digest}"
                blamed.setdefault(rejecter, Blame(rejecter, reason))
        self._rejected.clear()
        return list(blamed.values())


def _bits(mask: int) -> Iterator[int]:
    """The places of the bits that are set in *mask*, lowest first."""
    while mask:
        bit = mask & -mask
        mask ^= bit
        yield bit.bit_length() - 1


def window_zero_range() -> tuple[int, int]:
    """(start, stop) of the range that the holder of claim 0 asks for before the size is known."""
    return 0, FIRST_WINDOW
