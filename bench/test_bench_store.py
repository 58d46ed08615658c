"""How fast blobs go through the store and its hashes, beside plain writing and plain reading in the same run."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from swarm.blob.digest import Digest, parse
from swarm.blob.geometry import geometry
from swarm.storage.hashing import digest_of as read_digest
from swarm.storage.hashing import sums
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import content, hashes_of

MIB = 1024 * 1024
SIZE = 128 * MIB
CHUNK = 4 * MIB
DATA = blob(SIZE, 1)
DIGEST = parse(digest_of(DATA))


def measure(benchmark: BenchmarkFixture, run: Callable[[], None], unit: str, amount: float) -> None:
    """Time *run*; say *amount* per second in *unit* beside the seconds."""
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    if benchmark.stats is not None:
        benchmark.extra_info[unit] = round(amount / benchmark.stats["min"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The blob as a file, in the page cache."""
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


@pytest.mark.benchmark(group="read 128 MiB from the page cache")
@pytest.mark.parametrize("what", ["nothing", "sha256", "sha1 and sha256"])
def test_hashing(benchmark: BenchmarkFixture, file: Path, what: str) -> None:
    fd = os.open(file, os.O_RDONLY)
    buffer = memoryview(bytearray(MIB))

    def run() -> None:
        if what == "nothing":
            for offset in range(0, SIZE, MIB):
                os.preadv(fd, [buffer], offset)
        elif what == "sha256":
            assert read_digest(fd, SIZE) == DIGEST
        else:
            assert sums(fd, geometry(SIZE), threading.Event()).digest == DIGEST

    measure(benchmark, run, "MiB/s", SIZE / MIB)
    os.close(fd)


@pytest.mark.benchmark(group="write 128 MiB to disk")
@pytest.mark.parametrize("what", ["plain file, fdatasync", "store"])
def test_bringing_in(benchmark: BenchmarkFixture, tmp_path: Path, what: str) -> None:
    hashes = hashes_of(DATA)
    view = memoryview(DATA)
    count = 0

    def plain() -> None:
        (tmp_path / f"plain{count - 1}").unlink(missing_ok=True)
        with (tmp_path / f"plain{count}").open("wb", buffering=0) as file:
            for offset in range(0, SIZE, CHUNK):
                file.write(view[offset : offset + CHUNK])
            os.fdatasync(file.fileno())

    async def through() -> None:
        shutil.rmtree(tmp_path / f"store{count - 1}", ignore_errors=True)
        store = Store(tmp_path / f"store{count}", 2 * SIZE, reserve_free=0)
        await store.open()
        staged = await store.stage(DIGEST, SIZE)
        for offset in range(0, SIZE, CHUNK):
            await staged.write(view[offset : offset + CHUNK], offset)
            first = offset // staged.geometry.piece_length
            await staged.note({first + i: hashes[20 * (first + i) :][:20] for i in range(16)})
        (await staged.finish(hashes)).close()
        staged.forget()
        await store.close()

    def run() -> None:
        nonlocal count
        count += 1
        if what == "store":
            asyncio.run(through())
        else:
            plain()

    measure(benchmark, run, "MiB/s", SIZE / MIB)


@pytest.mark.benchmark(group="look a blob up among 1000, and close it")
def test_looking_up(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    async def fill(store: Store) -> list[Digest]:
        await store.open()
        digests = []
        for number in range(1000):
            data = number.to_bytes(4, "big")
            digest = parse(digest_of(data))
            staged = await store.stage(digest, 4)
            staged.pwrite(data, 0)
            (await staged.finish(hashes_of(data))).close()
            staged.forget()
            digests.append(digest)
        return digests

    with asyncio.Runner() as runner:
        store = Store(tmp_path, SIZE, reserve_free=0)
        digests = runner.run(fill(store))

        async def lookups() -> None:
            for digest in digests:
                assert content(store, digest)

        measure(benchmark, lambda: runner.run(lookups()), "per second", len(digests))
        runner.run(store.close())
