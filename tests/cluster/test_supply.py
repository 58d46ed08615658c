"""What a cluster is made of comes from a process beside the tests, which says what went wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.parts.kubecluster import binaries
from tests.parts.kubecluster.supply import CLUSTER, HELM, Supply

GOOD = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo made >"$2"
"""
BAD = """#!/bin/sh
echo 'dial tcp: lookup proxy.golang.org: no such host' >&2
exit 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, and a directory for a `go` of the test's own."""
    monkeypatch.setenv("SHOAL_CLUSTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def go(place: Path, script: str) -> None:
    """A compiler."""
    (place / "go").write_text(script)
    (place / "go").chmod(0o755)


def test_a_test_waits_for_what_is_built_beside_it(place: Path) -> None:
    go(place, GOOD)
    supply = Supply(place / "log")
    supply.begin({HELM})
    assert supply.wait(HELM) == ""
    assert binaries.built("helm")
    assert supply.wait(HELM) == ""
    assert re.fullmatch(r"built beside the tests: helm after \S+ min; tests waited \S+ min for it", supply.summary())
    supply.end()


def test_a_build_that_fails_says_why_to_each_test(place: Path) -> None:
    go(place, BAD)
    supply = Supply(place / "log")
    supply.begin({HELM})
    for _ in range(2):
        said = supply.wait(HELM)
        assert said.startswith("the build of Kubernetes failed: exit status 1\n")
        assert "lookup proxy.golang.org: no such host" in said
    assert not binaries.built("helm")
    supply.end()


def test_what_is_there_is_not_built_again(place: Path) -> None:
    go(place, BAD)
    binaries.directory().mkdir(parents=True)
    (binaries.directory() / "helm").touch()
    supply = Supply(place / "log")
    supply.begin({HELM})
    assert supply.wait(HELM) == ""
    assert not (place / "log").exists()
    assert supply.summary() == ""


def test_a_build_that_takes_too_long_is_ended_and_is_told_from_one_that_failed(place: Path) -> None:
    go(place, "#!/bin/sh\nsleep 60\n")
    supply = Supply(place / "log", within=0.2)
    supply.begin({HELM})
    assert supply.wait(HELM).startswith("the build of Kubernetes failed: no end in 0 minutes")
    assert supply.late
    supply.end()


@pytest.mark.needs_root
def test_a_build_that_is_ended_leaves_neither_mounts_nor_files(place: Path) -> None:
    """debootstrap mounts /proc in its tree: who removes a tree must find nothing of the machine's in it."""
    go(place, GOOD)
    os.mkfifo(place / "mounted")
    script = """#!/bin/sh
for tree; do :; done
mkdir -p "$tree/proc" && mount -t tmpfs none "$tree/proc" && echo "$tree" >MOUNTED
sleep 60
"""
    for name, text in (("debootstrap", script.replace("MOUNTED", str(place / "mounted"))), ("podman", "#!/bin/sh\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    supply = Supply(place / "log")
    supply.begin({CLUSTER})
    tree = Path((place / "mounted").read_text().strip())
    assert tree.is_relative_to(binaries.cache())
    supply.end()
    assert str(binaries.cache()) not in Path("/proc/self/mounts").read_text()
    assert not tree.exists()
