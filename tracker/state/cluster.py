"""The soft state of the cluster and the rules that join its parts: agents, swarms, names, trust.

Each method is one thing that was said or that happened. It changes the state, then settles what
follows: claims are assigned, whoever has news is woken, the next deadline is set. Nothing here
waits, and nothing speaks HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from random import Random

from swarm.blob.digest import Digest, parse
from swarm.protocol import wire
from swarm.protocol.board import Blame, Failure
from tracker.errors import Malformed, Outdated, Unknown, Unready
from tracker.members.discovery import Reason
from tracker.members.gate import Gate, Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents, key_of
from tracker.state.alarm import Alarm
from tracker.state.announce import Announce, Counts, Told
from tracker.state.history import History, growth
from tracker.state.offers import NAMED, Asking
from tracker.state.refusals import Refusals
from tracker.state.rivals import PROOF, Rivals, explain
from tracker.state.swarms import Announcer, Raw, Swarm, Swarms
from tracker.state.tags import Names
from tracker.state.trust import Backoffs, Trust

log = logging.getLogger("shoal.tracker")

Note = Callable[[str, Reason, str], None]
"""Address, reason, message."""

SILENCE = 60.0
"""Seconds without any word after which an agent without an open channel is forgotten."""

BUSY = 2.0
"""Seconds within which whoever brings a window in says something: progress is told once a second."""

WHOLE_PATIENCE = 3.0
"""Seconds for an agent to answer with the hashes of its copy..."""

WHOLE_RATE = 200e6
"""... plus the time to read the copy at this many bytes per second, before claims are given out instead."""


class Cluster:
    """Everything that this tracker knows. Use from its event loop only."""

    def __init__(
        self, settings: TrackerSettings, metrics: Metrics, chance: Random | None = None, note: Note | None = None
    ) -> None:
        """*note*: told what an operator wants to know about the agent at an address."""
        self.settings = settings
        self.metrics = metrics
        self._note: Note = note or (lambda _ip, _reason, _message: None)
        self.chance = chance or Random(secrets.randbits(64))
        self.incarnation = secrets.token_hex(6)
        self.alarm = Alarm(metrics.lag.observe)
        self.started = self.alarm.now()
        self.epoch = time.time() - self.started
        """Seconds since 1970 at zero of the loop's clock: people read dates."""
        self.history = History()
        self.agents = Agents()
        zone_of = self._zone_of if settings.copy_per_zone else None
        self.swarms = Swarms(self.incarnation, settings.max_boards, zone_of)
        self.names = Names(settings.names_keep, settings.max_names)
        self.trust = Trust(settings.quarantine)
        self.backoffs = Backoffs()
        self.rivals = Rivals()
        self.refusals = Refusals()
        self.stopping = False
        self._name_waiters: dict[str, list[asyncio.Future[None]]] = {}

    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self.alarm.now()

    # -- agents -----------------------------------------------------------------------------------

    def hello(self, me: wire.Me, visitor: Visitor) -> Agent:
        """The agent that speaks; a new session at its address replaces the one before. Raises Outdated, Unready."""
        now = self.now()
        key = key_of(visitor.ip, me.port)
        agent = self.agents.get(key)
        if agent is None or agent.session != me.session:
            if not 0 < me.port < 65536 or not me.session or len(me.session) > 64:
                raise Malformed("port must be 1 to 65535, session 1 to 64 characters")
            if self.agents.is_retired(key, me.session):
                raise Outdated(self._replaced(key, agent, me, now))
            if agent is not None:
                self.forget(agent, "replaced", replaced=True)
            if len(self.agents) >= self.settings.max_agents:
                raise Unready("too many agents")
            agent = self.agents.add(me, visitor.ip, visitor.zone, now)
            self.metrics.agents.set(len(self.agents))
            self.refusals.forget(agent.ip)
            log.info("agent.joined", extra={"fields": {"agent": key, "name": agent.name, "zone": agent.zone}})
            self._note(agent.ip, Reason.JOINED, f"Joined as {agent.name}")
            self._watch_silence(agent, now + SILENCE)
        if me.lane != agent.peer.lane:
            if not 0 <= me.lane < 65536:
                raise Malformed("lane must be a port, or 0")
            agent.peer = wire.Peer(ip=agent.ip, port=agent.port, lane=me.lane)
        agent.seen = now
        return agent

    def _replaced(self, key: str, agent: Agent | None, me: wire.Me, now: float) -> str:
        """Why a session that was replaced is refused, as one line."""
        if agent is None:
            return "this session was replaced"
        rival = self.rivals.note(key, agent.name, me.node[:253], now)
        if rival.times == PROOF:
            log.error("agent.rivals", extra={"fields": {"agent": key, "taken": rival.taken, "refused": rival.refused}})
        return explain(rival) if rival.times >= PROOF else "this session was replaced"

    def forget(self, agent: Agent, why: str, *, replaced: bool = False) -> None:
        """*agent* is gone: its claims are free at once, and it is handed to nobody."""
        if self.agents.get(agent.key) is not agent:
            return
        self.agents.remove(agent, replaced=replaced)
        self.alarm.set(("agent", agent.key), None, _nothing)
        self.metrics.agents.set(len(self.agents))
        self.metrics.agents_lost.labels(why).inc()
        log.info("agent.left", extra={"fields": {"agent": agent.key, "name": agent.name, "why": why}})
        for digest in agent.boards | agent.held:
            swarm = self.swarms.get(digest)
            if swarm is not None:
                swarm.tried.discard(agent.key)
                swarm.board.drop(agent.key)
                if swarm.asked == agent.key:
                    self._impatient(swarm)
                self._part(swarm, agent)
        for name in self.names.forget(agent.key):
            self.wake_name(name)
        if agent.news is not None and not agent.news.done():
            agent.news.set_result(None)

    def review(self, gate: Gate) -> None:
        """Membership changed: whoever is no member any more leaves all swarms at once; zones may be new."""
        for agent in self.agents.all():
            visitor = gate.visitor(agent.ip)
            if not visitor.member:
                self.forget(agent, "no-member")  # its process may live on, and be a member again
            elif visitor.zone != agent.zone:
                agent.zone = visitor.zone
                for digest in agent.boards | agent.held:
                    if (swarm := self.swarms.get(digest)) is not None:
                        self._place(swarm, agent.key)
        for swarm in self.swarms:
            for key, announcer in list(swarm.announcers.items()):
                if not gate.visitor(str(ip_address(announcer.told.packed))).member:
                    del swarm.announcers[key]
                    self._place(swarm, key)

    def channel_opened(self, agent: Agent) -> asyncio.Future[None]:
        """*agent* polls its channel; the future is done when there is something to say. An older poll is answered."""
        self._say(agent)
        agent.news = asyncio.get_running_loop().create_future()
        agent.channels += 1
        self._watch_silence(agent, None)
        return agent.news

    def channel_closed(self, agent: Agent, news: asyncio.Future[None], *, broken: bool) -> None:
        """A poll ended: answered, or *broken* because the connection was closed from the other end."""
        agent.channels -= 1
        if agent.news is news:
            agent.news = None
        if agent.channels == 0:
            grace = self.settings.grace if broken else self.settings.away
            self._watch_silence(agent, self.now() + grace)

    def holds(self, agent: Agent, poll: wire.AgentPoll) -> None:
        """What *agent* holds has changed."""
        digests = {parse(held.digest): held.size for held in poll.add}
        gone = [parse(text) for text in poll.remove]
        if any(size < 0 for size in digests.values()):
            raise Malformed("a blob cannot have a negative size")
        if poll.full:
            if not agent.synced or not poll.wait:  # its last answer may have been lost: say everything again
                agent.quarantine_told = 0.0
                agent.backoff_seen = 0
                agent.suspects = dict.fromkeys(agent.withdrawn)
            agent.synced = True
            gone = [Digest(digest) for digest in agent.held if digest not in digests]
        now = self.now()
        for digest in gone:
            agent.held.discard(digest)
            agent.withdrawn.discard(digest)
            agent.suspects.pop(digest, None)
            agent.needs.pop(digest, None)
            agent.asked.discard(digest)
            if (swarm := self.swarms.get(digest)) is not None:
                swarm.board.drop(agent.key)
                self._place(swarm, agent.key)
                self.settle(swarm)
        for digest, size in digests.items():
            agent.held.add(digest)
            swarm = self.swarms.use(digest, now)
            if not poll.full:  # a full list says what is there, not that a suspect was checked again
                agent.withdrawn.discard(digest)
                swarm.tried.discard(agent.key)
            self._holds_whole(swarm, agent, size)
        for name in poll.names:
            parse(name.digest)
            self.names.remember(name.name, name.digest, name.media_type, name.size, name.age, now)
        if poll.stats:
            served = poll.stats.get("peer_bytes_out", 0.0)
            if served > agent.stats.get("peer_bytes_out", 0.0):
                self._note(agent.ip, Reason.ACTIVE, f"Served {served / 2**20:.0f} MiB to other agents since its start")
            stats = dict(list(poll.stats.items())[:64])
            self.history.add(growth(agent.stats, stats), self.epoch + now)
            agent.stats = stats
        self._trim()

    def news_for(self, agent: Agent) -> wire.AgentAnswer | None:
        """What *agent* is to be told now; None: nothing."""
        if not agent.synced:
            return wire.AgentAnswer(resend=True, you=agent.key)
        now = self.now()
        need = self._needs(agent)
        suspect, agent.suspects = tuple(agent.suspects), {}
        backoff = tuple(
            wire.Backoff(host=host, seconds=round(left, 3))
            for host, left in self.backoffs.since(agent.backoff_seen, now)
        )
        agent.backoff_seen = self.backoffs.serial
        until = self.trust.until(agent.key, now)
        changed, agent.quarantine_told = agent.quarantine_told != until, until
        if not (need or suspect or backoff or changed):
            return None
        return self._answer(agent, need, suspect, backoff, until - now if until else 0.0)

    def nothing_for(self, agent: Agent) -> wire.AgentAnswer:
        """The answer of a poll that waited in vain."""
        until = self.trust.until(agent.key, self.now())
        return self._answer(agent, (), (), (), until - self.now() if until else 0.0)

    # -- boards -----------------------------------------------------------------------------------

    def swarm(self, digest: str) -> Swarm:
        """The swarm of *digest*, made if need be. Raises Unready when there are too many."""
        name = parse(digest)
        known = self.swarms.get(name) is not None
        swarm = self.swarms.use(name, self.now())
        if not known:
            if self.swarms.dropped:
                for agent in self.agents.all():
                    if digest in agent.held and digest not in agent.withdrawn:
                        self._holds_whole(swarm, agent, None)
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
        if moved:
            self._gather(swarm, now)
            board.revoke(agent.key, but=poll.claims)
        trusted = self._trusted(swarm, agent.key, now)
        board.join(
            agent.key,
            now,
            size=poll.size,
            want=min(poll.want, 64) if trusted else 0,
            prefer=poll.prefer[:1024],
            only_preferred=poll.only_preferred,
            have=wire.from_bitmap(poll.have) if trusted and (same or not poll.incarnation) else 0,
            generation=poll.generation if same else None,
            stalled=poll.stalled[:1024],
            turns=min(poll.turns, 64) if trusted else 0,
            beside=min(poll.beside, 64),
        )
        if moved and trusted and poll.size is not None:
            board.resume(agent.key, now, poll.claims)
        agent.boards.add(swarm.digest)
        self._place(swarm, agent.key)
        if not same and poll.want:
            swarm.wishes[agent.key] = now
        if board.holders and not board.sealed:
            self._ask_whole(swarm)
        self.settle(swarm)
        return swarm

    def due(self, swarm: Swarm, agent: Agent, poll: wire.BoardPoll) -> bool:
        """Whether *agent* is to be answered at once."""
        board = swarm.board
        if (
            poll.incarnation != swarm.incarnation
            or poll.generation != board.generation
            or board.claims_of(agent.key) != tuple(sorted(poll.claims))
        ):
            return True
        news = poll.since != board.version or swarm.hope_told.get(agent.key) != board.hope()
        if news and swarm.rolling:
            swarm.spread(self.now())  # the wave under way will not come by here
            return False
        return news

    def view(self, swarm: Swarm, agent: Agent, since: int, generation: int | None, *, news: bool = True) -> Raw:
        """What *agent* is told of a board. *generation* None: it knows nothing of this incarnation.

        Without *news*: only what is so now, and nothing of what was published.
        """
        board = swarm.board
        if generation != board.generation:
            since = 0
        hope = board.hope()
        if agent.key in board.participants:
            swarm.hope_told[agent.key] = hope
        # Sealed means: fetch it whole from peers. Where a zone still brings its own copy in, there are none.
        entering = self.settings.copy_per_zone and not board.has(agent.zone) and board.can_bring(agent.zone)
        swarm.serial += 1
        lone = self.agents.get(board.lone) if board.has_turn(agent.key) else None
        spread = board.spread_for(agent.key)
        return Raw(
            incarnation=swarm.incarnation,
            version=board.version if news else 0,
            generation=board.generation,
            serial=swarm.serial,
            size=board.size,
            sealed=board.sealed_for(agent.key) and not entering,
            published=self.swarms.published_since(swarm, since if news else board.version),
            claims=board.claims_of(agent.key),
            hope=hope,
            poisoned=board.poisoned,
            copies=len(board.holders),
            holders=self._holders(swarm, agent) if news else {},
            peers=self.peers(swarm, agent, but=lone.key if lone is not None else ""),
            lone=lone.peer if lone is not None else None,
            spread=None if spread is None else wire.bitmap(spread),
        )

    def peers(self, swarm: Swarm, agent: Agent, but: str = "") -> tuple[wire.Peer, ...]:
        """Whom *agent* may fetch from, without *but*."""
        found: list[wire.Peer] = []
        known = self.agents.by_key.get
        walled = self.settings.copy_per_zone and (swarm.board.has(agent.zone) or swarm.board.can_bring(agent.zone))
        for key in swarm.pool.pick(agent.key, agent.zone, self.settings.peers, self.chance, walled=walled):
            other = known(key)
            if other is not None:
                if key != but:
                    found.append(other.peer)
            elif (announcer := swarm.announcers.get(key)) is not None:
                found.append(wire.Peer(ip=key.rpartition(":")[0].strip("[]"), port=announcer.told.port))
        return tuple(found)

    def _holders(self, swarm: Swarm, agent: Agent) -> dict[int, tuple[wire.Peer, ...]]:
        """Who holds what *agent* lacks of what is published."""
        board = swarm.board
        turn = board.has_turn(agent.key)
        walled = self.settings.copy_per_zone and (board.has(agent.zone) or board.can_bring(agent.zone))
        whole = () if turn else swarm.pool.pick_holders(agent.key, agent.zone, NAMED, self.chance, walled=walled)
        asking = Asking(
            agent.key, agent.zone, board.missing(agent.key), tuple(key for key in whole if key in self.agents)
        )
        lone = board.lone if turn else ""
        known = self.agents.by_key.get

        def holds(key: str, window: int) -> bool:
            return key != lone and key in self.agents and board.holds(key, window)

        named = swarm.offers.name(asking, self.now(), holds, self._zone_of)
        return {
            window: tuple(other.peer for key in keys if (other := known(key)) is not None)
            for window, keys in named.items()
        }

    def publish(self, agent: Agent, said: wire.Publish) -> Swarm:
        """Hashes of a window. Raises Outdated, BadHashes."""
        swarm = self._current(said.digest, said.incarnation)
        now = self.now()
        if not self._trusted(swarm, agent.key, now):
            raise Outdated("in quarantine: what this agent publishes does not count")
        board = swarm.board
        before = board.windows.get(said.window)
        claim = board.claims.get(said.window)
        blame = board.contradicts(agent.key, said.generation, said.window, said.hashes)
        if blame is not None:
            self.blame([blame])
            return swarm
        accepted = board.publish(
            agent.key,
            now,
            generation=said.generation,
            size=said.size,
            window=said.window,
            hashes=said.hashes,
        )
        if accepted and before is None:
            length = board.window_length(said.window)
            swarm.count(max(0, length - (claim.done if claim is not None else 0)), now)
            swarm.published_by[agent.key] = swarm.published_by.get(agent.key, 0) + 1
            self.metrics.windows.inc()
        agent.boards.add(swarm.digest)
        self._place(swarm, agent.key)
        self.settle(swarm)
        return swarm

    def progress(self, agent: Agent, said: wire.Progress) -> Swarm:
        """Bytes that arrived. Raises Outdated."""
        swarm = self._current(said.digest, said.incarnation)
        now = self.now()
        board = swarm.board
        before = board.arrived(agent.key)
        board.progress(agent.key, now, said.done, waiting=said.waiting, timeout=said.upstream_timeout)
        swarm.count(max(0, board.arrived(agent.key) - before), now)
        if said.have and self._trusted(swarm, agent.key, now):
            board.hold(agent.key, wire.from_bitmap(said.have), said.generation)
        self.settle(swarm)
        return swarm

    def release(self, agent: Agent, said: wire.Release) -> Swarm:
        """Claims given back. Raises Outdated, Malformed."""
        swarm = self._current(said.digest, said.incarnation)
        try:
            failure = Failure(said.failure)
        except ValueError:
            raise Malformed(f"no such failure: {said.failure[:40]!r}") from None
        swarm.board.release(agent.key, self.now(), said.windows, failure, said.retry_after)
        if failure is not Failure.HANDED_OVER:
            self.metrics.releases.labels(failure.value).inc()
        self.settle(swarm)
        return swarm

    def seal(self, agent: Agent, said: wire.Seal) -> None:
        """The sha256 of the whole blob matched. Raises Outdated."""
        swarm = self._current(said.digest, said.incarnation)
        if not self._trusted(swarm, agent.key, self.now()):
            return
        blamed = swarm.board.seal(agent.key, said.generation)
        if agent.key in swarm.board.holders:
            agent.held.add(swarm.digest)
        self._place(swarm, agent.key)
        self.blame(blamed)
        self.settle(swarm)

    def whole(self, agent: Agent, said: wire.Whole) -> None:
        """All hashes of a blob that *agent* holds. Raises BadHashes."""
        swarm = self.swarm(said.digest)
        agent.asked.discard(swarm.digest)
        if swarm.asked == agent.key:
            swarm.asked = ""
            swarm.quiet_until = 0.0
            self.alarm.set(("whole", swarm.digest), None, _nothing)
        if said.size < 0:
            raise Malformed("a blob cannot have a negative size")
        if self._trusted(swarm, agent.key, self.now()):
            blamed = swarm.board.seal_whole(agent.key, said.size, said.hashes)
            if swarm.board.sealed and agent.key in swarm.board.holders:
                agent.held.add(swarm.digest)
            self._place(swarm, agent.key)
            self.blame(blamed)
        self.settle(swarm)
        self._offer_needs(agent)

    def reject(self, agent: Agent, said: wire.Reject) -> None:
        """The sha256 of what the board describes is wrong. Raises Outdated."""
        swarm = self._current(said.digest, said.incarnation)
        if not self._trusted(swarm, agent.key, self.now()):
            return
        holders = list(swarm.board.holders)
        if swarm.board.reject(agent.key, said.generation):
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
                    self._suspect(holder, swarm, f"{agent.key} rejected the blob")
            for key in list(swarm.board.participants):
                self._place(swarm, key)
        self.settle(swarm)

    def leave(self, agent: Agent, digest: str) -> None:
        """*agent* is no longer interested."""
        swarm = self.swarms.get(parse(digest))
        if swarm is not None:
            agent.boards.discard(swarm.digest)
            self._part(swarm, agent)

    def settle(self, swarm: Swarm) -> None:
        """Let follow what follows: claims, waking, sealing, the next deadline."""
        board = swarm.board
        now = self.now()
        count = len(board.participants)
        if now < swarm.quiet_until and not board.sealed:
            changed = board.assign(now, _nobody)
        else:
            near = self._near if self.settings.near_zone else None
            changed = board.assign(now, self._may_claim if self.trust.anybody else None, near)
        for key, gained in board.take_gained().items():
            for other in swarm.offers.gained(key, gained):
                swarm.wake(other)
        for other in swarm.offers.due(now):
            swarm.wake(other)
        for key in changed:
            swarm.wake(key)
            if key in swarm.wishes and board.claims_of(key):
                self.metrics.claim_waits.observe(now - swarm.wishes.pop(key))
        if len(board.participants) != count:
            self._sweep(swarm)
        self.swarms.follow_torrent(swarm)
        news = (board.version, board.hope())
        if news != swarm.news:
            swarm.news = news
            swarm.spread(now)
        self._watch(swarm, now)

    # -- announces (BEP 3) ------------------------------------------------------------------------

    def announce(self, asked: Announce, visitor: Visitor) -> tuple[Counts, list[Told]]:
        """A BitTorrent client announces a sealed blob. Raises Unknown."""
        swarm = self.swarms.by_info_hash(asked.info_hash)
        if swarm is None:
            raise Unknown("unknown torrent: only sealed blobs have one")
        now = self.now()
        swarm.used = now
        key = key_of(visitor.ip, asked.port)
        if asked.event == "completed":
            swarm.downloaded += 1
        if self.agents.get(key) is None:
            self._announced(swarm, key, asked, visitor, now)
        if asked.event == "stopped":
            return self.counts(swarm), []
        told: list[Told] = []
        known = self.agents.by_key.get
        for other in swarm.pool.pick(key, visitor.zone, asked.numwant, self.chance):
            if (agent := known(other)) is not None:
                told.append(agent.told)
            elif (announcer := swarm.announcers.get(other)) is not None:
                told.append(announcer.told)
        return self.counts(swarm), told

    def counts(self, swarm: Swarm) -> Counts:
        """What a scrape tells of *swarm* (BEP 48)."""
        holders = swarm.pool.holders
        return Counts(holders, len(swarm.pool) - holders, swarm.downloaded)

    # -- trust ------------------------------------------------------------------------------------

    def blame(self, blamed: Iterable[Blame]) -> None:
        """Somebody was proven wrong: nobody relies on it for a while."""
        for blame in blamed:
            agent = self.agents.get(blame.agent)
            name = agent.name if agent is not None else ""
            until = self.trust.quarantine(blame.agent, name, blame.reason, self.now())
            self.metrics.quarantines.inc()
            fields = {"agent": blame.agent, "name": name, "reason": blame.reason}
            log.error("agent.quarantined", extra={"fields": fields})
            if agent is not None:
                self._note(agent.ip, Reason.QUARANTINED, f"Gets no claims and no peers for a while: {blame.reason}")
                self._distrust(agent)
                self._say(agent)
            self.alarm.set(("trust", blame.agent), until, lambda key=blame.agent: self._trust_again(key))  # type: ignore[misc]

    def corrupt(self, reporter: Agent, said: wire.Corrupt, ip: str) -> None:
        """A peer sent *reporter* pieces that do not match. *ip*: the canonical address of that peer."""
        swarm = self.swarms.get(parse(said.digest))
        if swarm is None:
            return
        known = [self.agents.get(key_of(ip, said.peer_port))] if said.peer_port else self.agents.at(ip)
        culprits = [
            agent
            for agent in known
            if agent is not None and agent is not reporter and swarm.digest in agent.boards | agent.held
        ]
        for agent in culprits:
            if swarm.digest not in agent.withdrawn:
                self._suspect(agent, swarm, f"sent corrupt pieces to {reporter.key}", withdraw=len(culprits) == 1)
        self.settle(swarm)

    def backoff(self, host: str, seconds: float) -> None:
        """An upstream asked an agent to wait: tell all."""
        if self.backoffs.tell(host[:255], seconds, self.now()):
            fields = {"upstream": host[:255], "seconds": round(seconds, 1)}
            log.warning("upstream.backoff", extra={"fields": fields})
            for agent in self.agents.all():
                self._say(agent)

    # -- names ------------------------------------------------------------------------------------

    def name_waiter(self, name: str) -> asyncio.Future[None]:
        """Done when the meaning of *name* may be known."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._name_waiters.setdefault(name, []).append(future)
        return future

    def name_left(self, name: str, future: asyncio.Future[None]) -> None:
        """Nobody waits on *future* any more."""
        waiting = self._name_waiters.get(name)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._name_waiters[name]

    def wake_name(self, name: str) -> None:
        """Something was learned about *name*, or its resolver failed."""
        for future in self._name_waiters.pop(name, ()):
            if not future.done():
                future.set_result(None)

    # -- the end ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Answer everybody who waits; agents go to another tracker."""
        self.stopping = True
        self.alarm.close()
        for agent in self.agents.all():
            self._say(agent)
        for swarm in self.swarms:
            swarm.close()
        for name in list(self._name_waiters):
            self.wake_name(name)

    # -- inside -----------------------------------------------------------------------------------

    def _current(self, digest: str, incarnation: str) -> Swarm:
        swarm = self.swarms.get(parse(digest))
        if swarm is None or swarm.incarnation != incarnation:
            raise Outdated("another incarnation of this board: join again")
        swarm.used = self.now()
        return swarm

    def _may_claim(self, key: str) -> bool:
        return not self.trust.until(key, self.now())

    def _zone_of(self, key: str) -> str:
        agent = self.agents.get(key)
        return agent.zone if agent is not None else ""

    def _near(self, key: str) -> bool:
        return self._zone_of(key) in self.settings.near_zone

    def _trusted(self, swarm: Swarm, key: str, now: float) -> bool:
        if self.trust.until(key, now):
            return False
        agent = self.agents.get(key)
        return agent is None or swarm.digest not in agent.withdrawn

    def _place(self, swarm: Swarm, key: str) -> None:
        """Make the pool of *swarm* say of *key* what is so."""
        board = swarm.board
        agent = self.agents.get(key)
        if agent is not None and self._trusted(swarm, key, self.now()):
            holder = key in board.holders
            if holder or key in board.participants:
                swarm.pool.put(key, zone=agent.zone, holder=holder)
                return
        elif agent is None and (announcer := swarm.announcers.get(key)) is not None:
            swarm.pool.put(key, zone=announcer.zone, holder=announcer.complete)
            return
        swarm.pool.remove(key)

    def _gather(self, swarm: Swarm, now: float) -> None:
        """Agents come from another tracker, one after another: no new claims until they have said what they hold.

        Where somebody brings windows in, the others are already: there is nothing to wait for.
        """
        gathering = now < swarm.gathering_until
        if not gathering and swarm.board.busy(now - BUSY):
            return
        if not gathering:
            swarm.gathering_since = now
            swarm.board.take_back(now - BUSY)
        longest = swarm.gathering_since + self.settings.gather
        swarm.gathering_until = max(self.started + self.settings.gather, min(longest, now + self.settings.recovery))
        swarm.quiet_until = max(swarm.quiet_until, swarm.gathering_until)

    def _part(self, swarm: Swarm, agent: Agent) -> None:
        swarm.board.leave(agent.key)
        swarm.hope_told.pop(agent.key, None)
        swarm.wishes.pop(agent.key, None)
        swarm.wake(agent.key)
        self._place(swarm, agent.key)
        self.settle(swarm)

    def _sweep(self, swarm: Swarm) -> None:
        """The board forgot silent participants."""
        for key in list(swarm.pool):
            if key not in swarm.board.participants and key not in swarm.announcers:
                if (agent := self.agents.get(key)) is not None:
                    agent.boards.discard(swarm.digest)
                swarm.hope_told.pop(key, None)
                swarm.wishes.pop(key, None)
                self._place(swarm, key)

    def _holds_whole(self, swarm: Swarm, agent: Agent, size: int | None) -> None:
        board = swarm.board
        if not self._trusted(swarm, agent.key, self.now()):
            return
        if board.sealed and size is not None and board.size != size:
            self._suspect(agent, swarm, f"says that it has {size} bytes")
            return
        board.hold_whole(agent.key)
        self._place(swarm, agent.key)
        if not board.sealed:
            self._ask_whole(swarm)
        self.settle(swarm)

    def _ask_whole(self, swarm: Swarm) -> None:
        """Ask one of those who hold an unsealed blob for its hashes; meanwhile nobody is sent upstream for it."""
        if swarm.asked or swarm.board.sealed:
            return
        for key in swarm.board.holders:
            agent = self.agents.get(key)
            if agent is None or key in swarm.tried:
                continue
            swarm.asked = key
            swarm.tried.add(key)
            agent.needs[swarm.digest] = None
            if swarm.board.participants:
                agent.needs = {swarm.digest: None, **agent.needs}
            self._patience(swarm)
            self._say(agent)
            return

    def _patience(self, swarm: Swarm) -> None:
        now = self.now()
        until = now + WHOLE_PATIENCE + (swarm.board.size or 0) / WHOLE_RATE
        swarm.quiet_until = max(swarm.quiet_until, until)
        self.alarm.set(("whole", swarm.digest), until, lambda: self._impatient(swarm))

    def _impatient(self, swarm: Swarm) -> None:
        """The hashes did not come: ask the next holder, or let the blob be brought in."""
        agent = self.agents.get(swarm.asked)
        swarm.asked = ""
        swarm.quiet_until = 0.0
        if agent is not None:
            agent.needs.pop(swarm.digest, None)
            agent.asked.discard(swarm.digest)
            self._offer_needs(agent)
        if not swarm.board.sealed:
            self._ask_whole(swarm)
        self.settle(swarm)

    def _needs(self, agent: Agent) -> tuple[str, ...]:
        need: list[str] = []
        for digest in list(agent.needs):
            if len(agent.asked) >= self.settings.max_needs:
                break
            del agent.needs[digest]
            swarm = self.swarms.get(digest)
            if swarm is not None and not swarm.board.sealed and digest in agent.held:
                agent.asked.add(digest)
                self._patience(swarm)
                need.append(digest)
        return tuple(need)

    def _offer_needs(self, agent: Agent) -> None:
        if agent.needs and len(agent.asked) < self.settings.max_needs:
            self._say(agent)

    def _answer(
        self,
        agent: Agent,
        need: tuple[str, ...],
        suspect: tuple[str, ...],
        backoff: tuple[wire.Backoff, ...],
        quarantined: float,
    ) -> wire.AgentAnswer:
        return wire.AgentAnswer(
            need=need, suspect=suspect, backoff=backoff, quarantined=round(quarantined, 3), you=agent.key
        )

    def _say(self, agent: Agent) -> None:
        if agent.news is not None and not agent.news.done():
            agent.news.set_result(None)

    def _suspect(self, agent: Agent, swarm: Swarm, reason: str, *, withdraw: bool = True) -> None:
        now = self.now()
        self.trust.suspect(agent.key, agent.name, f"{reason}: {swarm.digest}", now)
        self.metrics.suspects.inc()
        fields = {"agent": agent.key, "name": agent.name, "digest": swarm.digest, "reason": reason}
        log.warning("agent.suspect", extra={"fields": fields})
        agent.suspects[swarm.digest] = None
        if withdraw:
            agent.withdrawn.add(swarm.digest)
            swarm.board.distrust(agent.key)
            self._place(swarm, agent.key)
            agent.strikes = [*(at for at in agent.strikes if now - at < self.settings.quarantine), now]
            if len(agent.strikes) >= self.settings.strikes:
                agent.strikes = []
                self.blame([Blame(agent.key, f"found corrupt {self.settings.strikes} times, last: {reason}")])
        self._say(agent)

    def _distrust(self, agent: Agent) -> None:
        """Take *agent* out of all swarms, except that it may still fetch."""
        for digest in agent.boards | agent.held:
            swarm = self.swarms.get(digest)
            if swarm is None:
                continue
            swarm.board.distrust(agent.key)
            swarm.board.revoke(agent.key)
            swarm.wake(agent.key)
            self._place(swarm, agent.key)
            if not swarm.board.sealed and swarm.asked == agent.key:
                self._impatient(swarm)
            self.settle(swarm)

    def _trust_again(self, key: str) -> None:
        agent = self.agents.get(key)
        if agent is None or self.trust.until(key, self.now()):
            return
        for digest in agent.held - agent.withdrawn:
            self._holds_whole(self.swarms.use(Digest(digest), self.now()), agent, None)
        for digest in agent.boards:
            if (swarm := self.swarms.get(digest)) is not None:
                self._place(swarm, key)
                swarm.wake(key)
        self._say(agent)

    def _announced(self, swarm: Swarm, key: str, asked: Announce, visitor: Visitor, now: float) -> None:
        known = swarm.announcers.pop(key, None)
        if asked.event != "stopped":
            complete = asked.left == 0 or asked.event == "completed"
            until = now + 2 * self.settings.interval
            if known is not None and known.told.peer_id == asked.peer_id:
                told = known.told
            else:
                told = Told(visitor.packed, asked.port, asked.peer_id)
            swarm.announcers[key] = Announcer(told, visitor.zone, complete, until)
            while len(swarm.announcers) > self.settings.max_announcers:
                old, _ = swarm.announcers.popitem(last=False)
                self._place(swarm, old)
            if len(swarm.announcers) == 1:
                self._watch(swarm, now)
        self._place(swarm, key)

    def _watch(self, swarm: Swarm, now: float) -> None:
        times = [swarm.board.next_deadline()]
        if swarm.quiet_until > now:
            times.append(swarm.quiet_until)
        times.append(swarm.offers.wake_at)
        if swarm.announcers:
            times.append(next(iter(swarm.announcers.values())).until)
        if swarm.idle:
            times.append(swarm.used + self.settings.idle_board)
        due = min((at for at in times if at is not None), default=None)
        self.alarm.set(("board", swarm.digest), due, lambda: self._due(swarm))

    def _due(self, swarm: Swarm) -> None:
        if self.swarms.get(swarm.digest) is not swarm:
            return
        now = self.now()
        while swarm.announcers and next(iter(swarm.announcers.values())).until <= now:
            key, _ = swarm.announcers.popitem(last=False)
            self._place(swarm, key)
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
        self.swarms.drop(swarm)

    def _watch_silence(self, agent: Agent, at: float | None) -> None:
        self.alarm.set(("agent", agent.key), at, lambda: self._silent(agent))

    def _silent(self, agent: Agent) -> None:
        if agent.channels:
            return
        now = self.now()
        if not agent.synced and now - agent.seen < SILENCE:
            self._watch_silence(agent, agent.seen + SILENCE)  # it has not opened its channel yet
            return
        self._note(agent.ip, Reason.LOST, "Fell silent; its claims are free")
        self.forget(agent, "silent")


def _nothing() -> None:
    """For deadlines that are taken back."""


def _nobody(_agent: str) -> bool:
    return False
