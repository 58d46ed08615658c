"""The blob store: what goes in comes out, whatever happened to the directory in between."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm.blob.digest import hex_of, parse
from swarm.blob.errors import BadHashes, StoreFull, StoreUnusable
from swarm.blob.geometry import FIRST_WINDOW, geometry
from swarm.storage.evict import cost
from swarm.storage.sidecar import RECORD
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import Told, content, hashes_of, pieces_of, put, taken

MIB = 1024 * 1024


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = time.time()  # files that the store makes carry the real time

    def __call__(self) -> float:
        self.now += 1
        return self.now


@asynccontextmanager
async def opened(root: Path, budget: int = 64 * MIB, clock: Clock | None = None) -> AsyncIterator[Store]:
    store = Store(root, budget, reserve_free=0, clock=clock or Clock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def descriptors_into(root: Path) -> list[str]:
    """What this process has open below *root*."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if target.startswith(str(root)):
            found.append(target)
    return found


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, FIRST_WINDOW, FIRST_WINDOW + 1, 9 * MIB + 7])
async def test_a_blob_comes_out_as_it_went_in_also_after_a_restart(tmp_path: Path, size: int) -> None:
    data = blob(size, 1)
    async with opened(tmp_path) as store:
        digest = await put(store, data)
        assert content(store, digest) == data
        assert list(store.complete()) == [(digest, size)]
        assert store.used == cost(size)
    async with opened(tmp_path) as store:
        assert content(store, digest) == data
        with store.get(digest) or pytest.fail("gone") as held:
            assert (held.hashes, held.size, held.origin) == (hashes_of(data), size, "disk")
            assert held.path.read_bytes() == data
    assert descriptors_into(tmp_path) == []


async def test_what_a_store_takes_on_disk_is_within_what_it_counts(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for seed, size in enumerate((0, 1, 4097, 300_000, 5 * MIB + 1)):
            await put(store, blob(size, seed))
        digest = parse("sha256:" + "ab" * 32)
        staged = await store.stage(digest, 4 * MIB)
        data = blob(4 * MIB, 99)
        await staged.write(data, 0)
        await staged.note(pieces_of(data))
        assert taken(tmp_path) <= store.used


async def test_one_process_per_directory(tmp_path: Path) -> None:
    async with opened(tmp_path):
        second = Store(tmp_path, MIB)
        with pytest.raises(StoreUnusable, match="in use by another process"):
            await second.open()
        await second.close()
    async with opened(tmp_path):
        pass


async def test_a_directory_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    store = Store(tmp_path / "file" / "store", MIB)
    with pytest.raises(StoreUnusable, match="Not a directory"):
        await store.open()
    await store.close()


async def test_a_changed_file_is_never_served(tmp_path: Path) -> None:
    """Same size, other bytes: gone once it was read again, and whoever relied on it is told."""
    async with opened(tmp_path) as store:
        digest = await put(store, blob(MIB, 1))
        told = Told(store)
        path = tmp_path / "blobs" / "sha256" / hex_of(digest)
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"!")
        os.utime(path, ns=(0, 0))
        assert store.get(digest) is None
        assert list(store.complete()) == []
        assert await store.get_checked(digest) is None
        assert told.lost == [digest]
        assert not path.exists()
        assert store.used == 0


@pytest.mark.parametrize("change", ["shorter", "longer", "replaced", "removed"])
async def test_a_file_of_another_size_or_inode_is_never_served(tmp_path: Path, change: str) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, blob(MIB, 1))
        path = tmp_path / "blobs" / "sha256" / hex_of(digest)
        if change == "shorter":
            os.truncate(path, 1000)
        elif change == "longer":
            os.truncate(path, MIB + 1)
        else:
            path.unlink()
            if change == "replaced":
                path.write_bytes(blob(MIB, 2))
        assert store.get(digest) is None
        assert await store.get_checked(digest) is None
        assert await put(store, blob(MIB, 1)) == digest
        assert content(store, digest) == blob(MIB, 1)


async def test_a_late_write_of_the_same_bytes_costs_one_reading(tmp_path: Path) -> None:
    """libtorrent may still flush what it has, by the staging path, after the blob was finished."""
    data = blob(2 * MIB, 1)
    async with opened(tmp_path) as store:
        told = Told(store)
        digest = parse(digest_of(data))
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        with await staged.finish(hashes_of(data)) as held:
            with staged.path.open("r+b") as file:
                file.seek(5)
                file.write(data[5:100])
            os.utime(staged.path, ns=(7, 7))
            assert os.pread(held.fd, held.size, 0) == data
        assert store.get(digest) is None
        again = await store.get_checked(digest)
        assert again is not None
        again.close()
        assert (told.lost, told.found) == ([], [(digest, len(data))])
        staged.forget()
        assert content(store, digest) == data
    async with opened(tmp_path) as store:
        assert content(store, digest) == data


