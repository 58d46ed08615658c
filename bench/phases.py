"""The situations that a cluster meets, each a function of (stage, mirror, image) -> Rows with their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench import bound, pulls
from bench.images import Image
from bench.mirrors import Mirror, Running
from bench.net import Host
from bench.stage import Stage

MBIT = 1e6 / 8

GAP = 0.5
"""Seconds between two starts in the staggered phase."""

WAVE = 0.2
"""Share of the nodes that a rolling restart takes at a time."""

LOST = 0.3
"""Share of the nodes that vanish during a pull."""


@dataclass
class Row:
    """One measurement and what it is compared with."""

    mirror: str
    phase: str
    image: str
    size: int
    """Bytes that each client pulls."""
    bound: float | None
    """Best possible seconds; None: not known (unshaped links)."""
    measured: pulls.Measured
    nodes: int
    logs: Path | None = None
    """Where the mirror's processes wrote their logs."""

    @property
    def seconds(self) -> list[float]:
        """Of each client from its own start, sorted."""
        return sorted(p.seconds for p in self.measured.pulled)

    @property
    def errors(self) -> list[str]:
        """What clients could not do."""
        return [f"{p.node}: {p.error}" for p in self.measured.pulled if p.error]

    def copies(self) -> float:
        """Bytes that left upstream, in copies of what one client pulls."""
        return self.measured.upstream["bytes"] / self.size if self.size else math.nan


@dataclass
class Run:
    """What a phase is told."""

    stage: Stage
    name: str
    mirror: Mirror
    image: Image
    update: Image | None
    check: str = "one"
    reads: int = 200
    tick: Callable[[float, int], None] = lambda _s, _b: None
    logs: Path | None = None

    def pull(self, mirror: Running, nodes: list[Host], image: Image | None = None, gap: float = 0.0,
             skip: tuple[str, ...] = (), lost: dict[str, float] | None = None) -> pulls.Measured:  # fmt: skip
        """The *nodes* pull, each *gap* seconds after the one before; *lost*: see pulls.pull. Raises RuntimeError for
        wrong bytes."""
        self.logs = mirror.logs
        delays = {host.name: place * gap for place, host in enumerate(nodes)}
        measured = pulls.pull(
            self.stage, mirror, image or self.image, delays, skip=skip, check=self.check, lost=lost, tick=self.tick
        )
        if wrong := [p.error for p in measured.pulled if "wrong bytes" in p.error]:
            raise RuntimeError(wrong[0])
        return measured

    def cold_bound(self, size: int, nodes: int) -> float | None:
        """Best possible seconds when *nodes* ask at once and nobody has it; None on unshaped links."""
        r = rates(self.stage)
        return bound.cold(size, nodes, r.up, r.down, r.upstream) if r else None

    def row(self, phase: str, best: float | None, measured: pulls.Measured, size: int | None = None) -> Row:
        """A row of this run."""
        size = self.image.size if size is None else size
        return Row(self.name, phase, self.image.name, size, best, measured, len(measured.pulled), self.logs)


@dataclass(frozen=True)
class Rates:
    """Bytes per second of the links of a stage."""

    up: float
    down: float
    upstream: float


def rates(stage: Stage) -> Rates | None:
    """Of the nodes and upstream; None where nothing is shaped."""
    link, top = stage.nodes[0].link, stage.upstream.link
    if link.up is None or link.down is None or top.up is None:
        return None
    return Rates(link.up * MBIT, link.down * MBIT, top.up * MBIT)


def alone(run: Run) -> list[Row]:
    """One node asks, nobody has it."""
    best = run.cold_bound(run.image.size, 1)
    with run.mirror(run.stage) as mirror:
        return [run.row("alone", best, run.pull(mirror, run.stage.nodes[:1]))]


def cold(run: Run) -> list[Row]:
    """All ask at once, nobody has it."""
    nodes = run.stage.nodes
    best = run.cold_bound(run.image.size, len(nodes))
    with run.mirror(run.stage) as mirror:
        return [run.row("cold", best, run.pull(mirror, nodes))]


def staggered(run: Run) -> list[Row]:
    """One after the other, GAP apart, nobody has it. The bound is that of the slowest from its own start."""
    nodes = run.stage.nodes
    best = None
    if r := rates(run.stage):
        starts = [place * GAP for place in range(len(nodes))]
        whole = bound.staggered(run.image.size, starts, r.up, r.down, r.upstream)
        best = max(whole - starts[-1], run.image.size / min(r.down, r.upstream))
    with run.mirror(run.stage) as mirror:
        return [run.row("staggered", best, run.pull(mirror, nodes, gap=GAP))]


