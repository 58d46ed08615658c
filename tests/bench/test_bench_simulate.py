"""The simulator of the hand-out: what must be so in every scene, whatever the policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.simulate.links import shares
from bench.simulate.run import Result, simulate
from bench.simulate.scene import MIB, SCENES, Scene
from swarm.peer.lane.throttle import BODIES

SIZE = 16 * MIB
EVERYBODY_ALIKE = ("cold", "warm", "staggered", "zones")


def scene(name: str, nodes: int, size: int = SIZE) -> Scene:
    """A small one."""
    return replace(SCENES[name], nodes=nodes, size=size)


def check(result: Result, copies: float = 1.0) -> None:
    """What is so of each."""
    assert result.unfinished == 0
    assert result.copies == pytest.approx(copies, abs=1e-6)
    assert result.past == 0
    assert result.most <= BODIES
    assert result.busiest <= 1.0 + 1e-9, "nobody sends or receives more than its link carries, in no step"
    for moved in (result.sent, result.received):
        assert all(count <= rate * (result.ran + 1.0) for count, rate in zip(moved, result.carries, strict=True)), (
            "nor in all"
        )
    assert sum(result.sent) == pytest.approx(sum(result.received)), "what is sent is received"


@pytest.mark.parametrize("nodes", [10, 50])
@pytest.mark.parametrize("name", EVERYBODY_ALIKE)
def test_one_copy_leaves_upstream_and_no_link_carries_more_than_it_can(name: str, nodes: int) -> None:
    result = simulate(scene(name, nodes))
    check(result, copies=0.0 if name == "warm" else 1.0)
    asking = len(result.seconds)
    assert asking == nodes - (name == "warm")
    assert sum(result.received) >= asking * SIZE * (1 - 1e-9), "each has all of it"


@pytest.mark.parametrize("nodes", [10, 50])
@pytest.mark.parametrize("name", EVERYBODY_ALIKE)
def test_the_bound_is_never_beaten(name: str, nodes: int) -> None:
    """Of the slowest; and nobody is quicker than its own link."""
    result = simulate(scene(name, nodes), seed=2)
    assert result.seconds[-1] >= result.bound
    assert result.seconds[0] >= SIZE / max(result.carries)


def test_the_same_seed_gives_the_same_result() -> None:
    first, again, other = (simulate(scene("cold", 10), seed) for seed in (3, 3, 4))
    assert first == again
    assert first.seconds != other.seconds


def test_lost_nodes_are_replaced_and_the_others_end() -> None:
    result = simulate(scene("churn", 20))
    assert result.unfinished == 0
    assert len(result.seconds) == 18
    assert len(result.others) == 2
    assert result.copies < 1.5


def test_eight_layers_bring_in_one_copy() -> None:
    check(simulate(scene("layers", 10)))


def test_a_copy_for_each_zone() -> None:
    result = simulate(scene("zone-copies", 12))
    assert result.copies == pytest.approx(3.0, abs=1e-6)
    assert result.crossed == 0.0


def test_what_one_flow_cannot_use_others_get() -> None:
    sender, receiver = np.array([0, 0, 1]), np.array([2, 3, 3])
    up, down = np.array([10.0, 10.0, 1.0, 1.0]), np.array([1.0, 1.0, 4.0, 10.0])
    rate = shares(sender, receiver, np.array([np.inf] * 3), up, down)
    assert rate.tolist() == pytest.approx([4.0, 5.0, 5.0], rel=0.01)
    slow = shares(sender, receiver, np.array([np.inf, 1.0, np.inf]), up, down)
    assert slow.tolist() == pytest.approx([4.0, 1.0, 9.0], rel=0.01)
