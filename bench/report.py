"""Rows as a table in the terminal, as JSON, and as plots (PNG and SVG)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil
from rich.table import Table

from bench.phases import Row
from bench.speed import speed

mpl.use("Agg")
import matplotlib.pyplot as plt

GIB = 1024**3
MIB = 1024**2


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least *share* of the *ordered* values do not exceed (nearest rank)."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def summary(row: Row, reference: float | None = None) -> dict[str, Any]:
    """The figures of *row*; *reference*: seconds of the slowest direct pull in the same phase."""
    measured, seconds = row.measured, row.seconds
    delivered = sum(p.bytes for p in measured.pulled)
    figures: dict[str, Any] = {
        "mirror": row.mirror,
        "phase": row.phase,
        "image": row.image,
        "nodes": row.nodes,
        "size": row.size,
        "bound_seconds": row.bound,
        "p50_seconds": percentile(seconds, 0.5),
        "p99_seconds": percentile(seconds, 0.99),
        "max_seconds": seconds[-1],
        "first_byte_p50_seconds": _middle([p.first_byte for p in measured.pulled if p.first_byte is not None]),
        "upstream_bytes": measured.upstream["bytes"],
        "upstream_copies": row.copies(),
        "upstream_blob_requests": measured.upstream["blob_requests"],
        "upstream_connections": measured.upstream["connections"],
        "sent": measured.sent,
        "received": measured.received,
        "mirror_cpu_seconds": measured.mirror_cpu,
        "mirror_cpu_seconds_per_gib": measured.mirror_cpu / delivered * GIB if delivered else None,
        "machine_cpu_seconds_per_gib": measured.machine_cpu / delivered * GIB if delivered else None,
        "threads_cpu_seconds": measured.threads,
        "client_cpu_seconds": sum(p.cpu for p in measured.pulled),
        "peak_rss_bytes": measured.peak,
        "fell_back": sum(p.fell_back for p in measured.pulled),
        "resumed": sum(p.resumed for p in measured.pulled),
        "errors": row.errors,
    }
    if row.bound:
        for name in ("p50", "p99", "max"):
            figures[f"{name}_of_bound"] = figures[f"{name}_seconds"] / row.bound
    if reference:
        figures["max_of_direct"] = figures["max_seconds"] / reference
    if times := sorted(t for p in measured.pulled for t in p.times):
        figures["read_p50_seconds"] = percentile(times, 0.5)
        figures["read_p99_seconds"] = percentile(times, 0.99)
    return figures


def references(rows: list[Row]) -> dict[tuple[str, str], float]:
    """(phase, image) -> seconds of the slowest direct pull."""
    return {(row.phase, row.image): row.seconds[-1] for row in rows if row.mirror == "direct" and not row.errors}


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    shown = Table(title="times / best possible (p50, p99, max over nodes)", title_justify="left")
    for heading in ("image, phase", "mirror"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("bound s", "p50", "p99", "max", "/direct", "first ms", "copies", "CPU-s/GiB", "RSS MiB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("note")
    known = references(rows)
    before = None
    for row in rows:
        f = summary(row, known.get((row.phase, row.image)))
        if before not in (None, (row.image, row.phase)):
            shown.add_section()
        before = (row.image, row.phase)
        note = [f"{f['fell_back']} fell back"] if f["fell_back"] else []
        note += row.errors[:1]
        if "read_p50_seconds" in f:
            note.append(f"read p50 {f['read_p50_seconds'] * 1e3:.1f} p99 {f['read_p99_seconds'] * 1e3:.1f} ms")
        unit = "_of_bound" if row.bound else "_seconds"
        times = [_fixed(f[name + unit], 3) + ("" if row.bound else " s") for name in ("p50", "p99", "max")]
        shown.add_row(
            f"{row.image}: {row.phase}", row.mirror,
            _fixed(row.bound, 2),
            *times,
            _fixed(f.get("max_of_direct"), 2),
            _fixed(f["first_byte_p50_seconds"] and f["first_byte_p50_seconds"] * 1e3, 0),
            _fixed(f["upstream_copies"], 3),
            _fixed(f["mirror_cpu_seconds_per_gib"], 1),
            _fixed(max(f["peak_rss_bytes"].values(), default=0) / MIB or None, 0),
            "; ".join(note),
        )  # fmt: skip
    return shown


def save(rows: list[Row], directory: Path, facts: dict[str, Any]) -> None:
    """Write results.json and the plots of every row below *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    known = references(rows)
    told = []
    for row in rows:
        figures = summary(row, known.get((row.phase, row.image)))
        figures["clients"] = [asdict(p) for p in row.measured.pulled]
        figures["at"] = row.measured.at
        figures["links"] = row.measured.links
        figures["logs"] = str(row.logs) if row.logs else None
        told.append(figures)
    (directory / "results.json").write_text(json.dumps({"facts": facts, "rows": told}, indent=1) + "\n")
    for image, phase in dict.fromkeys((row.image, row.phase) for row in rows):
        group = [row for row in rows if (row.image, row.phase) == (image, phase)]
        name = f"{phase}-{image}".replace(" ", "-").replace(",", "")
        _curves(group, directory / f"{name}-completion")
        if any(len(row.measured.links) > 2 and row.measured.links[0][1] for row in group):
            _link_use(group, directory / f"{name}-links")


