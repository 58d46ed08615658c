"""Which claims are out on the windows of one blob, and how long each lives. No I/O; time is passed in.

A claim is alive while its bytes grow, or while upstream has not had its time to answer. Whoever is slow because the
line is slow keeps it. Whoever is much slower than others would be loses it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from swarm.blob.geometry import FIRST_WINDOW, Geometry
from swarm.protocol.participants import Failure, Participants

LEASE = 5.0
"""Seconds that a claim lives without progress (promise P2)."""

TRIAL = 1.5
"""The same for a claim on a window of a sole seed whose word nobody has confirmed yet."""

ALIVE = 3.0
"""Seconds without a word of progress, which is told each second, after which a claimant may be gone."""

LONGEST_WAIT = 60.0
"""Seconds without a byte from upstream that are believed, whatever an agent says of its timeout."""

LAGGING = 4.0
"""Who is so many times slower than the other claimants of the board loses the claim, if somebody else would take it."""

SLOWEST = 8 * 1024
"""Bytes per second below which nobody brings a window in: a claim that lives on beyond it is made up."""

PACES = 16
"""Finished claims whose pace is remembered, to compare those under way with."""

FEWEST_TURNS, MOST_TURNS = 4, 16
"""Claims that may be out at once on the windows of a sole seed. Fourteen flows over its link of 200 Mbit/s: some had
nothing for 1.5 s, the first byte came after 0.9-3.6 s, and one run in ten lost the seed by that and took 2-3.5 x the
bound."""

SOON, LATE = 0.3, 0.8
"""Seconds. A window of a sole seed that came sooner lets one claim more be out; one that came later, one less."""

BARS = {"refused": 30.0, "busy": 1.0, "broken": 0.5}
"""Seconds without a claim after a failure, by its kind; each further failure in a row doubles them."""

LONGEST_BAR = 60.0
"""Seconds without a claim at most."""

PATIENCE = 5.0
"""Seconds of pause, asked for by upstream, that are waited out. A client that is kept for longer gets nothing from us
and does not ask elsewhere; told that nobody can bring the blob in, it goes on by itself."""


@dataclass(slots=True)
class Claim:
    """The right to bring one window in from upstream."""

    agent: str
    since: float
    deadline: float
    done: int = 0
    """Bytes that have arrived."""
    heard: float = float("-inf")
    """When it was told last that bytes came, or that upstream has not had its time."""

    def pace(self, now: float) -> float:
        """Bytes per second since it was granted."""
        return self.done / max(0.001, now - self.since)

    def alive(self, now: float) -> bool:
        """Whether its agent has shown lately that it is at work."""
        return now - max(self.since, self.heard) < ALIVE


@dataclass(frozen=True, slots=True)
class Scene:
    """What claims are handed out for."""

    layout: Geometry | None
    """Windows and pieces; None while the size is unknown."""
    sole: str = ""
    """The only holder: claims are on windows to fetch from it."""
    trial: bool = False
    """Nobody has confirmed what the sole seed says."""

    @property
    def count(self) -> int:
        """Windows that may be claimed: before the size is known, the first."""
        return len(self.layout.windows) if self.layout is not None else 1

    def length(self, window: int) -> int:
        """Bytes of *window*; before the size is known, of the largest first one."""
        if self.layout is None:
            return FIRST_WINDOW
        return self.layout.windows[window].length if window < len(self.layout.windows) else 0


@dataclass(slots=True)
class Leases:
    """All claims of one board."""

    who: Participants
    out: dict[int, Claim] = field(default_factory=dict)
    """Window -> claim."""
    turns: int = FEWEST_TURNS
    """Claims that may be out at once on the windows of a sole seed."""
    delivered: float = float("-inf")
    """When bytes came last under a claim on one of those."""
    _paces: list[tuple[str, float]] = field(default_factory=list)
    """Agent and bytes per second of the claims that were finished last."""

    def of(self, agent: str) -> tuple[int, ...]:
        """The windows that *agent* holds a claim on, in order."""
        return tuple(sorted([window for window, claim in self.out.items() if claim.agent == agent]))

    def arrived(self, agent: str) -> int:
        """Bytes that have arrived under the claims of *agent*."""
        return sum(claim.done for claim in self.out.values() if claim.agent == agent)

    def grant(self, agent: str, window: int, now: float, scene: Scene) -> None:
        """*agent* is to bring *window* in."""
        self.out[window] = Claim(agent, now, now + self.patience(scene))

    @staticmethod
    def patience(scene: Scene) -> float:
        """Seconds that a claim lives without progress."""
        return TRIAL if scene.sole and scene.trial else LEASE

    def finish(self, agent: str, window: int, now: float, scene: Scene, *, first: bool) -> None:
        """*agent* published *window*, *first* of all: whoever else was bringing it in gets it from a peer now."""
        claim = self.out.get(window)
        if claim is None:
            return
        if claim.agent == agent:
            took = now - claim.since
            self._paces = [*self._paces, (agent, scene.length(window) / max(0.001, took))][-PACES:]
            if scene.sole:
                self.turns = min(MOST_TURNS, max(FEWEST_TURNS, self.turns + (took < SOON) - (took > LATE)))
        if first or claim.agent == agent:
            del self.out[window]
            self._delivers(agent, now, scene)

    def progress(self, agent: str, now: float, scene: Scene, done: Mapping[int, int]) -> None:
        """*done*: window -> bytes that have arrived in it, for the claims of *agent*."""
        for window, arrived in done.items():
            claim = self.out.get(window)
            arrived = min(arrived, scene.length(window))
            if claim is not None and claim.agent == agent and arrived > claim.done:
                claim.done = arrived
                self._renew(claim, window, now, scene)
                self._delivers(agent, now, scene)

    def wait(self, agent: str, now: float, scene: Scene, waiting: Mapping[int, float], timeout: float) -> None:
        """*waiting*: window -> seconds since upstream was asked, without a byte; *timeout*: how long it may take."""
        patience = min(timeout, LONGEST_WAIT)
        for window, waited in waiting.items():
            claim = self.out.get(window)
            # The agent's clock says how long upstream was asked; ours, for how long it may say so.
            early = claim is not None and max(waited, now - claim.since) < patience
            if claim is not None and early and claim.agent == agent and not claim.done:
                self._renew(claim, window, now, scene)

    def give_back(self, agent: str, windows: Iterable[int]) -> None:
        """*agent* does not go on with these."""
        for window in list(windows):
            if (claim := self.out.get(window)) is not None and claim.agent == agent:
                del self.out[window]

    def fail(self, agent: str, now: float, failure: Failure, pause: float) -> None:
        """Upstream did not deliver to *agent*; *pause*: seconds for which upstream asked it to wait."""
        who = self.who.everybody[agent]
        who.failures += 1
        who.refused = failure is Failure.REFUSED or pause > PATIENCE
        bar = BARS[failure.value] * 2 ** min(who.failures - 1, 4)
        # A longer pause is kept by the agent itself, for all blobs of that upstream (mirror/upstream/guard.py).
        self.who.bar(agent, now + min(LONGEST_BAR, max(bar, min(pause, PATIENCE))))

    def revoke(self, agent: str, but: Collection[int] = ()) -> None:
        """Take all claims from *agent*, *but* those."""
        self.give_back(agent, [window for window in self.out if window not in but])

    def clear(self) -> set[str]:
        """Take all claims; returns from whom."""
        over = {claim.agent for claim in self.out.values()}
        self.out.clear()
        return over

    def busy(self, since: float) -> bool:
        """Whether somebody who brings a window in has said something after *since*."""
        return any(self.who.heard(claim.agent) > since for claim in self.out.values())

    def take_back(self, since: float) -> None:
        """Take the claims from those who said nothing after *since*: they went to another tracker."""
        for window in [w for w, claim in self.out.items() if self.who.heard(claim.agent) <= since]:
            del self.out[window]

    def expire(self, now: float, *, sole: bool) -> set[str]:
        """End the leases that ran out; returns whose. Those agents get none of the same kind for a lease.

        *sole*: they are claims on windows of a sole seed.
        """
        changed: set[str] = set()
        for window, claim in list(self.out.items()):
            if claim.deadline <= now:
                del self.out[window]
                changed.add(claim.agent)
                who = self.who.get(claim.agent)
                if who is not None and sole:
                    self.who.unserved(claim.agent, now + LEASE)
                elif who is not None:
                    who.failures += 1
                    self.who.bar(claim.agent, now + LEASE)
        return changed

    def overdue(self, now: float) -> bool:
        """Whether some lease ran out."""
        return any(claim.deadline <= now for claim in self.out.values())

    def deadlines(self) -> list[float]:
        """When leases end."""
        return [claim.deadline for claim in self.out.values()]

    def _renew(self, claim: Claim, window: int, now: float, scene: Scene) -> None:
        """Let the lease of *claim* go on, unless somebody else would have the window much sooner, or it is too old."""
        claim.heard = now
        oldest = claim.since + LONGEST_WAIT + scene.length(window) / SLOWEST
        if not scene.sole and self._lags(claim, now):
            claim.deadline = now
        else:
            claim.deadline = max(claim.deadline, min(now + LEASE, oldest))

    def _lags(self, claim: Claim, now: float) -> bool:
        """Whether *claim* is much slower than those of others, and somebody else would take it."""
        if now - claim.since < LEASE or not self.who.rival(claim.agent):
            return False
        paces = [pace for agent, pace in self._paces if agent != claim.agent]
        others = [other for other in self.out.values() if other.agent != claim.agent]
        paces += [other.pace(now) for other in others if now - other.since >= LEASE]
        return bool(paces) and claim.pace(now) * LAGGING < median(paces)

    def _delivers(self, agent: str, now: float, scene: Scene) -> None:
        """The sole seed sends *agent* one window after the other: while one comes, the next has not failed."""
        if scene.sole:
            self.delivered = now
            for claim in self.out.values():
                if claim.agent == agent:
                    claim.deadline = now + LEASE
