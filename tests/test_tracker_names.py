"""Tags: asked upstream by one agent per ttl, never an older meaning after a newer one, remembered for a day."""

from __future__ import annotations

import asyncio

import pytest

from swarm.protocol import wire
from tests.parts.talk import digest_of, town, until
from tracker.state import tags as module
from tracker.state.tags import LEASE, PAUSE, Names

OLD, NEW = digest_of("old"), digest_of("new")
NAME = "registry.example/app:latest"


def told(names: Names, agent: str, digest: str, now: float) -> bool:
    """Upstream says."""
    return names.told(NAME, agent, digest, "type", 5, now)


def test_one_agent_asks_and_the_others_wait() -> None:
    names = Names(1000.0, 10)
    assert names.ask(NAME, "a", ttl=10, since=0, now=0).resolve
    waiting = names.ask(NAME, "b", ttl=10, since=0, now=0)
    assert not waiting.resolve
    assert waiting.until == LEASE
    assert told(names, "a", OLD, 1)
    answer = names.ask(NAME, "b", ttl=10, since=0, now=1)
    assert answer.fresh
    assert answer.known is not None
    assert answer.known.digest == OLD


@pytest.mark.parametrize(("now", "fresh"), [(10.0, True), (10.1, False)])
def test_an_answer_is_fresh_for_its_ttl(now: float, fresh: bool) -> None:
    """Counted from the question: the tag may have moved while the answer was on its way."""
    names = Names(1000.0, 10)
    names.ask(NAME, "a", ttl=10, since=0, now=0)
    told(names, "a", OLD, 1)
    assert names.ask(NAME, "b", ttl=10, since=now, now=now).fresh is fresh


def test_with_a_ttl_of_zero_an_answer_is_shared_only_by_those_who_waited_for_it() -> None:
    names = Names(1000.0, 10)
    names.ask(NAME, "a", ttl=0, since=0, now=0)
    told(names, "a", OLD, 1)
    assert names.ask(NAME, "b", ttl=0, since=0.5, now=1).fresh
    assert names.ask(NAME, "c", ttl=0, since=1.5, now=1.5).resolve


def test_when_the_lease_ends_another_agent_asks_and_the_late_answer_does_not_replace_a_newer_one() -> None:
    names = Names(1000.0, 10)
    names.ask(NAME, "slow", ttl=10, since=0, now=0)
    assert names.ask(NAME, "b", ttl=10, since=0, now=LEASE).resolve
    assert told(names, "b", NEW, LEASE + 1)
    assert not told(names, "slow", OLD, LEASE + 2)
    answer = names.ask(NAME, "c", ttl=10, since=LEASE + 2, now=LEASE + 2)
    assert answer.known is not None
    assert answer.known.digest == NEW


def test_what_agents_remember_never_replaces_something_newer() -> None:
    names = Names(1000.0, 10)
    assert names.remember(NAME, NEW, "type", 5, age=10, now=100)
    assert not names.remember(NAME, OLD, "type", 5, age=20, now=100)
    assert not names.remember(NAME, OLD, "type", 5, age=2000, now=100)
    answer = names.ask(NAME, "a", ttl=1, since=100, now=100)
    assert answer.resolve
    assert answer.known is not None
    assert answer.known.digest == NEW


def test_while_upstream_fails_the_last_known_meaning_answers_and_upstream_has_a_pause() -> None:
    names = Names(1000.0, 10)
    names.remember(NAME, OLD, "type", 5, age=100, now=0)
    assert names.ask(NAME, "a", ttl=1, since=0, now=0).resolve
    names.failed(NAME, "a", gone=False, now=1)
    answer = names.ask(NAME, "b", ttl=1, since=0, now=1)
    assert answer.known is not None
    assert (answer.fresh, answer.resolve, answer.until) == (False, False, None)
    assert not names.ask(NAME, "b", ttl=1, since=2, now=2).resolve
    assert names.ask(NAME, "b", ttl=1, since=PAUSE + 1, now=PAUSE + 1).resolve


