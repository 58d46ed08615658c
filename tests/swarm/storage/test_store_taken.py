"""What somebody did to the store directory, under way or before a start: it goes on, and says what it cannot do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from swarm.blob.digest import hex_of, parse
from swarm.blob.errors import StoreFull
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import Told, content, hashes_of, opened, pieces_of, put

MIB = 1024 * 1024
ONE, TWO = blob(MIB, 1), blob(MIB, 2)


@pytest.mark.parametrize("all_of_it", [True, False], ids=["with the directory itself", "its content"])
async def test_a_store_that_is_deleted_under_way_is_made_again_and_forgets_what_it_had(
    tmp_path: Path, all_of_it: bool
) -> None:
    root = tmp_path / "store"
    async with opened(root) as store:
        gone = await put(store, ONE)
        told = Told(store)
        for path in [root] if all_of_it else list(root.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        kept = await put(store, TWO)
        assert content(store, kept) == TWO
        assert told.lost == [gone]
        assert list(store.complete()) == [(kept, MIB)]
        assert not store.trouble
        assert await put(store, ONE) == gone


async def test_a_blob_whose_file_is_deleted_while_it_comes_in_is_not_kept_and_the_next_try_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        staged = await store.stage(parse(digest_of(ONE)), MIB)
        await staged.write(ONE, 0)
        shutil.rmtree(tmp_path / "staging")
        with pytest.raises(StoreFull):
            await staged.finish(hashes_of(ONE))
        await staged.abandon(keep=False)
        assert content(store, await put(store, ONE)) == ONE


async def test_a_directory_that_cannot_be_made_again_is_said_until_it_can(tmp_path: Path) -> None:
    root = tmp_path / "above" / "store"
    async with opened(root) as store:
        shutil.rmtree(tmp_path / "above")
        (tmp_path / "above").write_text("no directory")
        with pytest.raises(StoreFull):
            await put(store, ONE)
        assert "cannot be made" in store.trouble
        (tmp_path / "above").unlink()
        assert content(store, await put(store, ONE)) == ONE
        assert not store.trouble


@pytest.mark.parametrize("place", ["staging/{}", "staging/{}.log", "blobs/sha256/{}", "meta/sha256/{}.json"])
@pytest.mark.parametrize("when", ["before the start", "under way"])
async def test_a_directory_in_the_place_of_a_file_gives_way(tmp_path: Path, place: str, when: str) -> None:
    digest = parse(digest_of(ONE))
    in_the_way = tmp_path / place.format(hex_of(digest)) / "sub" / "file"
    if when == "before the start":
        async with opened(tmp_path):
            pass
        in_the_way.parent.mkdir(parents=True)
        in_the_way.touch()
    async with opened(tmp_path) as store:
        if when == "under way":
            in_the_way.parent.mkdir(parents=True)
            in_the_way.touch()
        assert content(store, await put(store, ONE)) == ONE
        assert not in_the_way.exists()
    async with opened(tmp_path) as store:
        assert content(store, digest) == ONE


async def test_a_directory_in_the_trash_does_not_keep_the_store_from_starting(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "trash" / "7" / "sub").mkdir(parents=True)
    async with opened(tmp_path) as store:
        assert content(store, await put(store, ONE)) == ONE
    assert list((tmp_path / "trash").iterdir()) == []


async def test_a_piece_of_a_partial_blob_that_rots_while_nobody_brings_it_in_is_not_believed(tmp_path: Path) -> None:
    now = [1_000_000.0]
    store = Store(tmp_path, 64 * MIB, reserve_free=0, clock=lambda: now[0])
    await store.open()
    digest = parse(digest_of(ONE))
    staged = await store.stage(digest, MIB)
    await staged.write(ONE, 0)
    pieces = pieces_of(ONE)
    await staged.note(pieces)
    await staged.abandon(keep=True)
    path = tmp_path / "staging" / hex_of(digest)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"rotten")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now[0] += 3600
    again = await store.stage(digest, MIB)
    assert again.pieces.keys() == pieces.keys() - {0}
    await again.abandon(keep=False)
    await store.close()
