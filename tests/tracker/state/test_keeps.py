"""Who keeps an image: so many, spread over zones, made good when one is lost, let go when nobody wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from swarm.protocol import wire
from tests.parts.talk import Talker, Town, digest_of, town, until
from tracker.members.static import StaticDiscovery
from tracker.state import keeps
from tracker.state.keeps import ANSWERS, RETRY, TRIES, Candidate, Keeps, Who, agreed, choose, genuine, key_of, signed

APP = "r.example/app:1"
PATIENCE = 60.0


def one(text: str) -> Candidate:
    """`node zone [state]`; a node with a star has the manifest."""
    name, zone, *state = text.split()
    return Candidate(name, name, zone, name.rstrip("*"), state[0] if state else "", name.endswith("*"))


TABLE = [
    ("nobody is there", 2, "", "", ""),
    ("as many as are wanted", 2, "a x; b x; c x", "a b", ""),
    ("fewer are there than wanted", 3, "a x; b x", "a b", ""),
    ("in different zones", 2, "a x; b x; c y", "a c", ""),
    ("who has it comes first", 1, "a x; b* x; c y", "b*", ""),
    ("but zones come before that", 2, "a x whole; b* x; c y", "c", ""),
    ("enough is enough", 2, "a x whole; b y whole; c z", "", ""),
    ("somebody is missing", 2, "a x whole; b y; c x", "b", ""),
    ("one that was told counts", 2, "a x whole; b y told; c z", "", ""),
    ("one that is away counts", 2, "a x whole; b y away; c z", "", ""),
    ("one too many goes", 1, "a x whole; b x whole", "", "b"),
    ("of the fuller zone", 2, "a x whole; b x whole; c y whole", "", "b"),
    ("none goes before enough are whole", 2, "a x whole; b x fetching; c y fetching", "", ""),
    ("one that is away is not told to go", 1, "a x whole; b x away", "", ""),
    ("a zone of its own is worth another", 2, "a x whole; b x whole; c y", "c", ""),
    ("who is to widen it is waited for", 2, "a x whole; b x whole; c y fetching", "", ""),
    ("and then one of the fuller zone goes", 2, "a x whole; b x whole; c y whole; d y", "", "b"),
    ("no copies are wanted", 0, "a x whole; b y fetching; c z", "", "a b"),
]


@pytest.mark.parametrize(("wanted", "there", "more", "less"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_who_is_chosen(wanted: int, there: str, more: str, less: str) -> None:
    found = choose(wanted, [one(text) for text in there.split(";") if text.strip()])
    assert [[each.name for each in part] for part in found] == [more.split(), less.split()]


def test_a_member_counts_once() -> None:
    """Two agents of one member are one copy: they are lost together, or made up."""
    two = [Candidate(key, key, "", "same", "whole") for key in "ab"]
    more, less = choose(2, [*two, Candidate("c", "c", "", "c")])
    assert [each.name for each in more] == ["c"]
    assert less == []


candidates = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 30).map(str),
        st.integers(0, 30).map(str),
        st.sampled_from("xyz"),
        st.integers(0, 12).map(str),
        st.sampled_from(["", "told", "fetching", "whole", "away"]),
        st.booleans(),
    ),
    max_size=25,
    unique_by=lambda each: each.key,
)


@given(candidates, st.integers(0, 8), st.randoms())
def test_the_order_of_agents_changes_nothing(there: list[Candidate], wanted: int, chance: Any) -> None:
    """Trackers that know the same choose the same."""
    shuffled = list(there)
    chance.shuffle(shuffled)
    assert [sorted(part) for part in choose(wanted, there)] == [sorted(part) for part in choose(wanted, shuffled)]


@given(candidates, st.integers(0, 8))
@settings(max_examples=300)
def test_it_comes_to_rest_with_enough_copies_in_enough_zones(there: list[Candidate], wanted: int) -> None:
    """Whoever is told does it; nobody comes back. Whole copies never become fewer, below what is wanted."""
    known = {each.key: each for each in there if each.state != "away"}
    members = {each.member for each in known.values()}

    def whole() -> int:
        return len({each.member for each in known.values() if each.state == "whole"})

    for _ in range(40):
        before, moving = whole(), any(each.state in ("told", "fetching") for each in known.values())
        more, less = choose(wanted, known.values())
        for each in (*more, *(each for each in known.values() if each.state in ("told", "fetching"))):
            known[each.key] = each._replace(state="whole")
        for each in less:
            known[each.key] = each._replace(state="")
        assert whole() >= min(before, wanted)
        if not more and not less and not moving:
            break
    else:
        pytest.fail("it never comes to rest")
    assert whole() == min(wanted, len(members))
    kept = {each.zone for each in known.values() if each.state == "whole"}
    least = len({each.zone for each in known.values() if not each.state or each.state == "whole"})
    if len(members) == len(known):
        assert len(kept) == min(wanted, least)


@pytest.mark.parametrize(
    ("said", "digest"),
    [
        ([], ""),
        ([("a", "one")], ""),
        ([("a", "one"), ("a", "one")], ""),
        ([("a", "one"), ("b", "one")], "one"),
        ([("a", "one"), ("b", "two")], ""),
        ([("a", "one"), ("b", "two"), ("c", "one")], "one"),
        ([("a", ""), ("b", "")], ""),
    ],
)
def test_what_an_image_means_is_what_two_members_say(said: list[tuple[str, str]], digest: str) -> None:
    assert agreed(said) == digest


KEY = key_of(b"token")


@given(
    st.builds(wire.Keep, image=st.text(), copies=st.integers(0, 9), serial=st.integers(0, 99), zone=st.text()),
    st.sampled_from(["image", "copies", "serial", "platform", "zone", "labels"]),
)
def test_a_proof_holds_for_one_order_under_one_token(keep: wire.Keep, changed: str) -> None:
    """Whatever is changed of it, and with another token, or none."""
    good = signed(keep, KEY)
    assert genuine(good, KEY)
    other: dict[str, Any] = {changed: 77 if changed in ("copies", "serial") else getattr(good, changed) + "x"}
    if getattr(good, changed) != other[changed]:
        assert not genuine(structs.replace(good, **other), KEY)
    assert not genuine(good, b"")
    assert not genuine(good, KEY[::-1])


# --------------------------------------------------------------------------- over time


def keep(copies: int = 2, serial: int = 1, image: str = APP) -> wire.Keep:
    return wire.Keep(image=image, copies=copies, serial=serial)


@dataclass
class World:
    """Agents by name, each in a zone, that do at once what they are told; and the orders of one tracker."""

    zones: dict[str, str]
    keeps: Keeps = field(default_factory=lambda: Keeps(PATIENCE))
    now: float = 1000.0
    has: dict[str, dict[str, wire.Kept]] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    told: list[tuple[str, bool]] = field(default_factory=list)

    def who(self, name: str) -> Who:
        return Who(name, name, self.zones[name], name)

    def look(self, *, grown: bool = False) -> None:
        """Until nobody is told anything more."""
        for _ in range(50):
            due, grown = self.keeps.due_for_look(self.now, grown=grown), False
            for entry in due:
                self.keeps.look(entry, [self.who(name) for name in self.zones], self.now)
            orders = [(name, order) for name in self.zones for order in self.keeps.due(name, "session", self.now)]
            if not due and not orders:
                return
            for name, order in orders:
                self.obey(name, order)
        pytest.fail("it never comes to rest")

    def obey(self, name: str, order: wire.KeepHere) -> None:
        self.told.append((name, order.here))
        if name in self.deaf:
            return
        mine = self.has.setdefault(name, {})
        if order.here and order.keep.copies:
            state = "failed" if name in self.fails else "whole"
            digest = order.digest or digest_of("meaning")
            mine[order.keep.name] = wire.Kept(
                keep=order.keep, state=state, digest=digest, error="no room"[: 9 * (state == "failed")]
            )
        elif order.keep.copies:
            mine.pop(order.keep.name, None)
        else:
            mine[order.keep.name] = wire.Kept(keep=order.keep, state="none")
        self.say(name)

    def say(self, name: str) -> None:
        self.keeps.told(self.who(name), self.has.get(name, {}).values(), self.now)

    def leave(self, name: str) -> str:
        zone = self.zones.pop(name)
        self.keeps.left(name, self.now)
        self.look()
        return zone

    def come(self, name: str, zone: str = "") -> None:
        self.zones[name] = zone
        self.say(name)
        self.look(grown=True)

    def later(self, seconds: float) -> None:
        """As the alarm does it."""
        end = self.now + seconds
        while self.keeps.next <= end:
            self.now = max(self.now, self.keeps.next)
            self.look()
        self.now = end

    def keepers(self, image: str = APP) -> str:
        return "".join(sorted(name for name in self.zones if self.state(name, image) == "whole"))

    def state(self, name: str, image: str = APP) -> str:
        found = self.has.get(name, {}).get(f"{image} ")
        return found.state if found is not None else ""


def world(there: str = "abcde", copies: int = 2) -> World:
    found = World(dict.fromkeys(there, ""))
    assert found.keeps.order(keep(copies), found.now) == ""
    found.look()
    return found


def held(there: World, image: str = APP) -> keeps.Held:
    found = there.keeps.held(f"{image} ")
    assert found is not None
    return found


def test_an_order_is_done_and_then_there_is_silence() -> None:
    there = world()
    assert there.keepers() == "ab"
    assert (held(there).whole, held(there).settled) == (2, True)
    before = len(there.told)
    there.later(10 * RETRY)
    assert len(there.told) == before
    assert there.keeps.next == float("inf")


def test_a_keeper_that_is_lost_is_made_good_after_a_while() -> None:
    there = world()
    there.leave("a")
    there.later(PATIENCE - 1)
    assert there.keepers() == "b"
    assert held(there).keepers == {"b": "whole", "a": "away"}
    assert there.keeps.short == 1
    there.later(1)
    assert there.keepers() == "bc"
    assert there.keeps.short == 0


def test_one_that_comes_back_in_time_is_not_replaced_and_one_that_comes_late_lets_go() -> None:
    there = world()
    there.leave("a")
    there.later(PATIENCE / 2)
    there.come("a")
    there.later(2 * PATIENCE)
    assert there.keepers() == "ab"
    there.leave("a")
    there.later(PATIENCE)
    there.come("a")
    assert there.keepers() == "ab"  # of three the first by name stay
    assert ("c", False) in there.told


def test_a_node_that_comes_helps_where_one_is_missing() -> None:
    there = world("a")
    assert (held(there).whole, held(there).settled) == (1, True)
    there.come("b")
    assert there.keepers() == "ab"


def test_who_fails_is_named_and_another_is_asked() -> None:
    there = World(dict.fromkeys("abcd", ""), fails={"a"})
    there.keeps.order(keep(), there.now)
    there.look()
    assert there.keepers() == "bc"
    assert held(there).failed == {"a": "no room"}
    assert there.state("a") == ""  # and lets go of what it had of it


def test_what_nobody_can_bring_in_is_not_asked_of_everybody() -> None:
    names = [f"n{n:03}" for n in range(200)]
    there = World(dict.fromkeys(names, ""), fails=set(names))
    there.keeps.order(keep(), there.now)
    there.look()
    asked = {name for name, _ in there.told}
    assert len(asked) <= 2 + TRIES + 1
    assert held(there).settled
    there.fails.clear()
    there.later(RETRY)
    assert len(there.keepers()) == 2 * len("n000")


def test_another_is_asked_for_who_does_not_answer() -> None:
    """And whoever waits for the order hears an end of it."""
    there = World(dict.fromkeys("abc", ""), deaf={"a", "b"})
    there.keeps.order(keep(2), there.now)
    there.look()
    assert there.told == [("a", True), ("b", True)]
    assert not held(there).settled
    there.later(ANSWERS)
    assert there.keepers() == "c"
    assert (held(there).settled, set(held(there).failed)) == (True, {"a", "b"})
    there.deaf.clear()
    there.later(RETRY)
    assert there.keepers() == "ac"


def test_a_keeper_that_does_not_follow_a_newer_order_is_replaced() -> None:
    there = world("abc", copies=1)
    there.deaf.add("a")
    there.keeps.order(keep(1, serial=2), there.now)
    there.look()
    there.later(ANSWERS)
    assert there.keepers() == "ab"  # a keeps what it was told before
    assert (held(there).whole, held(there).settled) == (1, True)


def test_no_copies_reach_keepers_that_were_away() -> None:
    """And other trackers, through any agent that was told."""
    there = world()
    there.leave("a")
    there.keeps.order(keep(0, serial=2), there.now)
    there.look()
    assert there.keepers() == ""
    assert held(there).settled
    assert [name for name in "bcde" if there.state(name) == "none"] == ["b", "c", "d"]
    there.keeps = Keeps(PATIENCE)  # the tracker is another one now
    for name in "bcde":
        there.say(name)
    there.come("a")
    assert there.state("a") == "none"
    there.later(10 * PATIENCE)
    assert there.keepers() == ""


def test_a_tracker_that_was_restarted_learns_it_from_keepers_and_orders_nothing_too_early() -> None:
    there = world()
    there.keeps = Keeps(PATIENCE)
    there.say("b")
    there.look(grown=True)
    there.later(PATIENCE / 2)
    there.say("a")
    there.look()
    before = len(there.told)
    there.later(10 * PATIENCE)
    assert len(there.told) == before
    assert (there.keepers(), held(there).whole) == ("ab", 2)


def test_a_newer_order_counts_and_an_older_one_is_refused() -> None:
    there = world()
    assert there.keeps.order(keep(3, serial=2), there.now) == ""
    there.look()
    assert there.keepers() == "abc"
    assert all(one[f"{APP} "].keep.serial == 2 for one in there.has.values())
    assert "a newer order" in there.keeps.order(keep(1, serial=1), there.now)
    assert there.keeps.order(keep(1, serial=3), there.now) == ""
    there.look()
    assert there.keepers() == "a"


def test_keepers_that_mean_something_else_follow_the_two_that_agree() -> None:
    there = world(copies=3)
    other = structs.replace(there.has["c"][f"{APP} "], digest=digest_of("other"))
    there.has["c"][f"{APP} "] = other
    there.say("c")
    there.look()
    assert {one[f"{APP} "].digest for one in there.has.values()} == {digest_of("meaning")}


def test_orders_are_bounded_and_those_that_ended_go_first() -> None:
    there = world("a", copies=0)
    for number in range(keeps.MOST - 1):
        assert there.keeps.order(keep(image=f"r.example/{number}:1"), there.now) == ""
    assert there.keeps.order(keep(image="r.example/last:1"), there.now) == ""
    assert "let one go" in there.keeps.order(keep(image="r.example/more:1"), there.now)
    assert len(there.keeps) == keeps.MOST


# --------------------------------------------------------------------------- a tracker


async def order(here: Town, http: Talker, **said: Any) -> tuple[int, Any]:
    """Post an order with the token: status and answer."""
    body = {"id": "0123456789", "images": [APP], "keep": 1, "serial": 5, **said}
    headers = {"Authorization": "Bearer open sesame"}
    async with http.http.post(f"{here.server.url}/api/v1/preheats", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


@pytest.fixture
def token(tmp_path: Any) -> Any:
    path = tmp_path / "token"
    path.write_text("open sesame\n")
    return path


async def test_an_agent_is_told_and_another_takes_over(token: Any) -> None:
    """Over HTTP, through the agents' channels; a short patience instead of a minute."""
    async with town(preheat_token=token, keep_patience=0.0) as here:
        a, b = here.agent("a", 1001), here.agent("b", 1002)
        await a.hello()
        await b.hello()
        status, answer = await order(here, a)
        assert (status, answer["kept"][0]["copies"], answer["finished"]) == (200, 1, False)
        (told,) = (await a.poll()).keep
        assert (await b.poll()).preheat  # b only has it for now
        assert (told.here, told.keep.image, told.keep.copies) == (True, APP, 1)
        await a.poll(kept=(wire.Kept(keep=told.keep, state="whole", digest=digest_of("x")),))
        keeping = here.server.cluster.keeping
        assert [(one.whole, one.keepers) for one in keeping.all()] == [(1, {"a": "whole"})]
        await a.say("gone", wire.Gone(**a.me), wire.Ok)
        (again,) = (await b.poll(wait=20.0)).keep
        assert (again.here, again.keep) == (True, told.keep)