def test_a_name_that_is_gone_is_forgotten() -> None:
    names = Names(1000.0, 10)
    names.remember(NAME, OLD, "type", 5, age=100, now=0)
    names.ask(NAME, "a", ttl=1, since=0, now=0)
    names.failed(NAME, "a", gone=True, now=1)
    assert names.ask(NAME, "b", ttl=1, since=0, now=1).known is None
    assert names.ask(NAME, "b", ttl=1, since=2, now=2).resolve


def test_who_failed_after_its_lease_ended_does_not_stop_the_one_who_asks_now() -> None:
    names = Names(1000.0, 10)
    names.ask(NAME, "slow", ttl=10, since=0, now=0)
    names.ask(NAME, "b", ttl=10, since=0, now=LEASE)
    names.failed(NAME, "slow", gone=True, now=LEASE + 1)
    assert names.ask(NAME, "c", ttl=10, since=LEASE + 1, now=LEASE + 1).until == 2 * LEASE


def test_a_meaning_is_kept_for_so_long_and_so_many_are_kept() -> None:
    names = Names(1000.0, 2)
    names.ask(NAME, "a", ttl=1, since=0, now=0)
    told(names, "a", OLD, 0)
    assert names.ask(NAME, "a", ttl=1, since=1001, now=1001).known is None
    for name in ("one", "two", "three"):
        names.remember(name, OLD, "type", 5, age=0, now=0)
    assert len(names) == 2


def test_when_the_agent_that_asks_is_gone_another_one_is_told_to() -> None:
    names = Names(1000.0, 10)
    names.ask(NAME, "a", ttl=1, since=0, now=0)
    assert names.forget("a") == [NAME]
    assert names.forget("a") == []
    assert names.ask(NAME, "b", ttl=1, since=0, now=0).resolve


async def test_many_lookups_at_once_ask_upstream_once() -> None:
    async with town() as here:
        agents = [here.agent(f"n{i}", 1000 + i) for i in range(5)]
        lookup = [wire.NameLookup(**agent.me, name=NAME, ttl=10.0, wait=20.0) for agent in agents]
        assert (await agents[0].say("name", lookup[0], wire.NameAnswer)).resolve
        others = [
            asyncio.create_task(agent.say("name", said, wire.NameAnswer))
            for agent, said in zip(agents[1:], lookup[1:], strict=True)
        ]
        await until(lambda: here.server.metrics.waiting._value.get() == 4)
        message = wire.NameTold(**agents[0].me, name=NAME, digest=NEW, media_type="type", size=5)
        await agents[0].say("name/told", message, wire.Ok)
        for answer in await asyncio.gather(*others):
            assert answer.fresh
            assert answer.known is not None
            assert (answer.known.digest, answer.known.media_type, answer.known.size) == (NEW, "type", 5)


async def test_when_the_one_that_asks_fails_the_others_stop_waiting() -> None:
    async with town() as here:
        a, b = here.agent("a", 1), here.agent("b", 2)
        await a.poll(full=True, names=(wire.Name(name=NAME, digest=OLD, media_type="type", size=5, age=60.0),))
        assert (await a.say("name", wire.NameLookup(**a.me, name=NAME, ttl=1.0), wire.NameAnswer)).resolve
        lookup = wire.NameLookup(**b.me, name=NAME, ttl=1.0, wait=20.0)
        waiting = asyncio.create_task(b.say("name", lookup, wire.NameAnswer))
        await until(lambda: here.server.metrics.waiting._value.get() == 1)
        await a.say("name/failed", wire.NameFailed(**a.me, name=NAME), wire.Ok)
        answer = await waiting
        assert not answer.fresh
        assert not answer.resolve
        assert answer.known is not None
        assert answer.known.age >= 60.0


async def test_when_the_one_that_asks_is_silent_another_one_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE", 0.1)
    async with town() as here:
        a, b = here.agent("a", 1), here.agent("b", 2)
        assert (await a.say("name", wire.NameLookup(**a.me, name=NAME, ttl=1.0), wire.NameAnswer)).resolve
        lookup = wire.NameLookup(**b.me, name=NAME, ttl=1.0, wait=20.0)
        assert (await b.say("name", lookup, wire.NameAnswer)).resolve
