"""Whole copies: who holds which blob, who is asked for its hashes, whose copy is in doubt."""

from __future__ import annotations

import logging
from typing import Protocol

from swarm.blob.digest import Digest
from swarm.protocol import wire
from swarm.protocol.board import Outcome
from tracker.errors import Malformed
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents
from tracker.state.alarm import Alarm
from tracker.state.swarms import Swarm, Swarms
from tracker.state.trust import Trust

log = logging.getLogger("shoal.tracker")

WHOLE_PATIENCE = 3.0
"""Seconds for an agent to answer with the hashes of its copy..."""

WHOLE_RATE = 200e6
"""... plus the time to read the copy at this many bytes per second, before claims are given out instead."""

LONGEST_PATIENCE = 10.0
"""Seconds for that at most, whatever size was said."""

NEW_PATIENCE = 3.0
"""Seconds at most for an agent that has delivered nothing yet: its word costs others little until it is confirmed."""

MOST_HELD = 20_000
"""Blobs that one member may say it holds, with all its processes; what is beyond is not handed out."""

MOST_ALONE = 4_096
"""Boards that are kept for one member because it alone holds their blobs: those beyond are made when somebody asks."""


class Settles(Protocol):
    """Where it leads to what others are told."""

    def settle(self, swarm: Swarm, outcome: Outcome | None = None) -> None:
        """Let follow what follows from *outcome*."""

    def say(self, agent: Agent) -> None:
        """There is something to tell *agent*."""


