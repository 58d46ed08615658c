"""A run of tests ends with one line per kind of skip, which says how to have those tests run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import TOOLS
from tests.parts import skips

PROJECT = Path(__file__).parents[2]


def test_every_tool_that_a_test_may_lack_has_its_remedy() -> None:
    """None of them is answered with a shrug."""
    for tools in TOOLS.values():
        for tool in tools:
            assert tool in skips.PACKAGES or not skips.remedy(skips.lacking([tool])).startswith("install " + tool), tool


def test_every_reason_in_the_tests_has_its_remedy() -> None:
    """Those that name no command too."""
    texts = (path.read_text(encoding="utf-8") for path in (PROJECT / "tests").rglob("*.py"))
    reasons = [found for text in texts for found in re.findall(r'pytest\.skip\(f?"([^"{]+)', text)]
    assert reasons
    for reason in reasons:
        assert skips.remedy(reason) != "see the test's own reason", reason


def test_skips_of_one_kind_are_one_line() -> None:
    """With their number, the reason and the packages."""
    reasons = [skips.lacking(["containerd", "ctr"])] * 3 + ["Skipped: " + skips.lacking(["helm"])]
    assert skips.summary(reasons) == [
        "skipped 3: this machine lacks containerd, ctr. To run: apt-get install containerd",
        "skipped 1: this machine lacks helm. To run: install Go or helm; the tests build helm where Go is",
    ]
