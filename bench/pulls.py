"""Clients on several nodes at one instant, and everything that is measured meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from bench.images import Image
from bench.mirrors import Running
from bench.net import Host
from bench.processes import CLIENT, busy
from bench.stage import Stage

_LEAD = 0.3
"""Seconds between the last client's `ready` and the common instant."""
_TICK = 0.1
"""Seconds between two looks at the link counters."""
_IDLE = 120.0
"""Seconds without a byte after which a client gives a host up."""
NEW = " (new)"
"""Behind the name of a node that came in the place of one that was lost."""


@dataclass(frozen=True)
class Pulled:
    """What one client did. Seconds count from its own start."""

    node: str
    delay: float
    """Seconds after the common instant at which it started."""
    seconds: float
    first_byte: float | None
    bytes: int
    samples: list[tuple[float, int]]
    """Completion curve: (seconds, bytes so far)."""
    fell_back: int
    """Times that the mirror did not have it and the client went upstream."""
    resumed: int
    times: list[float]
    """Of each read, for range readers."""
    cpu: float
    error: str


@dataclass
class Measured:
    """What clients and the rest of the machine did between the common instant and the last end."""

    pulled: list[Pulled]
    upstream: dict[str, int]
    """Counts at the gate."""
    sent: dict[str, int]
    received: dict[str, int]
    """Host -> bytes over its link, headers included; empty on loopback."""
    links: list[tuple[float, dict[str, tuple[int, int]]]]
    """(seconds, host -> (bytes sent, received) so far)."""
    at: float
    """The common instant, seconds since the epoch."""
    mirror_cpu: float
    """CPU-seconds of the mirror's processes; of clients that keep what they get, too."""
    machine_cpu: float
    """CPU-seconds of the whole machine, clients and packet work included, and whatever else ran."""
    threads: dict[str, list[float]] = field(default_factory=dict)
    """Process -> CPU-seconds of its main thread, then of its other threads, busiest first."""
    peak: dict[str, int] = field(default_factory=dict)
    """Process -> bytes of its highest resident set since it started."""

    @property
    def makespan(self) -> float:
        """Seconds from the common instant to the last client's end."""
        return max(p.delay + p.seconds for p in self.pulled)


def pull(
    stage: Stage,
    mirror: Running,
    image: Image,
    delays: Mapping[str, float],
    *,
    skip: tuple[str, ...] = (),
    check: str = "one",
    lost: Mapping[str, float] | None = None,
    tick: Callable[[float, int], None] = lambda _s, _b: None,
) -> Measured:
    """Pull *image* on the nodes of *delays* (node -> seconds after the common instant).

    *skip*: layers that the nodes have. *check*: "all", "one" or "none" of the clients verify the
    sha256. *lost*: nodes that vanish so many seconds after the common instant, client and all; another comes in the
    place of each, and its client begins as soon as there is somebody to ask. *tick* is told (seconds, bytes over all
    links) while it runs.
    """
    orders = {}
    gone = [(at, node) for node, at in sorted((lost or {}).items(), key=lambda one: one[1])]
    for place, (node, delay) in enumerate(delays.items()):
        host = stage.network.hosts[node]
        orders[node] = _common(stage, mirror, host) | {
            "kind": "pull", "repository": image.repository, "tag": image.tag, "parallel": 3, "skip": skip,
            "delay": delay, "keep": "",
            "check": check == "all" or (check == "one" and place == len(delays) - 1) or mirror.kept,
        }  # fmt: skip
        if mirror.kept:
            orders[node]["keep"] = str(stage.fresh(f"kept-{node}"))
    for _, node in gone:
        orders[node]["hosts"] = orders[node]["hosts"][:1]  # who vanishes does not go on elsewhere
        orders[f"{node}{NEW}"] = orders[node] | {"delay": 0.0}
    return _run(stage, mirror, orders, tick, gone)


def read(
    stage: Stage, mirror: Running, image: Image, nodes: list[Host], *, count: int, length: int, parallel: int
) -> Measured:
    """*count* random ranges of *length* bytes of the image's first layer on every node, the same on all."""
    digest, size = image.layers[0]
    path = mirror.range_path.format(repository=image.repository, digest=digest)
    orders = {
        host.name: _common(stage, mirror, host) | {
            "kind": "read", "path": path, "size": size, "length": length, "count": count, "parallel": parallel,
            "seed": 7, "delay": 0.0,
        }
        for host in nodes
    }  # fmt: skip
    return _run(stage, mirror, orders, lambda _s, _b: None)