class Copies:
    """Whole copies of blobs, as agents told them."""

    def __init__(
        self,
        settings: TrackerSettings,
        metrics: Metrics,
        alarm: Alarm,
        agents: Agents,
        swarms: Swarms,
        trust: Trust,
        settles: Settles,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._alarm = alarm
        self._agents = agents
        self._swarms = swarms
        self._trust = trust
        self._settles = settles

    def trusted(self, swarm: Swarm, key: str) -> bool:
        """Whether what the agent named *key* says of its copy counts."""
        if self._trust.until(key, self._alarm.now()):
            return False
        agent = self._agents.get(key)
        return agent is None or swarm.digest not in agent.withdrawn

    def held(self, agent: Agent, digest: str, size: int | None, *, checked: bool) -> None:
        """*agent* holds a blob; *checked*: it looked at the file again, if that was in doubt."""
        now = self._alarm.now()
        held = self._agents.held_by(agent.member)
        if digest not in agent.held:
            if held >= MOST_HELD:
                return
            agent.held.add(digest)
            held += 1
        if self._swarms.get(digest) is None and held > MOST_ALONE:
            self._swarms.skipped += 1
            return
        swarm = self._swarms.use(Digest(digest), now)
        if checked:
            agent.withdrawn.discard(digest)
            swarm.tried.discard(agent.key)
        self.holds_whole(swarm, agent, size)

    def lost(self, agent: Agent, digest: str) -> None:
        """*agent* holds a blob no longer."""
        agent.held.discard(digest)
        agent.withdrawn.discard(digest)
        agent.suspects.pop(digest, None)
        agent.needs.pop(digest, None)
        agent.asked.discard(digest)
        if (swarm := self._swarms.get(digest)) is not None:
            self._settles.settle(swarm, swarm.board.drop(agent.key))

    def holds_whole(self, swarm: Swarm, agent: Agent, size: int | None) -> None:
        """*agent* says that it holds the blob of *swarm*."""
        board = swarm.board
        if not self.trusted(swarm, agent.key):
            return
        if board.sealed and size is not None and board.size != size:
            self.suspect(agent, swarm, f"says that it has {size} bytes", withdraw=True)
            return
        outcome = board.hold_whole(agent.key)
        if not board.sealed:
            self.ask(swarm)
        self._settles.settle(swarm, outcome)

    def find(self, swarm: Swarm) -> None:
        """*swarm* is new, and some agents hold blobs that no swarm was made for: perhaps this one."""
        for agent in self._agents.all():
            if swarm.digest in agent.held and swarm.digest not in agent.withdrawn:
                self.holds_whole(swarm, agent, None)

    # -- hashes of whole copies -------------------------------------------------------------------

    def ask(self, swarm: Swarm) -> None:
        """Ask one of those who hold an unsealed blob for its hashes; meanwhile nobody is sent upstream for it."""
        if swarm.asked or swarm.board.sealed:
            return
        for key in swarm.board.holders:
            agent = self._agents.get(key)
            if agent is None or key in swarm.tried:
                continue
            swarm.asked = key
            swarm.tried.add(key)
            agent.needs[swarm.digest] = None
            if swarm.board.participants:
                agent.needs = {swarm.digest: None, **agent.needs}
            self._wait(swarm, agent)
            self._settles.say(agent)
            return

    def answered(self, swarm: Swarm, agent: Agent) -> None:
        """*agent* told all hashes of its copy."""
        agent.asked.discard(swarm.digest)
        if swarm.asked == agent.key:
            swarm.asked = ""
            swarm.quiet_until = 0.0
            self._alarm.set(("whole", swarm.digest), None, _nothing)

    def gone(self, swarm: Swarm, agent: Agent) -> None:
        """*agent* left, or is believed no more."""
        swarm.tried.discard(agent.key)
        if swarm.asked == agent.key:
            self._impatient(swarm)

    def needs(self, agent: Agent) -> tuple[str, ...]:
        """Blobs whose hashes *agent* is to be asked for now."""
        need: list[str] = []
        for digest in list(agent.needs):
            if len(agent.asked) >= self._settings.max_needs:
                break
            del agent.needs[digest]
            swarm = self._swarms.get(digest)
            if swarm is not None and not swarm.board.sealed and digest in agent.held:
                agent.asked.add(digest)
                self._wait(swarm, agent)
                need.append(digest)
        return tuple(need)

    def offer(self, agent: Agent) -> None:
        """*agent* may have room for another question."""
        if agent.needs and len(agent.asked) < self._settings.max_needs:
            self._settles.say(agent)

    def suspect(self, agent: Agent, swarm: Swarm, reason: str, *, withdraw: bool) -> None:
        """The copy of *agent* may be corrupt: it is to look; *withdraw*: until it did, nobody is told of it."""
        self._trust.suspect(agent.key, agent.name, f"{reason}: {swarm.digest}", self._alarm.now())
        self._metrics.suspects.inc()
        fields = {"agent": agent.key, "name": agent.name, "digest": swarm.digest, "reason": reason}
        log.warning("agent.suspect", extra={"fields": fields})
        agent.suspects[swarm.digest] = None
        if withdraw:
            agent.withdrawn.add(swarm.digest)
            self._settles.settle(swarm, swarm.board.distrust(agent.key))
        self._settles.say(agent)

    # -- inside -----------------------------------------------------------------------------------

    def _wait(self, swarm: Swarm, agent: Agent) -> None:
        now = self._alarm.now()
        patience = min(LONGEST_PATIENCE, WHOLE_PATIENCE + (swarm.board.size or 0) / WHOLE_RATE)
        until = now + (patience if self._trust.proven(agent.key) else min(patience, NEW_PATIENCE))
        swarm.quiet_until = max(swarm.quiet_until, until)
        self._alarm.set(("whole", swarm.digest), until, lambda: self._impatient(swarm))

    def _impatient(self, swarm: Swarm) -> None:
        """The hashes did not come: ask the next holder, or let the blob be brought in."""
        agent = self._agents.get(swarm.asked)
        swarm.asked = ""
        swarm.quiet_until = 0.0
        if agent is not None:
            agent.needs.pop(swarm.digest, None)
            agent.asked.discard(swarm.digest)
            self.offer(agent)
        if not swarm.board.sealed:
            self.ask(swarm)
        self._settles.settle(swarm)


def sizes(poll: wire.AgentPoll) -> dict[str, int]:
    """Digest -> size of what *poll* adds. Raises Malformed."""
    found = {held.digest: held.size for held in poll.add}
    if any(size < 0 for size in found.values()):
        raise Malformed("a blob cannot have a negative size")
    return found


def _nothing() -> None:
    """For deadlines that are taken back."""
