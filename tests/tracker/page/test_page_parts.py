"""The pure parts behind the page: the hour's ring, merge patches, what is asked, several trackers as one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.parts.talk import digest_of
from tracker.errors import Malformed, Unknown
from tracker.page import views
from tracker.page.ask import MAX_LIMIT, Ask, parse_ask
from tracker.page.merge import agents, swarms
from tracker.page.merge import merge as merge_views
from tracker.page.patch import apply, diff
from tracker.state.history import MOST, STEP, STEPS, History, growth, merge

# -- the hour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [
        ({}, {"upstream_bytes": 5.0, "peer_bytes_in": 7.0}, (0.0, 0.0)),  # told for the first time
        ({"upstream_bytes": 5.0, "peer_bytes_in": 7.0}, {"upstream_bytes": 6.0, "peer_bytes_in": 7.0}, (1.0, 0.0)),
        ({"upstream_bytes": 5.0}, {"upstream_bytes": 6.0, "peer_bytes_in": 9.0}, (1.0, 0.0)),
        ({"upstream_bytes": 50.0}, {"upstream_bytes": 6.0}, (6.0, 0.0)),  # counts from 0 again
        ({"upstream_bytes": 5.0}, {"upstream_bytes": -6.0}, (0.0, 0.0)),
        ({"upstream_bytes": 0.0}, {"upstream_bytes": 1e300}, (MOST, 0.0)),
        ({"upstream_bytes": 5.0}, {}, (0.0, 0.0)),
    ],
)
def test_what_counters_grew_by(before: dict[str, float], after: dict[str, float], grown: tuple[float, ...]) -> None:
    assert growth(before, after) == grown


def test_the_hour_sums_per_step_and_forgets_what_is_older() -> None:
    history = History()
    history.add((10, 1), 100_000.0)
    history.add((5, 2), 100_000.0 + 1)
    history.add((0, 7), 100_000.0 + STEP)
    first = 100_000 // STEP * STEP
    assert history.steps(100_000.0 + STEP) == {first: (15, 3), first + STEP: (0, 7)}
    assert history.steps(100_000.0 + STEP * STEPS) == {first + STEP: (0, 7)}
    assert history.steps(100_000.0 + STEP * (STEPS + 1)) == {}
    assert history.total == (15, 10)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e6)), max_size=400))
def test_the_hour_is_bounded_whatever_the_clock_does(told: list[tuple[int, float]]) -> None:
    history = History()
    for amount, now in told:
        history.add((amount, 0), now)
        assert len(history._steps) <= STEPS
    assert history.total[0] == sum(amount for amount, _ in told)


def test_hours_of_several_trackers_are_one_hour() -> None:
    assert merge([{0: (5, 1), 15: (1, 1)}, {0: (3, 4), 30: (2, 2)}]) == {0: (5, 4), 15: (1, 1), 30: (2, 2)}


# -- patches ----------------------------------------------------------------------------------------

LEAVES = st.integers() | st.text(max_size=4) | st.booleans() | st.lists(st.integers(), max_size=3)
OBJECTS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), LEAVES | inner, max_size=3),
    max_leaves=12,
)


@given(OBJECTS, OBJECTS)
def test_a_patch_makes_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert apply(old, diff(old, new)) == new
    assert diff(new, new) == {}


def test_a_patch_names_only_what_changed() -> None:
    old = {"now": 1, "rows": {"a": {"cells": "..", "zone": "x"}, "b": {"cells": "uu"}}, "order": ["a", "b"]}
    new = {"now": 2, "rows": {"a": {"cells": "u.", "zone": "x"}}, "order": ["a"]}
    assert diff(old, new) == {"now": 2, "rows": {"a": {"cells": "u."}, "b": None}, "order": ["a"]}


# -- what is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("", Ask()),
        ("/", Ask()),
        ("/swarms?q=Redis&state=sealed&offset=50", Ask("swarms", q="redis", state="sealed", offset=50)),
        ("/swarms/sha256%3Aabc", Ask("swarm", "sha256:abc")),
        ("/agents/%5Bfd00::1%5D:6881?limit=9999", Ask("agent", "[fd00::1]:6881", limit=MAX_LIMIT)),
        ("/agents?zone=eu-1&part=1", Ask("agents", zone="eu-1", part=True)),
        ("/search?q=%20node%20", Ask("search", q="node")),
    ],
)
def test_a_path_is_what_is_asked_and_back(path: str, ask: Ask) -> None:
    assert parse_ask("/api/v1/cluster" + path) == ask
    assert parse_ask(ask.path()) == ask


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/nothing", Unknown),
        ("/search/x", Unknown),
        ("/swarm/x", Unknown),
        ("/swarms?offset=-1", Malformed),
        ("/swarms?limit=ten", Malformed),
        ("/swarms?" + "&".join(f"a{n}=1" for n in range(50)), Malformed),
    ],
)
def test_what_cannot_be_asked(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_ask("/api/v1/cluster" + path)


# -- several trackers -------------------------------------------------------------------------------


def line(name: str, **said: Any) -> views.SwarmLine:
    usual: dict[str, Any] = {
        "digest": digest_of(name), "names": (), "state": "sealed", "windows": 1, "published": 1, "arrived": 0,
        "entered": 0, "holders": 1, "fetching": 0, "claims": 0, "rate": 0.0, "spread": 1.0, "used": 0,
    }  # fmt: skip
    return views.SwarmLine(**usual | said)


def listed(*lines: views.SwarmLine) -> views.SwarmList:
    rows = {one.digest: one for one in lines}
    return views.SwarmList(total=len(rows), offset=0, order=tuple(rows), rows=rows)


def test_of_two_pictures_of_a_swarm_the_fuller_one_is_shown_under_all_names() -> None:
    here = listed(line("a", names=("x:1",), holders=2), line("b", used=9))
    there = listed(line("a", names=("y:1",), state="entering", fetching=3, arrived=77, used=5), line("c", used=1))
    merged = swarms([here, there], 0, 10)
    assert merged.order == tuple(map(digest_of, "abc"))  # what moves first, then what was used last
    assert merged.total == 3
    top = merged.rows[digest_of("a")]
    assert (top.state, top.fetching, top.arrived, top.names, top.used) == ("entering", 3, 77, ("x:1", "y:1"), 5)
    assert swarms([here, there], 1, 1).order == (digest_of("b"),)


def agent(name: str, state: views.AgentState = "connected") -> views.AgentLine:
    return views.AgentLine(
        name=name,
        zone="",
        state=state,
        since=0,
        held=0,
        fetching=0,
        store=0,
        budget=0,
        upstream=0,
        received=0,
        served=0,
    )


def test_an_agent_is_where_one_tracker_has_its_channel_and_in_quarantine_where_one_says_so() -> None:
    def known(**rows: views.AgentLine) -> views.AgentList:
        return views.AgentList(total=len(rows), offset=0, order=tuple(rows), rows=rows)

    here = known(a=agent("a", "away"), b=agent("b"), c=agent("c", "away"))
    there = known(a=agent("a"), b=agent("b", "quarantined"), d=agent("d"))
    merged = agents([here, there], 0, 10)
    assert {key: row.state for key, row in merged.rows.items()} == {
        "a": "connected", "b": "quarantined", "c": "away", "d": "connected",
    }  # fmt: skip
    assert agents([here, there], 2, 2).order == ("c", "d")


def cluster(**said: Any) -> views.ClusterView:
    usual: dict[str, Any] = {
        "now": 100.0, "replicas": {}, "agents": views.Count(total=2, connected=2), "names": 0, "rate": 1.0,
        "zones": {"z": views.Count(total=2, connected=2)}, "swarms": {"entering": 1, "sealed": 4}, "arrived": 10,
        "entered": 10, "moved": (5, 6), "hour": views.Hour(step=STEP, span=STEP * STEPS, steps={"90": (1, 5)}),
        "upstreams": {"r": 120.0}, "failures": {"busy": 1}, "quarantined": {}, "blame": (), "active": listed(),
    }  # fmt: skip
    return views.ClusterView(**usual | said)


def test_a_cluster_of_two_trackers() -> None:
    bad = views.Quarantined(name="n", zone="z", until=200.0, reason="wrong")
    blamed = views.Blamed(at=50.0, agent="k", name="n", what="quarantined", reason="wrong")
    there = cluster(
        quarantined={"k": bad}, blame=(blamed,), upstreams={"r": 150.0}, failures={"busy": 2, "broken": 1},
        hour=views.Hour(step=STEP, span=STEP * STEPS, steps={"90": (3, 2), "75": (1, 1)}),
    )  # fmt: skip
    merged = merge_views([cluster(), there], Ask())
    assert merged.agents == views.Count(total=2, connected=1, quarantined=1)
    assert merged.zones["z"] == merged.agents
    assert merged.swarms == {"entering": 2, "sealed": 4}  # each enters at one tracker; sealed ones are known to both
    assert (merged.rate, merged.arrived, merged.moved) == (2.0, 20, (5, 6))
    assert merged.hour.steps == {"75": (1, 1), "90": (3, 5)}
    assert merged.upstreams == {"r": 150.0}
    assert merged.failures == {"busy": 3, "broken": 1}
    assert (merged.quarantined, merged.blame) == ({"k": bad}, (blamed,))
    assert merge_views([there], Ask()) is there
    old = views.Kept(image="a", platform="", copies=2, whole=2, serial=1)
    few, many = replace(old, serial=2, whole=1), replace(old, serial=2, whole=2)
    for parts in itertools.permutations([cluster(kept={"a ": one}) for one in (old, few, many)]):
        assert merge_views(list(parts), Ask()).kept == {"a ": many}
    assert merge_views([there, replace(there)], Ask()).blame == (blamed,)
