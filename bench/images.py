"""Images of random bytes, made in an upstream registry: single layers or several, and an update of each."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

MIB = 1024 * 1024
_CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}'
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Image:
    """An image at the upstream. Random bytes, so that nothing on the way can compress them."""

    repository: str
    tag: str
    layers: tuple[tuple[str, int], ...]
    """(digest, bytes) of each."""

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(size for _, size in self.layers)

    @property
    def name(self) -> str:
        """For tables: `128 MiB, 4 layers`."""
        count = len(self.layers)
        return f"{self.size / MIB:g} MiB, {count} layer{'s' if count > 1 else ''}"


def make(address: tuple[str, int], repository: str, size: int, layers: int) -> tuple[Image, Image | None]:
    """Push an image of *size* bytes and, if it has several layers, an update with a new last one."""
    pushed = [_push_layer(address, repository, size // layers) for _ in range(layers)]
    first = _push_image(address, repository, "v1", pushed)
    if layers == 1:
        return first, None
    return first, _push_image(
        address, repository, "v2", [*pushed[:-1], _push_layer(address, repository, size // layers)]
    )


def _push_layer(address: tuple[str, int], repository: str, size: int) -> tuple[str, int]:
    hasher = hashlib.sha256()
    link, location = _begin(address, repository)
    sent = 0
    while sent < size:
        block = os.urandom(min(4 * MIB, size - sent))
        hasher.update(block)
        link.request("PATCH", location, body=block, headers={"Content-Range": f"{sent}-{sent + len(block) - 1}"})
        location = _expect(link, 202)
        sent += len(block)
    digest = f"sha256:{hasher.hexdigest()}"
    _finish(link, location, digest, b"")
    return digest, size


def _push_image(address: tuple[str, int], repository: str, tag: str, layers: list[tuple[str, int]]) -> Image:
    config = f"sha256:{hashlib.sha256(_CONFIG).hexdigest()}"
    link, location = _begin(address, repository)
    _finish(link, location, config, _CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": len(_CONFIG)},
        "layers": [{"mediaType": _LAYER, "digest": digest, "size": size} for digest, size in layers],
    }
    link = http.client.HTTPConnection(*address, timeout=60)
    link.request("PUT", f"/v2/{repository}/manifests/{tag}", json.dumps(manifest), {"Content-Type": _MANIFEST})
    _expect(link, 201)
    link.close()
    return Image(repository, tag, tuple(layers))


def _begin(address: tuple[str, int], repository: str) -> tuple[http.client.HTTPConnection, str]:
    link = http.client.HTTPConnection(*address, timeout=60)
    link.request("POST", f"/v2/{repository}/blobs/uploads/")
    return link, _expect(link, 202)


def _finish(link: http.client.HTTPConnection, location: str, digest: str, body: bytes) -> None:
    link.request("PUT", f"{location}&digest={digest}", body=body)
    _expect(link, 201)
    link.close()


def _expect(link: http.client.HTTPConnection, status: int) -> str:
    answer = link.getresponse()
    body = answer.read()
    if answer.status != status:
        raise RuntimeError(f"the registry answered {answer.status}: {body[:200]!r}")
    location = urlsplit(answer.getheader("Location", ""))
    return f"{location.path}?{location.query}"


if __name__ == "__main__":  # HOST PORT REPOSITORY BYTES LAYERS, in the namespace of the registry
    made = make((sys.argv[1], int(sys.argv[2])), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    print(json.dumps([image and {"tag": image.tag, "layers": image.layers} for image in made]))
