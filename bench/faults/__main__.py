"""`python -m bench.faults`: do the faults, print the table, and write docs/faults.md once all were done."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
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
    cases = [case for case in listed.CASES if re.search(options.k, case.name)]
    cases = [case for case in cases if case.quick or not options.quick]
    if options.missing:
        cases = [case for case in cases if case.name not in load(options.state)]
    if options.list:
        for case in cases:
            print(f"{case.name:40} {case.fault}: {case.expected}")
        return 0
    seen: list[Seen] = []
    rows = load(options.state)
    try:
        for case in cases:
            one = play(case, keep=options.keep, patience=options.patience)
            seen.append(one)
            rows[case.name] = row_of(one)
            save(options.state, rows)
            mark = "[green]right[/]" if one.right else "[red]WRONG[/]"
            console.print(
                f"{mark} {case.name}: {'; '.join(one.bad) or one.answers} ({one.took:.0f} s)", highlight=False
            )
    except KeyboardInterrupt:
        console.print("[yellow]stopped; what was seen so far:[/]")
    Console(width=190).print(_table([row_of(one) for one in seen]))
    if options.page or all(case.name in rows for case in listed.CASES):
        PAGE.write_text(page([rows[case.name] for case in listed.CASES if case.name in rows]))
        console.print(f"written: {PAGE}")
    return 0 if all(one.right for one in seen) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("-k", default="", metavar="PATTERN", help="only faults whose name it is found in")
    parser.add_argument("--quick", action="store_true", help="the quick half, as the tests run it")
    parser.add_argument("--list", action="store_true", help="say what would be done")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="remember rows there, and go on with those of before"
    )
    parser.add_argument("--page", action="store_true", help="write docs/faults.md although not all were done")
    parser.add_argument("--missing", action="store_true", help="only faults that --state has no row of")
    parser.add_argument("--patience", type=float, default=1.0, metavar="X", help="times every time that is expected")
    parser.add_argument("--keep", action="store_true", help=f"keep logs and stores in {tempfile.gettempdir()}")
    return parser.parse_args()


@dataclass(frozen=True)
class Row:
    """A line of the table, and when and at which commit it was seen."""

    area: str
    cells: tuple[str, ...]
    right: bool
    seconds: float
    at: str
    commit: str


def row_of(one: Seen) -> Row:
    """What the table says of a case."""
    case = one.case
    cells = (
        f"{case.name}: {case.fault}",
        case.expected,
        "as expected" if one.right else "**not**: " + "; ".join(one.bad),
        f"{one.seconds:.1f}",
        f"{one.copies:.2f}",
        str(one.wrong),
        one.left or "-",
    )
    return Row(case.area, cells, one.right, one.took, f"{datetime.now(UTC):%Y-%m-%d %H:%M}", _commit())


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def load(state: Path | None) -> dict[str, Row]:
    """What earlier runs saw, by the names of cases."""
    if state is None or not state.exists():
        return {}
    return {name: Row(**{**row, "cells": tuple(row["cells"])}) for name, row in json.loads(state.read_text()).items()}


def save(state: Path | None, rows: dict[str, Row]) -> None:
    """For a later run to go on with."""
    if state is not None:
        state.write_text(json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1))


def _table(rows: list[Row]) -> Table:
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row.cells)
    return table


def page(rows: list[Row]) -> str:
    """docs/faults.md."""
    times, commits = sorted(row.at for row in rows), list(dict.fromkeys(row.commit for row in rows))
    failed = sum(not row.right for row in rows)
    minutes = sum(row.seconds for row in rows) / 60
    lines = [
        "# Faults",
        "",
        (
            f"Written by `make faults`: {len(rows)} of {len(listed.CASES)} faults in {minutes:.0f} minutes, "
            f"{failed} of them not as expected. "
            f"Seen from {times[0]} to {times[-1]} UTC, at commit {', '.join(commits)}."
        ),
        "",
        _HOW,
        "",
        "Expected times allow for two shared cores. The promise they stand for is that of docs/design.md.",
        "",
    ]
    for area in dict.fromkeys(row.area for row in rows):
        lines += [f"## {area.capitalize()}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(row.cells)} |" for row in rows if row.area == area]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
