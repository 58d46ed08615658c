"""Protection of upstreams at work: every request to a host passes here, and its answer is reported here.

What is refused is refused at once, with the time after which another try makes sense: containerd can go
upstream by itself, a tag has its last known digest, and a blob may be had from peers meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from cachetools import LRUCache
from prometheus_client import CollectorRegistry, Counter, Gauge

from mirror.upstream.limits import Breaker, Bucket, Limits, backoff
from swarm.blob.errors import SourceBroken, SourceBusy, SourceError, SourceSilent

_HOSTS = 1024
"""Hosts whose state is kept: names come from clients, so there must be a bound."""

SHORTEST_LOOK = 0.5
"""Seconds between two looks at a host that answers nothing, while somebody wants it."""

LONGEST_LOOK = 5.0
"""The same while nobody does."""

FORGET_DARK = 600.0
"""Seconds without a request after which such a host is no longer looked at."""

GAVE = 64 * 1024
"""Bytes of a body by which a host is no host that keeps failing, although the body broke: one that cuts each connection
after 300 KB gives a blob all the same."""

_LABELS = 64
"""Hosts with metrics of their own; all others count as `other`: each label is a time series for good."""


@dataclass
class _Host:
    limits: Limits
    label: str
    breaker: Breaker
    bucket: Bucket
    bulk: asyncio.Semaphore
    urgent: asyncio.Semaphore
    held_until: float = 0.0
    busy: int = 0
    """Answers in a row that asked us to come back later."""

    inflight: int = field(default=0)
    dark: bool = False
    """It answers nothing at all, and is being watched."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody wanted it while it was dark."""


class Ticket:
    """A request that was let through; `done` tells how it ended."""

    def __init__(self, guard: Guard, host: str, state: _Host) -> None:
        self._guard = guard
        self._host = host
        self._state = state
        self._told = False
        self._came = 0

    def headers(self) -> None:
        """The host answered; whether the body arrives is still to be seen.

        That is enough to close a breaker: its probe may be a download of minutes.
        """
        self._state.dark = False
        if self._state.breaker.open:
            self._tell(None)

    def answered(self) -> None:
        """The host answered to the end, be it with a refusal: it is alive."""
        self._tell(None)

    def failed(self, error: SourceError) -> None:
        """The host failed, or asked us to come back later."""
        self._tell(error)

    def bytes(self, count: int) -> None:
        """*count* bytes of a body arrived."""
        self._came += count
        self._guard.count_bytes(self._state.label, count)

    def _tell(self, error: SourceError | None) -> None:
        if not self._told:
            self._told = True
            self._guard.report(self._host, self._state, error, gave=self._came >= GAVE)

    def close(self) -> None:
        """The request is over, with or without an outcome."""
        if not self._told:
            self._guard.left(self._state)


