"""Private registries behind agents, and clients that have no credentials of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from yarl import URL

from mirror.upstream.registries import place_of
from tests.parts import podman, skopeo, tokenserver
from tests.parts.cluster import cluster
from tests.parts.containerd import containerd
from tests.parts.counter import Rule, counter
from tests.parts.registry import Image, Registry, registry
from tests.parts.tokenserver import TokenServer, token_server

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

MIB = 1024 * 1024
REPOSITORY = "team/private"
PASSWORD = "right"
BCRYPT = "$2b$04$abcdefghijklmnopqrstuuFmEfrkTQnczNzw475xE2VhDrK1uwJiC"
"""What docker-registry's htpasswd file holds for it."""


def config(key: str, password: str = PASSWORD) -> str:
    """A Docker config.json as `docker login` writes it."""
    return json.dumps({"auths": {key: {"auth": base64.b64encode(f"robot:{password}".encode()).decode()}}})


async def filled(origin: Registry, guarded: Registry, *layers: int) -> Image:
    """An image in *guarded*, which takes no pushes: pushed to *origin*, and its files copied."""
    image = await origin.push_image(REPOSITORY, "v1", layers)
    await asyncio.to_thread(shutil.copytree, origin.directory, guarded.directory, dirs_exist_ok=True)
    return image


@asynccontextmanager
async def private(directory: Path, tokens: TokenServer, authority: trustme.CA) -> AsyncIterator[Registry]:
    """A registry with a certificate of *authority* that opens for the tokens of *tokens* only."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "server.crt")
    certificate.private_key_pem.write_to_path(directory / "server.key")
    tls = {"certificate": str(directory / "server.crt"), "key": str(directory / "server.key")}
    async with registry(directory, http={"tls": tls}, auth=tokens.auth) as running:
        yield running


@pytest.mark.needs_containerd
@pytest.mark.needs_podman
@pytest.mark.needs_skopeo
@pytest.mark.needs_root
async def test_a_registry_with_tokens_and_a_private_authority(origin: Registry, tmp_path: Path) -> None:
    """The agents have the password and the authority; containerd (ctr and CRI), podman and skopeo have neither. An
    agent without a password serves what its peers have (share-private), and with --no-share-private nothing until its
    Secret is filled: no restart for that."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with token_server(tmp_path) as tokens, private(tmp_path, tokens, authority) as guarded:
        tokens.users["robot"] = PASSWORD
        image = await filled(origin, guarded, 3 * MIB, 1000)
        name = f"{guarded.host}/{REPOSITORY}:v1"
        (tmp_path / "config.json").write_text(config(guarded.host))
        (tmp_path / "empty.json").write_text("{}")
        (tmp_path / "registries.toml").write_text(
            f'[registry."{guarded.host}"]\nurl = "https://{guarded.host}"\nca = "{tmp_path}/ca.pem"\n'
        )
        known = f"--registries={tmp_path}/registries.toml"
        near = f"--plain-http={place_of(URL(tokens.url))}"  # it is on this machine, too
        async with cluster(tmp_path, agents=2, flags=[known, near, f"--docker-config={tmp_path}/config.json"]) as whole:
            first, second = whole.agents
            async with containerd(tmp_path) as daemon:
                daemon.mirror(guarded.host, first.url, fallback=False)
                await daemon.pull(name)
                daemon.mirror(guarded.host, second.url, fallback=False)
                assert await daemon.cri_pull(name) == image.config.digest
            mirror = skopeo.mirrored(guarded.host, skopeo.through(second.host, guarded.host))
            assert await podman.Podman(tmp_path / "podman", mirror).pull(name) == image.config.digest[7:]
            await skopeo.copy(name, tmp_path / "copy", registries=mirror)
            assert {asked["user"] for asked in tokens.asked} == {"robot"}
            assert {asked["scope"] for asked in tokens.asked} == {f"repository:{REPOSITORY}:pull"}
            assert len(tokens.asked) <= len(whole.agents), "one token for each agent, however many clients"

            stranger = await whole.add(known, near, f"--docker-config={tmp_path}/empty.json")
            assert (await stranger.blob(image.layers[0], guarded.host)).digest == image.layers[0].digest
            secret = tmp_path / "secret"
            secret.mkdir()
            (secret / "config.json").write_text(config(guarded.host, "wrong"))
            strict = await whole.add(known, near, "--no-share-private", f"--docker-config={secret}/config.json")
            for what in (image.layers[0], image.config):
                assert (await strict.blob(what, guarded.host)).status == 404
            assert (await strict.manifest(REPOSITORY, "v1", guarded.host)).status == 404
            (secret / "new").write_text(config(guarded.host))
            (secret / "new").rename(secret / "config.json")
            async with asyncio.timeout(10):  # it looks once a second
                while (told := await strict.blob(image.layers[0], guarded.host)).status == 404:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert told.digest == image.layers[0].digest
            assert (await strict.manifest(REPOSITORY, "v1", guarded.host)).digest == image.manifest.digest
        for agent in whole.agents:
            said = agent.process.log.read_text()
            assert PASSWORD not in said
            assert "Bearer" not in said
            assert "eyJ" not in said, "a token"


