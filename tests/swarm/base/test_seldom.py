"""A line that repeats is held back and counted; how many subjects there are does not matter."""

from __future__ import annotations

from swarm.base.seldom import Seldom


def test_the_first_line_is_said_and_the_next_after_the_pause_says_how_many_were_held_back() -> None:
    seldom = Seldom(pause=60.0)
    assert [seldom.due("a", now) for now in (0.0, 1.0, 59.0, 60.0, 61.0)] == [0, None, None, 2, None]


def test_subjects_do_not_hold_each_other_back() -> None:
    seldom = Seldom(pause=60.0)
    assert seldom.due(("10.0.0.1", "not-a-member"), 0.0) == 0
    assert seldom.due(("10.0.0.2", "not-a-member"), 0.0) == 0


def test_what_is_over_is_said_at_once_when_it_comes_back() -> None:
    seldom = Seldom(pause=60.0)
    assert seldom.due("a", 0.0) == 0
    seldom.forget("a")
    assert seldom.due("a", 1.0) == 0


def test_a_flood_of_subjects_says_a_bounded_number_of_lines_and_costs_a_bounded_memory() -> None:
    seldom = Seldom(pause=60.0, most=10)
    said = [seldom.due(f"10.0.{i >> 8}.{i & 255}", i / 1000) for i in range(5000)]
    assert sum(one is not None for one in said) == 10
    assert len(seldom) == 10
    assert seldom.due("a new one, later", 120.0) == 0
    assert len(seldom) <= 10
