"""`make demo`: a registry with a generated image, a tracker, several agents; everyone pulls at the same moment.

All of it is real: docker-registry behind a gate that counts bytes, `shoal tracker`, `shoal agent`, clients that
walk their host list as containerd does. As root each node has a network namespace and a link of its own, so that the
times mean something; otherwise everything shares loopback, and the direct pull of the same run is the measure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import bound, mirrors, net, pulls, stage
from bench.images import Image
from bench.net import Host
from bench.processes import StartError

MIB = 1 << 20

_METRICS = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=5).read())"
"""Run on the node: the agent's metrics are for its own loopback."""


class Origins(NamedTuple):
    """Where an agent's bytes came from."""

    upstream: int
    peer: int


def main() -> int:
    """The whole demo; 0 if every node got the right bytes and upstream sent no more than 1.02 copies."""
    net.raise_on_signals()
    options = _options()
    console = Console()
    why = "--loopback" if options.loopback else net.can_shape()
    net_name = f"{options.rate} Mbit/s links" if why is None else f"loopback ({why})"
    work = Path(tempfile.mkdtemp(prefix=f"{net.PREFIX}-{os.getpid()}-"))
    work.chmod(0o755)
    try:
        with (
            _network(options, shape=why is None) as network,
            stage.upstream(network, work, options.agents, None) as where,
        ):
            console.print(
                f"{options.agents} nodes, {net_name}; a registry with {options.size} MiB in {options.layers} layers"
            )
            stage.push(where, options.size * MIB, options.layers)
            return _run(where, console, shaped=why is None, rate=options.rate)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (net.NetError, StartError, subprocess.CalledProcessError, RuntimeError, OSError) as problem:
        console.print(f"[red]{problem}[/]")
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(where: stage.Stage, console: Console, *, shaped: bool, rate: int) -> int:
    image, _ = where.images[0]
    with mirrors.direct(where) as nobody, _bars(console) as bars:
        before = where.upstream_counts()["bytes"]
        task = bars.add_task("every node direct", total=image.size * len(where.nodes))
        direct = _pull(
            where, nobody, image, lambda: bars.update(task, completed=where.upstream_counts()["bytes"] - before)
        )
        bars.update(task, completed=image.size * len(where.nodes))
    with mirrors.shoal()(where) as running:
        assert running.logs is not None
        stores = {host.name: running.logs / host.name for host in where.nodes}
        with _bars(console) as bars:
            tasks = {name: bars.add_task(f"shoal, {name}", total=image.size) for name in stores}
            told = _pull(where, running, image, lambda: _show(bars, tasks, stores, image.size))
            for task in tasks.values():
                bars.update(task, completed=image.size)
        origins = {host.name: _origins(where, host) for host in where.nodes}
    best = bound.cold(image.size, len(where.nodes), rate * 1e6 / 8, rate * 1e6 / 8, rate * 1e6 / 8) if shaped else None
    return _report(console, image, direct, told, origins, best)


def _pull(where: stage.Stage, running: mirrors.Running, image: Image, show: Callable[[], None]) -> pulls.Measured:
    """Everyone at once, every sha256 checked. Raises RuntimeError if a node did not get the image."""

    def tick(_seconds: float, _moved: int) -> None:
        with contextlib.suppress(OSError):
            show()

    delays = {host.name: 0.0 for host in where.nodes}
    measured = pulls.pull(where, running, image, delays, check="all", tick=tick)
    for pulled in measured.pulled:
        if pulled.error:
            raise RuntimeError(f"{pulled.node}: {pulled.error}")
    return measured


def _show(bars: Progress, tasks: dict[str, TaskID], stores: dict[str, Path], size: int) -> None:
    for name, store in stores.items():
        bars.update(tasks[name], completed=min(size, _on_disk(store)))


def _on_disk(store: Path) -> int:
    """Bytes that the store's files occupy; a finished blob has two names for a moment."""
    found = {}
    for path in store.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _origins(where: stage.Stage, host: Host) -> Origins:
    url = f"http://127.0.0.1:{where.port(stage.METRICS_PORT, host)}/metrics"
    argv = host.command([sys.executable, "-I", "-c", _METRICS, url])
    text = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
    by = {
        sample.labels.get("source"): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "shoal_swarm_received_bytes_total"
    }
    return Origins(by.get("upstream", 0), by.get("peer", 0))


def _report(
    console: Console,
    image: Image,
    direct: pulls.Measured,
    told: pulls.Measured,
    origins: dict[str, Origins],
    best: float | None,
) -> int:
    table = Table("node", "direct", "shoal", "from upstream", "from peers", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    alone = {pulled.node: pulled.seconds for pulled in direct.pulled}
    for pulled in told.pulled:
        own = origins[pulled.node]
        table.add_row(
            pulled.node,
            f"{alone[pulled.node]:.2f} s",
            f"{pulled.seconds:.2f} s",
            f"{own.upstream / MIB:.1f} MiB",
            f"{own.peer / MIB:.1f} MiB",
        )
    console.print(table)
    copies = told.upstream["bytes"] / image.size
    console.print(
        f"copies from upstream: {copies:.2f} with shoal, {direct.upstream['bytes'] / image.size:.2f} direct\n"
        f"slowest node: {told.makespan:.2f} s with shoal, {direct.makespan:.2f} s direct"
        f" ({direct.makespan / told.makespan:.1f} times as fast)"
    )
    if best is not None:
        console.print(f"best possible on these links: {best:.2f} s; shoal took {told.makespan / best:.2f} times that")
    fell_back = sum(pulled.fell_back for pulled in told.pulled)
    if fell_back or copies > 1.02:
        console.print(f"[red]{copies:.3f} copies, {fell_back} times a client went upstream by itself[/]")
        return 1
    console.print("every node has the right bytes (sha256 checked)")
    return 0


@contextlib.contextmanager
def _network(options: argparse.Namespace, *, shape: bool) -> Iterator[net.Network]:
    link = net.Link(options.rate, options.rate)
    links = dict.fromkeys(("upstream", "central", *(f"n{i}" for i in range(options.agents))), link)
    if not shape:
        yield net.loopback(list(links))
        return
    with net.shaped(links) as network:
        yield network


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<18}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn(),
        console=console,
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description="Everyone pulls one image at once.")
    parser.add_argument("--agents", type=int, default=4, help="nodes (default 4)")
    parser.add_argument("--size", type=int, default=64, help="MiB of the image (default 64)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the image (default 4)")
    parser.add_argument("--rate", type=int, default=200, help="Mbit/s of each link, as root (default 200)")
    parser.add_argument("--loopback", action="store_true", help="no namespaces, also as root")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
