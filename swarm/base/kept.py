"""Connections that are kept for the next request, by what they must have in common with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

from swarm.base.link import Link


class Kept:
    """At most *most* links, each for *seconds*. For any thread."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._links: dict[Hashable, list[tuple[float, Link]]] = {}
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> Link | None:
        """A link that is still of use, the caller's from now on; None: there is none."""
        oldest = time.monotonic() - self._seconds
        while True:
            with self._lock:
                kept = self._links.get(key)
                since, link = kept.pop() if kept else (0.0, None)
            if link is None:
                return None
            if since > oldest and not link.stale():
                return link
            link.close()

    def put(self, key: Hashable, link: Link) -> None:
        """*link* may be used again. The one that was kept for longest goes if there are too many."""
        with self._lock:
            self._links.setdefault(key, []).append((time.monotonic(), link))
            dropped = None
            if sum(map(len, self._links.values())) > self._most:
                longest = min((kept for kept in self._links.values() if kept), key=lambda kept: kept[0][0])
                dropped = longest.pop(0)[1]
            for empty in [key for key, kept in self._links.items() if not kept]:
                del self._links[empty]
        if dropped is not None:
            dropped.close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            every, self._links = self._links, {}
        for kept in every.values():
            for _, link in kept:
                link.close()
