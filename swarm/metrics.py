"""What the swarm of an agent counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class SwarmMetrics:
    """The metrics of one agent, in *registry*."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes_in = Counter(
            "shoal_swarm_received_bytes_total",
            "Bytes that came to this node, by source.",
            ["source"],
            registry=registry,
        )
        self.bytes_out = Counter(
            "shoal_swarm_sent_bytes_total", "Payload bytes sent to other agents.", registry=registry
        )
        self.bad_pieces = Counter(
            "shoal_swarm_bad_pieces_total", "Pieces from peers whose hash did not match.", registry=registry
        )
        self.read_back = Counter(
            "shoal_swarm_read_back_total",
            "Pieces asked back from libtorrent because the file was behind.",
            registry=registry,
        )
        self.source_failures = Counter(
            "shoal_swarm_source_failures_total",
            "Claims that upstream did not fulfil, by kind.",
            ["kind"],
            registry=registry,
        )
        self.rejections = Counter(
            "shoal_swarm_rejections_total",
            "Blobs whose sha256 did not match what the board described.",
            registry=registry,
        )
        self.stalls = Counter(
            "shoal_swarm_stalls_total", "Times that no peer delivered published windows.", registry=registry
        )
        self.direct = Counter(
            "shoal_swarm_direct_streams_total",
            "Streams that readers had from upstream past the cluster, by what they had waited for.",
            ["kind"],
            registry=registry,
        )
        self.banned_peers = Counter(
            "shoal_swarm_banned_peers_total", "Peers banned for sending wrong bytes.", registry=registry
        )
        self.lane_refusals = Counter(
            "shoal_swarm_lane_refusals_total",
            "Requests for windows that were refused over HTTP, by `this` node or by `others`.",
            ["by", "why"],
            registry=registry,
        )
        self.fetches = Gauge("shoal_swarm_fetches", "Blobs on their way to this node.", registry=registry)
        self.held = Gauge("shoal_swarm_held_blobs", "Complete blobs that this node offers.", registry=registry)
        self.kept = Gauge(
            "shoal_swarm_kept_bytes", "Bytes of the store promised to images that are kept here.", registry=registry
        )
        self.member = Gauge(
            "shoal_swarm_member",
            "1 while a tracker takes this agent for a member, or none is configured; 0: it works alone.",
            registry=registry,
        )
        self.tracker_up = Gauge("shoal_swarm_trackers_up", "Trackers that answer.", registry=registry)
