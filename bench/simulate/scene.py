"""What is simulated: nodes and their links, what they pull and when, who is lost. Values, and where they are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from bench import bound

MIB = 1024 * 1024
MBIT = 1e6 / 8

PAYLOAD = 191 / 200
"""Of a link's rate: the rest is headers (bench/README.md)."""

TOGETHER = 0.02
"""Seconds within which nodes ask that ask at once."""

GAP, LONGEST = 0.5, 8.0
"""Seconds between two starts of a staggered pull, and from the first to the last at most."""


@dataclass(frozen=True)
class Scene:
    """A situation. Rates in Mbit/s, sizes in bytes, times in seconds."""

    name: str = "cold"
    nodes: int = 8
    size: int = 128 * MIB
    layers: int = 1
    rates: tuple[tuple[float, float], ...] = ((200.0, 1.0),)
    """(rate, part of the nodes): of the links, both ways."""
    upstream: float | None = None
    """Rate of upstream's link; None: that of the first *rates*."""
    connection: float = math.inf
    """Rate of one connection to upstream at most."""
    warm: bool = False
    """The first node has all of it, and does not ask."""
    staggered: bool = False
    zones: int = 1
    near: bool = False
    """The first zone is near to upstream (`--near-zone`)."""
    copy_per_zone: bool = False
    lost: float = 0.0
    """Part of the nodes that are killed, evenly from a fifth to four fifths of the bound, and replaced at once."""
    stragglers: float = 0.0
    """Part of the nodes whose links have a tenth of the rate, beside *rates*."""
    trackers: int = 1
    cost: float = 0.0
    """Seconds of a tracker's one core that each answer takes."""
    delay: float = 0.0005
    """Seconds of a message from one end to another."""
    upstream_delay: float = 0.02
    """Seconds until upstream's first byte."""


SCENES = {
    "cold": Scene(),
    "warm": Scene(warm=True),
    "staggered": Scene(staggered=True),
    "mixed": Scene(rates=((200.0, 0.5), (1000.0, 0.25), (100.0, 0.25))),
    "zones": Scene(zones=3),
    "near": Scene(zones=3, near=True),
    "zone-copies": Scene(zones=3, copy_per_zone=True),
    "churn": Scene(lost=0.1),
    "stragglers": Scene(stragglers=0.05),
    "layers": Scene(layers=8),
}
SCENES = {name: replace(scene, name=name) for name, scene in SCENES.items()}
"""By name; the command line sets nodes, size and rates."""


@dataclass(frozen=True)
class Place:
    """One node as it is drawn."""

    rate: float
    """Bytes per second of its link, payload alone."""
    zone: str
    start: float
    """When it asks; infinity: it never does."""
    dies: float = math.inf
    straggles: bool = False
    new: bool = False
    """It came for one that was lost."""


def places(scene: Scene, chance: Random) -> list[Place]:
    """The nodes of *scene*, those that come for lost ones at the end."""
    steps = [rate for rate, part in scene.rates for _ in range(round(part * 100))]
    found = []
    slow = set(chance.sample(range(scene.nodes), round(scene.stragglers * scene.nodes)))
    gap = min(GAP, LONGEST / max(1, scene.nodes - 1))
    for number in range(scene.nodes):
        rate = chance.choice(steps) if len(scene.rates) > 1 else steps[0]
        rate *= MBIT * PAYLOAD * (0.1 if number in slow else 1.0)
        start = number * gap if scene.staggered else chance.uniform(0.0, TOGETHER)
        if scene.warm and not number:
            start = math.inf
        found.append(Place(rate, f"zone-{number % scene.zones}", start, straggles=number in slow))
    if scene.lost:
        seconds = yardstick(scene, found)
        victims = chance.sample(range(1, scene.nodes), max(1, round(scene.lost * scene.nodes)))
        for rank, victim in enumerate(victims):
            at = seconds * (0.2 + 0.6 * rank / max(1, len(victims) - 1))
            found.append(replace(found[victim], start=at, new=True))
            found[victim] = replace(found[victim], dies=at)
    return found


def upstream_rate(scene: Scene) -> float:
    """Bytes per second of upstream's link, payload alone."""
    return (scene.upstream or scene.rates[0][0]) * MBIT * PAYLOAD


def yardstick(scene: Scene, nodes: list[Place]) -> float:
    """Best possible seconds of those who are neither lost nor stragglers: what times are divided by.

    As `make bench` has it, of links that carry no headers. Where links differ, the rate is that of all together.
    """
    asking = [place for place in nodes if place.start < math.inf and not place.straggles and not place.new]
    rate = sum(place.rate for place in asking) / len(asking) / PAYLOAD
    slowest = min(place.rate for place in asking) / PAYLOAD
    top = upstream_rate(scene) / PAYLOAD
    if scene.warm:
        best = bound.warm(scene.size, len(asking), 1, rate, rate)
    elif scene.staggered:
        starts = [place.start for place in asking]
        whole = bound.staggered(scene.size, starts, rate, rate, top)
        best = whole - (max(starts) - min(starts))
    else:
        best = bound.cold(scene.size, len(asking), rate, rate, top / (scene.zones if scene.copy_per_zone else 1))
    return max(best, scene.size / slowest, scene.size / (top if not scene.warm else slowest))
