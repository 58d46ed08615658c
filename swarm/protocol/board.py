"""The record of one blob while it enters the cluster: size, hashes, generation, seal. No I/O, no clock.

The tracker keeps one Board per blob; an agent without a tracker keeps one for itself alone. Time is passed in as
seconds of any monotonic clock. Agents are named by an opaque key. Whoever acts on a board calls a method, then
`assign`; each returns an Outcome, which says what follows for others.

Any window that is not available, nor being brought in, is claimable: that covers the first copy, a claimant that died,
and a publisher that left before anybody had fetched its window. What is sealed by one member's word begins again when
another contradicts it; what two members vouch for is final.

Where one agent alone holds a sealed blob that others fetch whole, it is to them what upstream is on a cold start:
claims are on windows to fetch from it (`Board.sole`), so that it sends each byte about once. Without that it was asked
for everything by everybody, and sent 1.7 copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from swarm.blob.digest import Digest
from swarm.blob.errors import BadHashes
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import check_hashes
from swarm.protocol.assign import MAX_CLAIMS
from swarm.protocol.blame import Blame, Published
from swarm.protocol.leases import Leases
from swarm.protocol.participants import Failure, Participant
from swarm.protocol.standing import NOBODY_ELSE, Standing, Trust

__all__ = ["MAX_CLAIMS", "MAX_GENERATIONS", "Blame", "Board", "Failure", "Outcome", "Participant"]

MAX_GENERATIONS = 3
"""How often a board is begun again after a wrong digest before its agents are sent upstream alone."""

SOLE_AGAIN = 30.0
"""Seconds for which everybody fetches from a sole seed as they like, after one claim on its windows failed."""

MOST_ORIGINS = 8
"""Origins that are told apart: each is a bitmap in every answer."""

HASH = 20
"""Bytes of a piece hash."""


@dataclass(slots=True)
class Outcome:
    """What follows from something that was said, or from time that has passed."""

    accepted: bool = True
    """False: what was said does not count."""
    changed: set[str] = field(default_factory=set)
    """Agents whose claims changed."""
    placed: set[str] = field(default_factory=set)
    """Agents that take part since now or no longer, or hold the whole blob since now or no longer."""
    gained: dict[str, int] = field(default_factory=dict)
    """Agent -> windows that it holds since now (bit w: window w)."""
    blamed: list[Blame] = field(default_factory=list)
    """Who was proven wrong."""
    restarted: bool = False
    """The board has begun again."""

    def add(self, other: Outcome) -> None:
        """This and *other* follow."""
        self.accepted &= other.accepted
        self.changed |= other.changed
        self.placed |= other.placed
        for agent, windows in other.gained.items():
            self.gained[agent] = self.gained.get(agent, 0) | windows
        self.blamed += other.blamed
        self.restarted |= other.restarted


class Board(Standing):
    """See the module. *digest* names the blob; *size* is None until some agent has learned it."""

    def __init__(self, digest: Digest, *, max_claims: int = MAX_CLAIMS, trust: Trust = NOBODY_ELSE) -> None:
        super().__init__(digest, max_claims, trust)
        self._outcome = Outcome()
        self._brought_in = False
        """Sealed by who brought it in by claims, not by the word that a copy is there."""
        self._origins: dict[str, str] = {}
        """Those that windows are of, each kept once."""

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
        concurrent: int = 0,
        direct: Collection[int] = (),
    ) -> Outcome:
        """Take part, or say that one still does. *have* counts only for the current generation."""
        who = self._join(agent, now)
        who.want = max(0, want)
        who.turns = max(0, turns)
        who.concurrent = max(0, concurrent)
        who.only_preferred = only_preferred
        who.direct = tuple(direct)
        self.who.sort(agent)
        if self.sole and not turns:
            self._revoke(agent)
        who.prefer = tuple(prefer)
        bringing = want > 0 or turns > 0 or bool(have) or bool(self.leases.of(agent))
        if size is not None and not bringing:
            pass  # who brings nothing in has no word on what others are to make room for
        elif size is not None and self.size is None:
            self._learn(size)
        elif size is not None and size != self.size and (generation is None or generation == self.generation):
            self._contradicted(agent, {})
        if generation is None or generation == self.generation:
            self._have(agent, lambda: self.available.gain(agent, have))
            self.available.stall(agent, stalled)
        if who.stalled and not self.sealed:
            self._sole_at = now + SOLE_AGAIN  # who seals it first may be the one that gives nothing
        return self._done()

    def hold(self, agent: str, have: int, generation: int) -> Outcome:
        """*agent* holds these windows of *generation* too, if it takes part."""
        if generation == self.generation:
            self._have(agent, lambda: self.available.gain(agent, have))
        return self._done()

    def distrust(self, agent: str) -> Outcome:
        """What *agent* holds does not count any more."""
        self.available.holders.discard(agent)
        self._have(agent, lambda: self.available.lose(agent))
        self._outcome.placed.add(agent)
        return self._done()

    def hold_whole(self, agent: str) -> Outcome:
        """*agent* says that it holds the whole blob, sha256 checked."""
        self._hold_whole(agent)
        return self._done()

    def resume(self, agent: str, now: float, windows: Iterable[int]) -> Outcome:
        """*agent* is bringing *windows* in by claims of another tracker: let it, where nobody else does."""
        who = self.who.get(agent)
        if who is not None and who.want and self.size is not None and not self.sealed and not self.poisoned:
            self.tasks.resume(agent, now, self._scene(), self._zone(agent), windows)
        return self._done()

    def publish(
        self, agent: str, now: float, *, generation: int, size: int, window: int, hashes: bytes, origin: str = ""
    ) -> Outcome:
        """Hashes of a window that *agent* brought in and holds. Not accepted: told too late, or against what is known.

        *origin*: of which origin its bytes are, for readers of ranges. The first that is named counts.

        The same window with other hashes is a conflict: the board begins again. Where two members vouch for what is
        known, or one that brought it in by claims, and nobody asked *agent*, it is blamed. Raises BadHashes.
        """
        if generation != self.generation or self.poisoned:
            return self._refused()
        layout = geometry(size)
        if not 0 <= window < len(layout.windows):
            raise BadHashes(f"no window {window} in a blob of {size} bytes")
        check_hashes(hashes, layout.windows[window].pieces)
        known = self.windows.get(window)
        if (self.size is not None and size != self.size) or (known is not None and known.hashes != hashes):
            asked = window in self.leases.of(agent)
            if self.sealed and (self.evidence.confirmed or (self._brought_in and not asked)):
                reason = f"published wrong hashes for window {window} of {self.digest}"
                self._outcome.blamed.append(Blame(agent, reason))
            else:
                self._contradicted(agent, {window: Published(hashes, agent, 0)})
            return self._refused()
        if self.size is None:
            self._learn(size)
        who = self._join(agent, now)
        if known is None:
            self._publish(window, hashes, agent, origin)
        elif origin and not known.origin:
            del self.windows[window]  # it is news once more, and news come last
            self._publish(window, hashes, known.agent, origin)
        if known is None or self.sole or window in self.leases.of(agent):  # also what nobody could get of its holders
            who.brought += 1
        self.leases.finish(agent, window, now, self._scene(), first=known is None)
        self.available.arrive(window)
        self._have(agent, lambda: self.available.have(agent, who.have | 1 << window))
        who.failures = 0
        who.refused = False
        self.who.sort(agent)
        return self._done()

    def progress(
        self,
        agent: str,
        now: float,
        done: Mapping[int, int],
        *,
        waiting: Mapping[int, float] = MappingProxyType({}),
        timeout: float = 0.0,
    ) -> Outcome:
        """How far *agent* is with its claims. A lease goes on while bytes come, or while upstream has time to answer.

        *done*: window -> bytes that have arrived. *waiting*: window -> seconds since upstream was asked, without a byte
        so far. *timeout*: seconds that the agent gives upstream for the first byte.
        """
        self.leases.progress(agent, now, self._scene(), done)
        self.leases.wait(agent, now, self._scene(), waiting, timeout)
        if (who := self.who.get(agent)) is not None:
            who.seen = now
        return self._done()

    def release(
        self, agent: str, now: float, windows: Iterable[int], failure: Failure, retry_after: float | None = None
    ) -> Outcome:
        """Give claims back. After a failure the agent gets no claim on this board for a while."""
        self.leases.give_back(agent, windows)
        if self.who.get(agent) is not None and failure is not Failure.HANDED_OVER:
            if self.sole:
                self._sole_failed(now)
            else:
                self.leases.fail(agent, now, failure, retry_after or 0.0)
        return self._done()

    def revoke(self, agent: str, but: Collection[int] = ()) -> Outcome:
        """Take all claims from *agent*, *but* those."""
        self._revoke(agent, but)
        return self._done()

    def seal(self, agent: str, generation: int) -> Outcome:
        """*agent* saw the whole blob and its sha256 matched."""
        if generation != self.generation or not self.complete:
            return self._refused()
        self._brought_in |= not self.sealed
        self._seal(agent)
        return self._done()

    def seal_whole(self, agent: str, size: int, hashes: bytes) -> Outcome:
        """*agent* holds the whole blob, sha256 checked; *hashes* of all its pieces. Raises BadHashes."""
        layout = geometry(size)
        check_hashes(hashes, layout.pieces)
        told = {w.index: hashes[HASH * w.first_piece : HASH * (w.last_piece + 1)] for w in layout.windows}
        others = any(who.want > 0 and not who.refused for other, who in self.who.everybody.items() if other != agent)
        if others and (self.evidence.was_rejected(agent, told) or self.evidence.member(agent) in self.evidence.unfit):
            return self._refused()
        if self.size is not None and (
            self.size != size or any(told[w] != known.hashes for w, known in self.windows.items())
        ):
            if self.sealed or not self.evidence.may_restart(agent):
                return self._refused()
            self._begin_again(agent)
        if self.size is None:
            self._learn(size)
        for window, part in told.items():
            if window not in self.windows:
                self._publish(window, part, agent)
        self._seal(agent)
        return self._done()

    def reject(self, agent: str, generation: int) -> Outcome:
        """The sha256 of what the board describes is wrong: begin again, and remember who told what.

        Accepted if the board has begun again. Whoever rejected too often, or what two members vouch for, or what is not
        there to be checked, is sent upstream by itself instead.
        """
        if generation != self.generation:
            return self._refused()
        unknown = self.size is None and not self.windows
        if not self._trust.alone and (unknown or not self.evidence.may_restart(agent)):
            self._cast_out(agent)
            return self._refused()
        self._begin_again(agent)
        return self._done()

    def leave(self, agent: str) -> Outcome:
        """*agent* is no longer interested, or gone. Its claims are free at once."""
        self._leave(agent)
        return self._done()

    def drop(self, agent: str) -> Outcome:
        """*agent* no longer holds the whole blob."""
        self.available.holders.discard(agent)
        self._outcome.placed.add(agent)
        return self._done()

    # -- what follows from it -------------------------------------------------------------------

    def assign(self, now: float, near: Callable[[str], bool] | None = None, *, quiet: bool = False) -> Outcome:
        """End the leases that ran out, and hand out claims, unless *quiet*.

        *near*: whether an agent is near to upstream; those that are get claims before the others, except readers of
        ranges, who wait for windows of their own.
        """
        if self.sealed:
            self.available.doubt_holders()
        if self.sole and self.leases.overdue(now) and now - self.leases.delivered >= Leases.patience(self._scene()):
            self._sole_failed(now)
        else:
            self._outcome.changed |= self.leases.expire(now, sole=bool(self.sole))
        self.who.unbar(now)
        for agent in self.who.silent(now):
            self._leave(agent)
        self.who.listen(now)
        self._look_at_holders(now)
        if not self.poisoned and not quiet:
            zones = (
                {agent: self._zone(agent) for agent in self.who.everybody} if self._trust.zone_of is not None else None
            )
            self._outcome.changed |= self.tasks.assign(now, self._scene(), zones, near)
        return self._done()

    # -- inside ---------------------------------------------------------------------------------

    def _done(self) -> Outcome:
        """What has followed since this was called last."""
        outcome, self._outcome = self._outcome, Outcome()
        outcome.gained = self.available.take_gained()
        return outcome

    def _refused(self) -> Outcome:
        self._outcome.accepted = False
        return self._done()

    def _join(self, agent: str, now: float) -> Participant:
        if self.who.get(agent) is None:
            self._outcome.placed.add(agent)
        return self.who.join(agent, now)

    def _leave(self, agent: str) -> None:
        self._have(agent, lambda: self.available.lose(agent))
        self.available.stalled.discard(agent)
        self.who.leave(agent)
        self._revoke(agent)
        self._outcome.placed.add(agent)

    def _revoke(self, agent: str, but: Collection[int] = ()) -> None:
        before = self.leases.of(agent)
        self.leases.revoke(agent, but)
        if self.leases.of(agent) != before:
            self._outcome.changed.add(agent)

    def _have(self, agent: str, change: Callable[[], None]) -> None:
        """Let *agent* hold more or less: who waits for a window that only one held must hear that it is there."""
        if self.who.get(agent) is None:
            return
        watched = self.sole or self.orphaned
        before = self.elsewhere if watched else 0
        change()
        if watched and self.elsewhere != before:
            self.version += 1

    def _hold_whole(self, agent: str) -> None:
        self.available.unresponsive.discard(agent)
        if not self.holders or (self._trust.zone_of is not None and agent not in self.holders):
            self.version += 1  # whoever found nobody to fetch from must hear of it
        self.holders.add(agent)
        self._outcome.placed.add(agent)

    def _publish(self, window: int, hashes: bytes, agent: str, origin: str = "") -> None:
        self.version += 1
        if origin and origin not in self._origins:
            if len(self._origins) < MOST_ORIGINS:
                self._origins[origin] = origin
            else:
                origin = ""  # whoever reads ranges of it asks upstream
        self.windows[window] = Published(hashes, agent, self.version, self._origins.get(origin, ""))
        self.available.published |= 1 << window

    def _seal(self, agent: str) -> None:
        self.evidence.vouch(agent)
        if self.sealed:
            self._hold_whole(agent)
        else:
            self.holders.add(agent)
            self._outcome.placed.add(agent)
            self.sealed = True
            self.poisoned = False
            self._outcasts.clear()
            self.version += 1
            if self._trust.zone_of is None:
                self._outcome.changed |= self.leases.clear()
        if self.evidence.contested:
            self._outcome.blamed += self.evidence.verdict(self.windows)

    def _contradicted(self, agent: str, told: dict[int, Published]) -> None:
        """*agent* says something else than what is known: begin again, or let it go its own way."""
        if not self.evidence.may_restart(agent):
            self._cast_out(agent)
            return
        if told:
            self.evidence.begin_again("", told)
        self._begin_again("")

    def _begin_again(self, accuser: str) -> None:
        self.evidence.begin_again(accuser, dict(self.windows))
        self.generation += 1
        self.version += 1
        self.sealed = False
        self.size = self._layout = None
        self._brought_in = False
        self.poisoned = self.generation > MAX_GENERATIONS
        self.windows.clear()
        self._origins.clear()
        self._outcome.placed |= self.holders | self.who.everybody.keys()
        self._outcome.changed |= self.leases.clear()
        self._outcome.restarted = True
        self.tasks.restart()
        self.available.restart()
        self.who.restart()

    def _cast_out(self, agent: str) -> None:
        self._outcasts.add(self.evidence.member(agent))
        self._revoke(agent)
        self._outcome.changed.add(agent)

    def _sole_failed(self, now: float) -> None:
        """The sole seed did not deliver: everybody fetches from it as they like, or nobody believes it at all."""
        self._sole_at = now + SOLE_AGAIN
        if not self.evidence.confirmed and not self._proven(self.sole):
            self.evidence.unfit.add(self.evidence.member(self.sole))
            self._begin_again("")

    def _look_at_holders(self, now: float) -> None:
        """Bring `sole` and `orphaned` up to date: claims end where they mean another thing from now on."""
        delivering = self.holders - self.available.unresponsive
        orphaned = self.sealed and self._trust.zone_of is None and not delivering
        if orphaned != self.orphaned:
            self.orphaned = orphaned
            self.version += 1
        sole = ""
        single = self.sealed and len(self.holders) == 1 and bool(delivering) and self._trust.zone_of is None
        if single and not self.available.stalled and now >= self._sole_at:
            (holder,) = self.holders
            # From the first who seeks it on: to change over when the second comes costs it seconds (it would leave the
            # holder, and libtorrent waits before it dials the same peer again). Where both have a lane it costs
            # nothing, and a claim on each window costs the first one more than the window does.
            seekers = [agent for agent in islice(self.who.turning, 3) if agent != holder]
            first = len(seekers) == 1 and self._trust.direct is not None and self._trust.direct(seekers[0], holder)
            sole = holder if seekers and not first and self.window_count > 1 else ""
        if sole != self.sole:
            self.sole = sole
            self.version += 1
            self._outcome.changed |= self.leases.clear()
