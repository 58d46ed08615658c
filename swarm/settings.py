"""What can be set about the swarm on this node, with unit, default and reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True)
class SwarmSettings:
    """Everything the swarm package is told; the mirror fills it from flags."""

    store: Path
    """Directory of the blob store; one process per directory."""

    name: str
    """Node name, for people."""

    store_budget: int = 20 * 1024 * MIB
    """Bytes the store may take. 20 GiB holds the images of a usual node twice."""

    listen: tuple[str, int] = ("0.0.0.0", 6881)
    """IP and port of the BitTorrent listener (docs/design.md, Ports)."""

    window_lane: bool = True
    """Windows travel between agents over HTTP, on the port after `listen`'s; else by BitTorrent alone."""

    trackers: tuple[str, ...] = ()
    """URLs, `http://host:port` or `dns+http://name:port` (every address of the name is a tracker)."""

    address: str = ""
    """IP under which other agents reach this one, where trackers see another; "": the one that they see."""

    pod: str = ""
    """UID of the pod that this agent runs in; "": none."""

    containerd_content: Path | None = None
    """containerd's content directory (`.../io.containerd.content.v1.content`), read-only; None: do not look."""

    claims: int = 4
    """Windows brought in from upstream at once per blob by an agent that is alone."""

    upstream_timeout: float = 40.0
    """Seconds that upstream may take for the first byte of an answer, while it is alive."""

    names_keep: float = 24 * 3600.0
    """Seconds for which the last known meaning of a tag answers while upstream is down."""

    unpublished_wait: float = 0.9
    """Seconds until a request for a blob that nobody can bring in is answered with 404 (P5)."""

    linger: float = 30.0
    """Seconds for which the window torrents of a finished blob stay for agents still on windows."""
