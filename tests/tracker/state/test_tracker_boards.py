"""Boards over HTTP: claims, long-polls, publications, sealing, and what an agent's death does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from swarm.blob.geometry import MIB
from swarm.protocol import leases, wire
from swarm.protocol.blame import Blame
from tests.parts.talk import JSON, Refusal, Talker, Town, digest_of, hashes_of, town, until
from tracker.members.static import StaticDiscovery
from tracker.state import cluster
from tracker.state.swarms import Raw
from tracker.state.trust import Budgets

D = digest_of("blob")
SIZE = 3 * MIB


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Town]:
    """A tracker."""
    async with town(grace=0.05) as running:
        yield running


async def wait_until_waiting(here: Town, digest: str, count: int) -> None:
    """Until *count* agents wait on the board: the tracker has their polls."""
    swarms = here.server.cluster.swarms
    await until(lambda: (swarm := swarms.get(digest)) is not None and len(swarm.waiters) >= count)


def pending(agent: Talker, digest: str = D, **said: object) -> asyncio.Task[wire.BoardAnswer]:
    """A long-poll."""
    return asyncio.create_task(agent.board(digest, wait=20.0, **said))


async def test_agents_that_ask_at_once_claim_different_windows(here: Town) -> None:
    agents = [here.agent(f"n{i}", 1000 + i) for i in range(4)]
    answers = await asyncio.gather(*(agent.board(D, want=1, size=4 * MIB) for agent in agents))
    assert sorted(answer.claims for answer in answers) == [(0,), (1,), (2,), (3,)]


async def test_a_publication_wakes_who_waits_and_names_the_publisher_as_a_peer(here: Town) -> None:
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1002, "127.0.0.3")
    await a.board(D, want=1)
    await b.board(D)
    waiting = pending(b)
    await wait_until_waiting(here, D, 1)
    told = await a.publish(D, SIZE, 0)
    answer = await waiting
    assert told.claims == (1,)
    assert answer.size == SIZE
    assert answer.published == {0: hashes_of(SIZE, 0)}
    assert answer.peers == (wire.Peer(ip="127.0.0.2", port=1001),)


async def test_an_agent_is_told_who_holds_what_it_lacks_and_where_its_windows_are_given_away(here: Town) -> None:
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1002, "127.0.0.3")
    a.me["lane"] = b.me["lane"] = 7001
    await a.board(D, want=1)
    await a.publish(D, SIZE, 0)
    holder = wire.Peer(ip="127.0.0.2", port=1001, lane=7001)
    answer = await b.board(D)
    assert (answer.holders, answer.peers) == ({0: (holder,)}, (holder,))
    assert (await b.board(D, have=b"\x01")).holders == {}
    a.me["lane"] = 7002
    await a.board(D, want=1)
    c = here.agent("c", 1003)
    assert (await c.board(D)).holders == {}, "it has no lane"
    c.me["lane"] = 7003
    told = (await c.board(D)).holders[0]
    assert told == (wire.Peer(ip="127.0.0.3", port=1002, lane=7001), wire.Peer(ip="127.0.0.2", port=1001, lane=7002))


async def test_a_reader_of_ranges_is_told_at_once_who_holds_a_window_that_has_been_there_for_long(here: Town) -> None:
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1002, "127.0.0.3")
    a.me["lane"] = b.me["lane"] = 7001
    await a.board(D, want=1)
    await a.publish(D, SIZE, 0)
    assert (await b.board(D, want=1, only_preferred=True)).holders == {}, "it wishes for nothing yet"
    holder = wire.Peer(ip="127.0.0.2", port=1001, lane=7001)
    assert (await b.board(D, want=1, only_preferred=True, prefer=(0,), wait=20.0)).holders == {0: (holder,)}
    waiting = asyncio.create_task(b.board(D, want=1, only_preferred=True, prefer=(0,), wait=20.0))
    await wait_until_waiting(here, D, 1)
    waiting.cancel()


async def test_an_answer_without_the_news_does_not_move_the_cursor_of_the_news(here: Town) -> None:
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1002, "127.0.0.3")
    await a.board(D, want=2, size=SIZE)
    await b.board(D, want=2)
    await b.publish(D, SIZE, 2)
    said = {**a.me, "digest": D, "incarnation": a.seen[D].incarnation}
    released = await a.say("release", wire.Release(**said, windows=(0,), failure="busy"), wire.BoardAnswer)
    told = await a.say("progress", wire.Progress(**said, done={0: 1}), wire.BoardAnswer)
    assert [(answer.version, answer.published) for answer in (released, told)] == [(0, {}), (0, {})]
    assert (await a.board(D, want=2)).published == {2: hashes_of(SIZE, 2)}


async def test_an_agent_hears_only_what_is_newer_than_it_knows(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.board(D, want=1)
    await a.publish(D, SIZE, 0)
    await b.board(D)
    await a.publish(D, SIZE, 1)
    assert set((await b.board(D)).published) == {1}
    late = here.agent("late", 1003)
    assert set((await late.board(D)).published) == {0, 1}


async def test_a_poll_without_news_is_answered_when_its_time_is_over(here: Town) -> None:
    a = here.agent("a", 1001)
    first = await a.board(D)
    assert (await a.board(D, wait=0.01)).version == first.version


async def test_a_newer_poll_of_an_agent_ends_its_older_one(here: Town) -> None:
    a = here.agent("a", 1001)
    await a.board(D)
    older = pending(a)
    await wait_until_waiting(here, D, 1)
    newer = pending(a)
    await older
    assert not newer.done()
    newer.cancel()


async def test_only_those_with_news_are_woken(here: Town) -> None:
    a, b, c = (here.agent(name, 1000 + i) for i, name in enumerate("abc"))
    for agent in (a, b):
        await agent.board(D, want=1, size=MIB)
    await c.board(D, want=0)
    on_b, on_c = pending(b, want=1), pending(c)
    await wait_until_waiting(here, D, 2)
    message = wire.Release(**a.me, digest=D, incarnation=a.seen[D].incarnation, windows=(0,), failure="handed-over")
    await a.board(D, want=0)
    await a.say("release", message, wire.BoardAnswer)
    assert (await on_b).claims == (0,)
    assert not on_c.done()
    on_c.cancel()


async def test_a_claim_without_progress_goes_to_another_agent_when_its_lease_ends(
    here: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE", 0.2)
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    assert (await a.board(D, want=1)).claims == (0,)
    assert (await b.board(D, want=1)).claims == ()
    assert (await pending(b, want=1)).claims == (0,)


async def test_progress_keeps_the_claim_and_shows_in_the_json(here: Town) -> None:
    a = here.agent("a", 1001)
    await a.board(D, want=1, size=SIZE)
    message = wire.Progress(**a.me, digest=D, incarnation=a.seen[D].incarnation, done={0: 70_000})
    assert (await a.say("progress", message, wire.BoardAnswer)).claims == (0,)
    page = msgspec.json.decode((await a.get(f"/api/v1/boards/{D}"))[1])
    assert page["claims"][0]["bytes"] == 70_000
    assert page["arrived"] == 70_000
    assert page["agents"][0]["windows"] == "c.."


async def test_the_claims_of_a_dead_agent_are_free_after_a_moment(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.hello()
    await b.hello()
    channel = asyncio.create_task(a.poll(wait=20.0))
    assert (await a.board(D, want=1)).claims == (0,)
    await b.board(D, want=1)
    waiting = pending(b, want=1)
    await wait_until_waiting(here, D, 1)
    channel.cancel()
    await a.http.close()
    assert (await waiting).claims == (0,)
    assert here.server.cluster.agents.get("127.0.0.1:1001") is None


async def test_an_agent_that_opens_its_channel_again_keeps_its_claims(here: Town) -> None:
    a = here.agent("a", 1001)
    await a.hello()
    await a.board(D, want=1)
    cluster = here.server.cluster
    agent = cluster.agents.get("127.0.0.1:1001")
    assert agent is not None
    for _ in range(3):
        channel = asyncio.create_task(a.poll(wait=20.0))
        await until(lambda: agent.news is not None)
        channel.cancel()
        await asyncio.gather(channel, return_exceptions=True)
    await a.poll()
    assert (await a.board(D, want=1)).claims == (0,)
    assert cluster.agents.get("127.0.0.1:1001") is agent


async def test_an_agent_that_says_goodbye_is_gone_at_once(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.board(D, want=1)
    await b.board(D, want=1)
    waiting = pending(b, want=1)
    await wait_until_waiting(here, D, 1)
    await a.say("gone", wire.Gone(**a.me), wire.Ok)
    answer = await waiting
    assert answer.claims == (0,)
    assert answer.peers == ()
    with pytest.raises(Refusal) as late:
        await a.board(D, want=1)
    assert late.value.status == 409


async def test_a_restarted_agent_loses_what_its_former_process_had(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.board(D, want=1)
    await b.board(D, want=1)
    waiting = pending(b, want=1)
    await wait_until_waiting(here, D, 1)
    again = here.agent("a", 1001)
    again.me["session"] = "second life"
    await again.hello()
    assert (await waiting).claims == (0,)
    with pytest.raises(Refusal) as late:
        await a.board(D, want=1)
    assert late.value.status == 409


async def test_what_is_meant_for_another_incarnation_is_refused(here: Town) -> None:
    a = here.agent("a", 1001)
    await a.board(D, want=1)
    a.seen[D] = msgspec.structs.replace(a.seen[D], incarnation="another")
    with pytest.raises(Refusal) as refusal:
        await a.publish(D, SIZE, 0)
    assert refusal.value.status == 409
    answer = await a.board(D)
    assert answer.incarnation != "another"


async def test_after_a_restart_of_the_tracker_agents_keep_their_claims_and_others_wait_a_moment() -> None:
    async with town(recovery=0.2, gather=0.2) as here:
        a, b = here.agent("a", 1001), here.agent("b", 1002)
        delivered(here, 1001, 1002)
        first = await b.board(D, want=2, size=4 * MIB, incarnation="before", since=9)
        assert first.claims == ()
        second = await a.board(D, want=2, size=4 * MIB, incarnation="before", since=9, claims=(2, 3))
        assert second.claims == (2, 3)
        assert (await pending(b, want=2)).claims == (0, 1)


async def test_agents_that_come_from_another_tracker_say_first_what_they_hold() -> None:
    """They notice one after another that theirs is gone: who is first gets no claim on what the next brings with it."""
    async with town(recovery=0.2, gather=0.4) as here:
        a, b = here.agent("a", 1001), here.agent("b", 1002)
        delivered(here, 1001, 1002)
        first = await a.board(D, want=4, size=6 * MIB, have=wire.bitmap(0b1), claims=(1,))
        assert first.claims == (1,)
        second = await b.board(D, want=4, size=6 * MIB, have=wire.bitmap(0b1), claims=(2, 3))
        assert second.claims == (2, 3)
        await b.publish(D, 6 * MIB, 0)
        await a.board(D, want=4)
        await b.board(D, want=4)
        assert (await pending(a, want=4)).claims == (1, 4, 5)
        assert (await b.board(D, want=4)).claims == (2, 3)


async def test_claims_of_agents_that_were_elsewhere_do_not_hold_up_who_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They went to another tracker without a word, which is back to being gone: only what they bring in counts."""
    monkeypatch.setattr(cluster, "BUSY", 0.0)
    async with town(recovery=0.1, gather=0.1) as here:
        a, b = here.agent("a", 1001), here.agent("b", 1002)
        delivered(here, 1001, 1002)
        assert (await a.board(D, want=2, size=4 * MIB)).claims == (0, 1)
        assert (await b.board(D, want=2)).claims == (2, 3)
        a.seen.clear()
        b.seen.clear()
        assert (await b.board(D, want=2, size=4 * MIB, claims=(0, 3))).claims == (0, 3)
        assert (await a.board(D, want=2, size=4 * MIB, claims=(2,))).claims == (2,)
        assert (await pending(a, want=2)).claims == (1, 2)


