"""Images that are kept: never more than their share, spared whatever comes in, known after a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.blob.digest import parse
from swarm.blob.errors import StoreFull
from swarm.protocol import wire
from swarm.storage.evict import cost
from swarm.storage.kept import SHARE, Kept, KeptImage, refusal, room_of, trimmed
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import content, pieces_of, put

MIB = 1024 * 1024


def order(image: str = "r.example/app:1", copies: int = 1, serial: int = 1) -> wire.Keep:
    return wire.Keep(image=image, copies=copies, serial=serial)


def image(name: str = "r.example/app:1", serial: int = 1, copies: int = 1, **blobs: int) -> KeptImage:
    """An image of blobs of so many bytes, each known by a word."""
    return KeptImage(order(name, copies, serial), digest_of(b"m"), {digest_of(k.encode()): v for k, v in blobs.items()})


FITS, HALF = "", "more than half of this node's store"

TABLE = [
    ("the first that fits", {}, image(a=MIB), 4 * MIB, FITS),
    ("one that is too large alone", {}, image(a=3 * MIB), 4 * MIB, HALF),
    ("one that is too large beside another", {"x": image("x", a=MIB)}, image(b=2 * MIB), 4 * MIB, HALF),
    ("layers of both count once", {"x": image("x", a=MIB)}, image(a=MIB), 3 * MIB, FITS),
    ("it takes the place of its own old meaning", {"r.example/app:1 ": image(a=MIB)}, image(b=MIB), 3 * MIB, FITS),
    ("what it consists of is not known yet", {"x": image("x", a=2 * MIB)}, image(), 1, FITS),
    ("too many of them", {str(n): image(str(n)) for n in range(wire.MAX_KEPT)}, image(), MIB, "images already"),
    ("those that nobody keeps count for nothing", {str(n): image(str(n), copies=0) for n in range(99)}, image(), 1, ""),
    ("too many parts", {}, KeptImage(order(), "", {str(n): 1 for n in range(513)}), 1 << 40, "513 parts"),
]


@pytest.mark.parametrize(("known", "new", "budget", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_may_be_kept(known: dict[str, KeptImage], new: KeptImage, budget: int, said: str) -> None:
    found = refusal(known, new, budget)
    assert said in found
    assert bool(said) == bool(found)
    assert len(found.splitlines()) <= 1


images = st.lists(
    st.builds(
        KeptImage,
        st.builds(wire.Keep, image=st.sampled_from("abcdefgh"), copies=st.integers(0, 3), serial=st.integers(0, 9)),
        st.just(""),
        st.dictionaries(st.integers(0, 9).map(lambda n: digest_of(str(n).encode())), st.integers(0, MIB), max_size=4),
    ),
    max_size=20,
)


@given(images, st.integers(1, 4 * MIB))
def test_together_they_never_take_more_than_their_share(asked: list[KeptImage], budget: int) -> None:
    """Whatever is ordered, in whatever order."""
    known: dict[str, KeptImage] = {}
    for one in asked:
        if not refusal(known, one, budget):
            known[one.keep.name] = one
        room = room_of(known.values())
        assert room <= SHARE * budget or not any(one.blobs for one in known.values())


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 1)), max_size=150))
def test_of_those_that_ended_the_newest_are_remembered(said: list[tuple[int, int]]) -> None:
    known = {str(n): KeptImage(order(str(n), copies, serial)) for n, (serial, copies) in enumerate(said)}
    left = trimmed(known)
    assert all(name in left for name, one in known.items() if one.keep.copies)
    gone = [one.keep.serial for name, one in known.items() if name not in left]
    assert max(gone, default=-1) <= min((one.keep.serial for one in left.values() if not one.keep.copies), default=999)
    assert len(left) <= max(wire.MAX_KEPT, sum(bool(one.keep.copies) for one in known.values()))


async def kept_of(root: Path, budget: int, *datas: bytes) -> Kept:
    """A store's kept images: one, of those blobs."""
    root.mkdir(exist_ok=True)
    kept = Kept(root / "kept.json", budget)
    await kept.put(KeptImage(order(), digest_of(datas[0]), {digest_of(data): len(data) for data in datas}))
    return kept


