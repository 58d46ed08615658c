"""Run a tracker until it is told to stop."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from swarm.base.heap import settle
from swarm.identity.authority import Authority
from swarm.identity.tls import Identity
from tracker.http.server import TrackerServer
from tracker.members.discovery import Discovery
from tracker.settings import TrackerSettings


async def serve(
    settings: TrackerSettings,
    discovery: Discovery,
    identity: Identity | None = None,
    authority: Authority | None = None,
) -> None:
    """Listen until cancelled, then answer who waits and close within seconds. Raises TrackerError."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    server = TrackerServer(settings, discovery, registry, identity=identity, authority=authority)
    await server.start()
    settle()
    try:
        await server.run()
    finally:
        await server.close()