async def test_what_a_member_makes_up_is_not_kept(token: Any) -> None:
    """Nor what was ordered under another token, nor anything where nobody may order."""
    made_up = wire.Kept(keep=signed(keep(9), key_of(b"guess")), state="whole")
    for settings_ in ({"preheat_token": token}, {}):
        async with town(**settings_) as here:
            a = here.agent("a", 1001)
            await a.hello()
            await a.poll(kept=(made_up,))
            assert here.server.cluster.keeping.all() == []
    async with town(preheat_token=token) as here:
        a = here.agent("a", 1001)
        await a.hello()
        await a.poll(kept=(wire.Kept(keep=signed(keep(9), key_of(b"open sesame")), state="whole"),))
        assert [one.copies for one in here.server.cluster.keeping.all()] == [9]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"serial": 0}, "milliseconds since 1970"),
        ({"serial": 1 << 50}, "of the future"),
        ({"keep": -1}, "keep must be"),
        ({"nodes": ["a"]}, "by labels or zone"),
        ({"labels": "life=spot"}, "does not know the labels"),
        ({"serial": 4}, "a newer order"),
    ],
)
async def test_orders_that_cannot_be(token: Any, said: dict[str, Any], reason: str) -> None:
    async with town(preheat_token=token) as here:
        a = here.agent("a", 1001)
        await a.hello()
        assert (await order(here, a))[0] == 200
        status, answer = await order(here, a, **said)
        assert (status, reason in answer["message"]) == (400, True), answer


