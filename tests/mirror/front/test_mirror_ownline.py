"""A client's own line: manifests go past a cluster that stands still."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from mirror.front.ownline import first_good
from tests.mirror.upstream.test_upstream_traps import serving
from tests.parts import data
from tests.parts.front import file_agent

OCI = "application/vnd.oci.image.manifest.v1+json"
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI, "config": {}, "layers": []}).encode()


async def gives(value: str, *, after: asyncio.Event | None = None, error: Exception | None = None) -> str:
    """*value*, or *error*, once *after* is set."""
    if after is not None:
        await after.wait()
    if error is not None:
        raise error
    return value


async def test_what_the_cluster_gives_in_time_is_all_that_is_asked_for() -> None:
    """Its failure too: upstream is not asked a second time for what it refused."""
    asked: list[str] = []

    async def direct() -> str:
        asked.append("direct")
        return "direct"

    assert await first_good(gives("cluster"), direct) == "cluster"
    with pytest.raises(KeyError):
        await first_good(gives("", error=KeyError()), direct)
    assert asked == []


async def test_what_stands_still_is_gone_past() -> None:
    never = asyncio.Event()
    assert await first_good(gives("cluster", after=never), lambda: gives("direct"), 0.0) == "direct"


async def test_whichever_is_good_counts_and_the_clusters_failure_is_told_when_both_fail() -> None:
    late = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, late.set)
    failing = lambda: gives("", error=OSError())  # noqa: E731
    assert await first_good(gives("cluster", after=late), failing, 0.0) == "cluster"
    with pytest.raises(KeyError):
        await first_good(gives("", after=late, error=KeyError()), failing, -1.0)


async def test_a_manifest_comes_straight_from_upstream_when_the_cluster_stands_still(tmp_path: Path) -> None:
    """By tag and by digest, checked against its digest."""

    async def answer(_: web.Request) -> web.Response:
        headers = {"Content-Type": OCI, "Docker-Content-Digest": data.digest_of(MANIFEST)}
        return web.Response(body=MANIFEST, headers=headers)

    async with serving(answer) as upstream, file_agent(tmp_path) as (agent, swarm):
        digest = swarm.add(MANIFEST)
        blob = swarm.blobs[digest]
        blob.fails_at, blob.gate = 0, asyncio.Event()
        for reference in ("v1", digest):
            status, headers, body = await agent.ask(f"/v2/team/app/manifests/{reference}?ns={upstream.host}")
            assert (status, body, headers["Content-Type"]) == (200, MANIFEST, OCI)
        assert blob.readers == 0, "nobody waits on for it"
