"""Tags: asked upstream by one agent per ttl, never an older meaning after a newer one, remembered for a day."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from random import Random

import pytest

from swarm.protocol import wire
from tests.parts.talk import digest_of, town, until
from tracker.state import tags as module
from tracker.state.tags import LEASE, MOST_DECLINED, MOST_OWN, PAUSE, PUSHED, Meanings, Verdict

OLD, NEW = digest_of("old"), digest_of("new")
NAME = "registry.example/app:latest"


def told(names: Meanings, agent: str, digest: str, now: float) -> list[str]:
    """Upstream says."""
    return names.told(NAME, agent, digest, "type", 5, now)


def ask(names: Meanings, agent: str, now: float, ttl: float = 10.0, since: float | None = None) -> Verdict:
    """An agent that is a member of its own asks."""
    return names.ask(NAME, agent, agent, ttl=ttl, since=now if since is None else since, now=now)


def agreed(names: Meanings, digest: str, now: float) -> None:
    """Two members heard it from upstream, when they were asked."""
    for agent in ("x", "y"):
        assert ask(names, agent, now, ttl=0).resolve
    for agent in ("x", "y"):
        told(names, agent, digest, now)


def digest(verdict: Verdict) -> str | None:
    return verdict.known.digest if verdict.known is not None else None


def test_two_members_ask_and_the_others_wait_until_they_agree() -> None:
    names = Meanings(1000.0, 10)
    assert [ask(names, agent, 0.0).resolve for agent in "abcd"] == [True, True, False, False]
    assert ask(names, "c", 0.0).until == LEASE
    told(names, "a", OLD, 1)
    answer = ask(names, "c", 1.0, since=0.0)
    assert (answer.fresh, digest(answer)) == (False, None), "the word of one member"
    told(names, "b", OLD, 1)
    answer = ask(names, "c", 1.0, since=0.0)
    assert (answer.fresh, digest(answer)) == (True, OLD)


def test_what_a_member_heard_itself_counts_for_itself() -> None:
    names = Meanings(1000.0, 10)
    ask(names, "a", 0.0)
    told(names, "a", OLD, 1)
    assert (ask(names, "a", 5.0).fresh, digest(ask(names, "a", 5.0))) == (True, OLD)
    assert ask(names, "b", 5.0).resolve
    assert ask(names, "a", 11.0).resolve


def test_processes_of_one_member_do_not_agree_with_each_other() -> None:
    names = Meanings(1000.0, 10)
    for agent in ("evil:1", "evil:2"):
        names.ask(NAME, agent, "evil", ttl=10, since=0, now=0)
        told(names, agent, OLD, 0)
    assert digest(ask(names, "a", 1.0)) is None
    assert ask(names, "a", 1.0).resolve


@pytest.mark.parametrize("asked", [False, True])
def test_what_nobody_was_asked_for_changes_nothing(asked: bool) -> None:
    names = Meanings(1000.0, 10)
    agreed(names, OLD, 0.0)
    if asked:
        ask(names, "evil", 20.0)
        told(names, "evil", NEW, 20.0)
    for _ in range(5):
        told(names, "evil", NEW, 20.0)
        names.remember(NAME, "evil", NEW, "type", 5, age=-1e9, now=20.0)
    assert digest(ask(names, "a", 21.0)) == OLD
    assert ask(names, "a", 21.0).resolve


def test_who_says_something_else_than_two_before_and_after_lied() -> None:
    names = Meanings(1000.0, 10)
    ask(names, "a", 0.0)
    assert told(names, "a", OLD, 1.0) == []
    ask(names, "liar", 2.0)
    assert told(names, "liar", NEW, 3.0) == []
    ask(names, "b", 4.0)
    assert told(names, "b", OLD, 5.0) == ["liar"]
    assert digest(ask(names, "c", 6.0)) == OLD


def test_a_tag_that_moved_meanwhile_is_nobodys_lie() -> None:
    names = Meanings(1000.0, 10)
    ask(names, "a", 0.0)
    told(names, "a", OLD, 1.0)
    ask(names, "b", 2.0)
    assert told(names, "b", NEW, 3.0) == []
    ask(names, "c", 4.0)
    assert told(names, "c", NEW, 5.0) == []
    assert digest(ask(names, "d", 6.0)) == NEW


@pytest.mark.parametrize(("now", "fresh"), [(10.0, True), (10.1, False)])
def test_an_answer_is_fresh_for_its_ttl(now: float, fresh: bool) -> None:
    """Counted from the question: the tag may have moved while the answer was on its way."""
    names = Meanings(1000.0, 10)
    agreed(names, OLD, 0.0)
    assert ask(names, "b", now).fresh is fresh


def test_a_meaning_is_as_old_as_the_older_of_those_who_agree() -> None:
    """The newer one may be a liar who repeats what the tag meant before."""
    names = Meanings(1000.0, 10)
    ask(names, "a", 0.0)
    told(names, "a", OLD, 0.0)
    ask(names, "b", 9.0)
    told(names, "b", OLD, 9.0)
    assert ask(names, "c", 10.0).fresh
    assert ask(names, "c", 11.0).resolve


def test_with_a_ttl_of_zero_an_answer_is_shared_only_by_those_who_waited_for_it() -> None:
    names = Meanings(1000.0, 10)
    for agent in "ab":
        ask(names, agent, 0.0, ttl=0)
    for agent in "ab":
        told(names, agent, OLD, 1)
    assert ask(names, "c", 1.0, ttl=0, since=0.5).fresh
    assert ask(names, "d", 1.5, ttl=0).resolve


def test_when_the_lease_ends_another_agent_asks_and_the_late_answer_does_not_replace_a_newer_one() -> None:
    names = Meanings(1000.0, 10)
    for agent in ("slow", "slower"):
        ask(names, agent, 0.0)
    for agent in "bc":
        assert ask(names, agent, LEASE).resolve
        told(names, agent, NEW, LEASE + 1)
    for agent in ("slow", "slower"):
        told(names, agent, OLD, LEASE + 2)
    assert digest(ask(names, "d", LEASE + 2)) == NEW


def test_what_two_members_remember_counts_and_never_replaces_something_newer() -> None:
    names = Meanings(1000.0, 10)
    assert not names.remember(NAME, "a", NEW, "type", 5, age=10, now=100)
    assert digest(ask(names, "c", 100.0, ttl=1)) is None
    assert names.remember(NAME, "b", NEW, "type", 5, age=12, now=100)
    for member in "de":
        assert not names.remember(NAME, member, OLD, "type", 5, age=20, now=100)
    assert not names.remember(NAME, "f", OLD, "type", 5, age=2000, now=100)
    assert digest(ask(names, "c", 100.0, ttl=1)) == NEW


def remembered(names: Meanings) -> None:
    """Two members told an old meaning."""
    for member in "xy":
        names.remember(NAME, member, OLD, "type", 5, age=100, now=0)


def test_while_upstream_fails_the_last_known_meaning_answers_and_upstream_has_a_pause() -> None:
    names = Meanings(1000.0, 10)
    remembered(names)
    for agent in "ab":
        assert ask(names, agent, 0.0, ttl=1).resolve
        names.failed(NAME, agent, gone=False, now=1)
    answer = ask(names, "c", 1.0, ttl=1, since=0)
    assert (digest(answer), answer.fresh, answer.resolve, answer.until) == (OLD, False, False, None)
    assert not ask(names, "c", 2.0, ttl=1).resolve
    assert ask(names, "c", PAUSE + 1.1, ttl=1).resolve


def test_one_member_that_says_it_failed_does_not_keep_others_from_asking() -> None:
    names = Meanings(1000.0, 10)
    remembered(names)
    ask(names, "evil", 0.0, ttl=1)
    names.failed(NAME, "evil", gone=True, now=1)
    assert ask(names, "a", 1.0, ttl=1).resolve
    assert digest(ask(names, "a", 1.0, ttl=1)) == OLD


def test_a_name_that_is_gone_for_two_is_forgotten() -> None:
    names = Meanings(1000.0, 10)
    remembered(names)
    for agent in "ab":
        ask(names, agent, 0.0, ttl=1)
        names.failed(NAME, agent, gone=True, now=1)
    assert digest(ask(names, "c", 1.0, ttl=1, since=0)) is None
    assert ask(names, "c", 2.0, ttl=1).resolve


def test_a_meaning_is_kept_for_so_long_and_so_many_are_kept() -> None:
    names = Meanings(1000.0, 2)
    agreed(names, OLD, 0.0)
    assert digest(ask(names, "a", 1001.0)) is None
    for name in ("one", "two", "three"):
        names.remember(name, "a", OLD, "type", 5, age=0, now=0)
    assert len(names) == 2


def test_when_the_agent_that_asks_is_gone_another_one_is_told_to() -> None:
    names = Meanings(1000.0, 10)
    for agent in "ab":
        ask(names, agent, 0.0)
    assert names.forget("a") == [NAME]
    assert names.forget("a") == []
    assert ask(names, "c", 0.0).resolve


async def test_many_lookups_at_once_ask_upstream_twice() -> None:
    async with town() as here:
        agents = [here.agent(f"n{i}", 1000 + i) for i in range(5)]
        lookup = [wire.NameLookup(**agent.me, name=NAME, ttl=10.0, wait=20.0) for agent in agents]
        for agent, said in zip(agents[:2], lookup[:2], strict=True):
            assert (await agent.say("name", said, wire.NameAnswer)).resolve
        others = [
            asyncio.create_task(agent.say("name", said, wire.NameAnswer))
            for agent, said in zip(agents[2:], lookup[2:], strict=True)
        ]
        await until(lambda: here.server.metrics.waiting._value.get() == 3)
        for agent in agents[:2]:
            message = wire.NameTold(**agent.me, name=NAME, digest=NEW, media_type="type", size=5)
            await agent.say("name/told", message, wire.Ok)
        for answer in await asyncio.gather(*others):
            assert answer.fresh
            assert answer.known is not None
            assert (answer.known.digest, answer.known.media_type, answer.known.size) == (NEW, "type", 5)


async def test_when_those_that_ask_fail_the_others_stop_waiting() -> None:
    async with town() as here:
        a, b, c = (here.agent(name, 1 + place) for place, name in enumerate("abc"))
        for agent in (a, b):
            said = wire.Name(name=NAME, digest=OLD, media_type="type", size=5, age=60.0)
            await agent.poll(full=True, names=(said,))
            assert (await agent.say("name", wire.NameLookup(**agent.me, name=NAME, ttl=1.0), wire.NameAnswer)).resolve
        lookup = wire.NameLookup(**c.me, name=NAME, ttl=1.0, wait=20.0)
        waiting = asyncio.create_task(c.say("name", lookup, wire.NameAnswer))
        await until(lambda: here.server.metrics.waiting._value.get() == 1)
        for agent in (a, b):
            await agent.say("name/failed", wire.NameFailed(**agent.me, name=NAME), wire.Ok)
        answer = await waiting
        assert answer.resolve or answer.known is not None
        assert not answer.fresh
        assert answer.known is not None
        assert answer.known.age >= 60.0


async def test_when_those_that_ask_are_silent_another_one_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE", 0.1)
    async with town() as here:
        a, b, c = (here.agent(name, 1 + place) for place, name in enumerate("abc"))
        for agent in (a, b):
            assert (await agent.say("name", wire.NameLookup(**agent.me, name=NAME, ttl=1.0), wire.NameAnswer)).resolve
        lookup = wire.NameLookup(**c.me, name=NAME, ttl=1.0, wait=20.0)
        assert (await c.say("name", lookup, wire.NameAnswer)).resolve


async def test_a_liar_about_a_tag_is_named_and_put_into_quarantine(caplog: pytest.LogCaptureFixture) -> None:
    async with town() as here:
        a, liar, b = (here.agent(name, 1 + place) for place, name in enumerate(("a", "liar", "b")))
        for agent, digest in ((a, OLD), (liar, NEW), (b, OLD)):
            assert (await agent.say("name", wire.NameLookup(**agent.me, name=NAME, ttl=10.0), wire.NameAnswer)).resolve
            message = wire.NameTold(**agent.me, name=NAME, digest=digest, media_type="type", size=5)
            await agent.say("name/told", message, wire.Ok)
        assert (await liar.poll(full=True)).quarantined > 0
        assert "name.disputed" in caplog.messages


# -- who is chosen to ask ---------------------------------------------------------------------------------


class Crowd:
    """Members that a tracker may choose from; each has one agent of the same name."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.all = [f"n{i}" for i in range(count)]
        self.chance = Random(seed)

    def pick(self, count: int, but: Collection[str]) -> list[tuple[str, str]]:
        """A Pick."""
        able = [member for member in self.all if member not in but]
        return [(member, member) for member in self.chance.sample(able, min(count, len(able)))]


