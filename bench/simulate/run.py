"""A scene from its first request to its last byte: `simulate(scene, seed)`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random

from bench.simulate.clock import Clock
from bench.simulate.lane import Lane
from bench.simulate.links import Links
from bench.simulate.node import LANE, PORT, UPSTREAM, Node
from bench.simulate.pull import Blob
from bench.simulate.scene import MBIT, PAYLOAD, Place, Scene, places, upstream_rate, yardstick
from bench.simulate.tracker import Tracker, fields
from swarm.blob.digest import parse
from swarm.blob.geometry import geometry
from swarm.fetch.events import Holder
from swarm.peer.lane.holders import Address
from swarm.protocol import wire
from swarm.tracking.trackers import rendezvous
from tracker.settings import TrackerSettings

LONGEST = 40.0
"""Times the bound after which a scene is given up."""

FIRST_IP = int(ip_address("10.0.0.0"))


@dataclass(frozen=True)
class Result:
    """What was seen. *seconds*: of each node that has all, from its own start, sorted; without *others*."""

    scene: Scene
    seed: int
    bound: float
    seconds: tuple[float, ...]
    others: tuple[float, ...]
    """The same of stragglers, and of nodes that came for lost ones."""
    unfinished: int
    """Nodes that had not all when the time was up."""
    copies: float
    """Bytes that left upstream, in copies of the image."""
    past: int
    """Windows that nodes asked of upstream past the cluster."""
    most: int
    """Requests that one node answered at once, the most."""
    node_messages: float
    """To trackers, per node."""
    node_requests: float
    """To other nodes, per node."""
    tracker_messages: tuple[int, ...]
    """Of each tracker."""
    crossed: float
    """Part of what nodes sent each other that went to another zone."""
    ran: float
    """Simulated seconds until the last node had all."""
    sent: tuple[float, ...]
    """Bytes by upstream, and by each node."""
    received: tuple[float, ...]
    carries: tuple[float, ...]
    """Bytes per second of each of those links."""
    busiest: float
    """The largest part of any link that was used within one step."""


def simulate(scene: Scene, seed: int = 1) -> Result:
    """Run *scene*. The same seed gives the same result, in a process whose hashes are not salted differently."""
    clock = Clock()
    try:
        asyncio.set_event_loop(clock)
        return clock.run_until_complete(_Stage(scene, seed, clock).run())
    finally:
        asyncio.set_event_loop(None)
        clock.close()


class _Stage:
    """What stands during one run."""

    def __init__(self, scene: Scene, seed: int, clock: Clock) -> None:
        self.scene, self.seed, self.clock = scene, seed, clock
        self.drawn = places(scene, Random(f"{seed}/places"))
        self.best = yardstick(scene, self.drawn)
        self.carries = [upstream_rate(scene), *(place.rate for place in self.drawn)]
        self.links = Links(clock, self.carries, self.carries)
        self.at: dict[Address, Lane] = {}
        self.holders: dict[str, Holder] = {}
        self.over: asyncio.Future[None] = clock.create_future()

    async def run(self) -> Result:
        scene, began = self.scene, self.clock.time()
        settings = TrackerSettings(near_zone=("zone-0",) if scene.near else (), copy_per_zone=scene.copy_per_zone)
        chances = [Random(f"{self.seed}/tracker/{number}") for number in range(scene.trackers)]
        trackers = [Tracker(settings, chance, scene.delay, scene.cost) for chance in chances]
        blobs = self._blobs(trackers)
        nodes = [self._node(number, place, blobs) for number, place in enumerate(self.drawn, 1)]
        for node, place in zip(nodes, self.drawn, strict=True):
            if not place.new:
                self._greet(node, trackers)
        if scene.warm:
            self._give(nodes[0], blobs)
        for node, place in zip(nodes, self.drawn, strict=True):
            if place.start < math.inf:
                self.clock.call_at(began + place.start, self._start, node, place, trackers)
            if place.dies < math.inf:
                self.clock.call_at(began + place.dies, node.kill)
        counted = [n for n, p in zip(nodes, self.drawn, strict=True) if p.start < math.inf and p.dies == math.inf]
        last = max(place.start for place in self.drawn if place.start < math.inf)
        await self._ended(counted, began + last + LONGEST * self.best)
        return self._result(nodes, trackers, self.clock.time() - began)

    async def _ended(self, nodes: list[Node], deadline: float) -> None:
        """Until all have all, or the time is up."""
        missing = len(nodes)

        def ended() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                self.over.set_result(None)

        for node in nodes:
            node.on_finished = ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self.over

    def _start(self, node: Node, place: Place, trackers: list[Tracker]) -> None:
        if place.new:
            self._greet(node, trackers)
        node.start()

    def _blobs(self, trackers: list[Tracker]) -> list[Blob]:
        layers, rest = divmod(self.scene.size, self.scene.layers)
        found = []
        for number in range(self.scene.layers):
            size = layers + (rest if not number else 0)
            digest = parse("sha256:" + hashlib.sha256(f"{self.seed}/{number}".encode()).hexdigest())
            urls = {f"http://tracker-{n}": tracker for n, tracker in enumerate(trackers)}
            hashes = hashlib.sha1(digest.encode(), usedforsecurity=False).digest() * geometry(size).pieces
            found.append(Blob(digest, size, hashes, urls[rendezvous(digest, urls)[0]]))
        return found

    def _node(self, number: int, place: Place, blobs: list[Blob]) -> Node:
        ip = str(ip_address(FIRST_IP + number))
        chance = Random(f"{self.seed}/node/{number}")
        lane = Lane(number, (ip, LANE), place.zone, self.at, self.links, self.clock, chance, self.scene.delay)
        self.at[lane.address] = lane
        self.holders[ip] = Holder((ip, PORT), LANE)
        return Node(
            number, ip, place.zone, lane, self.links, blobs, chance, self.holders,
            connection=self.scene.connection * MBIT * PAYLOAD, upstream_delay=self.scene.upstream_delay,
            now=self.clock.time,
        )  # fmt: skip

    def _greet(self, node: Node, trackers: list[Tracker]) -> None:
        for tracker in trackers:
            tracker.hello(wire.AgentPoll(**fields(node.me), full=True), node.visitor)

    def _give(self, node: Node, blobs: list[Blob]) -> None:
        """*node* has all of them."""
        for blob in blobs:
            node.lane.has[blob.digest] = (1 << len(geometry(blob.size).windows)) - 1
            blob.tracker.has(blob.digest, blob.size, blob.hashes, node.me, node.visitor)

    def _result(self, nodes: list[Node], trackers: list[Tracker], ran: float) -> Result:
        usual: list[float] = []
        others: list[float] = []
        unfinished = 0
        for node, place in zip(nodes, self.drawn, strict=True):
            if place.start == math.inf or place.dies < math.inf:
                continue
            if math.isnan(node.finished_at):
                unfinished += 1
                continue
            (others if place.straggles or place.new else usual).append(node.finished_at - node.started)
        return Result(
            self.scene, self.seed, self.best, tuple(sorted(usual)), tuple(sorted(others)), unfinished,
            copies=float(self.links.sent[UPSTREAM]) / self.scene.size,
            past=sum(node.past for node in nodes),
            most=max(node.lane.most for node in nodes),
            node_messages=sum(node.asked for node in nodes) / len(nodes),
            node_requests=sum(node.lane.asked for node in nodes) / len(nodes),
            tracker_messages=tuple(tracker.messages for tracker in trackers),
            crossed=sum(node.lane.crossed for node in nodes) / max(1, sum(node.lane.taken for node in nodes)),
            ran=ran,
            sent=tuple(self.links.sent.tolist()), received=tuple(self.links.received.tolist()),
            carries=tuple(self.carries), busiest=self.links.busiest,
        )  # fmt: skip
