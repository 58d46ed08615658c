"""Who takes part in a board, and who of them would take a claim. No I/O, no clock.

Thousands only wait. The lists here spare a walk over all of them for each thing that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum

SILENCE = 60.0
"""Seconds without a word after which a participant is forgotten."""

HOPELESS = 3
"""Failed claims in a row after which nobody hopes that an agent brings anything in."""


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
    """Claims that it would hold at once on windows of a sole seed."""
    concurrent: int = 0
    """Other blobs that it has enter the cluster at the same time."""
    have: int = 0
    """Bit w is set if it holds window w of the current generation."""
    seen: float = 0.0
    barred_until: float = 0.0
    """No claim of upstream before."""
    unserved_until: float = 0.0
    """No claim of a sole seed before: it gave this agent nothing."""
    failures: int = 0
    """Failed claims in a row."""
    refused: bool = False
    direct: tuple[int, ...] = ()
    """Windows that it brings in from upstream without a claim."""
    stalled: frozenset[int] = frozenset()
    """Published windows that it cannot get from anybody."""
    brought: int = 0
    """Windows that it published in this generation: who brought few comes first."""


@dataclass(slots=True)
class Participants:
    """All participants of one board by agent. *may_claim*: whether an agent is trusted enough to bring windows in.

    *doubted*: whether there is anybody at all who is not; None: there may be.
    """

    may_claim: Callable[[str], bool] | None = None
    doubted: Callable[[], bool] | None = None
    everybody: dict[str, Participant] = field(default_factory=dict)
    able: dict[str, None] = field(default_factory=dict)
    """Who would take a claim of upstream now."""
    reading: dict[str, None] = field(default_factory=dict)
    """Those of them who read ranges."""
    direct: dict[str, None] = field(default_factory=dict)
    """Who brings something in without a claim."""
    turning: dict[str, None] = field(default_factory=dict)
    """Who would take a claim of a sole seed."""
    hopeful: dict[str, None] = field(default_factory=dict)
    """Who may yet bring something in, if it is trusted."""
    barred: set[str] = field(default_factory=set)
    """Who gets no claim of one kind, or of both, for a while."""
    _quiet_at: float | None = None
    """No participant is silent for too long before."""

    def get(self, agent: str) -> Participant | None:
        """What is known of *agent*; None: it takes no part."""
        return self.everybody.get(agent)

    def trusted(self, agents: Collection[str]) -> list[str]:
        """Those of *agents* who may bring windows in, in order; thousands at a time."""
        if self.may_claim is None or (self.doubted is not None and not self.doubted()):
            return list(agents)
        return [agent for agent in agents if self.may_claim(agent)]

    def trusts(self, agent: str) -> bool:
        """Whether *agent* may bring windows in."""
        return self.may_claim is None or self.may_claim(agent)

    def join(self, agent: str, now: float) -> Participant:
        """*agent* takes part, now or still."""
        who = self.everybody.get(agent)
        if who is None:
            who = self.everybody[agent] = Participant()
        who.seen = now
        if self._quiet_at is None:
            self._quiet_at = now + SILENCE
        return who

    def leave(self, agent: str) -> None:
        """*agent* takes no part any more."""
        self.everybody.pop(agent, None)
        self.barred.discard(agent)
        for place in (self.able, self.reading, self.direct, self.turning, self.hopeful):
            place.pop(agent, None)

    def sort(self, agent: str) -> None:
        """Bring the lists up to date with what *agent* said."""
        who = self.everybody[agent]
        for place, belongs in (
            (self.able, who.want > 0 and not who.barred_until),
            (self.reading, who.want > 0 and not who.barred_until and who.only_preferred),
            (self.direct, who.want > 0 and bool(who.direct)),
            (self.turning, who.turns > 0 and not who.unserved_until),
            (self.hopeful, who.want > 0 and not who.refused and who.failures < HOPELESS),
        ):
            if belongs:
                place[agent] = None
            else:
                place.pop(agent, None)

    def bar(self, agent: str, until: float) -> None:
        """*agent* gets no claim of upstream before *until*."""
        self.everybody[agent].barred_until = until
        self.barred.add(agent)
        self.sort(agent)

    def unserved(self, agent: str, until: float) -> None:
        """*agent* gets no claim of a sole seed before *until*."""
        self.everybody[agent].unserved_until = until
        self.barred.add(agent)
        self.sort(agent)

    def unbar(self, now: float) -> None:
        """Whose time is over may have claims again."""
        for agent in list(self.barred):
            who = self.everybody[agent]
            before = who.barred_until, who.unserved_until
            left = tuple(until if until > now else 0.0 for until in before)
            if left == before:
                continue
            who.barred_until, who.unserved_until = left
            if not any(left):
                self.barred.discard(agent)
            self.sort(agent)

    def rival(self, agent: str) -> bool:
        """Whether somebody else would take a claim."""
        if self.may_claim is None:
            return len(self.able) > (agent in self.able)
        return any(other != agent and self.may_claim(other) for other in self.able)

    def hope(self) -> bool:
        """Whether somebody trusted may yet bring something in."""
        if self.may_claim is None:
            return bool(self.hopeful)
        return any(self.may_claim(agent) for agent in self.hopeful)

    def heard(self, agent: str) -> float:
        """When *agent* last said something."""
        who = self.everybody.get(agent)
        return who.seen if who is not None else float("-inf")

    def silent(self, now: float) -> list[str]:
        """Who has been silent for too long."""
        if self._quiet_at is None or self._quiet_at > now:
            return []
        return [agent for agent, who in self.everybody.items() if who.seen + SILENCE <= now]

    def listen(self, now: float) -> None:
        """The silent have left: find out when the next one has been silent for too long."""
        if self._quiet_at is not None and self._quiet_at <= now:
            self._quiet_at = min((who.seen + SILENCE for who in self.everybody.values()), default=None)

    def restart(self) -> None:
        """Another generation: nobody holds, misses or has brought anything."""
        for who in self.everybody.values():
            who.have = who.brought = 0
            who.stalled = frozenset()
            who.direct = ()
        self.direct.clear()

    def deadlines(self) -> list[float]:
        """When somebody may claim again, and when somebody has been silent for too long."""
        barred = [self.everybody[agent] for agent in self.barred]
        times = [who.barred_until for who in barred if who.want and who.barred_until]
        times += [who.unserved_until for who in barred if who.turns and who.unserved_until]
        if self._quiet_at is not None and self.everybody:
            times.append(self._quiet_at)
        return times
