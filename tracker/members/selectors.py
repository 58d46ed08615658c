"""Label selectors, as `kubectl -l` takes them (kubernetes.io/docs, "Labels and Selectors"). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

LONGEST = 1000
"""Characters of a selector at most."""

_KEY = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?"
_EQUAL = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_HAS = re.compile(rf"(!?)\s*({_KEY})")


class Requirement(NamedTuple):
    """*key* has one of *values* (None: any value); *wanted* False: it has not."""

    key: str
    values: frozenset[str] | None
    wanted: bool


def parse_selector(text: str) -> tuple[Requirement, ...]:
    """The requirements of *text*; all must hold. Raises ValueError with one line."""
    if len(text) > LONGEST:
        raise ValueError("the selector is too long")
    return tuple(_requirement(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip())


def fits(requirements: tuple[Requirement, ...], labels: Mapping[str, str]) -> bool:
    """Whether *labels* are as *requirements* say. As with Kubernetes, a label that is missing is unlike any value."""
    return all(_fits(one, labels.get(one.key)) for one in requirements)


def _fits(one: Requirement, value: str | None) -> bool:
    there = value is not None and (one.values is None or value in one.values)
    return there == one.wanted


def _requirement(part: str) -> Requirement:
    if match := _SET.fullmatch(part):
        values = frozenset(value.strip() for value in match[3].split(","))
        if all(re.fullmatch(_VALUE, value) for value in values):
            return Requirement(match[1], values, match[2] == "in")
    if match := _EQUAL.fullmatch(part):
        return Requirement(match[1], frozenset({match[3]}), match[2] != "!=")
    if match := _HAS.fullmatch(part):
        return Requirement(match[2], None, not match[1])
    raise ValueError(f"{part[:60]!r} is no label selector: write key=value, key!=value, key in (a,b), key or !key")
