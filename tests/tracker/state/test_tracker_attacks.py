"""One member, and a third of all members, lie about a blob: how long are the others kept from it?

The board and the tracker's state in this process, on a clock that the test moves. Honest agents take a second for a
window. Whoever is told to go its own way has the blob from upstream then, so it counts as served.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from swarm.blob.digest import parse
from swarm.blob.errors import BadHashes
from swarm.blob.geometry import MIB, geometry
from swarm.protocol import wire
from swarm.protocol.board import Board
from swarm.protocol.standing import Trust
from tests.parts.talk import digest_of
from tracker.errors import Refused
from tracker.members.gate import Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.cluster import Cluster

DIGEST = parse("sha256:" + "cd" * 32)
SIZE = 15 * MIB
CUT = geometry(SIZE)
WINDOWS = len(CUT.windows)
HONEST = [f"honest-{n}" for n in range(6)]
LIARS = [f"liar-{n}" for n in range(3)]
STEP = 0.5
LONGEST = 300.0


def hashes(window: int, told_by: str = "truth") -> bytes:
    """Hashes of *window* that only *told_by* would tell."""
    return b"".join(
        hashlib.sha1(f"{told_by} {window} {p}".encode()).digest() for p in range(CUT.windows[window].pieces)
    )


@dataclass
class Play:
    """A blob that everybody wants at once. *lie*: what a liar does at each step."""

    lie: Callable[[Play, str], None]
    liars: list[str] = field(default_factory=lambda: list(LIARS))
    now: float = 0.0
    blamed: set[str] = field(default_factory=set)
    since: dict[tuple[str, int], float] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)
    """Honest agent -> when it had the blob."""
    upstream: int = 0
    """Windows that honest agents brought in."""

    def __post_init__(self) -> None:
        trust = Trust(
            proven=lambda _: False, may_claim=lambda agent: agent not in self.blamed, doubted=lambda: bool(self.blamed)
        )
        self.board = Board(DIGEST, trust=trust)

    def run(self) -> float:
        """Until every honest agent is served; when the last one was. The liars come first, each time."""
        while len(self.served) < len(HONEST):
            assert self.now < LONGEST, f"{len(HONEST) - len(self.served)} were kept from the blob"
            for liar in self.liars:
                self.lie(self, liar)
                self._assign()
            for agent in HONEST:
                self._honest(agent)
                self._assign()
            self.now += STEP
        return max(self.served.values())

    def join(self, agent: str) -> None:
        """*agent* takes part, and would bring in two windows at once."""
        self.board.join(agent, self.now, size=SIZE, want=2, have=self._have())

    def publish(self, agent: str, window: int, told_by: str) -> None:
        """*agent* tells the hashes of *window*."""
        outcome = self.board.publish(
            agent, self.now, generation=self.board.generation, size=SIZE, window=window, hashes=hashes(window, told_by)
        )
        self.blamed |= {blame.agent for blame in outcome.blamed}

    def _have(self) -> int:
        return sum(1 << window for window in self.board.windows)

    def _assign(self) -> None:
        self.blamed |= {blame.agent for blame in self.board.assign(self.now).blamed}

    def _honest(self, agent: str) -> None:
        if agent in self.served:
            return
        self.join(agent)
        self._assign()
        board = self.board
        if board.alone(agent):
            self.served[agent] = self.now
            return
        if board.complete:
            right = all(board.windows[window].hashes == hashes(window) for window in range(WINDOWS))
            act = board.seal if right else board.reject
            outcome = act(agent, board.generation)
            self.blamed |= {blame.agent for blame in outcome.blamed}
            if right:
                self.served[agent] = self.now
            return
        mine = board.claims_of(agent)
        for key in [key for key in self.since if key[0] == agent and key[1] not in mine]:
            del self.since[key]
        for window in mine:
            began = self.since.setdefault((agent, window), self.now)
            if self.now - began >= 1.0:
                self.upstream += 1
                self.publish(agent, window, "truth")
            else:
                board.progress(agent, self.now, {window: CUT.windows[window].length // 2})


def keeps(play: Play, liar: str) -> None:
    """Takes claims, says that they grow, and brings nothing in."""
    play.join(liar)
    done = {w: int(CUT.windows[w].length * min(1.0, 0.05 * (1 + play.now % 20))) for w in play.board.claims_of(liar)}
    play.board.progress(liar, play.now, done, waiting=dict.fromkeys(done, 0.1), timeout=1e9)


def invents(play: Play, liar: str) -> None:
    """Takes claims and publishes hashes of its own making, the same as all liars."""
    play.join(liar)
    for window in play.board.claims_of(liar):
        play.publish(liar, window, "lie")


def rejects(play: Play, liar: str) -> None:
    """Rejects whatever is complete, and accuses nobody else."""
    play.join(liar)
    if play.board.complete:
        outcome = play.board.reject(liar, play.board.generation)
        play.blamed |= {blame.agent for blame in outcome.blamed}


def seals_first(play: Play, liar: str) -> None:
    """Says that it holds the blob, with the same invented hashes as the other liars, as often as it can."""
    play.board.join(liar, play.now)
    try:
        play.board.seal_whole(liar, SIZE, b"".join(hashes(window, "lie") for window in range(WINDOWS)))
    except BadHashes as error:  # pragma: no cover - they have the right form
        raise AssertionError from error


FAIR = 6.0
"""Seconds that the honest need alone: 15 MiB in windows, eight claims at a time, one second each."""


def test_without_liars_it_takes_the_time_of_upstream() -> None:
    play = Play(keeps, liars=[])
    assert play.run() <= FAIR
    assert play.upstream == WINDOWS


@pytest.mark.parametrize("liars", [1, 3])
def test_a_third_of_all_that_keep_claims_does_not_keep_the_rest_from_the_blob(liars: int) -> None:
    """Each holds one claim for some seconds; the others bring in the rest, and those windows after them."""
    play = Play(keeps, liars=LIARS[:liars])
    assert play.run() <= FAIR + 30.0
    assert not play.blamed & set(HONEST)


@pytest.mark.parametrize("liars", [1, 3])
def test_a_third_of_all_that_tell_wrong_hashes_is_found_out(liars: int) -> None:
    """Nobody honest is blamed; after a few generations the blob is there, or everybody goes upstream by itself."""
    play = Play(invents, liars=LIARS[:liars])
    assert play.run() <= 30.0 * (1 + liars)
    assert play.blamed == set(LIARS[:liars])
    assert not play.blamed & set(HONEST)


@pytest.mark.parametrize("liars", [1, 3])
def test_a_third_of_all_that_reject_what_is_right_does_not_stop_the_others(liars: int) -> None:
    play = Play(rejects, liars=LIARS[:liars])
    assert play.run() <= 60.0
    assert not play.blamed & set(HONEST)


@pytest.mark.parametrize("liars", [1, 3])
def test_a_made_up_whole_copy_keeps_nobody_from_the_bytes(liars: int) -> None:
    """Told before anybody pulls: by one member it costs seconds, by a third of all that agree it makes all go alone.

    Honest agents find the sha256 wrong at once here: what the liars' bytes cost on the wire is the engine's to bound.
    """
    play = Play(seals_first, liars=LIARS[:liars])
    assert play.run() <= 60.0
    assert not play.blamed & set(HONEST)


# -- what one member can have a tracker keep --------------------------------------------------------------


@pytest_asyncio.fixture
async def state() -> AsyncIterator[Cluster]:
    """A tracker's state, without its HTTP."""
    made = Cluster(TrackerSettings(), Metrics(CollectorRegistry()))
    yield made
    made.stop()


