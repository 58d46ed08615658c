"""A disk that returns other bytes than were written, or none: what leaves the store was compared first.

The bytes rot below the file system: size, times and inode of the file stay as they were. Here they are changed by a
write whose time is put back, and the page cache is dropped, so that the store has nothing but its own proof.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm.blob.digest import Digest, hex_of
from swarm.blob.errors import BlobUnreadable
from swarm.blob.geometry import geometry
from swarm.storage.content import BLOBS, Content
from swarm.storage.hashing import Hasher
from swarm.storage.held import BlobHandle
from swarm.storage.proof import LASTS, STEP, Proof
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import Told, hashes_of, opened, put

MIB = 1024 * 1024
SIZE = 3 * STEP + 12345
DATA = blob(SIZE, 7)


def rot(path: Path, at: int) -> None:
    """Change the byte at *at* without a trace in the file's times, and take the file out of the page cache."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def read(held: BlobHandle, start: int = 0, stop: int | None = None, *, into: bytearray | None = None) -> bytes:
    """What a sender would put onto the wire, also *into*. Raises BlobUnreadable."""
    out = bytearray() if into is None else into
    async for offset, count in held.runs(start, held.size if stop is None else stop):
        out += os.pread(held.fd, count, offset)
    return bytes(out)


def file_of(root: Path, digest: Digest) -> Path:
    return root / "blobs" / "sha256" / hex_of(digest)


@pytest.mark.parametrize("restart", [False, True], ids=["running", "after a restart"])
async def test_a_byte_that_rots_stops_the_body_before_it_leaves_and_the_copy_goes(
    tmp_path: Path, restart: bool
) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        if not restart:
            with store.get(digest) or pytest.fail("gone") as held:
                assert await read(held) == DATA
            rot(file_of(tmp_path, digest), 2 * STEP + 5)
            await _sends_what_is_right_and_gives_up(store, digest, tmp_path)
    if restart:
        rot(file_of(tmp_path, digest), 2 * STEP + 5)
        async with opened(tmp_path) as store:
            await _sends_what_is_right_and_gives_up(store, digest, tmp_path)


async def _sends_what_is_right_and_gives_up(store: Store, digest: Digest, root: Path) -> None:
    told = Told(store)
    sent = bytearray()
    with store.get(digest) or pytest.fail("gone") as held:
        with pytest.raises(BlobUnreadable):
            await read(held, into=sent)
        assert held.lost
    assert bytes(sent) == DATA[: 2 * STEP]
    assert told.lost == [digest]
    assert store.get(digest) is None
    assert not file_of(root, digest).exists()
    assert await put(store, DATA) == digest
    with store.get(digest) or pytest.fail("gone") as held:
        assert await read(held) == DATA


async def test_a_range_is_proven_like_a_whole_blob(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        rot(file_of(tmp_path, digest), STEP + 700_000)
        with store.get(digest) or pytest.fail("gone") as held:
            assert await read(held, 10, 20) == DATA[10:20]
            with pytest.raises(BlobUnreadable):
                await read(held, STEP + 699_990, STEP + 700_010)


async def test_another_reader_of_a_copy_that_was_found_wrong_breaks_off_between_two_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        with store.get(digest) or pytest.fail("gone") as first, first.share() as second:
            runs = first.runs(0, SIZE)
            await anext(runs)
            rot(file_of(tmp_path, digest), SIZE - 1)
            with pytest.raises(BlobUnreadable):
                await read(second, 3 * STEP)
            with pytest.raises(BlobUnreadable):
                await anext(runs)


async def test_a_file_that_lost_its_end_is_wrong_and_not_short(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        with store.get(digest) or pytest.fail("gone") as held:
            os.truncate(file_of(tmp_path, digest), SIZE - 1)
            with pytest.raises(BlobUnreadable):
                await read(held)


async def test_what_containerd_has_is_proven_as_well_and_not_offered_until_its_file_changes(tmp_path: Path) -> None:
    """The hashes come from an earlier life: its file rotted since."""
    directory, cache, hasher = tmp_path / BLOBS, tmp_path / "cache", Hasher()
    directory.mkdir(parents=True)

    digest = Digest(digest_of(DATA))
    path = directory / hex_of(digest)
    path.write_bytes(DATA)
    for life in (1, 2):
        content = Content(directory, hasher, cache)
        told = Told(content)
        await content.open()
        if life == 1:
            assert await content.get_checked(digest)
        with content.get(digest) or pytest.fail("its hashes are known") as held:
            if life == 1:
                assert await read(held) == DATA
            else:
                with pytest.raises(BlobUnreadable):
                    await read(held)
                assert told.lost == [digest]
                assert await content.get_checked(digest) is None
        await content.close()
        if life == 1:
            rot(path, 100)
    hasher.close()


class Disk:
    """Counts how often the pieces of a file are hashed."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(DATA)
        self.now = 0.0
        self.read = 0
        self.hasher = Hasher()
        self.fd = os.open(path, os.O_RDONLY)
        self.proof = Proof(Digest("sha256:" + "00" * 32), SIZE, hashes_of(DATA), self.hasher, self.fail, self.clock)
        run = self.hasher.prove

        async def prove(work: Callable[..., object]) -> object:
            self.read += 1
            return await run(work)

        self.hasher.prove = prove  # type: ignore[method-assign, assignment]

    def clock(self) -> float:
        return self.now

    def fail(self, why: str) -> None:
        raise AssertionError(why)

    def close(self) -> None:
        os.close(self.fd)
        self.hasher.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "file")
    yield made
    made.close()


async def test_a_piece_is_hashed_once_while_it_stays_in_the_page_cache_and_again_after_its_time(disk: Disk) -> None:
    for _ in range(3):
        await disk.proof.make(disk.fd, 0, SIZE)
    assert disk.read == 1
    assert disk.proof.stands(disk.fd, 0, SIZE)
    disk.now += LASTS + 1
    assert not disk.proof.stands(disk.fd, 0, 1)
    await disk.proof.make(disk.fd, 0, 1)
    assert disk.proof.stands(disk.fd, 0, 1)
    assert not disk.proof.stands(disk.fd, SIZE - 1, SIZE)


async def test_only_the_pieces_that_are_asked_for_are_read(disk: Disk) -> None:
    length = geometry(SIZE).piece_length
    await disk.proof.make(disk.fd, length, length + 1)
    assert disk.proof.stands(disk.fd, length, 2 * length)
    assert not disk.proof.stands(disk.fd, 0, length + 1)