async def test_who_joins_a_board_that_moves_makes_nobody_wait(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await until(lambda: here.server.cluster.now() > here.server.cluster.started)
    assert (await a.board(D, want=1, size=4 * MIB)).claims == (0,)
    assert (await b.board(D, want=1, size=4 * MIB, incarnation="before", claims=())).claims == (1,)


async def test_who_has_delivered_nothing_yet_gets_one_claim_with_all_its_agents(here: Town) -> None:
    a = here.agent("a", 1001, "127.0.0.2")
    ghosts = [here.agent(f"ghost-{n}", 2000 + n, "127.0.0.3") for n in range(16)]
    await a.board(D, want=4, size=8 * MIB)
    told = [await ghost.board(D, want=4, size=8 * MIB) for ghost in ghosts]
    assert sum(len(answer.claims) for answer in told) == 1


async def test_quarantine_is_of_the_member_not_of_a_port(here: Town) -> None:
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1001, "127.0.0.3")
    liar, other = here.agent("liar", 7001, "127.0.0.9"), here.agent("liar", 7002, "127.0.0.9")
    await a.bring_in(D, SIZE)
    await a.seal(D)
    await b.board(D)
    await b.seal(D)
    await liar.board(D)
    await liar.publish(D, SIZE, 0, told_by="liar")
    await other.hello()
    assert (await other.poll()).quarantined > 0
    assert (await other.board(digest_of("other"), want=4, size=SIZE)).claims == ()


