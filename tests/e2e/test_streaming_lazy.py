"""Real lazy readers on the real path: a file system image mounted over an agent, and an NBD server that reads it.

The kernel's ext4 reads a loop device, whose file is FUSE's, whose bytes httpdirfs asks of the agent in ranges: what
overlaybd does with a layer, with parts that every machine with FUSE has.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import data
from tests.parts.blobserver import BlobServer, blob_server
from tests.parts.cluster import Cluster, cluster
from tests.parts.procs import PartFailed, process, run

pytestmark = [pytest.mark.needs_nginx, pytest.mark.timeout(150)]

MIB = 1024 * 1024
SIZE = 32 * MIB
FILES = {f"usr/lib/{place}.so": 90_001 * (place + 1) for place in range(6)} | {
    "etc/os-release": 300,
    "big.bin": 2 * MIB,
}
"""Path and size: an image is bigger than what a start reads of it. (httpdirfs waits 0.1 s between two requests.)"""


@dataclass
class Image:
    """An ext4 image on the blob server."""

    url: str
    digest: str
    sums: dict[str, str]
    """sha256 of each file in it."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BlobServer]:
    async with blob_server(tmp_path) as running:
        yield running


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, agents=2, flags=["--blob-host=127.0.0.1:*"]) as running:
        yield running


@pytest.fixture
async def image(server: BlobServer, tmp_path: Path) -> Image:
    """An image whose files are known."""
    tree, sums = tmp_path / "tree", {}
    for seed, (name, size) in enumerate(FILES.items()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        sums[name] = data.write(tree / name, size, 700 + seed)
    rough = tmp_path / "image"
    with rough.open("wb") as file:
        file.truncate(SIZE)
    await run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(rough)])
    digest = "sha256:" + hashlib.sha256(rough.read_bytes()).hexdigest()
    place = server.files.root / "layers" / digest
    place.parent.mkdir(exist_ok=True)
    rough.rename(place)
    return Image(f"{server.url}/layers/{digest}", digest, sums)


@asynccontextmanager
async def mounted(url: str, directory: Path) -> AsyncIterator[Path]:
    """The file system in the image at *url*, read lazily. Skips where FUSE or loop devices may not be used."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this machine has no /dev/fuse")
    outer, inner = directory / "fuse", directory / "root"
    outer.mkdir(parents=True)
    inner.mkdir()
    argv = ["httpdirfs", "-f", "-s", "--single-file-mode", url, str(outer)]
    async with process(argv, name=directory.name, directory=directory) as reader:
        try:
            async with asyncio.timeout(20):
                while not (found := list(outer.iterdir())):  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(0.02)
            try:
                await run(["mount", "-t", "ext4", "-o", "loop,ro,noload", str(found[0]), str(inner)])
            except PartFailed as error:
                if "loop" in str(error) or "not permitted" in str(error):
                    pytest.skip(f"no loop device: {error}")
                raise
            try:
                yield inner
            finally:
                await run(["umount", str(inner)])
        finally:
            await run(["umount", "-l", str(outer)])
            reader.signal(signal.SIGKILL)  # it does not end before the kernel lets go of the loop device


def scan(root: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {name: "sha256:" + hashlib.sha256((root / name).read_bytes()).hexdigest() for name in FILES}


@pytest.mark.needs_lazy
@pytest.mark.needs_root
async def test_a_file_system_mounted_over_an_agent(
    two: Cluster, server: BlobServer, image: Image, tmp_path: Path
) -> None:
    """Every file is right, on a first node and on a second; upstream sends what was touched once, and less than all."""
    sent = []
    for agent in two.agents:
        async with mounted(f"{agent.url}/blobs/{image.url}", tmp_path / f"mount-{agent.name}") as root:
            assert await asyncio.to_thread(scan, root) == image.sums
        sent.append((await server.counter.counts()).bytes_of("layers/"))
    metrics = await two.agents[1].metrics()
    peer = metrics["shoal_swarm_received_bytes_total{source=peer}"]
    named = sum(FILES.values())
    print(
        f"{named / MIB:.1f} MiB of files in an image of {SIZE // MIB} MiB: {sent[0] / MIB:.1f} MiB from upstream for "
        f"the first node, {(sent[1] - sent[0]) / MIB:.3f} for the second, which had {peer / MIB:.1f} from its peer"
    )
    assert sent[0] < SIZE
    assert sent[1] - sent[0] < 0.02 * named
    assert peer > 0


@pytest.mark.needs_nbd
async def test_an_nbd_server_reads_through_an_agent(two: Cluster, server: BlobServer, image: Image) -> None:
    """nbdkit's curl plugin probes with HEAD and reads in ranges, several at once: the image comes out as it is."""
    target = f"{two.agents[0].url}/blobs/{image.url}"
    told = await run(["nbdkit", "-U", "-", "curl", f"url={target}", "--run", 'nbdcopy "$uri" - | sha256sum'])
    assert told.split()[0] == image.digest.removeprefix("sha256:")
    assert (await server.counter.counts()).bytes_of("layers/") <= 1.02 * SIZE
