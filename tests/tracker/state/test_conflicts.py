"""Two agents behind one address are told as such, with both names, wherever somebody looks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parts.talk import Refusal, Town, town
from tracker.members.static import StaticDiscovery
from tracker.state import refusals, rivals
from tracker.state.refusals import Refusals
from tracker.state.rivals import PROOF, Rivals


async def _json(here: Town, path: str) -> Any:
    status, body = await here.agent("reader").get(path)
    assert status == 200
    return json.loads(body)


async def test_two_agents_that_announce_one_address_are_named() -> None:
    """The refused one is told who has its address; JSON and page's view name both."""
    async with town() as here:
        one, two = here.agent("worker-1"), here.agent("worker-2")
        await one.hello()
        await two.hello()
        for _ in range(PROOF):
            with pytest.raises(Refusal) as told:
                await one.poll()
        assert told.value.status == 409
        assert "worker-2 and worker-1 both announce 127.0.0.1:6881" in told.value.problem.message
        assert "--swarm-listen" in told.value.problem.message
        (found,) = (await _json(here, "/api/v1/state"))["conflicts"]
        assert (found["taken"], found["refused"], found["key"]) == ("worker-2", "worker-1", "127.0.0.1:6881")
        seen = (await _json(here, "/api/v1/cluster"))["conflicts"]["127.0.0.1:6881"]
        assert (seen["taken"], seen["refused"]) == ("worker-2", "worker-1")


async def test_a_restarted_agent_is_no_conflict() -> None:
    """A late request or two of the dead process prove nothing."""
    async with town() as here:
        old, new = here.agent("worker-1"), here.agent("worker-1")
        new.me["session"] = "another"
        await old.hello()
        await new.hello()
        for _ in range(PROOF - 1):
            with pytest.raises(Refusal, match="was replaced"):
                await old.poll()
        assert (await _json(here, "/api/v1/state"))["conflicts"] == []


async def test_who_is_refused_is_shown_until_it_is_taken() -> None:
    """An agent outside the members works alone: the tracker says which, and why."""
    async with town(StaticDiscovery(["127.0.0.1/32"])) as here:
        with pytest.raises(Refusal):
            await here.agent("stranger", ip="127.0.0.9").hello()
        (found,) = (await _json(here, "/api/v1/state"))["refused"]
        assert found["address"] == "127.0.0.9"
        assert "no member" in found["reason"]
        assert "127.0.0.9" in (await _json(here, "/api/v1/cluster"))["refused"]


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 200)), max_size=600))
def test_what_is_remembered_is_bounded_and_ends(steps: list[tuple[int, float]]) -> None:
    """Whoever floods the door cannot fill the memory; what is over is shown no more."""
    found, turned, now = Rivals(), Refusals(), 0.0
    for number, pause in steps:
        now += pause
        found.note(f"10.0.0.{number}:1", "a", "b", now)
        turned.note(f"10.0.0.{number}", "no member", now)
    assert len(found.standing(now)) <= rivals.MOST
    assert len(turned.standing(now)) <= refusals.MOST
    assert found.standing(now + rivals.FRESH + 1) == []
    assert turned.standing(now + refusals.FRESH + 1) == []
