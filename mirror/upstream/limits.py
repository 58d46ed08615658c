"""Protection of upstreams, decided purely: backoff, rate and circuit breaker. Time and chance are passed in."""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST = 0.1
"""Seconds: no pause is shorter, whatever chance says; a pause of nothing is a busy loop."""


@dataclass(frozen=True)
class Limits:
    """What one host may be asked."""

    connections: int = 16
    """Requests under way at once. Four claims of four blobs; far below what registries throttle."""

    reserve: int = 16
    """More of them for readers that wait for a few bytes: they must not queue behind bulk downloads."""

    rate: float = 0.0
    """Requests per second; 0: no bound. Windows are large, so requests are few."""

    patience: float = 30.0
    """Seconds that a request may wait for its turn; then SourceBusy. In a storm of pulls waiting beats failing."""


def backoff(attempt: int, chance: float, *, base: float = 1.0, cap: float = 60.0) -> float:
    """Seconds to wait after failure number *attempt* + 1: exponential, with full jitter, so that a thousand
    agents that failed together do not come back together. *chance*: uniform in [0, 1)."""
    return max(SHORTEST, min(cap, base * 2.0 ** min(attempt, 32)) * chance)


@dataclass
class Breaker:
    """Stops asking a host that keeps failing, and lets one request at a time find out whether it is back.

    closed --(threshold failures in a row)--> open --(pause over)--> one probe --> closed, or open for longer
    """

    threshold: int = 5
    """Failures in a row until it opens. One broken blob does not: other answers in between close it again."""

    base: float = 1.0
    """Seconds of the first pause; doubled by each failed probe."""

    cap: float = 4.0
    """Longest pause in seconds: so long may a mended registry go unnoticed."""

    failures: int = 0
    probes: int = 0
    """Probes that failed since it opened."""

    until: float = 0.0
    """Time at which the pause ends; 0: closed."""

    probing: bool = False
    """Whether the one probe is under way."""

    @property
    def open(self) -> bool:
        """Whether requests are refused, but for a probe."""
        return self.until > 0.0

    def wait(self, now: float) -> float:
        """Seconds for which a request must not be sent; 0: send it, and tell its `outcome` (or `gone`)."""
        if not self.open:
            return 0.0
        if now < self.until:
            return self.until - now
        if self.probing:
            return self.base
        self.probing = True
        return 0.0

    def outcome(self, ok: bool, now: float, chance: float) -> None:
        """A request that was let through answered (*ok*: with anything but a server's failure), or failed."""
        if ok:
            self.failures = self.probes = 0
            self.until, self.probing = 0.0, False
            return
        self.failures += 1
        if self.open and self.probing:
            self.probing = False
            self.probes += 1
            self.until = now + backoff(self.probes, chance, base=self.base, cap=self.cap)
        elif not self.open and self.failures >= self.threshold:
            self.probes = 0
            self.until = now + backoff(0, chance, base=self.base, cap=self.cap)

    def gone(self) -> None:
        """A request was given up before it had an outcome: the next one may be the probe."""
        self.probing = False


@dataclass
class Bucket:
    """At most *rate* requests per second on average, *burst* at once (token bucket)."""

    rate: float
    """Requests per second; 0: no bound."""

    burst: float = 10.0
    """Requests that may go out at once after a quiet time."""

    debt: float = 0.0
    """Requests sent that the rate has not yet paid for."""

    at: float = 0.0
    """Time of the last look."""

    def wait(self, now: float) -> float:
        """Seconds until the next request may go out, were it taken now. Takes nothing."""
        if self.rate <= 0:
            return 0.0
        return max(0.0, (self._owed(now) + 1.0 - self.burst) / self.rate)

    def take(self, now: float) -> None:
        """One request goes out (after `wait`)."""
        if self.rate > 0:
            self.debt, self.at = self._owed(now) + 1.0, now

    def _owed(self, now: float) -> float:
        return max(0.0, self.debt - (now - self.at) * self.rate)
