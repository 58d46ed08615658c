"""containerd's content directory: offered by name at once, served only after the sha256 matched."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm.blob.digest import Digest, hex_of, parse
from swarm.storage.content import BLOBS, Content
from swarm.storage.hashcache import HashCache
from swarm.storage.hashing import Hasher
from swarm.storage.sidecar import Stamp
from tests.parts.data import blob, digest_of
from tests.parts.storing import hashes_of

MIB = 1024 * 1024


class Heard:
    """What a Content says, as events to wait for."""

    def __init__(self) -> None:
        self.added: dict[Digest, int] = {}
        self.order: list[tuple[str, Digest]] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self, digest: Digest, size: int | None) -> None:
        if size is None:
            self.added.pop(digest, None)
        else:
            self.added[digest] = size
        self._say("gone" if size is None else "add", digest)

    def _say(self, word: str, digest: Digest) -> None:
        self.order.append((word, digest))
        task = asyncio.get_running_loop().create_task(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, *digests: Digest) -> None:
        """Wait until just *digests* are offered."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self.added.keys() == set(digests))


@asynccontextmanager
async def watching(root: Path, heard: Heard, cache: Path) -> AsyncIterator[Content]:
    hasher = Hasher()
    content = Content(root / BLOBS, hasher, cache)
    content.on_change(heard.changed)
    await content.open()
    try:
        yield content
    finally:
        await content.close()
        hasher.close()


def ingest(root: Path, data: bytes, name: str = "") -> Digest:
    """Commit *data* as containerd does: written beside, renamed, times set. *name*: instead of the right one."""
    directory = root / BLOBS
    directory.mkdir(parents=True, exist_ok=True)
    beside = root / "ingest"
    beside.write_bytes(data)
    digest = parse(name or digest_of(data))
    beside.rename(directory / hex_of(digest))
    os.utime(directory / hex_of(digest))
    return digest


def served(content: Content, digest: Digest) -> bytes | None:
    held = content.get(digest)
    if held is None:
        return None
    with held:
        assert held.origin == "containerd"
        return os.pread(held.fd, held.size, 0)


async def test_what_is_there_is_offered_and_served_once_it_was_read(tmp_path: Path) -> None:
    data = blob(2 * MIB + 3, 1)
    digest = ingest(tmp_path, data)
    heard = Heard()
    async with watching(tmp_path, heard, tmp_path / "cache") as content:
        assert heard.added == {digest: len(data)}
        assert list(content.complete()) == [(digest, len(data))]
        assert content.get(digest) is None, "nobody has read it yet"
        with await content.get_checked(digest) or pytest.fail("refused") as held:
            assert (held.hashes, held.size) == (hashes_of(data), len(data))
        assert served(content, digest) == data
        assert await content.hashes(digest) == hashes_of(data)


async def test_blobs_come_by_rename_and_go(tmp_path: Path) -> None:
    heard = Heard()
    async with watching(tmp_path, heard, tmp_path / "cache") as content:
        assert heard.added == {}
        first = ingest(tmp_path, blob(1000, 1))
        await heard.until(first)
        second = ingest(tmp_path, blob(0, 2))
        await heard.until(first, second)
        assert await content.hashes(second) == b""
        (tmp_path / BLOBS / hex_of(first)).unlink()
        await heard.until(second)
        assert await content.get_checked(first) is None


