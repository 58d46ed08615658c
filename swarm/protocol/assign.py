"""Who gets a claim on which window of one blob. No I/O; time is passed in.

Whoever has few comes first, and whoever has delivered nothing yet gets one, while others would take some. A claim is
not taken from who is slow, for all may be: but it goes to who brings the window in already, past the claim, where its
holder is silent or has yet to deliver anything at all.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from swarm.protocol.availability import Availability, bits
from swarm.protocol.blame import Evidence
from swarm.protocol.leases import LEASE, Claim, Leases, Scene
from swarm.protocol.participants import Participant, Participants

MAX_CLAIMS = 8
"""Claims that may be out at once on one board: as many upstream connections."""

FEWEST_CLAIMS = 2
"""Claims that may be out at once on a board where those who bring it in bring in many others as well."""

ASKED = 16
"""Participants who are asked how many other boards they fill: all ask for the layers of an image at about one time."""


@dataclass(slots=True)
class Assignment:
    """Hands out the claims of one board. *proven*: whether an agent has delivered before; None: whoever asks has."""

    who: Participants
    available: Availability
    evidence: Evidence
    leases: Leases
    most: int = MAX_CLAIMS
    proven: Callable[[str], bool] | None = None
    _sole: str = ""
    """After a rejection: the one agent that brings everything in, so that it is known who told what."""
    _disputed: set[int] = field(default_factory=set)
    """Windows that were taken from who was at work on them: not again."""

    def claimable(self, scene: Scene, zone: str) -> list[int]:
        """Windows that nobody in *zone* holds and nobody brings in, in order."""
        if scene.layout is None:
            return [] if 0 in self.leases.out else [0]
        held = self.available.elsewhere(scene.sole) if scene.sole else self.available.within(zone)
        missing = (1 << scene.count) - 1 & ~held
        for window in self.leases.out:
            missing &= ~(1 << window)
        return [*bits(missing)]

    def resume(self, agent: str, now: float, scene: Scene, zone: str, windows: Iterable[int]) -> None:
        """*agent* is bringing *windows* in by claims of another tracker: let it, where nobody else does."""
        free = set(self.claimable(scene, zone))
        for window in windows:
            if window in free and len(self.leases.out) < self.most:
                self.leases.grant(agent, window, now, scene)
                free.discard(window)

    def restart(self) -> None:
        """Another generation."""
        self._sole = ""
        self._disputed.clear()

    @property
    def share(self) -> int:
        """Claims that may be out at once, but for readers of ranges: all boards together as many as one alone.

        Three layers at eight claims each are 24 windows that come slowly instead of eight that come fast, and until the
        first is there nobody has anything to trade.
        """
        concurrent = min((self.who.everybody[agent].concurrent for agent in islice(self.who.able, ASKED)), default=0)
        return min(self.most, max(FEWEST_CLAIMS, -(-self.most // (1 + concurrent))))

    def assign(
        self, now: float, scene: Scene, zones: Mapping[str, str] | None, near: Callable[[str], bool] | None
    ) -> set[str]:
        """Hand out claims; returns the agents whose claims changed.

        *zones*: agent -> zone, where each zone brings in a copy of its own. *near*: whether an agent is near to
        upstream: those get claims before the others, except readers of ranges, who wait for windows of their own.
        """
        zone_of = zones.__getitem__ if zones is not None else _nowhere
        every = set(zones.values()) if zones is not None else {""}
        most = self.leases.turns if scene.sole else self.most * len(every)
        shared = most if scene.sole else self.share * len(every)
        out = self.leases.out
        changed = self._hand_over(now, scene, zone_of)
        if len(out) >= most:
            return changed
        asking = self._asking(scene, shared=len(out) < shared)
        if not asking:
            return changed
        free = {zone: self.claimable(scene, zone) for zone in every}
        if not any(free.values()) and not self.available.stalled:
            return changed  # before anything that walks over thousands
        able = self._takers(scene, asking)
        if not able:
            return changed
        member = self.evidence.member
        held = Counter(member(claim.agent) for claim in out.values())
        rivals = {member(agent) for agent in able}
        nearest = {member(agent) for agent in able if near(agent)} if near is not None else set()
        queue = self._queue(scene, able, near)
        waits = False  # whether somebody near has yet to deliver before it gets more: nobody far comes first by that
        while queue and len(out) < most and not (waits and queue[0][0]):
            far, count, brought, rank, agent = heapq.heappop(queue)
            who = self.who.everybody[agent]
            in_turn = len(out) < shared or who.only_preferred
            others = nearest if near is not None and not far else rivals
            rival = len(others) > (member(agent) in others)
            if not in_turn or count >= self._limit(agent, who, scene, held, rival=rival):
                waits = waits or (near is not None and not far and not who.only_preferred and count < who.want)
                continue
            window = self._choose(agent, able, free[zone_of(agent)], scene)
            if window is None:
                continue
            self.leases.grant(agent, window, now, scene)
            held[member(agent)] += 1
            for open_windows in free.values():
                if window in open_windows:
                    open_windows.remove(window)
            changed.add(agent)
            heapq.heappush(queue, (far, count + 1, brought, rank, agent))
        return changed

    # -- inside -------------------------------------------------------------------------------------

    def _queue(
        self, scene: Scene, able: Sequence[str], near: Callable[[str], bool] | None
    ) -> list[tuple[bool, int, int, int, str]]:
        """Who is to have the next claim: a heap of (far from upstream, claims, windows brought, rank, agent)."""
        own = Counter(claim.agent for claim in self.leases.out.values())
        queue = []
        for rank, agent in enumerate(able):
            who = self.who.everybody[agent]
            if own[agent] < (who.turns if scene.sole else who.want):
                far = near is not None and not scene.sole and not who.only_preferred and not near(agent)
                queue.append((far, own[agent], who.brought, rank, agent))
        heapq.heapify(queue)
        return queue

    def _asking(self, scene: Scene, *, shared: bool) -> Collection[str]:
        """Who would take a claim, trusted or not; *shared*: not only readers of ranges may."""
        if scene.sole:
            return self.who.turning
        # After a rejection it matters who else would take a window.
        return self.who.able if shared or self.evidence.contested else self.who.reading

    def _takers(self, scene: Scene, asking: Collection[str]) -> list[str]:
        """Who of those *asking* may get a claim, first come first."""
        able = self.who.trusted(asking)
        if scene.sole:
            return [agent for agent in able if agent != scene.sole]
        if not self.evidence.contested or scene.layout is None:
            return able
        whole = [agent for agent in able if not self.who.everybody[agent].only_preferred]
        if self._sole not in whole:
            self._sole = min(whole, key=self.evidence.suspicion, default="")
        readers = [agent for agent in able if self.who.everybody[agent].only_preferred]
        return [self._sole, *readers] if self._sole else able

    def _limit(self, agent: str, who: Participant, scene: Scene, held: Mapping[str, int], *, rival: bool) -> int:
        """Claims that *agent* may hold at once: of upstream, or of the sole seed.

        Who has delivered nothing yet gets one claim, with all of its member's agents, while others would take some.
        """
        if scene.sole:
            return who.turns
        if not rival or not self._new(agent):
            return who.want
        return min(who.want, 1 - held[self.evidence.member(agent)] + len(self.leases.of(agent)))

    def _new(self, agent: str) -> bool:
        """Whether *agent* has delivered nothing yet, here or elsewhere."""
        who = self.who.get(agent)
        return (who is None or not who.brought) and self.proven is not None and not self.proven(agent)

    def _hand_over(self, now: float, scene: Scene, zone_of: Callable[[str], str]) -> set[str]:
        """Give who brings a window in without a claim the claim on it; returns the agents whose claims changed.

        From somebody else it is taken where that one is silent, or has held it for a lease and never delivered
        anything. The latter once for a window, so that two do not take it from each other.
        """
        changed: set[str] = set()
        if scene.sole or scene.layout is None:
            return changed
        for agent in self.who.trusted(self.who.direct):
            held = self.available.within(zone_of(agent))
            most = 1 if self._new(agent) else self.who.everybody[agent].want
            for window in self.who.everybody[agent].direct:
                if not 0 <= window < scene.count or held >> window & 1:
                    continue
                claim = self.leases.out.get(window)
                if claim is not None and (claim.agent == agent or not self._may_lose(window, claim, now)):
                    continue
                if claim is not None:
                    changed.add(claim.agent)
                    if claim.alive(now):
                        self._disputed.add(window)
                    if claim.agent in self.who.everybody:
                        self.who.bar(claim.agent, now + LEASE)
                elif len(self.leases.out) >= self.most or len(self.leases.of(agent)) >= most:
                    continue
                self.leases.grant(agent, window, now, scene)
                changed.add(agent)
        return changed

    def _may_lose(self, window: int, claim: Claim, now: float) -> bool:
        """Whether *claim* may be taken for somebody who brings its window in."""
        if not claim.alive(now):
            return True
        return self._new(claim.agent) and now - claim.since >= LEASE and window not in self._disputed

    def _choose(self, agent: str, able: Collection[str], open_windows: list[int], scene: Scene) -> int | None:
        who = self.who.everybody[agent]
        out = self.leases.out
        stuck = [w for w in sorted(who.stalled) if w < scene.count and w not in out and not who.have >> w & 1]
        free = set(open_windows) | set(stuck)
        ordered = [w for w in who.prefer if w in free] + stuck
        if not who.only_preferred or scene.layout is None:
            ordered += open_windows
        told = self.evidence.told_before if self.evidence.contested and agent != self._sole else None
        for window in ordered:
            # After a rejection a window is brought in by somebody else than the one who told its hashes.
            if told is not None and told(agent, window):
                others = [other for other in able if self._wants(other, window)]
                if not all(told(other, window) for other in others):
                    continue
            return window
        return None

    def _wants(self, agent: str, window: int) -> bool:
        """Whether *agent* would take a claim on *window*."""
        who = self.who.everybody[agent]
        return not who.only_preferred or window in who.prefer or window in who.stalled


def _nowhere(_agent: str) -> str:
    return ""
