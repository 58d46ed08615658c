"""Agents of a large cluster in one process: each says what a real one would say, in its pod's name.

The pods are kwok's and run nothing. Their agents follow the API themselves: one comes when its pod runs, and is gone
with it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from bench import crowd
from swarm.protocol import wire
from tracker.members.pods import KubernetesDiscovery

AT_ONCE = 100
"""Agents that come in the same moment: a tracker bounds what one address may have open before its first request."""

AGAIN = 0.2
"""Seconds until one that was refused asks again. Real agents take longer."""


class Crowd:
    """The agents of every running pod. `run` it; `joined` is how many are members."""

    def __init__(self, kubeconfig: Path, selector: str, tracker: tuple[str, int]) -> None:
        self._discovery = KubernetesDiscovery("shoal", selector, zones=False, kubeconfig=kubeconfig)
        self._tracker = tracker
        self._agents: dict[str, asyncio.Task[None]] = {}
        """By UID of the pod."""
        self._members: set[str] = set()
        self._door = asyncio.Semaphore(AT_ONCE)
        self._happened = asyncio.Event()
        self.refused = 0
        """Times that somebody was told no."""
        self.last_ran = 0.0
        """When the last pod was seen running, seconds of time.monotonic()."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._discovery.run(self._follow)
        finally:
            for task in self._agents.values():
                task.cancel()
            await asyncio.gather(*self._agents.values(), return_exceptions=True)

    async def until(self, count: int) -> float:
        """When exactly *count* pods ran, and all their agents were members: seconds of time.monotonic()."""
        while not len(self._agents) == len(self._members) == count:
            self._happened.clear()
            await self._happened.wait()
        return time.monotonic()

    def pods(self) -> set[str]:
        """UIDs of the pods that run."""
        return set(self._agents)

    def _follow(self) -> None:
        now = {found.uid: ip for ip in self._discovery.ips() if (found := self._discovery.member(ip)) is not None}
        for uid in self._agents.keys() - now.keys():
            self._agents.pop(uid).cancel()
            self._members.discard(uid)
        for uid in now.keys() - self._agents.keys():
            self.last_ran = time.monotonic()
            self._agents[uid] = asyncio.create_task(self._agent(uid, now[uid]))
        self._happened.set()

    async def _agent(self, uid: str, ip: str) -> None:
        """One agent's life."""
        said = {"node": uid, "port": 6881, "session": uid}
        first = _request(ip, uid, wire.AgentPoll(**said, full=True))  # type: ignore[arg-type]
        while True:
            line = None
            try:
                async with self._door:
                    line = await crowd.line(*self._tracker)
                    answer = await line.ask(first)
                self._members.add(uid)
                self._happened.set()
                while True:
                    wait = max(wire.MAX_WAIT, wire.decode(answer, wire.AgentAnswer).hold)
                    answer = await line.ask(_request(ip, uid, wire.AgentPoll(**said, wait=wait)))  # type: ignore[arg-type]
            except (ConnectionError, OSError):
                self.refused += 1
                self._members.discard(uid)
            finally:
                if line is not None:
                    line.close()
            await asyncio.sleep(AGAIN)


def _request(ip: str, uid: str, message: wire.AgentPoll) -> bytes:
    body = wire.encode(message)
    head = (
        "POST /v1/agent HTTP/1.1\r\nHost: tracker\r\nContent-Type: application/json\r\n"
        f"X-Shoal-Address: {ip}\r\nX-Shoal-Pod: {uid}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel *task*, and wait."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
