"""Rights follow the content: whose yes opens what this node and its peers hold, with --no-share-private."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from tests.mirror.upstream.test_upstream_traps import Server, ranged, serving
from tests.parts import data
from tests.parts.front import Agent, file_agent

CONTENT = data.blob(300_000, 77)
DIGEST = data.digest_of(CONTENT)
OTHER = data.blob(300_000, 78)


async def honest(request: web.Request) -> web.StreamResponse:
    """Has the bytes."""
    return ranged(request, CONTENT)


async def boasting(request: web.Request) -> web.StreamResponse:
    """Says yes to everything, of the right size, and has other bytes."""
    return ranged(request, OTHER)


async def ask(agent: Agent, server: Server, path: str = "/v2/a/b/blobs/{}") -> tuple[int, bytes]:
    """A pull, or a streamed read, in the name of *server*."""
    if path.startswith("/v2"):
        status, _, body = await agent.ask(f"{path.format(DIGEST)}?ns={server.host}")
    else:
        status, _, body = await agent.ask(
            f"/blobs/http://{server.host}/x/blobs/{DIGEST}", headers={"Range": f"bytes=0-{len(CONTENT) - 1}"}
        )
    return status, body


async def test_a_registry_that_says_yes_to_everything_opens_nothing(tmp_path: Path) -> None:
    """Neither by its name nor by a URL of its own; and the owner's yes still opens it."""
    async with (
        serving(honest) as owner,
        serving(boasting) as other,
        file_agent(tmp_path, share_private=False) as (agent, swarm),
    ):
        assert swarm.add(CONTENT) == DIGEST
        assert await ask(agent, other) == (404, (await ask(agent, other))[1])
        for path in ("/v2/a/b/blobs/{}", "/blobs/"):
            status, body = await ask(agent, other, path)
            assert status in (403, 404)
            assert CONTENT[:100] not in body
        assert await ask(agent, owner) == (200, CONTENT)
        assert await ask(agent, owner, "/blobs/") == (206, CONTENT)


async def test_who_showed_the_bytes_once_need_only_say_yes(tmp_path: Path) -> None:
    """A digest's bytes never change, but rights do: the question is asked again, with one byte."""
    async with serving(honest) as owner, file_agent(tmp_path, share_private=False, share_private_ttl=0.0) as (agent, _):
        assert await ask(agent, owner) == (200, CONTENT)
        before = len(owner.asked)
        assert await ask(agent, owner) == (200, CONTENT)
        assert [request.headers["Range"] for request in owner.asked[before:]] == ["bytes=0-0"]

        async def revoked(_: web.Request) -> web.Response:
            return web.Response(status=403)

        owner.answer = revoked
        assert (await ask(agent, owner))[0] == 404


async def test_without_the_flag_nobody_is_asked_for_what_is_here(tmp_path: Path) -> None:
    async with serving(boasting) as other, file_agent(tmp_path) as (agent, swarm):
        swarm.add(CONTENT)
        assert await ask(agent, other) == (200, CONTENT)
        assert other.asked == []


async def test_a_manifest_is_opened_by_its_bytes_and_not_by_a_head(tmp_path: Path) -> None:
    secret = b'{"schemaVersion":2,"config":{},"layers":[],"secret":1}'

    async def says_yes(request: web.Request) -> web.StreamResponse:
        headers = {
            "Docker-Content-Digest": data.digest_of(secret),
            "Content-Type": "application/vnd.oci.image.manifest.v1+json",
        }
        return web.Response(body=b"x" * len(secret) if request.method == "GET" else None, headers=headers)

    async with serving(says_yes) as other, file_agent(tmp_path, share_private=False) as (agent, swarm):
        digest = swarm.add(secret)
        status, _, body = await agent.ask(f"/v2/a/b/manifests/{digest}?ns={other.host}")
        assert status == 404
        assert b"secret" not in body
