"""The map in ARCHITECTURE.md says what the import contracts say."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def test_the_list_of_pure_modules_is_the_contract() -> None:
    """Who reads the page may rely on it; who adds a pure module adds it to both."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = [contract for contract in contracts if contract["name"].startswith("Pure modules")]
    page = (PROJECT / "ARCHITECTURE.md").read_text()
    section = page.partition("## Pure modules\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`((?:swarm|mirror|tracker)\.[a-z._]+)`", section)) == set(pure["source_modules"])


METHODS, CLASS, FILE = 30, 400, 500
"""The most methods of a class, lines of a class, and lines of a file, unless a docstring argues why."""

ARGUED = re.compile(r"Above (?:the bound|both bounds)[^:]*: ")


def too_large(path: Path) -> Iterator[str]:
    """What in *path* is above a bound and does not say why."""
    text = path.read_text()
    module = ast.parse(text)
    if text.count("\n") > FILE and not ARGUED.search(ast.get_docstring(module) or ""):
        yield f"{path.name}: {text.count(chr(10))} lines"
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and not ARGUED.search(ast.get_docstring(node) or ""):
            methods = sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
            lines = (node.end_lineno or 0) - node.lineno + 1
            if methods > METHODS or lines > CLASS:
                yield f"{path.name}: {node.name} has {methods} methods in {lines} lines"


@pytest.mark.parametrize("package", ["swarm", "mirror", "tracker"])
def test_what_is_large_says_why(package: str) -> None:
    """A class or file above the bounds argues in its docstring why it is one."""
    assert not [what for path in sorted((PROJECT / package).rglob("*.py")) for what in too_large(path)]
