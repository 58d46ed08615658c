"""How long to wait before the next try of something that failed: pure, jittered, bounded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff between tries, in seconds.

    The jitter takes off up to half, so that trackers which lost the same server do not come back
    in step, yet no try follows the other at once.
    """

    first: float = 0.2
    longest: float = 30.0
    """An API server that was away for minutes is found again within half a minute."""

    def delay(self, failures: int, chance: float, asked: float = 0.0) -> float:
        """Seconds to wait after *failures* (>= 1) in a row. *chance*: uniform in [0, 1).

        *asked*: seconds that the server asked for (Retry-After); honoured up to `longest`.
        """
        full = min(self.longest, self.first * 2.0 ** min(failures - 1, 30))
        return max(full * (1.0 - chance / 2.0), min(asked, self.longest))


USUAL = Backoff()
