"""What is known of lines to upstream, and of what others bring in: values, and the clock that is passed in."""

from __future__ import annotations

from swarm.fetch.line import MOST_UPSTREAMS, Line, Traffic
from swarm.fetch.others import FRESH, Others
from tests.parts.intake import SentUpstream


def test_bytes_of_one_blob_say_that_the_upstream_moves_for_all() -> None:
    traffic, now = Traffic(), [10.0]
    one, other = Line(traffic, lambda: now[0]), Line(traffic, lambda: now[0])
    source = SentUpstream(b"")
    one.watched(source)
    assert traffic.moved(source.upstream) == float("-inf")
    one.received()
    assert (one.moved, other.moved, traffic.moved(source.upstream)) == (10.0, float("-inf"), 10.0)


def test_only_so_many_upstreams_are_remembered() -> None:
    traffic = Traffic()
    for index in range(MOST_UPSTREAMS + 1):
        traffic.received(f"host-{index}", float(index))
    assert traffic.moved("host-0") == float("-inf")
    assert traffic.moved("host-1") == 1.0


def test_a_request_that_fails_is_not_asking_any_more() -> None:
    now = [1.0]
    line, request, late = Line(Traffic(), lambda: now[0]), object(), object()
    line.asked(request)
    assert line.asking(0.0)
    now[0] = 2.0
    line.asked(late)
    line.failed(request)
    assert not line.asking(1.5), "upstream has failed since"
    line.answered(late)
    assert not line.asking(3.0)


def test_headers_without_a_byte_are_a_refusal_until_a_byte_comes() -> None:
    now = [1.0]
    line, request = Line(Traffic(), lambda: now[0]), object()
    said = [line.refused]
    line.asked(request)
    for event in (line.answered, lambda _: line.received(), line.failed):
        now[0] += 1.0
        event(request)
        said.append(line.refused)
    assert said == [False, True, False, True]


def test_what_a_board_says_of_others_replaces_what_it_said_before() -> None:
    others, new = Others(), Others()
    others.hear("one", {0: 5.0, 1: 0.0}, 10.0)
    assert (others.heard, new.heard) == (True, False)
    assert (others.pace(0, 11.0), others.pace(1, 11.0), others.pace(2, 11.0)) == (5.0, 0.0, None)
    others.hear("one", {1: 7.0}, 12.0)
    assert others.windows(12.0) == [1]


def test_another_board_has_yet_to_hear_of_those_who_come_to_it() -> None:
    others = Others()
    others.hear("one", {0: 5.0}, 10.0)
    others.hear("two", {3: 1.0}, 11.0)
    assert sorted(others.windows(12.0)) == [0, 3]
    assert others.windows(10.5 + 3 * FRESH) == [3], "the word of the board that went is worth a few seconds"


def test_what_was_said_long_ago_is_asked_again() -> None:
    others = Others()
    assert others.is_stale(0.0)
    others.hear("one", {}, 10.0)
    assert not others.is_stale(10.0 + FRESH)
    assert others.is_stale(10.1 + FRESH)