async def test_nobody_keeps_what_is_let_go(token: Any) -> None:
    """The order ends at once where nobody keeps it; agents are told to remember that."""
    async with town(preheat_token=token) as here:
        a = here.agent("a", 1001)
        await a.hello()
        status, answer = await order(here, a, keep=0)
        assert (status, answer["agents"]) == (200, {})
        (told,) = (await a.poll()).keep
        assert (told.here, told.keep.copies) == (False, 0)
        await a.poll(kept=(wire.Kept(keep=told.keep, state="none"),))
        await until(lambda: here.server.cluster.keeping.held(told.keep.name).settled)  # type: ignore[union-attr]


class Pools(StaticDiscovery):
    """Everybody is a member; nodes of odd addresses are steady."""

    def labels(self, ip: str) -> Mapping[str, str]:
        """Labels of the node at *ip*."""
        return {"life": "steady" if int(ip.rpartition(".")[2]) % 2 else "spot"}


async def test_who_takes_over_has_the_labels_that_were_ordered_too(token: Any) -> None:
    """Spot nodes are passed over, then and later: the labels are part of the order."""
    async with town(Pools(["127.0.0.0/8"]), preheat_token=token, keep_patience=0.0) as here:
        nodes = [here.agent(f"node-{n}", ip=f"127.0.0.{n}") for n in range(2, 6)]
        for one in nodes:
            await one.hello()
        assert (await order(here, nodes[0], labels="life=steady"))[0] == 200
        polls = [await one.poll() for one in nodes]
        assert [len(poll.keep) for poll in polls] == [0, 1, 0, 0]
        await nodes[1].poll(kept=(wire.Kept(keep=polls[1].keep[0].keep, state="whole", digest=digest_of("x")),))
        await nodes[1].say("gone", wire.Gone(**nodes[1].me), wire.Ok)
        (told,) = (await nodes[3].poll(wait=20.0)).keep
        assert told.keep.labels == "life=steady"
        assert not (await nodes[0].poll()).keep
        assert not (await nodes[2].poll()).keep