async def test_a_reader_keeps_what_containerd_collects(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    digest = ingest(tmp_path, data)
    heard = Heard()
    async with watching(tmp_path, heard, tmp_path / "cache") as content:
        with await content.get_checked(digest) or pytest.fail("refused") as held:
            (tmp_path / BLOBS / hex_of(digest)).unlink()
            await heard.until()
            assert os.pread(held.fd, held.size, 0) == data
            assert not held.lost
        assert content.get(digest) is None


async def test_a_directory_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    """containerd is installed later, removed, installed again: by way of each directory in between."""
    root = tmp_path / "var" / "lib" / "containerd"
    heard = Heard()
    async with watching(root, heard, tmp_path / "cache"):
        for seed in range(2):
            digest = ingest(root, blob(1000, seed))
            await heard.until(digest)
            shutil.rmtree(root)
            await heard.until()
        digest = ingest(root, blob(1000, 3))
        await heard.until(digest)
        content_root = root / BLOBS.parts[0]
        content_root.rename(root / "aside")
        await heard.until()
        (root / "aside").rename(content_root)
        await heard.until(digest)


async def test_a_file_that_does_not_match_its_name_is_refused_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = digest_of(b"right")
    digest = ingest(tmp_path, b"wrong", name)
    heard = Heard()
    async with watching(tmp_path, heard, tmp_path / "cache") as content:
        for _ in range(3):
            assert await content.get_checked(digest) is None
            assert await content.hashes(digest) is None
        assert heard.order == [("add", digest), ("gone", digest)]
        assert [record.message for record in caplog.records] == ["content-wrong"]
        ingest(tmp_path, b"right", name)
        await heard.until(digest)
        with await content.get_checked(digest) or pytest.fail("refused"):
            assert served(content, digest) == b"right"


async def test_a_file_that_changes_is_read_again_before_it_is_served(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    digest = ingest(tmp_path, data)
    heard = Heard()
    async with watching(tmp_path, heard, tmp_path / "cache") as content:
        assert await content.hashes(digest)
        os.utime(tmp_path / BLOBS / hex_of(digest), ns=(1, 1))
        assert content.get(digest) is None
        assert await content.hashes(digest)
        assert served(content, digest) == data
        with (tmp_path / BLOBS / hex_of(digest)).open("r+b") as file:
            file.write(b"!")
        assert content.get(digest) is None
        assert await content.get_checked(digest) is None
        await heard.until()


async def test_other_names_links_and_directories_are_not_blobs(tmp_path: Path) -> None:
    data = b"content"
    digest = ingest(tmp_path, data)
    directory = tmp_path / BLOBS
    (directory / "README").write_text("?")
    (directory / ("A" * 64)).write_text("?")
    (directory / ("0" * 64)).mkdir()
    (directory / ("1" * 64)).symlink_to(directory / hex_of(digest))
    heard = Heard()
    async with watching(tmp_path, heard, tmp_path / "cache"):
        assert heard.added == {digest: len(data)}


async def test_a_restart_does_not_read_again_what_was_read(tmp_path: Path) -> None:
    data = blob(MIB, 1)
    digest = ingest(tmp_path, data)
    async with watching(tmp_path, Heard(), tmp_path / "cache") as content:
        assert await content.hashes(digest)
    async with watching(tmp_path, Heard(), tmp_path / "cache") as content:
        assert served(content, digest) == data
    (tmp_path / BLOBS / hex_of(digest)).write_bytes(data)
    async with watching(tmp_path, Heard(), tmp_path / "cache") as content:
        assert content.get(digest) is None, "the file is another one"
        assert await content.hashes(digest) == hashes_of(data)


async def test_nobody_waits_any_more_and_the_reading_stops(tmp_path: Path) -> None:
    """One of two that wait leaves: the other gets its answer. Both leave: it may be asked again."""
    data = blob(32 * MIB, 1)
    digest = ingest(tmp_path, data)
    async with watching(tmp_path, Heard(), tmp_path / "cache") as content:
        one, two = (asyncio.create_task(content.hashes(digest)) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert await two == hashes_of(data)
        os.utime(tmp_path / BLOBS / hex_of(digest), ns=(1, 1))
        one = asyncio.create_task(content.hashes(digest))
        await asyncio.sleep(0)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert await content.hashes(digest, idle=False) == hashes_of(data)


async def test_who_is_in_a_hurry_does_not_wait_for_the_background(tmp_path: Path) -> None:
    """The background is stuck; who had asked it for the same blob gets the answer too."""
    data = blob(MIB, 1)
    digest = ingest(tmp_path, data)
    release = threading.Event()
    async with watching(tmp_path, Heard(), tmp_path / "cache") as content:
        stuck = asyncio.create_task(content._hasher.run(lambda _stop: release.wait(), idle=True))
        patient = asyncio.create_task(content.hashes(digest))
        await asyncio.sleep(0)
        with await content.get_checked(digest) or pytest.fail("refused") as held:
            assert held.hashes == hashes_of(data)
        assert await patient == hashes_of(data)
        assert not stuck.done()
        release.set()
        await stuck


async def test_a_directory_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    """In a process of its own. It gives up root's rights once everything is imported: whoever it is then need not be
    able to enter the directory of this checkout, or of this Python."""
    digest = ingest(tmp_path, b"secret")
    script = f"""
import asyncio, logging, os, pathlib, sys
logging.basicConfig(format="%(message)s %(fields)s")
from tests.swarm.storage.test_content import Heard, watching
async def main():
    heard = Heard()
    async with watching(pathlib.Path({str(tmp_path)!r}), heard, pathlib.Path({str(tmp_path / "cache")!r})) as content:
        assert not heard.added
        assert await content.get_checked({str(digest)!r}) is None
        sys.stdin.read()
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
asyncio.run(main())
"""
    if os.geteuid() == 0:
        for parent in [tmp_path, *tmp_path.parents]:
            if parent.owner() == "root" and parent not in (Path("/"), Path("/tmp")):
                parent.chmod(parent.stat().st_mode | 0o055)
        (tmp_path / BLOBS).chmod(0o700)
    else:
        (tmp_path / BLOBS).chmod(0)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, told = await child.communicate()
    (tmp_path / BLOBS).chmod(0o700)
    assert child.returncode == 0, told
    assert told.count(b"content-unreadable") == 1
    assert b"Traceback" not in told


def test_the_cache_of_hashes_stays_within_its_limit(tmp_path: Path) -> None:
    """The least recently used go first; rubbish in it is no error."""
    cache = HashCache(tmp_path / "cache", limit=1000)
    digests = [parse(digest_of(bytes([number]))) for number in range(20)]
    for number, digest in enumerate(digests):
        cache.put(digest, Stamp(number, 2, 3), b"h" * 20)
        os.utime(tmp_path / "cache" / f"{hex_of(digest)}.json", (number, number))
    known = cache.load(digests)
    assert 0 < len(known) < 20
    assert known.keys() == set(digests[-len(known) :])
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 1000
    (tmp_path / "cache" / f"{hex_of(digests[-1])}.json").write_bytes(b"rubbish")
    assert digests[-1] not in cache.load(digests)
