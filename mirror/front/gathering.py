"""Has what an image consists of on this node, below every pull: for orders to preheat and to keep."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mirror.front import tags
from mirror.front.blobs import Node
from mirror.front.images import Images, Part, blobs_of, entries, platform_of
from mirror.front.sending import read_span
from mirror.upstream import manifests
from mirror.upstream.client import Upstream
from mirror.upstream.reference import Image
from swarm.blob import digest as digests
from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnavailable, SourceRefused
from swarm.fetch.proof import origin_of

AT_ONCE = 2
"""Blobs of all orders on their way at once: enough to fill the time in which one waits."""

DEPTH = 3
"""Indexes within indexes that are followed: image-spec allows any depth, registries have two."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}

Arrived = Callable[[str, int], None]
"""Told of each span that was read: where it came from, and its bytes."""


@dataclass(frozen=True)
class Parts:
    """What an image consists of. *manifests*: indexes and manifest, outermost first; *blobs*: config and layers."""

    manifests: tuple[Part, ...]
    blobs: tuple[Part, ...]

    @property
    def all(self) -> dict[str, int]:
        """Digest -> bytes."""
        return {str(part.digest): part.size for part in (*self.manifests, *self.blobs)}


def own_platform() -> str:
    """os/architecture of this node."""
    return f"linux/{_MACHINES.get(platform.machine(), platform.machine())}"


def chosen(index: dict[str, Any], wanted: str) -> Digest:
    """The manifest for the platform *wanted* in an index, or its only one. Raises SourceRefused."""
    named_here = [one for one in entries(index, "manifests") if isinstance(one, dict)]
    named = [one for one in named_here if platform_of(one) == wanted or platform_of(one).startswith(f"{wanted}/")]
    plain = [one for one in named_here if not isinstance(one.get("platform"), dict)]
    for one in named or (plain if len(plain) == len(named_here) else []):
        return digests.parse(str(one.get("digest")))
    raise SourceRefused(f"the image has nothing for {wanted}")


class Gathering:
    """See the module. One for all orders of an agent."""

    def __init__(self, swarm: Node, upstream: Upstream, images: Images | None = None) -> None:
        """*images*: is shown the manifests that go by."""
        self._swarm, self._upstream, self._images = swarm, upstream, images or Images()
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def resolved(self, image: Image) -> Digest:
        """What *image* means now. Raises SwarmError."""
        if image.pinned:
            return digests.parse(image.reference)
        registry = self._upstream.registries.find(image.registry, image.repository)
        named = await tags.resolve(
            self._swarm.names, self._upstream, registry.host, image.repository, image.reference, registry.tag_ttl or 0.0
        )
        return named.meaning.digest

    async def parts(self, image: Image, digest: Digest, wanted: str, arrived: Arrived) -> Parts:
        """What *digest*, a manifest or an index of *image*, consists of for the platform *wanted*. Raises SwarmError,
        OSError, ValueError."""
        above: list[Part] = []
        for _ in range(DEPTH):
            content = await self._manifest(image, digest, arrived)
            above.append(Part(digest, len(content)))
            self._images.saw(f"{image.registry}/{image.repository}", digest, content)
            try:
                document = json.loads(content)
            except RecursionError:
                document = None
            if not isinstance(document, dict):
                raise SourceRefused("upstream's manifest is none")
            if isinstance(document.get("manifests"), list) and "layers" not in document:
                digest = chosen(document, wanted)
                continue
            return Parts(tuple(above), tuple(dict.fromkeys(blobs_of(document))))
        raise SourceRefused("too many indexes within one another")

    async def blob(self, image: Image, part: Part, arrived: Arrived) -> bool:
        """Have one blob here. False: it was already. Raises SwarmError, OSError."""
        async with self._gate:
            if self._swarm.held(part.digest) is not None:
                return False
            source = self._upstream.blob(image.registry, image.repository, part.digest, low=True)
            origin = origin_of(image.registry)
            async with self._swarm.open(part.digest, source, low=True, origin=origin) as blob:
                async for span in blob.read(0, blob.size):
                    arrived(span.origin, span.count)
            return True

    def has(self, digest: Digest) -> bool:
        """Whether the whole blob is here."""
        return self._swarm.held(digest) is not None

    async def _manifest(self, image: Image, digest: Digest, arrived: Arrived) -> bytes:
        source = self._upstream.manifest(image.registry, image.repository, digest)
        async with self._swarm.open(digest, source, low=True, origin=origin_of(image.registry)) as blob:
            if blob.size > manifests.LARGEST:
                raise BlobUnavailable("too large for a manifest")
            found = []
            async for span in blob.read(0, blob.size):
                found.append(await read_span(span))
                arrived(span.origin, span.count)
        return b"".join(found)
