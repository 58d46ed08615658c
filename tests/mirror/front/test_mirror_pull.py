"""The pull side of the OCI distribution-spec 1.1, asked of a whole agent in front of a real registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from mirror.upstream import manifests
from tests.parts import data
from tests.parts.counter import Counter, Rule
from tests.parts.front import Agent, agent
from tests.parts.registry import DOCKER, Blob, Image, Registry

pytestmark = pytest.mark.needs_registry

ABSENT = f"sha256:{'0' * 64}"
LAYER = 700_001


@dataclass
class Pull:
    """An agent, its upstream behind a counter, and what is pushed there."""

    agent: Agent
    upstream: Counter
    image: Image
    docker: Image
    index: Blob
    layer: bytes
    blob: Blob

    def path(self, rest: str) -> str:
        """A path of the image's repository at the mirror."""
        return f"/v2/{self.image.repository}/{rest}?ns={self.upstream.host}"


@pytest.fixture
async def pull(origin: Registry, upstream: Counter, tmp_path: Path) -> AsyncIterator[Pull]:
    repository = "team/deep/er/app"
    image = await origin.push_image(repository, "v1", [1000], seed=11)
    docker = await origin.push_image(repository, "docker", [1000], seed=12, kind=DOCKER)
    index = await origin.push_index(repository, "multi", [image])
    layer = data.blob(LAYER, 13)
    blob = await origin.push_blob(repository, layer)
    async with agent(tmp_path) as running:
        yield Pull(running, upstream, image, docker, index, layer, blob)


async def test_the_check(pull: Pull) -> None:
    """End-1: GET and HEAD /v2/ are 200."""
    for method in ("GET", "HEAD"):
        for path in ("/v2/", f"/v2/?ns={pull.upstream.host}", "/v2"):
            status, _, _ = await pull.agent.ask(path, method=method)
            assert status == 200


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("kind", ["oci", "docker", "index"])
async def test_manifests(pull: Pull, kind: str, by: str) -> None:
    """End-3: by tag and by digest, GET and HEAD: type, length, digest, and the exact bytes."""
    manifest, tag, media_type = {
        "oci": (pull.image.manifest, "v1", manifests.OCI_MANIFEST),
        "docker": (pull.docker.manifest, "docker", manifests.DOCKER_MANIFEST),
        "index": (pull.index, "multi", manifests.OCI_INDEX),
    }[kind]
    path = pull.path(f"manifests/{tag if by == 'tag' else manifest.digest}")
    for method in ("HEAD", "GET", "HEAD"):
        status, headers, body = await pull.agent.ask(path, method=method)
        assert status == 200
        assert headers["Content-Type"] == media_type
        assert headers["Docker-Content-Digest"] == manifest.digest
        assert headers["Content-Length"] == str(manifest.size)
        assert "Content-Encoding" not in headers
        assert data.digest_of(body) == (manifest.digest if method == "GET" else data.digest_of(b""))


async def test_blobs(pull: Pull) -> None:
    """End-2: GET and HEAD, cold and warm, with every header that containerd looks at."""
    path = pull.path(f"blobs/{pull.blob.digest}")
    for method in ("HEAD", "GET", "GET", "HEAD"):
        status, headers, body = await pull.agent.ask(
            path, method=method, headers={"Accept-Encoding": "zstd;q=1.0, gzip"}
        )
        assert status == 200
        assert headers["Content-Length"] == str(LAYER)
        assert headers["Docker-Content-Digest"] == pull.blob.digest
        assert headers["Accept-Ranges"] == "bytes"
        assert headers["Content-Type"] == "application/octet-stream"
        assert "Content-Encoding" not in headers
        assert body == (pull.layer if method == "GET" else b"")


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("header", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=10-19", 206, 10, 19),
        ("bytes=262143-262144", 206, 262143, 262144),
        ("bytes=5-", 206, 5, LAYER - 1),
        ("bytes=0-", 206, 0, LAYER - 1),
        (f"bytes={LAYER - 1}-", 206, LAYER - 1, LAYER - 1),
        ("bytes=-7", 206, LAYER - 7, LAYER - 1),
        (f"bytes=-{LAYER * 2}", 206, 0, LAYER - 1),
        (f"bytes=10-{LAYER * 2}", 206, 10, LAYER - 1),
        (f"bytes={LAYER}-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=0-1,5-6", 200, 0, LAYER - 1),
        ("bytes=9-5", 200, 0, LAYER - 1),
        ("pieces=1-2", 200, 0, LAYER - 1),
    ],
)
async def test_ranges_of_blobs(pull: Pull, header: str, status: int, first: int, last: int, warm: bool) -> None:
    """Single ranges in every form; the same bytes whether the blob is here or not."""
    path = pull.path(f"blobs/{pull.blob.digest}")
    if warm:
        await pull.agent.ask(path)
    got, headers, body = await pull.agent.ask(path, headers={"Range": header})
    assert got == status
    if status == 416:
        assert headers["Content-Range"] == f"bytes */{LAYER}"
        return
    assert headers["Content-Length"] == str(last - first + 1)
    assert headers.get("Content-Range") == (f"bytes {first}-{last}/{LAYER}" if status == 206 else None)
    assert body == pull.layer[first : last + 1]


