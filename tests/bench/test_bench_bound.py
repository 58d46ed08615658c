"""The bounds that every measurement is divided by."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import bound

rates = st.floats(min_value=1.0, max_value=1e6)
sizes = st.floats(min_value=0.0, max_value=1e9)
nodes = st.integers(min_value=1, max_value=1000)


@pytest.mark.parametrize(
    ("size", "count", "up", "down", "upstream", "seconds"),
    [
        (100, 1, 10, 10, 10, 10.0),  # alone: the link
        (100, 1, 10, 10, 5, 20.0),  # alone: upstream is slower
        (100, 8, 10, 10, 10, 10.0),  # eight: each byte leaves upstream once, and is passed on
        (100, 8, 1, 10, 10, 8 * 100 / 18),  # eight with slow uploads: the sum of all that can be sent
        (100, 8, 10, 10, 5, 20.0),
        (0, 8, 10, 10, 5, 0.0),
    ],
)
def test_cold_is_the_largest_of_the_three_limits(
    size: float, count: int, up: float, down: float, upstream: float, seconds: float
) -> None:
    """The table of issue 3, by hand."""
    assert bound.cold(size, count, up, down, upstream) == pytest.approx(seconds)


def test_a_piece_must_be_passed_on_before_the_next_can_have_it() -> None:
    """`floor(log2 N) * p / u` is added when a piece length is given."""
    assert bound.cold(100, 8, 10, 10, 10, piece=1) == pytest.approx(10 + 3 * 0.1)
    assert bound.cold(100, 7, 10, 10, 10, piece=1) == pytest.approx(10 + 2 * 0.1)
    assert bound.cold(100, 1, 10, 10, 10, piece=1) == pytest.approx(10)


def test_warm_with_one_seed_is_the_formula_of_the_design() -> None:
    """The seed must send each byte once; the group must receive it N times."""
    assert bound.warm(100, 7, 1, 10, 10) == pytest.approx(10)
    assert bound.warm(100, 7, 1, 10, 1000) == pytest.approx(10)
    assert bound.warm(100, 1, 7, 10, 1000) == pytest.approx(max(100 / 70, 100 / 80))


def test_waves_after_the_first_come_from_those_before() -> None:
    """Ten nodes, two at a time: the later the wave, the more seeds."""
    first, *later = bound.waves(100, [2, 2, 2, 2, 2], 10, 40, 5)
    assert first == pytest.approx(20)
    assert later == [pytest.approx(t) for t in (5.0, 200 / 60, 2.5, 2.5)]


def test_staggered_counts_the_last_start() -> None:
    """A node that comes late cannot be done before its own link has carried the blob."""
    assert bound.staggered(100, [0, 1, 2], 10, 10, 10) == pytest.approx(12)
    assert bound.staggered(100, [5, 5], 10, 10, 10) == pytest.approx(10)


@given(size=sizes, count=nodes, up=rates, down=rates, upstream=rates)
def test_nobody_is_faster_than_one_link(size: float, count: int, up: float, down: float, upstream: float) -> None:
    """More nodes never make the bound smaller, and none beats F/d or F/R."""
    time = bound.cold(size, count, up, down, upstream)
    assert time >= size / down
    assert time >= size / upstream
    assert bound.cold(size, count + 1, up, down, upstream) >= time or math.isclose(
        bound.cold(size, count + 1, up, down, upstream), time
    )


@given(size=sizes, count=nodes, seeds=st.integers(1, 100), up=rates, down=rates)
def test_more_seeds_never_hurt(size: float, count: int, seeds: int, up: float, down: float) -> None:
    """The bound falls or stays when another seed joins."""
    assert bound.warm(size, count, seeds + 1, up, down) <= bound.warm(size, count, seeds, up, down) * (1 + 1e-9)


@pytest.mark.parametrize("bad", [{"count": 0}, {"up": 0.0}, {"size": -1.0}])
def test_nonsense_is_refused(bad: dict[str, float]) -> None:
    """A bound that means nothing is an error, not a figure."""
    given_ = {"size": 1.0, "count": 1, "up": 1.0} | bad
    with pytest.raises(ValueError, match="not a transfer"):
        bound.cold(given_["size"], int(given_["count"]), given_["up"], 1.0, 1.0)
    with pytest.raises(ValueError, match="needs a seed"):
        bound.warm(1.0, 1, 0, 1.0, 1.0)
    with pytest.raises(ValueError, match="nobody"):
        bound.staggered(1.0, [], 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no waves"):
        bound.waves(1.0, [], 1.0, 1.0, 1.0)