REST = 60 * MIB
"""Bytes of a tracker at rest (RSS: 62-70 MiB)."""


async def test_what_one_member_can_have_a_tracker_keep_is_less_than_the_tracker_itself(state: Cluster) -> None:
    """Hashes, holdings, names and counters, from many processes of one member, until nothing more is taken."""
    visitor = Visitor("10.0.0.66", True, "", ip_address("10.0.0.66").packed, "agent/evil")
    mib = geometry(50 << 30).pieces * 20  # just what is taken unasked
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for port in range(1, 21):
            await asyncio.sleep(0)  # each process says it in requests of its own
            me: dict[str, Any] = {"node": "n" * 1024, "port": port, "session": f"s{port}"}
            names = tuple(
                wire.Name(name=f"{port}/{n}/" + "n" * 900, digest=DIGEST, media_type="t" * 900, size=1, age=0.0)
                for n in range(250)
            )
            poll = wire.AgentPoll(
                **me, full=True, names=names,
                add=tuple(wire.CompleteBlob(digest=digest_of(f"{port} {n}"), size=1) for n in range(250)),
                stats={f"k{n:x>60}": 1.0 for n in range(64)},
            )  # fmt: skip
            agent = state.hello(poll, visitor)
            state.holds(agent, poll)
            said = wire.Whole(**me, digest=digest_of(f"whole {port}"), size=50 << 30, hashes=b"\x01" * mib)
            with contextlib.suppress(Refused):
                state.whole(agent, said)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < REST
