"""With --no-share-private a tenant whose rights upstream refuses gets 404, even where every node has the blob.

Twelve cases: whose rights, and what became of them, by what is asked for.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import BasicAuth, web

from mirror.upstream.auth import Credential
from mirror.upstream.registries import Registries
from tests.mirror.upstream.test_upstream_traps import ranged, serving
from tests.parts import data
from tests.parts.front import Agent, FileSwarm, file_agent

OCI = "application/vnd.oci.image.manifest.v1+json"
LAYER = data.blob(120_000, 90)
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI, "config": {}, "layers": []}).encode()
RIGHT = Credential("team", "right")


@dataclass
class Rights:
    """A registry whose tokens and passwords can be withdrawn, and what it was asked."""

    host: str = ""
    passwords: dict[str, str] = field(default_factory=lambda: {"team": "right"})
    tokens: set[str] = field(default_factory=set)
    given: int = 0
    repositories: set[str] = field(default_factory=lambda: {"team/app"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Token service and registry."""
        if request.path == "/token":
            return self._token(request.headers.get("Authorization"))
        kind, token = request.headers.get("Authorization", " ").split(" ", 1)
        if kind != "Bearer" or token not in self.tokens:
            challenge = f'Bearer realm="http://{self.host}/token",service="r"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if not any(f"/v2/{name}/" in request.path for name in self.repositories):
            return web.Response(status=403)
        if "/manifests/" in request.path:
            headers = {"Content-Type": OCI, "Docker-Content-Digest": data.digest_of(MANIFEST)}
            return web.Response(body=MANIFEST, headers=headers)
        return ranged(request, LAYER)

    def _token(self, authorization: str | None) -> web.Response:
        who = BasicAuth.decode(authorization) if authorization else BasicAuth("", "")
        if self.passwords.get(who.login) != who.password:
            return web.Response(status=401)
        self.given += 1
        self.tokens.add(f"t{self.given}")
        return web.json_response({"token": f"t{self.given}", "expires_in": 300})


class Wallet:
    """Credentials that a test changes."""

    def __init__(self, credential: Credential | None) -> None:
        self.credential = credential

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """The one."""
        return None if skip else self.credential


@asynccontextmanager
async def tenant(directory: Path, wallet: Wallet) -> AsyncIterator[tuple[Agent, FileSwarm, Rights]]:
    """An agent that has everything already, with the credentials of *wallet*."""
    rights = Rights()
    async with serving(rights.answer) as server:
        rights.host = server.host
        async with file_agent(
            directory, share_private=False, share_private_ttl=0.0, credentials=wallet, registries=Registries()
        ) as (agent, swarm):
            for content in (LAYER, MANIFEST):
                swarm.add(content)
            yield agent, swarm, rights


ASKED = {
    "layer": f"/v2/team/app/blobs/{data.digest_of(LAYER)}",
    "manifest": f"/v2/team/app/manifests/{data.digest_of(MANIFEST)}",
    "tag": "/v2/team/app/manifests/v1",
}


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("case", ["no credentials", "another's", "revoked", "token expired"])
async def test_whose_rights_upstream_refuses(case: str, what: str, tmp_path: Path) -> None:
    """Nothing without rights; nothing after they were withdrawn; and a token that merely ran out is renewed."""
    path = ASKED[what]
    wallet = Wallet({"no credentials": None, "another's": Credential("other", "x")}.get(case, RIGHT))
    async with tenant(tmp_path, wallet) as (agent, _, rights):

        async def ask() -> int:
            status, _, body = await agent.ask(f"{path}?ns={rights.host}")
            assert (status == 200) == (body in (LAYER, MANIFEST))
            return status

        if case in ("no credentials", "another's"):
            assert await ask() == 404
            wallet.credential = RIGHT
            assert await ask() == 200
            return
        assert await ask() == 200
        rights.tokens.clear()
        if case == "token expired":
            assert await ask() == 200
            rights.repositories.clear()  # the right to the repository is gone, the account is not
        else:
            rights.passwords.clear()
        assert await ask() == 404
