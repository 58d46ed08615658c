"""Every promise and every attack of docs/threat-model.md names a test that exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/threat-model.md").read_text()
NAMED = re.compile(r"`(test_[a-z0-9_]+\.py)(?:::(test_\w+))?`|`…(\w+)…?`")
"""`test_x.py`, `test_x.py::test_y`, or `…y`: the end of another name in the file that was named before."""

LEAST = 40


FILES = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
"""The files of tests, wherever they are."""


@functools.cache
def names_in(file: str) -> set[str]:
    """The names of the tests in a file below tests/."""
    tree = ast.parse(FILES[file].read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in found if name.startswith("test_")}


def rows() -> list[str]:
    """Lines of the page's tables that name tests."""
    return [line for line in PAGE.splitlines() if line.startswith("|") and "`test_" in line]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:60])
def test_what_is_named_exists(row: str) -> None:
    file = ""
    for named, whole, end in NAMED.findall(row):
        file = named or file
        assert file in FILES, f"{file} is not there"
        if whole:
            assert whole in names_in(file)
        elif end:
            assert [name for name in names_in(file) if name.removeprefix("test_").startswith(end) or name.endswith(end)]


def test_text_between_tables_names_tests_that_exist() -> None:
    for file, whole, _ in NAMED.findall("\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))):
        assert not file or file in FILES, f"{file} is not there"
        assert not whole or whole in names_in(file)


def test_there_are_enough_attacks_and_each_is_another() -> None:
    attacks = [line.split("|")[1:4] for line in PAGE.partition("\n## Attacks\n")[2].splitlines() if "`test_" in line]
    assert len(attacks) >= LEAST
    assert len({attack.strip() for attack, _, _ in attacks}) == len(attacks)
    assert all("::" in test for _, _, test in attacks), "each names its test, not a file"
    actors = {by.strip() for _, by, _ in attacks}
    assert actors == {"member", "a third", "stranger", "local process", "browser", "registry", "tracker", "all"}