def test_who_looks_a_name_up_first_does_not_thereby_ask_for_all() -> None:
    """Two members that always come first hear no more often than others what upstream said, and define nothing."""
    names, crowd = Meanings(1000.0, 10), Crowd(1000)
    for turn in range(100):
        now = 20.0 * turn
        for evil in ("n0", "n1"):
            verdict = names.ask(NAME, evil, evil, ttl=10, since=now, now=now, pick=crowd.pick)
            assert not verdict.resolve
            told(names, evil, NEW, now)
        chosen = [agent for agent, lease in names._records[NAME].leases.items() if lease.asked == now]
        assert len(chosen) == 2
        for agent in chosen:
            told(names, agent, OLD, now + 0.1)
        assert digest(names.ask(NAME, "n5", "n5", ttl=10, since=now, now=now + 0.2, pick=crowd.pick)) == OLD


def test_a_rollout_to_a_thousand_nodes_asks_upstream_twice_per_ttl() -> None:
    """A thousand nodes look one tag up within a minute: two questions for each TTL of ten seconds, twelve in all."""
    names, crowd = Meanings(86_400.0, 10), Crowd(1000)
    questions = 0
    chosen: list[tuple[float, str]] = []
    for place, node in enumerate(crowd.all):
        now = 60.0 * place / 1000
        for at, agent in [due for due in chosen if due[0] <= now]:
            chosen.remove((at, agent))
            told(names, agent, OLD, at)
        verdict = names.ask(NAME, node, node, ttl=10, since=now, now=now, pick=crowd.pick)
        asked = [*verdict.chosen, *([node] if verdict.resolve else [])]
        questions += len(asked)
        chosen += [(now + 0.2, agent) for agent in asked]  # upstream takes as long
    assert questions == 12


