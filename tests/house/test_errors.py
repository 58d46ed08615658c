"""One tree of errors per package: drawn in the docstring of the file that has it, and nowhere else a class."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path
from types import ModuleType

import pytest

import mirror.errors
import swarm.blob.errors
import tracker.errors

PROJECT = Path(__file__).parents[2]
TREES = [swarm.blob.errors, mirror.errors, tracker.errors]
ELSEWHERE = {
    "AddressRefused": "an OSError, since aiohttp passes nothing else on; it never leaves transport.py",
    "Silent": "an OSError, as every other end of a connection; it never leaves who reads a link",
}


def tree_of(module: ModuleType) -> set[type[Exception]]:
    """The classes of errors that *module* defines."""
    found = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Exception))
    return {one for one in found if one.__module__ == module.__name__}


def drawn(module: ModuleType) -> dict[str, str]:
    """Name -> name above it, as the docstring of *module* shows them; "" above a root."""
    above: list[tuple[int, str]] = []
    parents: dict[str, str] = {}
    for line in (module.__doc__ or "").splitlines():
        words = line.strip("│├└─ ").split()
        if not words or not words[0].isidentifier() or not (line == words[0] or "──" in line):
            continue
        depth = len(line) - len(line.lstrip("│├└─ "))
        above = [(far, name) for far, name in above if far < depth]
        parents[words[0]] = above[-1][1] if above else ""
        above.append((depth, words[0]))
    return parents


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_the_tree_is_drawn_as_it_is(module: ModuleType) -> None:
    """Each class with the one that it is derived from, and no class that is not there."""
    shown = drawn(module)
    for error in tree_of(module):
        assert error.__name__ in shown, f"{error.__name__} is not drawn"
        if shown[error.__name__]:
            assert shown[error.__name__] in {base.__name__ for base in error.__bases__}
    assert set(shown) <= {name for name in vars(module) if not name.startswith("_")}


@pytest.mark.parametrize("module", TREES, ids=lambda module: module.__name__)
def test_no_error_is_defined_outside_the_tree(module: ModuleType) -> None:
    """Who handles the errors of a package finds all of them in one file."""
    known = {error.__name__ for tree in TREES for error in tree_of(tree)}
    known |= {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    package = PROJECT / module.__name__.partition(".")[0]
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or path == Path(module.__file__ or ""):
                continue
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            assert not bases & known or node.name in ELSEWHERE, f"{path}: {node.name}"
