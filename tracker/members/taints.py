"""Lift the startup taint from nodes whose agent is a member: until then no pod pulls past the mirror there.

A node joins with `shoal.io/agent-not-ready:NoSchedule` (kubelet's --register-with-taints, or a node pool's). The
tracker takes it off once, when the agent on that node joins. Off by default; it needs the right to patch nodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from swarm.base.seldom import Seldom
from tracker.errors import ApiError
from tracker.members.backoff import USUAL, Backoff

log = logging.getLogger("shoal.tracker")

MOST = 20_000
"""Nodes that wait at once: more than a cluster has (kubernetes.io/docs/setup/best-practices/cluster-large)."""


class Taints:
    """Nodes whose taint is to go, one after another: each is one small write, and a second one changes nothing."""

    def __init__(self, backoff: Backoff = USUAL) -> None:
        self._backoff = backoff
        self._waiting: dict[str, None] = {}
        self._news = asyncio.Event()
        self._seldom = Seldom()

    def note(self, node: str) -> None:
        """The agent on *node* is a member."""
        if node and len(self._waiting) < MOST:
            self._waiting[node] = None
            self._news.set()

    async def run(self, lift: Callable[[str], Awaitable[None]]) -> None:
        """Patch what was noted, until cancelled. *lift* raises ApiError; a node that is gone needs nothing."""
        failures = 0
        while True:
            while not self._waiting:
                self._news.clear()
                await self._news.wait()
            node = next(iter(self._waiting))
            del self._waiting[node]
            try:
                await lift(node)
                failures = 0
            except ApiError as error:
                if error.status == 404:
                    continue
                self._waiting[node] = None  # to the end: the others do not wait for one that fails
                failures += 1
                now = asyncio.get_running_loop().time()
                if (before := self._seldom.due(error.status, now)) is not None:
                    fields = {"node": node, "status": error.status, "reason": error.reason, "held_back": before}
                    log.warning("taint_not_lifted", extra={"fields": fields})
                await asyncio.sleep(self._backoff.delay(failures, 0.5, error.retry_after))
