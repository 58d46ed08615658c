"""What an answer of a board changes: answers in, events out, without loop, tracker or disk."""

from __future__ import annotations

from typing import Any

import pytest

from swarm.blob.errors import TrackerError
from swarm.blob.geometry import MIB
from swarm.fetch.events import (
    ClaimsChanged,
    Event,
    Holder,
    HoldersNamed,
    Hopeless,
    ModeChanged,
    PeersChanged,
    Published,
    Restarted,
    SizeConflict,
    Sized,
)
from swarm.fetch.modes import Holding, Mode, is_over, next_mode
from swarm.fetch.news import Asked, News
from swarm.protocol import wire
from tests.parts.talk import hashes_of

SIZE = 5 * MIB


def answer(serial: int, version: int, *windows: int, **said: Any) -> wire.BoardAnswer:
    """What a tracker answers at *serial*, with news of *windows*."""
    published = {window: hashes_of(SIZE, window) for window in windows}
    about: dict[str, Any] = {"incarnation": "one", "generation": 0, "size": SIZE, "published": published}
    return wire.BoardAnswer(version=version, serial=serial, **{**about, **said})


class Board:
    """The news of one node, which holds the windows in *mine*."""

    def __init__(self, mine: dict[int, bytes] | None = None) -> None:
        self.news = News((mine or {}).get)

    def hear(self, told: wire.BoardAnswer, since: int | None = 0) -> list[Event]:
        """The events of an answer to a question that named *since*."""
        return list(self.news.apply(told, Asked(since)))


def test_the_first_answer_tells_size_windows_mode_and_claims_in_this_order() -> None:
    board = Board()
    events = board.hear(answer(1, 3, 0, 1, claims=(2,)))
    assert events == [
        Sized(SIZE),
        Published((0, 1)),
        ModeChanged(sealed=False, sole=None, available=None),
        ClaimsChanged(frozenset({2}), sole=False),
    ]
    assert (board.news.since, set(board.news.hashes)) == (3, {0, 1})


def test_an_older_answer_does_nothing_at_all() -> None:
    """It would cancel the claims that a newer one has granted."""
    board = Board()
    board.hear(answer(7, 9, 0, claims=(1, 2)))
    assert board.hear(answer(6, 8, claims=())) == []
    assert board.news.since == 9


def test_only_an_answer_with_all_the_news_moves_the_cursor() -> None:
    """The answer to a release names the newest version, and tells nothing of what led there."""
    board = Board()
    board.hear(answer(1, 3, 0))
    board.hear(answer(2, 8, claims=(4,)), since=None)
    assert board.news.since == 3, "windows of versions 4 to 8 have not been heard of"
    board.hear(answer(3, 8, 1, 2, 3), since=3)
    assert (board.news.since, set(board.news.hashes)) == (8, {0, 1, 2, 3})


def test_the_answer_to_a_question_from_before_a_restart_does_not_move_the_cursor() -> None:
    board = Board()
    board.hear(answer(1, 50, 0))
    (again, *_) = board.hear(answer(2, 52, 1, generation=1), since=50)
    assert (again, board.news.since) == (Restarted(1), 0)
    board.hear(answer(3, 52, 0, 1, generation=1), since=0)
    assert board.news.since == 52


def test_who_asks_for_everything_again_is_told_so_by_its_next_question() -> None:
    board = Board()
    board.hear(answer(1, 50, 0))
    board.news.again()
    board.hear(answer(2, 51, 4), since=50)
    assert board.news.since == 0, "that was asked before"


def test_a_restart_voids_what_was_known() -> None:
    board = Board()
    board.hear(answer(1, 3, 0, 1, sealed=True))
    events = board.hear(answer(2, 4, generation=1, size=None, claims=(0,)))
    assert events[0] == Restarted(1)
    assert not board.news.hashes
    assert not board.news.sealed


def test_another_incarnation_is_told_everything_but_voids_nothing() -> None:
    board = Board()
    board.hear(answer(90, 30, 0))
    board.news.tell(1, hashes_of(SIZE, 1))
    events = board.hear(answer(1, 1, incarnation="two"), since=30)
    assert not any(isinstance(event, Restarted) for event in events)
    assert set(board.news.hashes) == {0, 1}
    assert not board.news.knows(1), "the new one has not heard of it"


def test_another_incarnation_after_a_rejection_begins_again() -> None:
    """The tracker that would have begun another generation is gone, and what is here is doubted still."""
    board = Board()
    board.hear(answer(90, 30, 0))
    board.news.reject()
    assert Restarted(0) in board.hear(answer(1, 1, incarnation="two"), since=30)


def test_of_two_truths_the_own_one_stands() -> None:
    """Publishing it makes the board begin again; before a rejection of the own ones nothing else does."""
    mine = hashes_of(SIZE, 0, "mine")
    board = Board({0: mine})
    events = board.hear(answer(1, 3, 0, 1))
    assert Published((1,)) in events
    assert not board.news.knows(0)


def test_another_size_is_a_conflict() -> None:
    board = Board()
    board.news.sized(SIZE + 1)
    assert board.hear(answer(1, 3, 0, claims=(1,))) == [SizeConflict(SIZE)]


@pytest.mark.parametrize("published", [{9: b""}, {0: b"short"}, {-1: hashes_of(SIZE, 0)}])
def test_hashes_that_do_not_fit_are_the_trackers_fault(published: dict[int, bytes]) -> None:
    with pytest.raises(TrackerError):
        Board().hear(answer(1, 3, published=published))


