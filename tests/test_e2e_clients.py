"""Real clients pull through Shoal: containerd by ctr and as kubelet does, skopeo, and a foreign BitTorrent client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.parts import aria2, data, nginx, skopeo
from tests.parts.cluster import Cluster, cluster
from tests.parts.containerd import Containerd, containerd
from tests.parts.counter import Counter
from tests.parts.fetch import fetch
from tests.parts.registry import Image, Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

MIB = 1024 * 1024
LAYERS = (300, 5 * MIB, 20 * MIB, 1 * MIB)


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, agents=4) as running:
        yield running


async def daemons(stack: AsyncExitStack, count: int, whole: Cluster, registry: str) -> list[Containerd]:
    """*count* containerds, each with an agent of its own as the only way to *registry*."""
    started = [await stack.enter_async_context(containerd(whole.directory, name=f"c{i}")) for i in range(count)]
    for daemon, agent in zip(started, whole.agents, strict=False):
        daemon.mirror(registry, agent.url, fallback=False)
    return started


async def assert_has(daemon: Containerd, name: str, image: Image, *, namespace: str = "default") -> None:
    """The daemon knows the image under *name*, and holds all of it."""
    assert (await daemon.images(namespace=namespace))[name] == image.manifest.digest
    assert {blob.digest for blob in image.blobs} <= await daemon.blobs(namespace=namespace)


@pytest.mark.needs_containerd
@pytest.mark.needs_skopeo
@pytest.mark.needs_nginx
async def test_containerd_and_skopeo_pull_one_image_at_once_and_later_without_the_registry(
    four: Cluster, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """Three containerds and skopeo through four agents: same digests, one copy. Then the registry is gone, and a
    containerd with an empty store pulls by digest and by tag."""
    image = await origin.push_image("e2e/image", "v1", LAYERS)
    name = f"{upstream.host}/e2e/image:v1"
    async with AsyncExitStack() as stack:
        three = await daemons(stack, 3, four, upstream.host)
        # skopeo never says which registry it means: a line of nginx does
        naming = await stack.enter_async_context(nginx.naming(upstream.host, four.agents[3].url, tmp_path))
        mirror = skopeo.mirrored(upstream.host, f"127.0.0.1:{naming.port}")
        await asyncio.gather(
            *(daemon.pull(name) for daemon in three), skopeo.copy(name, tmp_path / "copy", registries=mirror)
        )
        for daemon in three:
            await assert_has(daemon, name, image)
        for blob in image.blobs:
            content = (tmp_path / "copy" / blob.digest.removeprefix("sha256:")).read_bytes()
            assert data.digest_of(content) == blob.digest
        counts = await upstream.counts()
        assert counts.bytes_of("/blobs/") <= 1.02 * sum(blob.size for blob in image.blobs)
        # every request came from an agent, none from a client that went around it
        clients = [entry.headers.get("user-agent", "") for entry in counts.seen]
        assert not [client for client in clients if client.startswith(("containerd", "skopeo"))]

        await upstream.process.kill()
        fourth = await stack.enter_async_context(containerd(tmp_path, name="fourth"))
        fourth.mirror(upstream.host, four.agents[3].url, fallback=False)
        by_digest = f"{upstream.host}/e2e/image@{image.manifest.digest}"
        await fourth.pull(by_digest)
        await assert_has(fourth, by_digest, image)
        await fourth.pull(name)
        await assert_has(fourth, name, image)
        # and a fifth, through an agent that never saw the image
        late = await four.add()
        fifth = await stack.enter_async_context(containerd(tmp_path, name="fifth"))
        fifth.mirror(upstream.host, late.url, fallback=False)
        await fifth.pull(name)
        await assert_has(fifth, name, image)
        assert await fifth.cri_pull(name) == image.config.digest
        await assert_has(fifth, name, image, namespace="k8s.io")


@pytest.mark.needs_containerd
async def test_kubelet_pulls_through_agents_an_image_that_nobody_kept_the_layers_of(
    four: Cluster, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """`discard_unpacked_layers` removes the layers from containerd after the pull; the cluster has them still."""
    image = await origin.push_image("e2e/discard", "v1", LAYERS[:2])
    name = f"{upstream.host}/e2e/discard:v1"
    async with AsyncExitStack() as stack:
        for index in range(2):
            daemon = await stack.enter_async_context(
                containerd(tmp_path, name=f"d{index}", discard_unpacked_layers=True)
            )
            daemon.mirror(upstream.host, four.agents[index].url, fallback=False)
            assert await daemon.cri_pull(name) == image.config.digest
            if index == 0:
                await upstream.process.kill()


@pytest.mark.needs_aria2
async def test_a_foreign_client_downloads_a_sealed_blob(
    four: Cluster, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """The tracker hands out the .torrent; aria2 announces there and fetches the blob from the agents."""
    blob = origin.plant("e2e/torrent", 20 * MIB + 12345, 700)
    await four.pull(blob, upstream.host, four.agents[:2])
    before = (await upstream.counts()).sent
    torrent = await fetch(f"{four.tracker.url}/torrents/{blob.digest}.torrent")
    assert torrent.status == 200, torrent.body
    file = tmp_path / "blob.torrent"
    file.write_bytes(torrent.body)
    output = await aria2.download(file, tmp_path / "down")
    [found] = [path for path in (tmp_path / "down").iterdir() if not path.name.endswith(".aria2")]
    assert found.name == blob.digest
    with found.open("rb") as content:
        assert hashlib.file_digest(content, "sha256").hexdigest() == blob.digest.removeprefix("sha256:"), output
    assert (await upstream.counts()).sent == before


async def test_a_torrent_of_an_unknown_blob_is_refused(four: Cluster) -> None:
    told = await fetch(f"{four.tracker.url}/torrents/sha256:{'0' * 64}.torrent")
    assert told.status == 404
