"""Who holds what of one blob, kept once: windows by participant, and holders of all of it. No I/O, no clock.

A window is *available* when its hashes are published and somebody alive holds it. Holders that deliver to nobody
do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from swarm.protocol.participants import Participant, Participants


@dataclass(slots=True)
class Availability:
    """See the module. *zone_of*: given where each zone brings in a copy of its own."""

    who: Participants
    zone_of: Callable[[str], str] | None = None
    holders: set[str] = field(default_factory=set)
    """Agents that hold the whole blob."""
    unresponsive: set[str] = field(default_factory=set)
    """Holders that deliver to nobody: most who fetch have said so, and they have not spoken since."""
    stalled: set[str] = field(default_factory=set)
    """Participants that cannot get something which is published."""
    published: int = 0
    """Bit w is set if window w is published."""
    held: int = 0
    """Bit w is set if a participant holds window w."""
    _holding: dict[int, int] = field(default_factory=dict)
    """Window -> how many participants hold it."""
    _gained: dict[str, int] = field(default_factory=dict)

    def have(self, agent: str, windows: int) -> None:
        """*agent* holds just these windows, of those that are published."""
        who = self.who.everybody[agent]
        changed = moved = who.have ^ windows & self.published
        who.have ^= changed
        if changed & who.have:
            self._gained[agent] = self._gained.get(agent, 0) | changed & who.have
        while moved:
            bit = moved & -moved
            moved ^= bit
            window = bit.bit_length() - 1
            count = self._holding.get(window, 0) + (1 if who.have & bit else -1)
            self._holding[window] = count
            self.held = self.held | bit if count else self.held & ~bit

    def gain(self, agent: str, windows: int) -> None:
        """*agent* holds these windows too: within a generation it only grows, since polls overtake publications."""
        who = self.who.get(agent)
        if who is not None and agent not in self.unresponsive:
            self.have(agent, who.have | windows)

    def lose(self, agent: str) -> None:
        """Nothing that *agent* holds of windows counts any more."""
        if self.who.get(agent) is not None:
            self.have(agent, 0)

    def take_gained(self) -> dict[str, int]:
        """Agent -> windows that it has come to hold since this was called last."""
        gained, self._gained = self._gained, {}
        return gained

    def stall(self, agent: str, windows: Collection[int]) -> None:
        """*agent* cannot get these windows from anybody."""
        who = self.who.everybody[agent]
        who.stalled = frozenset(w for w in windows if self.published >> w & 1) if windows else frozenset()
        (self.stalled.add if who.stalled else self.stalled.discard)(agent)

    def arrive(self, window: int) -> None:
        """*window* is published once more: nobody has found out yet that it cannot be had."""
        for name in list(self.stalled):
            self.stall(name, self.who.everybody[name].stalled - {window})

    def restart(self) -> None:
        """Another generation: nothing is published, and nobody holds anything."""
        self.holders.clear()
        self.unresponsive.clear()
        self.stalled.clear()
        self._holding.clear()
        self.published = self.held = 0

    def copies(self, window: int) -> int:
        """How many participants hold *window*."""
        return self._holding.get(window, 0)

    def holds(self, agent: str, window: int) -> bool:
        """Whether *agent* takes part and holds *window*."""
        who = self.who.get(agent)
        return who is not None and bool(who.have >> window & 1)

    def missing(self, agent: str) -> Iterator[int]:
        """Published windows that *agent* lacks and wants, those that it needs first in front."""
        who = self.who.get(agent)
        lacking = self.published & ~who.have if who is not None else 0
        if who is None or not lacking:
            return
        for window in who.prefer:
            if lacking >> window & 1:
                lacking &= ~(1 << window)
                yield window
        if not who.only_preferred:
            yield from bits(lacking)

    def elsewhere(self, sole: str) -> int:
        """Bit w is set if somebody holds window w who is not *sole*."""
        who = self.who.get(sole)
        if who is None or not who.have:
            return self.held
        held = self.held
        for window, count in self._holding.items():
            if count == 1 and who.have >> window & 1:
                held &= ~(1 << window)
        return held

    def within(self, zone: str) -> int:
        """Bit w is set if somebody in *zone* holds window w; the zone does not matter if all zones share a copy."""
        if self.zone_of is None:
            return self.held if self.holders <= self.unresponsive else self.published
        if self.whole_in(zone):
            return self.published
        held = 0
        for agent, who in self.who.everybody.items():
            if who.have and self.zone_of(agent) == zone:
                held |= who.have
        return held

    def whole_in(self, zone: str) -> bool:
        """Whether somebody in *zone* holds the whole blob."""
        return any((self.zone_of(agent) if self.zone_of is not None else "") == zone for agent in self.holders)

    def doubt_holders(self) -> None:
        """Where nobody gets what only holders of the whole blob have, they count no more: it comes from upstream.

        Window by window, as for a few that stall, a blob took ten times as long as from upstream.
        """
        if not self.stalled or self.holders <= self.unresponsive:
            return
        seekers = [
            who for agent, who in self.who.everybody.items() if agent not in self.holders and (who.want or who.turns)
        ]
        held = 0
        for who in seekers:
            held |= who.have
        if 2 * sum(_in_vain(who, held) for who in seekers) > len(seekers):
            self.unresponsive |= self.holders
            for agent in self.holders & self.who.everybody.keys():
                self.have(agent, 0)


def _in_vain(who: Participant, held: int) -> bool:
    """Whether *who* waits for windows that no seeker holds."""
    return any(not held >> window & 1 for window in who.stalled)


def bits(mask: int) -> Iterator[int]:
    """The places of the bits that are set in *mask*, lowest first."""
    while mask:
        bit = mask & -mask
        mask ^= bit
        yield bit.bit_length() - 1
