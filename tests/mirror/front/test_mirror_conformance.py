"""What OCI distribution-spec 1.1 requires of the pull side and of content discovery, a row for each sentence.

The official conformance suite (Go) was run by hand in its read-only mode against an agent in front of Debian's
docker-registry: 23 of 24 pass; the one that fails (`last` of tags/list) fails at that registry itself as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from mirror.upstream import manifests
from tests.parts import data
from tests.parts.counter import Rule, counter
from tests.parts.front import Agent, agent
from tests.parts.registry import DOCKER, Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.asyncio(loop_scope="module")]

REPOSITORY = "spec/deep/er/app"
SHA512 = b"a blob of another algorithm"


@dataclass(frozen=True)
class Row:
    """One requirement. `{...}` stands for what the fixture knows by that name."""

    said: str
    """Section, and what it says."""
    ask: str
    """Method and what comes behind `/v2/<name>/`; an absolute path begins with a slash."""
    status: int
    send: Mapping[str, str] = field(default_factory=dict)
    has: Mapping[str, str] = field(default_factory=dict)
    """Headers of the answer."""
    body: str = ""
    """Name of the bytes that come; `error CODE` for an error document; empty: nothing is said of the body."""


OK = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": "{blob}", "Content-Length": "{blob size}"}


def manifest(name: str, media_type: str) -> dict[str, str]:
    """The headers of an answer with a manifest."""
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": f"{{{name}}}",
        "Content-Length": f"{{{name} size}}",
    }


TABLE = [
    Row("Endpoints, end-1: 200 if the specification is implemented", "GET /v2/", 200),
    Row("Pulling manifests: 200, and the manifest", "GET manifests/v1", 200, body="manifest"),
    Row("Pulling manifests: Content-Type is what was uploaded (OCI)", "GET manifests/v1", 200,
        has=manifest("manifest", manifests.OCI_MANIFEST), body="manifest"),
    Row("Pulling manifests: the same by digest", "GET manifests/{manifest}", 200,
        has=manifest("manifest", manifests.OCI_MANIFEST), body="manifest"),
    Row("Pulling manifests: Docker's", "GET manifests/docker", 200,
        has=manifest("docker", manifests.DOCKER_MANIFEST), body="docker"),
    Row("Pulling manifests: an index", "GET manifests/multi", 200,
        has=manifest("index", manifests.OCI_INDEX), body="index"),
    Row("Pulling manifests: Docker's list", "GET manifests/list", 200,
        has=manifest("list", manifests.DOCKER_LIST), body="list"),
    Row("Pulling manifests: Accept names several types", "GET manifests/list", 200,
        send={"Accept": f"{manifests.OCI_INDEX}, {manifests.DOCKER_LIST}"}, body="list"),
    Row("Pulling manifests: Docker-Content-Digest is the digest of the body", "GET manifests/v1", 200,
        has={"Docker-Content-Digest": "{manifest}"}, body="manifest"),
    Row("Pulling manifests: 404 if it is not there", "GET manifests/absent", 404, body="error MANIFEST_UNKNOWN"),
    Row("Pulling manifests: 404 by digest", "GET manifests/{absent}", 404, body="error MANIFEST_UNKNOWN"),
    Row("Pulling manifests: a tag has at most 128 characters of [a-zA-Z0-9._-]", f"GET manifests/{'x' * 129}", 400,
        body="error TAG_INVALID"),
    Row("Pulling blobs: 200, and the blob", "GET blobs/{blob}", 200, has=OK, body="blob"),
    Row("Pulling blobs: of no bytes", "GET blobs/{empty}", 200, has={"Content-Length": "0"}, body="empty"),
    Row("Pulling blobs: 404 if it is not there", "GET blobs/{absent}", 404, body="error BLOB_UNKNOWN"),
    Row("Pulling blobs: Range SHOULD be supported (RFC 9110, 14.1.2)", "GET blobs/{blob}", 206,
        send={"Range": "bytes=10-19"}, has={"Content-Range": "bytes 10-19/{blob size}", "Content-Length": "10"}),
    Row("Pulling blobs: an open range", "GET blobs/{blob}", 206, send={"Range": "bytes=0-"}, body="blob"),
    Row("Pulling blobs: a range behind the end", "GET blobs/{blob}", 416, send={"Range": "bytes=99999999-"},
        has={"Content-Range": "bytes */{blob size}"}),
    Row("Digests: algorithms other than sha256 MAY be used", "GET blobs/{sha512}", 200, body="sha512"),
    Row("Digests: what is none is 400", "GET blobs/sha256:short", 400, body="error DIGEST_INVALID"),
    Row("Digests: sha256 is 64 characters of [a-f0-9]", f"GET blobs/sha256:{'A' * 64}", 400,
        body="error DIGEST_INVALID"),
    Row("Checking if content exists: HEAD of a manifest, by tag", "HEAD manifests/v1", 200,
        has=manifest("manifest", manifests.OCI_MANIFEST), body="empty"),
    Row("Checking if content exists: HEAD of a manifest, by digest", "HEAD manifests/{index}", 200,
        has=manifest("index", manifests.OCI_INDEX), body="empty"),
    Row("Checking if content exists: HEAD of a blob", "HEAD blobs/{blob}", 200, has=OK, body="empty"),
    Row("Checking if content exists: 404 for a manifest", "HEAD manifests/absent", 404, body="empty"),
    Row("Checking if content exists: 404 for a blob", "HEAD blobs/{absent}", 404, body="empty"),
    Row("Listing tags: 200, and a document with name and tags", "GET tags/list", 200, body="tags"),
    Row("Listing tags: n limits them, and Link leads on", "GET tags/list?n=1", 200,
        has={"Link": '</v2/{repository}/tags/list?last=a&n=1&ns={host}>; rel="next"'}),
    Row("Listing tags: 404 for a repository that is not known", "GET /v2/spec/absent/tags/list", 404,
        body="error NAME_UNKNOWN"),
    Row("Listing referrers: an index, and which filters were applied",
        "GET referrers/{manifest}?artifactType=application/x", 200,
        has={"Content-Type": manifests.OCI_INDEX, "OCI-Filters-Applied": "artifactType"}, body="referrers"),
    Row("Listing referrers: 404 from a registry without the API sends clients to the tag schema",
        "GET referrers/{docker}", 404, body="error MANIFEST_UNKNOWN"),
    Row("Listing referrers: 400 for what is no digest", "GET referrers/v1", 400, body="error DIGEST_INVALID"),
    Row("Pulling: <name> is lower case", "GET /v2/Spec/App/manifests/v1", 400, body="error NAME_INVALID"),
    Row("Endpoints: there are no others", "GET nothing", 404, body="error UNSUPPORTED"),
    Row("Pulling: <name> has no empty component", "GET /v2/spec//app/manifests/v1", 400, body="error NAME_INVALID"),
    Row("Pushing: 405 where it is not supported", "POST blobs/uploads/", 405, has={"Allow": "GET, HEAD"},
        body="error UNSUPPORTED"),
    Row("Pushing: mounting is pushing", "POST blobs/uploads/?mount={blob}&from=spec/other", 405,
        body="error UNSUPPORTED"),
    Row("Pushing: an upload is never under way", "PATCH blobs/uploads/1", 405, body="error UNSUPPORTED"),
    Row("Pushing: manifests", "PUT manifests/v1", 405, body="error UNSUPPORTED"),
    Row("Content management: 405 if deletion is not supported (tag)", "DELETE manifests/v1", 405,
        body="error UNSUPPORTED"),
    Row("Content management: 405 (manifest)", "DELETE manifests/{manifest}", 405, body="error UNSUPPORTED"),
    Row("Content management: 405 (blob)", "DELETE blobs/{blob}", 405, body="error UNSUPPORTED"),
]  # fmt: skip


@dataclass
class Known:
    """A running agent, and what its registry has."""

    agent: Agent
    host: str
    contents: dict[str, bytes]
    names: dict[str, str]

    def filled(self, text: str) -> str:
        """*text* with the names' meanings."""
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known(origin: Registry, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Known]:
    """One agent for the whole table: a request must not depend on those before it."""
    directory: Path = tmp_path_factory.mktemp("spec")
    image = await origin.push_image(REPOSITORY, "v1", [1000], seed=41)
    docker = await origin.push_image(REPOSITORY, "docker", [1000], seed=42, kind=DOCKER)
    index = await origin.push_index(REPOSITORY, "multi", [image])
    entry = {"mediaType": manifests.DOCKER_MANIFEST, "digest": docker.manifest.digest, "size": docker.manifest.size}
    listed = {
        "schemaVersion": 2,
        "mediaType": manifests.DOCKER_LIST,
        "manifests": [entry | {"platform": {"os": "linux", "architecture": "amd64"}}],
    }
    several = await origin.push_manifest(REPOSITORY, "list", listed, manifests.DOCKER_LIST)
    contents = {"blob": data.blob(700_001, 43), "empty": b"", "list": json.dumps(listed).encode()}
    pushed = {name: await origin.push_blob(REPOSITORY, contents[name]) for name in ("blob", "empty")}
    contents["referrers"] = b'{"schemaVersion":2,"manifests":[]}'
    contents["sha512"] = SHA512
    sha512 = f"sha512:{hashlib.sha512(SHA512).hexdigest()}"
    blobs = {"manifest": image.manifest, "docker": docker.manifest, "index": index, "list": several} | pushed
    names = {name: blob.digest for name, blob in blobs.items()}
    names |= {f"{name} size": str(blob.size) for name, blob in blobs.items()}
    names |= {"absent": f"sha256:{'0' * 64}", "sha512": sha512, "repository": REPOSITORY}
    async with counter(origin.url, directory) as upstream, agent(directory) as running:
        names["host"] = upstream.host.replace(":", "%3A")
        # docker-registry 2.8 knows neither referrers nor sha512 nor pages of tags
        headers = {"Content-Type": manifests.OCI_INDEX, "OCI-Filters-Applied": "artifactType"}
        await upstream.rules(
            Rule(match=f"referrers/{image.manifest.digest}.*artifactType=", status=200, headers=headers,
                 body=contents["referrers"].decode()),
            Rule(match="blobs/sha512:", status=200, body=SHA512.decode()),
            Rule(match="n=1", status=200, body="{}",
                 headers={"Link": f'</v2/{REPOSITORY}/tags/list?last=a&n=1>; rel="next"'}),
        )  # fmt: skip
        yield Known(running, upstream.host, contents, names)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.said.partition(':')[0]}: {row.ask[:40]}")
async def test_the_specification(known: Known, row: Row) -> None:
    """Range twice, since the second answer comes from this node's disk where the first one came from upstream."""
    method, _, rest = known.filled(row.ask).partition(" ")
    path = rest if rest.startswith("/") else f"/v2/{REPOSITORY}/{rest}"
    path += f"{'&' if '?' in path else '?'}ns={known.host}"
    for _ in range(2):
        status, headers, body = await known.agent.ask(path, method=method, headers=dict(row.send))
        assert status == row.status, row.said
        for name, value in row.has.items():
            assert headers[name] == known.filled(value), row.said
        kind, _, code = row.body.partition(" ")
        if kind == "error":
            assert [error["code"] for error in json.loads(body)["errors"]] == [code]
        elif kind == "tags":
            told = json.loads(body)
            assert (told["name"], set(told["tags"])) == (REPOSITORY, {"v1", "docker", "multi", "list"})
        elif kind in known.contents:
            assert body == known.contents[kind]
        elif kind:
            assert data.digest_of(body) == known.names[kind]
