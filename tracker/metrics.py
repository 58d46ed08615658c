"""The tracker's metrics, in a registry that is passed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Each field is one metric; names follow the Prometheus conventions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.agents = Gauge("shoal_tracker_agents", "Agents known now.", registry=registry)
        self.agents_lost = Counter("shoal_tracker_agents_lost", "Agents that left, by why.", ["why"], registry=registry)
        self.boards = Gauge("shoal_tracker_boards", "Boards known now, by state.", ["state"], registry=registry)
        self.names = Gauge("shoal_tracker_names", "Tags whose meaning is known now.", registry=registry)
        self.waiting = Gauge("shoal_tracker_waiting_polls", "Long-polls open now.", registry=registry)
        self.requests = Counter(
            "shoal_tracker_requests", "Requests answered, by verb and status.", ["verb", "status"], registry=registry
        )
        self.strangers = Counter(
            "shoal_tracker_strangers", "Requests refused because who asked is no member.", registry=registry
        )
        self.conflicts = Gauge(
            "shoal_tracker_conflicts", "Addresses that two agents announce at once, now.", registry=registry
        )
        self.keeps = Gauge("shoal_tracker_kept_images", "Images that are ordered to stay.", registry=registry)
        self.keeps_short = Gauge(
            "shoal_tracker_kept_images_short",
            "Images of which there are fewer whole copies than are ordered to stay.",
            registry=registry,
        )
        self.announces = Counter(
            "shoal_tracker_announces", "Announces and scrapes, by outcome.", ["outcome"], registry=registry
        )
        self.windows = Counter(
            "shoal_tracker_windows_published", "Windows whose hashes were told for the first time.", registry=registry
        )
        self.claim_waits = Histogram(
            "shoal_tracker_claim_wait_seconds",
            "Time from an agent's wish for a claim on a board to its first claim there.",
            buckets=(0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=registry,
        )
        self.releases = Counter(
            "shoal_tracker_claims_failed", "Claims given back because of upstream, by why.", ["why"], registry=registry
        )
        self.rejections = Counter(
            "shoal_tracker_rejections", "Boards begun again because of a wrong digest.", registry=registry
        )
        self.quarantines = Counter("shoal_tracker_quarantines", "Agents put into quarantine.", registry=registry)
        self.suspects = Counter(
            "shoal_tracker_suspects", "Copies that agents were told to check again.", registry=registry
        )
        self.lag = Histogram(
            "shoal_tracker_loop_lag_seconds",
            "How late the event loop calls what is due.",
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0),
            registry=registry,
        )