def facts(settings: dict[str, Any], notes: list[str], work: Path | None = None) -> dict[str, Any]:
    """Where and when: what a reader needs to doubt the figures. *work*: where stores are."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": _cpu_name(),
            "memory_bytes": psutil.virtual_memory().total,
            "kernel": platform.release(),
            "python": f"{platform.python_version()} in {sys.base_prefix}",
            "load_average_at_start": os.getloadavg(),
            "speed": speed(work),
        },
        "settings": settings,
        "cannot_show": notes,
    }


def _curves(rows: list[Row], path: Path) -> None:
    figure, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.6), sharey=True, squeeze=False)
    for axis, row in zip(axes[0], rows, strict=True):
        for pulled in row.measured.pulled:
            xs = [pulled.delay + seconds for seconds, _ in pulled.samples]
            axis.plot(xs, [100 * count / row.size for _, count in pulled.samples], linewidth=1, label=pulled.node)
        if row.bound:
            axis.axvline(row.bound, color="black", linestyle=":", linewidth=1)
        axis.set_title(f"{row.mirror}, {row.phase}", fontsize=9)
        axis.set_xlabel("seconds (dotted: best possible)")
    axes[0][0].set_ylabel("% of the bytes, per node")
    axes[0][-1].legend(fontsize=6, loc="lower right")
    _write(figure, path)


def _link_use(rows: list[Row], path: Path) -> None:
    figure, axes = plt.subplots(2, len(rows), figsize=(4.2 * len(rows), 5.6), sharey=True, squeeze=False)
    for column, row in enumerate(rows):
        links = row.measured.links
        for line, direction in enumerate(("sent", "received")):
            axis = axes[line][column]
            for host in links[0][1]:
                pairs = list(pairwise(links))
                xs = [after[0] for _, after in pairs]
                ys = [
                    (after[1][host][line] - before[1][host][line]) * 8e-6 / max(1e-6, after[0] - before[0])
                    for before, after in pairs
                ]
                heavy = host in {"upstream", "central"}
                axis.plot(xs, ys, linewidth=1.4 if heavy else 0.7, linestyle="--" if heavy else "-", label=host)
            axis.set_title(f"{row.mirror}, {row.phase}: {direction}", fontsize=9)
            axis.set_xlabel("seconds")
        axes[0][column].set_ylim(bottom=0)
    axes[0][0].set_ylabel("Mbit/s")
    axes[1][0].set_ylabel("Mbit/s")
    axes[0][-1].legend(fontsize=6, loc="upper right")
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    figure.tight_layout()
    for ending in ("png", "svg"):  # no with_suffix: a name may have a dot, as in 95.4-MiB
        figure.savefig(path.with_name(f"{path.name}.{ending}"), dpi=110)
    plt.close(figure)


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _middle(values: list[float]) -> float | None:
    return percentile(sorted(values), 0.5) if values else None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
