"""Who waits for whom: the way of every window through a swarm, from the agents' debug logs and the link counters.

    python -m bench --keep --agent-flag=--log-level=debug --mirrors shoal --phases cold --out DIR
    python -m bench.timeline DIR

For every window: when it was claimed, published, known elsewhere, and there (first, median and last
node). For every tenth of the run: how busy upstream's link and the nodes' links were.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

SLICES = 10
_LINE = re.compile(r"(\S+Z)\s+debug\s+shoal\.swarm\s+(window-\w+)\s+digest=(\S+) window=(\d+)(?: (.*))?")


@dataclass
class Way:
    """One window of one blob. Seconds since the common instant."""

    claimed: list[tuple[float, str]] = field(default_factory=list)
    published: list[tuple[float, str]] = field(default_factory=list)
    known: list[tuple[float, str]] = field(default_factory=list)
    here: dict[str, float] = field(default_factory=dict)
    """Node -> when it had the whole window."""
    upstream: set[str] = field(default_factory=set)
    """Nodes whose last piece of it came from upstream."""


def ways(directory: Path, at: float) -> dict[tuple[str, int], Way]:
    """(digest, window) -> its way, from the *.log files in *directory*; *at*: the instant, epoch seconds."""
    found: dict[tuple[str, int], Way] = defaultdict(Way)
    for path in sorted(directory.glob("*.log")):
        node = path.stem
        for line in path.read_text(errors="replace").splitlines():
            if (match := _LINE.match(line)) is None:
                continue
            when = datetime.fromisoformat(match[1]).timestamp() - at
            if when < -0.1:
                continue  # of an earlier pull
            way = found[match[3], int(match[4])]
            event = match[2]
            if event == "window-here":
                way.here[node] = when
                if "origin=upstream" in (match[5] or ""):
                    way.upstream.add(node)
            elif event in {"window-claimed", "window-published", "window-known"}:
                getattr(way, event.removeprefix("window-")).append((when, node))
    return dict(found)


def show(row: dict[str, Any], rate: float) -> Iterable[Table | str]:
    """What there is to say about a row of results.json; *rate*: Mbit/s of a node's link."""
    yield f"{row['image']}: {row['phase']}: {row['max_seconds']:.2f} s, bound {row['bound_seconds'] or 0:.2f} s"
    if row["links"] and row["links"][0][1]:
        yield _use(row, rate)
    if row["logs"] and Path(row["logs"]).is_dir():
        found = ways(Path(row["logs"]), row["at"])
        largest = max((digest for digest, _ in found), key=lambda d: sum(1 for e, _ in found if e == d), default=None)
        if largest is not None:
            mine = {window: way for (digest, window), way in sorted(found.items()) if digest == largest}
            yield _table(mine)
            yield _sums(mine)


def _use(row: dict[str, Any], rate: float) -> Table:
    table = Table(title="link use, % of a node's rate (upstream: of the same)", title_justify="left")
    for heading in ("seconds", "upstream sends", "nodes send: mean", "min", "max", "nodes receive: mean", "min", "max"):
        table.add_column(heading, justify="right")
    links, end = row["links"], row["max_seconds"]
    nodes = [client["node"] for client in row["clients"]]
    senders = [host for host in links[0][1] if host.startswith("n")]
    for place in range(SLICES):
        low, high = end * place / SLICES, end * (place + 1) / SLICES
        first = min(links, key=lambda look: abs(look[0] - low))
        last = min(links, key=lambda look: abs(look[0] - high))
        seconds = max(1e-6, last[0] - first[0])

        def share(host: str, way: int, first: Any = first, last: Any = last, seconds: float = seconds) -> float:
            return float((last[1][host][way] - first[1][host][way]) * 8e-6 / seconds / rate * 100)

        sent = [share(host, 0) for host in senders]
        got = [share(host, 1) for host in nodes]
        figures = [share("upstream", 0), sum(sent) / len(sent), min(sent), max(sent)]
        figures += [sum(got) / len(got), min(got), max(got)]
        table.add_row(f"{low:.2f}-{high:.2f}", *(f"{figure:.0f}" for figure in figures))
    return table


def _table(mine: dict[int, Way]) -> Table:
    table = Table(title="windows, seconds since the start", title_justify="left")
    for heading in (
        "window",
        "claimed",
        "by",
        "brought",
        "published",
        "known: median",
        "2nd node has it",
        "half",
        "last",
        "by",
        "copies",
    ):
        table.add_column(heading, justify="right")
    for window, way in mine.items():
        there = sorted((when, node) for node, when in way.here.items())
        claim = min(way.claimed, default=(float("nan"), "-"))
        brought = [when for node, when in way.here.items() if node in way.upstream]
        others = there[1:] or there
        table.add_row(
            str(window), _s(claim[0]), claim[1], _s(min(brought, default=None)),
            _s(min((when for when, _ in way.published), default=None)),
            _s(median(when for when, _ in way.known) if way.known else None),
            _s(others[0][0] if others else None), _s(there[len(there) // 2][0] if there else None),
            _s(there[-1][0] if there else None), there[-1][1] if there else "-", str(len(way.upstream)),
        )  # fmt: skip
    return table


def _sums(mine: dict[int, Way]) -> str:
    bring, publish, learn, spread, rest = [], [], [], [], []
    for way in mine.values():
        brought = min((when for node, when in way.here.items() if node in way.upstream), default=None)
        if brought is None or not way.claimed or not way.published:
            continue
        told = min(way.published)[0]
        bring.append(brought - max(when for when, _ in way.claimed if when <= brought))
        publish.append(told - brought)
        learn += [when - told for when, _ in way.known if when >= told]
        peers = sorted(when - told for node, when in way.here.items() if node not in way.upstream)
        if peers:
            spread.append(peers[0])
            rest.append(peers[-1])
    lines = []
    for name, values in (
        ("claimed -> brought", bring), ("brought -> published", publish), ("published -> known by a peer", learn),
        ("published -> first peer has it", spread), ("published -> last peer has it", rest),
    ):  # fmt: skip
        if values:
            values.sort()
            at = int(len(values) * 0.9)
            lines.append(f"{name:32} median {median(values):7.3f} s   p90 {values[at]:7.3f}   max {values[-1]:7.3f}")
    last = max((when for way in mine.values() for node, when in way.here.items() if node in way.upstream), default=0.0)
    end = max((when for way in mine.values() for when in way.here.values()), default=0.0)
    lines.append(
        f"last byte from upstream at {last:.2f} s, last window anywhere at {end:.2f} s: tail {end - last:.2f} s"
    )
    return "\n".join(lines)


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def main() -> None:
    """See the module."""
    told = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    console = Console()
    console.width = 150
    for row in told["rows"]:
        if row["mirror"].startswith("shoal"):
            for part in show(row, float(told["facts"]["settings"]["rate"])):
                console.print(part)


if __name__ == "__main__":
    main()
