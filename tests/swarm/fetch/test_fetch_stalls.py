"""When it is noticed that peers deliver nothing: times in, a word out."""

from __future__ import annotations

from swarm.fetch.stalls import STALL, Stalls


def test_windows_are_named_only_after_it_was_quiet_for_long_enough() -> None:
    stalls = Stalls(0.0)
    told = [(stalls.look((1, 2), now), stalls.windows) for now in (STALL * 0.9, STALL)]
    assert told == [(False, ()), (True, (1, 2))]
    assert not stalls.look((1, 2), STALL + 1), "nothing new"


def test_what_is_known_to_be_lost_is_named_whatever_else_comes() -> None:
    """Bytes from others hid that the windows of one who cannot be dialled never came: 22 s of nothing more."""
    stalls = Stalls(0.0)
    stalls.moved(9.9)
    assert stalls.look(tuple(range(20)), 10.0, lost=tuple(range(3, 15)))
    assert stalls.windows == tuple(range(3, 15))
    assert stalls.look((), 11.0), "they are here"
    assert stalls.windows == ()


def test_a_piece_ends_a_stall() -> None:
    stalls = Stalls(0.0)
    stalls.look((1,), STALL)
    stalls.moved(STALL)
    assert stalls.look((1,), STALL + 0.1)
    assert stalls.windows == ()


def test_bytes_below_a_piece_count_where_they_become_more() -> None:
    """On a thin line a piece takes longer than a stall: the first count is only what later ones are compared with."""
    stalls = Stalls(0.0)
    assert not stalls.restless(STALL / 4)
    assert stalls.restless(STALL / 2)
    assert stalls.received(100, STALL / 2), "the first count may be news"
    assert not stalls.received(100, STALL / 2 + 1), "the second says that nothing came"
    assert stalls.received(101, STALL)
    assert stalls.quiet(STALL) == 0.0


def test_the_longer_nothing_comes_the_more_windows_are_named_at_once() -> None:
    """Eight each second were 9 s for what upstream gave in 4, where nobody who held the blob could be reached."""
    stalls, counts = Stalls(0.0), []
    for second in range(5):
        stalls.look(tuple(range(100)), STALL + second)
        counts.append(len(stalls.windows))
    assert counts == [8, 16, 32, 64, 64]
    stalls.moved(STALL + 5)
    stalls.look(tuple(range(100)), STALL + 5)
    assert stalls.windows == ()
    stalls.look(tuple(range(100)), 2 * STALL + 5)
    assert len(stalls.windows) == 8, "a new silence begins with few"