@pytest.mark.parametrize("loss", ["missing", "torn", "stale"])
async def test_a_blob_whose_meta_is_unusable_is_read_again_and_kept(tmp_path: Path, loss: str) -> None:
    data = blob(MIB, 1)
    async with opened(tmp_path) as store:
        digest = await put(store, data)
    meta = tmp_path / "meta" / "sha256" / f"{hex_of(digest)}.json"
    if loss == "missing":
        meta.unlink()
    elif loss == "torn":
        meta.write_bytes(meta.read_bytes()[:50])
    else:
        os.utime(tmp_path / "blobs" / "sha256" / hex_of(digest), ns=(1, 1))
    async with opened(tmp_path) as store:
        assert store.get(digest) is None
        with await store.get_checked(digest) or pytest.fail("dropped") as held:
            assert held.hashes == hashes_of(data)
    async with opened(tmp_path) as store:
        assert content(store, digest) == data


async def test_a_wrong_blob_without_meta_is_dropped_at_the_next_start(tmp_path: Path) -> None:
    directory = tmp_path / "blobs" / "sha256"
    directory.mkdir(parents=True)
    digest = parse(digest_of(b"right"))
    (directory / hex_of(digest)).write_bytes(b"wrong")
    async with opened(tmp_path) as store:
        assert not await store.check(digest)
        assert await store.get_checked(digest) is None
    assert list(directory.iterdir()) == []


async def test_rubbish_goes_at_the_start_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, blob(1000, 1))
    ours = ["blobs/sha256/.x.new", "staging/" + "0" * 64, "staging/half.log", "meta/sha256/.a.new", "trash/7"]
    ours.append("meta/sha256/" + "1" * 64 + ".json")
    for name in ours:
        (tmp_path / name).write_bytes(b"rubbish")
    (tmp_path / "names.json").write_text("{}")
    (tmp_path / "blobs/sha256/directory").mkdir()
    async with opened(tmp_path) as store:
        assert content(store, digest) == blob(1000, 1)
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert (tmp_path / "names.json").exists()
    assert (tmp_path / "blobs/sha256/directory").exists()


