"""`python -m bench.faults`: do the faults, print the table, and write docs/faults.md once all were done."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import net
from bench.faults import disks, listed
from bench.faults.case import Seen, play

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
_HOW = (
    "Each fault is done to a cluster of its own, of real processes in network namespaces (bench/faults). "
    "Afterwards all is mended, and every agent must get another blob in the stated time. "
    "*Seconds* is the slowest client, *copies* is what upstream sent of the blob, *wrong* counts complete bodies "
    "with other bytes. *Left behind* is the most that any agent has more than before the fault: descriptors, threads, "
    "MiB of memory; then files in its store that belong to nothing."
)
COLUMNS = ("fault", "expected", "seen", "seconds", "copies", "wrong", "left behind")


def main() -> int:
    """0 if everything was as expected."""
    net.raise_on_signals()
    options = _options()
    console = Console(stderr=True)
    if (why := net.can_shape() or disks.kit()) is not None:
        console.print(f"[red]{why}[/]")
        return 1
    net.sweep()
    cases = [case for case in listed.CASES if any(part in case.name for part in options.k.split(","))]
    cases = [case for case in cases if case.quick or not options.quick]
    if options.list:
        for case in cases:
            print(f"{case.name:40} {case.fault}: {case.expected}")
        return 0
    seen: list[Seen] = []
    began = time.monotonic()
    try:
        for case in cases:
            seen.append(play(case, keep=options.keep))
            one = seen[-1]
            mark = "[green]right[/]" if one.right else "[red]WRONG[/]"
            console.print(
                f"{mark} {case.name}: {'; '.join(one.bad) or one.answers} ({one.took:.0f} s)", highlight=False
            )
    except KeyboardInterrupt:
        console.print("[yellow]stopped; what was seen so far:[/]")
    Console(width=190).print(_table(seen))
    if len(seen) == len(listed.CASES):
        PAGE.write_text(page(seen, time.monotonic() - began))
        console.print(f"written: {PAGE}")
    return 0 if seen and all(one.right for one in seen) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("-k", default="", metavar="PART,...", help="only faults whose name has one of these in it")
    parser.add_argument("--quick", action="store_true", help="the quick half, as the tests run it")
    parser.add_argument("--list", action="store_true", help="say what would be done")
    parser.add_argument("--keep", action="store_true", help=f"keep logs and stores in {tempfile.gettempdir()}")
    return parser.parse_args()


def cells(one: Seen) -> list[str]:
    """A row of the table."""
    case = one.case
    seen = "as expected" if one.right else "**not**: " + "; ".join(one.bad)
    return [
        f"{case.name}: {case.fault}",
        case.expected,
        seen,
        f"{one.seconds:.1f}",
        f"{one.copies:.2f}",
        str(one.wrong),
        one.left or "-",
    ]


def _table(seen: list[Seen]) -> Table:
    table = Table(*COLUMNS)
    for one in seen:
        table.add_row(*cells(one))
    return table


def page(seen: list[Seen], took: float) -> str:
    """docs/faults.md."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() or "unknown"
    failed = [one for one in seen if not one.right]
    lines = [
        "# Faults",
        "",
        (
            f"Written by `make faults` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {commit}: "
            f"{len(seen)} faults in {took / 60:.0f} minutes, {len(failed)} of them not as expected."
        ),
        "",
        _HOW,
        "",
        "Expected times allow for two shared cores. The promise they stand for is that of docs/design.md.",
        "",
    ]
    for area in dict.fromkeys(one.case.area for one in seen):
        lines += [f"## {area.capitalize()}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(cells(one))} |" for one in seen if one.case.area == area]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
