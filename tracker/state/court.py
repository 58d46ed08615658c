"""Who is believed: reports of corrupt copies, proof, quarantine.

One member's report acts on itself: it is not told of the accused any more, and the accused looks at its copy. When a
second member reports the same, the copy is handed to nobody until its owner has looked. Proof is the board's.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable

from swarm.blob.digest import Digest, parse
from swarm.protocol import wire
from swarm.protocol.blame import JUDGES, Blame
from swarm.protocol.board import Outcome
from tracker.members.discovery import Reason
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents, key_of
from tracker.state.alarm import Alarm
from tracker.state.copies import Copies, Settles
from tracker.state.swarms import Swarm, Swarms
from tracker.state.trust import Trust

log = logging.getLogger("shoal.tracker")

Note = Callable[[str, Reason, str], None]

MOST = 10_000
"""Accusations remembered at once."""

LOOK_AGAIN = 60.0
"""Seconds before the accused is asked to look at the same copy again: it reads the whole file."""


class Court:
    """Accusations and what follows from proof. Quarantine is by member."""

    def __init__(
        self,
        settings: TrackerSettings,
        metrics: Metrics,
        alarm: Alarm,
        agents: Agents,
        swarms: Swarms,
        trust: Trust,
        copies: Copies,
        settles: Settles,
        note: Note,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._alarm = alarm
        self._agents = agents
        self._swarms = swarms
        self._trust = trust
        self._copies = copies
        self._settles = settles
        self._note = note
        self._accused: OrderedDict[tuple[str, str], dict[str, float]] = OrderedDict()
        """(digest, member) -> who reported it, and when."""
        self._looked: dict[tuple[str, str], float] = {}

    def quarrels(self) -> bool:
        """Whether anybody reported anybody."""
        return bool(self._accused)

    def apart(self, digest: str, one: str, other: str) -> bool:
        """Whether one of two members reported the other's copy of a blob: they are not told of each other for it."""
        if not self._accused:
            return False
        return one in self._accused.get((digest, other), ()) or other in self._accused.get((digest, one), ())

    def corrupt(self, reporter: Agent, said: wire.Corrupt, ip: str) -> None:
        """A peer sent *reporter* pieces that do not match. *ip*: the canonical address of that peer."""
        swarm = self._swarms.get(parse(said.digest))
        now = self._alarm.now()
        if swarm is None or self._trust.until(reporter.key, now):
            return
        known = [self._agents.get(key_of(ip, said.peer_port))] if said.peer_port else self._agents.at(ip)
        culprits = [
            agent
            for agent in known
            if agent is not None and agent.member != reporter.member and swarm.digest in agent.boards | agent.held
        ]
        for agent in culprits:
            self._accuse(reporter, agent, swarm, now, sure=len(culprits) == 1)
        self._settles.settle(swarm)

    def blame(self, blamed: Iterable[Blame]) -> None:
        """Somebody was proven wrong: nobody relies on its member for a while."""
        for blame in blamed:
            agent = self._agents.get(blame.agent)
            name = agent.name if agent is not None else ""
            until = self._trust.quarantine(blame.agent, name, blame.reason, self._alarm.now())
            self._metrics.quarantines.inc()
            fields = {"agent": blame.agent, "name": name, "reason": blame.reason}
            log.error("agent.quarantined", extra={"fields": fields})
            member = self._agents.member_of(blame.agent)
            for one in self._agents.of(member):
                self._note(one.ip, Reason.QUARANTINED, f"Gets no claims and no peers for a while: {blame.reason}")
                self._distrust(one)
                self._settles.say(one)
            self._alarm.set(("trust", member), until, lambda key=blame.agent: self._trust_again(key))  # type: ignore[misc]

    # -- inside -----------------------------------------------------------------------------------

    def _accuse(self, reporter: Agent, agent: Agent, swarm: Swarm, now: float, *, sure: bool) -> None:
        case = (swarm.digest, agent.member)
        fresh = now - self._settings.quarantine
        reports = {member: at for member, at in self._accused.pop(case, {}).items() if at > fresh}
        reports[reporter.member] = now
        self._accused[case] = reports
        while len(self._accused) > MOST:
            old, _ = self._accused.popitem(last=False)
            self._looked.pop(old, None)
        if swarm.digest in agent.withdrawn:
            return
        reason = f"sent corrupt pieces to {reporter.key}"
        if len(reports) >= JUDGES and sure:
            self._copies.suspect(agent, swarm, reason, withdraw=True)
            self._strike(agent, reason, now)
        elif now - self._looked.get(case, float("-inf")) >= LOOK_AGAIN:
            self._looked[case] = now
            self._copies.suspect(agent, swarm, reason, withdraw=False)

    def _strike(self, agent: Agent, reason: str, now: float) -> None:
        agent.strikes = [*(at for at in agent.strikes if now - at < self._settings.quarantine), now]
        if len(agent.strikes) >= self._settings.strikes:
            agent.strikes = []
            self.blame([Blame(agent.key, f"found corrupt {self._settings.strikes} times, last: {reason}")])

    def _distrust(self, agent: Agent) -> None:
        """Take *agent* out of all swarms, except that it may still fetch."""
        for digest in agent.boards | agent.held:
            swarm = self._swarms.get(digest)
            if swarm is None:
                continue
            outcome = swarm.board.distrust(agent.key)
            outcome.add(swarm.board.revoke(agent.key))
            swarm.wake(agent.key)
            if not swarm.board.sealed:
                self._copies.gone(swarm, agent)
            self._settles.settle(swarm, outcome)

    def _trust_again(self, key: str) -> None:
        if self._trust.until(key, self._alarm.now()):
            return
        for agent in self._agents.of(self._agents.member_of(key)):
            for digest in agent.held - agent.withdrawn:
                self._copies.holds_whole(self._swarms.use(Digest(digest), self._alarm.now()), agent, None)
            for digest in agent.boards:
                if (swarm := self._swarms.get(digest)) is not None:
                    self._settles.settle(swarm, Outcome(placed={agent.key}))
                    swarm.wake(agent.key)
            self._settles.say(agent)