async def test_a_partial_blob_goes_on_with_the_pieces_that_are_really_there(tmp_path: Path) -> None:
    """A piece that was noted, but whose bytes are not in the file, is not among them."""
    data = blob(3 * MIB, 1)
    pieces = pieces_of(data)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        await staged.write(data[: 2 * MIB], 0)
        await staged.note({i: pieces[i] for i in range(9)})
        assert staged.path.stat().st_size == len(data)
        assert store.get(digest) is None
        with pytest.raises(ValueError, match="already staged"):
            await store.stage(digest, len(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        assert staged.pieces == {i: pieces[i] for i in range(8)}
        await staged.write(data[2 * MIB :], 2 * MIB)
        (await staged.finish(hashes_of(data))).close()
        assert content(store, digest) == data
        staged.forget()
    assert descriptors_into(tmp_path) == []
    assert list((tmp_path / "staging").iterdir()) == []


async def test_a_torn_log_loses_only_its_tail(tmp_path: Path) -> None:
    data = blob(2 * MIB, 1)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        await staged.note(pieces_of(data))
    path = tmp_path / "staging" / f"{hex_of(digest)}.log"
    os.truncate(path, path.stat().st_size - RECORD - 3)
    async with opened(tmp_path) as store:
        assert len((await store.stage(digest, len(data))).pieces) == 6


async def test_abandoning_leaves_nothing_or_just_what_was_noted(tmp_path: Path) -> None:
    data = blob(4 * MIB, 1)
    pieces = pieces_of(data)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        await staged.note({5: pieces[5]})
        await staged.abandon(keep=True)
        await staged.abandon(keep=True)
        assert 256 * 1024 <= taken(tmp_path) <= store.used <= 256 * 1024 + 32 * 1024
        staged = await store.stage(digest, len(data))
        assert staged.pieces == {5: pieces[5]}
        with staged.share() as reader:
            await staged.abandon(keep=False)
            assert os.pread(reader.fd, 100, 5 * 256 * 1024) == data[5 * 256 * 1024 :][:100]
        assert store.used == 0
    assert list((tmp_path / "staging").iterdir()) == []
    assert descriptors_into(tmp_path) == []


async def test_a_partial_blob_of_another_size_is_begun_again(tmp_path: Path) -> None:
    digest = parse(digest_of(b"any"))
    data = blob(MIB, 1)
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        await staged.note(pieces_of(data))
        await staged.abandon(keep=True)
        staged = await store.stage(digest, 2 * MIB)
        assert staged.pieces == {}
        assert os.fstat(staged.fd).st_size == 2 * MIB


async def test_hashes_of_another_length_do_not_finish(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        with pytest.raises(BadHashes):
            await staged.finish(hashes_of(data)[20:])
        with pytest.raises(ValueError, match="not finished"):
            staged.forget()


async def test_a_cancelled_finish_is_finished_and_a_cancelled_stage_is_not_begun(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staging = asyncio.create_task(store.stage(digest, len(data)))
        await asyncio.sleep(0)
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        assert store.used == 0
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        finishing = asyncio.create_task(staged.finish(hashes_of(data)))
        await asyncio.sleep(0)
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        assert content(store, digest) == data
        staged.forget()
    assert descriptors_into(tmp_path) == []


async def test_an_old_reader_keeps_the_bytes_of_an_evicted_name(tmp_path: Path) -> None:
    """What is read is never evicted; and if the file goes in spite of that, the reader does not notice."""
    data = blob(MIB, 1)
    async with opened(tmp_path) as store:
        digest = await put(store, data)
        with store.get(digest) or pytest.fail("gone") as held, held.share() as second:
            (tmp_path / "blobs" / "sha256" / hex_of(digest)).unlink()
            assert store.get(digest) is None
            assert held.lost
            assert os.pread(second.fd, second.size, 0) == data
        with pytest.raises(ValueError, match="closed"):
            _ = held.fd
    assert descriptors_into(tmp_path) == []


async def test_the_least_recently_used_go_first_and_that_order_survives_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    budget = 3 * cost(MIB)
    async with opened(tmp_path, budget, clock) as store:
        first, second, third = [await put(store, blob(MIB, seed)) for seed in range(3)]
        clock.now += 100
        assert content(store, first)
    async with opened(tmp_path, budget, clock) as store:
        told = Told(store)
        fourth = await put(store, blob(MIB, 3))
        assert told.lost == [second]
        assert {digest for digest, _ in store.complete()} == {first, third, fourth}
        assert taken(tmp_path) <= budget
        assert store.evictions == 1


async def test_what_is_read_or_coming_in_is_not_evicted(tmp_path: Path) -> None:
    async with opened(tmp_path, 2 * cost(MIB)) as store:
        first = await put(store, blob(MIB, 1))
        with store.get(first) or pytest.fail("gone"):
            staged = await store.stage(parse(digest_of(b"x")), MIB)
            with pytest.raises(StoreFull):
                await store.stage(parse(digest_of(b"y")), 1)
            assert content(store, first) is not None
            await staged.abandon(keep=False)
            await (await store.stage(parse(digest_of(b"y")), 1)).abandon(keep=False)
        assert [digest for digest, _ in store.complete()] == [first]
        with pytest.raises(StoreFull):
            await store.stage(parse(digest_of(b"z")), 3 * MIB)
        assert content(store, first) is not None, "evicted for a blob that cannot fit at all"


async def test_a_smaller_budget_is_kept_from_the_start(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock=clock) as store:
        digests = [await put(store, blob(MIB, seed)) for seed in range(5)]
    async with opened(tmp_path, 2 * cost(MIB), clock=clock) as store:
        assert {digest for digest, _ in store.complete()} == set(digests[3:])
        assert taken(tmp_path) <= 2 * cost(MIB)


async def test_cold_windows_of_a_partial_blob_go_before_warm_ones(tmp_path: Path) -> None:
    size = 16 * MIB
    data = blob(size, 1)
    digest = parse(digest_of(data))
    layout = geometry(size)
    clock = Clock()
    async with opened(tmp_path, cost(size) + cost(MIB), clock) as store:
        staged = await store.stage(digest, size)
        await staged.write(data, 0)
        await staged.note(pieces_of(data))
        staged.touch(0, layout.windows[1].end)
        clock.now += 10
        for window in layout.windows[3:]:
            staged.touch(window.offset, window.end)
        await staged.abandon(keep=True)
        before = store.used
        await put(store, blob(3 * MIB, 2))
        assert store.used <= store.budget
        assert taken(tmp_path) <= store.budget
        staged = await store.stage(digest, size, promise=0)
        left = {layout.window_at(layout.piece_span(piece)[0]).index for piece in staged.pieces}
        # Window 2 was never read and is as old as the rest; 0 and 1 were read before those after.
        assert left >= set(range(3, len(layout.windows)))
        assert {0, 1} - left
        assert before > store.used - cost(3 * MIB)
        for piece, sha1 in staged.pieces.items():
            offset, length = layout.piece_span(piece)
            assert os.pread(staged.fd, length, offset) == data[offset : offset + length]
            assert sha1 == pieces_of(data)[piece]


async def test_punching_gives_up_whole_pieces_and_their_blocks(tmp_path: Path) -> None:
    data = blob(2 * MIB + 5, 1)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        await staged.note(pieces_of(data))
        assert await store.punch(digest, 100, MIB) == 3 * 256 * 1024
        assert sorted(staged.pieces) == [0, 4, 5, 6, 7, 8]
        assert await store.punch(parse(digest_of(b"other")), 0, MIB) == 0
        await staged.abandon(keep=True)
        assert await store.punch(digest, 4 * 256 * 1024, 2 * MIB) >= 4 * 256 * 1024
    async with opened(tmp_path) as store:
        assert sorted((await store.stage(digest, len(data))).pieces) == [0]


async def test_a_sparse_blob_reserves_as_it_grows(tmp_path: Path) -> None:
    async with opened(tmp_path, 4 * MIB) as store:
        staged = await store.stage(parse(digest_of(b"huge")), 100 * MIB, promise=MIB)
        await staged.grow(3 * MIB)
        with pytest.raises(StoreFull):
            await staged.grow(5 * MIB)
        await put(store, blob(100, 1))


async def test_a_check_broken_off_by_the_end_of_the_store_loses_nothing(tmp_path: Path) -> None:
    data = blob(8 * MIB, 1)
    async with opened(tmp_path) as store:
        digest = await put(store, data)
        checking = asyncio.create_task(store.check(digest))
        await asyncio.sleep(0)
    assert not await checking
    async with opened(tmp_path) as store:
        assert content(store, digest) == data


async def test_giving_up_twice_at_once_keeps_what_was_to_be_kept(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    digest = parse(digest_of(data))
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data))
        await staged.write(data, 0)
        await staged.note(pieces_of(data))
        await asyncio.gather(staged.abandon(keep=True), staged.abandon(keep=True), staged.abandon(keep=False))
        staged.forget()
        again = await store.stage(digest, len(data))
        assert again.pieces == pieces_of(data)


async def test_who_outlives_the_store_may_still_read_and_close(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    async with opened(tmp_path) as store:
        digest = await put(store, data)
        held = store.get(digest)
        finished = await store.stage(parse(digest_of(b"1")), 1)
        await finished.write(b"1", 0)
        (await finished.finish(hashes_of(b"1"))).close()
        coming = await store.stage(parse(digest_of(b"22")), 2)
    assert held is not None
    assert os.pread(held.fd, held.size, 0) == data
    held.close()
    finished.forget()
    await finished.abandon(keep=True)
    await coming.abandon(keep=False)
    assert store.get(digest) is None
    with pytest.raises(StoreFull):
        await store.stage(digest, 5)
    assert descriptors_into(tmp_path) == []


@pytest.mark.parametrize(
    ("origin", "only", "left"), [("aa" * 20, True, True), ("bb" * 20, True, False), ("bb" * 20, False, True)]
)
async def test_a_partial_blob_keeps_its_origin_over_a_restart(
    tmp_path: Path, origin: str, only: bool, left: bool
) -> None:
    """A reader of ranges of another origin begins anew; who reads it whole uses it, and it is of no origin then."""
    data = blob(3 * FIRST_WINDOW, 77)
    digest, pieces = parse(digest_of(data)), pieces_of(data)
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data), origin="aa" * 20)
        await staged.write(data, 0)
        await staged.note(pieces)
        await staged.abandon(keep=True)
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data), origin=origin, only=only)
        assert staged.pieces == (pieces if left else {})
        assert staged.origin == (origin if only else "")
        await staged.abandon(keep=True)


async def test_what_was_mixed_stays_mixed(tmp_path: Path) -> None:
    data = blob(3 * FIRST_WINDOW, 78)
    digest, pieces = parse(digest_of(data)), pieces_of(data)
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data), origin="aa" * 20)
        await staged.write(data, 0)
        await staged.note(pieces)
        await staged.mixed()
        await staged.abandon(keep=True)
    async with opened(tmp_path) as store:
        staged = await store.stage(digest, len(data), origin="aa" * 20)
        assert (staged.pieces, staged.origin) == (pieces, "")
        await staged.abandon(keep=False)
