"""Say the same thing seldom: a log line that repeats is held back for a while, and counted. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

PAUSE = 60.0
"""Seconds between two lines about the same subject: enough for a person, too little to fill a disk."""

MOST = 256
"""Subjects that get lines within one pause. Those beyond are only counted: addresses cost an attacker nothing."""


class Seldom:
    """Says whether a line about a subject is due. Time is passed in, in seconds of any steady clock."""

    def __init__(self, pause: float = PAUSE, most: int = MOST) -> None:
        self._pause = pause
        self._most = most
        self._told: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        """Subject -> when it was last told, and how many lines were held back since. Oldest first."""

    def __len__(self) -> int:
        return len(self._told)

    def due(self, subject: Hashable, now: float) -> int | None:
        """None: hold the line about *subject* back. Else say it, and how many were held back before it."""
        known = self._told.get(subject)
        if known is not None and now - known[0] < self._pause:
            self._told[subject] = (known[0], known[1] + 1)
            return None
        while self._told and now - next(iter(self._told.values()))[0] >= self._pause and len(self._told) >= self._most:
            self._told.popitem(last=False)
        if known is None and len(self._told) >= self._most:
            return None
        self._told[subject] = (now, 0)
        self._told.move_to_end(subject)
        return known[1] if known is not None else 0

    def forget(self, subject: Hashable) -> None:
        """The trouble with *subject* is over: the next line about it is said at once."""
        self._told.pop(subject, None)
