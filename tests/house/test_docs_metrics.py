"""docs/metrics.md is what the code declares: name, type, labels, meaning; and what is normal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from mirror.metrics import FrontMetrics
from mirror.upstream.guard import Guard
from swarm.metrics import SwarmMetrics
from tracker.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

NORMAL = {
    "shoal_front_requests_total": "Mostly 200 and 206; 404 where an image is not mirrored or may not be pulled.",
    "shoal_front_outcomes_total": "`whole`; `left` where runtimes read in chunks; `broken` stays at 0.",
    "shoal_front_sent_bytes_total": "`peer`, `disk` and `containerd` far above `upstream`.",
    "shoal_front_requests_in_flight": "0 while nothing is pulled; below 100 else.",
    "shoal_front_overload_total": "0.",
    "shoal_front_first_byte_seconds": "Below 0.1 s for what the node has, below 2 s else.",
    "shoal_front_stale_names_total": "0; it grows while an upstream is down or throttles.",
    "shoal_front_prefetched_bytes_total": "0 without range readers.",
    "shoal_front_read_ahead_dropped_total": "0; it grows where many range readers share a slow disk.",
    "shoal_loop_lag_seconds": "p99 below 0.05 s.",
    "shoal_swarm_received_bytes_total": "`peer` above `upstream`, by about the number of nodes that pull.",
    "shoal_swarm_sent_bytes_total": "Over the cluster, the same as is received from peers.",
    "shoal_swarm_bad_pieces_total": "0.",
    "shoal_swarm_read_back_total": "A few in a hundred pieces.",
    "shoal_swarm_source_failures_total": "0; `busy` where a registry throttles.",
    "shoal_swarm_rejections_total": "0.",
    "shoal_swarm_stalls_total": "0; single ones when nodes leave.",
    "shoal_swarm_direct_streams_total": "0; it grows where the cluster was slower than a node's own line to upstream.",
    "shoal_swarm_banned_peers_total": "0.",
    "shoal_swarm_lane_refusals_total": "A few in a hundred requests, `busy` or `lacking`.",
    "shoal_swarm_fetches": "0 while nothing is pulled.",
    "shoal_swarm_held_blobs": "Grows to what the store's budget holds.",
    "shoal_swarm_kept_bytes": "At most half of `--store-budget`; 0 where nothing is kept.",
    "shoal_swarm_member": "1.",
    "shoal_swarm_trackers_up": "The number of trackers.",
    "shoal_upstream_requests_total": "`answered`; `left` where readers stop; `busy` and `broken` stay at 0.",
    "shoal_upstream_bytes_total": "Over the cluster, about the size of what is new.",
    "shoal_upstream_inflight": "At most `--upstream-connections`.",
    "shoal_upstream_held_back_total": "0.",
    "shoal_upstream_pauses_total": "0.",
    "shoal_upstream_breaker_open": "0.",
    "shoal_upstream_breaker_opened_total": "0.",
    "shoal_tracker_agents": "The number of nodes.",
    "shoal_tracker_agents_lost_total": "Grows when nodes leave and agents restart.",
    "shoal_tracker_boards": "`sealed` grows; `entering` is what is pulled for the first time; `poisoned` is 0.",
    "shoal_tracker_names": "The number of tags in use.",
    "shoal_tracker_waiting_polls": "One for each agent, and one for each blob on its way to it.",
    "shoal_tracker_requests_total": "200; some 409 after a tracker's restart.",
    "shoal_tracker_strangers_total": "0.",
    "shoal_tracker_conflicts": "0.",
    "shoal_tracker_kept_images": "The number of images ordered with `--keep`.",
    "shoal_tracker_kept_images_short": "0; above for as long as a keeper that was lost is made good.",
    "shoal_tracker_announces_total": "0 without BitTorrent clients of your own.",
    "shoal_tracker_windows_published_total": "Grows while something new is pulled.",
    "shoal_tracker_claim_wait_seconds": "p50 below 0.1 s.",
    "shoal_tracker_claims_failed_total": "0; `refused` where single nodes lack credentials.",
    "shoal_tracker_rejections_total": "0.",
    "shoal_tracker_quarantines_total": "0.",
    "shoal_tracker_suspects_total": "0.",
    "shoal_tracker_loop_lag_seconds": "p99 below 0.05 s.",
}
"""What a healthy cluster shows; `make docs` complains about a metric that is not here."""

PARTS: dict[str, tuple[Callable[[CollectorRegistry], object], ...]] = {
    "An agent (`--metrics-listen`, port 5004)": (
        FrontMetrics,
        SwarmMetrics,
        lambda registry: Guard(metrics=registry),
    ),
    "A tracker (`--listen`, port 6969)": (Metrics,),
}

LABELS = {
    "kind", "method", "status", "outcome", "origin", "source", "host", "why", "by", "state", "verb",
}  # fmt: skip
"""Labels that the project uses. Each is of few values, by the tests below; none holds what a client chose."""


class Declared(NamedTuple):
    """One metric, as /metrics names it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def declared(declare: Callable[[CollectorRegistry], object]) -> Iterator[Declared]:
    """The metrics that *declare* registers, those with labels too, although they have no sample yet."""
    registry = CollectorRegistry()
    kept = declare(registry)
    for metric in registry._collector_to_names:
        assert isinstance(metric, MetricWrapperBase)
        name = metric._name + ("_total" if metric._type == "counter" else "")
        yield Declared(name, str(metric._type), tuple(metric._labelnames), str(metric._documentation))
    del kept


def page() -> str:
    """docs/metrics.md."""
    parts = [
        (
            "# Metrics\n\nMade from the code by `make docs`, and compared with it by a test. Every agent and tracker "
            "has `/metrics`.\nAlerts on them are in `charts/shoal/files/alerts.yaml`, and "
            "[runbook.md](runbook.md) says what to do.\n"
        )
    ]
    for title, declares in PARTS.items():
        rows = ["| metric | type | labels | meaning | normal |", "|---|---|---|---|---|"]
        for metric in (metric for declare in declares for metric in declared(declare)):
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            normal = NORMAL.get(metric.name, "")
            rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} | {normal} |")
        parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
    parts.append("Agents also have the usual `process_*` and `python_*` metrics.\n")
    return "\n".join(parts)


EVERY = [metric for declares in PARTS.values() for declare in declares for metric in declared(declare)]


def test_the_documentation_has_every_metric() -> None:
    """As it is declared; `make docs` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"


def test_what_is_normal_is_said_of_every_metric_and_of_no_other() -> None:
    """A figure that nobody can judge is no help."""
    assert {metric.name for metric in EVERY} == set(NORMAL)


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.name)
def test_labels_are_of_few_values(metric: Declared) -> None:
    """Only labels that are known here; `host` is bounded by the guard, as the next test shows."""
    assert set(metric.labels) <= LABELS


async def test_upstream_hosts_are_bounded() -> None:
    """Clients may name any registry: beyond a bound, hosts are counted together."""
    registry = CollectorRegistry()
    guard = Guard(metrics=registry)
    for number in range(2000):
        guard.hold(f"registry-{number}.example", 1.0)
        async with guard.enter(f"other-{number}.example"):
            pass
    series = {sample.labels["host"] for metric in registry.collect() for sample in metric.samples}
    assert len(series) <= 100


if __name__ == "__main__":  # make docs
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