async def test_a_401_in_the_middle_of_a_blob(tmp_path: Path) -> None:
    """The token is no longer taken when half of the windows are here: a new one is asked for, and the blob goes on."""
    async with (
        token_server(tmp_path) as tokens,
        registry(tmp_path, auth=tokens.auth) as guarded,
        counter(guarded.url, tmp_path) as upstream,
        cluster(tmp_path, flags=[f"--plain-http={place_of(URL(tokens.url))}"]) as whole,
    ):
        blob = guarded.plant(REPOSITORY, 24 * MIB, 910)
        challenge = f'Bearer realm="{tokens.url}",service="{tokenserver.SERVICE}"'
        await upstream.rules(Rule(match="blobs/", skip=3, times=1, status=401, headers={"WWW-Authenticate": challenge}))
        told = await whole.agents[0].blob(blob, upstream.host)
        assert (told.status, told.digest, told.whole) == (200, blob.digest, True)
        assert len(tokens.asked) == 2
        counts = await upstream.counts()
        assert [entry.status for entry in counts.of("blobs/")].count(401) == 2, "the first challenge, and the one amid"
        assert counts.bytes_of("blobs/") <= 1.02 * blob.size


async def test_a_registry_with_passwords(tmp_path: Path) -> None:
    """Basic authentication: by a glob as kubelet has it, and by a credential helper."""
    (tmp_path / "htpasswd").write_text(f"robot:{BCRYPT}\n")
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
    async with registry(tmp_path, auth=auth) as guarded, cluster(tmp_path, agents=0) as whole:
        blob, other = guarded.plant(REPOSITORY, MIB, 920), guarded.plant("team/other", MIB, 921)
        port = guarded.host.rpartition(":")[2]
        (tmp_path / "config.json").write_text(config(f"127.0.?.*:{port}/team/private"))
        by_glob = await whole.add(f"--docker-config={tmp_path}/config.json")
        assert (await by_glob.blob(blob, guarded.host)).digest == blob.digest
        assert (await by_glob.blob(other, guarded.host)).status == 404, "the key covers one repository"

        helper = tmp_path / "bin/docker-credential-test"
        helper.parent.mkdir()
        helper.write_text(f'#!/bin/sh\ncat >/dev/null\necho \'{{"Username":"robot","Secret":"{PASSWORD}"}}\'\n')
        helper.chmod(0o755)
        (tmp_path / "helped.json").write_text(json.dumps({"credHelpers": {guarded.host: "test"}}))
        path = f"{helper.parent}:/usr/bin:/bin"
        by_helper = await whole.add(f"--docker-config={tmp_path}/helped.json", env={"PATH": path})
        assert (await by_helper.blob(other, guarded.host)).digest == other.digest
