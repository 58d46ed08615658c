"""The board: who may bring which window in, what is believed, and who is blamed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm.blob.digest import parse
from swarm.blob.errors import BadHashes
from swarm.blob.geometry import MIB, geometry
from swarm.protocol.assign import MAX_CLAIMS
from swarm.protocol.blame import RESTARTS
from swarm.protocol.board import MAX_GENERATIONS, MOST_ORIGINS, SOLE_AGAIN, Board
from swarm.protocol.leases import (
    ALIVE,
    FEWEST_TURNS,
    LATE,
    LEASE,
    LONGEST_WAIT,
    MOST_TURNS,
    PATIENCE,
    SLOWEST,
    SOON,
    TRIAL,
    Leases,
    Scene,
)
from swarm.protocol.participants import SILENCE, Failure, Participants
from swarm.protocol.standing import NOBODY_ELSE, Trust

DIGEST = parse("sha256:" + "ab" * 32)
SIZE = 3 * MIB + 5
CUT = geometry(SIZE)


def hashes_of(window: int, told_by: str = "truth") -> bytes:
    """Hashes of *window* that only *told_by* would tell."""
    return b"".join(
        hashlib.sha1(f"{told_by} {window} {piece}".encode()).digest() for piece in range(CUT.windows[window].pieces)
    )


def publish(board: Board, agent: str, now: float, window: int, told_by: str = "truth", size: int = SIZE) -> bool:
    """*agent* publishes a window of the current generation."""
    return board.publish(
        agent, now, generation=board.generation, size=size, window=window, hashes=hashes_of(window, told_by)
    ).accepted


def filled(agent: str = "a", trust: Trust = NOBODY_ELSE) -> Board:
    """A board that *agent* brought in alone, not sealed yet."""
    board = Board(DIGEST, trust=trust)
    board.join(agent, 0.0, want=4)
    for window in range(len(CUT.windows)):
        assert publish(board, agent, 0.0, window)
    return board


# -- claims -------------------------------------------------------------------------------------------


def test_before_the_size_is_known_only_window_zero_is_claimed() -> None:
    board = Board(DIGEST)
    for agent in "abc":
        board.join(agent, 0.0, want=4)
    assert board.assign(0.0).changed == {"a"}
    assert board.claims_of("a") == (0,)


def test_agents_that_ask_at_once_get_different_windows() -> None:
    board = Board(DIGEST)
    for agent in "abcd":
        board.join(agent, 0.0, want=4, size=SIZE)
    board.assign(0.0)
    assert [board.claims_of(agent) for agent in "abcd"] == [(0,), (1,), (2,), (3,)]


def test_who_brought_few_windows_in_comes_first() -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    publish(board, "a", 0.0, 0)
    board.assign(0.0)
    assert board.claims_of("b") == (1,)


def test_who_brings_in_what_nobody_could_get_has_delivered_too() -> None:
    """Cut off from the holders of a blob, two agents had one claim each at a time, however many they fulfilled."""
    board = Board(DIGEST, trust=Trust(proven=lambda _agent: False))
    board.join("holder", 0.0, want=4, size=SIZE)
    board.assign(0.0)
    for window in range(len(CUT.windows)):
        publish(board, "holder", 0.0, window)
    for agent in ("a", "b"):
        board.join(agent, 1.0, want=4, stalled=(0, 1, 2, 3))
    board.assign(1.0)
    assert [len(board.claims_of(agent)) for agent in ("a", "b")] == [1, 1]
    (first,) = board.claims_of("a")
    publish(board, "a", 2.0, first)
    board.assign(2.0)
    assert len(board.claims_of("a")) > 1


def test_the_preferred_window_is_claimed_first() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=2, size=SIZE, prefer=(2,))
    board.assign(0.0)
    assert board.claims_of("a") == (0, 2)


def test_a_range_reader_claims_nothing_but_what_it_prefers() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=4, size=SIZE, prefer=(2,), only_preferred=True)
    board.assign(0.0)
    assert board.claims_of("a") == (2,)


@pytest.mark.parametrize(
    ("concurrent", "claims"),
    [((0, 0), 8), ((1, 1), 4), ((2, 2), 3), ((3, 3), 2), ((40, 40), 2), ((2, 0), 8)],
)
def test_boards_that_fill_at_the_same_time_share_the_claims_of_one(concurrent: tuple[int, ...], claims: int) -> None:
    """An agent that has nothing else to bring in takes what it can get."""
    board = Board(DIGEST)
    for agent, others in zip("ab", concurrent, strict=True):
        board.join(agent, 0.0, want=8, size=20 * MIB, concurrent=others)
    board.assign(0.0)
    assert len(board.claims) == claims


def test_a_reader_of_ranges_does_not_wait_for_its_share() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=8, size=20 * MIB, concurrent=3)
    board.assign(0.0)
    board.join("reader", 0.0, want=4, prefer=(9, 10), only_preferred=True, concurrent=3)
    board.assign(0.0)
    assert (len(board.claims_of("a")), board.claims_of("reader")) == (2, (9, 10))


def test_where_everybody_has_told_a_rejected_window_somebody_brings_it_in_again() -> None:
    """Two agents that contradict each other are all there is: whoever of them is right gets another go."""
    board = Board(DIGEST)
    for agent in "ab":
        board.join(agent, 0.0, want=1, size=SIZE)
    publish(board, "a", 0.0, 0, "truth")
    publish(board, "b", 0.0, 0, "another")
    assert board.generation == 1
    board.assign(0.0)
    assert 0 in board.claims


def test_a_rejected_window_is_not_kept_for_a_reader_who_does_not_want_it() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("reader", 0.0, want=1, prefer=(3,), only_preferred=True)
    publish(board, "a", 0.0, 0)
    board.reject("reader", 0)
    board.join("reader", 0.0, want=1, size=SIZE, prefer=(3,), only_preferred=True)
    board.assign(0.0)
    assert (board.claims_of("a"), board.claims_of("reader")) == ((0,), (3,))


def test_agents_near_to_upstream_get_claims_first_and_the_others_what_is_left() -> None:
    board = Board(DIGEST)
    for agent in ("far", "near"):
        board.join(agent, 0.0, want=2, size=SIZE)
    board.assign(0.0, near=lambda agent: agent == "near")
    assert (board.claims_of("near"), board.claims_of("far")) == ((0, 1), (2, 3))


def test_a_reader_of_ranges_does_not_wait_for_those_near_to_upstream() -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("far", 0.0, want=1, size=SIZE, prefer=(3,), only_preferred=True)
    board.join("near", 0.0, want=1)
    board.assign(0.0, near=lambda agent: agent == "near")
    assert board.claims_of("far") == (3,)


def test_without_anybody_near_to_upstream_the_others_bring_it_in() -> None:
    board = Board(DIGEST)
    board.join("far", 0.0, want=4, size=SIZE)
    board.assign(0.0, near=lambda _: False)
    assert board.claims_of("far") == (0, 1, 2, 3)


def zoned(**wants: int) -> Board:
    """A board with a copy per zone; agents `north_1` and so on."""
    board = Board(DIGEST, trust=Trust(zone_of=lambda agent: agent.partition("_")[0]))
    for agent, want in wants.items():
        board.join(agent, 0.0, want=want, size=SIZE)
    return board


def test_with_a_copy_per_zone_each_zone_brings_in_every_window_once() -> None:
    board = zoned(north_1=1, north_2=1, south_1=1)
    brought: list[tuple[str, int]] = []
    while board.assign(0.0).changed:
        assert len(board.claims) == len({(claim.agent, window) for window, claim in board.claims.items()})
        for window, claim in list(board.claims.items()):
            brought.append((claim.agent.partition("_")[0], window))
            assert publish(board, claim.agent, 0.0, window)
    assert sorted(brought) == [(zone, window) for zone in ("north", "south") for window in range(len(CUT.windows))]


def test_with_a_copy_per_zone_a_sealed_blob_is_brought_in_by_a_zone_that_has_none() -> None:
    board = zoned(north_1=4)
    board.assign(0.0)
    for window in range(len(CUT.windows)):
        publish(board, "north_1", 0.0, window)
    board.seal("north_1", 0)
    board.join("north_2", 0.0, want=4, size=SIZE, generation=0)
    board.assign(0.0)
    assert board.claims == {}
    assert (board.has("north"), board.has("south"), board.can_bring("south")) == (True, False, False)
    board.join("south_1", 0.0, want=4, size=SIZE, generation=0)
    board.assign(0.0)
    assert board.claims_of("south_1") == (0, 1, 2, 3)
    assert board.can_bring("south")
    board.release("south_1", 0.0, range(4), Failure.REFUSED)
    assert not board.can_bring("south")
    assert board.hope()
    version = board.version
    board.seal("south_1", 0)
    assert board.has("south")
    assert board.version > version, "the others of its zone hear that they may fetch it whole"


def test_a_claim_without_progress_goes_to_somebody_else_when_its_lease_ends() -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    assert board.next_deadline() == LEASE
    assert board.assign(LEASE - 0.001).changed == set()
    assert board.assign(LEASE).changed == {"a", "b"}
    assert board.claims_of("b") == (0,)


def test_a_claim_is_alive_while_its_bytes_grow_however_slowly() -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    for second in range(4, 40, 4):
        board.progress("a", float(second), {0: second * 20_000})
        board.assign(float(second))
        assert board.claims_of("a") == (0,)
    board.progress("a", 40.0, {0: 36 * 20_000})
    board.assign(36.0 + LEASE)
    assert board.claims_of("b") == (0,), "the same number again is no progress"


def test_made_up_progress_beyond_the_end_of_the_window_keeps_nothing() -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    board.progress("a", 1.0, {0: 10**12})
    board.progress("a", 4.0, {0: 2 * 10**12})
    board.assign(1.0 + LEASE)
    assert board.claims_of("b") == (0,)


def test_a_byte_at_a_time_does_not_keep_a_claim_for_ever() -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    for second in range(1, 1000):
        board.join("b", float(second), want=1)
        board.progress("a", float(second), {0: second})
        board.assign(float(second))
        if board.claims_of("b"):
            break
    assert second <= LONGEST_WAIT + board.window_length(0) / SLOWEST + 1


def test_who_is_much_slower_than_the_others_loses_the_claim() -> None:
    board = Board(DIGEST, max_claims=2)
    for name in "ab":
        board.join(name, 0.0, want=1, size=SIZE)
    board.assign(0.0)
    assert (board.claims_of("a"), board.claims_of("b")) == ((0,), (1,))
    assert publish(board, "b", 1.0, 1)
    for second in range(1, 6):
        board.progress("a", float(second), {0: second * 10_000})
        assert board.claims_of("a") == (0,)
    board.assign(5.0)
    assert 0 not in board.claims_of("a")
    assert 0 in board.claims_of("b")


def test_where_all_are_slow_nobody_loses_a_claim() -> None:
    board = Board(DIGEST, max_claims=2)
    for name in "ab":
        board.join(name, 0.0, want=1, size=SIZE)
    board.assign(0.0)
    for second in range(1, 30):
        for window, name in enumerate("ab"):
            board.progress(name, float(second), {window: second * (10_000 + 9_000 * window)})
        board.assign(float(second))
    assert (board.claims_of("a"), board.claims_of("b")) == ((0,), (1,))


@pytest.mark.parametrize(("timeout", "kept"), [(10.0, 10), (30.0, 30), (10_000.0, LONGEST_WAIT), (0.0, LEASE)])
def test_a_claim_lives_while_upstream_has_not_had_its_time(timeout: float, kept: float) -> None:
    board = Board(DIGEST, max_claims=1)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    second = 0
    while board.claims_of("a"):
        second += 1
        board.join("b", float(second), want=1)
        board.progress("a", float(second), {}, waiting={0: second - 0.5}, timeout=timeout)
        board.assign(float(second))
    assert kept <= second <= kept + LEASE


def test_who_waits_for_upstream_in_vain_where_others_do_not_loses_the_claim() -> None:
    board = Board(DIGEST, max_claims=2)
    for name in "ab":
        board.join(name, 0.0, want=1, size=SIZE)
    board.assign(0.0)
    assert publish(board, "b", 1.0, 1)
    board.progress("a", 4.0, {}, waiting={0: 4.0}, timeout=30.0)
    board.progress("a", 6.0, {}, waiting={0: 6.0}, timeout=30.0)
    board.assign(6.0)
    assert 0 in board.claims_of("b")


def test_a_crawling_agent_keeps_its_claim_if_nobody_else_could_take_it() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1, size=SIZE)
    board.assign(0.0)
    board.progress("a", 1.0, {0: 1})
    board.assign(LEASE)
    assert board.claims_of("a") == (0,)


def test_an_agent_whose_lease_ended_may_try_again_after_another_lease() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1, size=SIZE)
    board.assign(0.0)
    board.assign(LEASE)
    assert board.claims_of("a") == ()
    assert board.next_deadline() == 2 * LEASE
    board.assign(2 * LEASE)
    assert board.claims_of("a") == (0,)


@pytest.mark.parametrize(
    ("failure", "retry_after", "until"),
    [
        (Failure.HANDED_OVER, None, 0.0),
        (Failure.BROKEN, None, 0.5),
        (Failure.BUSY, None, 1.0),
        (Failure.BUSY, 3.0, 3.0),
        (Failure.BUSY, 9999.0, PATIENCE),
        (Failure.REFUSED, None, 30.0),
    ],
)
def test_a_claim_given_back_bars_its_agent_for_a_while(
    failure: Failure, retry_after: float | None, until: float
) -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1, size=SIZE)
    board.assign(0.0)
    board.release("a", 0.0, [0], failure, retry_after)
    if until:
        board.progress("a", until - 0.01, {})  # it is alive
        board.assign(until - 0.01)
        assert board.claims_of("a") == ()
    board.assign(until)
    assert board.claims_of("a") == (0,)


def test_nobody_else_can_release_or_advance_a_claim() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1, size=SIZE)
    board.join("b", 0.0)
    board.assign(0.0)
    board.release("b", 0.0, [0], Failure.HANDED_OVER)
    board.progress("b", 1.0, {0: MIB})
    assert board.claims[0].agent == "a"
    assert board.claims[0].done == 0


def test_a_window_whose_only_holder_left_is_claimed_again() -> None:
    board = filled("a")
    board.join("b", 0.0, want=4)
    assert board.assign(0.0).changed == set()
    board.leave("a")
    assert board.assign(0.0).changed == {"b"}
    assert board.claims_of("b") == (0, 1, 2, 3)


def test_a_stalled_agent_may_bring_in_what_others_hold() -> None:
    board = filled("a")
    board.join("b", 0.0, want=4, stalled=(2,))
    board.assign(0.0)
    assert board.claims_of("b") == (2,)
    publish(board, "c", 1.0, 2)
    assert board.participants["b"].stalled == frozenset()


def test_whoever_is_silent_is_forgotten_with_its_claims() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1, size=SIZE)
    board.assign(0.0)
    for second in range(4, int(SILENCE), 4):
        board.claims[0].deadline = second + LEASE
    board.claims[0].deadline = SILENCE + 1
    board.assign(SILENCE)
    assert not board.participants
    assert not board.claims


def test_somebody_who_may_not_claim_gets_nothing() -> None:
    board = Board(DIGEST, trust=Trust(may_claim=lambda agent: agent != "a"))
    board.join("a", 0.0, want=4, size=SIZE)
    board.join("b", 0.0, want=1)
    board.assign(0.0)
    assert {claim.agent for claim in board.claims.values()} == {"b"}


def test_after_another_tracker_forgot_claims_go_on_where_they_were() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=2, size=SIZE)
    board.resume("a", 0.0, (1, 3, 99))
    assert board.claims_of("a") == (1, 3)
    board.join("b", 0.0, want=2)
    board.resume("b", 0.0, (1, 2))
    assert board.claims_of("b") == (2,)


# -- publications ---------------------------------------------------------------------------------------


def test_a_publication_for_another_generation_is_ignored() -> None:
    board = Board(DIGEST)
    assert not board.publish("a", 0.0, generation=1, size=SIZE, window=0, hashes=hashes_of(0)).accepted
    assert not board.windows


@pytest.mark.parametrize(
    ("window", "hashes"),
    [(4, hashes_of(0)), (-1, hashes_of(0)), (0, hashes_of(0)[:-1]), (0, b""), (0, bytes(len(hashes_of(0))))],
)
def test_hashes_that_cannot_be_are_refused_and_teach_nothing(window: int, hashes: bytes) -> None:
    board = Board(DIGEST)
    with pytest.raises(BadHashes):
        board.publish("a", 0.0, generation=0, size=SIZE, window=window, hashes=hashes)
    assert board.size is None
    assert board.version == 1


def test_other_hashes_for_the_same_window_begin_the_board_again() -> None:
    board = Board(DIGEST)
    publish(board, "a", 0.0, 0)
    assert not publish(board, "b", 0.0, 0, told_by="liar")
    assert (board.generation, board.size, board.windows) == (1, None, {})


def test_another_size_begins_the_board_again() -> None:
    board = Board(DIGEST)
    publish(board, "a", 0.0, 0)
    assert not publish(board, "b", 0.0, 0, size=SIZE + 1)
    assert board.generation == 1


def test_what_two_members_vouch_for_is_final_and_who_contradicts_it_is_wrong() -> None:
    board = filled("a")
    board.seal("a", 0)
    board.seal("b", 0)
    outcome = board.publish("c", 0.0, generation=0, size=SIZE, window=1, hashes=hashes_of(1, "liar"))
    assert [blame.agent for blame in outcome.blamed] == ["c"]
    assert (board.sealed, board.generation) == (True, 0)
    assert not board.publish("c", 0.0, generation=0, size=SIZE, window=1, hashes=hashes_of(1)).blamed


def test_what_one_member_sealed_begins_again_when_another_contradicts_it_and_nobody_is_blamed() -> None:
    board = Board(DIGEST)
    board.seal_whole("liar", SIZE, b"".join(hashes_of(w, "liar") for w in range(4)))
    outcome = board.publish("a", 0.0, generation=0, size=SIZE, window=1, hashes=hashes_of(1))
    assert (outcome.blamed, outcome.restarted, board.sealed) == ([], True, False)
    for window in range(4):
        publish(board, "a", 1.0, window)
    assert not board.seal("a", 1).blamed, "one against one"
    assert [blame.agent for blame in board.seal("b", 1).blamed] == ["liar"]


def test_who_makes_a_board_begin_again_too_often_goes_its_own_way() -> None:
    board = filled("a")
    board.seal("a", 0)
    for generation in range(RESTARTS):
        assert board.reject("liar", generation).accepted
        for window in range(4):
            publish(board, "a", 1.0, window)
    assert not board.reject("liar", RESTARTS).accepted
    assert board.generation == RESTARTS
    assert board.alone("liar")
    assert not board.alone("a")


def test_a_board_of_which_nothing_is_known_cannot_be_rejected() -> None:
    board = Board(DIGEST)
    assert not board.reject("liar", 0).accepted
    assert (board.generation, board.poisoned) == (0, False)


def test_another_size_than_one_member_said_begins_the_board_again() -> None:
    board = Board(DIGEST)
    board.join("liar", 0.0, size=SIZE + 1, want=1)
    assert board.join("a", 0.0, size=SIZE, want=1).restarted
    board.join("a", 0.0, size=SIZE, want=1)
    assert board.size == SIZE


def test_news_are_the_windows_published_since() -> None:
    board = Board(DIGEST)
    publish(board, "a", 0.0, 2)
    version = board.version
    publish(board, "a", 0.0, 0)
    assert board.view("b", version).published == {0: hashes_of(0)}
    assert set(board.view("b", 0).published) == {0, 2}
    assert board.view("b", board.version).published == {}
    assert set(board.view("b", board.version, generation=7).published) == {0, 2}


# -- the end --------------------------------------------------------------------------------------------


def test_only_a_complete_board_is_sealed() -> None:
    board = Board(DIGEST)
    publish(board, "a", 0.0, 0)
    assert not board.seal("a", 0).accepted
    assert not board.sealed
    board = filled("a")
    board.seal("a", 0)
    assert board.sealed
    assert board.hashes == b"".join(hashes_of(w) for w in range(4))


def test_an_empty_blob_is_sealed_by_whoever_holds_it() -> None:
    board = Board(DIGEST)
    board.seal_whole("a", 0, b"")
    assert board.sealed
    assert board.hashes == b""


def test_who_told_wrong_hashes_is_blamed_when_the_right_ones_are_sealed() -> None:
    board = Board(DIGEST)
    for window in range(4):
        publish(board, "liar" if window == 2 else "a", 0.0, window, told_by="liar" if window == 2 else "truth")
    assert board.reject("b", 0).accepted
    for window in range(4):
        publish(board, "b", 1.0, window)
    assert not board.seal("b", 1).blamed, "the word of one member"
    assert [blame.agent for blame in board.seal("c", 1).blamed] == ["liar"]


def test_who_rejected_and_who_saw_the_sha256_match_are_two() -> None:
    board = Board(DIGEST)
    for window in range(4):
        publish(board, "liar" if window == 2 else "a", 0.0, window, told_by="liar" if window == 2 else "truth")
    board.reject("b", 0)
    for window in range(4):
        publish(board, "c", 1.0, window)
    assert [blame.agent for blame in board.seal("c", 1).blamed] == ["liar"]


def test_processes_of_one_member_are_one_judge() -> None:
    board = Board(DIGEST, trust=Trust(member_of=lambda agent: agent.partition(":")[0]))
    for window in range(4):
        publish(board, "a:1", 0.0, window)
    board.reject("bad:1", 0)
    for window in range(4):
        publish(board, "bad:2", 1.0, window, told_by="liar")
    assert not board.seal("bad:2", 1).blamed
    assert not board.seal("bad:3", 1).blamed


def test_who_rejected_the_right_bytes_is_blamed() -> None:
    board = filled("a")
    board.reject("bad-memory", 0)
    for window in range(4):
        publish(board, "b", 1.0, window)
    assert [blame.agent for blame in board.seal("b", 1).blamed] == ["bad-memory"]


def test_in_a_conflict_about_the_only_window_the_liar_is_blamed_and_not_who_contradicted_it() -> None:
    board = Board(DIGEST)
    small = geometry(5).pieces * 20
    board.publish("liar", 0.0, generation=0, size=5, window=0, hashes=b"l" * small)
    board.publish("a", 0.0, generation=0, size=5, window=0, hashes=b"t" * small)
    board.publish("b", 0.0, generation=1, size=5, window=0, hashes=b"t" * small)
    assert [blame.agent for blame in board.seal("b", 1).blamed] == ["liar"]


def test_after_a_rejection_a_window_is_brought_in_by_somebody_else() -> None:
    board = filled("a")
    board.join("b", 0.0, want=4)
    board.reject("b", 0)
    board.join("a", 0.0, want=4, size=SIZE)
    board.assign(0.0)
    assert board.claims_of("a") == ()
    assert board.claims_of("b") == (0, 1, 2, 3)


def test_after_a_rejection_one_agent_brings_everything_in_so_that_it_is_known_who_was_wrong() -> None:
    board = Board(DIGEST)
    for agent in "abc":
        board.join(agent, 0.0, want=2, size=SIZE)
    for window, agent in enumerate("abca"):
        publish(board, agent, 0.0, window, told_by="liar" if agent == "c" else "truth")
    board.reject("a", 0)
    for agent in "abc":
        board.join(agent, 0.0, want=2, size=SIZE)
    board.assign(0.0)
    assert {claim.agent for claim in board.claims.values()} == {"b"}, "it told little, and accuses nobody"
    while board.claims:
        for window in board.claims_of("b"):
            publish(board, "b", 1.0, window)
        board.assign(1.0)
    assert [blame.agent for blame in board.seal("b", 1).blamed] == ["c"]


def test_who_found_wrong_what_it_brought_in_alone_does_not_do_so_again() -> None:
    board = filled("bad-line")
    board.join("good", 0.0, want=1)
    board.reject("good", 0)
    for window in range(4):
        publish(board, "bad-line", 0.0, window)
    board.reject("bad-line", 1)
    for agent in ("bad-line", "good"):
        board.join(agent, 0.0, want=1, size=SIZE)
    board.assign(0.0)
    assert {claim.agent for claim in board.claims.values()} == {"good"}


def test_who_may_claim_nothing_is_sent_upstream_by_itself_where_nobody_else_brings_the_blob_in() -> None:
    board = Board(DIGEST, trust=Trust(may_claim=lambda agent: agent != "a"))
    board.join("a", 0.0, want=4, size=SIZE)
    assert (board.view("a").hope, board.view("a").poisoned) == (False, True)
    board.join("b", 0.0, want=1)
    assert (board.view("a").hope, board.view("a").poisoned) == (True, False)
    board.release("b", 0.0, [], Failure.REFUSED)
    assert board.view("a").poisoned


# -- who has delivered nothing yet ---------------------------------------------------------------------


def strangers(**members: int) -> Board:
    """A board where nobody has delivered anything before; each member has so many agents that want all windows."""
    board = Board(DIGEST, trust=Trust(member_of=lambda agent: agent.partition("_")[0], proven=lambda _agent: False))
    for member, agents in members.items():
        for index in range(agents):
            board.join(f"{member}_{index}", 0.0, want=64, size=SIZE)
    return board


def test_who_has_delivered_nothing_gets_one_claim_with_all_its_processes_where_others_would_take_some() -> None:
    board = strangers(ghost=16, a=1)
    board.assign(0.0)
    assert sorted(claim.agent.partition("_")[0] for claim in board.claims.values()) == ["a", "ghost"]
    window = board.claims_of("a_0")[0]
    publish(board, "a_0", 0.1, window)
    board.assign(0.1)
    assert len(board.claims_of("a_0")) == 2, "all that is left"


def test_who_is_alone_gets_what_it_asks_for() -> None:
    board = strangers(a=1)
    board.assign(0.0)
    assert len(board.claims_of("a_0")) == 4


def test_a_claim_goes_to_who_brings_the_window_in_where_its_holder_has_never_delivered() -> None:
    board = strangers(ghost=1)
    board.assign(0.0)
    board.join("a_0", 0.0, want=1, size=SIZE)
    seconds = 0
    while not board.claims_of("a_0"):
        seconds += 1
        board.progress("ghost_0", float(seconds), dict.fromkeys(range(4), seconds * 50000))
        board.join("a_0", float(seconds), want=1, size=SIZE, direct=(2,))
        board.assign(float(seconds))
    assert seconds <= LEASE + 1
    assert board.claims_of("a_0") == (2,)


def test_who_is_slow_keeps_its_claim_while_nobody_brings_the_window_in() -> None:
    board = strangers(a=1, b=1)
    board.assign(0.0)
    held = board.claims_of("a_0")
    for second in range(1, 60):
        board.join("b_0", float(second), want=4, size=SIZE)
        board.progress("a_0", float(second), dict.fromkeys(held, second * 9000))
        board.progress("b_0", float(second), dict.fromkeys(board.claims_of("b_0"), second * 9000))
        board.assign(float(second))
    assert board.claims_of("a_0") == held


def test_a_claim_goes_to_who_brings_the_window_in_as_soon_as_its_holder_is_silent() -> None:
    board = Board(DIGEST, trust=Trust(proven=lambda _agent: True))
    board.join("dead", 0.0, want=4, size=SIZE)
    board.assign(0.0)
    board.progress("dead", 1.0, {0: 1000, 1: 1000})
    board.join("a", 1.5, want=4, size=SIZE, direct=(1,))
    board.assign(1.5)
    assert board.claims_of("dead") == (0, 1, 2, 3), "it was heard of lately"
    board.join("a", 1.0 + ALIVE, want=4, size=SIZE, direct=(1,))
    assert board.assign(1.0 + ALIVE).changed == {"a", "dead"}
    assert (board.claims_of("dead"), board.claims_of("a")) == ((0, 2, 3), (1,))


def test_others_hear_which_windows_come_and_how_fast() -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=2, size=SIZE)
    board.assign(0.0)
    assert board.coming_for("b", 1.0) == {0: 0.0, 1: 0.0}
    board.progress("a", 2.0, {0: 40_000})
    assert board.coming_for("b", 4.0) == {0: 10_000.0}, "of the other nothing was heard"
    assert board.coming_for("a", 4.0) == {}


def test_who_says_that_it_brings_everything_in_gets_no_more_than_it_may_have() -> None:
    board = strangers(ghost=1, a=1)
    board.join("ghost_0", 0.0, want=64, size=SIZE, direct=tuple(range(1000)))
    board.assign(0.0)
    assert len(board.claims_of("ghost_0")) == 1


@pytest.mark.parametrize("windows", [(0,), (0, 1)])
def test_who_waits_for_upstream_in_its_time_keeps_its_claims_while_nobody_else_gets_more(
    windows: tuple[int, ...],
) -> None:
    """Whoever got the claim would have to wait as well."""
    board = Board(DIGEST, trust=Trust(proven=lambda _agent: False))
    size = len(windows) * MIB
    board.join("slow", 0.0, want=4, size=size)
    board.assign(0.0)
    for second in range(1, 25):
        for agent in ("slow", "a"):
            board.join(agent, float(second), want=4, size=size)
        waiting = dict.fromkeys(board.claims_of("slow"), float(second))
        board.progress("slow", float(second), {}, waiting=waiting, timeout=30.0)
        board.assign(float(second))
        assert board.claims_of("slow") == windows


def test_the_only_window_is_taken_once_from_who_has_delivered_nothing() -> None:
    board = Board(DIGEST, trust=Trust(proven=lambda _agent: False))
    board.join("ghost", 0.0, want=1, size=MIB)
    board.assign(0.0)
    owners = ["ghost"]
    for second in range(1, 60):
        for agent in ("ghost", "a"):
            board.join(agent, float(second), want=1, size=MIB, direct=(0,))
            board.progress(agent, float(second), {0: second * 10_000})
        board.assign(float(second))
        if (owner := board.claims[0].agent) != owners[-1]:
            owners.append(owner)
    assert owners == ["ghost", "a"]


def test_a_lone_holder_whom_nobody_vouches_for_is_soon_believed_no_more() -> None:
    board = Board(DIGEST, trust=Trust(proven=lambda _agent: False))
    board.seal_whole("liar", SIZE, b"".join(hashes_of(w, "liar") for w in range(4)))
    board.join("a", 0.0, want=4, turns=2)
    board.assign(0.0)
    assert board.sole == "liar"
    board.join("a", TRIAL, want=4, turns=2)
    board.assign(TRIAL)
    assert (board.sealed, board.sole, board.size) == (False, "", None)
    board.join("a", TRIAL, want=4, turns=2, size=SIZE)
    board.assign(TRIAL)
    assert board.claims_of("a") == (0, 1, 2, 3)
    board.seal_whole("liar", SIZE, b"".join(hashes_of(w, "liar") for w in range(4)))
    assert not board.sealed, "it had its chance"


def test_a_copy_that_was_rejected_does_not_seal_while_others_can_bring_the_blob_in() -> None:
    whole = b"".join(hashes_of(w, "liar") for w in range(4))
    board = Board(DIGEST)
    board.seal_whole("liar", SIZE, whole)
    board.join("b", 0.0, want=1)
    board.reject("b", 0)
    board.seal_whole("liar", SIZE, whole)
    assert not board.sealed
    board.leave("b")
    board.seal_whole("liar", SIZE, whole)
    assert board.sealed


def rejected_often() -> Board:
    """A board that was begun again too often, by agents who each brought the blob in and found it wrong."""
    board = Board(DIGEST)
    board.join("a", 0.0, want=4)
    for generation in range(MAX_GENERATIONS + 1):
        assert not board.poisoned
        assert publish(board, f"n{generation}", 0.0, 0, f"n{generation}")
        assert board.reject(f"n{generation}", generation).accepted
    return board


def test_too_many_wrong_copies_poison_the_board() -> None:
    board = rejected_often()
    assert board.poisoned
    assert board.assign(0.0).changed == set()
    assert not publish(board, "a", 0.0, 0)


def test_a_poisoned_board_is_healed_by_a_whole_copy() -> None:
    board = rejected_often()
    board.seal_whole("b", SIZE, b"".join(hashes_of(w) for w in range(4)))
    assert board.sealed
    assert not board.poisoned


@pytest.mark.parametrize(
    ("failures", "hope"),
    [([], True), ([Failure.BROKEN] * 2, True), ([Failure.BROKEN] * 3, False), ([Failure.REFUSED], False)],
)
def test_hope_ends_when_everybody_able_was_refused_or_failed_often(failures: list[Failure], hope: bool) -> None:
    board = Board(DIGEST)
    board.join("a", 0.0, want=1)
    for turn, failure in enumerate(failures):
        board.release("a", float(turn), [0], failure)
    assert board.hope() is hope
    board.hold_whole("b")
    assert board.hope()


@pytest.mark.parametrize("failure", [Failure.BUSY, Failure.BROKEN])
@pytest.mark.parametrize(("pause", "hope"), [(PATIENCE, True), (PATIENCE + 1, False), (3600.0, False)])
def test_a_long_pause_ends_hope_and_a_short_one_is_waited_out(failure: Failure, pause: float, hope: bool) -> None:
    """Upstream said when to come back: a client that has to wait for that is better told that it will not get it."""
    board = Board(DIGEST)
    board.join("a", 0.0, want=1)
    board.release("a", 0.0, [0], failure, retry_after=pause)
    assert board.hope() is hope
    board.join("b", 0.0, want=1)
    assert board.hope(), "b has not asked yet"
    board.release("b", 0.0, [0], failure, retry_after=pause)
    assert board.hope() is hope
    assert board.next_deadline() == PATIENCE, "whoever still waits is asked again soon, and told the same"


# -- any order of events ----------------------------------------------------------------------------------

AGENTS = ("a", "b", "c", "d")
agents = st.sampled_from(AGENTS)
windows = st.integers(0, len(CUT.windows) - 1)


# -- a sole seed -------------------------------------------------------------------------------------


def sought(*seekers: str, turns: int = 2, trust: Trust = NOBODY_ELSE) -> Board:
    """A sealed board of "seed", who is not on it any more, while *seekers* fetch it whole."""
    board = filled("seed", trust)
    board.seal("seed", board.generation)
    board.leave("seed")
    for agent in seekers:
        board.join(agent, 0.0, want=4, turns=turns, generation=board.generation)
    board.assign(0.0)
    return board


def test_windows_of_a_lone_holder_are_fetched_by_one_agent_each() -> None:
    board = sought("a", "b")
    assert board.sole == "seed"
    assert (board.claims_of("a"), board.claims_of("b")) == ((0, 2), (1, 3))
    assert (board.view("a").sole, board.view("a").available) == ("seed", 0)
    assert board.view("seed").sole == ""


def test_what_one_agent_fetched_from_a_lone_holder_the_others_are_told_of() -> None:
    board = sought("a", "b")
    version = board.version
    assert publish(board, "a", 1.0, 0)
    assert (board.claims_of("a"), board.elsewhere) == ((2,), 0b1)
    assert board.version > version
    version = board.version
    board.join("b", 1.0, turns=2, have=0b1, generation=board.generation)
    assert board.version == version, "a second copy of it is no news"


def test_what_the_lone_holder_itself_says_that_it_holds_is_not_spread() -> None:
    board = sought("a", "b")
    board.join("seed", 1.0, have=0b1111, generation=board.generation)
    assert (board.sole, board.elsewhere) == ("seed", 0)
    board.join("a", 1.0, have=0b10, generation=board.generation, turns=2)
    assert board.elsewhere == 0b10


def test_a_window_that_waits_its_turn_behind_another_of_the_same_agent_is_no_stalled_claim() -> None:
    """The holder sends "a" one window after the other: for longer than a lease, but it never stands still."""
    board = sought("a", "b")
    board.progress("a", 4.0, {0: 70_000})
    board.assign(6.0)
    assert (board.sole, board.claims_of("a"), board.claims_of("b")) == ("seed", (0, 2), ()), "of b nothing has come"
    board.assign(9.0)
    assert (board.sole, board.claims_of("a")) == ("", ()), "nor of anybody for a lease"

    board = sought("a")
    board.progress("a", 4.0, {0: 70_000})
    board.assign(6.0)
    publish(board, "a", 8.0, 0)
    board.assign(12.0)
    assert (board.sole, board.claims_of("a")) == ("seed", (1, 2))
    board.assign(13.5)
    assert board.sole == ""


def test_whom_a_lone_holder_gives_nothing_has_no_turn_for_a_while() -> None:
    """The others fetch its windows meanwhile, and give them to it: the holder is not asked by everybody again."""
    board = sought("a", "b")
    board.progress("a", 4.0, {0: 70_000, 2: 70_000})
    board.assign(5.0)
    assert (board.claims_of("a"), board.claims_of("b")) == ((0, 2), ())
    publish(board, "a", 5.5, 0)
    publish(board, "a", 5.6, 2)
    board.assign(5.6)
    assert board.claims_of("a") == (1, 3)
    board.join("b", 6.0, want=4, turns=2, have=0b101, generation=board.generation)
    board.assign(6.0)
    assert (board.sole, board.claims_of("b"), board.view("b").available) == ("seed", (), 0b101)
    assert board.next_deadline() == 5.0 + LEASE
    board.release("a", 6.5, [3], Failure.HANDED_OVER)
    board.join("a", 6.5, want=4, turns=1, generation=board.generation)
    board.progress("a", 9.9, {1: 70_000})
    board.assign(5.0 + LEASE)
    assert board.claims_of("b") == (3,), "it may try again"


@pytest.mark.parametrize(
    ("took", "turns"),
    [
        ([], FEWEST_TURNS),
        ([0.01] * 30, MOST_TURNS),
        ([LATE + 0.1] * 30, FEWEST_TURNS),
        ([0.01] * 5 + [(SOON + LATE) / 2] * 20, FEWEST_TURNS + 5),
        ([0.01] * 20 + [LATE + 0.1] * 3, MOST_TURNS - 3),
    ],
)
def test_a_lone_holder_is_asked_for_as_many_windows_as_come_soon(took: list[float], turns: int) -> None:
    """More at once make each of them late; who has a fast link is asked for more."""
    scene, leases = Scene(geometry(64 * MIB), "seed"), Leases(Participants())
    leases.who.join("a", 0.0)
    for window, seconds in enumerate(took):
        leases.grant("a", window, 10.0 * window, scene)
        leases.finish("a", window, 10.0 * window + seconds, scene, first=True)
    assert leases.turns == turns


def test_the_first_who_seeks_it_takes_turns_already() -> None:
    board = sought("a")
    assert (board.sole, board.claims_of("a")) == ("seed", (0, 1))
    board.join("b", 1.0, turns=2)
    board.assign(1.0)
    assert board.claims_of("b") == (2, 3)


def test_who_has_a_lane_to_the_lone_holder_takes_turns_only_when_another_seeks_it_too() -> None:
    """A claim on each window costs one that is alone more than the window does."""
    lanes = {"seed", "a"}
    trust = Trust(direct=lambda agent, holder: {agent, holder} <= lanes)
    board = sought("a", trust=trust)
    assert (board.sole, board.claims_of("a"), board.view("a").sealed) == ("", (), True)
    assert sought("b", trust=trust).sole == "seed", "it has none"
    board.join("b", 1.0, turns=2)
    board.assign(1.0)
    assert (board.sole, board.claims_of("a"), board.claims_of("b")) == ("seed", (0, 2), (1, 3))
    board.join("b", 2.0)
    board.assign(2.0)
    assert (board.sole, board.view("a").sealed) == ("", True)


def test_a_reader_of_ranges_asks_the_lone_holder_as_it_likes() -> None:
    board = sought("a", "b")
    board.join("c", 1.0, want=4, only_preferred=True, prefer=(3,))
    board.assign(1.0)
    assert (board.claims_of("c"), board.view("c").sole) == ((), "")
    board.join("a", 1.0, want=4)
    assert board.claims_of("a") == ()


@pytest.mark.parametrize("end", ["second holder", "failure", "lease", "stalled", "gone", "no seeker"])
def test_nobody_is_lone_any_more(end: str) -> None:
    """Then all claims end: they meant something else."""
    board, now = sought("a", "b"), 1.0
    version = board.version
    if end == "second holder":
        board.hold_whole("b")
    elif end == "failure":
        board.release("a", now, [0], Failure.BROKEN)
    elif end == "lease":
        now = LEASE
    elif end == "stalled":
        board.join("a", now, want=4, turns=2, stalled=(0,), generation=board.generation)
    elif end == "gone":
        board.drop("seed")
    else:
        board.join("a", now, want=4)
        board.leave("b")
    changed = board.assign(now).changed | ({"a"} if end == "no seeker" else set())
    assert (board.sole, board.view("a").sole) == ("", "")
    assert board.version > version
    if end == "gone":
        assert board.claims.keys() == {0, 1, 2, 3}, "they come from upstream"
    elif end == "stalled":
        assert board.claims_of("a") == (0,), "it may have that from upstream"
    else:
        assert not board.claims
    assert "a" in changed


@pytest.mark.parametrize("end", ["failure", "lease"])
def test_after_a_claim_on_its_windows_failed_nobody_is_lone_for_a_while(end: str) -> None:
    board = sought("a", "b")
    if end == "failure":
        board.release("a", LEASE, [0], Failure.BROKEN)
    board.assign(LEASE)
    for now, sole in ((LEASE + SOLE_AGAIN - 0.1, ""), (LEASE + SOLE_AGAIN, "seed")):
        board.assign(now)
        assert board.sole == sole


def test_who_seals_a_blob_of_which_others_miss_windows_is_not_lone_at_once() -> None:
    """It cannot be dialled, say: others asked in vain for what it brought in, and its turns would end alike."""
    board = filled("seed")
    for agent in "ab":
        board.join(agent, 1.0, want=4, turns=2, have=0b1110, generation=board.generation)
    board.join("a", 2.0, want=4, turns=2, have=0b1110, stalled=(0,), generation=board.generation)
    board.assign(2.0)
    assert board.claims_of("a") == (0,)
    assert publish(board, "a", 2.5, 0)
    board.seal("seed", board.generation)
    board.leave("seed")
    board.assign(2.6)
    assert (board.sole, board.view("b").sealed) == ("", True)
    board.assign(2.0 + SOLE_AGAIN)
    assert board.sole == "seed"


def test_turns_that_are_handed_over_are_no_failure() -> None:
    board = sought("a", "b")
    board.release("a", 1.0, [0, 2], Failure.HANDED_OVER)
    board.leave("a")
    board.join("c", 1.0, turns=2)
    board.assign(1.0)
    assert (board.sole, board.claims_of("c")) == ("seed", (0, 2))


def test_holders_that_deliver_to_nobody_do_not_keep_a_blob_from_coming_from_upstream() -> None:
    """Once most who fetch say so; until they announce themselves again."""
    board = sought("a", "b")
    board.join("seed", 1.0, have=0b1111, generation=board.generation)
    for agent in "ab":
        assert not board.orphaned
        board.join(agent, 1.0, want=4, stalled=(0, 1), generation=board.generation)
        board.assign(1.0)
    assert board.orphaned
    assert board.claims.keys() == {0, 1, 2, 3}
    assert (board.view("a").sealed, board.view("a").available) == (False, 0)
    version = board.version
    assert publish(board, board.claims[2].agent, 2.0, 2)
    board.join("seed", 2.0, have=0b1111, generation=board.generation)
    assert board.version > version
    assert board.view("a").available == 0b100
    for agent in "ab":
        board.join(agent, 2.0, want=4, generation=board.generation)
    board.hold_whole("seed")
    board.assign(2.0)
    assert (board.orphaned, board.view("a").sealed, board.view("a").available) == (False, True, None)


def test_where_each_zone_has_its_copy_nobody_is_lone() -> None:
    board = sought("a", "b", trust=Trust(zone_of=lambda _agent: ""))
    assert board.sole == ""


class Boards(RuleBasedStateMachine):
    """Whatever agents say, in whatever order, some things stay true. Agent "d" lies about every window."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board(DIGEST)
        self.now = 0.0
        self.published: dict[int, bytes] = {}
        self.generation = 0

    def assign(self) -> None:
        """Claims are handed out, each for a good reason."""
        before = {window: claim.agent for window, claim in self.board.claims.items()}
        held = self.held()
        changed = self.board.assign(self.now).changed
        after = {window: claim.agent for window, claim in self.board.claims.items()}
        gone = set(AGENTS) - set(self.board.participants)
        for window in before.keys() | after.keys():
            if before.get(window) != after.get(window):
                assert {a for a in (before.get(window), after.get(window)) if a} <= changed | gone
        for window in after.keys() - before.keys():
            who = self.board.participants[after[window]]
            if self.board.sole:
                assert self.board.holders == {self.board.sole} != {after[window]}
                assert who.turns > 0
                assert not self.board.elsewhere >> window & 1
                continue
            assert window not in held or window in who.stalled or after[window] in gone
            assert who.want > 0
            assert who.barred_until <= self.now

    def held(self) -> set[int]:
        """Published windows that somebody alive holds."""
        if self.board.holders:
            return set(self.board.windows)
        return {w for w in self.board.windows if any(p.have >> w & 1 for p in self.board.participants.values())}

    @rule(seconds=st.sampled_from([0.01, 1.0, LEASE, 3 * LEASE, SILENCE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for agent in list(self.board.participants):
            if seconds < SILENCE:
                self.board.progress(agent, self.now, {})
        self.assign()

    @rule(
        agent=agents,
        want=st.integers(0, 3),
        have=st.integers(0, 15),
        stalled=st.frozensets(windows, max_size=2),
        prefer=st.lists(windows, max_size=2),
        only=st.booleans(),
        size=st.sampled_from([None, SIZE]),
        stale=st.booleans(),
        turns=st.integers(0, 2),
    )
    def join(
        self,
        agent: str,
        want: int,
        have: int,
        stalled: frozenset[int],
        prefer: list[int],
        only: bool,
        size: int | None,
        stale: bool,
        turns: int,
    ) -> None:
        self.board.join(
            agent,
            self.now,
            size=size,
            want=want,
            have=have,
            stalled=stalled,
            prefer=prefer,
            only_preferred=only,
            generation=self.board.generation - stale,
            turns=turns,
        )
        self.assign()

    @rule(agent=agents, window=windows, stale=st.booleans())
    def publish(self, agent: str, window: int, stale: bool) -> None:
        told = hashes_of(window, "liar" if agent == "d" else "truth")
        generation = self.board.generation - stale
        outcome = self.board.publish(agent, self.now, generation=generation, size=SIZE, window=window, hashes=told)
        assert {blame.agent for blame in outcome.blamed} <= {"d"}
        self.assign()

    @rule(agent=agents, window=windows, amount=st.integers(0, MIB))
    def progress(self, agent: str, window: int, amount: int) -> None:
        self.board.progress(agent, self.now, {window: amount})
        self.assign()

    @rule(agent=agents, window=windows, failure=st.sampled_from(list(Failure)))
    def release(self, agent: str, window: int, failure: Failure) -> None:
        self.board.release(agent, self.now, [window], failure)
        self.assign()

    @rule(agent=agents)
    def dies(self, agent: str) -> None:
        self.board.leave(agent)
        self.board.drop(agent)
        assert not self.board.claims_of(agent)
        assert agent not in self.board.holders
        assert agent not in self.board.participants
        self.assign()

    @precondition(lambda self: self.board.complete and not self.board.sealed)
    @rule(agent=st.sampled_from(AGENTS[:3]))
    def check(self, agent: str) -> None:
        """An honest agent has all bytes that the board describes, and compares the sha256."""
        right = all(self.board.windows[w].hashes == hashes_of(w) for w in self.board.windows)
        if not right:
            outcome = self.board.reject(agent, self.board.generation)
            assert outcome.accepted or self.board.alone(agent)
            self.assign()
            return
        outcome = self.board.seal(agent, self.board.generation)
        assert self.board.sealed
        assert {blame.agent for blame in outcome.blamed} <= {"d"}
        assert not (self.board.evidence.confirmed and self.board.evidence.contested), "two who agree settle everything"

    @rule(agent=agents)
    def seals_too_early_or_again(self, agent: str) -> None:
        complete, sealed = self.board.complete, self.board.sealed
        if not complete or sealed:
            self.board.seal(agent, self.board.generation)
            assert self.board.sealed == sealed

    @rule(agent=agents)
    def loses_its_copy(self, agent: str) -> None:
        self.board.distrust(agent)
        self.assign()

    @invariant()
    def hashes_never_change_within_a_generation(self) -> None:
        told = {w: p.hashes for w, p in self.board.windows.items()}
        if self.board.generation == self.generation:
            assert self.published.items() <= told.items()
        self.generation, self.published = self.board.generation, told

    @invariant()
    def claims_are_within_bounds(self) -> None:
        assert len(self.board.claims) <= MAX_CLAIMS
        for agent, who in self.board.participants.items():
            assert not who.have & ~sum(1 << w for w in self.board.windows), agent
        assert {claim.agent for claim in self.board.claims.values()} <= set(self.board.participants)
        assert not (self.board.claims and self.board.poisoned)

    @invariant()
    def what_is_counted_is_so(self) -> None:
        board = self.board
        holding = {w for w in board.windows if any(p.have >> w & 1 for p in board.participants.values())}
        assert {w for w in range(8) if board.available.held >> w & 1} == holding
        assert {w for w in range(8) if board.available.published >> w & 1} == set(board.windows)
        assert board.available.stalled == {a for a, p in board.participants.items() if p.stalled}
        assert board.who.barred == {a for a, p in board.participants.items() if p.barred_until or p.unserved_until}
        everybody = board.participants.items()
        assert board.who.able.keys() == {a for a, p in everybody if p.want and not p.barred_until}
        assert board.who.reading.keys() == {a for a in board.who.able if board.participants[a].only_preferred}
        assert board.who.turning.keys() == {a for a, p in everybody if p.turns and not p.unserved_until}
        assert board.who.hopeful.keys() == {a for a, p in everybody if p.want and not p.refused and p.failures < 3}

    @invariant()
    def progress_is_possible_while_somebody_able_wants(self) -> None:
        board = self.board
        able = [
            p for p in board.participants.values()
            if p.want and not p.barred_until and not (p.only_preferred and board.size is not None)
        ]  # fmt: skip
        missing = board.size is None or len(self.held()) < len(CUT.windows)
        if able and missing and not board.poisoned:
            assert board.claims or board.assign(self.now).changed

    @invariant()
    def deadlines_lie_ahead(self) -> None:
        deadline = self.board.next_deadline()
        if self.board.claims or self.board.participants:
            assert deadline is not None
            assert deadline > self.now


TestAnyOrder = Boards.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# -- origins ------------------------------------------------------------------------------------------


def of(board: Board, agent: str, window: int, origin: str, told_by: str = "truth") -> bool:
    """*agent* publishes a window of *origin*."""
    hashes = hashes_of(window, told_by)
    return board.publish(agent, 0.0, generation=0, size=SIZE, window=window, hashes=hashes, origin=origin).accepted


def test_a_board_tells_of_which_origin_a_window_is() -> None:
    board = Board(DIGEST)
    assert all(of(board, "a", window, origin) for window, origin in enumerate(["aa", "bb", "aa"]))
    assert board.view("b").origins == {"aa": 0b101, "bb": 0b010}
    assert board.view("b", board.version - 1).origins == {"aa": 0b100}


def test_the_first_origin_that_is_named_counts() -> None:
    """Who tells the same hashes of another origin adds nothing; who tells them first of none leaves it open."""
    board = Board(DIGEST)
    assert of(board, "a", 0, "")
    assert board.view("b").origins == {}
    before = board.version
    assert of(board, "b", 0, "bb")
    assert of(board, "c", 0, "cc")
    assert board.view("c", before).origins == {"bb": 1}
    assert set(board.view("c", before).published) == {0}
    assert board.windows[0].agent == "a"


def test_origins_without_number_are_as_if_nobody_had_named_one() -> None:
    board = Board(DIGEST)
    for origin in range(MOST_ORIGINS + 3):
        board.windows.clear()
        assert of(board, "a", 0, f"{origin:040x}")
    assert board.view("b").origins == {}


def test_a_board_that_begins_again_has_no_origins() -> None:
    board = filled()
    assert of(board, "a", 0, "aa")
    assert board.reject("b", 0).restarted
    assert board.view("b").origins == {}


def test_two_members_must_have_seen_the_sha256_of_what_is_vouched_for() -> None:
    board = filled("a")
    board.join("b", 0.0)
    assert board.seal("a", 0).accepted
    assert (board.sealed, board.vouched) == (True, False)
    assert board.seal("b", 0).accepted
    assert board.vouched