def test_when_one_that_was_chosen_is_silent_another_is_after_a_second_and_the_late_word_counts() -> None:
    names, crowd = Meanings(1000.0, 10), Crowd(10)
    first = names.ask(NAME, "n0", "n0", ttl=10, since=0, now=0.0, pick=crowd.pick).chosen
    slow, quick = first
    told(names, quick, OLD, 0.1)
    assert names.ask(NAME, "n0", "n0", ttl=10, since=0, now=0.1, pick=crowd.pick).until == PUSHED
    (other,) = names.ask(NAME, "n0", "n0", ttl=10, since=0, now=PUSHED, pick=crowd.pick).chosen
    assert other not in first
    told(names, slow, OLD, PUSHED + 0.1)
    assert names.ask(NAME, "n0", "n0", ttl=10, since=0, now=PUSHED + 0.2, pick=crowd.pick).fresh


def test_who_has_not_the_right_to_ask_is_passed_over_and_in_the_end_who_looks_it_up_asks() -> None:
    names, crowd = Meanings(1000.0, 10), Crowd(100)
    asked: list[str] = []
    while True:
        verdict = names.ask(NAME, "n0", "n0", ttl=10, since=0, now=0.0, pick=crowd.pick)
        if verdict.resolve:
            break
        for agent in verdict.chosen:
            names.failed(NAME, agent, gone=False, now=0.0, declined=True)
        asked += verdict.chosen
    assert len(asked) == len(set(asked)) == MOST_DECLINED