def test_who_sent_wrong_bytes_is_no_peer_any_more() -> None:
    board = Board()
    board.news.ban(("10.0.0.1", 1))
    peers = tuple(wire.Peer(ip=f"10.0.0.{i}", port=1) for i in (1, 2))
    assert PeersChanged((("10.0.0.2", 1),), more=True) in board.hear(answer(1, 3, peers=peers))
    assert board.hear(answer(2, 3, peers=()))[0] != PeersChanged((), more=False), "nobody told is no news"


def test_no_hope_is_told_last() -> None:
    assert Board().hear(answer(1, 3, hope=False))[-1] == Hopeless()


def test_who_turned_to_all_peers_takes_no_claims_on_a_sole_seed() -> None:
    board = Board()
    sole = wire.Peer(ip="10.0.0.9", port=1)
    assert ClaimsChanged(frozenset({1}), sole=True) in board.hear(answer(1, 3, 0, sole=sole, claims=(1,)))
    board.news.prefer_all_peers()
    events = board.hear(answer(2, 3, sole=sole, claims=(1,)))
    assert ModeChanged(sealed=True, sole=None, available=None) in events
    assert ClaimsChanged(frozenset(), sole=False) in events


# -- the mode ----------------------------------------------------------------------------------------

SEED = ("10.0.0.9", 6881)


@pytest.mark.parametrize(
    ("mode", "now", "known", "idle", "after"),
    [
        (Mode.WINDOWS, Holding(), False, True, Mode.WINDOWS),
        (Mode.WINDOWS, Holding(sealed=True), True, True, Mode.WHOLE),
        (Mode.WINDOWS, Holding(sealed=True), True, False, Mode.WINDOWS),
        (Mode.WINDOWS, Holding(sealed=True), False, True, Mode.WINDOWS),
        (Mode.WINDOWS, Holding(sole=SEED, available=0), True, True, Mode.SOLE_SEED),
        (Mode.WHOLE, Holding(sole=SEED, available=0), True, True, Mode.SOLE_SEED),
        (Mode.WHOLE, Holding(available=3), True, True, Mode.WINDOWS),
        (Mode.WHOLE, Holding(), False, True, Mode.WHOLE),
        (Mode.SOLE_SEED, Holding(), True, False, Mode.WINDOWS),
        (Mode.SOLE_SEED, Holding(sealed=True), True, True, Mode.WHOLE),
    ],
)
def test_the_mode_follows_how_the_others_hold_the_blob(
    mode: Mode, now: Holding, known: bool, idle: bool, after: Mode
) -> None:
    assert next_mode(mode, now, known=known, idle=idle) is after


def test_a_sole_seed_that_is_none_any_more_has_left_windows_that_only_whole_holders_have() -> None:
    before, now = Holding(sealed=True, sole=SEED, available=0b011), Holding(sealed=True)
    assert is_over(before, now, missing=0b100)
    assert not is_over(before, now, missing=0b010), "peers hold it"
    assert not is_over(before, Holding(), missing=0b100), "nobody holds it whole"


def test_holders_are_named_when_they_change_and_never_one_that_sent_wrong_bytes() -> None:
    news = News(lambda _window: None)
    a, b = wire.Peer(ip="10.0.0.1", port=1, lane=11), wire.Peer(ip="10.0.0.2", port=2, lane=12)
    foreign = wire.Peer(ip="10.0.0.3", port=3)
    told = wire.BoardAnswer(
        incarnation="i", version=1, generation=0, size=SIZE, holders={4: (b, a)}, peers=(a, foreign)
    )

    def named(answer: wire.BoardAnswer) -> list[HoldersNamed]:
        return [event for event in news.apply(answer, Asked(0)) if isinstance(event, HoldersNamed)]

    first, second = Holder(("10.0.0.1", 1), 11), Holder(("10.0.0.2", 2), 12)
    assert named(told) == [HoldersNamed({4: (second, first)}, (first,), None, strangers=True)]
    assert named(told) == []
    news.ban(("10.0.0.1", 1))
    assert named(told) == [HoldersNamed({4: (second,)}, (), None, strangers=True)]


def test_of_which_origin_a_window_is_comes_and_goes_with_its_hashes() -> None:
    board = Board({2: hashes_of(SIZE, 2)})
    board.hear(answer(1, 2, 0, 1, origins={"aa": wire.bitmap(0b01)}))
    assert board.news.origins == {0: "aa"}
    board.hear(answer(2, 3, 1, origins={"bb": wire.bitmap(0b10)}), 2)
    assert board.news.origins == {0: "aa", 1: "bb"}
    board.hear(answer(3, 3, 0), 3)
    assert board.news.origins[0] == "aa", "told once more, and of which origin was told before"
    board.news.tell(2, hashes_of(SIZE, 2), "cc")
    assert board.news.origins[2] == "cc"
    board.hear(answer(4, 4, generation=1), 3)
    assert board.news.origins == {}


def test_other_hashes_are_not_of_the_origin_of_the_first() -> None:
    board = Board()
    board.hear(answer(1, 2, 0, origins={"aa": wire.bitmap(1)}))
    other = {0: bytes(len(hashes_of(SIZE, 0)))}
    board.hear(answer(2, 3, published=other), 2)
    assert (board.news.hashes[0], board.news.origins) == (other[0], {})
