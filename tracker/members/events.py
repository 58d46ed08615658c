"""Kubernetes Events on an agent's pod: what an operator wants to read in `kubectl describe pod`.

Rare by construction: a pod gets the same reason at most once in ten minutes, and a full queue
drops rather than waits. Every tracker sees what happens, and all give the event of a pod, a reason and
ten minutes the same name: the API server keeps the first. Without the permission to create events there are none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tracker.errors import ApiError
from tracker.members.discovery import Reason
from tracker.members.podset import Member

log = logging.getLogger("shoal.tracker")

COMPONENT = "shoal-tracker"

PAUSE = 600.0
"""Seconds between two events of one reason on one pod. The API server keeps events for an hour."""

REMEMBERED = 20_000
"""(pod, reason) pairs remembered: four reasons for 5,000 agents."""

QUEUE = 256
"""Events that wait at most. A roll-out of 5,000 agents must not become 5,000 writes in a row."""

TRIES = (0.0, 1.0, 5.0, 25.0)
"""Seconds before each try to post one event. What fails then may be said again when it happens again."""

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

    def forget(self, uid: str, reason: Reason) -> None:
        """The event was not posted after all: the next one may be."""
        self._last.pop((uid, reason), None)


class Events:
    """Takes events without waiting, posts them one after another."""

    def __init__(self, limiter: Limiter | None = None, pauses: Sequence[float] = TRIES) -> None:
        """*pauses*: seconds before each try."""
        self._limiter = limiter or Limiter()
        self._host = socket.gethostname()
        self._queue: asyncio.Queue[PodEvent] = asyncio.Queue(QUEUE)
        self._pauses = pauses
        self.dropped = 0
        """Events that were not posted: the queue was full, or the API server refused."""

    def note(self, pod: Member | None, reason: Reason, message: str, now: float) -> None:
        """Something happened to *pod* (None: it is none of ours). *now*: monotonic seconds."""
        if pod is None or not self._limiter.allow(pod.uid, reason, now):
            return
        at = datetime.now(UTC)
        event = PodEvent(
            pod.namespace, pod.name, pod.uid, reason, message, name_of(pod, reason, at.timestamp()), at, self._host
        )
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1
            self._limiter.forget(pod.uid, reason)

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
            error = await self._post(event, post)
            if error is None:
                denied = False
                continue
            self.dropped += 1
            self._limiter.forget(event.uid, event.reason)
            if error.status == 403:
                denied_until = asyncio.get_running_loop().time() + DENIED_PAUSE
                if not denied:
                    log.info("events_denied", extra={"fields": {"namespace": event.namespace}})
                denied = True
            else:
                fields = {"status": error.status, "reason": error.reason}
                log.warning("event_not_posted", extra={"fields": fields})

    async def _post(self, event: PodEvent, post: Callable[[PodEvent], Awaitable[None]]) -> ApiError | None:
        """Post *event*, again and again where that may help. Returns what it failed of at last."""
        failed: ApiError | None = None
        for pause in self._pauses:
            await asyncio.sleep(pause)
            try:
                await post(event)
                return None
            except ApiError as error:
                if error.status == 409:
                    return None  # another tracker has said it
                failed = error
                if error.status and error.status < 500 and error.status != 429:
                    break
        return failed


def name_of(pod: Member, reason: Reason, at: float) -> str:
    """The name of the event object: the same from every tracker within the ten minutes around *at* (s since 1970)."""
    words = f"{pod.uid}\n{reason}\n{int(at // PAUSE)}"
    # The pod's name first, as kubectl's own events have it; the rest makes it unique.
    return f"{pod.name[:200]}.{hashlib.sha256(words.encode()).hexdigest()[:16]}"
