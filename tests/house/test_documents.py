"""Documents that people like to read: short lines, short decisions, and no test named that is not there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LINES, COLUMNS, WORDS = 150, 120, 80
"""The most lines of README.md, characters of a line, and words of a decision."""

PARTS = ("Problem", "Choice", "Rejected", "Evidence")


def section(title: str) -> str:
    """What ARCHITECTURE.md says below *title*."""
    return (PROJECT / "ARCHITECTURE.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_readme_is_read_at_once() -> None:
    lines = (PROJECT / "README.md").read_text().splitlines()
    assert len(lines) < LINES
    assert not [line for line in lines if len(line) > COLUMNS]


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_no_line_scrolls(name: str) -> None:
    """But for rows of tables, which a page wraps by itself."""
    lines = (PROJECT / name).read_text().splitlines()
    assert not [line for line in lines if len(line) > COLUMNS and not line.startswith("|")]


def test_a_decision_has_four_parts_in_few_words() -> None:
    for decision in section("Decisions").split("\n### ")[1:]:
        title, _, text = decision.partition("\n")
        assert re.findall(r"^\* (\w+):", text, re.MULTILINE) == list(PARTS), title
        assert len(text.split()) <= WORDS, title


def test_each_invariant_names_tests_that_are_there() -> None:
    known = {
        name
        for path in (PROJECT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", section("Invariants")))
    assert len(named) >= 15
    assert named <= known


def test_owners_know_nothing_of_each_other() -> None:
    """Independent by contract; and ruff's SLF001 finds whoever reads a private attribute of another object."""
    told = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]
    contracts = {contract["name"]: contract for contract in told["importlinter"]["contracts"]}
    owners = contracts["The owners of a fetch do not know each other."]
    assert owners["type"] == "independence"
    assert {name.rpartition(".")[2] for name in owners["modules"]} == {
        "claims", "direct", "follower", "line", "partial", "stalls", "transfers", "trial", "verifier",
    }  # fmt: skip
    lint = told["ruff"]["lint"]
    assert "SLF" in lint["select"]
    spared = [where for where, rules in lint["per-file-ignores"].items() if {"SLF", "SLF001"} & set(rules)]
    assert set(spared) <= {"tests/**", "swarm/peer/session.py"}
