"""Who told what of one blob, and who was wrong: proof, never one member's word. No I/O, no clock.

An agent vouches for the hashes of a generation when its sha256 matched. Whoever told other hashes, or rejected these,
is blamed when two members say so who are not itself: those who vouch, and those who told the same independently. With
less than that each member's word acts on itself alone: it may make a board begin again a few times, and is then sent
upstream by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

JUDGES = 2
"""Members who must agree before somebody else is blamed."""

RESTARTS = 2
"""How often one member can make a board begin again: then its word acts on itself alone."""

REMEMBERED = 8
"""Earlier generations whose hashes are kept as evidence."""


@dataclass(slots=True)
class Published:
    """The piece hashes of one window, and who told them."""

    hashes: bytes
    agent: str
    version: int
    origin: str = ""
    """Of which origin its bytes are, as *agent* says (swarm/fetch/proof.py); "": of several, or not known."""


@dataclass(frozen=True, slots=True)
class Blame:
    """What an agent was proven to have done wrong, once the sha256 settled it."""

    agent: str
    reason: str


@dataclass(slots=True)
class Evidence:
    """What was told of one blob in earlier generations, and who vouches for this one.

    *member_of*: the member that an agent is a process of; quotas and proof count members, not agents.
    """

    digest: str
    member_of: Callable[[str], str] | None = None
    vouchers: set[str] = field(default_factory=set)
    """Members whose sha256 matched what this generation describes."""
    unfit: set[str] = field(default_factory=set)
    """Members that found wrong what they brought in alone, or whose whole copy was not there."""
    _told: list[tuple[str, dict[int, Published]]] = field(default_factory=list)
    """Per earlier generation: who rejected it ("": a conflict), and what was published in it."""
    _settled: bool = False
    _restarts: Counter[str] = field(default_factory=Counter)

    def member(self, agent: str) -> str:
        """The member that *agent* belongs to."""
        return self.member_of(agent) if self.member_of is not None else agent

    @property
    def contested(self) -> bool:
        """Whether an earlier generation was wrong, and nobody knows yet by whom."""
        return bool(self._told)

    @property
    def confirmed(self) -> bool:
        """Whether two members vouch for the hashes: no single word changes them any more."""
        return len(self.vouchers) >= JUDGES

    def newly_confirmed(self) -> bool:
        """Whether the hashes are confirmed, and nobody asked before."""
        new, self._settled = self.confirmed and not self._settled, self.confirmed
        return new

    def vouch(self, agent: str) -> None:
        """The sha256 of *agent* matched what this generation describes."""
        self.vouchers.add(self.member(agent))

    def may_restart(self, agent: str) -> bool:
        """Whether the word of *agent* makes the board begin again; counts that it did."""
        member = self.member(agent)
        if self.confirmed or self._restarts[member] >= RESTARTS:
            return False
        self._restarts[member] += 1
        return True

    def begin_again(self, accuser: str, told: dict[int, Published]) -> None:
        """*told* turned out wrong, by the word of *accuser* ("": two told different hashes)."""
        self._told = [*self._told, (accuser, told)][-REMEMBERED:]
        self.vouchers.clear()
        tellers = {self.member(published.agent) for published in told.values()}
        if accuser and tellers == {self.member(accuser)}:
            self.unfit |= tellers

    def told_before(self, agent: str, window: int) -> bool:
        """Whether *agent* told the hashes of *window* in a generation that was rejected."""
        return any(window in told and told[window].agent == agent for _, told in self._told)

    def suspicion(self, agent: str) -> tuple[bool, int, bool]:
        """How little *agent* is fit to bring the blob in again alone: whose turn it is comes first in order."""
        told = sum(published.agent == agent for _, windows in self._told for published in windows.values())
        return self.member(agent) in self.unfit, told, any(accuser == agent for accuser, _ in self._told)

    def was_rejected(self, agent: str, told: dict[int, bytes]) -> bool:
        """Whether *agent* told the same in a generation that was rejected."""
        return any(
            published.agent == agent and told.get(window) == published.hashes
            for _, rejected in self._told
            for window, published in rejected.items()
        )

    def verdict(self, right: dict[int, Published]) -> list[Blame]:
        """Who is proven wrong, now that a sha256 matched *right*. What is not proven yet stays as evidence."""
        blamed: dict[str, Blame] = {}
        pending: list[tuple[str, dict[int, Published]]] = []
        for accuser, told in self._told:
            wrong = {w: p for w, p in told.items() if w not in right or p.hashes != right[w].hashes}
            open_windows = {}
            for window, published in sorted(wrong.items()):
                if self._proven(published.agent, window, right, accuser):
                    reason = f"published wrong hashes for window {window} of {self.digest}"
                    blamed.setdefault(published.agent, Blame(published.agent, reason))
                elif self.member(published.agent) not in self.vouchers:
                    open_windows[window] = published
            false = accuser and told and not wrong and len(told) == len(right)
            if false and self._witnesses(told) - {self.member(accuser)}:
                blamed.setdefault(accuser, Blame(accuser, f"rejected the right bytes of {self.digest}"))
            if open_windows:
                pending.append((accuser, open_windows))
        self._told = pending
        return list(blamed.values())

    def _proven(self, teller: str, window: int, right: dict[int, Published], accuser: str) -> bool:
        """Whether enough members say that *teller* was wrong about *window*."""
        judges = set(self.vouchers)
        if accuser:
            judges.add(self.member(accuser))
        if window in right:
            known = right[window].hashes
            judges.add(self.member(right[window].agent))
            judges |= {
                self.member(told[window].agent)
                for _, told in self._told
                if window in told and told[window].hashes == known
            }
        return len(judges - {self.member(teller)}) >= JUDGES

    def _witnesses(self, told: dict[int, Published]) -> set[str]:
        """Members who stand for hashes that were rejected: who told them at first, if others vouch for the same now."""
        tellers = {self.member(published.agent) for published in told.values()}
        return tellers | self.vouchers if len(tellers | self.vouchers) >= JUDGES else set()
