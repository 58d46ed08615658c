"""How many bytes moved in the last hour: a bounded ring of sums per step of time. No I/O; time is passed in.

Agents tell counters that grow from the start of their process. What counts here is by how much they
grew between two tellings: an agent that leaves takes nothing away, one that starts again adds nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

STEP = 15
"""Seconds per step: agents that fetch tell their counters every five."""

STEPS = 240
"""Steps that are kept: an hour."""

SERIES = ("upstream_bytes", "peer_bytes_in")
"""The counters that are followed, in the order in which a step lists them."""

MOST = 1e15
"""Bytes by which a counter grows between two tellings at most: what is more is a mistake of who tells it."""

Steps = dict[int, tuple[int, ...]]
"""Start of a step (seconds since the epoch) -> bytes per series."""


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, ...]:
    """By how much each of SERIES grew. A counter told for the first time is where counting begins."""
    grown = []
    for name in SERIES:
        if name not in before or name not in after:
            grown.append(0.0)
            continue
        amount = after[name] - before[name] if after[name] >= before[name] else after[name]
        grown.append(min(max(0.0, amount), MOST))
    return tuple(grown)


class History:
    """The last STEPS steps, and the sum of all since the tracker started. Times: seconds since the epoch."""

    def __init__(self) -> None:
        self._steps: dict[int, list[float]] = {}
        self._total = [0.0] * len(SERIES)

    def add(self, amounts: Iterable[float], now: float) -> None:
        """*amounts*: bytes per series that moved until *now*."""
        grown = list(amounts)
        if not any(grown):
            return
        start = _start(now)
        step = self._steps.get(start)
        if step is None:
            step = self._steps[start] = [0.0] * len(SERIES)
            self._trim(max(self._steps))
        for place, amount in enumerate(grown):
            step[place] += amount
            self._total[place] += amount

    def steps(self, now: float) -> Steps:
        """The steps of the last hour in which something moved, oldest first."""
        newest = _start(now)
        oldest = newest - STEP * (STEPS - 1)
        return {
            start: tuple(int(amount) for amount in step)
            for start, step in sorted(self._steps.items())
            if oldest <= start <= newest
        }

    @property
    def total(self) -> tuple[int, ...]:
        """Bytes per series since the tracker started."""
        return tuple(int(amount) for amount in self._total)

    def _trim(self, newest: int) -> None:
        for start in [start for start in self._steps if start <= newest - STEP * STEPS]:
            del self._steps[start]


def merge(histories: Iterable[Steps]) -> Steps:
    """One hour of what several trackers counted: agents tell all of them the same, so the most is the truth."""
    merged: Steps = {}
    for steps in histories:
        for start, amounts in steps.items():
            known = merged.get(start)
            merged[start] = amounts if known is None else tuple(map(max, known, amounts))
    return dict(sorted(merged.items())[-STEPS:])


def _start(now: float) -> int:
    return int(now) // STEP * STEP
