"""How long a reader waits for the cluster: one policy as a table, and no clock but the one that is passed in."""

from __future__ import annotations

import pytest

from swarm.fetch import patience
from swarm.fetch.patience import Awaited, Silence, Waiting, comes_anyway, due, is_over

MINE, TRADED, OTHERS = Awaited.MINE, Awaited.TRADED, Awaited.OTHERS
NEVER = float("inf")


@pytest.mark.parametrize(
    ("waiting", "at"),
    [
        # Upstream has its own deadlines for the first byte: an upstream that is slow for all is not asked twice.
        (Waiting(100.0, MINE), NEVER),
        (Waiting(100.0, MINE, begun=True, moved=107.0), 107.0 + patience.STOPPED),
        # What peers hold and do not send.
        (Waiting(100.0, TRADED, moved=99.0), 106.0),
        (Waiting(100.0, TRADED, moved=101.5), 107.5),
        (Waiting(100.0, TRADED, moved=111.9), 117.9),
        (Waiting(100.0, TRADED, foreseen=True), 100.0 + patience.FORESEEN),
        (Waiting(100.0, TRADED, moved=111.9, lost=True), 106.0),
        # What somebody else brings in.
        (Waiting(100.0, OTHERS), 105.0),
        (Waiting(100.0, OTHERS, takes=0.2), 102.5),
        (Waiting(100.0, OTHERS, takes=30.0), 146.0),
        (Waiting(100.0, OTHERS, unheard=True), 102.5),
        # Who is said to bring it in is believed while upstream is no quicker to this node.
        (Waiting(100.0, OTHERS, coming=0.0), 140.0),
        (Waiting(100.0, OTHERS, coming=0.0, tried=101.2), 103.7),
        (Waiting(100.0, OTHERS, coming=0.0, takes=0.2), 102.5),
        (Waiting(100.0, OTHERS, coming=20e3), 140.0),
        (Waiting(100.0, OTHERS, coming=20e3, tried=101.2, rate=21e3), NEVER),
        (Waiting(100.0, OTHERS, coming=20e3, tried=101.2, rate=41e3), 102.5),
        (Waiting(100.0, OTHERS, coming=20e3, tried=101.2, rate=21e3, takes=0.2), NEVER),
        (Waiting(100.0, OTHERS, coming=20e3, ranges=True), 108.0),
        # Who was left waiting a moment ago does not wait so long again.
        (Waiting(100.0, TRADED, left_at=95.0), 101.0),
        (Waiting(100.0, OTHERS, takes=30.0, left_at=95.0), 101.0),
        (Waiting(100.0, MINE, left_at=95.0), NEVER),
        (Waiting(100.0, TRADED, left_at=50.0), 106.0),
        # Readers of ranges have 30 s.
        (Waiting(100.0, OTHERS, ranges=True), 108.0),
        (Waiting(100.0, TRADED, ranges=True, foreseen=True, left_at=99.0), NEVER),
        # Whoever is said to bring it in is believed although the cluster has left somebody waiting.
        (Waiting(100.0, OTHERS, coming=20e3, tried=101.2, rate=21e3, left_at=99.0), NEVER),
        # While this node's own line moves a stream would take from it what it gives.
        (Waiting(100.0, OTHERS, busy=104.5), 106.5),
        (Waiting(100.0, OTHERS, busy=200.0), 115.0),
        (Waiting(100.0, OTHERS, takes=0.1), 100.0 + patience.SOONEST),
        (Waiting(100.0, OTHERS, takes=0.1, failed=True), 100.0 + patience.STRANGE),
        (Waiting(100.0, OTHERS, busy=200.0, ranges=True), 108.0),
        (Waiting(100.0, TRADED, moved=99.0, busy=105.0), 107.0),
        (Waiting(100.0, MINE, begun=True, moved=107.0, busy=200.0), 107.0 + patience.STOPPED),
    ],
)
def test_when_upstream_is_asked_past_the_cluster(waiting: Waiting, at: float) -> None:
    assert due(waiting) == pytest.approx(at)


@pytest.mark.parametrize(
    ("after", "first", "asking", "over"),
    [
        (9.9, True, False, False),
        (10.0, True, False, True),
        (39.0, True, True, False),
        (44.0, False, False, False),
        (45.0, False, False, True),
    ],
)
def test_when_a_blob_is_given_up(after: float, first: bool, asking: bool, over: bool) -> None:
    assert is_over(100.0 + after, 100.0, first=first, asking=asking, refused=True) is over


def test_a_node_that_has_not_been_told_no_waits_longer() -> None:
    """Sixteen agents on two busy cores: reads that were only slow got 503 after ten seconds."""
    for after, over in ((patience.FIRST + 1, False), (patience.LATER - 1, False), (patience.LATER, True)):
        assert is_over(100.0 + after, 100.0, first=True, asking=False, refused=False) is over


def test_peers_that_sent_nothing_are_known_until_one_sends_something() -> None:
    silence, a, b = Silence(), ("10.0.0.1", 1), ("10.0.0.2", 1)
    silence.noted([a], 100.0)
    assert silence.is_foreseen([a], 101.0)
    assert not silence.is_foreseen([a, b], 101.0), "the other may deliver"
    assert not silence.is_foreseen([], 101.0)
    assert not silence.is_foreseen([a], 100.0 + patience.REMEMBERED), "it may be well again"
    silence.noted([a, b], 200.0)
    silence.broken([b])
    assert silence.is_foreseen([a], 201.0)
    assert not silence.is_foreseen([a, b], 201.0)


@pytest.mark.parametrize(
    ("given", "pace", "rate", "left"),
    [
        (True, None, 9e9, True),  # peers give it
        (False, None, 1.0, False),  # nobody brings it
        (False, 0.0, 1.0, False),  # upstream has sent nothing of it
        (False, 10.0, 80.0, True),  # eight such windows at once are as quick
        (False, 10.0, 81.0, False),
    ],
)
def test_what_a_direct_stream_leaves_to_the_cluster(given: bool, pace: float | None, rate: float, left: bool) -> None:
    """Also of windows whose holders do not answer: two agents cut off from them each streamed all of a blob."""
    assert comes_anyway(given, pace, rate, 8) is left
