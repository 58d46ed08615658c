"""What can be set about a tracker, with unit, default and reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrackerSettings:
    """Everything the tracker is told; `shoal tracker` fills it from flags."""

    listen: tuple[str, int] = ("127.0.0.1", 6969)
    """IP and port of the HTTP listener (docs/design.md, Ports)."""

    page_listen: tuple[str, int] | None = None
    """IP and port of the page, its API and its metrics, apart from the agents' port; None: they are on that."""

    metrics_listen: tuple[str, int] | None = None
    """IP and port of /metrics alone, apart from the rest; None: where the page is."""

    page_token: str = field(default="", repr=False)
    """What readers of page, API and metrics have to show; "": nothing."""

    hosts: tuple[str, ...] = ()
    """Names under which browsers and agents may ask, beside addresses and names that are no public ones."""

    peers: int = 50
    """Peers handed out per answer: enough for a well-connected swarm, few enough for one packet or two."""

    interval: float = 60.0
    """Seconds between the announces of a BitTorrent client. Agents do not announce: they long-poll."""

    replicas: tuple[str, ...] = ()
    """The trackers of the cluster, `http://host:port` or `dns+http://name:port`; this one among them does no harm.
    Only the page asks them: trackers share no state."""

    near_zone: tuple[str, ...] = ()
    """Zones near to upstream: their agents get claims before others. Empty: all are alike."""

    copy_per_zone: bool = False
    """Each zone brings in a copy of its own; nothing crosses zones while a zone can do so."""

    quarantine: float = 600.0
    """Seconds for which an agent that told wrong hashes gets no claims and is handed to nobody."""

    strikes: int = 3
    """How often an agent may be found corrupt within one quarantine's length before it is put into quarantine."""

    grace: float = 1.0
    """Seconds for which an agent whose connection broke may come back before its claims are free."""

    away: float = 20.0
    """Seconds between two polls of an agent's channel after which it counts as dead. Its claims are leased for 5 s
    without progress anyway; a node that is merely overloaded should not be taken for one that lost all it holds."""

    recovery: float = 1.0
    """Seconds without new claims on a board after an agent came that knew another tracker: the others say first what
    they hold."""

    gather: float = 3.0
    """Seconds that this lasts at most, and in which the agents find a tracker that has just started: they look for one
    that is down every two seconds."""

    preheat_token: Path | None = None
    """File with the token of those who may order preheats. None: nobody may."""

    keep_patience: float = 60.0
    """Seconds for which an agent that keeps an image and left may come back before another takes its place."""

    max_body: int = 16 * 1024 * 1024
    """Bytes of the largest request: the hashes of 800,000 pieces."""

    max_agents: int = 20_000
    """Agents known at once; each costs some 14 KiB while it waits."""

    max_boards: int = 50_000
    """Boards kept; beyond that those unused for longest go, except where agents wait."""

    idle_board: float = 600.0
    """Seconds after which an unsealed board that nobody takes part in is dropped."""

    max_names: int = 50_000
    """Tags remembered; beyond that those unused for longest go."""

    names_keep: float = 24 * 3600.0
    """Seconds for which the last known meaning of a tag is kept for when upstream is down."""

    max_waiting: int = 512
    """Boards on which one agent may wait at once: more layers than any node pulls together."""

    max_announcers: int = 2_000
    """BitTorrent clients other than agents that are remembered per blob."""

    max_needs: int = 4
    """Blobs whose hashes an agent is asked for at once: it may have to read them from disk."""

    stop: float = 3.0
    """Seconds for open requests to end after SIGTERM."""
