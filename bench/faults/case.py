"""One fault as a declaration, what is expected of it, and how it is done to a scene."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bench.faults.client import Answer
from bench.faults.scene import Scene, Shape, scene, wait_until

Deed = Callable[[Scene], None]

ALL = ()

MEMBERS = 5.0
"""Seconds after the mending within which every agent is a member again: a cable that was pulled costs one of ARP."""


@dataclass(frozen=True)
class Case:
    """A fault, and pulls under it.

    The blob is new, or held by *holders*. The fault is done *after* seconds of the pulls, or before them. Afterwards
    all is mended, and every agent must be a member again within MEMBERS and get another blob.
    """

    name: str
    area: str
    fault: str
    hurt: Deed
    shape: Shape = field(default_factory=Shape)
    mib: float = 24
    holders: Sequence[int] | None = None
    after: float | None = None
    ask: Sequence[int] = ALL
    """Agents that pull; all if empty."""
    resume: bool = False
    """Their clients ask again until they have all of it."""
    answer: str = "right"
    """"right"; "refused" before the first byte; "told": either of them, or a body that is visibly cut, in time."""
    seconds: float = 12.0
    """For every pull. A client that goes direct is stated in the fault's text, or takes mib / rate."""
    gap: float = 0.0
    """Longest time without a byte; 0: as *seconds*."""
    copies: float | None = 1.02
    """Most that upstream may send; None: does not matter."""
    then: float = 20.0
    """Seconds for the blob after the mending."""
    then_copies: float = 1.1
    more: Callable[[Scene], Sequence[str]] | None = None
    """What else is looked at, before the mending; what it says is wrong."""
    mend: Deed | None = None
    """Instead of Scene.mend."""
    quick: bool = False

    @property
    def expected(self) -> str:
        """In words, for the table."""
        words = {"right": "right", "refused": "404 or 503", "told": "an answer"}[self.answer]
        gap = f", a byte every {self.gap:g} s" if self.gap else ""
        copies = f", {self.copies:g} copies" if self.copies is not None else ""
        return f"{words} in {self.seconds:g} s{gap}{copies}; then right in {self.then:g} s"


@dataclass
class Seen:
    """What was seen of a case. *bad*: what was not as expected."""

    case: Case
    answers: str = ""
    seconds: float = 0.0
    copies: float = 0.0
    wrong: int = 0
    left: str = ""
    bad: list[str] = field(default_factory=list)
    took: float = 0.0

    @property
    def right(self) -> bool:
        """Whether all was as expected."""
        return not self.bad


def play(case: Case, *, keep: bool = False, patience: float = 1.0) -> Seen:
    """Do the fault to a cluster of its own. Raises nothing: what fails is in the result.

    *patience*: as a factor of every time that is expected, for machines that do something else as well.
    """
    began, seen = time.monotonic(), Seen(case)
    case = replace(case, seconds=case.seconds * patience, gap=case.gap * patience, then=case.then * patience)
    try:
        with scene(case.shape, keep=keep) as stage:
            _pulls(case, stage, seen)
            _afterwards(case, stage, seen)
            seen.wrong = stage.wrong
            if seen.wrong:
                seen.bad.append(f"{seen.wrong} complete wrong bodies")
            seen.left = stage.leftovers()
    except Exception as error:  # noqa: BLE001 - a row of the table, and the others go on
        seen.bad.append(f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}")
    seen.took = time.monotonic() - began
    return seen


def _pulls(case: Case, stage: Scene, seen: Seen) -> None:
    digest = stage.blob(case.mib) if case.holders is None else stage.held(case.mib, *case.holders)
    holders = case.holders or ()
    asking = [i for i in (case.ask or range(len(stage.agents))) if case.ask or i not in holders]
    limit = case.seconds * 1.5 + 10  # waits on, so that the table says how long it really takes
    if case.after is None:
        case.hurt(stage)
    pulls = stage.pulling(digest, asking, limit, resume=case.resume)
    if case.after is not None:
        time.sleep(case.after)
        case.hurt(stage)
    answers = stage.end(digest, pulls)
    seen.answers = ", ".join(map(str, answers))
    seen.seconds = max(answer.seconds for answer in answers)
    seen.copies = stage.up.copies(digest)
    for answer in answers:
        if not _is_expected(case, digest, answer):
            seen.bad.append(str(answer))
        elif answer.seconds > case.seconds:
            seen.bad.append(f"only after {answer.seconds:.1f} s")
        elif case.gap and answer.gap > case.gap:
            seen.bad.append(f"no byte for {answer.gap:.1f} s")
    if case.copies is not None and seen.copies > case.copies:
        seen.bad.append(f"{seen.copies:.2f} copies")
    if case.more is not None:
        seen.bad += case.more(stage)


def _is_expected(case: Case, digest: str, answer: Answer) -> bool:
    if case.answer == "right":
        return answer.right(digest)
    if case.answer == "refused":
        return answer.refused
    return answer.right(digest) or answer.refused or answer.error == "cut"


def _afterwards(case: Case, stage: Scene, seen: Seen) -> None:
    (case.mend or Scene.mend)(stage)
    if not wait_until(lambda: all(agent.status().get("member") for agent in stage.agents), MEMBERS):
        seen.bad.append(f"some agent is no member {MEMBERS:.0f} s after the mending")
    digest, rate = stage.blob(4), stage.up.rate
    stage.up.rate = max(rate, 4 * 1024 * 1024)
    everybody = range(len(stage.agents))
    answers = stage.end(digest, stage.pulling(digest, everybody, case.then + 10, resume=True))
    late = max(answer.seconds for answer in answers)
    if not all(answer.right(digest) for answer in answers):
        seen.bad.append("afterwards: " + ", ".join(map(str, answers)))
    elif late > case.then:
        seen.bad.append(f"afterwards only after {late:.1f} s")
    elif stage.up.copies(digest) > case.then_copies:
        seen.bad.append(f"afterwards {stage.up.copies(digest):.2f} copies")
    wait_until(lambda: not any(agent.status().get("requests") for agent in stage.agents), 3)