@pytest.mark.parametrize("what", ["blobs", "manifests"])
async def test_if_none_match(pull: Pull, what: str) -> None:
    """What the client has already is not sent again."""
    digest = pull.blob.digest if what == "blobs" else pull.image.manifest.digest
    path = pull.path(f"{what}/{digest}")
    status, headers, _ = await pull.agent.ask(path)
    assert (status, headers["Etag"]) == (200, f'"{digest}"')
    for known in (f'"{digest}"', f'W/"{digest}"', f'"other", "{digest}"', "*"):
        status, headers, body = await pull.agent.ask(path, headers={"If-None-Match": known})
        assert (status, body, headers["Etag"]) == (304, b"", f'"{digest}"')
    status, _, _ = await pull.agent.ask(path, headers={"If-None-Match": '"other"'})
    assert status == 200


@pytest.mark.parametrize("status", [401, 403, 404, 451, 429, 500, 503])
async def test_what_upstream_refuses_is_not_found(pull: Pull, status: int) -> None:
    """Containerd then asks upstream itself, with the credentials that it has and we have not."""
    await pull.upstream.rules(Rule(match="/v2/team", status=status, body="{}"))
    for rest in ("manifests/v1", f"manifests/{pull.image.manifest.digest}", f"blobs/{pull.blob.digest}"):
        got, _, body = await pull.agent.ask(pull.path(rest))
        assert got == 404
        assert json.loads(body)["errors"]


async def test_a_registry_that_cannot_be_reached_is_not_found(pull: Pull) -> None:
    """Nothing listens there."""
    for rest in ("manifests/v1", f"blobs/{pull.blob.digest}"):
        status, _, _ = await pull.agent.ask(f"/v2/team/app/{rest}?ns=127.0.0.1:1")
        assert status == 404


async def test_tags_and_referrers_are_passed_through(pull: Pull, origin: Registry) -> None:
    """A list of tags, in pages that lead back to us; referrers as upstream has them."""
    status, _, body = await pull.agent.ask(pull.path("tags/list"))
    assert status == 200
    tags = json.loads(body)["tags"]
    assert {"v1", "docker", "multi"} <= set(tags)
    seen: list[str] = []
    path = pull.path("tags/list") + "&n=1"
    while path:
        status, headers, body = await pull.agent.ask(path)
        assert status == 200
        seen += json.loads(body)["tags"]
        link = headers.get("Link", "")
        assert not link or f"ns={pull.upstream.host.replace(':', '%3A')}" in link
        path = link[1 : link.index(">")] if link else ""
    assert sorted(seen) == sorted(tags)
    status, _, _ = await pull.agent.ask(pull.path(f"referrers/{pull.image.manifest.digest}"))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{origin.url}/v2/{pull.image.repository}/referrers/{pull.image.manifest.digest}") as answer,
    ):
        assert status == answer.status


async def test_other_algorithms_pass_without_a_swarm(pull: Pull) -> None:
    """sha512: asked upstream each time, whatever upstream says of it."""
    digest = f"sha512:{hashlib.sha512(pull.layer).hexdigest()}"
    await pull.upstream.rules(
        Rule(match=f"GET /v2/.*{digest}", status=200, body="bytes", headers={"Docker-Content-Digest": digest})
    )
    for _ in range(2):
        status, headers, body = await pull.agent.ask(pull.path(f"blobs/{digest}"))
        assert (status, body, headers["Docker-Content-Digest"]) == (200, b"bytes", digest)
    assert len((await pull.upstream.counts()).of(digest)) == 2
    assert pull.agent.front.registry.bodies.swarm.status()["fetches"] == []