def test_what_one_member_looks_up_and_remembers_does_not_push_out_what_others_said() -> None:
    names = Meanings(1000.0, 100_000)
    agreed(names, OLD, 0.0)
    for member in ("a", "b"):
        names.remember("remembered", member, OLD, "type", 5, age=0, now=0)
    for number in range(MOST_OWN + 10):
        names.ask(f"made up {number}", "evil", "evil", ttl=10, since=0, now=0)
        names.remember(f"told {number}", "evil", NEW, "type", 5, age=0, now=0)
    assert len(names) <= MOST_OWN + 20
    assert digest(ask(names, "c", 1.0)) == OLD
    assert digest(names.ask("remembered", "c", "c", ttl=10, since=0, now=0)) == OLD


def test_who_was_chosen_and_looks_it_up_meanwhile_is_not_told_to_ask_once_more() -> None:
    names, crowd = Meanings(1000.0, 10), Crowd(10)
    chosen, _ = names.ask(NAME, "n0", "n0", ttl=10, since=0, now=0.0, pick=crowd.pick).chosen
    verdict = names.ask(NAME, chosen, chosen, ttl=10, since=0.1, now=0.1, pick=crowd.pick)
    assert (verdict.resolve, verdict.chosen, verdict.until) == (False, (), PUSHED)


async def test_the_chosen_are_told_over_their_channels_and_their_word_reaches_who_looked_it_up() -> None:
    async with town() as here:
        looker, *others = (here.agent(f"n{i}", 1000 + i, f"127.0.1.{i + 1}") for i in range(4))
        for agent in others:
            await agent.hello()
        channels = {agent: asyncio.create_task(agent.poll(wait=20.0)) for agent in others}
        await until(lambda: sum(agent.channels for agent in here.server.cluster.agents.all()) == 3)
        lookup = wire.NameLookup(**looker.me, name=NAME, ttl=10.0, wait=20.0)
        waiting = asyncio.create_task(looker.say("name", lookup, wire.NameAnswer))
        done: set[asyncio.Task[wire.AgentAnswer]] = set()
        async with asyncio.timeout(20):
            while len(done) < 2:
                done, _ = await asyncio.wait(channels.values(), return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0)
        chosen = [agent for agent, task in channels.items() if task in done]
        assert [task.result().resolve for task in done] == [(NAME,)] * 2
        for agent in chosen:
            message = wire.NameTold(**agent.me, name=NAME, digest=NEW, media_type="type", size=5)
            await agent.say("name/told", message, wire.Ok)
        answer = await waiting
        assert answer.known is not None
        assert (answer.fresh, answer.known.digest) == (True, NEW)
        for task in channels.values():
            task.cancel()
        await asyncio.gather(*channels.values(), return_exceptions=True)
