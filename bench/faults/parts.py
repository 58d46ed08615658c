"""The processes of a cluster under faults: trackers and agents, each on a host of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.faults.client import Answer, ask
from bench.faults.hosts import inside
from bench.net import Host
from bench.processes import Process, StartError

MIRROR, SITE, SWARM, TRACKER = 30000, 5004, 6881, 6969
SHOAL = [sys.executable, "-m", "mirror"]

_LAUNCHER = ThreadPoolExecutor(1)
"""Starts every process: the kernel ends a process tied to its parent when the thread that started it ends."""


class Use(NamedTuple):
    """What a process has: open descriptors, threads, MiB of memory."""

    descriptors: int
    threads: int
    memory: int


class Part:
    """A process that can be ended, frozen and started again."""

    def __init__(self, host: Host, argv: Sequence[str], log: Path, env: dict[str, str], prefix: Sequence[str]) -> None:
        self.host, self.log = host, log
        variables = [f"{name}={value}" for name, value in env.items()]
        self._argv = [*prefix, *(["env", *variables] if variables else []), *argv]
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.popen.poll() is None

    def start(self) -> None:
        """Start it, unless it runs."""
        if not self.alive:
            self._process = _LAUNCHER.submit(Process, self.host, self._argv, self.log).result()

    def ready(self) -> None:
        """Until it does its work. Raises StartError."""
        raise NotImplementedError

    def send(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.alive:
            os.kill(self.pid, number)

    def kill(self, number: int = signal.SIGKILL, seconds: float = 15.0) -> int | None:
        """End it; its exit code, None if it goes on."""
        assert self._process is not None
        self.send(number)
        with contextlib.suppress(Exception):
            return self._process.popen.wait(seconds)
        return None

    def end(self) -> None:
        """End it for good, whatever state it is in."""
        if self._process is not None:
            self.send(signal.SIGCONT)
            self.kill(signal.SIGKILL)

    def use(self) -> Use:
        """What it has now."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return Use(process.num_fds(), process.num_threads(), process.memory_info().rss // (1 << 20))
        return Use(0, 0, 0)

    def lines(self, pattern: str) -> list[str]:
        """The lines of its log that match."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if re.search(pattern, line)]

    def ask(self, port: int, path: str, *, ip: str = "127.0.0.1", **how: Any) -> Answer:
        """GET from one of its ports, on its own host."""
        return inside(self.host, lambda: ask(port, path, ip=ip, **how))

    def wait(self, test: Callable[[], bool], seconds: float, what: str) -> None:
        """Until *test*. Raises StartError."""
        end = time.monotonic() + seconds
        while not test():
            if time.monotonic() > end:
                raise StartError(f"{self.log.stem}: waited {seconds:.0f} s in vain for {what}")
            time.sleep(0.05)


class Tracker(Part):
    """A tracker on its host."""

    def __init__(self, host: Host, work: Path, env: dict[str, str] | None = None) -> None:
        self.url = f"http://{host.ip}:{TRACKER}"
        argv = [*SHOAL, "tracker", f"--listen={host.ip}:{TRACKER}", "--discovery=static", "--member=0.0.0.0/0"]
        super().__init__(host, argv, work / f"{host.name}.log", env or {}, ())

    def ready(self) -> None:
        """Until it answers. Raises StartError."""
        self.wait(lambda: self.ask(TRACKER, "/healthz", ip=self.host.ip, seconds=2).status == 200, 60, "an answer")


class Agent(Part):
    """An agent on its host, and what its node's clients ask of it."""

    def __init__(
        self,
        host: Host,
        work: Path,
        trackers: Sequence[str],
        upstream: str,
        *flags: str,
        store: Path | None = None,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.store = store or work / f"{host.name}-store"
        self.upstream = upstream
        argv = [
            *SHOAL, "agent", f"--listen=127.0.0.1:{MIRROR}", f"--swarm-listen={host.ip}:{SWARM}",
            f"--metrics-listen=127.0.0.1:{SITE}", f"--store={self.store}", f"--node-name={host.name}",
            f"--plain-http={upstream}", f"--blob-host={upstream}", *(f"--tracker={url}" for url in trackers), *flags,
        ]  # fmt: skip
        super().__init__(host, argv, work / f"{host.name}.log", env or {}, prefix)
        self._trackers = bool(trackers)

    def ready(self, *, joined: bool = True) -> None:
        """Until it serves and (*joined*) a tracker takes it. Raises StartError."""
        self.wait(lambda: self.ask(MIRROR, "/v2/", seconds=2).status == 200, 60, "the mirror")
        if joined and self._trackers:
            self.wait(lambda: any(self.status().get("trackers", {}).values()), 60, "a tracker")

    def status(self) -> dict[str, Any]:
        """Its /status; empty if it does not answer."""
        answer = self.ask(SITE, "/status", seconds=5, keep=1 << 20)
        return json.loads(answer.body) if answer.complete else {}

    def pull(self, digest: str, seconds: float = 60.0, **how: Any) -> Answer:
        """GET the blob as containerd does."""
        return self.ask(MIRROR, f"/v2/team/app/blobs/{digest}?ns={self.upstream}", seconds=seconds, **how)

    def manifest(self, reference: str, seconds: float = 60.0) -> Answer:
        """GET a manifest."""
        return self.ask(MIRROR, f"/v2/team/app/manifests/{reference}?ns={self.upstream}", seconds=seconds)

    def insist(self, digest: str, seconds: float = 60.0) -> tuple[Answer, float, list[Answer]]:
        """Ask until the whole right blob came or the time is over: the last answer, seconds, all answers."""
        began, all_of_them = time.monotonic(), []
        while True:
            left = seconds - (time.monotonic() - began)
            all_of_them.append(self.pull(digest, max(1.0, left)))
            took = time.monotonic() - began
            if all_of_them[-1].right(digest) or took >= seconds:
                return all_of_them[-1], took, all_of_them
            time.sleep(0.3)

    def path(self, digest: str) -> Path:
        """Where the finished blob is."""
        return self.store / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def keep(self, digest: str, seconds: float = 10.0) -> None:
        """Until the finished blob is there. Raises StartError."""
        self.wait(self.path(digest).exists, seconds, "the finished blob")

    def strays(self) -> int:
        """Files in its store that are neither finished blobs nor their metas nor a blob on its way in."""
        found = 0
        for path in self.store.rglob("*"):
            with contextlib.suppress(OSError):
                found += path.is_file() and (path.name.endswith(".new") or path.parent.name == "trash")
        return found