class Guard:
    """Bounds, pauses and breakers by host. Lives on one event loop.

    *limits_for*: the limits of a host. *on_backoff*(host, seconds) is called when an upstream asks for a pause,
    so that the swarm can tell the cluster; `hold` is what the swarm calls when another agent was asked.
    """

    def __init__(
        self,
        limits_for: Callable[[str], Limits] | None = None,
        *,
        on_backoff: Callable[[str, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        metrics: CollectorRegistry | None = None,
    ) -> None:
        self._on_backoff = on_backoff
        self._limits_for = limits_for or (lambda _host: Limits())
        self._clock = clock
        self._chance = chance
        self._hosts: LRUCache[str, _Host] = LRUCache(_HOSTS)
        self._labels: set[str] = set()
        registry = metrics if metrics is not None else CollectorRegistry()
        names = ("host",)
        self._requests = Counter(
            "shoal_upstream_requests_total",
            "Requests to upstreams, by outcome.",
            ("host", "outcome"),
            registry=registry,
        )
        self._bytes = Counter("shoal_upstream_bytes_total", "Body bytes from upstreams.", names, registry=registry)
        self._inflight = Gauge("shoal_upstream_inflight", "Requests to upstreams under way.", names, registry=registry)
        self._refused = Counter(
            "shoal_upstream_held_back_total",
            "Requests that were not sent: pause (upstream asked for one), breaker, dark (answers nothing), rate, "
            "connections.",
            ("host", "why"),
            registry=registry,
        )
        self._pauses = Counter(
            "shoal_upstream_pauses_total",
            "Pauses that were asked for: upstream (429, Retry-After) or cluster (another agent was asked).",
            ("host", "by"),
            registry=registry,
        )
        self._open = Gauge(
            "shoal_upstream_breaker_open", "1 while the breaker of a host is open.", names, registry=registry
        )
        self._opened = Counter(
            "shoal_upstream_breaker_opened_total", "Times a breaker opened.", names, registry=registry
        )

    def hold(self, host: str, seconds: float) -> None:
        """Ask *host* nothing for *seconds*: another agent of the cluster was told so."""
        state = self._state(host)
        self._pauses.labels(state.label, "cluster").inc()
        state.held_until = max(state.held_until, self._clock() + seconds)

    def held(self, host: str) -> float:
        """Seconds for which *host* is still to be left alone."""
        state = self._hosts.get(host)
        return 0.0 if state is None else max(0.0, state.held_until - self._clock())

    @contextlib.asynccontextmanager
    async def enter(self, host: str, *, urgent: bool = False) -> AsyncIterator[Ticket]:
        """Wait for the turn of one request to *host*; it counts as under way until left.

        Raises SourceBusy (pause, rate, connections) or SourceBroken (breaker), both with `retry_after`.
        """
        state = self._state(host)
        self._check(host, state)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(state.limits.patience):
                    await self._turn(stack, state, urgent)
            except TimeoutError:
                self._refused.labels(state.label, "connections").inc()
                raise SourceBusy(f"{host} has too many requests of ours", retry_after=1.0) from None
            await self._pace(host, state)
            self._check(host, state)
            if wait := state.breaker.wait(self._clock()):
                self._refused.labels(state.label, "breaker").inc()
                raise SourceBroken(f"{host} keeps failing and is left alone", retry_after=wait)
            ticket = Ticket(self, host, state)
            state.inflight += 1
            self._inflight.labels(state.label).set(state.inflight)
            try:
                yield ticket
            finally:
                state.inflight -= 1
                self._inflight.labels(state.label).set(state.inflight)
                ticket.close()

    async def _turn(self, stack: contextlib.AsyncExitStack, state: _Host, urgent: bool) -> None:
        if urgent and state.bulk.locked():
            await stack.enter_async_context(state.urgent)
        else:
            await stack.enter_async_context(state.bulk)

    async def _pace(self, host: str, state: _Host) -> None:
        now = self._clock()
        wait = state.bucket.wait(now)
        if wait > state.limits.patience:
            self._refused.labels(state.label, "rate").inc()
            raise SourceBusy(f"{host} is asked too often", retry_after=wait)
        # Taken before the sleep, so that those who come later wait behind.
        state.bucket.take(now)
        if wait:
            await asyncio.sleep(wait)

    def darken(self, host: str) -> None:
        """*host* answers nothing: requests are refused at once, as long as somebody runs `watch`."""
        self._state(host).dark = True

    async def watch(self, host: str, ping: Callable[[], Awaitable[bool]]) -> None:
        """Ends the darkness of *host* once *ping* says that it answers again, or nobody has asked for long."""
        state = self._state(host)
        try:
            idle = 0.0
            while state.dark and idle < FORGET_DARK:
                if await ping():
                    return
                state.asked.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_LOOK):
                        await state.asked.wait()
                    idle = 0.0
                    await asyncio.sleep(SHORTEST_LOOK)
                    continue
                idle += LONGEST_LOOK
        finally:
            state.dark = False

    def _check(self, host: str, state: _Host) -> None:
        if state.dark:
            state.asked.set()
            self._refused.labels(state.label, "dark").inc()
            raise SourceSilent(f"{host} answers nothing", retry_after=1.0)
        wait = state.held_until - self._clock()
        if wait > 0:
            self._refused.labels(state.label, "pause").inc()
            raise SourceBusy(f"{host} asked us to come back later", status=429, retry_after=wait)

    def report(self, host: str, state: _Host, error: SourceError | None, *, gave: bool = False) -> None:
        """How a request ended; called by tickets. *gave*: bytes came before it failed, and the next may follow them."""
        now = self._clock()
        if isinstance(error, SourceBusy):
            outcome = "busy"
            seconds = error.retry_after
            if seconds is None:
                seconds = backoff(state.busy, self._chance())
            state.busy += 1
            state.held_until = max(state.held_until, now + seconds)
            self._pauses.labels(state.label, "upstream").inc()
            if self._on_backoff is not None and seconds > 0:
                self._on_backoff(host, seconds)
            state.breaker.gone()
        elif isinstance(error, SourceBroken):
            outcome = "broken"
            was_open = state.breaker.open
            state.breaker.outcome(gave, now, self._chance())
            if state.breaker.open and not was_open:
                self._opened.labels(state.label).inc()
        else:
            outcome = "answered"
            state.busy = 0
            state.breaker.outcome(True, now, self._chance())
        self._requests.labels(state.label, outcome).inc()
        self._open.labels(state.label).set(1 if state.breaker.open else 0)

    def left(self, state: _Host) -> None:
        """A request was given up by us; called by tickets."""
        state.breaker.gone()
        self._requests.labels(state.label, "left").inc()

    def count_bytes(self, label: str, count: int) -> None:
        """Count body bytes; called by tickets."""
        self._bytes.labels(label).inc(count)

    def status(self) -> dict[str, dict[str, float | int | bool]]:
        """By host: requests under way, seconds of pause left, whether the breaker is open."""
        now = self._clock()
        return {
            host: {
                "inflight": state.inflight,
                "pause": round(max(0.0, state.held_until - now), 1),
                "breaker_open": state.breaker.open,
            }
            for host, state in self._hosts.items()
        }

    def _state(self, host: str) -> _Host:
        state = self._hosts.get(host)
        if state is None:
            limits = self._limits_for(host)
            if host not in self._labels and len(self._labels) < _LABELS:
                self._labels.add(host)
            state = _Host(
                limits=limits,
                label=host if host in self._labels else "other",
                breaker=Breaker(),
                bucket=Bucket(limits.rate),
                bulk=asyncio.Semaphore(limits.connections),
                urgent=asyncio.Semaphore(max(limits.reserve, 1)),
            )
            self._hosts[host] = state
        return state
