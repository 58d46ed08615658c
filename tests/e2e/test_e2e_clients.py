"""Real clients pull through Shoal: containerd by ctr and as kubelet does, skopeo, and a foreign BitTorrent client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.parts import aria2, data, podman, skopeo
from tests.parts.cluster import Cluster, cluster
from tests.parts.containerd import Containerd, containerd
from tests.parts.counter import Counter
from tests.parts.fetch import fetch
from tests.parts.procs import python, run
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
@pytest.mark.needs_podman
@pytest.mark.needs_root
async def test_containerd_podman_and_skopeo_pull_one_image_at_once_and_later_without_the_registry(
    four: Cluster, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """Two containerds, podman and skopeo through four agents: same digests, one copy. Then the registry is gone, and a
    containerd with an empty store pulls by digest and by tag, and so does podman."""
    image = await origin.push_image("e2e/image", "v1", LAYERS)
    name = f"{upstream.host}/e2e/image:v1"
    async with AsyncExitStack() as stack:
        two = await daemons(stack, 2, four, upstream.host)
        mirrors = [
            skopeo.mirrored(upstream.host, skopeo.through(agent.host, upstream.host)) for agent in four.agents[2:]
        ]
        pod = podman.Podman(tmp_path / "podman", mirrors[0])
        await asyncio.gather(
            *(daemon.pull(name) for daemon in two),
            pod.pull(name),
            skopeo.copy(name, tmp_path / "copy", registries=mirrors[1]),
        )
        for daemon in two:
            await assert_has(daemon, name, image)
        assert await pod.digest(name) == image.manifest.digest
        for blob in image.blobs:
            content = (tmp_path / "copy" / blob.digest.removeprefix("sha256:")).read_bytes()
            assert data.digest_of(content) == blob.digest
        counts = await upstream.counts()
        assert counts.bytes_of("/blobs/") <= 1.02 * sum(blob.size for blob in image.blobs)
        # every request came from an agent, none from a client that went around it
        clients = [entry.headers.get("user-agent", "") for entry in counts.seen]
        assert set(clients) == {"shoal"}

        await upstream.process.kill()
        fourth = await stack.enter_async_context(containerd(tmp_path, name="fourth"))
        fourth.mirror(upstream.host, four.agents[3].url, fallback=False)
        by_digest = f"{upstream.host}/e2e/image@{image.manifest.digest}"
        await fourth.pull(by_digest)
        await assert_has(fourth, by_digest, image)
        await fourth.pull(name)
        await assert_has(fourth, name, image)
        again = podman.Podman(tmp_path / "podman-2", mirrors[1])
        assert await again.pull(name) == image.config.digest.removeprefix("sha256:")
        # the registry in the image's own name: what a person types who has configured nothing
        typed = f"{skopeo.through(four.agents[3].host, upstream.host)}/e2e/image:v1"
        assert await again.pull(typed) == image.config.digest.removeprefix("sha256:")
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
            for layer in image.layers:
                await daemon.lost(layer.digest)
            if index == 0:
                # One node's word of a tag is not believed: a second one heard it from upstream, too.
                assert (await four.agents[2].manifest("e2e/discard", "v1", upstream.host)).status == 200
                await upstream.process.kill()


@pytest.mark.needs_containerd
async def test_what_containerd_pulled_by_itself_is_offered_and_withdrawn_when_it_is_collected(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """The agent is given containerd's content directory and nothing else: no socket, no copy of a single byte. Another
    node gets the image from it although the registry is gone; what containerd removes is offered no longer."""
    image = await origin.push_image("e2e/content", "v1", LAYERS)
    name = f"{upstream.host}/e2e/content:v1"
    async with containerd(tmp_path) as daemon, cluster(tmp_path) as whole:
        owner = await whole.add(f"--containerd-content={daemon.content.parent.parent}")
        [other] = whole.agents[:1]
        await daemon.pull(name)
        await upstream.process.kill()
        for blob in (image.manifest, *image.layers):
            got = await other.blob(blob, upstream.host)
            assert (got.status, got.digest, got.whole) == (200, blob.digest, True)
        kept = [path for path in owner.store.rglob("*") if path.is_file() and path.stat().st_size > MIB]
        assert not kept, "offered from where it is"
        await daemon.forget([name])
        await daemon.lost(image.config.digest)
        # nobody asked for the config while it was there: now it is nowhere
        assert (await other.blob(image.config, upstream.host)).status == 404
        assert (await owner.blob(image.config, upstream.host)).status == 404
        assert (await owner.blob(image.layers[0], upstream.host)).digest == image.layers[0].digest


@pytest.mark.needs_containerd
@pytest.mark.needs_podman
@pytest.mark.needs_root
async def test_a_mirror_that_is_left_switched_on(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """As `shoal containerd install` and the guide set it up: the agent is asked first; what it does not mirror, and
    everything once it is dead, comes from the registry itself, and after `uninstall` nobody asks for it."""
    through, denied, dead, after = [
        await origin.push_image(f"e2e/{name}", "v1", LAYERS[:2]) for name in ("through", "denied", "dead", "after")
    ]
    async with cluster(tmp_path, flags=[f"--deny={upstream.host}/e2e/denied"]) as whole, containerd(tmp_path) as daemon:
        [agent] = whole.agents
        command = python("mirror", "containerd")
        where = [f"--containerd-certs={daemon.hosts}", f"--containerd-config={daemon.base}/config.toml"]
        await run([*command, "install", *where, f"--mirror={agent.url}"])
        pod = podman.Podman(
            tmp_path / "podman", skopeo.mirrored(upstream.host, skopeo.through(agent.host, upstream.host))
        )

        async def pulled(image: Image) -> set[str]:
            """Who asked the registry for it, when CRI and podman have pulled it."""
            name = f"{upstream.host}/{image.repository}:v1"
            assert await daemon.cri_pull(name) == image.config.digest
            assert await pod.pull(name) == image.config.digest.removeprefix("sha256:")
            seen = [entry for entry in (await upstream.counts()).seen if image.repository in entry.path]
            return {entry.headers.get("user-agent", "").partition("/")[0] for entry in seen}

        assert await pulled(through) == {"shoal"}
        assert await pulled(denied) == {"containerd", "containers"}
        await agent.kill()
        assert await pulled(dead) == {"containerd", "containers"}
        await run([*command, "uninstall", *where])
        assert list(daemon.hosts.iterdir()) == []
        await agent.start()
        await daemon.cri_pull(f"{upstream.host}/{after.repository}:v1")
        seen = [entry for entry in (await upstream.counts()).seen if after.repository in entry.path]
        assert {entry.headers["user-agent"].partition("/")[0] for entry in seen} == {"containerd"}


async def test_idle_connections_beyond_the_soft_limit_of_open_files(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """Half of them are kept alive after an answer, half never finish their request; the pull among them succeeds."""
    blob = origin.plant("e2e/idle", 3 * MIB, 940)
    async with cluster(tmp_path, agents=0) as whole:
        agent = whole.prepare()
        agent.process.argv[:0] = ["prlimit", "--nofile=256:8192", "--"]
        await agent.start()

        async def idle(asks: bytes) -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
            writer.write(asks)
            if asks.endswith(b"\r\n\r\n"):
                assert b" 200 " in await reader.readline()
            return writer

        asks = [b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nHost"]
        held = [await idle(asks[index % 2]) for index in range(600)]
        try:
            told = await agent.blob(blob, upstream.host)
            assert (told.status, told.digest) == (200, blob.digest)
        finally:
            for writer in held:
                writer.transport.abort()
            await asyncio.sleep(0)


@pytest.mark.needs_aria2
async def test_a_foreign_client_downloads_a_sealed_blob(
    four: Cluster, origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """The tracker hands out the .torrent; aria2 announces there and fetches the blob from the agents."""
    blob = origin.plant("e2e/torrent", 20 * MIB + 12345, 700)
    await four.pull(blob, upstream.host, four.agents[:2])
    await four.agents[0].process.says(f"blob-sealed.*{blob.digest}")  # a moment after its client has all of it
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
