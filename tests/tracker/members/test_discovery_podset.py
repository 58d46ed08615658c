"""Which pods count, as a table and as properties; when to try again; how often an event is posted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import kubernetes_validate
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parts.kubeapi import node, pod
from tracker.errors import ApiError
from tracker.members.backoff import Backoff
from tracker.members.discovery import Reason, canonical
from tracker.members.events import Limiter, PodEvent
from tracker.members.podset import Meta, Node, NodeZones, Pod, PodSet, member
from tracker.members.reflector import PATIENCE, STEADY, Course


def read(item: dict[str, Any]) -> Pod:
    """The pod as it comes out of the API's JSON."""
    return msgspec.json.decode(json.dumps(item), type=Pod)


@pytest.mark.parametrize(
    ("item", "ips"),
    [
        (pod("a", "10.0.0.1"), ("10.0.0.1",)),
        (pod("a", "10.0.0.1", "fd00::1"), ("10.0.0.1", "fd00::1")),
        (pod("a", "fd00:0:0:0::1"), ("fd00::1",)),
        (pod("a", "10.0.0.1", "10.0.0.1"), ("10.0.0.1",)),
        ({**pod("a"), "status": {"phase": "Running", "podIP": "10.0.0.1"}}, ("10.0.0.1",)),
        (pod("a", "10.0.0.1", ready=False), ("10.0.0.1",)),
        (pod("a", "10.0.0.1", phase="Pending"), None),
        (pod("a", "10.0.0.1", phase="Unknown"), None),
        (pod("a", "10.0.0.1", terminating=True), ("10.0.0.1",)),
        (pod("a", "nonsense"), None),
        (pod("a"), None),
        ({"metadata": {"name": "a"}}, None),
        ({"metadata": {"name": "a", "labels": None}, "status": {"phase": "Running", "podIPs": None}}, None),
    ],
)
def test_a_pod_counts_while_it_runs(item: dict[str, Any], ips: tuple[str, ...] | None) -> None:
    found = member(read(item))
    assert (found.ips if found else None) == ips


def test_an_address_that_two_pods_share_counts_until_both_are_gone() -> None:
    pods = PodSet()
    assert pods.put(read(pod("old", "10.0.0.1")))
    assert pods.put(read(pod("new", "10.0.0.1")))
    assert pods.drop(read(pod("old", "10.0.0.1")))
    found = pods.at("10.0.0.1")
    assert found is not None
    assert found.name == "new"
    assert pods.drop(read(pod("new", "10.0.0.1")))
    assert pods.at("10.0.0.1") is None


def test_of_two_pods_at_an_address_the_one_that_stays_is_meant() -> None:
    pods = PodSet()
    assert pods.put(read(pod("old", "10.0.0.1")))
    assert pods.put(read(pod("new", "10.0.0.1")))
    assert pods.put(read(pod("old", "10.0.0.1", terminating=True)))
    found = pods.at("10.0.0.1")
    assert found is not None
    assert found.name == "new"


def test_what_does_not_matter_is_no_change() -> None:
    pods = PodSet()
    assert pods.put(read(pod("a", "10.0.0.1")))
    assert not pods.put(read(pod("a", "10.0.0.1", labels={"app": "shoal-agent", "more": "x"})))
    assert not pods.put(read(pod("a", "10.0.0.1", ready=False)))
    assert not pods.put(read(pod("b", "10.0.0.2", phase="Pending")))
    assert not pods.drop(read(pod("b", "10.0.0.2")))
    assert not pods.replace([read(pod("a", "10.0.0.1"))])


NAMES = st.sampled_from(["a", "b", "c", "d"])
IPS = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]), max_size=2)
PODS = st.builds(
    lambda name, ips, ready, terminating: read(pod(name, *ips, ready=ready, terminating=terminating)),
    NAMES,
    IPS,
    st.booleans(),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PODS),
        st.tuples(st.just("drop"), PODS),
        st.tuples(st.just("replace"), st.lists(PODS, max_size=4, unique_by=lambda item: item.metadata.name)),
    ),
    max_size=30,
)


@settings(deadline=None)  # no timed assertions
@given(STEPS)
def test_the_set_is_what_the_last_word_on_each_pod_says(steps: list[tuple[str, Any]]) -> None:
    pods, model = PodSet(), dict[str, Pod]()
    for what, value in steps:
        before = {name: member(item) for name, item in model.items() if member(item)}
        changed = getattr(pods, what)(value)
        if what == "put":
            model[value.metadata.name] = value
        elif what == "drop":
            model.pop(value.metadata.name, None)
        else:
            model = {item.metadata.name: item for item in value}
        members = {name: found for name, item in model.items() if (found := member(item))}
        assert changed == (members != before)
        assert pods.ips() == {ip for found in members.values() for ip in found.ips}
        assert len(pods) == len(members)
        for ip in pods.ips():
            assert pods.at(ip) in members.values()


