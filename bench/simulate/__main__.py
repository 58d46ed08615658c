"""`python -m bench.simulate`: the hand-out for many nodes, on simulated time.

    python -m bench.simulate --nodes 10 100 1000 --scene cold warm staggered
    python -m bench.simulate --nodes 10000 --scene cold --size 32MiB --out DIR

Same seed, same result. Sets of names are walked through in the tracker, so the hashes of texts must
not be salted: the command starts itself anew with PYTHONHASHSEED=0.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.simulate import figures
from bench.simulate.run import simulate
from bench.simulate.scene import SCENES, Scene
from swarm.base.flags import parse_size

WIDE = 200
"""Columns of a table that goes to no terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _options(argv)
    console, err = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDE
    gc.disable()  # nothing here goes round in circles for long, and each full collection walks over all nodes
    told = []
    for scene in scenes(options):
        began = time.process_time()
        told.append(figures.summary(simulate(scene, options.seed)))
        gc.collect()
        err.print(f"{figures.named(scene)}: {time.process_time() - began:.0f} CPU-seconds")
        if options.out:
            figures.save(told, options.out)
    console.print(figures.table(told))
    return 1 if any(one["unfinished"] for one in told) else 0


def scenes(options: argparse.Namespace) -> list[Scene]:
    """What is to be simulated, smallest first."""
    found = []
    for nodes in sorted(options.nodes):
        for name in options.scene:
            scene = replace(
                SCENES[name], nodes=nodes, size=options.size, upstream=options.upstream,
                connection=options.connection, trackers=options.trackers, cost=options.tracker_cost / 1000,
            )  # fmt: skip
            if options.rate is not None and name != "mixed":
                scene = replace(scene, rates=((options.rate, 1.0),))
            found.append(scene if options.layers is None else replace(scene, layers=options.layers))
    return found


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description="The hand-out, simulated.")
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100], metavar="N")
    parser.add_argument("--scene", nargs="+", default=["cold", "warm", "staggered"], choices=SCENES, metavar="NAME",
                        help=", ".join(SCENES))  # fmt: skip
    parser.add_argument("--size", type=parse_size, default=SCENES["cold"].size, help="of the image (128MiB)")
    parser.add_argument("--layers", type=int, help="equal parts that it has; default: as the scene says")
    parser.add_argument("--rate", type=float, help="Mbit/s of the nodes' links (200)")
    parser.add_argument("--upstream", type=float, help="Mbit/s of upstream's link; default: as a node's")
    parser.add_argument("--connection", type=float, default=math.inf, help="Mbit/s of one connection to upstream")
    parser.add_argument("--trackers", type=int, default=1, help="blobs are spread over them")
    parser.add_argument("--tracker-cost", type=float, default=0.0, help="ms of its one core that each answer takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="directory for results.json and plots")
    return parser.parse_args(argv)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", "bench.simulate", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())
