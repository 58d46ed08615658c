"""The soft state of the cluster: joins its owners (sessions, copies, court, announcers, answers, swarms, tags).

Each method is one thing that was said or that happened. It changes an owner, then settles what follows: claims are
assigned, whoever has news is woken, the next deadline is set. Nothing here waits, and nothing speaks HTTP.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from random import Random

from swarm.blob.digest import Digest, parse
from swarm.protocol import wire
from swarm.protocol.board import Failure, Outcome
from swarm.protocol.standing import Trust as BoardTrust
from tracker.errors import Malformed, Outdated, Unready
from tracker.members.gate import Gate, Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents
from tracker.state.alarm import Alarm
from tracker.state.announcers import Announcers
from tracker.state.answers import Answers
from tracker.state.channels import Channels
from tracker.state.copies import Copies, sizes
from tracker.state.court import Court
from tracker.state.history import History
from tracker.state.images import Images
from tracker.state.keeping import Keeping, Labels
from tracker.state.sessions import Note, Sessions
from tracker.state.swarms import Swarm, Swarms
from tracker.state.tagging import Tagging
from tracker.state.tags import Meanings
from tracker.state.trust import Backoffs, Budgets, Trust
from tracker.state.warming import Warming

log = logging.getLogger("shoal.tracker")

BUSY = 2.0
"""Seconds within which whoever brings a window in says something: progress is told once a second."""

MOST_UNASKED = 1024 * 1024
"""Bytes of hashes that an agent may tell of a whole copy that it was not asked about: of 50 GiB."""


class Cluster:
    """Everything that this tracker knows. Use from its event loop only.

    Above both bounds: one method for each verb of agents, and the one place that settles what a verb changed. What it
    settles lives in owners.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        metrics: Metrics,
        chance: Random | None = None,
        note: Note | None = None,
        labels: Labels = lambda _ip: None,
    ) -> None:
        """*note*: told what an operator wants to know about the agent at an address. *labels*: of nodes."""
        self.settings = settings
        self.metrics = metrics
        self._note: Note = note or (lambda _ip, _reason, _message: None)
        self.incarnation = secrets.token_hex(6)
        self.alarm = Alarm(metrics.lag.observe)
        self.started = self.alarm.now()
        self.epoch = time.time() - self.started
        """Seconds since 1970 at zero of the loop's clock: people read dates."""
        chance, now = chance or Random(secrets.randbits(64)), self.alarm.now
        self.history = History()
        self.agents = Agents()
        self.trust = Trust(settings.quarantine, self.agents.member_of)
        self.swarms = Swarms(
            self.incarnation,
            settings.max_boards,
            BoardTrust(
                zone_of=self.agents.zone_of if settings.copy_per_zone else None,
                member_of=self.agents.member_of,
                may_claim=self._may_claim,
                doubted=lambda: self.trust.anybody,
                proven=self.trust.proven,
                direct=self.agents.direct,
            ),
        )
        self.names = Meanings(settings.names_keep, settings.max_names)
        self.images = Images()
        self.backoffs = Backoffs()
        self.budgets = Budgets()
        self.sessions = Sessions(settings, metrics, self.alarm, self.agents, self._note, self)
        self.rivals, self.refusals = self.sessions.rivals, self.sessions.refusals
        self.copies = Copies(settings, metrics, self.alarm, self.agents, self.swarms, self.trust, self)
        self.court = Court(
            settings, metrics, self.alarm, self.agents, self.swarms, self.trust, self.copies, self, self._note
        )
        self.warming = Warming(self.agents, self.say, now)
        self.keeping = Keeping(self.agents, self.alarm, self.say, self._may_claim, labels, settings.keep_patience)
        self.tagging = Tagging(self.names, self.agents, self.trust, self.court, self.say, now, chance)
        self.channels = Channels(
            now,
            self.epoch,
            self.copies,
            self.trust,
            self.backoffs,
            self.history,
            self.warming,
            self.keeping,
            self._note,
            self.agents,
        )
        self.announcers = Announcers(settings, now, chance, self.agents, self.swarms, self)
        self.answers = Answers(settings, now, chance, self.agents, self.swarms, self.court.apart, self.court.quarrels)
        self.stopping = False

    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self.alarm.now()

    # -- agents -----------------------------------------------------------------------------------

    def hello(self, me: wire.Me, visitor: Visitor) -> Agent:
        """The agent that speaks. Raises Malformed, Outdated, Unready."""
        return self.sessions.hello(me, visitor)

    def review(self, gate: Gate, changed: Iterable[str] | None = None) -> None:
        """Membership changed for these addresses; None: for any."""
        self.sessions.review(gate, changed)
        self.announcers.review(gate, changed)

    def say(self, agent: Agent) -> None:
        """There is something to tell *agent*."""
        self.sessions.say(agent)

    def left(self, agent: Agent) -> None:
        """*agent* is gone."""
        self.warming.left(agent)
        self.keeping.left(agent)
        self.images.left(agent.key)
        for digest in agent.boards | agent.held:
            swarm = self.swarms.get(digest)
            if swarm is not None:
                swarm.joined.discard(agent.key)
                self.copies.gone(swarm, agent)
                self._part(swarm, agent, swarm.board.drop(agent.key))
        self.tagging.forget(agent)

    def moved(self, agent: Agent) -> None:
        """*agent* is in another zone now."""
        for digest in agent.boards | agent.held:
            if (swarm := self.swarms.get(digest)) is not None:
                self.place(swarm, agent.key)

    def holds(self, agent: Agent, poll: wire.AgentPoll) -> None:
        """What *agent* holds has changed."""
        added = {parse(digest): size for digest, size in sizes(poll).items()}
        gone = [parse(text) for text in poll.remove]
        if poll.full:
            if not agent.synced or not poll.wait:  # its last answer may have been lost: say everything again
                agent.quarantine_told = 0.0
                agent.backoff_seen = 0
                agent.suspects = dict.fromkeys(agent.withdrawn)
            if not agent.synced:
                agent.synced = True
                self.keeping.came()
            gone = [Digest(digest) for digest in agent.held if digest not in added]
        for digest in gone:
            self.copies.lost(agent, digest)
        for digest, size in added.items():
            if digest not in agent.held and (swarm := self.swarms.get(digest)) is not None:
                swarm.got_whole(agent.key)
            # A full list says what is there, not that a suspect was checked again.
            self.copies.held(agent, digest, size, checked=not poll.full)
        if poll.kept is not None:
            self.keeping.told(agent, poll.kept)
        now = self.now()
        for name in poll.names:
            parse(name.digest)
            if not self.trust.until(agent.key, now):
                self.names.remember(name.name, agent.member, name.digest, name.media_type, name.size, name.age, now)
        if poll.images and not self.trust.until(agent.key, now):
            self.images.told(poll.images, agent.key, agent.member, now)
        if poll.stats:
            self.channels.count(agent, poll.stats, now)
        self._trim()

    # -- boards -----------------------------------------------------------------------------------

    def swarm(self, digest: str) -> Swarm:
        """The swarm of *digest*, made if need be. Raises Unready when there are too many."""
        name = parse(digest)
        known = self.swarms.get(name) is not None
        swarm = self.swarms.use(name, self.now())
        if not known:
            if self.swarms.skipped:
                self.copies.find(swarm)
            self._trim()
            if len(self.swarms) > self.settings.max_boards:
                self.swarms.drop(swarm)
                raise Unready("too many boards")
        return swarm

    def join(self, agent: Agent, poll: wire.BoardPoll) -> Swarm:
        """*agent* takes part in a board, or still does."""
        swarm = self.swarm(poll.digest)
        board = swarm.board
        now = self.now()
        same = poll.incarnation == swarm.incarnation
        # An agent that comes from another tracker names no incarnation, but brings windows and claims with it.
        moved = not same and bool(poll.incarnation or poll.claims or poll.have)
        outcome = Outcome()
        # A size that no blob has is nobody's word: it is as if nothing had been said.
        size = poll.size if poll.size is not None and 0 <= poll.size <= wire.MAX_SIZE else None
        if moved:
            self._gather(swarm, now)
            outcome.add(board.revoke(agent.key, but=poll.claims))
        trusted = self.copies.trusted(swarm, agent.key)
        outcome.add(
            board.join(
                agent.key,
                now,
                size=size,
                want=min(poll.want, 64),
                prefer=poll.prefer[:1024],
                only_preferred=poll.only_preferred,
                have=wire.from_bitmap(poll.have) if trusted and (same or not poll.incarnation) else 0,
                generation=poll.generation if same else None,
                stalled=poll.stalled[:1024],
                turns=min(poll.turns, 64) if trusted else 0,
                concurrent=min(poll.concurrent, 64),
                direct=poll.direct[:64] if trusted and same and poll.generation == board.generation else (),
            )
        )
        if moved and trusted and size is not None:
            outcome.add(board.resume(agent.key, now, poll.claims))
        agent.boards.add(swarm.digest)
        if swarm.digest not in agent.held:
            swarm.joined.add(agent.key)
        if not same and poll.want:
            swarm.wishes[agent.key] = now
        if board.holders and not board.sealed:
            self.copies.ask(swarm)
        self.settle(swarm, outcome)
        return swarm

    def publish(self, agent: Agent, said: wire.Publish) -> Swarm:
        """Hashes of a window. Raises Outdated, BadHashes."""
        swarm = self._current(said.digest, said.incarnation)
        now, board = self.now(), swarm.board
        if not self.copies.trusted(swarm, agent.key):
            raise Outdated("in quarantine: what this agent publishes does not count")
        known = said.window in board.windows
        claim = board.claims.get(said.window)
        done = claim.done if claim is not None else 0
        outcome = board.publish(
            agent.key, now, generation=said.generation, size=said.size, window=said.window, hashes=said.hashes,
            origin=said.origin,
        )  # fmt: skip
        if outcome.accepted and not known:
            swarm.count(max(0, board.window_length(said.window) - done), now)
            swarm.published_by[agent.key] = swarm.published_by.get(agent.key, 0) + 1
            self.metrics.windows.inc()
        agent.boards.add(swarm.digest)
        self.settle(swarm, outcome)
        return swarm

    def progress(self, agent: Agent, said: wire.Progress) -> Swarm:
        """How far the claims are. Raises Outdated."""
        swarm = self._current(said.digest, said.incarnation)
        now = self.now()
        board = swarm.board
        before = board.leases.arrived(agent.key)
        outcome = board.progress(agent.key, now, said.done, waiting=said.waiting, timeout=said.upstream_timeout)
        swarm.count(max(0, board.leases.arrived(agent.key) - before), now)
        if said.have and self.copies.trusted(swarm, agent.key):
            outcome.add(board.hold(agent.key, wire.from_bitmap(said.have), said.generation))
        self.settle(swarm, outcome)
        return swarm

    def release(self, agent: Agent, said: wire.Release) -> Swarm:
        """Claims given back. Raises Outdated, Malformed."""
        swarm = self._current(said.digest, said.incarnation)
        try:
            failure = Failure(said.failure)
        except ValueError:
            raise Malformed(f"no such failure: {said.failure[:40]!r}") from None
        outcome = swarm.board.release(agent.key, self.now(), said.windows, failure, said.retry_after)
        if failure is not Failure.HANDED_OVER:
            self.metrics.releases.labels(failure.value).inc()
        self.settle(swarm, outcome)
        return swarm

    def seal(self, agent: Agent, said: wire.Seal) -> None:
        """The sha256 of the whole blob matched. Raises Outdated."""
        swarm = self._current(said.digest, said.incarnation)
        if self.copies.trusted(swarm, agent.key):
            self._vouched(swarm, agent, swarm.board.seal(agent.key, said.generation))

    def whole(self, agent: Agent, said: wire.Whole) -> None:
        """All hashes of a blob that *agent* holds. Raises BadHashes."""
        if len(said.hashes) > MOST_UNASKED and parse(said.digest) not in agent.asked:
            fields = {"agent": agent.key, "digest": said.digest[:80], "bytes": len(said.hashes)}
            log.warning("board.unasked", extra={"fields": fields})
            return
        swarm = self.swarm(said.digest)
        self.copies.answered(swarm, agent)
        if said.size < 0:
            raise Malformed("a blob cannot have a negative size")
        if self.copies.trusted(swarm, agent.key):
            self._vouched(swarm, agent, swarm.board.seal_whole(agent.key, said.size, said.hashes))
            for digest in self.budgets.spend(agent.member, swarm.digest, len(said.hashes)):
                self._let_go(digest)
        self.settle(swarm)
        self.copies.offer(agent)

    def reject(self, agent: Agent, said: wire.Reject) -> None:
        """The sha256 of what the board describes is wrong. Raises Outdated."""
        swarm = self._current(said.digest, said.incarnation)
        if not self.copies.trusted(swarm, agent.key):
            return
        holders = list(swarm.board.holders)
        outcome = swarm.board.reject(agent.key, said.generation)
        if outcome.restarted:
            self.metrics.rejections.inc()
            fields = {
                "digest": swarm.digest,
                "agent": agent.key,
                "generation": swarm.board.generation,
                "reason": said.reason[:200],
            }
            log.warning("board.rejected", extra={"fields": fields})
            for key in holders:
                if (holder := self.agents.get(key)) is not None:
                    self.copies.suspect(holder, swarm, f"{agent.key} rejected the blob", withdraw=True)
        self.settle(swarm, outcome)

    def leave(self, agent: Agent, digest: str) -> None:
        """*agent* is no longer interested."""
        swarm = self.swarms.get(parse(digest))
        if swarm is not None:
            agent.boards.discard(swarm.digest)
            self._part(swarm, agent, Outcome())

    def settle(self, swarm: Swarm, outcome: Outcome | None = None) -> None:
        """Let follow what follows from *outcome*: who may be handed out, claims, waking, sealing, the next deadline."""
        board = swarm.board
        now = self.now()
        done = outcome or Outcome()
        near = self._near if self.settings.near_zone else None
        done.add(board.assign(now, near, quiet=now < swarm.quiet_until and not board.sealed))
        for key in done.placed:
            self.place(swarm, key)
        for key, gained in done.gained.items():
            for other in swarm.offers.gained(key, gained):
                swarm.wake(other)
        for other in swarm.offers.due(now):
            swarm.wake(other)
        for key in done.changed:
            swarm.wake(key)
            if key in swarm.wishes and board.claims_of(key):
                self.metrics.claim_waits.observe(now - swarm.wishes.pop(key))
        self.swarms.follow_torrent(swarm)
        news = (board.version, board.hope())
        if news != swarm.news:
            swarm.news = news
            swarm.spread(now)
        self.watch(swarm)
        if done.blamed:
            self.court.blame(done.blamed)

    def place(self, swarm: Swarm, key: str) -> None:
        """Make the pool of *swarm* say of *key* what is so."""
        board = swarm.board
        agent = self.agents.get(key)
        if agent is not None and self.copies.trusted(swarm, key):
            holder = key in board.holders
            if holder or key in board.participants:
                swarm.pool.put(key, zone=agent.zone, holder=holder)
                return
        elif agent is None and (announcer := swarm.announcers.get(key)) is not None:
            swarm.pool.put(key, zone=announcer.zone, holder=announcer.complete)
            return
        swarm.pool.remove(key)
        if key not in board.participants:
            swarm.forget(key)
            if agent is not None:
                agent.boards.discard(swarm.digest)

    def watch(self, swarm: Swarm) -> None:
        """Set the alarm for the next deadline of *swarm*."""
        now = self.now()
        times = [swarm.board.next_deadline(), swarm.offers.wake_at]
        if swarm.quiet_until > now:
            times.append(swarm.quiet_until)
        if swarm.announcers:
            times.append(next(iter(swarm.announcers.values())).until)
        if swarm.idle:
            times.append(swarm.used + self.settings.idle_board)
        due = min((at for at in times if at is not None), default=None)
        self.alarm.set(("board", swarm.digest), due, lambda: self._due(swarm))

    # -- what is told to all ---------------------------------------------------------

    def backoff(self, agent: Agent, host: str, seconds: float) -> None:
        """An upstream asked *agent* to wait: tell all, for as long as its word is worth."""
        now = self.now()
        if not self.trust.until(agent.key, now) and self.backoffs.tell(host[:255], agent.member, seconds, now):
            fields = {"upstream": host[:255], "seconds": round(seconds, 1), "agent": agent.key}
            log.warning("upstream.backoff", extra={"fields": fields})
            for agent in self.agents.all():
                self.say(agent)

    def stop(self) -> None:
        """Answer everybody who waits; agents go to another tracker."""
        self.stopping = True
        self.alarm.close()
        for agent in self.agents.all():
            self.say(agent)
        for swarm in self.swarms:
            swarm.close()
        self.tagging.stop()

    # -- inside -----------------------------------------------------------------------------------

    def _current(self, digest: str, incarnation: str) -> Swarm:
        swarm = self.swarms.get(parse(digest))
        if swarm is None or swarm.incarnation != incarnation:
            raise Outdated("another incarnation of this board: join again")
        swarm.used = self.now()
        return swarm

    def _may_claim(self, key: str) -> bool:
        return not self.trust.until(key, self.now())

    def _near(self, key: str) -> bool:
        return self.agents.zone_of(key) in self.settings.near_zone

    def _gather(self, swarm: Swarm, now: float) -> None:
        """Agents come from another tracker, one after another: no new claims until they have said what they hold.

        Where somebody brings windows in, the others are already: there is nothing to wait for.
        """
        gathering = now < swarm.gathering_until
        if not gathering and swarm.board.leases.busy(now - BUSY):
            return
        if not gathering:
            swarm.gathering_since = now
            swarm.board.leases.take_back(now - BUSY)
        longest = swarm.gathering_since + self.settings.gather
        swarm.gathering_until = max(self.started + self.settings.gather, min(longest, now + self.settings.recovery))
        swarm.quiet_until = max(swarm.quiet_until, swarm.gathering_until)

    def _vouched(self, swarm: Swarm, agent: Agent, outcome: Outcome) -> None:
        """*agent* says that the sha256 matched."""
        board = swarm.board
        if board.sealed and agent.key in board.holders:
            agent.held.add(swarm.digest)
            swarm.got_whole(agent.key)
        if outcome.accepted and board.evidence.newly_confirmed():
            self.trust.deliver({published.agent for published in board.windows.values()})
        self.settle(swarm, outcome)

    def _part(self, swarm: Swarm, agent: Agent, outcome: Outcome) -> None:
        outcome.add(swarm.board.leave(agent.key))
        swarm.wake(agent.key)
        self.settle(swarm, outcome)

    def _let_go(self, digest: str) -> None:
        """One member told more hashes than it may: those of *digest* go, unless others use them."""
        swarm = self.swarms.get(digest)
        if swarm is not None and not swarm.board.participants and not swarm.board.evidence.confirmed:
            log.warning("board.over-budget", extra={"fields": {"digest": digest}})
            self.swarms.skipped += 1
            self._drop(swarm)

    def _due(self, swarm: Swarm) -> None:
        if self.swarms.get(swarm.digest) is not swarm:
            return
        now = self.now()
        self.announcers.expire(swarm, now)
        if swarm.idle and now - swarm.used >= self.settings.idle_board:
            self._drop(swarm)
            return
        self.settle(swarm)

    def _trim(self) -> None:
        for swarm in self.swarms.excess():
            self._drop(swarm)

    def _drop(self, swarm: Swarm) -> None:
        self.alarm.set(("board", swarm.digest), None, _nothing)
        self.alarm.set(("whole", swarm.digest), None, _nothing)
        self.images.keep(swarm.digest, swarm.arrived, swarm.received)
        self.swarms.drop(swarm)


def _nothing() -> None:
    """For deadlines that are taken back."""
