"""Run a tracker until it is told to stop."""

from __future__ import annotations

from swarm.heap import settle
from tracker.discovery import Discovery
from tracker.server import TrackerServer
from tracker.settings import TrackerSettings


async def serve(settings: TrackerSettings, discovery: Discovery) -> None:
    """Listen until cancelled, then answer who waits and close within seconds. Raises TrackerError."""
    server = TrackerServer(settings, discovery)
    await server.start()
    settle()
    try:
        await server.run()
    finally:
        await server.close()