async def test_an_agent_in_quarantine_is_sent_upstream_by_itself_for_what_nobody_brings_in(here: Town) -> None:
    liar, a = here.agent("liar", 7001, "127.0.0.9"), here.agent("a", 1001, "127.0.0.2")
    await liar.hello()
    here.server.cluster.court.blame([Blame("127.0.0.9:7001", "proven")])
    answer = await liar.board(D, want=4, size=SIZE)
    assert (answer.claims, answer.hope, answer.poisoned) == ((), False, True)
    assert (await a.board(D, want=1, size=SIZE)).claims == (0,)
    answer = await liar.board(D, want=4, size=SIZE)
    assert (answer.hope, answer.poisoned) == (True, False), "it comes from somebody else"


async def test_hashes_that_one_member_tells_of_blobs_nobody_wants_are_bounded_in_bytes(here: Town) -> None:
    flood = here.agent("flood", 7001, "127.0.0.9")
    here.server.cluster.budgets = Budgets(most=10_000)
    for index in range(20):
        await flood.whole(digest_of(f"made up {index}"), 40 * MIB)
    kept = list(here.server.cluster.swarms)
    assert 0 < sum(len(swarm.board.hashes) for swarm in kept) <= 10_000
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1001, "127.0.0.3")
    await a.bring_in(D, SIZE)
    await b.board(D)
    await flood.whole(D, SIZE)
    for index in range(20):
        await flood.whole(digest_of(f"more {index}"), 40 * MIB)
    assert here.server.cluster.swarms.get(D) is not None, "others use it"


