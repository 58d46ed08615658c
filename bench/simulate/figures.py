"""Results as a table, as JSON, and as plots."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.table import Table

from bench.report import percentile
from bench.simulate.run import Result
from bench.simulate.scene import MIB, Scene

mpl.use("Agg")
import matplotlib.pyplot as plt

KEPT = 200
"""Times of a result that are kept, evenly from the first to the last."""

GOAL = 1.3
"""Of the 99th percentile over the bound."""


def summary(result: Result) -> dict[str, Any]:
    """The figures of *result*. Times are divided by the bound."""
    times = [seconds / result.bound for seconds in result.seconds]
    others = [seconds / result.bound for seconds in result.others]
    usual = {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "max": times[-1]} if times else {}
    return {
        "scene": {name: None if value == math.inf else value for name, value in asdict(result.scene).items()},
        "seed": result.seed,
        "bound_seconds": round(result.bound, 4),
        **{f"{name}_of_bound": round(value, 4) for name, value in usual.items()},
        "others_max_of_bound": round(others[-1], 4) if others else None,
        "unfinished": result.unfinished,
        "copies": round(result.copies, 5),
        "windows_past_the_cluster": result.past,
        "most_requests_at_once": result.most,
        "messages_per_node": round(result.node_messages, 2),
        "requests_per_node": round(result.node_requests, 2),
        "messages_per_tracker": result.tracker_messages,
        "crossed_zones": round(result.crossed, 4),
        "simulated_seconds": round(result.ran, 4),
        "times_of_bound": [round(times[i * (len(times) - 1) // KEPT], 4) for i in range(KEPT + 1)] if times else [],
    }


def table(figures: Sequence[dict[str, Any]]) -> Table:
    """For people."""
    shown = Table(title="times / best possible (p50, p99, max over nodes)", title_justify="left")
    for heading in ("scene", "nodes", "MiB", "bound s", "p50", "p99", "max", "others max", "copies"):
        shown.add_column(heading, justify="left" if heading == "scene" else "right", no_wrap=True)
    for heading in ("most at once", "messages/node", "requests/node", "messages/tracker", "crossed", "note"):
        shown.add_column(heading, justify="right")
    for one in figures:
        note = [f"{one['unfinished']} unfinished"] if one["unfinished"] else []
        note += [f"{one['windows_past_the_cluster']} past"] if one["windows_past_the_cluster"] else []
        scene = one["scene"]
        shown.add_row(
            scene["name"], f"{scene['nodes']:,}", f"{scene['size'] / MIB:g}", f"{one['bound_seconds']:.2f}",
            *(_fixed(one.get(f"{name}_of_bound")) for name in ("p50", "p99", "max")),
            _fixed(one["others_max_of_bound"]), f"{one['copies']:.3f}", str(one["most_requests_at_once"]),
            f"{one['messages_per_node']:.0f}", f"{one['requests_per_node']:.0f}",
            f"{max(one['messages_per_tracker']):,}", f"{one['crossed_zones']:.0%}" if scene["zones"] > 1 else "",
            "; ".join(note),
        )  # fmt: skip
    return shown


def save(figures: Sequence[dict[str, Any]], directory: Path) -> None:
    """Write results.json and the plots below *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit, "simulated": True}
    (directory / "results.json").write_text(json.dumps({"facts": facts, "rows": list(figures)}, indent=1) + "\n")
    plot(figures, directory)


def plot(figures: Sequence[dict[str, Any]], directory: Path) -> None:
    """The times, and what it costs, over the number of nodes; and how many nodes had all when."""
    scenes = list(dict.fromkeys(one["scene"]["name"] for one in figures))
    lines = list(dict.fromkeys((one["scene"]["name"], one["scene"]["size"]) for one in figures))
    panels = (
        ("p50_of_bound", "p50 / bound"), ("p99_of_bound", "p99 / bound"),
        ("most_requests_at_once", "requests at once at one node, at most"),
        ("messages_per_node", "messages to trackers per node"),
    )  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.2), squeeze=False)
    for axis, (key, title) in zip(axes.flat, panels, strict=True):
        for name, size in lines:
            rows = [one for one in figures if (one["scene"]["name"], one["scene"]["size"]) == (name, size)]
            label = f"{name}, {size / MIB:g} MiB"
            xs, ys = [one["scene"]["nodes"] for one in rows], [one.get(key, math.nan) for one in rows]
            axis.plot(xs, ys, marker=".", label=label, linestyle="-" if size == lines[0][1] else "--")
        axis.set_xscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("nodes")
        axis.set_ylim(bottom=1.0 if "bound" in title else 0)
    axes[0][1].axhline(GOAL, color="black", linestyle=":", linewidth=1)
    axes[0][0].legend(fontsize=6)
    _write(figure, directory / "over-nodes.svg")
    for name in scenes:
        figure, axes = plt.subplots(figsize=(4.8, 3.6), squeeze=False)
        for one in figures:
            if one["scene"]["name"] == name:
                times = one["times_of_bound"]
                label = f"{one['scene']['nodes']:,} nodes, {one['scene']['size'] / MIB:g} MiB"
                axes[0][0].plot(times, [100 * i / KEPT for i in range(len(times))], label=label)
        axes[0][0].axvline(GOAL, color="black", linestyle=":", linewidth=1)
        axes[0][0].set_title(name, fontsize=9)
        axes[0][0].set_xlabel("time / bound (dotted: the goal of the 99th percentile)")
        axes[0][0].set_ylabel("% of the nodes have all")
        axes[0][0].legend(fontsize=6, loc="lower right")
        _write(figure, directory / f"{name}.svg")


def named(scene: Scene) -> str:
    """What is being simulated, in a few words."""
    return f"{scene.name}, {scene.nodes:,} nodes, {scene.size / MIB:g} MiB"


def _write(figure: Any, path: Path) -> None:
    figure.tight_layout()
    with mpl.rc_context({"svg.hashsalt": "shoal"}):  # the same figures give the same file
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
