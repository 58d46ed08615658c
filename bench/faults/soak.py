"""`python -m bench.faults.soak`: random clients on a small cluster in which something breaks every few seconds.

The seed decides what is done, when, and by whom, so a run can be repeated; what the machine makes of it differs.
Nothing may be wrong, stuck or left behind.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from bench import net
from bench.faults.client import Answer
from bench.faults.hosts import Later
from bench.faults.parts import MIRROR, Agent, Tracker
from bench.faults.scene import Scene, Shape, bytes_of, scene
from bench.faults.upstream import MIB, Asked, Spoilt

SIZES = (300_000, MIB, 3 * MIB, 6 * MIB + 77, 12 * MIB)
BLOBS = 30
CLIENTS = 3
"""Per agent."""

BUDGET = 96
"""MiB per store: a quarter of all blobs, so that every store turns over."""

LONGEST = 90.0
"""Seconds after which a client counts as stuck."""

QUIET = 25.0
"""Seconds at the end for connections and torrents to go."""

MOST_DESCRIPTORS, MOST_MEMORY = 260, 220


class Log:
    """What clients saw. For all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.disturbed: dict[str, float] = {}
        """Agent -> until when something was done to it (monotonic)."""

    def note(self, kind: str, agent: Agent, began: float, answer: Answer, right: bool) -> None:
        """One answer of *kind*; *right*: whether the bytes that came are those that were asked for."""
        with self.lock:
            name = agent.host.name
            if answer.status in (200, 206):
                ended = "left" if answer.error == "left" else "broken" if answer.error else "whole"
                self.counts[f"{kind} {ended}"] += 1
                if not right:
                    self.bad.append(f"wrong bytes: {name} {kind} {answer}")
            else:
                self.counts[str(answer.status or "no connection")] += 1
            if answer.error == "nothing more" and self.disturbed.get(name, 0.0) < began:
                self.bad.append(f"stuck: {name} {kind} {answer}")


def main() -> int:
    """0 if nothing was wrong."""
    net.raise_on_signals()
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    options = parser.parse_args()
    if (why := net.can_shape()) is not None:
        print(why, file=sys.stderr)
        return 1
    net.sweep()
    print(f"seed {options.seed}, {options.seconds:.0f} s", flush=True)
    shape = Shape(agents=4, trackers=2, rate=6, link=60, budget=f"{BUDGET}MiB")
    with scene(shape) as stage:
        bad = soak(stage, options.seconds, options.seed)
    for line in bad[:20]:
        print("WRONG", line)
    print("right" if not bad else f"{len(bad)} things wrong; again with --seed {options.seed}")
    return 1 if bad else 0


def soak(stage: Scene, seconds: float, seed: int) -> list[str]:
    """Run for *seconds*; what was wrong."""
    dice, log, over = random.Random(seed), Log(), threading.Event()
    digests = [stage.up.put(bytes_of(dice.choice(SIZES), seed + number)) for number in range(BLOBS)]
    stage.up.mood = _moody(seed)
    clients = [
        Later(partial(_client, stage, agent, random.Random(seed + 1000 * index + n), digests, log, over))
        for index, agent in enumerate(stage.agents)
        for n in range(CLIENTS)
    ]
    deeds: Counter[str] = Counter()
    began = told = time.monotonic()
    while time.monotonic() - began < seconds:
        over.wait(dice.uniform(3, 7))
        deeds[_deed(stage, dice, log)] += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{told - began:5.0f} s  {dict(log.counts)}  {len(log.bad)} wrong", flush=True)
    over.set()
    for client in clients:
        client.get()
    stage.mend()
    for index, digest in [(i, d) for i in range(len(stage.agents)) for d in (digests[0], digests[7], digests[20])]:
        answer, took, _ = stage.agents[index].insist(digest, 60)
        if not answer.right(digest):
            log.bad.append(f"at the end: a{index} {answer} after {took:.0f} s")
    time.sleep(QUIET)
    uses = [agent.use() for agent in stage.agents]
    print(f"deeds {dict(deeds)}\nanswers {dict(log.counts)}\nat the end {[tuple(use) for use in uses]}", flush=True)
    for agent, use in zip(stage.agents, uses, strict=True):
        if use.descriptors > MOST_DESCRIPTORS or use.memory > MOST_MEMORY:
            log.bad.append(f"left behind at {agent.host.name}: {use}")
        on_disk = sum(path.stat().st_blocks * 512 for path in (agent.store / "blobs").rglob("*") if path.is_file())
        if on_disk > BUDGET * MIB * 1.05 or agent.strays():
            log.bad.append(f"store of {agent.host.name}: {on_disk / MIB:.0f} MiB, {agent.strays()} strays")
        log.bad += [f"log of {agent.host.name}: {line[:160]}" for line in agent.lines("task-failed|request-failed")[:3]]
    return log.bad


