"""Control groups, in every hierarchy of version 1 or in the one of version 2."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def make(name: str) -> None:
    """Make the group *name*; where it is there already, or the hierarchy refuses it, nothing."""
    for place in _hierarchies():
        with suppress(OSError):
            (place / name).mkdir(exist_ok=True)


def remove(name: str) -> None:
    """Take the group *name* away with what is in it, as far as no process is left there."""
    for group in (place / name for place in _hierarchies() if (place / name).exists()):
        for inner in sorted(group.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                inner.rmdir()
        with suppress(OSError):
            group.rmdir()


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [place for place in ROOT.iterdir() if place.is_dir() and not place.is_symlink()]