def warm(run: Run) -> list[Row]:
    """One node (or the cache) has it, all others ask at once."""
    first, others = run.stage.nodes[:1], run.stage.nodes[1:]
    r = rates(run.stage)
    best = bound.warm(run.image.size, len(others), 1, r.up, r.down) if r else None
    with run.mirror(run.stage) as mirror:
        run.pull(mirror, first)
        return [run.row("warm", best, run.pull(mirror, others))]


def held(run: Run) -> list[Row]:
    """One client asks for what its own node has; nothing is checked, so that the client is not what is measured."""
    first = run.stage.nodes[:1]
    with run.mirror(run.stage) as mirror:
        run.pull(mirror, first)
        mirror.kept = False
        run.check = "none"
        return [run.row("held", None, run.pull(mirror, first))]


def update(run: Run) -> list[Row]:
    """All have the image; its update shares all layers but one, which all ask for at once."""
    if run.update is None:
        return []
    nodes, had = run.stage.nodes, tuple(digest for digest, _ in run.image.layers)
    size = sum(size for digest, size in run.update.layers if digest not in had)
    best = run.cold_bound(size, len(nodes))
    with run.mirror(run.stage) as mirror:
        run.pull(mirror, nodes)
        return [run.row("update", best, run.pull(mirror, nodes, run.update, skip=had), size)]


def wave(run: Run) -> list[Row]:
    """A rolling restart: WAVE of the nodes at a time, each wave when the one before has it."""
    nodes = run.stage.nodes
    step = max(1, round(len(nodes) * WAVE))
    groups = [nodes[start : start + step] for start in range(0, len(nodes), step)]
    best: tuple[float | None, ...] = (None,) * len(groups)
    if r := rates(run.stage):
        best = bound.waves(run.image.size, [len(g) for g in groups], r.up, r.down, r.upstream)
    with run.mirror(run.stage) as mirror:
        return [
            run.row(f"wave {place + 1}", best[place], run.pull(mirror, group)) for place, group in enumerate(groups)
        ]


def spot(run: Run) -> list[Row]:
    """All ask at once, nobody has it; then again, and LOST of the nodes are killed and replaced meanwhile, evenly from
    a fifth to four fifths of the way. The bound of those that are left is the time of the slowest before; what their
    agents' CPU-seconds are is not known.
    """
    nodes = run.stage.nodes
    with run.mirror(run.stage) as mirror:
        if mirror.replace is None:
            return []
        calm = run.pull(mirror, nodes)
    count = max(1, round(len(nodes) * LOST))
    victims = [nodes[(place * len(nodes)) // count] for place in range(count)]
    step = 0.6 / max(1, count - 1)
    lost = {host.name: calm.makespan * (0.2 + step * place) for place, host in enumerate(victims)}
    with run.mirror(run.stage) as mirror:
        measured = run.pull(mirror, nodes, lost=lost)
    left = [one for one in measured.pulled if one.node not in lost and not one.node.endswith(pulls.NEW)]
    new = [one for one in measured.pulled if one.node.endswith(pulls.NEW)]
    return [
        run.row("spot, nobody lost", run.cold_bound(run.image.size, len(nodes)), calm),
        run.row(f"spot, {count} lost: the others", calm.makespan, replace(measured, pulled=left)),
        run.row(f"spot, {count} lost: who came", None, replace(measured, pulled=new)),
    ]


def streaming(run: Run) -> list[Row]:
    """Random 64 KiB reads of one layer, 16 at once on every node, the same on all."""
    length = 64 * 1024
    with run.mirror(run.stage) as mirror:
        measured = pulls.read(
            run.stage, mirror, run.image, run.stage.nodes, count=run.reads, length=length, parallel=16
        )
        again = pulls.read(run.stage, mirror, run.image, run.stage.nodes, count=run.reads, length=length, parallel=16)
    size = run.reads * length
    return [run.row("reads, cold", None, measured, size), run.row("reads, again", None, again, size)]


PHASES: dict[str, Callable[[Run], list[Row]]] = {
    "alone": alone,
    "cold": cold,
    "staggered": staggered,
    "warm": warm,
    "held": held,
    "update": update,
    "wave": wave,
    "spot": spot,
    "streaming": streaming,
}
