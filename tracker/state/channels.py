"""An agent's channel: what it is to be told now, and the counters that it tells for the page."""

from __future__ import annotations

from collections.abc import Callable, Sized

from msgspec import structs

from swarm.protocol import wire
from tracker.members.discovery import Reason
from tracker.state.agents import Agent
from tracker.state.copies import Copies
from tracker.state.history import History, growth
from tracker.state.keeping import Keeping
from tracker.state.sessions import Note
from tracker.state.trust import Backoffs, Trust
from tracker.state.warming import Warming

MOST_STATS = 64
"""Counters that are kept of an agent, for the page."""


ANSWERS = 80.0
"""Answers a second to agents that hear nothing new. One takes a millisecond, and a tracker at rest has other things to
do than that."""


def hold(agents: int) -> float:
    """Seconds for which the channel of each of *agents* may be held, so that not more than ANSWERS a second go out:
    MAX_WAIT up to 2,000 agents, LONGEST_HOLD from 4,800 on. The longer, the later is an agent missed that went
    without a word."""
    return min(max(wire.MAX_WAIT, agents / ANSWERS), wire.LONGEST_HOLD)


class Channels:
    """What goes over the channels of *agents*. *epoch*: seconds since 1970 at zero of the clock."""

    def __init__(
        self,
        now: Callable[[], float],
        epoch: float,
        copies: Copies,
        trust: Trust,
        backoffs: Backoffs,
        history: History,
        warming: Warming,
        keeping: Keeping,
        note: Note,
        agents: Sized,
    ) -> None:
        self._now = now
        self._epoch = epoch
        self._copies = copies
        self._trust = trust
        self._backoffs = backoffs
        self._history = history
        self._warming = warming
        self._keeping = keeping
        self._note = note
        self._agents = agents

    def news_for(self, agent: Agent) -> wire.AgentAnswer | None:
        """What *agent* is to be told now; None: nothing."""
        if not agent.synced:
            return wire.AgentAnswer(resend=True, you=agent.key)
        now = self._now()
        need = self._copies.needs(agent)
        suspect, agent.suspects = tuple(agent.suspects), {}
        backoff = tuple(
            wire.Backoff(host=host, seconds=round(left, 3))
            for host, left in self._backoffs.since(agent.backoff_seen, now)
        )
        agent.backoff_seen = self._backoffs.serial
        until = self._trust.until(agent.key, now)
        changed, agent.quarantine_told = agent.quarantine_told != until, until
        preheat = self._warming.due(agent)
        keep = self._keeping.due(agent)
        resolve = tuple(agent.resolve)[: wire.MOST_ASKED]
        agent.resolve = {}
        if not (need or suspect or backoff or changed or preheat or keep or resolve):
            return None
        answer = self._answer(agent, need, suspect, backoff)
        return structs.replace(answer, preheat=preheat, keep=keep, resolve=resolve)

    def nothing_for(self, agent: Agent) -> wire.AgentAnswer:
        """The answer of a poll that waited in vain."""
        return self._answer(agent, (), (), ())

    def count(self, agent: Agent, stats: dict[str, float], now: float) -> None:
        """*agent* tells its counters."""
        served = stats.get("peer_bytes_out", 0.0)
        if served > agent.stats.get("peer_bytes_out", 0.0):
            self._note(agent.ip, Reason.ACTIVE, f"Served {served / 2**20:.0f} MiB to other agents since its start")
        kept = dict(list(stats.items())[:MOST_STATS])
        self._history.add(growth(agent.stats, kept), self._epoch + now)
        agent.stats = kept

    def _answer(
        self, agent: Agent, need: tuple[str, ...], suspect: tuple[str, ...], backoff: tuple[wire.Backoff, ...]
    ) -> wire.AgentAnswer:
        now = self._now()
        until = self._trust.until(agent.key, now)
        left = round(until - now, 3) if until else 0.0
        return wire.AgentAnswer(
            need=need, suspect=suspect, backoff=backoff, quarantined=left, you=agent.key, hold=hold(len(self._agents))
        )
