"""P7: kill -9 at any instant loses no finished blob and serves no wrong byte after restart."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from swarm.blob.digest import Digest, parse
from swarm.blob.geometry import geometry
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import hashes_of, pieces_of, taken

KIB = 1024
BUDGET = 6 * KIB * KIB
RUNS = 10


def data_of(seed: int) -> bytes:
    """The blob number *seed*: between 1 byte and 1.2 MiB."""
    return blob(random.Random(seed).randint(1, 1200 * KIB), seed)


async def busy(root: Path, seed: int) -> None:
    """Bring blobs in, finish, forget, abandon, thin out and evict for ever; say what was finished or lost."""
    order = random.Random(seed)
    store = Store(root, BUDGET, reserve_free=0)
    store.on_change(lambda digest, _size: print("lost", digest, flush=True))
    await store.open()
    for digest, _ in store.complete():
        print("found", digest, flush=True)
    print("ready", flush=True)
    number = seed * 1000
    while True:
        number += 1
        data = data_of(number)
        digest = parse(digest_of(data))
        print("begin", number, digest, flush=True)
        staged = await store.stage(digest, len(data))
        for piece, sha1 in pieces_of(data).items():
            offset, length = geometry(len(data)).piece_span(piece)
            await staged.write(data[offset : offset + length], offset)
            await staged.note({piece: sha1})
        if order.random() < 0.3:
            await staged.abandon(keep=order.random() < 0.8)
            continue
        (await staged.finish(hashes_of(data))).close()
        print("finished", digest, flush=True)
        if order.random() < 0.7:
            # As libtorrent does: the same bytes once more, by name.
            with staged.path.open("r+b") as file:
                file.write(data[:10])
        staged.forget()
        if held := await store.get_checked(digest):
            held.close()


async def test_killed_at_random_instants(tmp_path: Path) -> None:
    """Twenty short lives on one directory. Each is killed after a random number of its own reports."""
    root = tmp_path / "store"
    order = random.Random(9)
    begun: dict[Digest, int] = {}
    alive: set[Digest] = set()
    for run in range(RUNS):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.swarm.storage.test_store_kill9", str(root), str(run)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdout
        reports = order.randint(1, 40)
        delay = order.random() * 0.01  # so that it does not always die while it reports
        async for line in child.stdout:
            # a line without its end was cut off by the kill: it died in mid-word
            word, *rest = line.decode().split() if line.endswith(b"\n") else [""]
            if word == "begin":
                begun[parse(rest[1])] = int(rest[0])
            elif word == "finished":
                alive.add(parse(rest[0]))
            elif word == "lost":
                alive.discard(parse(rest[0]))
            reports -= 1
            if not reports:
                asyncio.get_running_loop().call_later(delay, os.kill, child.pid, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL

        store = Store(root, BUDGET, reserve_free=0)
        await store.open()
        for digest in alive:
            held = await store.get_checked(digest)
            assert held is not None, f"run {run}: finished, and gone"
            held.close()
        for digest, _ in list(store.complete()):
            held = await store.get_checked(digest)
            assert held is not None
            with held:
                assert digest_of(os.pread(held.fd, held.size, 0)) == digest, f"run {run}: wrong bytes"
        for digest, number in begun.items():
            if store.size_of(digest) is None and number // 1000 == run:
                data = data_of(number)
                staged = await store.stage(digest, len(data))
                assert staged.pieces.items() <= pieces_of(data).items()
                for piece in staged.pieces:
                    offset, length = geometry(len(data)).piece_span(piece)
                    assert os.pread(staged.fd, length, offset) == data[offset : offset + length]
                await staged.abandon(keep=True)
        alive = {digest for digest, _ in store.complete()}
        assert taken(root) <= store.used + 64 * KIB
        assert store.used <= BUDGET
        await store.close()
    assert len(begun) > RUNS
    assert alive


if __name__ == "__main__":
    asyncio.run(busy(Path(sys.argv[1]), int(sys.argv[2])))
