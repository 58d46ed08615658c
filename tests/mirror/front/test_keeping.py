"""What an agent does with orders to keep images: has them here, says so, tries once, obeys the newest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirror.front.gathering import Arrived, Parts
from mirror.front.images import Part
from mirror.front.keeping import Keeper
from mirror.upstream.reference import Image
from swarm.blob.digest import Digest, parse
from swarm.blob.errors import SourceBroken, SourceError, SourceRefused
from swarm.protocol import wire
from swarm.storage.kept import Kept
from tests.parts.data import digest_of

MIB = 1024 * 1024
APP = "r.example/app:1"


def named(text: str) -> Digest:
    return parse(digest_of(text.encode()))


class Larder:
    """Images that can be had: each of its manifest and one layer. What was asked for is here at once."""

    def __init__(self) -> None:
        self.means = {APP: "one"}
        self.size = MIB
        self.here: set[Digest] = set()
        self.fetched: list[Digest] = []
        self.away: SourceError | None = None
        self.stays = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.news: asyncio.Queue[None] = asyncio.Queue()

    async def resolved(self, image: Image) -> Digest:
        if self.away is not None:
            raise self.away
        return named(self.means[str(image)])

    async def parts(self, image: Image, digest: Digest, wanted: str, arrived: Arrived) -> Parts:
        if self.away is not None:
            raise self.away
        arrived("upstream", 1)
        self.here.add(digest)
        return Parts((Part(digest, 10),), (Part(named(f"layer of {digest}"), self.size),))

    async def blob(self, image: Image, part: Part, arrived: Arrived) -> bool:
        await self.gate.wait()
        if part.digest in self.here:
            return False
        if self.away is not None:
            raise self.away
        self.fetched.append(part.digest)
        if self.stays:
            self.here.add(part.digest)
        return True

    def has(self, digest: Digest) -> bool:
        return digest in self.here


@asynccontextmanager
async def keeping(larder: Larder, path: Path, budget: int = 8 * MIB) -> AsyncIterator[tuple[Keeper, Kept]]:
    """An agent's keeper, as after its start; *larder* hears of news."""
    kept = Kept(path / "kept.json", budget)
    keeper = Keeper(larder, kept, lambda: larder.news.put_nowait(None), settle=0.0 if not larder.stays else 20.0)
    await keeper.load()
    keeper.start()
    try:
        yield keeper, kept
    finally:
        await keeper.close()


def order(serial: int = 1, copies: int = 2, *, here: bool = True, digest: str = "", image: str = APP) -> wire.KeepHere:
    return wire.KeepHere(keep=wire.Keep(image=image, copies=copies, serial=serial), here=here, digest=digest)


async def state(larder: Larder, keeper: Keeper, *wanted: str) -> wire.Kept | None:
    """The only order, once it is in one of the states *wanted*; None once there is none, if none is wanted."""
    async with asyncio.timeout(10):
        while True:
            found = keeper.kept()
            if not found and not wanted:
                return None
            if found and found[0].state in wanted:
                return found[0]
            await larder.news.get()


async def test_an_image_is_brought_in_and_kept(tmp_path: Path) -> None:
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, kept):
        keeper.take(order())
        said = await state(larder, keeper, "whole")
        assert said is not None
        assert said.digest == named("one")
        assert named("one") in kept
        assert named(f"layer of {named('one')}") in kept
        keeper.take(order())  # told again: nothing moves
        await state(larder, keeper, "whole")
    assert len(larder.fetched) == 1


async def test_a_restart_keeps_and_brings_in_what_is_missing(tmp_path: Path) -> None:
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, _):
        keeper.take(order())
        await state(larder, keeper, "whole")
    larder.here.discard(larder.fetched[0])
    async with keeping(larder, tmp_path) as (keeper, kept):
        assert [one.state for one in keeper.kept()] == ["fetching"]
        said = await state(larder, keeper, "whole")
        assert said is not None
        assert said.keep == order().keep
        assert named("one") in kept
    assert len(larder.fetched) == 2
    larder.away = SourceBroken("upstream is away")
    async with keeping(larder, tmp_path) as (keeper, _):  # all is here: nobody is asked
        await state(larder, keeper, "whole")


async def test_a_blob_that_is_lost_is_brought_in_again(tmp_path: Path) -> None:
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, _):
        keeper.take(order())
        await state(larder, keeper, "whole")
        lost = larder.fetched[0]
        larder.here.discard(lost)
        keeper.changed(lost, None)
        assert [one.state for one in keeper.kept()] == ["fetching"]
        await state(larder, keeper, "whole")
    assert larder.fetched == [lost, lost]