def _moody(seed: int) -> Callable[[Asked], Spoilt | None]:
    """Upstream fails four requests of a hundred, each in its own way."""
    kinds = (Spoilt(status=503), Spoilt(cut=200_000), Spoilt(short=100_000), Spoilt(hang=50_000))

    def mood(asked: Asked) -> Spoilt | None:
        lot = (asked.number * 7919 + seed) % 97
        return kinds[lot] if lot < len(kinds) and "/blobs/" in asked.path else None

    return mood


def _client(
    stage: Scene, agent: Agent, dice: random.Random, digests: Sequence[str], log: Log, over: threading.Event
) -> None:
    while not over.is_set():
        digest = digests[min(int(dice.expovariate(0.12)), len(digests) - 1)]
        content = stage.up.content(digest)
        kind = dice.choices(("whole", "range", "stream", "leaver"), (55, 15, 15, 15))[0]
        start, stop, leave = 0, len(content), None
        if kind in ("range", "stream"):
            start = dice.randrange(len(content))
            stop = min(len(content), start + dice.choice((1000, 65536, MIB)))
        if kind == "leaver":
            leave = dice.randrange(1, len(content))
        path = f"/v2/team/app/blobs/{digest}?ns={agent.upstream}"
        if kind == "stream":
            path = f"/blobs/http://{agent.upstream}/v2/team/app/blobs/{digest}"
        headers = {"Range": f"bytes={start}-{stop - 1}"} if kind in ("range", "stream") else {}
        began = time.monotonic()
        answer = agent.ask(MIRROR, path, headers=headers, seconds=LONGEST, leave_after=leave, keep=len(content))
        right = answer.body == content[start : start + len(answer.body)]
        right = right and (bool(answer.error) or answer.size == stop - start)
        log.note(kind, agent, began, answer, right)
        over.wait(dice.uniform(0.05, 0.5))


def _deed(stage: Scene, dice: random.Random, log: Log) -> str:
    """Something breaks, and is mended: what it was."""
    agent, tracker = dice.choice(stage.agents), dice.choice(stage.trackers)
    lot, pause = dice.random(), dice.uniform(1, 8)
    if lot < 0.4:
        return _disturb(log, agent, "agent killed", lambda: _again(agent, signal.SIGKILL, pause / 8))
    if lot < 0.55:
        return _disturb(log, agent, "agent ended", lambda: _again(agent, signal.SIGTERM, 0))
    if lot < 0.7:
        return _disturb(log, agent, "agent frozen", lambda: _freeze(agent, pause))
    if lot < 0.8:
        return _disturb(log, agent, "agent cut off", lambda: _cut(stage, agent, pause))
    if lot < 0.9:
        _again(tracker, signal.SIGKILL, pause / 4)
        return "tracker killed"
    if lot < 0.97:
        _freeze(tracker, pause)
        return "tracker frozen"
    for each in stage.trackers:
        each.kill()
    time.sleep(2)
    for each in stage.trackers:
        each.start()
    return "all trackers killed"


def _disturb(log: Log, agent: Agent, name: str, work: Callable[[], None]) -> str:
    log.disturbed[agent.host.name] = float("inf")
    work()
    log.disturbed[agent.host.name] = time.monotonic()
    return name


def _again(part: Agent | Tracker, number: int, pause: float) -> None:
    part.kill(number)
    time.sleep(pause)
    part.start()
    if isinstance(part, Agent):
        part.ready(joined=False)


def _freeze(part: Agent | Tracker, pause: float) -> None:
    part.send(signal.SIGSTOP)
    time.sleep(pause)
    part.send(signal.SIGCONT)


def _cut(stage: Scene, agent: Agent, pause: float) -> None:
    stage.switch.cable(agent.host.name, plugged=False)
    time.sleep(pause)
    stage.switch.cable(agent.host.name, plugged=True)


if __name__ == "__main__":
    sys.exit(main())
