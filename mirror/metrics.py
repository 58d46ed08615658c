"""What the front end counts, as Prometheus metrics in a registry that is passed in."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

LAG_STEP = 0.25
"""Seconds between two looks at the event loop's clock."""


class FrontMetrics:
    """The metrics of one agent's front end. Labels never hold names, URLs or anything else that clients choose."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "shoal_front_requests", "Requests answered.", ("kind", "method", "status"), registry=registry
        )
        self.outcomes = Counter(
            "shoal_front_outcomes",
            "How bodies ended: whole, left (the client went away), broken (we broke it off).",
            ("kind", "outcome"),
            registry=registry,
        )
        self.bytes = Counter(
            "shoal_front_sent_bytes",
            "Body bytes sent to clients, by where they came from.",
            ("kind", "origin"),
            registry=registry,
        )
        self.in_flight = Gauge("shoal_front_requests_in_flight", "Requests being answered.", registry=registry)
        self.refused = Counter("shoal_front_overload", "Requests refused for their number.", registry=registry)
        self.first_byte = Histogram(
            "shoal_front_first_byte_seconds",
            "Time from a request to the first byte of its body.",
            ("kind",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stale_names = Counter(
            "shoal_front_stale_names", "Tags answered with their last known digest.", registry=registry
        )
        self.prefetched = Counter(
            "shoal_front_prefetched_bytes", "Bytes read ahead for range readers.", registry=registry
        )
        self.read_ahead_dropped = Counter(
            "shoal_front_read_ahead_dropped", "Read-aheads left out because enough were under way.", registry=registry
        )
        self.loop_lag = Histogram(
            "shoal_loop_lag_seconds", "How late the event loop runs a timer.", buckets=_SECONDS, registry=registry
        )


async def watch_loop(metrics: FrontMetrics) -> None:
    """Measure the event loop's lag until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_STEP
        await asyncio.sleep(LAG_STEP)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))
