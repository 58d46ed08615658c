"""Quotas count members by who they are, not by the address that their connections come from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from swarm.blob.geometry import MIB
from swarm.protocol import wire
from tests.parts.talk import digest_of
from tracker.errors import Outdated, Unready
from tracker.members.gate import Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent
from tracker.state.cluster import Cluster
from tracker.state.sessions import PER_MEMBER

D = digest_of("blob")
NAT = "203.0.113.7"


@pytest_asyncio.fixture
async def state() -> AsyncIterator[Cluster]:
    """A tracker's state, without its HTTP."""
    made = Cluster(TrackerSettings(), Metrics(CollectorRegistry()))
    yield made
    made.stop()


def visitor(identity: str, ip: str = NAT) -> Visitor:
    """A member behind an address that others share."""
    return Visitor(ip, True, "", ip_address(ip).packed, identity)


def joins(state: Cluster, identity: str, port: int, ip: str = NAT, *, session: str = "") -> Agent:
    """An agent of that identity takes part in a blob and would bring it in."""
    said = wire.BoardPoll(
        node=f"n{port}", port=port, session=session or f"s {identity}", digest=D, size=64 * MIB, want=2
    )
    agent = state.hello(said, visitor(identity, ip))
    state.join(agent, said)
    return agent


def claims(state: Cluster, agent: Agent) -> int:
    """Windows that it may bring in."""
    swarm = state.swarms.get(D)
    assert swarm is not None
    return len(swarm.board.claims_of(agent.key))


@pytest.mark.parametrize("kind", ["agent/node-{}", "pod/{}"])
async def test_agents_behind_one_address_have_a_quota_each(state: Cluster, kind: str) -> None:
    agents = [joins(state, kind.format(n), 1000 + n) for n in range(8)]
    assert [claims(state, agent) for agent in agents] == [2] + [1] * 6 + [0], "the first was alone when it came"
    assert len({agent.member for agent in agents}) == 8


async def test_processes_of_one_identity_have_one_quota_wherever_they_are(state: Cluster) -> None:
    joins(state, "agent/node-0", 2000)
    evil = [joins(state, "agent/evil", 1000 + n, f"203.0.113.{n + 1}") for n in range(8)]
    honest = [joins(state, f"agent/node-{n}", 2000 + n) for n in range(1, 6)]
    assert sum(claims(state, agent) for agent in evil) == 1
    assert [claims(state, agent) for agent in honest] == [1] * 5


async def test_without_any_identity_an_address_is_one_member(state: Cluster) -> None:
    agents = [joins(state, NAT, 1000 + n) for n in range(4)]
    assert {agent.member for agent in agents} == {NAT}


async def test_the_processes_of_one_identity_are_bounded(state: Cluster) -> None:
    for n in range(PER_MEMBER):
        joins(state, "agent/evil", 1000 + n)
    with pytest.raises(Unready):
        joins(state, "agent/evil", 999)
    joins(state, "agent/other", 998)


async def test_another_member_does_not_take_the_address_of_one_that_is_there(state: Cluster) -> None:
    """Outside of Kubernetes an agent states its address itself: it may state somebody else's."""
    victim = joins(state, "agent/a", 1000)
    state.sessions.opened(victim)
    with pytest.raises(Outdated, match="in use by agent/a"):
        joins(state, "agent/evil", 1000)
    assert state.agents.get(victim.key) is victim
    again = joins(state, "agent/a", 1000, session="restarted")
    assert state.agents.get(again.key) is again


async def test_an_address_is_free_when_the_one_before_is_silent(state: Cluster) -> None:
    gone = joins(state, "agent/a", 1000)
    news = state.sessions.opened(gone)
    state.sessions.closed(gone, news, broken=True)
    taken = joins(state, "agent/b", 1000)
    assert state.agents.get(taken.key) is taken
