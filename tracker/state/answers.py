"""What an agent is told of a board: its claims, what was published, whom to fetch from."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from swarm.protocol import wire
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents
from tracker.state.offers import NAMED, Asking
from tracker.state.swarms import Raw, Swarm, Swarms

SEEDS = 8
"""Holders that the .torrent of a blob names."""


class Answers:
    """Makes the answers of boards. *apart*: whether two members are not to be told of each other for a blob;
    *quarrels*: whether there are any such."""

    def __init__(
        self,
        settings: TrackerSettings,
        now: Callable[[], float],
        chance: Random,
        agents: Agents,
        swarms: Swarms,
        apart: Callable[[str, str, str], bool],
        quarrels: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._now = now
        self._chance = chance
        self._agents = agents
        self._swarms = swarms
        self._apart = apart
        self._quarrels = quarrels

    def due(self, swarm: Swarm, agent: Agent, poll: wire.BoardPoll) -> bool:
        """Whether *agent* is to be answered at once."""
        board = swarm.board
        if (
            poll.incarnation != swarm.incarnation
            or poll.generation != board.generation
            or board.claims_of(agent.key) != tuple(sorted(poll.claims))
            or self._wishes(swarm, agent) - swarm.wishes_heard.get(agent.key, frozenset())
        ):
            return True
        news = poll.since != board.version or swarm.hope_told.get(agent.key) != board.hope()
        if news and swarm.rolling:
            swarm.spread(self._now())  # the wave under way will not come by here
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
        entering = self._settings.copy_per_zone and not board.has(agent.zone) and board.can_bring(agent.zone)
        swarm.serial += 1
        sole = self._agents.get(board.sole) if board.has_turn(agent.key) else None
        elsewhere = board.available_for(agent.key)
        published, origins = self._swarms.published_since(swarm, since if news else board.version)
        return Raw(
            incarnation=swarm.incarnation,
            version=board.version if news else 0,
            generation=board.generation,
            serial=swarm.serial,
            size=board.size,
            sealed=board.sealed_for(agent.key) and not entering,
            vouched=board.vouched,
            published=published,
            origins=origins,
            claims=board.claims_of(agent.key),
            hope=hope,
            poisoned=board.alone(agent.key),
            copies=len(board.holders),
            # Only who fetches windows over HTTP needs to know; to thousands of others it is a third of the answer.
            holders=self._holders(swarm, agent) if agent.peer.lane and (news or self._reads(swarm, agent)) else {},
            peers=self._peers(swarm, agent, but=sole.key if sole is not None else ""),
            sole=sole.peer if sole is not None else None,
            available=None if elsewhere is None else wire.bitmap(elsewhere),
            coming=board.coming_for(agent.key, self._now()),
        )

    def seeds(self, swarm: Swarm) -> tuple[wire.Peer, ...]:
        """Some who hold the whole blob of *swarm* and give it over HTTP, for whoever is no agent."""
        keys = swarm.pool.pick_holders("", "", SEEDS, self._chance)
        found = (other.peer for key in keys if (other := self._agents.by_key.get(key)) is not None)
        return tuple(peer for peer in found if peer.lane)

    def _walled(self, swarm: Swarm, agent: Agent) -> bool:
        board = swarm.board
        return self._settings.copy_per_zone and (board.has(agent.zone) or board.can_bring(agent.zone))

    def _peers(self, swarm: Swarm, agent: Agent, but: str) -> tuple[wire.Peer, ...]:
        """Whom *agent* may fetch from, without *but*."""
        found: list[wire.Peer] = []
        known = self._agents.by_key.get
        digest, quarrels = swarm.digest, self._quarrels()
        limit, walled = self._settings.peers, self._walled(swarm, agent)
        for key in swarm.pool.pick(agent.key, agent.zone, limit, self._chance, walled=walled):
            other = known(key)
            if other is not None:
                if key != but and not (quarrels and self._apart(digest, agent.member, other.member)):
                    found.append(other.peer)
            elif (announcer := swarm.announcers.get(key)) is not None:
                found.append(wire.Peer(ip=key.rpartition(":")[0].strip("[]"), port=announcer.told.port))
        return tuple(found)

    def _reads(self, swarm: Swarm, agent: Agent) -> bool:
        """Whether *agent* reads ranges, and fetches what it reads alone."""
        who = swarm.board.participants.get(agent.key)
        return who is not None and who.only_preferred

    def _wishes(self, swarm: Swarm, agent: Agent) -> frozenset[int]:
        """Published windows that *agent* needs for the ranges it reads, if it asks their holders over the lane.

        It may wish for one that has been there for long: no news would tell it who holds that.
        """
        if not agent.peer.lane or not self._reads(swarm, agent):
            return frozenset()
        return frozenset(swarm.board.available.missing(agent.key))

    def _holders(self, swarm: Swarm, agent: Agent) -> dict[int, tuple[wire.Peer, ...]]:
        """Who holds what *agent* lacks of what is published."""
        board = swarm.board
        turn = board.has_turn(agent.key)
        whole: list[str] = []
        walled = self._walled(swarm, agent)  # each zone asks upstream for a copy of its own
        if not turn:
            whole = swarm.pool.pick_holders(agent.key, agent.zone, NAMED, self._chance, walled=walled)
        sole = board.sole if turn else ""
        known = self._agents.by_key.get

        def may(key: str) -> bool:
            other = known(key)
            if other is None or key == sole or (walled and other.zone != agent.zone):
                return False
            return not self._apart(swarm.digest, agent.member, other.member)

        reads = self._reads(swarm, agent)
        if reads:
            swarm.wishes_heard[agent.key] = self._wishes(swarm, agent)
        asking = Asking(agent.key, agent.zone, board.available.missing(agent.key), tuple(filter(may, whole)), reads)
        holds = board.available.holds
        named = swarm.offers.name(
            asking, self._now(), lambda key, window: key != sole and holds(key, window), self._agents.zone_of
        )
        return {
            window: peers
            for window, keys in named.items()
            if (peers := tuple(other.peer for key in keys if may(key) and (other := known(key)) is not None))
        }
