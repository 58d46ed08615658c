"""Owners of a tracker's state without the cluster that joins them: what is told goes in, what follows is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

import pytest
import pytest_asyncio
from msgspec import structs
from prometheus_client import CollectorRegistry

from swarm.protocol import wire
from swarm.protocol.board import Outcome
from swarm.protocol.standing import Trust as BoardTrust
from tests.parts.talk import digest_of
from tracker.errors import Outdated, Unknown
from tracker.members.discovery import Reason
from tracker.members.gate import Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents
from tracker.state.alarm import Alarm
from tracker.state.announce import Announce
from tracker.state.announcers import Announcers
from tracker.state.answers import Answers
from tracker.state.channels import Channels
from tracker.state.copies import Copies
from tracker.state.court import Court
from tracker.state.history import History
from tracker.state.keeping import Keeping
from tracker.state.sessions import Sessions
from tracker.state.swarms import Swarm, Swarms
from tracker.state.tagging import Tagging
from tracker.state.tags import Meanings
from tracker.state.trust import Backoffs, Trust
from tracker.state.warming import Warming

D = digest_of("blob")


class Noted:
    """Where owners say what follows: settled swarms, agents to be told, notes for operators."""

    def __init__(self) -> None:
        self.settled: list[str] = []
        self.said: list[str] = []
        self.notes: list[Reason] = []
        self.gone: list[str] = []

    def settle(self, swarm: Swarm, outcome: Outcome | None = None) -> None:
        self.settled.append(swarm.digest)

    def say(self, agent: Agent) -> None:
        self.said.append(agent.key)

    def place(self, swarm: Swarm, key: str) -> None:
        return None

    def watch(self, swarm: Swarm) -> None:
        return None

    def note(self, ip: str, reason: Reason, message: str) -> None:
        self.notes.append(reason)

    def left(self, agent: Agent) -> None:
        self.gone.append(agent.key)

    def moved(self, agent: Agent) -> None:
        return None


class Desk:
    """The values that owners share, and the owners of whole copies and of accusations."""

    def __init__(self) -> None:
        self.settings, self.metrics = TrackerSettings(), Metrics(CollectorRegistry())
        self.alarm, self.agents, self.noted = Alarm(), Agents(), Noted()
        self.trust = Trust(self.settings.quarantine, self.agents.member_of)
        self.swarms = Swarms("one", self.settings.max_boards, BoardTrust())
        self.copies = Copies(self.settings, self.metrics, self.alarm, self.agents, self.swarms, self.trust, self.noted)
        self.court = Court(
            self.settings, self.metrics, self.alarm, self.agents, self.swarms, self.trust, self.copies, self.noted,
            self.noted.note,
        )  # fmt: skip

    def agent(self, number: int) -> Agent:
        """An agent on a node of its own."""
        me = wire.Me(node=f"n{number}", port=6881, session=f"s{number}")
        return self.agents.add(me, f"10.0.0.{number}", "", self.alarm.now())

    def reports(self, reporter: Agent, accused: Agent) -> None:
        """*reporter* got wrong pieces from *accused*."""
        said = wire.Corrupt(
            node=reporter.name, port=reporter.port, session=reporter.session, digest=D, peer_ip=accused.ip,
            peer_port=accused.port,
        )  # fmt: skip
        self.court.corrupt(reporter, said, accused.ip)


@pytest_asyncio.fixture
async def desk() -> Desk:
    """Nothing known yet."""
    return Desk()


@pytest.fixture(autouse=True)
def _ended(desk: Desk) -> Iterator[None]:
    yield
    desk.alarm.close()


async def test_who_holds_a_blob_that_nobody_sealed_is_asked_for_its_hashes(desk: Desk) -> None:
    holder, second = desk.agent(1), desk.agent(2)
    desk.copies.held(holder, D, 1000, checked=True)
    desk.copies.held(second, D, 1000, checked=True)
    assert (list(holder.needs), list(second.needs)) == ([D], []), "one at a time"
    assert desk.noted.said == [holder.key]


async def test_one_report_parts_two_members_and_a_second_one_withdraws_the_copy(desk: Desk) -> None:
    bad, first, second = desk.agent(1), desk.agent(2), desk.agent(3)
    desk.copies.held(bad, D, 1000, checked=True)
    desk.reports(first, bad)
    assert desk.court.apart(D, first.member, bad.member)
    assert not desk.court.apart(D, second.member, bad.member)
    assert (list(bad.suspects), set(bad.withdrawn)) == ([D], set())
    desk.reports(second, bad)
    assert set(bad.withdrawn) == {D}


async def test_an_announce_of_what_nobody_sealed_is_refused(desk: Desk) -> None:
    announcers = Announcers(desk.settings, desk.alarm.now, Random(1), desk.agents, desk.swarms, desk.noted)
    visitor = Visitor("10.0.0.9", True, "", ip_address("10.0.0.9").packed)
    asked = Announce(
        info_hash=bytes(20), peer_id=bytes(20), port=6881, left=0, event="", numwant=50, compact=True, no_peer_id=False
    )
    with pytest.raises(Unknown):
        announcers.announce(asked, visitor)


async def test_who_waits_for_news_of_preheats_waits_for_no_longer_than_it_said(desk: Desk) -> None:
    warming = Warming(desk.agents, desk.noted.say, desk.alarm.now)
    assert warming.due(desk.agent(1)) == ()
    assert warming.progress("none") is None
    await warming.news(0.0)


async def test_an_alarm_that_is_postponed_rings_once(desk: Desk) -> None:
    rung, done = list[str](), asyncio.Event()
    now = desk.alarm.now()
    desk.alarm.set("one", now, lambda: rung.append("early"))
    desk.alarm.set("one", now + 0.001, lambda: rung.append("late"))
    desk.alarm.set("gone", now, lambda: rung.append("gone"))
    desk.alarm.set("gone", None, lambda: None)
    desk.alarm.set("last", now + 0.002, done.set)
    await done.wait()
    assert rung == ["late"]


def visitor(number: int) -> Visitor:
    """Who speaks from the address of agent *number*."""
    ip = f"10.0.0.{number}"
    return Visitor(ip, True, "", ip_address(ip).packed, ip)


async def test_a_new_session_at_an_address_ends_the_one_before_and_that_one_stays_out(desk: Desk) -> None:
    noted = desk.noted
    sessions = Sessions(desk.settings, desk.metrics, desk.alarm, desk.agents, noted.note, noted)
    old = wire.Me(node="n1", port=6881, session="old")
    first = sessions.hello(old, visitor(1))
    assert sessions.hello(old, visitor(1)) is first
    second = sessions.hello(wire.Me(node="n1", port=6881, session="new"), visitor(1))
    assert (noted.gone, list(desk.agents.all())) == ([first.key], [second])
    with pytest.raises(Outdated):
        sessions.hello(old, visitor(1))


async def test_an_open_channel_is_answered_once_there_is_something_to_say(desk: Desk) -> None:
    noted = desk.noted
    sessions = Sessions(desk.settings, desk.metrics, desk.alarm, desk.agents, noted.note, noted)
    agent = sessions.hello(wire.Me(node="n1", port=6881, session="s"), visitor(1))
    older = sessions.opened(agent)
    newer = sessions.opened(agent)
    assert (older.done(), newer.done()) == (True, False), "one poll is held at a time"
    sessions.say(agent)
    assert newer.done()
    for news in (older, newer):
        sessions.closed(agent, news, broken=False)
    assert (agent.channels, agent.news) == (0, None)


async def test_a_channel_tells_each_thing_once(desk: Desk) -> None:
    backoffs, history, warming = Backoffs(), History(), Warming(desk.agents, desk.noted.say, desk.alarm.now)
    keeping = Keeping(desk.agents, desk.alarm, desk.noted.say, lambda _key: True, lambda _ip: None, 60.0)
    channels = Channels(
        desk.alarm.now, 0.0, desk.copies, desk.trust, backoffs, history, warming, keeping, desk.noted.note, desk.agents
    )
    agent = desk.agent(1)
    answer = channels.news_for(agent)
    assert answer is not None
    assert answer.resend, "it has not told yet what it holds"
    agent.synced = True
    assert channels.news_for(agent) is None
    desk.copies.held(agent, D, 1000, checked=True)
    for member in ("a", "b"):
        backoffs.tell("registry.example", member, 60.0, desk.alarm.now())
    answer = channels.news_for(agent)
    assert answer is not None
    assert (answer.need, [one.host for one in answer.backoff]) == ((D,), ["registry.example"])
    again = channels.news_for(agent)
    assert again is None or not again.backoff
    channels.count(agent, {"peer_bytes_out": 5 * 2.0**20}, desk.alarm.now())
    assert desk.noted.notes == [Reason.ACTIVE]


async def test_two_who_were_chosen_give_a_tag_its_meaning_and_those_who_wait_are_woken(desk: Desk) -> None:
    tagging = Tagging(
        Meanings(60.0, 100), desk.agents, desk.trust, desk.court, desk.noted.say, desk.alarm.now, Random(1)
    )
    agents = {agent.key: agent for agent in map(desk.agent, range(1, 6))}
    for agent in agents.values():
        agent.synced, agent.channels = True, 1
    asking = next(iter(agents.values()))
    name = "registry.example/app:latest"
    waits = tagging.waiter(name)
    verdict = tagging.asked(asking, name, 60.0, desk.alarm.now())
    asked = [*verdict.chosen, *([asking.key] if verdict.resolve else [])]
    assert len(asked) == 2
    assert set(desk.noted.said) == set(verdict.chosen), "over their channels"
    first, second = (agents[key] for key in asked)
    tagging.told(first, name, digest_of("manifest"), "application/vnd.oci.image.manifest.v1+json", 500)
    assert waits.done(), "who waits looks again, whatever was told"
    tagging.told(second, name, digest_of("manifest"), "application/vnd.oci.image.manifest.v1+json", 500)
    known = tagging.asked(next(a for k, a in agents.items() if k not in asked), name, 60.0, desk.alarm.now())
    assert known.fresh
    assert known.known is not None
    assert known.known.digest == digest_of("manifest")
    tagging.stop()


async def test_a_board_tells_an_agent_at_once_only_what_it_does_not_know(desk: Desk) -> None:
    answers = Answers(
        desk.settings, desk.alarm.now, Random(1), desk.agents, desk.swarms, lambda *_: False, lambda: False
    )
    agent = desk.agent(1)
    swarm = desk.swarms.use(D, desk.alarm.now())
    poll = wire.BoardPoll(node=agent.name, port=agent.port, session=agent.session, digest=D)
    assert answers.due(swarm, agent, poll), "another incarnation than it knows"
    told = answers.view(swarm, agent, 0, None)
    assert told.incarnation == swarm.incarnation
    swarm.hope_told[agent.key] = swarm.board.hope()
    knows = structs.replace(poll, incarnation=told.incarnation, generation=told.generation, since=told.version)
    assert not answers.due(swarm, agent, knows)
    assert answers.seeds(swarm) == ()
