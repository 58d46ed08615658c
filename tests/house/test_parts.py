"""The parts themselves: a test that stands on a part that lies says nothing."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from pathlib import Path

import pytest

from tests.parts import data, nginx, skopeo
from tests.parts.blobserver import blob_server
from tests.parts.containerd import containerd
from tests.parts.counter import Bucket, Counter, Rule
from tests.parts.fetch import fetch
from tests.parts.procs import PartFailed, Process, process, python, run
from tests.parts.registry import DOCKER, Registry

pytestmark = pytest.mark.needs_registry
MIB = 1024 * 1024


def blob_url(counter: Counter, repository: str, digest: str) -> str:
    return f"{counter.url}/v2/{repository}/blobs/{digest}"


@pytest.mark.parametrize("size", [0, 1, 4095, MIB, MIB + 1, 3 * MIB])
def test_blobs_have_the_size_asked_and_no_two_pieces_alike(size: int, tmp_path: Path) -> None:
    content = data.blob(size, 1)
    assert len(content) == size
    assert data.write(tmp_path / "blob", size, 1) == data.digest_of(content)
    pieces = [content[at : at + 65536] for at in range(0, size, 65536)]
    assert len(set(pieces)) == len(pieces)


async def test_what_is_pushed_or_planted_is_served_and_counted(origin: Registry, upstream: Counter) -> None:
    pushed = await origin.push_blob("parts/pushed", data.blob(3 * MIB, 2))
    planted = origin.plant("parts/planted", 5 * MIB, 3)
    for blob in (pushed, planted):
        got = await fetch(blob_url(upstream, blob.repository, blob.digest))
        assert (got.status, got.size, got.digest, got.whole) == (200, blob.size, blob.digest, True)
    part = await fetch(blob_url(upstream, planted.repository, planted.digest), {"Range": "bytes=5-9"})
    assert (part.status, part.size) == (206, 5)
    counts = await upstream.counts()
    assert counts.sent == 8 * MIB + 5
    assert counts.bytes_of("planted") == 5 * MIB + 5
    assert [entry.range for entry in counts.of("planted")] == ["", "bytes=5-9"]


@pytest.mark.parametrize(
    ("rule", "status", "size", "whole"),
    [
        (Rule(status=429, headers={"Retry-After": "3"}, body="later"), 429, 5, True),
        (Rule(then="cut", after=1000), 200, 1000, False),
        (Rule(then="end", after=1000), 200, 1000, True),
        (Rule(then="flip", after=1000), 200, MIB, True),
        (Rule(match="nothing like it", then="cut"), 200, MIB, True),
        (Rule(skip=1, then="cut"), 200, MIB, True),
        (Rule(times=0, then="cut"), 200, MIB, True),
    ],
)
async def test_faults(rule: Rule, status: int, size: int, whole: bool, origin: Registry, upstream: Counter) -> None:
    blob = origin.plant("parts/faults", MIB, 4)
    await upstream.rules(rule)
    got = await fetch(blob_url(upstream, blob.repository, blob.digest))
    assert (got.status, got.size, got.whole) == (status, size, whole)
    assert (got.digest == blob.digest) == (rule.then != "flip" and size == MIB)
    assert got.body[: min(size, 1000)] == (data.blob(1000, 4) if status == 200 else b"later")


async def test_an_upstream_may_ignore_ranges(origin: Registry, upstream: Counter) -> None:
    blob = origin.plant("parts/ranges", MIB, 5)
    await upstream.rules(Rule(ignore_range=True))
    got = await fetch(blob_url(upstream, blob.repository, blob.digest), {"Range": "bytes=5-9"})
    assert (got.status, got.size) == (200, MIB)
    assert (await upstream.counts()).seen[0].range == "bytes=5-9"


async def test_a_hanging_body_ends_when_its_client_leaves(origin: Registry, upstream: Counter) -> None:
    blob = origin.plant("parts/hang", MIB, 6)
    await upstream.rules(Rule(then="hang", after=MIB // 2))
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(f"GET /v2/{blob.repository}/blobs/{blob.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    counts = await upstream.counts(part="hang", sent=MIB // 2)
    assert [(entry.sent, entry.done, entry.client) for entry in counts.seen] == [
        (MIB // 2, False, writer.get_extra_info("sockname")[1])
    ]
    writer.close()
    assert not reader.at_eof()


def test_a_bucket_spreads_bytes_over_time() -> None:
    bucket = Bucket(rate=100.0)
    assert [bucket.wait(50, now) for now in (10.0, 10.0, 10.25, 30.0)] == [0.0, 0.5, 0.75, 0.0]
    assert Bucket(rate=0.0).wait(1 << 40, 0.0) == 0.0


@pytest.mark.needs_containerd
async def test_containerd_pulls_by_tag_by_digest_and_as_kubelet_does(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    image = await origin.push_image("parts/image", "v1", [1000, 200_000])
    docker = await origin.push_image("parts/docker", "v1", [1000], kind=DOCKER)
    index = await origin.push_index(
        "parts/image", "multi", [image, await origin.push_image("parts/image", "arm", [10])]
    )
    async with containerd(tmp_path) as daemon:
        daemon.mirror(origin.host, upstream.url, fallback=False)
        await daemon.pull(f"{origin.host}/parts/image:v1")
        await daemon.pull(f"{origin.host}/parts/image@{image.manifest.digest}")
        await daemon.pull(f"{origin.host}/parts/image:multi")
        assert await daemon.images() == {
            f"{origin.host}/parts/image:v1": image.manifest.digest,
            f"{origin.host}/parts/image@{image.manifest.digest}": image.manifest.digest,
            f"{origin.host}/parts/image:multi": index.digest,
        }
        assert {blob.digest for blob in image.blobs} < await daemon.blobs()
        assert (daemon.content / image.config.digest.removeprefix("sha256:")).is_file()
        assert await daemon.cri_pull(f"{origin.host}/parts/docker:v1") == docker.config.digest
        await daemon.forget(await daemon.images())
        assert await daemon.blobs() == set()
    counts = await upstream.counts()
    assert {entry.query for entry in counts.seen} == {f"ns={origin.host}"}
    assert counts.bytes_of("blobs") == sum(blob.size for blob in (*image.blobs, *docker.blobs))


@pytest.mark.needs_skopeo
async def test_skopeo_asks_a_mirror_first(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    image = await origin.push_image("parts/skopeo", "v1", [1000, 200_000])
    name = f"{origin.host}/parts/skopeo:v1"
    await skopeo.copy(name, tmp_path / "image", registries=skopeo.mirrored(origin.host, upstream.host))
    for blob in image.blobs:
        content = (tmp_path / "image" / blob.digest.removeprefix("sha256:")).read_bytes()
        assert data.digest_of(content) == blob.digest
    assert (await upstream.counts()).sent >= image.size


@pytest.mark.needs_nginx
async def test_a_blob_server_counts_what_leaves_it_also_through_a_slice_cache(tmp_path: Path) -> None:
    async with blob_server(tmp_path) as blobs, nginx.slice_cache(blobs.url, tmp_path) as cache:
        url, digest = blobs.add(3 * MIB, 7)
        part = await fetch(f"{url}?sig=secret", {"Range": "bytes=70000-70009"})
        assert (part.status, part.body) == (206, data.blob(3 * MIB, 7)[70000:70010])
        await blobs.counter.reset()
        for _ in range(2):
            got = await fetch(cache.url + url.removeprefix(blobs.url))
            assert (got.status, got.digest) == (200, digest)
        assert (await blobs.counter.counts()).bytes_of(digest) == 3 * MIB


async def test_a_process_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PartFailed, match=r"(?s)ended with 3.*no luck"):
        async with process(["sh", "-c", "echo no luck; exit 3"], name="early", directory=tmp_path, ready="never said"):
            pytest.fail("it was taken for ready")
    assert (tmp_path / "early.log").read_text() == "no luck\n"


async def test_a_process_is_gone_after_its_block_whatever_it_does(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1000)"]
    parts = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the error is to leave the block
        async with process(argv, name="gone", directory=tmp_path, ready="up") as part:
            parts.append(part)
            assert part.peak_rss() > 100_000
            assert part.cpu_seconds() >= 0
            raise ZeroDivisionError
    assert await parts[0].ended() == -signal.SIGTERM
    assert not parts[0].alive


async def test_a_process_can_be_killed_and_started_again(tmp_path: Path) -> None:
    part = Process(["sh", "-c", "echo up $$; exec sleep 1000"], name="again", log=tmp_path / "again.log")
    try:
        part.start()
        first = (await part.says(r"up (\d+)"))[1]
        await part.kill()
        assert await part.ended() == -signal.SIGKILL
        part.start()
        assert (await part.says(r"up (\d+)"))[1] != first
    finally:
        await part.stop()


async def test_a_command_that_fails_says_why() -> None:
    assert await run(["echo", "hello"]) == "hello\n"
    with pytest.raises(PartFailed, match=r"(?s)exit 4.*oh"):
        await run(["sh", "-c", "echo oh >&2; exit 4"])


@pytest.mark.usefixtures("calm_loop")
async def test_a_calm_loop_is_left_alone() -> None:
    await asyncio.to_thread(hashlib.sha256, bytes(64 * MIB))


@pytest.mark.parametrize("how", ["time.sleep(0.01)", "sum(range(20_000_000))"])
async def test_a_blocked_loop_fails_its_test(how: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import calm_loop")
    (tmp_path / "test_it.py").write_text(f"import time\nasync def test_it(calm_loop):\n    {how}\n")
    argv = python("pytest", "-q", "--rootdir", str(tmp_path), "-o", "asyncio_mode=auto", str(tmp_path))
    with pytest.raises(PartFailed, match=r"(?s)the event loop was blocked.*1 passed, 1 error"):
        await run(argv)
