"""`python -m bench`: a cluster on this machine, and Shoal beside what its users would use instead."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import mirrors, net, report, stage
from bench.phases import PHASES, Row, Run
from bench.processes import StartError

MIB = 1024 * 1024
_WIDE = 150
"""Columns of the table where the output is no terminal."""
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": MIB, "GIB": 1024 * MIB}


def main() -> int:
    """Run what the flags say; 0, or 1 if something failed."""
    net.raise_on_signals()
    options = _options()
    console = Console(stderr=True)
    why = None if options.loopback else net.can_shape()
    rows: list[Row] = []
    sweep(options.work)
    work = Path(tempfile.mkdtemp(prefix=f"{net.PREFIX}-{os.getpid()}-", dir=options.work))
    work.chmod(0o755)
    try:
        with _network(options, shape=not (options.loopback or why)) as network:
            facts = report.facts({k: str(v) for k, v in vars(options).items()}, network.notes, work)
            measured = facts["machine"]["speed"]
            console.print("this machine: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in measured.items()))
            for note in network.notes:
                console.print(f"[yellow]{note}[/]")
            if network.holder is not None:
                facts["check_mbit"] = _check(network, console)
            _measure(options, network, work, rows, console)
    except KeyboardInterrupt as stop:
        console.print(f"[yellow]stopped ({''.join(map(str, stop.args)) or 'SIGINT'}); what was measured so far:[/]")
    except (net.NetError, StartError) as error:
        console.print(f"[red]{error}[/]")
        return 1
    finally:
        if options.keep:
            console.print(f"logs and stores: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    if not rows:
        return 1
    out = Console()
    out.width = out.width if out.is_terminal else _WIDE
    out.print(report.table(rows))
    where = options.out or Path(__file__).parent / "results" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    report.save(rows, where, facts)
    console.print(f"written: {where}")
    return 1 if any(row.errors for row in rows) else 0


def sweep(directory: Path | None) -> None:
    """Remove the namespaces and stores of runs that were killed."""
    if os.geteuid() == 0:
        net.sweep()
    for path in Path(directory or tempfile.gettempdir()).glob(f"{net.PREFIX}-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _measure(options: argparse.Namespace, network: net.Network, work: Path, rows: list[Row], console: Console) -> None:
    known = dict(mirrors.BUILT_IN)
    known["shoal"] = mirrors.shoal(tuple(options.agent_flag))
    known[mirrors.KEYED] = mirrors.shoal(tuple(options.agent_flag), keys=True)
    for path in options.mirror_file:
        known |= mirrors.from_file(path)
    usual = [name for name in known if options.rate == 0 or name not in mirrors.YARDSTICKS]
    usual.remove(mirrors.KEYED)
    chosen = options.mirrors or usual
    with stage.upstream(network, work, options.nodes, options.connection) as where, _progress(console) as progress:
        for size in options.size:
            for layers in options.layers:
                progress.console.print(f"pushing {size / MIB:g} MiB in {layers}")
                stage.push(where, size, layers)
        for image, update in where.images:
            for phase in options.phases:
                for name in [n for n in chosen for _ in range(options.repeat)]:
                    task = progress.add_task(f"{image.name}: {phase}, {name}", total=None, moved="")

                    def tick(_seconds: float, moved: int, task: Any = task) -> None:
                        progress.update(task, moved=f"{moved / MIB:.0f} MiB on all links")

                    run = Run(where, name, known[name], image, update, options.check, options.reads, tick)
                    try:
                        done = PHASES[phase](run)
                    except (StartError, RuntimeError) as error:
                        progress.console.print(f"[red]{name}, {phase}: {error}[/]")
                        continue
                    finally:
                        progress.remove_task(task)
                        _discard(work, keep=options.keep)
                    rows += done
                    for row in done:
                        progress.console.print(_line(row))


def _line(row: Row) -> str:
    best = f" = {row.seconds[-1] / row.bound:.3f} x bound" if row.bound else ""
    errors = f"  [red]{row.errors[0]}[/]" if row.errors else ""
    return f"{row.image}: {row.phase}, {row.mirror}: {row.seconds[-1]:.2f} s{best}, {row.copies():.3f} copies{errors}"


def _discard(work: Path, *, keep: bool) -> None:
    """Stores of a run that is over; the registry stays."""
    if not keep:
        for path in work.iterdir():
            if path.is_dir() and not path.name.endswith("-registry"):
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _network(options: argparse.Namespace, *, shape: bool) -> Iterator[net.Network]:
    rate = options.rate or None
    node = net.Link(rate, rate, options.delay, options.loss)
    links = {"upstream": net.Link(options.upstream or rate, rate, options.delay), "central": node}
    links |= {f"n{place}": node for place in range(options.nodes)}
    if not shape:
        yield net.loopback(list(links))
        return
    with net.shaped(links, options.congestion) as network:
        yield network


def _check(network: net.Network, console: Console) -> dict[str, float]:
    """Plain TCP over the links before anything else: is the shaping what it claims to be?"""
    found = {}
    for sender, receiver in (("upstream", "n0"), ("n0", "central")):
        rate = net.check(network, sender, receiver)
        found[f"{sender}->{receiver}"] = rate
        nominal = min(network.hosts[sender].link.up or 0, network.hosts[receiver].link.down or 0)
        if not nominal:
            console.print(f"plain TCP {sender} -> {receiver}: {rate:.1f} Mbit/s, no limit")
            continue
        console.print(f"plain TCP {sender} -> {receiver}: {rate:.1f} of {nominal:g} Mbit/s ({rate / nominal:.3f})")
    return found


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[moved]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _size(text: str) -> int:
    """`128MiB`, `1GB`."""
    for unit, factor in _UNITS.items():
        if text.upper().endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    raise argparse.ArgumentTypeError(f"a size is a number with one of {', '.join(_UNITS)}: {text}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--nodes", type=int, default=8)
    add("--size", type=_size, nargs="+", default=[128 * MIB], help="of the images: 10MB 100MB 1GB")
    add("--layers", type=int, nargs="+", default=[1])
    add("--rate", type=float, default=200.0, help="Mbit/s of every node's link, each way; 0: no limit")
    add("--upstream", type=float, help="Mbit/s of upstream's link (default: as --rate)")
    add("--connection", type=float, help="Mbit/s that upstream gives to one connection")
    add("--delay", type=float, default=0.0, help="one-way ms (needs netem)")
    add("--loss", type=float, default=0.0, help="share of packets that nodes lose")
    add("--congestion", default="cubic")
    add("--phases", nargs="+", choices=list(PHASES), default=["alone", "cold", "warm"])
    add(
        "--mirrors",
        nargs="+",
        help=f"of {', '.join(mirrors.BUILT_IN)}, {mirrors.KEYED}, --mirror-file (default: the usual)",
    )
    add("--mirror-file", type=Path, action="append", default=[], help="TOML with more mirrors, see bench/README.md")
    add("--agent-flag", action="append", default=[], help="passed to `shoal agent`, e.g. --agent-flag=--claims=2")
    add("--repeat", type=int, default=1)
    add("--reads", type=int, default=200, help="ranges per node in the streaming phase")
    add("--check", choices=["all", "one", "none"], default="one", help="clients that verify the sha256")
    add("--loopback", action="store_true", help="no namespaces, nothing shaped")
    add("--work", type=Path, help="directory for stores (default: the system's temporary one)")
    add("--keep", action="store_true", help="keep stores and logs")
    add("--out", type=Path, help="directory for results (default: bench/results/<time>)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
