"""Who is told of whom."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.state.handout import Pool


def pool(holders: dict[str, int], seekers: dict[str, int]) -> Pool:
    """So many in each zone: `h-north-0`, `s-south-3`."""
    made = Pool()
    for kind, zones in (("h", holders), ("s", seekers)):
        for zone, count in zones.items():
            for number in range(count):
                made.put(f"{kind}-{zone}-{number}", zone=zone, holder=kind == "h")
    return made


def kinds(keys: list[str]) -> Counter[str]:
    """How many of which kind and zone."""
    return Counter(key.rpartition("-")[0] for key in keys)


@pytest.mark.parametrize(
    ("holders", "seekers", "expected"),
    [
        ({"n": 3}, {"n": 2}, {"h-n": 3, "s-n": 2}),
        ({"n": 100}, {}, {"h-n": 10}),
        ({"n": 100, "s": 100}, {}, {"h-n": 8, "h-s": 2}),
        ({"n": 1, "s": 100}, {"n": 100}, {"h-n": 1, "h-s": 9}),
        ({"n": 3}, {"n": 100}, {"h-n": 3, "s-n": 7}),
        ({"n": 3}, {"n": 100, "s": 100}, {"h-n": 3, "s-n": 5, "s-s": 2}),
        ({"n": 100}, {"s": 100}, {"h-n": 8, "s-s": 2}),
        ({"n": 9, "s": 1}, {"n": 100}, {"h-n": 9, "h-s": 1}),
        ({}, {"s": 100, "e": 0}, {"s-s": 10}),
        ({}, {"n": 4, "s": 100}, {"s-n": 4, "s-s": 6}),
        ({"s": 100}, {"n": 100}, {"h-s": 10}),
        ({"": 100}, {}, {"h-": 10}),
    ],
)
def test_holders_first_own_zone_first_some_always_from_outside(
    holders: dict[str, int], seekers: dict[str, int], expected: dict[str, int]
) -> None:
    assert kinds(pool(holders, seekers).pick("me", "n", 10, Random(1))) == expected


def test_behind_a_wall_only_the_own_zone_is_handed_out() -> None:
    made = pool({"n": 3, "s": 100}, {"n": 2, "s": 100})
    assert kinds(made.pick("me", "n", 10, Random(1), walled=True)) == {"h-n": 3, "s-n": 2}
    assert made.pick("me", "e", 10, Random(1), walled=True) == []


def test_nobody_is_handed_to_itself_and_nobody_twice() -> None:
    made = pool({"n": 20}, {"n": 20, "s": 20})
    for seed in range(50):
        picked = made.pick("h-n-3", "n", 15, Random(seed))
        assert len(picked) == len(set(picked)) == 15
        assert "h-n-3" not in picked


def test_chance_among_equals_leaves_no_hot_seed() -> None:
    made = pool({"n": 40}, {})
    chance = Random(7)
    counts = Counter(key for _ in range(1000) for key in made.pick("me", "n", 4, chance))
    assert len(counts) == 40
    assert max(counts.values()) < 2 * min(counts.values())


def test_who_was_removed_is_handed_to_nobody() -> None:
    made = pool({"n": 3}, {"s": 3})
    made.remove("h-n-1")
    made.remove("s-s-0")
    made.remove("nobody")
    assert sorted(made.pick("me", "n", 10, Random(1))) == ["h-n-0", "h-n-2", "s-s-1", "s-s-2"]
    assert (len(made), made.holders) == (4, 2)


def test_a_seeker_that_finished_becomes_a_holder() -> None:
    made = pool({}, {"n": 2})
    made.put("s-n-0", zone="n", holder=True)
    assert made.holders == 1
    assert made.pick("me", "n", 1, Random(1)) == ["s-n-0"]


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["n", "s", "e", ""]), st.sampled_from([True, False, None])),
        max_size=60,
    ),
    limit=st.integers(0, 12),
    seed=st.integers(0, 1000),
)
def test_any_order_of_changes(changes: list[tuple[int, str, bool | None]], limit: int, seed: int) -> None:
    made = Pool()
    model: dict[str, tuple[str, bool]] = {}
    for number, zone, holder in changes:
        key = str(number)
        if holder is None:
            made.remove(key)
            model.pop(key, None)
        else:
            made.put(key, zone=zone, holder=holder)
            model[key] = (zone, holder)
    picked = made.pick("0", "n", limit, Random(seed))
    others = {key: place for key, place in model.items() if key != "0"}
    assert set(made) == set(model)
    assert made.holders == sum(holder for _, holder in model.values())
    assert len(picked) == len(set(picked)) == min(limit, len(others))
    assert set(picked) <= set(others)
    if limit > 1 and any(zone != "n" for zone, _ in others.values()):
        assert any(others[key][0] != "n" for key in picked)
