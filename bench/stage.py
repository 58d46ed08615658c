"""What every run stands on: the network, a real docker-registry as upstream, its gate, the images."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.images import Image
from bench.net import Host, Network
from bench.processes import Process, running, wait_listening

REGISTRY_PORT = 5000
UPSTREAM_PORT = 8080
MIRROR_PORT = 30000
SWARM_PORT = 6881
METRICS_PORT = 5004
CENTRAL_PORT = 8081
TRACKER_PORT = 6969

_REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
{more}
"""


@dataclass
class Stage:
    """Where mirrors are set up and clients pull. Directories below *work* are removed by the caller."""

    network: Network
    work: Path
    nodes: list[Host]
    upstream: Host
    central: Host
    """Where a cache that is not on the nodes runs, and Shoal's tracker: with a link like a node's."""
    upstream_address: tuple[str, int]
    gate: Path
    files: Path
    """Where upstream's registry keeps its files."""
    images: list[tuple[Image, Image | None]] = field(default_factory=list)
    """Each with its update."""
    serials: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def upstream_url(self) -> str:
        """The gate, as clients and mirrors name upstream."""
        return f"http://{self.upstream_address[0]}:{self.upstream_address[1]}"

    def port(self, base: int, host: Host) -> int:
        """The port for *host*: *base* in a namespace of its own, else one for each host."""
        return base if host.namespace else base + 100 + list(self.network.hosts).index(host.name)

    def fresh(self, name: str) -> Path:
        """A new empty directory."""
        path = self.work / f"{next(self.serials):03d}-{name}"
        path.mkdir(parents=True)
        return path

    def upstream_counts(self) -> dict[str, int]:
        """What the gate has counted since it started."""
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(self.gate))
            told = b""
            while part := asker.recv(4096):
                told += part
        counts: dict[str, int] = json.loads(told)
        return counts


def registry_config(root: Path, address: str, more: str = "") -> Path:
    """Write the configuration of a docker-registry that keeps its files below *root*."""
    path = root / "registry.yml"
    path.write_text(_REGISTRY.format(root=root / "files", address=address, more=more))
    return path


@contextlib.contextmanager
def upstream(network: Network, work: Path, nodes: int, connection: float | None) -> Iterator[Stage]:
    """The stage on *network*; *connection*: Mbit/s that upstream gives to one connection at most."""
    host = network.hosts["upstream"]
    central = network.hosts["central"]
    stage = Stage(
        network, work, [network.hosts[f"n{i}"] for i in range(nodes)], host, central, ("", 0), work / "gate", work
    )
    registry_port, gate_port = stage.port(REGISTRY_PORT, host), stage.port(UPSTREAM_PORT, host)
    stage.upstream_address = (host.ip, gate_port)
    root = stage.fresh("registry")
    stage.files = root / "files"
    gate = Path(__file__).with_name("gate.py")
    rate = [] if connection is None else [str(int(connection * 1e6 / 8))]
    with running([]) as processes:
        config = registry_config(root, f"127.0.0.1:{registry_port}")
        processes.append(Process(host, ["docker-registry", "serve", str(config)], root / "registry.log"))
        argv = [sys.executable, "-I", "-S", str(gate), host.ip, str(gate_port), "127.0.0.1", str(registry_port)]
        processes.append(Process(host, [*argv, str(stage.gate), *rate], root / "gate.log"))
        wait_listening([(processes[0], "127.0.0.1", registry_port), (processes[1], host.ip, gate_port)])
        yield stage


def push(stage: Stage, size: int, layers: int) -> None:
    """Add an image of *size* bytes (and its update) to the stage. Raises CalledProcessError."""
    repository = f"bench/i{len(stage.images)}"
    argv = [sys.executable, "-m", "bench.images", "127.0.0.1", str(stage.port(REGISTRY_PORT, stage.upstream)),
            repository, str(size), str(layers)]  # fmt: skip
    done = subprocess.run(
        stage.upstream.command(argv), check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    first, update = (
        told and Image(repository, told["tag"], tuple((digest, size) for digest, size in told["layers"]))
        for told in json.loads(done.stdout)
    )
    stage.images.append((first, update))
