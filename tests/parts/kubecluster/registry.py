"""A registry in the cluster's network that counts what it sends, by its own access log.

It speaks TLS with a certificate of the cluster's authority, as a company's registry does.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.parts import data
from tests.parts.kubecluster import network
from tests.parts.kubecluster.network import Network
from tests.parts.kubecluster.pki import Authority
from tests.parts.procs import Process
from tests.parts.registry import OCI

HOST = "registry.test"
PLACE = "registry"


@dataclass(frozen=True)
class Sent:
    """One answer of the registry. *agent*: the client's User-Agent; *size* in bytes, without headers."""

    method: str
    path: str
    status: int
    size: int
    agent: str


class CountedRegistry:
    """docker-registry in a namespace of its own."""

    def __init__(self, base: Path, lan: Network, authority: Authority) -> None:
        self.content = base / "registry"
        self._base = base
        self._lan = lan
        self._authority = authority
        self.process: Process | None = None

    async def up(self) -> None:
        """Start it on port 443."""
        await self._lan.join(PLACE, network.REGISTRY)
        address = network.address(network.REGISTRY)
        certificate, key = self._authority.issue("registry", HOST, HOST, address)
        self.content.mkdir()
        configuration = {
            "version": "0.1",
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.content)}},
            "http": {
                "addr": f"{address}:443",
                "secret": "for tests",
                "tls": {"certificate": str(certificate), "key": str(key)},
            },
        }
        file = self._base / "registry.yml"
        file.write_text(yaml.safe_dump(configuration))
        self.process = Process(
            self._lan.enter(PLACE, "docker-registry", "serve", str(file)),
            name="registry", log=self._base / "log" / "registry.log", env={"OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
        self.process.start()
        await self.process.says("listening on")

    async def down(self) -> None:
        """End it, and take what it keeps away."""
        if self.process is not None:
            await self.process.kill()
        await asyncio.to_thread(shutil.rmtree, self.content, ignore_errors=True)

    def push(self, repository: str, tag: str, layers: Sequence[bytes], config: dict[str, object]) -> int:
        """Write an image of uncompressed *layers* into the registry's directory, as an upload would have. Bytes of
        its blobs: what one copy costs."""
        described = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [data.digest_of(layer) for layer in layers]},
        }
        blobs = [json.dumps(described).encode(), *(gzip.compress(layer, 1, mtime=0) for layer in layers)]
        kinds = [OCI[1], *[OCI[2]] * len(layers)]
        entries: list[dict[str, Any]] = [
            {"mediaType": kind, "digest": data.digest_of(blob), "size": len(blob)}
            for kind, blob in zip(kinds, blobs, strict=True)
        ]
        manifest = {"schemaVersion": 2, "mediaType": OCI[0], "config": entries[0], "layers": entries[1:]}
        text = json.dumps(manifest).encode()
        digest = data.digest_of(text)
        for blob in (*blobs, text):
            self._keep(blob)
        for entry in entries:
            self._link(repository, f"_layers/{entry['digest'].replace(':', '/')}", str(entry["digest"]))
        place = digest.replace(":", "/")
        self._link(repository, f"_manifests/revisions/{place}", digest)
        self._link(repository, f"_manifests/tags/{tag}/current", digest)
        self._link(repository, f"_manifests/tags/{tag}/index/{place}", digest)
        return sum(len(blob) for blob in blobs)

    def _keep(self, content: bytes) -> None:
        hexed = data.digest_of(content).removeprefix("sha256:")
        place = self.content / "docker/registry/v2/blobs/sha256" / hexed[:2] / hexed / "data"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def _link(self, repository: str, place: str, digest: str) -> None:
        file = self.content / "docker/registry/v2/repositories" / repository / place / "link"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(digest)

    def sent(self, repository: str) -> list[Sent]:
        """Every answer so far that was for *repository*, in order."""
        assert self.process is not None
        found = []
        for line in self.process.output().splitlines():
            if '"response completed"' not in line or f"/v2/{repository}/" not in line:
                continue
            told = json.loads(line)
            found.append(
                Sent(
                    told["http.request.method"], told["http.request.uri"], int(told["http.response.status"]),
                    int(told.get("http.response.written", 0)), told.get("http.request.useragent", ""),
                )
            )  # fmt: skip
        return found

    def blob_bytes(self, repository: str) -> int:
        """Bytes of blobs of *repository* that it has sent."""
        return sum(
            answer.size for answer in self.sent(repository) if answer.method == "GET" and "/blobs/" in answer.path
        )
