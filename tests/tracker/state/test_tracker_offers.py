"""Who is named as the holder of a window: windows spread like a tree, and no holder is asked by everybody."""

from __future__ import annotations

from collections import Counter

from tracker.state.offers import FANOUT, HUNGRY, KEPT, NAMED, PERIOD, READ_FANOUT, WHOLE_FANOUT, WINDOWS, Asking, Offers


class Cluster:
    """Holders of windows, and offers that follow them."""

    def __init__(self) -> None:
        self.offers = Offers()
        self.have: dict[str, int] = {}
        self.zones: dict[str, str] = {}

    def gain(self, agent: str, *windows: int) -> list[str]:
        gained = sum(1 << window for window in windows)
        self.have[agent] = self.have.get(agent, 0) | gained
        return self.offers.gained(agent, gained)

    def ask(
        self,
        agent: str,
        *missing: int,
        now: float = 0.0,
        zone: str = "",
        whole: tuple[str, ...] = (),
        reads: bool = False,
    ) -> dict[int, list[str]]:
        return self.offers.name(
            Asking(agent, zone, missing, whole, reads), now, lambda key, w: bool(self.have.get(key, 0) >> w & 1),
            lambda key: self.zones.get(key, ""),
        )  # fmt: skip


def test_a_holder_is_named_to_a_few_askers_and_then_to_nobody_for_a_while() -> None:
    here = Cluster()
    here.gain("a", 0)
    answers = [here.ask(f"n{n}", 0) for n in range(20)]
    assert sum(bool(answer) for answer in answers) == FANOUT
    assert here.ask("n9", 0, now=PERIOD) == {0: ["a"]}


def test_readers_of_ranges_are_told_at_once_and_take_no_place_of_those_who_will_hold_it() -> None:
    here = Cluster()
    here.gain("a", 0)
    answers = [here.ask(f"r{n}", 0, reads=True) for n in range(2 * READ_FANOUT)]
    assert sum(bool(answer) for answer in answers) == READ_FANOUT
    answers = [here.ask(f"n{n}", 0) for n in range(20)]
    assert sum(bool(answer) for answer in answers) == FANOUT
    assert here.ask("r", 0, now=PERIOD, reads=True) == {0: ["a"]}


def test_whoever_gained_the_window_is_named_to_those_who_were_refused() -> None:
    here = Cluster()
    here.gain("a", 0)
    for n in range(20):
        here.ask(f"n{n}", 0)
    woken = here.gain("n0", 0)
    assert woken == [f"n{FANOUT + n}" for n in range(FANOUT)]
    assert all(here.ask(name, 0) == {0: ["n0"]} for name in woken)


def test_a_window_reaches_ten_thousand_agents_like_a_tree() -> None:
    here = Cluster()
    here.gain("a", 0)
    given: Counter[str] = Counter()
    told = {name: answer[0] for n in range(10_000) if (answer := here.ask(name := f"n{n}", 0))}
    rounds = reached = 0
    while told:
        rounds += 1
        reached += len(told)
        given.update(holder for holders in told.values() for holder in holders)
        told = {other: here.ask(other, 0)[0] for name in told for other in here.gain(name, 0)}
    assert reached == 10_000
    assert rounds < 10
    assert max(given.values()) <= NAMED * FANOUT


def test_the_own_zone_comes_first_then_who_was_named_least_recently() -> None:
    here = Cluster()
    here.zones = {"near": "n", "a": "s", "b": "s", "c": "s"}
    for name in ("near", "a", "b", "c"):
        here.gain(name, 0)
    first, second = here.ask("x", 0, zone="n")[0], here.ask("y", 0, zone="n")[0]
    assert first[0] == second[0] == "near"
    assert len(first) == len(second) == NAMED
    assert [*first[1:], *second[1:]] == ["c", "b", "c", "b"]
    assert [here.ask(name, 0, zone="s")[0][0] for name in "uvw"] == ["c", "b", "a"]


def test_who_no_longer_holds_the_window_is_not_named() -> None:
    here = Cluster()
    here.gain("a", 0)
    here.have["a"] = 0
    assert here.ask("x", 0) == {}


def test_nobody_is_named_to_itself() -> None:
    here = Cluster()
    here.gain("a", 0)
    assert here.ask("a", 0) == {}


def test_an_answer_names_a_bounded_number_of_windows_and_remembers_a_few_wishes() -> None:
    here = Cluster()
    here.gain("a", *range(500))
    assert len(here.ask("x", *range(500))) == WINDOWS
    assert [*here.ask("x", *range(500))] == [*range(WINDOWS)], "in order of urgency"
    empty = Cluster()
    empty.ask("x", *range(500))
    assert empty.gain("a", *range(500)) == ["x"] * HUNGRY


def test_only_the_newest_holders_of_a_window_are_remembered() -> None:
    here = Cluster()
    for n in range(100):
        here.gain(f"a{n}", 0)
    named = {holder for n in range(100) for holder in here.ask(f"x{n}", 0).get(0, [])}
    assert named == {f"a{n}" for n in range(100 - KEPT, 100)}


def test_holders_of_the_whole_blob_fill_up_and_are_bounded_over_all_windows() -> None:
    here = Cluster()
    here.gain("a", 0)
    assert here.ask("x", 0, whole=("w",)) == {0: ["a", "w"]}
    named = sum(len(here.ask(f"y{n}", *range(1, 40), whole=("w",))) for n in range(40))
    assert named == WHOLE_FANOUT


def test_who_was_refused_is_told_when_there_is_room_again() -> None:
    here = Cluster()
    here.gain("a", 0)
    for n in range(FANOUT + 2):
        here.ask(f"n{n}", 0, now=10.0)
    assert here.offers.wake_at == 10.0 + PERIOD
    assert here.offers.due(10.0) == []
    assert here.offers.due(10.0 + PERIOD) == [f"n{FANOUT}", f"n{FANOUT + 1}"]
    assert here.offers.wake_at is None
