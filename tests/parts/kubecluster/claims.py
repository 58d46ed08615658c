"""Who has which cluster on this machine, and the end of what a killed run left.

A cluster's process holds a lock for as long as it lives. The file that is locked says what the cluster is called and
where it keeps its files. A file whose lock can be had belongs to nobody any more: what it names is taken away, by
whoever begins or ends a cluster next. A process id alone would not do: the kernel gives it to others.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.parts.kubecluster import groups
from tests.parts.procs import PartFailed

RUNS = Path("/run/shoal-clusters")
"""One file for each cluster: `<prefix>` -> the owner's process id, and the cluster's directory, a line each."""

LOCK = ".lock"
"""Beside them: who has this one is the only one who reads or writes them."""

NAMESPACES = Path("/run/netns")
PLACE = r"(lan|control|registry|node-\d+)"
"""What follows the prefix in the name of a network namespace."""

BASE = "shoal-kube-"
"""How the name of a cluster's directory begins. No other directory is ever taken away."""


@contextmanager
def claim(prefix: str, base: Path) -> Iterator[None]:
    """Say that this process has the cluster *prefix*, whose files are in *base*. At the end it has gone, with all
    that belongs to it. Raises PartFailed if another process has a cluster of this name."""
    with _alone():
        file = (RUNS / prefix).open("a+")
        if not _orphaned(file):
            file.close()
            raise PartFailed(f"another process has the cluster {prefix}: make cluster-down")
        file.truncate(0)
        file.write(f"{os.getpid()}\n{base}\n")
        file.flush()
    try:
        yield
    finally:
        with _alone():
            (RUNS / prefix).unlink(missing_ok=True)
            file.close()


def sweep() -> list[str]:
    """Take away what dead processes left: the prefixes of their clusters."""
    gone = []
    with _alone():
        for file in sorted(RUNS.iterdir()):
            with file.open() as opened:
                if file.name == LOCK or not _orphaned(opened):
                    continue
                _remove(file.name, opened.read().splitlines()[1:])
                file.unlink()
                gone.append(file.name)
    return gone


def owners() -> dict[str, int]:
    """Prefix -> process id of the clusters that are there now."""
    found = {}
    with _alone():
        for file in RUNS.iterdir():
            with file.open() as opened:
                if file.name != LOCK and not _orphaned(opened):
                    found[file.name] = int(opened.readline())
    return found


def in_the_way(shown: str, owned: dict[str, int]) -> str:
    """Why this machine cannot have a leg in another cluster, and what to do; "": it can.

    *shown*: what `ip -o addr show to <address of the leg>` printed. *owned*: as `owners` says.
    """
    if not (words := shown.split()):
        return ""
    device, has = words[1].partition("@")[0], words[3]
    if (pid := owned.get(device.removesuffix("-up"))) is not None:
        return f"another cluster can be reached from this machine (process {pid}): make cluster-down, or end that test"
    away = f"ip link del {device}" if device.endswith("-up") else f"ip addr del {has} dev {device}"
    return f"the interface {device} has the address {has} that a cluster needs: {away}"


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else claims or sweeps in this block."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _orphaned(opened: IO[str]) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(prefix: str, base: list[str]) -> None:
    """The cluster's processes (the kernel has ended them with their owner, nearly always), network and files."""
    for file in NAMESPACES.glob(f"{prefix}-*"):
        if not re.fullmatch(PLACE, file.name.removeprefix(f"{prefix}-")):
            continue
        for pid in _ip("netns", "pids", file.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", file.name)
        groups.remove(file.name)
    _ip("link", "del", f"{prefix}-up")
    for path in map(Path, base):
        if path.name.startswith(BASE) and "SHOAL_CLUSTER_KEEP_LOGS" not in os.environ:
            subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=False, capture_output=True)


def _ip(*words: str) -> str:
    """What `ip` prints; "" if it fails: there is no such thing."""
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=30).stdout
