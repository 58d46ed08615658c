"""A report says how fast its machine was, and the measurement leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from bench.report import facts


def test_a_report_says_how_fast_the_machine_was(tmp_path: Path) -> None:
    speed = facts({}, [], tmp_path)["machine"]["speed"]
    assert set(speed) == {"python_loops_per_second", "sha1_mib_per_second", "new_file_mib_per_second"}
    assert min(speed.values()) > 0
    assert not list(tmp_path.iterdir())
