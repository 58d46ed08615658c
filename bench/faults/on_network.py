"""Faults of the network: cables, filters, lost and swallowed packets, names that cannot be resolved."""

from __future__ import annotations

import threading

from bench.faults.case import Case, Deed
from bench.faults.hosts import run
from bench.faults.scene import UPSTREAM, Scene, Shape

FOUR = Shape(agents=4, rate=12)
THREE = Shape(agents=3, rate=12)
ALONE = Shape(agents=1)


def racks(stage: Scene) -> None:
    """The first half of the agents and the rest do not reach each other."""
    half = len(stage.agents) // 2
    for one in stage.agents[:half]:
        for other in stage.agents[half:]:
            stage.switch.cut(one.host.name, other.host.name)


def cut_tracker(*agents: str) -> Deed:
    """These agents and the trackers lose each other."""

    def deed(stage: Scene) -> None:
        for agent in agents:
            for tracker in stage.trackers:
                stage.switch.cut(agent, tracker.host.name)

    return deed


def tracker_cables(stage: Scene) -> None:
    """Every tracker loses its network."""
    for tracker in stage.trackers:
        stage.switch.cable(tracker.host.name, plugged=False)


def closed_port(stage: Scene) -> None:
    """Nobody can dial the first agent."""
    stage.switch.rule("a0", "INPUT -p tcp --dport 6881:6882 -j DROP")


def hole(one: str, *others: str, length: int = 1000) -> Deed:
    """Long packets vanish between one host and others."""

    def deed(stage: Scene) -> None:
        for other in others:
            stage.switch.swallow(one, other, length)

    return deed


def tracker_hole(stage: Scene) -> None:
    """Long packets vanish between the first agent and every tracker."""
    for tracker in stage.trackers:
        stage.switch.swallow("a0", tracker.host.name, 900)


def loss(share: float) -> Deed:
    """Every host loses packets."""

    def deed(stage: Scene) -> None:
        for name in stage.network.hosts:
            stage.switch.lose(name, share)

    return deed


def narrow(name: str, kbit: int) -> Deed:
    """A host sends no more than this."""
    return lambda stage: stage.switch.narrow(name, kbit)


def cable(name: str) -> Deed:
    """A host's cable is pulled."""
    return lambda stage: stage.switch.cable(name, plugged=False)


def black_hole(stage: Scene) -> None:
    """Packets to upstream vanish, from every agent."""
    for agent in stage.agents:
        stage.switch.cut(agent.host.name, UPSTREAM)


def black_hole_and_holder(stage: Scene) -> None:
    """Upstream and the holder's cable are gone; the cable for ten seconds."""
    stage.up.down = True
    stage.switch.cable("a0", plugged=False)
    timer = threading.Timer(10.0, lambda: stage.switch.cable("a0", plugged=True))
    timer.daemon = True
    timer.start()


def forgotten_ports(stage: Scene) -> None:
    """Connections to upstream that are open now die silently; new ones live."""
    stage.pull(stage.blob(8), 0)
    space = stage.switch.host("a0").namespace
    assert space is not None
    ip = stage.switch.host(UPSTREAM).ip
    for line in run("ip", "netns", "exec", space, "ss", "-Htn", "dst", ip).splitlines():
        port = line.split()[3].rsplit(":", 1)[1]
        stage.switch.rule("a0", f"INPUT -p tcp -s {ip} --dport {port} -j DROP")
        stage.switch.rule("a0", f"OUTPUT -p tcp -d {ip} --sport {port} -j DROP")


