"""The upstream client against a real docker-registry: anonymous, with tokens, with passwords, over TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from yarl import URL

from mirror.upstream.auth import Credential
from mirror.upstream.client import Upstream
from mirror.upstream.registries import Registries, Tls, place_of, tls_in
from mirror.upstream.registries import Registry as Registry_
from mirror.upstream.sources import UpstreamSource
from swarm.blob.digest import parse
from swarm.blob.errors import SourceBroken, SourceRefused
from tests.parts import data, tokenserver
from tests.parts.registry import Registry, registry
from tests.parts.tokenserver import TokenServer

REPOSITORY = "team/app"
SIZE = 300_000
PASSWORD = "right"
BCRYPT = "$2b$04$abcdefghijklmnopqrstuuFmEfrkTQnczNzw475xE2VhDrK1uwJiC"
"""What docker-registry's htpasswd file holds for it."""


class Purse:
    """Credentials that always answer the same; counts how often it was asked."""

    def __init__(self, credential: Credential | None) -> None:
        self.credential = credential

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """The one credential."""
        return None if skip else self.credential


async def read(source: UpstreamSource, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of *source*."""
    async with source.open(start, stop) as body:
        content = b"".join([chunk async for chunk in body.chunks()])
        return content[start - body.offset :]


def told(tokens: TokenServer) -> Registries:
    """What somebody says who runs registry and token service on one machine: the latter is no other service."""
    return Registries(plain_http=frozenset({place_of(URL(tokens.url))}))


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running:
        yield running


@pytest.fixture
async def tokens(tmp_path: Path) -> AsyncIterator[TokenServer]:
    async with tokenserver.token_server(tmp_path) as running:
        yield running


@pytest.fixture
async def guarded(tmp_path: Path, tokens: TokenServer) -> AsyncIterator[Registry]:
    """A registry that opens for the token server's tokens only."""
    async with registry(tmp_path, auth=tokens.auth) as running:
        yield running


async def test_a_blob_is_read_whole_and_in_any_range(plain: Registry) -> None:
    content = data.blob(SIZE, 1)
    pushed = await plain.push_blob(REPOSITORY, content)
    async with Upstream() as upstream:
        source = upstream.blob(plain.host, REPOSITORY, parse(pushed.digest))
        assert source.upstream == plain.host
        assert await read(source) == content
        assert await read(source, 0, 1) == content[:1]
        assert await read(source, 1000, 250_000) == content[1000:250_000]
        assert await read(source, SIZE - 1, None) == content[-1:]
        assert await read(source, 299_000, 10 * SIZE) == content[299_000:]
        async with source.open(5, 6) as body:
            assert (body.total, body.offset, body.end, body.own) == (SIZE, 5, 6, False)


async def test_a_blob_that_is_not_there_is_refused(plain: Registry) -> None:
    async with Upstream() as upstream:
        source = upstream.blob(plain.host, REPOSITORY, parse(data.digest_of(b"nothing")))
        with pytest.raises(SourceRefused) as caught:
            await read(source)
        assert caught.value.status == 404


async def test_a_tag_means_a_digest_and_the_manifest_is_read_by_it(plain: Registry) -> None:
    image = await plain.push_image(REPOSITORY, "v1", [1000])
    async with Upstream() as upstream:
        meaning = await upstream.head_manifest(plain.host, REPOSITORY, "v1")
        assert (meaning.digest, meaning.size, meaning.media_type) == (
            image.manifest.digest,
            image.manifest.size,
            image.media_type,
        )
        source = upstream.manifest(plain.host, REPOSITORY, meaning.digest)
        assert data.digest_of(await read(source)) == meaning.digest
        with pytest.raises(SourceRefused) as caught:
            await upstream.head_manifest(plain.host, REPOSITORY, "v2")
        assert caught.value.status == 404


async def test_tags_are_handed_on(plain: Registry) -> None:
    for tag in ("a", "b", "c"):
        await plain.push_image(REPOSITORY, tag, [100])
    async with Upstream() as upstream:
        async with upstream.passthrough(plain.host, "GET", f"/v2/{REPOSITORY}/tags/list?n=2") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("application/json")
            body = b"".join([chunk async for chunk in answer.chunks()])
        assert sorted(json.loads(body)["tags"]) == ["a", "b", "c"]


async def test_an_anonymous_token_opens_a_public_repository(guarded: Registry, tokens: TokenServer) -> None:
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    async with Upstream(told(tokens)) as upstream:
        source = upstream.blob(guarded.host, REPOSITORY, parse(planted.digest))
        assert data.digest_of(await read(source)) == planted.digest
        assert len(await read(source, 10, 20)) == 10
    assert tokens.asked == [{"service": tokenserver.SERVICE, "scope": f"repository:{REPOSITORY}:pull", "user": ""}], (
        "one token serves every range"
    )


async def test_a_token_that_ran_out_between_two_windows_is_renewed_and_the_blob_goes_on(
    guarded: Registry, tokens: TokenServer
) -> None:
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    now = 1000.0
    async with Upstream(told(tokens), clock=lambda: now) as upstream:
        source = upstream.blob(guarded.host, REPOSITORY, parse(planted.digest))
        first = await read(source, 0, 100_000)
        now += tokens.life
        rest = await read(source, 100_000, None)
    assert data.digest_of(first + rest) == planted.digest
    assert len(tokens.asked) == 2


async def test_a_token_that_the_registry_no_longer_takes_is_renewed(guarded: Registry, tokens: TokenServer) -> None:
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    async with Upstream(told(tokens)) as upstream:
        source = upstream.blob(guarded.host, REPOSITORY, parse(planted.digest))
        await read(source, 0, 1)
        grants = upstream._exchanges._authorizer._grants
        for key, grant in list(grants.items()):
            grants[key] = replace(grant, header="Bearer stale")
        assert data.digest_of(await read(source)) == planted.digest
    assert len(tokens.asked) == 2


async def test_readers_that_come_together_share_one_token(guarded: Registry, tokens: TokenServer) -> None:
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    async with Upstream(told(tokens)) as upstream:
        source = upstream.blob(guarded.host, REPOSITORY, parse(planted.digest))
        pieces = await asyncio.gather(*(read(source, at, at + 30_000) for at in range(0, SIZE, 30_000)))
    assert data.digest_of(b"".join(pieces)) == planted.digest
    assert len(tokens.asked) == 1


@pytest.mark.parametrize("key", ["token", "access_token"])
async def test_a_password_is_changed_for_a_token(guarded: Registry, tokens: TokenServer, key: str) -> None:
    tokens.users["robot"] = PASSWORD
    tokens.key = key
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    async with (
        Upstream(told(tokens), credentials=Purse(Credential("robot", PASSWORD))) as upstream,
        upstream.blob(guarded.host, REPOSITORY, parse(planted.digest)).open(0, 1) as body,
    ):
        assert body.own
    assert [asked["user"] for asked in tokens.asked] == ["robot"]


async def test_an_identity_token_is_changed_for_a_token(guarded: Registry, tokens: TokenServer) -> None:
    tokens.users["robot"] = PASSWORD
    tokens.refresh_tokens.add("refresh-me")
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    async with Upstream(told(tokens), credentials=Purse(Credential(identity_token="refresh-me"))) as upstream:
        source = upstream.blob(guarded.host, REPOSITORY, parse(planted.digest))
        assert data.digest_of(await read(source)) == planted.digest
    assert [asked["grant_type"] for asked in tokens.asked] == ["refresh_token"]


@pytest.mark.parametrize("password", ["wrong", None])
async def test_a_token_service_that_refuses_is_a_refusal(
    guarded: Registry, tokens: TokenServer, password: str | None
) -> None:
    tokens.users["robot"] = PASSWORD
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    credential = None if password is None else Credential("robot", password)
    async with Upstream(told(tokens), credentials=Purse(credential)) as upstream:
        with pytest.raises(SourceRefused) as caught:
            await read(upstream.blob(guarded.host, REPOSITORY, parse(planted.digest)))
    assert caught.value.status == 401


async def test_a_token_without_the_right_is_a_refusal_and_not_a_loop(guarded: Registry, tokens: TokenServer) -> None:
    tokens.rights = ()
    planted = guarded.plant(REPOSITORY, SIZE, 7)
    async with Upstream(told(tokens)) as upstream:
        with pytest.raises(SourceRefused) as caught:
            await read(upstream.blob(guarded.host, REPOSITORY, parse(planted.digest)))
    assert caught.value.status == 401
    assert len(tokens.asked) == 1


async def test_a_registry_with_passwords(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(f"robot:{BCRYPT}\n")
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
    async with registry(tmp_path, auth=auth) as running:
        planted = running.plant(REPOSITORY, SIZE, 7)
        async with Upstream(credentials=Purse(Credential("robot", PASSWORD))) as upstream:
            source = upstream.blob(running.host, REPOSITORY, parse(planted.digest))
            assert data.digest_of(await read(source)) == planted.digest
        for credential in (None, Credential("robot", "wrong")):
            async with Upstream(credentials=Purse(credential)) as upstream:
                with pytest.raises(SourceRefused) as caught:
                    await read(upstream.blob(running.host, REPOSITORY, parse(planted.digest)))
                assert caught.value.status == 401


async def test_a_registry_behind_a_private_authority(tmp_path: Path) -> None:
    """Over TLS; the registry also wants to see our certificate."""
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("agent@example.org")
    files = {name: tmp_path / name for name in ("ca.crt", "server.crt", "server.key")}
    authority.cert_pem.write_to_path(files["ca.crt"])
    server.cert_chain_pems[0].write_to_path(files["server.crt"])
    server.private_key_pem.write_to_path(files["server.key"])
    tls = {
        "certificate": str(files["server.crt"]),
        "key": str(files["server.key"]),
        "clientcas": [str(files["ca.crt"])],
    }
    async with registry(tmp_path, http={"tls": tls}) as running:
        planted = running.plant(REPOSITORY, SIZE, 7)
        ours = tmp_path / "certs" / running.host
        ours.mkdir(parents=True)
        authority.cert_pem.write_to_path(ours / "own.crt")
        url = f"https://{running.host}"

        async def taken(tls: Tls) -> bytes:
            known = Registries({running.host: Registry_(running.host, url, tls=tls)})
            async with Upstream(known) as upstream:
                return await read(upstream.blob(running.host, REPOSITORY, parse(planted.digest)))

        with pytest.raises(SourceBroken, match="certificate cannot be verified"):
            await taken(Tls())
        with pytest.raises(SourceBroken):
            await taken(Tls(ca=(ours / "own.crt",)))
        client.cert_chain_pems[0].write_to_path(ours / "client.cert")
        client.private_key_pem.write_to_path(ours / "client.key")
        assert data.digest_of(await taken(tls_in(tmp_path / "certs", running.host))) == planted.digest
        known = Registries({running.host: Registry_(running.host, url)}, certs=tmp_path / "certs")
        async with Upstream(known) as upstream:
            source = upstream.blob(running.host, REPOSITORY, parse(planted.digest))
            assert data.digest_of(await read(source)) == planted.digest


async def test_certificates_that_are_renewed_need_no_restart(tmp_path: Path) -> None:
    """A mounted Secret: the authority's file is missing at first, wrong, right, and then for a moment half-written."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    tls = {"certificate": str(tmp_path / "server.crt"), "key": str(tmp_path / "server.key")}
    async with registry(tmp_path, http={"tls": tls}) as running:
        planted = running.plant(REPOSITORY, SIZE, 7)
        ours = tmp_path / "certs" / running.host
        url = f"https://{running.host}"
        known = Registries({running.host: Registry_(running.host, url)}, certs=tmp_path / "certs")
        async with Upstream(known) as upstream:
            source = upstream.blob(running.host, REPOSITORY, parse(planted.digest))
            with pytest.raises(SourceBroken, match="certificate cannot be verified"):
                await read(source)
            ours.mkdir(parents=True)
            trustme.CA().cert_pem.write_to_path(ours / "ca.crt")
            with pytest.raises(SourceBroken, match="certificate cannot be verified"):
                await read(source)
            authority.cert_pem.write_to_path(ours / "new")
            (ours / "new").rename(ours / "ca.crt")
            assert data.digest_of(await read(source)) == planted.digest
            (ours / "ca.crt").write_text("half")
            assert data.digest_of(await read(source)) == planted.digest


async def test_a_registry_that_is_gone_is_broken(plain: Registry) -> None:
    planted = plain.plant(REPOSITORY, SIZE, 7)
    async with Upstream() as upstream:
        source = upstream.blob(plain.host, REPOSITORY, parse(planted.digest))
        await read(source, 0, 1)
        await plain.stop()
        with pytest.raises(SourceBroken, match=plain.host):
            await read(source)
        with pytest.raises(SourceBroken, match=plain.host):
            await upstream.head_manifest(plain.host, REPOSITORY, "latest")
