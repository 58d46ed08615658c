"""Read-ahead learns: sequential readers get a growing window, random ones none."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mirror.front.readahead import FIRST_AHEAD, MOST_AHEAD, Follower, Readahead
from swarm.blob.digest import from_hex

KIB, MIB = 1024, 1024 * 1024
STEP = 64 * KIB
SIZE = 256 * MIB


def test_the_first_reads_bring_nothing_ahead() -> None:
    """Two neighbours happen by chance: a header and its index."""
    follower = Follower()
    assert follower.read(0, STEP, SIZE) is None
    assert follower.read(STEP, 2 * STEP, SIZE) is None


def test_a_sequential_reader_gets_a_growing_window() -> None:
    """It doubles up to the bound, has no gaps, and is asked for before it is used up."""
    follower, asked = Follower(), []
    for index in range(800):
        ahead = follower.read(index * STEP, (index + 1) * STEP, SIZE)
        if ahead is not None:
            asked.append(ahead)
    lengths = [stop - start for start, stop in asked]
    assert lengths[0] == FIRST_AHEAD
    assert lengths[1] > lengths[0]
    assert max(stop for _, stop in asked) <= 800 * STEP + MOST_AHEAD
    assert all(left[1] == right[0] for left, right in pairwise(asked))


def test_a_random_reader_gets_none() -> None:
    """1000 reads of 64 KiB anywhere in 1 GiB: nothing ahead of at least 990 of them."""
    follower, chance = Follower(), random.Random(1)
    places = [chance.randrange(0, 1024 * MIB - STEP) for _ in range(1000)]
    assert sum(follower.read(at, at + STEP, 1024 * MIB) is not None for at in places) <= 10


def test_a_random_reader_in_a_small_blob_gets_none() -> None:
    """60 unaligned reads within 1.5 MiB: each is near another, and yet most bytes are never asked for."""
    follower, chance = Follower(), random.Random(3)
    asked = 0
    for _ in range(60):
        at, length = chance.randrange(0, 3 * MIB // 2 - STEP), chance.randrange(1, STEP // 8)
        asked += follower.read(at, at + length, 3 * MIB // 2) is not None
    assert not asked


def test_a_backward_reader_gets_none() -> None:
    """Going down is not a run."""
    follower = Follower()
    assert all(follower.read(at, at + STEP, SIZE) is None for at in range(200 * STEP, 0, -STEP))


def test_the_same_bytes_again_are_no_progress() -> None:
    """A reader that polls one place is not sequential."""
    follower = Follower()
    assert all(follower.read(MIB, MIB + STEP, SIZE) is None for _ in range(50))


def test_two_sequential_readers_in_one_blob_are_two_runs() -> None:
    """Each gets its own window."""
    follower, asked = Follower(), []
    for index in range(20):
        places = (base + index * STEP for base in (0, 100 * MIB))
        asked += [follower.read(at, at + STEP, SIZE) for at in places]
    starts = [ahead[0] for ahead in asked if ahead is not None]
    assert any(start < 50 * MIB for start in starts)
    assert any(start >= 100 * MIB for start in starts)


def test_requests_that_overtake_each_other_are_still_a_run() -> None:
    """16 under way at once, in any order."""
    chance, follower, asked = random.Random(2), Follower(), 0
    for block in range(0, 320, 16):
        order = list(range(block, block + 16))
        chance.shuffle(order)
        asked += sum(follower.read(i * STEP, (i + 1) * STEP, SIZE) is not None for i in order)
    assert asked >= 3


def test_nothing_is_read_past_the_end() -> None:
    """The last window is cut."""
    follower, size = Follower(), 3 * MIB
    asked = [follower.read(at, min(at + STEP, size), size) for at in range(0, size, STEP)]
    assert max(ahead[1] for ahead in asked if ahead) == size


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 64)), max_size=200))
def test_what_is_read_ahead_is_bounded_and_inside(reads: list[tuple[int, int]]) -> None:
    """For any pattern: never empty, never more than the largest window plus one read, never outside."""
    follower, size = Follower(), 1100 * STEP
    for start, count in reads:
        ahead = follower.read(start * STEP, min((start + count) * STEP, size), size)
        if ahead is not None:
            assert 0 <= ahead[0] < ahead[1] <= size
            assert ahead[1] - ahead[0] <= 2 * MOST_AHEAD
    assert len(follower.runs) <= 8


def test_blobs_are_followed_apart_and_within_a_bound() -> None:
    """Reads of one blob do not extend another's run; thousands of blobs cost a thousand followers."""
    readahead = Readahead()
    one, two = from_hex("1" * 64), from_hex("2" * 64)
    for index in range(3):
        last = [readahead.read(d, index * STEP, (index + 1) * STEP, SIZE) for d in (one, two)]
    assert all(last)
    for index in range(3000):
        readahead.read(from_hex(f"{index:064x}"), 0, STEP, SIZE)
    assert len(readahead._followers) <= 1024