async def test_a_size_that_no_blob_has_is_as_if_nothing_was_said(here: Town) -> None:
    liar, a = here.agent("liar", 7001, "127.0.0.9"), here.agent("a", 1001, "127.0.0.2")
    assert (await liar.board(D, size=1 << 50)).size is None
    assert (await a.board(D, size=SIZE, want=1)).size == SIZE


async def test_what_nobody_asked_for_is_not_kept_if_it_is_large(here: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MOST_UNASKED", 100)
    a = here.agent("a", 1001, "127.0.0.2")
    await a.hello()
    await a.whole(digest_of("unasked"), 40 * MIB)
    assert here.server.cluster.swarms.get(digest_of("unasked")) is None
    assert (await a.hello(asked=40 * MIB)).need == (digest_of("asked"),)
    await a.whole(digest_of("asked"), 40 * MIB)
    assert (await here.agent("b", 1002).board(digest_of("asked"))).sealed


async def test_who_brings_nothing_in_has_no_word_on_the_size(here: Town) -> None:
    liar, a = here.agent("liar", 7001, "127.0.0.9"), here.agent("a", 1001, "127.0.0.2")
    await liar.board(D, size=110 * MIB)
    assert (await a.board(D, want=1)).size is None


async def test_who_contradicts_what_was_brought_in_without_being_asked_is_blamed(here: Town) -> None:
    a, liar = here.agent("a", 1001, "127.0.0.2"), here.agent("liar", 7001, "127.0.0.9")
    await a.bring_in(D, SIZE)
    await a.seal(D)
    await liar.board(D)
    await liar.publish(D, SIZE, 0, told_by="liar")
    assert (await liar.poll(full=True)).quarantined > 0
    assert (await a.board(D)).sealed


def delivered(here: Town, *ports: int) -> None:
    """The agents at these ports have delivered before, so that they may have several claims at once."""
    here.server.cluster.trust.deliver(f"127.0.0.1:{port}" for port in ports)


NORTH, SOUTH = "127.0.0.2", "127.0.0.3"
ZONES = StaticDiscovery(["127.0.0.0/8"], {f"{NORTH}/32": "north", f"{SOUTH}/32": "south"})


async def test_agents_of_the_zone_near_to_upstream_bring_it_in() -> None:
    async with town(ZONES, near_zone=("south",)) as here:
        a, b = here.agent("a", 1001, NORTH), here.agent("b", 1002, SOUTH)
        assert (await a.board(D, want=8)).claims == (0,)  # nobody else is there yet
        assert (await b.board(D, want=8)).claims == ()
        told = await a.publish(D, 24 * MIB, 0)
        assert (told.claims, len((await b.board(D, want=8)).claims)) == ((), 8)


async def test_with_a_copy_per_zone_peers_are_of_the_own_zone_while_that_can_bring_the_blob_in() -> None:
    async with town(ZONES, copy_per_zone=True) as here:
        a, b = here.agent("a", 1001, NORTH), here.agent("b", 1002, SOUTH)
        await a.bring_in(D, SIZE)
        await a.seal(D)
        first = await b.board(D, want=8, size=SIZE)
        assert (first.claims, first.peers, first.sealed) == ((0, 1, 2), (), False)
        said = {**b.me, "digest": D, "incarnation": first.incarnation}
        await b.say("release", wire.Release(**said, windows=(0, 1, 2), failure="refused"), wire.BoardAnswer)
        last = await b.board(D, want=8)
        assert (last.peers, last.sealed) == ((wire.Peer(ip=NORTH, port=1001),), True), "no wall strands a zone"


async def test_with_a_copy_per_zone_windows_are_not_asked_of_another_zone_over_the_lane() -> None:
    async with town(ZONES, copy_per_zone=True) as here:
        a, b, c = here.agent("a", 1001, NORTH), here.agent("b", 1002, SOUTH), here.agent("c", 1003, NORTH)
        a.me["lane"] = b.me["lane"] = c.me["lane"] = 7001
        await a.board(D, want=1)
        await a.publish(D, SIZE, 0)
        assert (await b.board(D, want=8)).holders == {}
        holder = wire.Peer(ip=NORTH, port=1001, lane=7001)
        assert (await c.board(D, want=1)).holders == {0: (holder,)}


async def test_a_sealed_blob_has_holders(here: Town) -> None:
    a, b = here.agent("a", 1001, "127.0.0.2"), here.agent("b", 1002)
    await a.bring_in(D, SIZE)
    await b.board(D)
    waiting = pending(b)
    await wait_until_waiting(here, D, 1)
    await a.seal(D)
    answer = await waiting
    assert answer.sealed
    assert answer.copies == 1
    assert answer.peers == (wire.Peer(ip="127.0.0.2", port=1001),)


async def test_several_who_fetch_from_a_lone_holder_take_turns(here: Town) -> None:
    seed, a, b = here.agent("seed", 1001, "127.0.0.2"), here.agent("a", 1002), here.agent("b", 1003)
    await seed.bring_in(D, SIZE)
    await seed.seal(D)
    first = await a.board(D, want=8, size=SIZE, turns=2)
    second = await b.board(D, want=8, size=SIZE, turns=2)
    sole = wire.Peer(ip="127.0.0.2", port=1001)
    assert (second.sealed, second.sole, second.available) == (False, sole, b"")
    assert sole not in second.peers
    assert (first.sealed, first.sole) == (False, sole)
    assert sorted(first.claims + second.claims) == [0, 1, 2]
    told = await a.publish(D, SIZE, first.claims[0])
    assert told.available is not None
    assert wire.from_bitmap(told.available) == 1 << first.claims[0]
    await a.seal(D)
    last = await b.board(D, want=8, size=SIZE, turns=2)
    assert (last.sealed, last.sole, last.claims) == (True, None, ())


async def test_when_nobody_can_bring_the_blob_in_who_waits_is_told(here: Town) -> None:
    a, b = here.agent("a", 1001), here.agent("b", 1002)
    await a.board(D, want=1)
    assert (await b.board(D)).hope
    waiting = pending(b)
    await wait_until_waiting(here, D, 1)
    message = wire.Release(**a.me, digest=D, incarnation=a.seen[D].incarnation, windows=(0,), failure="refused")
    await a.say("release", message, wire.BoardAnswer)
    assert not (await waiting).hope


async def test_who_told_wrong_hashes_is_quarantined_and_named(here: Town, caplog: pytest.LogCaptureFixture) -> None:
    liar, a, b = here.agent("liar", 1001), here.agent("a", 1002), here.agent("b", 1003)
    for agent in (liar, a, b):
        await agent.hello()
    await liar.bring_in(D, SIZE, told_by="liar")
    await a.board(D)
    await a.reject(D)
    await b.bring_in(D, SIZE)
    await b.seal(D)
    assert (await liar.poll()).quarantined == pytest.approx(600, abs=5)
    assert (await liar.board(digest_of("other"), want=4)).claims == ()
    assert wire.Peer(ip="127.0.0.1", port=1001) not in (await a.board(D)).peers
    state = msgspec.json.decode((await a.get("/api/v1/state"))[1])
    assert state["quarantined"].keys() == {"127.0.0.1:1001"}
    assert state["blame"][0]["name"] == "liar"
    assert "shoal_tracker_quarantines_total 1.0" in (await a.get("/metrics"))[1].decode()
    assert "agent.quarantined" in caplog.messages


async def test_a_quarantine_ends() -> None:
    async with town(quarantine=0.2) as short:
        liar, a = short.agent("liar", 1001), short.agent("a", 1002)
        await liar.hello()
        await a.bring_in(D, SIZE)
        await a.seal(D)
        b = short.agent("b", 1003)
        await b.board(D)
        await b.seal(D)
        await liar.board(D)
        await liar.publish(D, SIZE, 0, told_by="liar")
        assert (await liar.poll()).quarantined > 0
        assert (await liar.poll(wait=20.0)).quarantined == 0
        assert (await liar.board(digest_of("other"), want=1)).claims == (0,)


async def test_an_agent_cannot_wait_on_too_many_boards() -> None:
    async with town(max_waiting=2) as small:
        a = small.agent("a", 1001)
        tasks = []
        for turn in range(2):
            await a.board(digest_of(str(turn)))
            tasks.append(pending(a, digest_of(str(turn))))
            await wait_until_waiting(small, digest_of(str(turn)), 1)
        await a.board(digest_of("third"))
        with pytest.raises(Refusal) as refusal:
            await pending(a, digest_of("third"))
        assert refusal.value.status == 503
        for task in tasks:
            task.cancel()


async def test_unsealed_boards_that_nobody_uses_are_dropped() -> None:
    async with town(idle_board=0.05) as here:
        a = here.agent("a", 1001)
        await a.board(D)
        await a.say("leave", wire.Leave(**a.me, digest=D), wire.Ok)
        await until(lambda: not len(here.server.cluster.swarms))


async def test_the_least_recently_used_boards_go_first_and_their_holders_are_found_again() -> None:
    async with town(max_boards=2) as here:
        a, b = here.agent("a", 1001), here.agent("b", 1002)
        await a.hello()
        for name in ("one", "two", "three"):
            await a.whole(digest_of(name), SIZE)
            await a.poll(add=(wire.CompleteBlob(digest=digest_of(name), size=SIZE),))
        assert here.server.cluster.swarms.get(digest_of("one")) is None
        await b.board(digest_of("one"), want=1)
        answer = await a.poll()
        assert answer.need == (digest_of("one"),)


@pytest.mark.parametrize(
    ("verb", "body", "status"),
    [
        ("board", b"", 400),
        ("board", b"{}", 400),
        ("board", b'{"node":"n","port":1,"session":"s","digest":"md5:00"}', 400),
        ("board", b'{"node":"n","port":0,"session":"s","digest":"sha256:%s"}' % (b"a" * 64), 400),
        ("agent", b'{"node":"n","port":1,"session":"s","add":[{"digest":"x","size":1}]}', 400),
        ("publish", b'{"node":"n","port":1,"session":"s","digest":"sha256:%s","incarnation":"","generation":0,'
         b'"size":1,"window":0,"hashes":""}' % (b"a" * 64), 409),
        ("nothing", b"{}", 404),
        ("board", b"x" * 2000, 413),
    ],
)  # fmt: skip
async def test_bad_requests_are_refused_in_the_protocols_own_form(verb: str, body: bytes, status: int) -> None:
    async with (
        town(max_body=1000) as here,
        aiohttp.ClientSession() as http,
        http.post(f"{here.server.url}/v1/{verb}", data=body, headers=JSON) as answer,
    ):
        assert answer.status == status
        assert wire.decode(await answer.read(), wire.Problem).message


async def test_hashes_that_cannot_be_are_refused(here: Town) -> None:
    a = here.agent("a", 1001)
    await a.board(D, want=1)
    message = wire.Publish(
        **a.me, digest=D, incarnation=a.seen[D].incarnation, generation=0, size=SIZE, window=0, hashes=b"short"
    )
    with pytest.raises(Refusal) as refusal:
        await a.say("publish", message, wire.BoardAnswer)
    assert refusal.value.status == 400


def test_the_answer_that_is_encoded_in_parts_is_a_board_answer() -> None:
    """tracker.state.swarms.Raw has the fields of wire.BoardAnswer, one of them encoded beforehand."""
    published = {3: b"abc"}
    peers = (wire.Peer(ip="::1", port=1),)
    raw = Raw(
        incarnation="i", version=2, generation=1, serial=5, size=7, claims=(1,), hope=False, poisoned=True,
        copies=3, holders={4: peers}, sealed=True, peers=peers, published=msgspec.Raw(msgspec.json.encode(published)),
        sole=peers[0], available=b"s",
    )  # fmt: skip
    answer = wire.decode(msgspec.json.encode(raw), wire.BoardAnswer)
    assert answer == wire.BoardAnswer(
        incarnation="i", version=2, generation=1, serial=5, size=7, claims=(1,), hope=False, poisoned=True,
        copies=3, holders={4: peers}, sealed=True, peers=peers, published=published, sole=peers[0], available=b"s",
    )  # fmt: skip
    assert [field.name for field in msgspec.structs.fields(Raw)] == [
        field.name for field in msgspec.structs.fields(wire.BoardAnswer)
    ]
