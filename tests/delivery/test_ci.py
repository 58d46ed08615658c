"""What `.ci/run` runs, in which order: the tests on a real Kubernetes are in every run that has the time for them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.parts.kubecluster import binaries
from tests.parts.kubecluster.images import ROOT

MAKE = """#!/bin/sh
echo "make $1 SHOAL_CLUSTER=$SHOAL_CLUSTER $2"
case "$2" in
*last-failed*) exit "${AGAIN:-0}" ;;
*"${FAILS:-nothing}"*) echo "FAILED tests/test_x.py::test_y - late" && exit 1 ;;
esac
"""


def ci(place: Path, **said: str) -> tuple[int, list[str]]:
    """Exit code and lines of a run whose `make` says what it is asked, and does nothing."""
    make = place / ".local" / "bin" / "make"
    make.parent.mkdir(parents=True)
    make.write_text(MAKE)
    make.chmod(0o755)
    unset = {name: text for name, text in os.environ.items() if not name.startswith(("SHOAL_", "MAKE"))}
    env = unset | {"HOME": str(place), "SHOAL_CLUSTER_CACHE": str(place / "cache")} | said
    ran = subprocess.run([ROOT / ".ci/run"], env=env, check=False, capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout.splitlines()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes was compiled before."""
    monkeypatch.setenv("SHOAL_CLUSTER_CACHE", str(tmp_path / "cache"))
    binaries.directory().mkdir(parents=True)
    for name in binaries.PACKAGES:
        (binaries.directory() / name).touch()


@pytest.mark.usefixtures("kept")
def test_where_kubernetes_is_kept_everything_is_one_run(tmp_path: Path) -> None:
    code, lines = ci(tmp_path)
    assert lines[1:-1] == ["make test SHOAL_CLUSTER=1 ARGS=-r fE "]
    assert lines[-1].startswith("this run took ")
    assert code == 0


def test_where_it_is_not_it_is_compiled_when_everything_else_is_over(tmp_path: Path) -> None:
    _, lines = ci(tmp_path)
    assert [line for line in lines if line.startswith("make test")] == [
        "make test SHOAL_CLUSTER=0 ARGS=-r fE -m 'not needs_cluster'",
        "make test SHOAL_CLUSTER=1 ARGS=-r fE -m needs_cluster",
    ]


def test_it_can_be_left_out(tmp_path: Path) -> None:
    _, lines = ci(tmp_path, SHOAL_CLUSTER="0")
    assert [line for line in lines if line.startswith("make test")] == ["make test SHOAL_CLUSTER=0 ARGS=-r fE "]


@pytest.mark.parametrize("again", [0, 1])
def test_what_failed_is_run_once_more_and_counted(tmp_path: Path, again: int) -> None:
    code, lines = ci(tmp_path, FAILS="needs_cluster'", AGAIN=str(again))
    only = "--last-failed --last-failed-no-failures none -m 'not needs_cluster'"
    assert f"make test SHOAL_CLUSTER=0 ARGS={only}" in lines
    assert ("flaky in this run: 1" in lines) == (not again)
    assert "make test SHOAL_CLUSTER=1 ARGS=-r fE -m needs_cluster" in lines
    assert code == again
