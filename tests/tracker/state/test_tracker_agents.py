"""The agents' channel: what they hold, what they are told, and what happens when one is corrupt or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from swarm.blob.geometry import MIB
from swarm.protocol import participants, wire
from tests.parts.talk import Refusal, Talker, Town, digest_of, town, until, whole_of
from tracker.members.discovery import OnChange, Reason
from tracker.state import copies, sessions
from tracker.state.channels import hold

D = digest_of("blob")
SIZE = 3 * MIB


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Town]:
    """A tracker."""
    async with town(grace=0.05) as running:
        yield running


def held(*texts: str, size: int = SIZE) -> tuple[wire.CompleteBlob, ...]:
    """What an agent says that it holds."""
    return tuple(wire.CompleteBlob(digest=digest_of(text), size=size) for text in texts)


@pytest.mark.parametrize(
    ("agents", "seconds"), [(0, 25.0), (1, 25.0), (2_000, 25.0), (4_000, 50.0), (4_800, 60.0), (20_000, 60.0)]
)
def test_a_tracker_of_very_many_agents_holds_their_channels_longer(agents: int, seconds: float) -> None:
    assert hold(agents) == seconds


async def test_an_agent_is_told_how_long_its_channel_may_be_held(here: Town) -> None:
    a = here.agent("a", 1001)
    await a.poll(full=True)
    assert (await a.poll()).hold == wire.MAX_WAIT


async def test_an_unknown_agent_is_asked_for_everything(here: Town) -> None:
    a = here.agent("a", 1001, "127.0.0.7")
    answer = await a.poll(wait=20.0)
    assert answer.resend
    assert answer.you == "127.0.0.7:1001"
    assert not (await a.poll(full=True)).resend


async def test_a_blob_found_on_a_node_is_sealed_by_its_hashes(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    assert (await a.poll(full=True, add=held("blob"))).need == (D,)
    assert (await a.poll()).need == ()
    await a.whole(D, SIZE)
    answer = await b.board(D, want=4)
    assert answer.sealed
    assert b"".join(answer.published[window] for window in sorted(answer.published)) == whole_of(SIZE)
    assert answer.claims == ()
    assert answer.peers == (wire.Peer(ip="127.0.0.1", port=1001),)


async def test_only_one_holder_is_asked_and_not_for_too_much_at_once(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    names = [str(turn) for turn in range(6)]
    first = await a.poll(full=True, add=held(*names))
    assert len(first.need) == 4
    assert (await b.poll(full=True, add=held(*names))).need == ()
    await a.whole(first.need[0], SIZE)
    assert len((await a.poll()).need) == 1


async def test_while_a_holder_tells_its_hashes_nobody_is_sent_upstream(
    here: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.hello(blob=SIZE)
    answer = await b.board(D, want=4, size=SIZE)
    assert answer.claims == ()
    assert answer.hope
    waiting = asyncio.create_task(b.board(D, want=4, wait=20.0))
    await a.whole(D, SIZE)
    assert (await waiting).sealed
    monkeypatch.setattr(copies, "NEW_PATIENCE", 0.1)
    await a.poll(add=held("never told"))
    other = digest_of("never told")
    assert (await b.board(other, want=1, size=SIZE)).claims == ()
    assert (await b.board(other, want=1, wait=20.0)).claims == (0,)


async def test_what_an_agent_no_longer_holds_is_not_handed_out(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.hello(blob=SIZE)
    await a.whole(D, SIZE)
    await a.poll(remove=(D,))
    answer = await b.board(D, want=4)
    assert not answer.sealed  # nobody has it whole: it comes from upstream again
    assert (answer.peers, answer.claims, answer.available) == ((), (0, 1, 2), b"")
    await a.poll(full=True, add=held("blob"))
    assert (await b.board(D, want=4)).copies == 1
    await a.poll(full=True)
    assert (await b.board(D, want=4)).copies == 0


def corrupt(by: Talker, port: int, ip: str = "127.0.0.1") -> wire.Corrupt:
    """*by* says that the agent at *port* sent it wrong pieces."""
    return wire.Corrupt(**by.me, digest=D, peer_ip=ip, peer_port=port)


async def test_a_report_of_corruption_acts_on_its_reporter_alone_until_a_second_member_confirms(
    here: Town, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c, d = (here.agent(name, 1001 + place) for place, name in enumerate("abcd"))
    holder = wire.Peer(ip="127.0.0.1", port=1001)
    for agent in (b, c, d):
        await agent.hello()
    await a.hello(blob=SIZE)
    await a.whole(D, SIZE)
    waiting = asyncio.create_task(a.poll(wait=20.0))
    await b.say("corrupt", corrupt(b, 1001), wire.Ok)
    assert (await waiting).suspect == (D,), "its owner looks"
    assert holder not in (await b.board(D)).peers
    assert holder in (await d.board(D)).peers
    await c.say("corrupt", corrupt(c, 1001), wire.Ok)
    assert holder not in (await d.board(D)).peers
    await a.poll(full=True, add=held("blob"))
    assert holder not in (await d.board(D)).peers
    await a.poll(add=held("blob"))
    assert holder in (await d.board(D)).peers
    assert "agent.suspect" in caplog.messages
    state = msgspec.json.decode((await a.get("/api/v1/state"))[1])
    assert state["blame"][0]["what"] == "suspect"
    assert "127.0.0.1:1003" in state["blame"][0]["reason"]


async def test_one_member_cannot_bring_another_into_quarantine_however_often_it_reports(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002, "127.0.0.2")
    other = here.agent("b", 1003, "127.0.0.2")
    for agent in (b, other):
        await agent.hello()
    await a.hello(blob=SIZE)
    await a.whole(D, SIZE)
    for _ in range(5):
        for agent in (b, other):
            await agent.say("corrupt", corrupt(agent, 1001), wire.Ok)
        answer = await a.poll(add=held("blob"))
    assert answer.quarantined == 0
    assert (await here.agent("c", 1004).board(D)).copies == 1


async def test_an_agent_found_corrupt_again_and_again_is_quarantined(here: Town) -> None:
    a, b, c = here.agent("a", 1001), here.agent("b", 1002), here.agent("c", 1003)
    await b.hello()
    await c.hello()
    await a.hello(blob=SIZE)
    await a.whole(D, SIZE)
    await b.say("corrupt", corrupt(b, 1001), wire.Ok)
    for _ in range(3):
        await c.say("corrupt", corrupt(c, 1001, "::ffff:127.0.0.1"), wire.Ok)
        answer = await a.poll(add=held("blob"))
    assert answer.quarantined > 0
    assert (await b.board(D)).copies == 0


async def test_when_it_is_not_clear_which_of_several_is_corrupt_all_check_and_all_stay(here: Town) -> None:
    agents = [here.agent(f"n{i}", 1000 + i) for i in range(3)]
    for agent in agents:
        await agent.hello(blob=SIZE)
        await agent.whole(D, SIZE)
    await agents[0].say("corrupt", wire.Corrupt(**agents[0].me, digest=D, peer_ip="127.0.0.1"), wire.Ok)
    assert [bool((await agent.poll()).suspect) for agent in agents] == [False, True, True]
    assert (await agents[0].board(D)).copies == 3


async def test_nobody_can_accuse_who_does_not_take_part(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.hello()
    await b.hello(blob=SIZE)
    await b.say("corrupt", wire.Corrupt(**b.me, digest=D, peer_ip="127.0.0.1", peer_port=1001), wire.Ok)
    await b.say("corrupt", wire.Corrupt(**b.me, digest=D, peer_ip="127.0.0.1", peer_port=1002), wire.Ok)
    assert (await a.poll()).suspect == ()
    assert (await b.poll()).suspect == ()


async def test_after_a_rejection_holders_check_their_copies(here: Town) -> None:
    liar, b = here.agent("liar", 1001), here.agent("b", 1002)
    await liar.hello(blob=SIZE)
    await b.hello()
    await liar.whole(D, SIZE, told_by="liar")
    await b.board(D, want=1)
    await b.reject(D)
    assert (await liar.poll()).suspect == (D,)
    await b.bring_in(D, SIZE)
    await b.seal(D)
    assert (await liar.poll()).quarantined == 0, "the word of one member"
    c = here.agent("c", 1003)
    await c.board(D)
    await c.seal(D)
    assert (await liar.poll()).quarantined > 0


async def test_an_upstreams_backoff_is_told_to_all(here: Town) -> None:
    a, b, c = (here.agent(name, 1001 + place) for place, name in enumerate("abc"))
    for agent in (a, b, c):
        await agent.hello()
    waiting = asyncio.create_task(b.poll(wait=20.0))
    await until(lambda: here.server.metrics.waiting._value.get() == 1)
    for _ in range(3):
        await a.say("backoff", wire.BackoffTold(**a.me, host="registry.example", seconds=1e9), wire.Ok)
    assert (await c.poll()).backoff == (), "the word of one member"
    await c.say("backoff", wire.BackoffTold(**c.me, host="registry.example", seconds=30.0), wire.Ok)
    (told,) = (await waiting).backoff
    assert told.host == "registry.example"
    assert told.seconds == pytest.approx(30, abs=2)
    assert (await b.poll()).backoff == ()
    late = here.agent("late", 1004)
    assert (await late.poll(full=True)).backoff[0].host == "registry.example"


async def test_an_agent_that_falls_silent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(away=0.05) as here:
        a = here.agent("a", 1001)
        await a.hello(blob=SIZE)
        await until(lambda: not len(here.server.cluster.agents))
        monkeypatch.setattr(sessions, "SILENCE", 0.05)
        monkeypatch.setattr(participants, "SILENCE", 0.05)
        await a.board(D, want=1)
        await until(lambda: not len(here.server.cluster.agents))


async def test_there_is_an_end_to_the_agents_that_are_taken() -> None:
    async with town(max_agents=1) as small:
        await small.agent("a", 1001).hello()
        with pytest.raises(Refusal) as refusal:
            await small.agent("b", 1002).hello()
        assert refusal.value.status == 503


class Changing:
    """A membership that a test changes."""

    def __init__(self) -> None:
        self.ready = False
        self.members = {"127.0.0.1", "127.0.0.2"}
        self.zones: dict[str, str] = {}
        self.changed: OnChange = lambda: None
        self.notes: list[tuple[str, Reason]] = []

    def touched(self) -> frozenset[str] | None:
        """Anybody may be."""
        return None

    def is_member(self, ip: str) -> bool:
        """Whether it is one."""
        return ip in self.members

    def named(self, name: str) -> tuple[str, ...] | None:
        """It knows addresses only."""
        return None

    def name(self, ip: str) -> str:
        """It knows addresses only."""
        return ""

    def zone(self, ip: str) -> str:
        """Its zone."""
        return self.zones.get(ip, "")

    def note(self, ip: str, reason: Reason, message: str) -> None:
        """Remember what an operator is told."""
        self.notes.append((ip, reason))

    async def run(self, on_change: OnChange) -> None:
        """Remember whom to tell."""
        self.changed = on_change


async def test_a_change_of_one_pod_asks_about_that_pod_alone() -> None:
    class Pods(Changing):
        def __init__(self) -> None:
            super().__init__()
            self.ready = True
            self.members = {f"127.0.1.{n}" for n in range(1, 41)}
            self.asked: list[str] = []

        def touched(self) -> frozenset[str] | None:
            return frozenset({"127.0.1.7"})

        def is_member(self, ip: str) -> bool:
            self.asked.append(ip)
            return ip in self.members

    pods = Pods()
    async with town(pods) as here:
        agents = [here.agent(f"n{n}", 1000, f"127.0.1.{n}") for n in range(1, 41)]
        for agent in agents:
            await agent.hello()
        pods.members.discard("127.0.1.7")
        pods.asked.clear()
        pods.changed()
        assert pods.asked == ["127.0.1.7"]
        assert len(here.server.cluster.agents) == 39
        for agent in agents[10:]:
            await agent.hello()
        assert pods.asked == ["127.0.1.7"], "what is known of the others stays known"


async def test_until_members_are_known_agents_are_sent_elsewhere() -> None:
    discovery = Changing()
    async with town(discovery) as here:
        a = here.agent("a", 1001)
        assert (await a.get("/readyz"))[0] == 503
        with pytest.raises(Refusal) as refusal:
            await a.hello()
        assert refusal.value.status == 503
        discovery.ready = True
        await a.hello()
        assert (await a.get("/readyz"))[0] == 200


async def test_strangers_are_refused_and_counted_and_former_members_leave_all_swarms_at_once() -> None:
    discovery = Changing()
    discovery.ready = True
    async with town(discovery) as here:
        a, b, stranger = here.agent("a", 1), here.agent("b", 2, "127.0.0.2"), here.agent("s", 3, "127.0.0.3")
        with pytest.raises(Refusal) as refusal:
            await stranger.hello()
        assert refusal.value.status == 403
        assert (await stranger.get("/announce"))[1].startswith(b"d14:failure reason")
        assert "shoal_tracker_strangers_total 2.0" in (await a.get("/metrics"))[1].decode()
        await b.board(D, want=1)
        await a.board(D, want=1)
        waiting = asyncio.create_task(a.board(D, want=1, wait=20.0))
        await until(lambda: here.server.metrics.waiting._value.get() == 1)
        discovery.members.remove("127.0.0.2")
        discovery.changed()
        answer = await waiting
        assert answer.claims == (0,)
        assert answer.peers == ()
        with pytest.raises(Refusal) as refusal:
            await b.board(D, want=1)
        assert refusal.value.status == 403


async def test_a_node_whose_zone_is_learned_later_is_shown_in_it() -> None:
    discovery = Changing()
    discovery.ready = True
    async with town(discovery) as here:
        a = here.agent("a", 1)
        await a.board(D)
        assert discovery.notes == [("127.0.0.1", Reason.JOINED)]
        discovery.zones["127.0.0.1"] = "north"
        discovery.changed()
        state = msgspec.json.decode((await a.get("/api/v1/state"))[1])
        assert state["zones"] == [{"name": "north", "agents": 1, "quarantined": 0}]


async def test_open_polls_are_answered_when_the_tracker_stops(here: Town) -> None:
    a, b, c = here.agent("a", 1001), here.agent("b", 1002), here.agent("c", 1003)
    await a.hello()
    await b.board(D)
    for agent in (a, b):  # both ask upstream, and whoever comes then waits
        await agent.say("name", wire.NameLookup(**agent.me, name="x", ttl=9.0), wire.NameAnswer)
    polls = [
        asyncio.create_task(a.poll(wait=20.0)),
        asyncio.create_task(b.board(D, wait=20.0)),
        asyncio.create_task(c.say("name", wire.NameLookup(**c.me, name="x", ttl=9.0, wait=20.0), wire.NameAnswer)),
    ]
    await until(lambda: here.server.metrics.waiting._value.get() == 3)
    await here.server.close()
    for result in await asyncio.gather(*polls, return_exceptions=True):
        assert isinstance(result, Refusal)
        assert result.status == 503
