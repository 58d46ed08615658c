"""The quick half of the fault bench: one test per fault, done to a cluster of its own.

The bytes, the copies and the kind of answer count. Of the times only that nobody stands still: this machine may have
other work (`make faults` measures).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import net
from bench.faults import disks, listed
from bench.faults.__main__ import COLUMNS, Row, load, page, row_of, save
from bench.faults.case import Seen

PATIENCE = 3.0
AT_ONCE = 3
"""Faults under way at the same time: most of one is waiting, and each has network namespaces of its own."""

QUICK = [case for case in listed.CASES if case.quick]

Rows = dict[str, Future[Row]]


def played(name: str, state: Path) -> Row:
    """The row of the fault *name*, done in a process of its own. Raises AssertionError with what it printed."""
    command = [sys.executable, "-m", "bench.faults", "-k", f"^{re.escape(name)}$", "--patience", str(PATIENCE)]
    done = subprocess.run([*command, "--state", state], capture_output=True, text=True, timeout=150, check=False)
    rows = load(state)
    assert name in rows, done.stderr[-2000:]
    return rows[name]


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """What becomes of the faults that this run asks for, begun in their order."""
    if why := net.can_shape() or disks.kit():
        pytest.skip(why)
    asked = [str(item.callspec.params["name"]) for item in request.session.items if isinstance(item, pytest.Function)
             and item.module is request.module and hasattr(item, "callspec")]  # fmt: skip
    with ThreadPoolExecutor(AT_ONCE) as pool:
        state = tmp_path_factory.mktemp("faults")
        yield {name: pool.submit(played, name, state / str(number)) for number, name in enumerate(asked)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(160)
@pytest.mark.parametrize("name", [case.name for case in QUICK])
def test_a_fault_does_what_is_expected_of_it_and_nothing_else(rows: Rows, name: str) -> None:
    row = rows[name].result()
    assert row.right, dict(zip(COLUMNS, row.cells, strict=True))


def test_the_list_has_sixty_faults_and_each_a_name_of_its_own() -> None:
    names = [case.name for case in listed.CASES]
    assert len(names) == len(set(names))
    assert len(names) >= 60


def test_the_page_says_what_was_not_as_expected_and_a_state_goes_on_with_it(tmp_path: Path) -> None:
    good, bad = (
        Seen(QUICK[0], seconds=1.5, copies=1.0, left="+1 +0 +2 0", took=60),
        Seen(QUICK[1], bad=["no end"], took=60),
    )
    rows = {seen.case.name: row_of(seen) for seen in (good, bad)}
    save(tmp_path / "state", rows)
    assert load(tmp_path / "state") == rows
    text = page(list(rows.values()))
    assert f"2 of {len(listed.CASES)} faults in 2 minutes, 1 of them not as expected" in text
    assert "| **not**: no end |" in text
