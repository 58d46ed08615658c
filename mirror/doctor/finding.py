"""What a check found, as a value, and how it is printed. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "note", "wrong"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `shoal doctor`."""

    check: str
    """What was looked at: containerd, cri-o, docker, agent, tracker, conflict, clock, disk, dns, proxy, credentials,
    canary, pod."""

    level: Level
    what: str
    """What was found, as one sentence."""

    mend: str = ""
    """The command or the setting that mends it; empty where nothing is wrong."""

    where: str = ""
    """The node, when several are looked at."""


def ok(check: str, what: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check=check, level="ok", what=what)


def note(check: str, what: str) -> Finding:
    """Worth knowing, and no fault."""
    return Finding(check=check, level="note", what=what)


def wrong(check: str, what: str, mend: str) -> Finding:
    """A fault, and what mends it."""
    return Finding(check=check, level="wrong", what=what, mend=mend)


def line(finding: Finding) -> str:
    """*finding* as one line, without control characters: names come from files and from other nodes."""
    place = f"{finding.where} " if finding.where else ""
    text = f"{finding.level:<5} {place}{finding.check}: {finding.what}" + (
        f". Do: {finding.mend}" if finding.mend else ""
    )
    return "".join(char if char.isprintable() else " " for char in text)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything is wrong."""
    return any(finding.level == "wrong" for finding in findings)
