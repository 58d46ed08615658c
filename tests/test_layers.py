"""The map in ARCHITECTURE.md says what the import contracts say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def test_the_list_of_pure_modules_is_the_contract() -> None:
    """Who reads the page may rely on it; who adds a pure module adds it to both."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = [contract for contract in contracts if contract["name"].startswith("Pure modules")]
    page = (PROJECT / "ARCHITECTURE.md").read_text()
    section = page.partition("## Pure modules\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`((?:swarm|mirror|tracker)\.[a-z._]+)`", section)) == set(pure["source_modules"])