async def test_one_that_does_not_fit_fails_with_the_reason_before_a_byte_of_it_came(tmp_path: Path) -> None:
    larder = Larder()
    async with keeping(larder, tmp_path, budget=MIB) as (keeper, kept):
        keeper.take(order())
        said = await state(larder, keeper, "failed")
        assert said is not None
        assert "more than half of this node's store" in said.error
        assert named("one") not in kept
    assert not larder.fetched


@pytest.mark.parametrize("error", [SourceRefused("no such image"), SourceBroken("cut off")])
async def test_what_cannot_be_had_fails_and_is_tried_again_when_a_tracker_says_so(
    tmp_path: Path, error: SourceError
) -> None:
    larder = Larder()
    larder.away = error
    async with keeping(larder, tmp_path) as (keeper, _):
        keeper.take(order())
        said = await state(larder, keeper, "failed")
        assert said is not None
        assert said.error == str(error)
        larder.away = None
        keeper.take(order())
        await state(larder, keeper, "whole")


async def test_what_the_disk_does_not_take_is_not_called_whole(tmp_path: Path) -> None:
    larder = Larder()
    larder.stays = False
    async with keeping(larder, tmp_path) as (keeper, kept):
        keeper.take(order())
        said = await state(larder, keeper, "failed")
        assert said is not None
        assert "did not stay" in said.error
        assert named("one") not in kept


async def test_a_newer_order_follows_the_tag(tmp_path: Path) -> None:
    """What it meant before is let go once the new meaning is known; an older order does nothing."""
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, kept):
        keeper.take(order())
        await state(larder, keeper, "whole")
        larder.means[APP] = "two"
        keeper.take(order(serial=2))
        said = await state(larder, keeper, "whole")
        assert said is not None
        assert (said.digest, said.keep.serial) == (named("two"), 2)
        assert named("one") not in kept
        keeper.take(order(serial=1, copies=0))
        assert [one.state for one in keeper.kept()] == ["whole"]


async def test_while_upstream_is_away_an_order_keeps_what_was_kept(tmp_path: Path) -> None:
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, kept):
        keeper.take(order())
        await state(larder, keeper, "whole")
        larder.away = SourceBroken("away")
        keeper.take(order(serial=2))
        said = await state(larder, keeper, "whole")
        assert said is not None
        assert (said.digest, said.keep.serial) == (named("one"), 2)
        larder.away = SourceRefused("no such tag any more")
        keeper.take(order(serial=3))
        await state(larder, keeper, "failed")
        assert named("one") in kept


async def test_the_meaning_that_the_others_keep_is_kept(tmp_path: Path) -> None:
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, kept):
        keeper.take(order())
        await state(larder, keeper, "whole")
        keeper.take(order(digest=named("other")))
        said = await state(larder, keeper, "whole")
        assert said is not None
        assert said.digest == named("other")
        assert named("one") not in kept


async def test_no_copies_are_remembered_and_no_copy_here_is_not(tmp_path: Path) -> None:
    """A keeper that was away brings an ended order back to life unless somebody still knows that it ended."""
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, kept):
        keeper.take(order())
        await state(larder, keeper, "whole")
        keeper.take(order(here=False))
        await state(larder, keeper)
        assert named("one") not in kept
        keeper.take(order())
        keeper.take(order(serial=2, copies=0))
        await state(larder, keeper, "none")
        assert named("one") not in kept
    async with keeping(larder, tmp_path) as (keeper, _):
        assert [(one.keep.serial, one.state) for one in keeper.kept()] == [(2, "none")]
        keeper.take(order())
        assert [(one.keep.serial, one.state) for one in keeper.kept()] == [(2, "none")]


async def test_an_order_that_ends_another_under_way_does_not_wait_for_it(tmp_path: Path) -> None:
    larder = Larder()
    larder.gate.clear()
    async with keeping(larder, tmp_path) as (keeper, _):
        keeper.take(order())
        await state(larder, keeper, "fetching")
        keeper.take(order(serial=2, copies=0))
        await state(larder, keeper, "none")
    assert not larder.fetched


async def test_orders_are_bounded(tmp_path: Path) -> None:
    """Those that failed go first, then the oldest that ended."""
    larder = Larder()
    async with keeping(larder, tmp_path) as (keeper, _):
        for number in range(2 * wire.MAX_KEPT):
            keeper.take(order(serial=number, copies=0, image=f"r.example/{number}:1"))
            async with asyncio.timeout(10):
                while keeper.kept()[-1].state != "none":
                    await larder.news.get()
        assert len(keeper.kept()) <= wire.MAX_KEPT + 1
        assert keeper.kept()[-1].keep.serial == 2 * wire.MAX_KEPT - 1
