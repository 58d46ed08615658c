"""A real docker-registry on a free loopback port, and ways to fill it quickly."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml

from tests.parts import data
from tests.parts.procs import Process, free_port

OCI = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Blob:
    """What was pushed. *size* in bytes."""

    repository: str
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """An image as pushed: its manifest, and what that names."""

    repository: str
    tag: str
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    media_type: str = OCI[0]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Config and layers."""
        return (self.config, *self.layers)

    @property
    def size(self) -> int:
        """Bytes that a pull has to bring: manifest, config, layers."""
        return self.manifest.size + sum(blob.size for blob in self.blobs)


@dataclass
class Registry:
    """A running registry; *host* is what an image name begins with."""

    port: int
    directory: Path
    process: Process
    _pushed: int = field(default=0)

    @property
    def host(self) -> str:
        """`127.0.0.1:<port>`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://{self.host}"

    async def start(self) -> None:
        """Start the process (again) on the same port with the same content."""
        self.process.start()
        await self.process.says(r"listening on")

    async def stop(self) -> None:
        """Stop it: connections to it are refused from now on."""
        await self.process.kill()

    async def push_blob(self, repository: str, content: bytes) -> Blob:
        """Upload in one request (distribution-spec, "Single POST" then PUT)."""
        digest = data.digest_of(content)
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{self.url}/v2/{repository}/blobs/uploads/") as answer:
                answer.raise_for_status()
                place = answer.headers["Location"]
            mark = "&" if "?" in place else "?"
            headers = {"Content-Type": "application/octet-stream"}
            body = io.BytesIO(content)
            async with session.put(f"{place}{mark}digest={digest}", data=body, headers=headers) as answer:
                answer.raise_for_status()
        return Blob(repository, digest, len(content))

    async def push_manifest(self, repository: str, reference: str, document: object, media_type: str) -> Blob:
        """Upload a manifest or index under a tag or digest."""
        content = json.dumps(document).encode()
        url = f"{self.url}/v2/{repository}/manifests/{reference}"
        async with (
            aiohttp.ClientSession() as session,
            session.put(url, data=content, headers={"Content-Type": media_type}) as answer,
        ):
            answer.raise_for_status()
        return Blob(repository, data.digest_of(content), len(content))

    async def push_image(
        self, repository: str, tag: str, layers: Sequence[int], *, seed: int = 0, kind: tuple[str, str, str] = OCI
    ) -> Image:
        """Build and push an image that containerd can unpack: one tar.gz per entry of *layers* (bytes of the
        file in it, random, so the layer is about as long)."""
        manifest_type, config_type, layer_type = kind
        pushed, diff_ids = [], []
        for index, size in enumerate(layers):
            self._pushed += 1
            content = data.blob(size, (seed or self._pushed) * 1000 + index)
            plain = layer_tar({f"layer-{index}/data": content})
            diff_ids.append(data.digest_of(plain))
            pushed.append(await self.push_blob(repository, gzip.compress(plain, 1, mtime=0)))
        described = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/true"], "Labels": {"seed": str(seed or self._pushed)}},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": [{"created_by": f"layer {index}"} for index in range(len(layers))],
            }
        ).encode()
        config = await self.push_blob(repository, described)
        manifest = {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": layer_type, "digest": blob.digest, "size": blob.size} for blob in pushed],
        }
        told = await self.push_manifest(repository, tag, manifest, manifest_type)
        return Image(repository, tag, told, config, tuple(pushed), manifest_type)

    async def push_index(self, repository: str, tag: str, images: Sequence[Image]) -> Blob:
        """Push an OCI index over *images*; the first is for linux/amd64, the others for made-up variants."""
        entries = [
            {
                "mediaType": image.media_type,
                "digest": image.manifest.digest,
                "size": image.manifest.size,
                "platform": {"os": "linux", "architecture": "amd64"}
                if position == 0
                else {"os": "linux", "architecture": "arm64", "variant": f"v{7 + position}"},
            }
            for position, image in enumerate(images)
        ]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return await self.push_manifest(repository, tag, document, OCI_INDEX)

    def plant(self, repository: str, size: int, seed: int) -> Blob:
        """Write a blob of *size* bytes straight into the registry's directory: gigabytes in seconds.

        Layout: `blobs/sha256/<xx>/<hex>/data` and a link file under the repository.
        """
        root = self.directory / "docker/registry/v2"
        rough = self.directory / f"plant-{os.getpid()}-{seed}-{size}"
        digest = data.write(rough, size, seed)
        hexed = digest.removeprefix("sha256:")
        place = root / "blobs/sha256" / hexed[:2] / hexed / "data"
        place.parent.mkdir(parents=True, exist_ok=True)
        rough.rename(place)
        link = root / "repositories" / repository / "_layers/sha256" / hexed / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)
        return Blob(repository, digest, size)

    def uproot(self, blob: Blob) -> None:
        """Delete the bytes of a planted blob again."""
        hexed = blob.digest.removeprefix("sha256:")
        (self.directory / "docker/registry/v2/blobs/sha256" / hexed[:2] / hexed / "data").unlink()


def layer_tar(files: dict[str, bytes], *, mode: int = 0o644) -> bytes:
    """An uncompressed layer with *files*, the same bytes each time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@asynccontextmanager
async def registry(
    directory: Path, *, http: dict[str, object] | None = None, **sections: object
) -> AsyncIterator[Registry]:
    """A registry with its content under *directory*. *http*: more keys of the `http` section (tls ...);
    *sections*: more sections of its configuration (auth ...)."""
    content = directory / "registry"
    content.mkdir(parents=True)
    port = free_port()
    configuration = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(content), "maxthreads": 200},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": f"127.0.0.1:{port}", "secret": "for tests"} | (http or {}),
    } | sections
    file = directory / "registry.yml"
    file.write_text(yaml.safe_dump(configuration))
    environment = {"OTEL_TRACES_EXPORTER": "none"}
    part = Process(
        ["docker-registry", "serve", str(file)],
        name="registry",
        log=directory / "registry.log",
        env=environment,
        hush="response completed",
    )
    started = Registry(port, content, part)
    try:
        await started.start()
        yield started
    finally:
        await part.stop()
        await asyncio.to_thread(shutil.rmtree, content, ignore_errors=True)