@settings(deadline=None)  # no timed assertions
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "z1", "z2"]), st.booleans()), max_size=20))
def test_zones_follow_the_nodes(steps: list[tuple[str, str, bool]]) -> None:
    zones, model = NodeZones(), dict[str, str]()
    for name, zone, gone in steps:
        item = msgspec.convert(node(name, zone), Node)
        before = dict(model)
        changed = zones.drop(item) if gone else zones.put(item)
        model[name] = "" if gone else zone
        assert changed == (model[name] != before.get(name, ""))
        assert {each: zones.zone(each) for each in model} == model
    left = [msgspec.convert(node(name, zone), Node) for name, zone in model.items()]
    assert not zones.replace(left)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("FD00:0:0::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_an_address_has_one_spelling(text: str, same: str) -> None:
    assert canonical(text) == same


@settings(deadline=None)  # no timed assertions
@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.floats(0, 3600))
def test_a_wait_is_bounded_and_never_nothing(failures: int, chance: float, asked: float) -> None:
    backoff = Backoff()
    delay = backoff.delay(failures, chance, asked)
    assert backoff.first / 2 < delay <= backoff.longest
    assert delay >= min(asked, backoff.longest)
    assert backoff.delay(failures + 1, chance, asked) >= delay


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        (0, True),
        (401, True),
        (403, True),
        (429, True),
        (500, True),
        (503, True),
        (410, False),
        (400, False),
        (404, False),
    ],
)
def test_a_version_is_kept_where_the_server_may_still_know_it(status: int, kept: bool) -> None:
    course = Course(version="7")
    course.failed(ApiError("", status=status))
    assert course.version == ("7" if kept else "")


def test_a_version_that_never_works_is_doubted() -> None:
    course = Course(version="7")
    for _ in range(PATIENCE):
        assert course.version == "7"
        course.failed(ApiError("Too large resource version", status=504))
    assert course.version == ""


def test_watches_that_end_at_once_slow_down_and_long_ones_do_not() -> None:
    course = Course(version="7")
    course.ended(0.0)
    course.ended(0.0)
    assert course.failures == 2
    course.ended(STEADY)
    assert course.failures == 0


@settings(deadline=None)  # no timed assertions
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(list(Reason)), st.floats(0, 50)), max_size=60))
def test_a_pod_gets_a_reason_once_in_a_pause(steps: list[tuple[str, Reason, float]]) -> None:
    limiter, now, last = Limiter(pause=100.0), 0.0, dict[tuple[str, Reason], float]()
    for uid, reason, step in steps:
        now += step
        allowed = limiter.allow(uid, reason, now)
        assert allowed == (now - last.get((uid, reason), -1e9) >= 100.0)
        if allowed:
            last[uid, reason] = now


def test_the_limiter_forgets_the_oldest_first() -> None:
    limiter = Limiter(pause=100.0, remembered=2)
    for uid in ("a", "b", "c"):
        assert limiter.allow(uid, Reason.JOINED, 0.0)
    assert len(limiter) == 2
    assert not limiter.allow("c", Reason.JOINED, 1.0)
    assert limiter.allow("a", Reason.JOINED, 1.0)


def test_the_manifest_of_an_event_is_one_that_kubernetes_takes() -> None:
    event = PodEvent("shoal", "a", "u", Reason.LOST, "x" * 5000, "a.1", datetime(2024, 5, 1, tzinfo=UTC), "tracker-0")
    assert len(event.manifest()["message"]) == 1024
    kubernetes_validate.validate(event.manifest(), "1.31", strict=True)


def test_410_means_list_now_and_a_second_one_means_wait() -> None:
    course = Course(version="7")
    course.failed(ApiError("", status=410))
    assert (course.version, course.pause(Backoff(), 0.0, 0.0)) == ("", 0.0)
    course.failed(ApiError("", status=410))
    assert course.pause(Backoff(), 0.0, 0.0) > 0


@given(st.integers(1, 500), st.sampled_from([0, 401, 500, 503]), st.floats(0, 1, exclude_max=True))
def test_a_server_that_was_away_long_is_found_within_a_second(failures: int, status: int, chance: float) -> None:
    course = Course(version="7")
    for _ in range(failures):
        course.failed(ApiError("", status=status))
    assert 0 < course.pause(Backoff(), chance, 0.0) < 1.0
    if status == 0:
        assert course.version == "7", "a server that is away says nothing about the version"


def test_what_the_server_says_after_it_was_away_is_a_trouble_of_its_own() -> None:
    course = Course(version="7")
    for _ in range(50):
        course.failed(ApiError("", status=0))
    course.failed(ApiError("", status=403))
    assert course.pause(Backoff(), 0.0, 0.0) <= Backoff().first


def test_the_labels_of_a_node_come_and_go_with_it() -> None:
    """With a zone or without one."""
    zones = NodeZones()
    zones.put(Node(Meta(name="a", labels={"life": "spot"})))
    zones.put(Node(Meta(name="b")))
    assert (zones.labels("a"), zones.labels("b"), zones.labels("c")) == ({"life": "spot"}, {}, None)
    zones.put(Node(Meta(name="a", labels={"life": "steady"})))
    assert zones.labels("a") == {"life": "steady"}
    zones.replace([Node(Meta(name="b", labels={"life": "spot"}))])
    assert (zones.labels("a"), zones.labels("b")) == (None, {"life": "spot"})
    zones.drop(Node(Meta(name="b")))
    assert zones.labels("b") is None
