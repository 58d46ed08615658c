"""The quick half of the fault bench: one test per fault, done to a cluster of its own.

The bytes, the copies and the kind of answer count. Of the times only that nobody stands still: this machine may have
other work (`make faults` measures).
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from bench import net
from bench.faults import disks, listed
from bench.faults.__main__ import load, page, row_of, save
from bench.faults.case import Case, Seen, play

PATIENCE = 3.0

QUICK = [case for case in listed.CASES if case.quick]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", QUICK, ids=[case.name for case in QUICK])
async def test_a_fault_does_what_is_expected_of_it_and_nothing_else(case: Case) -> None:
    if why := net.can_shape() or disks.kit():
        pytest.skip(why)
    seen = await asyncio.to_thread(partial(play, case, patience=PATIENCE))
    assert not seen.bad, f"{seen.answers}, {seen.copies:.2f} copies"


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
