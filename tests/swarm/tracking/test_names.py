"""Tags on one node without a tracker: fresh, stale, restarted, and with a clock that goes wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from swarm.blob.errors import SourceBroken, SourceBusy, SourceError, SourceRefused
from swarm.protocol import wire
from swarm.tracking import tags as module
from swarm.tracking.tags import Meaning, Resolved, Tags
from swarm.tracking.trackers import Trackers
from tests.parts.harbour import Nobody
from tests.parts.talk import digest_of

OLD, NEW = digest_of("old"), digest_of("new")
NAME = "registry.example/app:latest"
START = 1_700_000_000.0


class Node:
    """Names of one node, a clock and an upstream that the test moves."""

    def __init__(self, directory: Path, *, keep: float = 1000.0) -> None:
        self.now = START
        self.path = directory / "names.json"
        self.keep = keep
        self.says: Meaning | SourceError = Meaning(OLD, "type", 5)
        self.takes = 0.0
        self.asked = 0
        self.names = self.started()

    def started(self) -> Tags:
        """Another process, on the same file."""
        return Tags(self.path, self.keep, Trackers((), "node", Nobody()), clock=lambda: self.now)

    async def ask(self) -> Meaning:
        """Upstream."""
        self.asked += 1
        said, self.now = self.says, self.now + self.takes
        if isinstance(said, SourceError):
            raise said
        return said

    async def resolve(self, ttl: float = 10.0, name: str = NAME) -> Resolved:
        """What the node says."""
        return await self.names.resolve(name, ttl, self.ask)

    def hear(self, digest: str, age: float) -> None:
        """What a tracker knows."""
        self.names._take(wire.Name(name=NAME, digest=digest, media_type="type", size=5, age=age))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_meaning_is_fresh_for_its_ttl_from_the_question_on(node: Node) -> None:
    node.takes = 4.0
    assert (await node.resolve()).meaning.digest == OLD
    node.says, node.now = Meaning(NEW, "type", 5), START + 9.9
    assert (await node.resolve()).meaning.digest == OLD
    node.now = START + 10.0
    assert (await node.resolve()).meaning.digest == NEW
    assert node.asked == 2


async def test_a_ttl_of_zero_asks_each_time(node: Node) -> None:
    await node.resolve(0.0)
    await node.resolve(0.0)
    assert node.asked == 2


@pytest.mark.parametrize("error", [SourceBusy("429"), SourceBroken("gone")])
async def test_while_upstream_is_down_the_last_known_meaning_answers_for_so_long(
    node: Node, error: SourceError
) -> None:
    await node.resolve()
    node.says, node.now = error, START + 1000.0
    told = await node.resolve()
    assert (told.meaning.digest, told.stale, told.age) == (OLD, True, 1000.0)
    node.now += 1.0
    with pytest.raises(type(error)):
        await node.resolve()


async def test_what_upstream_refuses_has_no_last_known_meaning(node: Node) -> None:
    await node.resolve()
    node.says, node.now = SourceRefused("404", status=404), START + 11.0
    with pytest.raises(SourceRefused):
        await node.resolve()


async def test_many_at_once_ask_once(node: Node) -> None:
    told = await asyncio.gather(*(node.resolve(0.0) for _ in range(50)))
    assert ({resolved.meaning.digest for resolved in told}, node.asked) == ({OLD}, 1)


async def test_a_restart_remembers_every_name_of_a_burst(node: Node) -> None:
    """Also those that were resolved while the file was being written."""
    wanted = [f"{NAME}-{index}" for index in range(30)]
    for name in wanted:
        await node.resolve(name=name)
    assert node.names._saving is not None
    await node.names._saving
    again = node.started()
    await again.load()
    assert sorted(told.name for told in again.known()) == sorted(wanted)


async def test_a_tracker_is_told_only_what_this_agent_heard_itself(node: Node) -> None:
    """What the cluster agreed on is not this agent's word: repeated by all, one lie would look like many."""
    await node.resolve(name="own")
    node.hear(OLD, age=1.0)
    assert [told.name for told in node.names.known()] == ["own"]
    assert {told.name for told in node.names.known(own=False)} == {"own", NAME}
    await node.resolve(0.0)
    assert {told.name for told in node.names.known()} == {"own", NAME}


async def test_an_older_meaning_from_a_tracker_does_not_replace_a_newer_one(node: Node) -> None:
    node.says = Meaning(NEW, "type", 5)
    await node.resolve()
    node.hear(OLD, age=3.0)
    assert [told.digest for told in node.names.known(own=False)] == [NEW]
    node.now += 5.0
    node.hear(OLD, age=1.0)  # a roll-back is newer
    assert [told.digest for told in node.names.known(own=False)] == [OLD]


async def test_a_clock_that_is_set_back_pins_no_digest(node: Node) -> None:
    """An hour ahead when the tag was resolved, then corrected: running, after a restart, and beside a tracker."""
    node.now = START + 3600.0
    await node.resolve()
    node.says, node.now = Meaning(NEW, "type", 5), START
    assert (await node.resolve()).meaning.digest == NEW
    node.now = START + 3600.0
    node.says = Meaning(OLD, "type", 5)
    await node.resolve(0.0)
    node.now = START
    node.hear(NEW, age=1.0)
    assert [told.digest for told in node.names.known(own=False)] == [NEW]
    await node.names.save()
    node.now = START - 3600.0
    node.names = node.started()
    await node.names.load()
    [told] = node.names.known(own=False)
    assert told.age == 0.0


async def test_names_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that came from a tracker, too; the one just heard stays, however old it is."""
    monkeypatch.setattr(module, "MOST_NAMES", 3)
    for index in range(5):
        node.now += 1.0
        await node.resolve(name=f"{NAME}-{index}")
    node.hear(OLD, age=500.0)
    assert [told.name for told in node.names.known(own=False)] == [f"{NAME}-3", f"{NAME}-4", NAME]
