"""Bytes on their way, as water: full-duplex links that all flows over them share evenly.

Time goes in short steps. In each, every flow has what both its ends can spare, as TCP would settle
in the long run; what one flow cannot use, others get. A flow begins with the next step, and ends
within one at the instant at which its last byte is there. No packets, no loss, no slow start.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDS = 6
"""How often what is left of the links is shared out once more: less than a hundredth of a link stays unused then."""

STEP = 256 * 1024
"""Bytes that the fastest link carries within one step: an eighth of the usual window."""

FULL = 1e-6
"""Part of a link that counts as nothing left."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(eq=False, slots=True)
class Flow:
    """Bytes from one end to another. *ended* is called when all have come, or (False) one end is gone."""

    sender: int
    receiver: int
    length: float
    ended: Callable[[bool], None]
    slot: int = -1
    """-1: it is over."""


class Links:
    """See the module. *up*, *down*: bytes per second of each end, by its number."""

    def __init__(self, loop: asyncio.AbstractEventLoop, up: Sequence[float], down: Sequence[float]) -> None:
        self._loop = loop
        self._up: Floats = np.array(up, dtype=np.float64)
        self._down: Floats = np.array(down, dtype=np.float64)
        self.step = STEP / float(max(self._up.max(), self._down.max()))
        """Seconds."""
        self.sent: Floats = np.zeros(len(up))
        self.received: Floats = np.zeros(len(up))
        self.busiest = 0.0
        """The largest part of any link that was used in any step; above 1 would be more than it carries."""
        self._flows: list[Flow | None] = []
        self._free: list[int] = []
        self._sender = np.zeros(0, dtype=np.int64)
        self._receiver = np.zeros(0, dtype=np.int64)
        self._left: Floats = np.zeros(0)
        self._most: Floats = np.zeros(0)
        self._active = np.zeros(0, dtype=bool)
        self._stepping = False

    def start(
        self, sender: int, receiver: int, length: float, ended: Callable[[bool], None], most: float = math.inf
    ) -> Flow:
        """Send *length* bytes from the next step on, at *most* bytes per second."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        flow = self._flows[slot] = Flow(sender, receiver, length, ended, slot)
        self._sender[slot], self._receiver[slot] = sender, receiver
        self._left[slot], self._most[slot], self._active[slot] = length, most, True
        if not self._stepping:
            self._stepping = True
            self._loop.call_at((math.floor(self._loop.time() / self.step) + 1) * self.step, self._run)
        return flow

    def stop(self, flow: Flow) -> None:
        """It is not wanted any more."""
        if flow.slot >= 0:
            self._release(flow)

    def cut(self, end: int) -> None:
        """One end is gone: what it sent or received breaks off."""
        touched = np.flatnonzero(self._active & ((self._sender == end) | (self._receiver == end)))
        for slot in touched.tolist():
            if (flow := self._flows[slot]) is not None:
                self._release(flow)
                self._loop.call_soon(flow.ended, False)

    def come(self, flow: Flow) -> float:
        """Bytes of it that have come."""
        return flow.length - (float(self._left[flow.slot]) if flow.slot >= 0 else 0.0)

    # -- inside -----------------------------------------------------------------------------------

    def _grow(self) -> None:
        before, more = len(self._flows), max(64, len(self._flows))
        self._flows += [None] * more
        self._free += range(before + more - 1, before - 1, -1)
        self._sender = np.concatenate([self._sender, np.zeros(more, dtype=np.int64)])
        self._receiver = np.concatenate([self._receiver, np.zeros(more, dtype=np.int64)])
        self._left = np.concatenate([self._left, np.zeros(more)])
        self._most = np.concatenate([self._most, np.zeros(more)])
        self._active = np.concatenate([self._active, np.zeros(more, dtype=bool)])

    def _release(self, flow: Flow) -> None:
        self._active[flow.slot] = False
        self._flows[flow.slot] = None
        self._free.append(flow.slot)
        flow.slot = -1

    def _run(self) -> None:
        """One step, from now on."""
        slots = np.flatnonzero(self._active)
        if not len(slots):
            self._stepping = False
            return
        now, step = self._loop.time(), self.step
        self._loop.call_at(now + step, self._run)
        sender, receiver, left = self._sender[slots], self._receiver[slots], self._left[slots]
        rate = shares(sender, receiver, np.minimum(self._most[slots], left / step), self._up, self._down)
        moved = rate * step
        self.sent += (sent := np.bincount(sender, moved, len(self._up)))
        self.received += (received := np.bincount(receiver, moved, len(self._up)))
        used = max(float((sent / self._up).max()), float((received / self._down).max())) / step
        self.busiest = max(self.busiest, used)
        self._left[slots] = left - moved
        last = left - moved < 1.0
        # Even shares within a step: who needs less than its share of it is through that much earlier.
        full = np.maximum(rate, shares(sender, receiver, self._most[slots], self._up, self._down, rounds=1))
        for place in np.flatnonzero(last).tolist():
            flow = self._flows[slots[place]]
            assert flow is not None
            self._loop.call_at(now + min(step, float(left[place] / full[place])), self._end, flow)

    def _end(self, flow: Flow) -> None:
        if flow.slot >= 0:
            self._release(flow)
            flow.ended(True)


def shares(
    sender: np.ndarray[Any, np.dtype[np.int64]], receiver: np.ndarray[Any, np.dtype[np.int64]], most: Floats,
    up: Floats, down: Floats, rounds: int = ROUNDS,
) -> Floats:  # fmt: skip
    """Bytes per second of each flow. *most*: what it can use; *up*, *down*: what its ends carry."""
    rate: Floats = np.zeros(len(sender))
    up, down = up.copy(), down.copy()
    least_up, least_down = up * FULL, down * FULL
    going = np.arange(len(sender))
    for _ in range(rounds):
        s, r = sender[going], receiver[going]
        share_up = up / np.maximum(1, np.bincount(s, minlength=len(up)))
        share_down = down / np.maximum(1, np.bincount(r, minlength=len(down)))
        more = np.minimum(np.minimum(share_up[s], share_down[r]), most[going] - rate[going])
        rate[going] += more
        up -= np.bincount(s, more, len(up))
        down -= np.bincount(r, more, len(down))
        going = going[(up[s] > least_up[s]) & (down[r] > least_down[r]) & (most[going] - rate[going] > FULL)]
        if not len(going):
            break
    return rate
