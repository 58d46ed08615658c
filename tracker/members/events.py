"""Kubernetes Events on an agent's pod: what an operator wants to read in `kubectl describe pod`.

Rare by construction: a pod gets the same reason at most once in ten minutes, and a full queue
drops rather than waits. Without the permission to create events there are none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tracker.members.discovery import Reason
from tracker.members.podset import Member
from tracker.members.reflector import ApiError

log = logging.getLogger("shoal.tracker")

COMPONENT = "shoal-tracker"

PAUSE = 600.0
"""Seconds between two events of one reason on one pod. The API server keeps events for an hour."""

REMEMBERED = 20_000
"""(pod, reason) pairs remembered: four reasons for 5,000 agents."""

QUEUE = 256
"""Events that wait at most. A roll-out of 5,000 agents must not become 5,000 writes in a row."""

DENIED_PAUSE = 300.0
"""Seconds without a try after the API server said 403."""


@dataclass(frozen=True)
class PodEvent:
    """One event on one pod."""

    namespace: str
    pod: str
    uid: str
    reason: Reason
    message: str
    name: str
    """Unique name of the event object."""
    at: datetime
    host: str
    """Name of the tracker that says so."""

    def manifest(self) -> dict[str, Any]:
        """The core/v1 Event (kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1)."""
        stamp = self.at.strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": self.namespace,
                "name": self.pod,
                "uid": self.uid,
            },
            "reason": self.reason.value,
            "message": self.message[:1024],  # the API server's limit for a note
            "type": self.reason.kind,
            "source": {"component": COMPONENT, "host": self.host},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }


class Limiter:
    """At most one event per pod and reason in *pause* seconds. Time is passed in."""

    def __init__(self, pause: float = PAUSE, remembered: int = REMEMBERED) -> None:
        self._pause = pause
        self._remembered = remembered
        self._last: OrderedDict[tuple[str, Reason], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def allow(self, uid: str, reason: Reason, now: float) -> bool:
        """Whether the pod *uid* may get *reason* now; if so, it is noted."""
        key = (uid, reason)
        last = self._last.get(key)
        if last is not None and now - last < self._pause:
            return False
        self._last[key] = now
        self._last.move_to_end(key)
        while len(self._last) > self._remembered:
            self._last.popitem(last=False)
        return True


class Events:
    """Takes events without waiting, posts them one after another."""

    def __init__(self, limiter: Limiter | None = None) -> None:
        self._limiter = limiter or Limiter()
        self._host = socket.gethostname()
        self._queue: asyncio.Queue[PodEvent] = asyncio.Queue(QUEUE)
        self.posted = 0
        self.dropped = 0
        """Events that were not posted: the queue was full, or the API server refused."""

    def note(self, pod: Member | None, reason: Reason, message: str, now: float) -> None:
        """Something happened to *pod* (None: it is none of ours). *now*: monotonic seconds."""
        if pod is None or not self._limiter.allow(pod.uid, reason, now):
            return
        # The pod's name first, as kubectl's own events have it; the rest makes it unique.
        name = f"{pod.name[:200]}.{os.urandom(8).hex()}"
        event = PodEvent(pod.namespace, pod.name, pod.uid, reason, message, name, datetime.now(UTC), self._host)
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self, post: Callable[[PodEvent], Awaitable[None]]) -> None:
        """Post what was noted, until cancelled. *post* raises ApiError."""
        denied_until = 0.0
        denied = False
        while True:
            event = await self._queue.get()
            now = asyncio.get_running_loop().time()
            if now < denied_until:
                self.dropped += 1
                continue
            try:
                await post(event)
                self.posted += 1
                denied = False
            except ApiError as error:
                self.dropped += 1
                if error.status == 403:
                    denied_until = now + DENIED_PAUSE
                    if not denied:
                        log.info("events_denied", extra={"fields": {"namespace": event.namespace}})
                    denied = True
                else:
                    fields = {"status": error.status, "reason": error.reason}
                    log.warning("event_not_posted", extra={"fields": fields})