def _common(stage: Stage, mirror: Running, host: Host) -> dict[str, Any]:
    base = mirror.base(host)
    hosts = [base] if base == stage.upstream_url else [base, stage.upstream_url]
    return {
        "hosts": hosts,
        "ns": stage.upstream_url.removeprefix("http://") if mirror.namespaced else "",
        "timeout": _IDLE,
    }


def _run(
    stage: Stage,
    mirror: Running,
    orders: dict[str, dict[str, Any]],
    tick: Callable[[float, int], None],
    gone: Sequence[tuple[float, str]] = (),
) -> Measured:
    """*gone*: (seconds, node) of those that are replaced, in order."""
    clients = {
        node: subprocess.Popen(
            stage.network.hosts[node.removesuffix(NEW)].command(CLIENT),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        for node in orders
    }  # fmt: skip
    try:
        for node, client in clients.items():
            assert client.stdin is not None
            client.stdin.write(json.dumps(orders[node]) + "\n")
        for client in clients.values():
            assert client.stdout is not None
            client.stdout.readline()
        at = time.monotonic() + _LEAD
        for node, client in clients.items():
            if not node.endswith(NEW):
                _begin(client, at)
        time.sleep(max(0.0, at - time.monotonic()))

        def replace(after: float, node: str) -> None:
            time.sleep(max(0.0, at + after - time.monotonic()))
            try:
                assert mirror.replace is not None
                mirror.replace(stage.network.hosts[node])
            finally:
                _begin(clients[node + NEW], time.monotonic())

        with _Watch(stage, mirror, at, tick) as watch, ThreadPoolExecutor(max(1, len(gone))) as pool:
            for after, node in gone:
                pool.submit(replace, after, node)
            pulled = []
            for node, client in clients.items():
                assert client.stdout is not None
                told = json.loads(client.stdout.readline() or '{"error": "the client died"}')
                pulled.append(_pulled(node, orders[node]["delay"], told))
        return watch.measured(pulled)
    finally:
        for client in clients.values():
            client.kill()
            client.wait()
            for end in (client.stdin, client.stdout):
                if end is not None:
                    end.close()


def _begin(client: subprocess.Popen[str], at: float) -> None:
    """Have *client* start at the instant *at*."""
    assert client.stdin is not None
    client.stdin.write(f"{at}\n")
    client.stdin.close()


def _pulled(node: str, delay: float, told: dict[str, Any]) -> Pulled:
    blank = asdict(Pulled(node, delay, 0.0, None, 0, [], 0, 0, [], 0.0, ""))
    blank["samples"] = [(0.0, 0)]
    filled = blank | told
    filled["samples"] = [(seconds, count) for seconds, count in filled["samples"]]
    return Pulled(**filled)


class _Watch:
    """Reads the counters before, during and after."""

    def __init__(self, stage: Stage, mirror: Running, at: float, tick: Callable[[float, int], None]) -> None:
        self._stage, self._mirror, self._at, self._tick = stage, mirror, at, tick
        self._upstream = stage.upstream_counts()
        self._cpu = sum(process.cpu() for process in mirror.processes)
        self._threads = [process.threads() for process in mirror.processes]
        self._busy = busy()
        self._links = [(0.0, stage.network.counters())]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(_TICK):
            counters = self._stage.network.counters()
            seconds = time.monotonic() - self._at
            self._links.append((round(seconds, 4), counters))
            self._tick(seconds, sum(received for _, received in counters.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def measured(self, pulled: list[Pulled]) -> Measured:
        """What changed since the instant."""
        last = self._stage.network.counters()
        self._links.append((round(time.monotonic() - self._at, 4), last))
        first = self._links[0][1]
        after = self._stage.upstream_counts()
        kept = sum(p.cpu for p in pulled) if self._mirror.kept else 0.0  # they do a mirror's work
        return Measured(
            pulled,
            {name: after[name] - (self._upstream[name] if name != "most_open" else 0) for name in after},
            {host: last[host][0] - first[host][0] for host in last},
            {host: last[host][1] - first[host][1] for host in last},
            self._links,
            time.time() - (time.monotonic() - self._at),
            sum(process.cpu() for process in self._mirror.processes) - self._cpu + kept,
            busy() - self._busy,
            {
                process.log.stem: _main_first(process.popen.pid, process.threads(), before)
                for process, before in zip(self._mirror.processes, self._threads, strict=True)
            },
            {f"{process.log.stem}": process.peak() for process in self._mirror.processes},
        )


def _main_first(pid: int, after: dict[int, float], before: dict[int, float]) -> list[float]:
    used = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
    main = used.pop(pid, 0.0)
    return [round(seconds, 3) for seconds in (main, *sorted(used.values(), reverse=True))]
