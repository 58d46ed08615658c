"""A whole Shoal on loopback: one or more `shoal tracker` and N `shoal agent`, each a real process."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.parts.fetch import Fetched, fetch
from tests.parts.procs import Process, free_port, python, weigh
from tests.parts.registry import Blob

TRACKER_READY = r"tracker\.started"
"""What a tracker logs once it takes requests."""

AGENT_READY = r"mirror-listening"
"""What an agent logs once it takes requests."""

JOINED = r"tracker-up"
"""What an agent logs once a tracker knows it."""

FAVOURED = -10
"""Nice of a tracker's session: ten times the processor's time of others.

In a cluster no tracker shares its processor with sixteen agents and their clients. Here it waited for three quarters of
the time, answered after 0.7 s, and agents went upstream for what it was about to tell them: 1.2 to 2.0 copies of a
session, and 1.00 with this."""


@dataclass
class Tracker:
    """A tracker process."""

    port: int
    process: Process

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it (again), and wait until it takes requests."""
        self.process.start()
        weigh(self.process.pid, FAVOURED)
        await self.process.says(TRACKER_READY)

    async def kill(self) -> None:
        """kill -9."""
        await self.process.kill()

    async def state(self, path: str = "/api/v1/state") -> Any:
        """Its JSON."""
        async with asyncio.timeout(10), aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            answer.raise_for_status()
            return await answer.json()


@dataclass
class Agent:
    """An agent process."""

    name: str
    port: int
    metrics_port: int
    swarm_port: int
    store: Path
    process: Process

    @property
    def host(self) -> str:
        """`127.0.0.1:<port>` of the mirror."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>` of the mirror."""
        return f"http://{self.host}"

    async def start(self, *, joined: bool = True) -> None:
        """Start it (again), and wait until it takes requests and (*joined*) a tracker knows it."""
        self.process.start()
        await self.process.says(AGENT_READY)
        if joined:
            await self.process.says(JOINED)

    async def kill(self) -> None:
        """kill -9."""
        await self.process.kill()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        os.kill(self.process.pid, signal.SIGTERM)
        return await self.process.ended()

    async def blob(
        self, blob: Blob, ns: str, *, headers: Mapping[str, str] | None = None, deadline: float = 60.0
    ) -> Fetched:
        """GET the blob as containerd does, *ns* being the registry."""
        url = f"{self.url}/v2/{blob.repository}/blobs/{blob.digest}?ns={ns}"
        return await fetch(url, headers, deadline=deadline)

    async def keeps(self, blob: Blob, *, deadline: float = 10.0) -> Path:
        """Where the finished blob is, as soon as it is: a moment after the last byte went to the client."""
        path = self.store / "blobs/sha256" / blob.digest.removeprefix("sha256:")
        async with asyncio.timeout(deadline):
            while not path.exists():  # noqa: ASYNC110 - another process's disk: no event of ours
                await asyncio.sleep(0.01)
        return path

    async def manifest(self, repository: str, reference: str, ns: str, *, method: str = "GET") -> Fetched:
        """GET or HEAD a manifest."""
        return await fetch(f"{self.url}/v2/{repository}/manifests/{reference}?ns={ns}", method=method)

    async def status(self) -> Any:
        """Its /status."""
        url = f"http://127.0.0.1:{self.metrics_port}/status"
        async with asyncio.timeout(10), aiohttp.ClientSession() as session, session.get(url) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def metrics(self) -> dict[str, float]:
        """Its metrics: `name{label=value}` (labels in order) -> value."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        async with asyncio.timeout(10), aiohttp.ClientSession() as session, session.get(url) as answer:
            answer.raise_for_status()
            text = await answer.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def events(self, name: str) -> list[str]:
        """The lines of its log about the event *name*, since its last start."""
        return [line for line in self.process.output().splitlines() if re.search(rf"\b{re.escape(name)}\b", line)]


@dataclass
class Cluster:
    """The running whole. Agents that are added later join the same trackers."""

    directory: Path
    trackers: list[Tracker]
    agents: list[Agent] = field(default_factory=list)

    @property
    def tracker(self) -> Tracker:
        """The first one."""
        return self.trackers[0]

    async def add(self, *flags: str, name: str = "", env: Mapping[str, str] | None = None, ip: str = "") -> Agent:
        """One more agent, ready."""
        agent = self.prepare(*flags, name=name, env=env, ip=ip)
        await agent.start()
        return agent

    def prepare(self, *flags: str, name: str = "", env: Mapping[str, str] | None = None, ip: str = "") -> Agent:
        """One more agent, not started. *ip*: the loopback address by which trackers and agents know it."""
        name = name or f"agent-{len(self.agents)}"
        port, metrics, swarm = free_port(), free_port(), free_port()
        store = self.directory / f"{name}-store"
        shoal = python("tests.parts.elsewhere", ip) if ip else python("mirror")
        argv = [
            *shoal, "agent", f"--listen=127.0.0.1:{port}", f"--swarm-listen={ip or '127.0.0.1'}:{swarm}",
            f"--metrics-listen=127.0.0.1:{metrics}", *(f"--tracker={tracker.url}" for tracker in self.trackers),
            f"--store={store}", f"--node-name={name}", *flags,
        ]  # fmt: skip
        part = Process(argv, name=name, log=self.directory / f"{name}.log", env=env)
        agent = Agent(name, port, metrics, swarm, store, part)
        self.agents.append(agent)
        return agent

    async def pull(self, blob: Blob, ns: str, agents: Sequence[Agent] | None = None) -> list[Fetched]:
        """The same blob through all (or these) agents at the same moment."""
        return list(await asyncio.gather(*(agent.blob(blob, ns) for agent in agents or self.agents)))

    async def stop_agents(self) -> None:
        """SIGTERM to all, and their stores deleted: gigabytes that pytest would keep for three runs."""
        await asyncio.gather(*(agent.process.stop() for agent in self.agents))
        for agent in self.agents:
            await asyncio.to_thread(shutil.rmtree, agent.store, ignore_errors=True)


@asynccontextmanager
async def cluster(
    directory: Path,
    *,
    agents: int = 1,
    flags: Sequence[str] = (),
    trackers: int = 1,
    discovery: Sequence[str] = ("--discovery=static", "--member=127.0.0.0/8"),
) -> AsyncIterator[Cluster]:
    """*trackers* trackers that know of each other and *agents* agents, all ready. *flags*: for every one of these
    agents; *discovery*: for the trackers."""
    ports = [free_port() for _ in range(trackers)]
    about = list(discovery)
    if trackers > 1:
        about += [f"--peer=http://127.0.0.1:{port}" for port in ports]
    running = []
    for number, port in enumerate(ports):
        argv = python("mirror", "tracker", f"--listen=127.0.0.1:{port}", *about)
        name = f"tracker-{number}" if number else "tracker"
        running.append(Tracker(port, Process(argv, name=name, log=directory / f"{name}.log")))
    async with AsyncExitStack() as stack:
        for tracker in running:
            stack.push_async_callback(tracker.process.stop)
        await asyncio.gather(*(tracker.start() for tracker in running))
        whole = Cluster(directory, running)
        stack.push_async_callback(whole.stop_agents)
        # all at once: starting Python is most of it
        await asyncio.gather(*(whole.prepare(*flags).start() for _ in range(agents)))
        yield whole
