"""Which tracker is not asked about which blob for a while. Pure; time is passed in.

A tracker, or a proxy before it, may answer one verb and not another. Its health does not tell then whether the board
of a blob can be kept there: that is judged by the calls for this blob that failed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

FIRST, LONGEST = 2.0, 60.0
"""Seconds for which a board is shunned after its first failure, and at most: each further one doubles them."""

FORGIVEN = 120.0
"""Seconds without a failure after which a board counts as never having failed."""

MOST = 10_000
"""Boards remembered at once; those that failed longest ago go first."""


@dataclass(slots=True)
class _Doubt:
    failures: int
    until: float
    last: float


class Doubts:
    """Failures by tracker and blob."""

    def __init__(self) -> None:
        self._doubts: OrderedDict[tuple[str, str], _Doubt] = OrderedDict()

    def failed(self, url: str, digest: str, now: float) -> float:
        """A call about *digest* to *url* failed; returns until when it is shunned."""
        before = self._doubts.pop((url, digest), None)
        if before is not None and now < before.until:
            self._doubts[url, digest] = before  # another call of the same moment
            return before.until
        failures = before.failures + 1 if before is not None and now - before.last < FORGIVEN else 1
        until: float = now + min(LONGEST, FIRST * 2.0 ** (failures - 1))
        self._doubts[url, digest] = _Doubt(failures, until, now)
        while len(self._doubts) > MOST:
            self._doubts.popitem(last=False)
        return until

    def shuns(self, url: str, digest: str, now: float) -> bool:
        """Whether *url* is not to be asked about *digest* now."""
        doubt = self._doubts.get((url, digest))
        return doubt is not None and now < doubt.until

    def failed_before(self, url: str, digest: str, now: float) -> bool:
        """Whether *url* has failed about *digest*, and has not been given time to be trusted again."""
        doubt = self._doubts.get((url, digest))
        return doubt is not None and now - doubt.last < FORGIVEN