async def test_pressure_takes_everything_but_what_is_kept(tmp_path: Path) -> None:
    """Ten times the budget goes through: what is kept is the oldest, and stays, whole or in parts."""
    whole, part = blob(MIB, 1), blob(2 * MIB, 2)
    kept = await kept_of(tmp_path, 10 * MIB, whole, part)
    async with Opened(tmp_path, 10 * MIB, kept) as store:
        await put(store, whole)
        pieces = pieces_of(part)
        staged = await store.stage(parse(digest_of(part)), len(part))
        await staged.write(part[:MIB], 0)
        await staged.note({index: pieces[index] for index in range(4)})
        await staged.abandon(keep=True)
        for seed in range(50):
            await put(store, blob(2 * MIB, 100 + seed))
        assert store.evictions > 40
        assert content(store, parse(digest_of(whole))) == whole
        again = await store.stage(parse(digest_of(part)), len(part))
        assert sorted(again.pieces) == [0, 1, 2, 3]
        await again.abandon(keep=True)
        with pytest.raises(StoreFull):  # a blob for which what is kept would have to go
            await store.stage(parse(digest_of(b"large")), 9 * MIB)
        await kept.drop(order().name)
        await (await store.stage(parse(digest_of(b"large")), 9 * MIB)).abandon(keep=False)


async def test_a_restart_spares_it_before_the_store_makes_room(tmp_path: Path) -> None:
    """With a smaller budget: the newer blobs go."""
    first, others = blob(MIB, 1), [blob(MIB, seed) for seed in range(2, 7)]
    kept = await kept_of(tmp_path, 20 * MIB, first)
    async with Opened(tmp_path, 20 * MIB, kept) as store:
        for data in (first, *others):
            await put(store, data)
    kept = Kept(tmp_path / "kept.json", 4 * MIB)
    assert await kept.load() == []
    async with Opened(tmp_path, 4 * MIB, kept) as store:
        assert content(store, parse(digest_of(first))) == first
        assert store.evictions
    assert kept.bytes == cost(MIB)


async def test_what_a_smaller_store_takes_no_longer_is_named(tmp_path: Path) -> None:
    """The oldest orders stay; the others are told with the reason, and are evicted like anything."""
    kept = Kept(tmp_path / "kept.json", 20 * MIB)
    for serial in range(3):
        await kept.put(image(f"r.example/{serial}:1", serial, **{f"b{serial}": 2 * MIB}))
    smaller = Kept(tmp_path / "kept.json", 6 * MIB)
    refused = await smaller.load()
    assert [keep.image for keep, _ in refused] == ["r.example/1:1", "r.example/2:1"]
    assert all(HALF in reason for _, reason in refused)
    assert digest_of(b"b0") in smaller
    assert digest_of(b"b1") not in smaller


async def test_one_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json", 4 * MIB)
    await kept.put(image(a=MIB))
    with pytest.raises(StoreFull, match="half of this node's store"):
        await kept.put(image(serial=2, b=3 * MIB))
    assert digest_of(b"a") in kept
    assert digest_of(b"b") not in kept


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'[{"keep": {"image": "a"}}]', b"\xff" * 100])
async def test_what_is_no_such_file_counts_as_empty(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "kept.json").write_bytes(text)
    kept = Kept(tmp_path / "kept.json", MIB)
    assert await kept.load() == []
    assert not kept.images()
    await kept.put(image(a=1))
    assert len(msgspec.json.decode((tmp_path / "kept.json").read_bytes())) == 1


async def test_a_disk_that_takes_no_file_is_told_and_it_is_kept_until_the_end(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "none" / "kept.json", MIB)
    await kept.put(image(a=1))
    assert digest_of(b"a") in kept


class Opened:
    """A store that spares *kept*."""

    def __init__(self, root: Path, budget: int, kept: Kept) -> None:
        self._store = Store(root, budget, reserve_free=0, spared=kept)

    async def __aenter__(self) -> Store:
        await self._store.open()
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()