CASES = [
    Case("N1 racks, cold", "network", "two racks cut from each other, cold pull", racks, FOUR, 48, seconds=12, copies=2.1),
    Case("N1 racks, warm", "network", "the same, one holder in the other rack", racks, FOUR, 48, holders=[0], seconds=8, copies=2.1),
    Case("N1 racks, large", "network", "the same, 96 MiB at 6 MB/s: bytes go on coming", racks, Shape(agents=4, rate=6), 96, seconds=45, gap=5, copies=2.3),
    Case("N2 tracker cut in mid-pull", "network", "one agent loses the only tracker in mid-pull", cut_tracker("a2"), Shape(rate=8), 32, after=1.2, seconds=10, copies=2.0),
    Case("N2 tracker cut, new blob", "network", "an agent without a tracker pulls a new blob", cut_tracker("a2"), Shape(rate=8), 16, ask=[2], seconds=5, copies=1.05),
    Case("N3 port closed, cold", "network", "one agent cannot be dialled, cold pull: what it brings in comes again", closed_port, FOUR, 48, seconds=8, copies=1.6),
    Case("N3 port closed, sole seed", "network", "the sole seed cannot be dialled", closed_port, FOUR, 48, holders=[0], seconds=8, copies=2.0),
    Case("N3 port closed, small", "network", "the same, 1 MiB", closed_port, THREE, 1, holders=[0], ask=[1], seconds=3, copies=1.1),
    Case("N4 MTU hole, cold", "network", "long packets vanish between one agent and the others", hole("a0", "a1", "a2"), THREE, 48, seconds=8, copies=2.0),
    Case("N4 MTU hole, holder behind", "network", "the same, and it is the sole seed", hole("a0", "a1", "a2"), THREE, 48, holders=[0], seconds=8, copies=2.0),
    Case("N4 MTU hole, reader behind", "network", "the same, and it alone reads", hole("a0", "a1", "a2"), THREE, 48, holders=[1], ask=[0], seconds=8, copies=1.1),
    Case("N5 MTU hole to the tracker", "network", "long packets vanish between an agent and the tracker", tracker_hole, Shape(rate=12), 24, seconds=6, copies=2.1),
    Case("N5 MTU hole to two trackers", "network", "the same with two", tracker_hole, Shape(trackers=2, rate=12), 24, seconds=6, copies=2.1),
    Case("N6 MTU hole to upstream", "network", "one agent gets no long packet from upstream, two good ones", hole("a0", UPSTREAM, length=900), THREE, 48, seconds=10, copies=1.3),
    Case("N6 MTU hole to upstream, alone", "network", "the same, alone", hole("a0", UPSTREAM, length=900), ALONE, 8, answer="told", seconds=12, copies=None),
    Case("N8 loss of 2 %", "network", "every host loses 2 % of its packets, links of 100 Mbit/s", loss(0.02), Shape(agents=4, rate=12, link=100), 32, seconds=12, copies=1.02),
    Case("N8 loss of 10 %", "network", "every host loses 10 %", loss(0.1), Shape(agents=3, rate=12, link=100), 8, seconds=40, copies=1.5),
    Case("N10 slow peer", "network", "one of four sends 10 KB/s, cold pull of the others", narrow("a0", 80), FOUR, 32, ask=[1, 2, 3], seconds=6, copies=1.1),
    Case("N10 slow sole seed", "network", "the sole seed sends 10 KB/s", narrow("a0", 80), FOUR, 32, holders=[0], seconds=7, copies=1.2),
    Case("N12 holder's cable", "network", "the sole seed's cable is pulled in mid-pull", cable("a0"), Shape(agents=4, rate=12, link=100), 48, holders=[0], after=2.0, seconds=14, copies=1.1),
    Case("N12 holder's cable, no upstream", "network", "the same for 10 s, upstream gone", black_hole_and_holder, Shape(agents=3, rate=12, link=100), 48, holders=[0], after=2.0, resume=True, seconds=40, copies=0.0),
    Case("N13 trackers' cables", "network", "the tracker's cable is pulled in mid-pull", tracker_cables, Shape(rate=8), 32, after=1.5, seconds=10, copies=2.1),
    Case("N13 trackers' cables, two", "network", "two trackers' cables, a new blob for one agent", tracker_cables, Shape(trackers=2, rate=8), 16, ask=[1], seconds=6, copies=1.05),
    Case("N15 upstream vanishes, held", "network", "packets to upstream vanish; another agent has the blob", black_hole, THREE, 16, holders=[0], seconds=4, copies=0.0, quick=True),
    Case("N15 upstream vanishes, one asks", "network", "packets to upstream vanish, nobody has it", black_hole, THREE, 8, ask=[0], answer="refused", seconds=12, copies=0.0, quick=True),
    Case("N16 upstream vanishes, three ask", "network", "the same, three ask", black_hole, THREE, 8, answer="refused", seconds=13, copies=0.0),
    Case("N18 forgotten connections", "network", "a firewall forgot the idle connections to upstream", forgotten_ports, ALONE, 8, seconds=5, copies=1.1, quick=True),
]  # fmt: skip
