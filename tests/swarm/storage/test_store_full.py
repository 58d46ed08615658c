"""P8: a full disk means StoreFull, nothing half-written, and the space is usable again once it is freed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.blob.digest import parse
from swarm.blob.errors import StoreFull
from swarm.storage.memory import UNKEPT
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import content, fill, hashes_of, pieces_of, put, small_file_system

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with small_file_system(tmp_path / "disk", "4m") as disk:
        yield disk


async def test_what_does_not_fit_the_disk_is_refused_before_a_byte_is_written(small_disk: Path) -> None:
    store = Store(small_disk / "store", 1024 * MIB, reserve_free=0)
    await store.open()
    with pytest.raises(StoreFull):
        await store.stage(parse(digest_of(b"big")), 8 * MIB)
    assert list((small_disk / "store" / "staging").iterdir()) == []
    assert store.used == 0
    await store.close()


async def test_old_blobs_go_before_the_disk_is_called_full(small_disk: Path) -> None:
    """The budget is larger than the disk: the disk is what counts."""
    store = Store(small_disk / "store", 1024 * MIB, reserve_free=MIB // 2)
    await store.open()
    digests = [await put(store, blob(MIB, seed)) for seed in range(6)]
    assert [digest for digest in digests if content(store, digest)] == digests[-3:]
    await store.close()


async def test_the_disk_fills_up_while_a_blob_comes_in(small_disk: Path) -> None:
    store = Store(small_disk / "store", 1024 * MIB, reserve_free=0)
    await store.open()
    kept = await put(store, blob(MIB, 1))
    data = blob(2 * MIB, 2)
    digest = parse(digest_of(data))
    staged = await store.stage(digest, len(data))
    await staged.write(data[:MIB], 0)
    fill(small_disk / "somebody")
    with pytest.raises(StoreFull):
        await staged.write(data[MIB:], MIB)
    await staged.note(pieces_of(data))  # a hint that is lost harms nobody
    assert content(store, kept) == blob(MIB, 1)
    await staged.abandon(keep=False)
    assert store.get(digest) is None

    (small_disk / "somebody").unlink()
    assert await put(store, data) == digest
    assert content(store, digest) == data
    await store.close()


async def test_the_disk_is_full_when_a_blob_is_finished(small_disk: Path) -> None:
    """No room for the meta: not finished, as it was before, and finished once there is room."""
    store = Store(small_disk / "store", 1024 * MIB, reserve_free=0)
    await store.open()
    data = blob(MIB, 1)
    digest = parse(digest_of(data))
    staged = await store.stage(digest, len(data))
    await staged.write(data, 0)
    fill(small_disk / "somebody")
    with pytest.raises(StoreFull):
        await staged.finish(hashes_of(data))
    assert store.get(digest) is None
    for kind in ("blobs", "meta"):
        assert list((small_disk / "store" / kind / "sha256").iterdir()) == []
    (small_disk / "somebody").unlink()
    (await staged.finish(hashes_of(data))).close()
    staged.forget()
    assert content(store, digest) == data
    await store.close()


async def test_a_store_opens_and_evicts_on_a_full_disk(small_disk: Path) -> None:
    root = small_disk / "store"
    store = Store(root, 1024 * MIB, reserve_free=0)
    await store.open()
    old = await put(store, blob(MIB, 1))
    new = await put(store, blob(MIB, 2))
    await store.close()
    fill(small_disk / "somebody")
    store = Store(root, 1024 * MIB, reserve_free=0)
    await store.open()
    assert content(store, new)
    third = await put(store, blob(MIB // 2, 3))
    assert content(store, third)
    assert store.get(old) is None
    assert content(store, new)
    await store.close()


async def test_a_blob_that_the_disk_does_not_take_can_come_in_through_memory_within_its_bound(tmp_path: Path) -> None:
    """It is read like another, by name as well, is never kept, and its memory is free again once nobody reads it."""
    store = Store(tmp_path, 64 * MIB, reserve_free=0)
    await store.open()
    data = blob(MIB, 1)
    digest = parse(digest_of(data))
    staged = await store.stage_unkept(digest, len(data))
    await staged.write(data, 0)
    await staged.note(pieces_of(data))
    assert staged.path.read_bytes() == data
    with pytest.raises(StoreFull, match="memory only"):
        await staged.finish(hashes_of(data))
    with pytest.raises(StoreFull, match="neither"):
        await store.stage_unkept(parse(digest_of(b"another")), UNKEPT - MIB + 1)
    with staged.share() as reader:
        await staged.abandon(keep=True)
        assert os.pread(reader.fd, MIB, 0) == data
    assert (store.get(digest), store.partial_size(digest), store.used) == (None, None, 0)
    whole = await store.stage_unkept(parse(digest_of(b"another")), UNKEPT)
    await whole.abandon(keep=False)
    await store.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"] == []
