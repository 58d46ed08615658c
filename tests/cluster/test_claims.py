"""A cluster whose process was killed goes away with the next; one that is held stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import skips
from tests.parts.kubecluster import binaries, claims
from tests.parts.kubecluster.cluster import missing
from tests.parts.procs import PartFailed

SHOWN = "7: {device}    inet 10.99.0.254/24 scope global {device}\\       valid_lft forever preferred_lft forever\n"
KILLED = """
import os, pathlib, signal, sys
from tests.parts.kubecluster import claims
claims.RUNS = pathlib.Path(sys.argv[1])
with claims.claim(sys.argv[2], pathlib.Path(sys.argv[3])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where claims are, apart from those of real clusters."""
    monkeypatch.setattr(claims, "RUNS", tmp_path / "runs")
    monkeypatch.delenv("SHOAL_CLUSTER_KEEP_LOGS", raising=False)
    return tmp_path / "runs"


def killed(runs: Path, prefix: str, base: Path) -> None:
    """A process that claims *prefix*, and is killed."""
    base.mkdir()
    words = [sys.executable, "-c", KILLED, str(runs), prefix, str(base)]
    assert subprocess.run(words, check=False, timeout=60).returncode == -9


def test_what_is_held_stays_and_can_be_had_by_nobody_else(tmp_path: Path) -> None:
    with claims.claim("shk1", tmp_path):
        assert claims.owners() == {"shk1": os.getpid()}
        assert claims.sweep() == []
        with pytest.raises(PartFailed, match="make cluster-down"), claims.claim("shk1", tmp_path):
            pass
        assert claims.owners() == {"shk1": os.getpid()}
    assert claims.owners() == {}
    assert claims.sweep() == []


def test_what_a_killed_process_left_is_taken_away(runs: Path, tmp_path: Path) -> None:
    base, other = tmp_path / f"{claims.BASE}x", tmp_path / "mine"
    killed(runs, "shk2", base)
    killed(runs, "shk3", other)
    assert claims.owners() == {}
    assert claims.sweep() == ["shk2", "shk3"]
    assert not base.exists()
    assert other.exists(), "a directory that no cluster made"
    assert claims.sweep() == []


@pytest.mark.needs_root
def test_its_network_and_who_is_in_it_go_too(runs: Path, tmp_path: Path) -> None:
    prefix = f"shkt{os.getpid() % 10_000}"
    killed(runs, prefix, tmp_path / f"{claims.BASE}y")
    names = [f"{prefix}-lan", f"{prefix}-node-1", f"{prefix}-other"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        leg = ["ip", "link", "add", f"{prefix}-up", "type", "veth", "peer", "name", "outside", "netns", names[2]]
        subprocess.run(leg, check=True)
        left = subprocess.Popen(["ip", "netns", "exec", names[0], "sleep", "60"])
        there = Path("/run/netns")
        while Path(f"/proc/{left.pid}/ns/net").stat().st_ino != (there / names[0]).stat().st_ino:
            assert left.poll() is None
        assert claims.sweep() == [prefix]
        assert left.wait(timeout=30) == -9
        assert [name for name in names if (there / name).exists()] == [names[2]], "not a name that a cluster gives"
        assert not Path(f"/sys/class/net/{prefix}-up").exists()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{prefix}-up"], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("shown", "owned", "says"),
    [
        ("", {}, ""),
        ("", {"shk5": 5}, ""),
        (SHOWN.format(device="shk5-up"), {"shk5": 5}, "(process 5): make cluster-down"),
        (SHOWN.format(device="shk5-up"), {"shk6": 6}, "ip link del shk5-up"),
        (SHOWN.format(device="eth0"), {"shk5": 5}, "ip addr del 10.99.0.254/24 dev eth0"),
    ],
)
def test_who_has_the_address_is_told(shown: str, owned: dict[str, int], says: str) -> None:
    told = claims.in_the_way(shown, owned)
    assert says in told
    assert bool(told) == bool(says)
    assert "\n" not in told


@pytest.mark.needs_root
def test_make_cluster_says_so_in_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_CLUSTER_CACHE", str(tmp_path))
    binaries.directory().mkdir()
    for name in binaries.PACKAGES:
        (binaries.directory() / name).touch()
    if lacks := missing():
        pytest.skip(skips.lacking(lacks))
    here = f"shoal-t{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", here], check=True)
        subprocess.run(["ip", "-n", here, "addr", "add", "10.99.0.254/32", "dev", "lo"], check=True)
        words = ["ip", "netns", "exec", here, sys.executable, "-m", "tests.parts.kubecluster", "up"]
        ran = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    finally:
        subprocess.run(["ip", "netns", "del", here], check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [claims.in_the_way(SHOWN.format(device="lo").replace("/24", "/32"), {})]
    assert ran.stdout == ""