async def test_a_blob_that_is_no_manifest(pull: Pull) -> None:
    """Range for as one: not found, and no layer in memory."""
    status, _, body = await pull.agent.ask(pull.path(f"manifests/{pull.blob.digest}"))
    assert (status, json.loads(body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


async def test_a_warm_image_needs_no_upstream(pull: Pull) -> None:
    """Everything once from upstream, one copy; then by digest and by tag although upstream is gone."""
    paths = [pull.path("manifests/v1"), *(pull.path(f"blobs/{blob.digest}") for blob in pull.image.blobs)]
    paths.append(pull.path(f"manifests/{pull.image.manifest.digest}"))
    first = [await pull.agent.ask(path) for path in paths]
    await pull.upstream.process.kill()
    again = [await pull.agent.ask(path) for path in paths]
    assert [status for status, _, _ in again] == [200] * len(paths)
    assert [body for _, _, body in again] == [body for _, _, body in first]


async def test_a_stale_tag_says_so(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Upstream down after the TTL: the last known digest, with a Warning."""
    from mirror.settings import TagTtl

    image = await origin.push_image("stale/app", "v1", [100], seed=21)
    async with agent(tmp_path, tag_ttl=(TagTtl("", 0.0),)) as running:
        path = f"/v2/stale/app/manifests/v1?ns={upstream.host}"
        status, headers, _ = await running.ask(path)
        assert status == 200
        assert "Warning" not in headers
        for failure in (429, 500):
            await upstream.rules(Rule(match="manifests/v1", status=failure))
            status, headers, body = await running.ask(path)
            assert (status, headers["Docker-Content-Digest"]) == (200, image.manifest.digest)
            assert headers["Warning"].startswith("110 ")
            assert data.digest_of(body) == image.manifest.digest


async def test_tags_can_be_left_to_the_client(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """`off`: 404 without a question upstream; digests work."""
    from mirror.settings import TagTtl

    image = await origin.push_image("off/app", "v1", [100], seed=22)
    async with agent(tmp_path, tag_ttl=(TagTtl("", None),)) as running:
        status, _, _ = await running.ask(f"/v2/off/app/manifests/v1?ns={upstream.host}")
        assert status == 404
        assert (await upstream.counts()).seen == []
        status, _, _ = await running.ask(f"/v2/off/app/manifests/{image.manifest.digest}?ns={upstream.host}")
        assert status == 200


async def test_what_is_denied_is_not_asked_for(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """404 at once, no request leaves."""
    await origin.push_image("secret/app", "v1", [100], seed=23)
    async with agent(tmp_path, deny=(f"{upstream.host}/secret/*",)) as running:
        for rest in ("manifests/v1", f"manifests/{ABSENT}", f"blobs/{ABSENT}", "tags/list"):
            status, _, _ = await running.ask(f"/v2/secret/app/{rest}?ns={upstream.host}")
            assert status == 404
    assert (await upstream.counts()).seen == []


async def test_private_content_is_shown_only_after_upstream_said_yes(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """share-private off: what is on disk is refused where upstream refuses us, also through another repository."""
    blob = await origin.push_blob("private/app", data.blob(5000, 24))
    await origin.push_image("public/app", "v1", [100], seed=25)
    path = f"blobs/{blob.digest}?ns={upstream.host}"
    async with agent(tmp_path) as running:
        assert (await running.ask(f"/v2/private/app/{path}"))[0] == 200
    await upstream.rules(Rule(match="/v2/private", status=401))
    async with agent(tmp_path, share_private=False) as running:
        assert (await running.ask(f"/v2/private/app/{path}"))[0] == 404
        assert (await running.ask(f"/v2/public/app/{path}"))[0] == 404
        await upstream.rules()
        assert (await running.ask(f"/v2/private/app/{path}"))[0] == 200
        await upstream.rules(Rule(match="/v2/private", status=401))
        assert (await running.ask(f"/v2/private/app/{path}"))[0] == 200
    async with agent(tmp_path) as running:
        assert (await running.ask(f"/v2/private/app/{path}"))[0] == 200
