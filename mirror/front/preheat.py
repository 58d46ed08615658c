"""Orders to have images on this node before somebody waits for them: resolved, fetched below every pull, reported."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
from collections.abc import Awaitable
from typing import Any, Protocol

from mirror.front import tags
from mirror.front.blobs import Swarm
from mirror.front.images import Images, Part, blobs_of, entries, platform_of
from mirror.front.sending import read_span
from mirror.upstream import manifests
from mirror.upstream.client import Upstream
from mirror.upstream.reference import Image, parse_image
from swarm.blob import digest as digests
from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnavailable, SourceRefused, SwarmError

log = logging.getLogger("shoal.mirror")

AT_ONCE = 2
"""Blobs of all orders on their way at once: enough to fill the time in which one waits."""

MOST = 64
"""Orders remembered; a tracker that takes over tells them again, and they are not begun again."""

TELL_EVERY = 1.0
"""Seconds between two reports: as often as a person reads."""

DEPTH = 3
"""Indexes within indexes that are followed: image-spec allows any depth, registries have two."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


class Telling(Protocol):
    """Says how far an order is: `Swarm.tell_preheat`."""

    def __call__(
        self, identity: str, state: str, done: int, total: int, sources: dict[str, int], error: str = ""
    ) -> Awaitable[None]: ...


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


class Preheater:
    """The orders of one agent, one after another; an order is known by its id."""

    def __init__(self, swarm: Swarm, upstream: Upstream, tell: Telling, images: Images | None = None) -> None:
        """*images*: is shown the manifests that go by."""
        self._images = images or Images()
        self._swarm, self._upstream, self._tell = swarm, upstream, tell
        self._orders: dict[str, _Running] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    def take(self, identity: str, images: tuple[str, ...], wanted: str) -> None:
        """Begin an order, or say again how far it is."""
        running = self._orders.get(identity)
        if running is None:
            running = self._orders[identity] = _Running(identity)
            running.task = asyncio.create_task(self._run(running, images, wanted or own_platform()))
            self._forget()
        elif running.state != "fetching":
            running.again = asyncio.create_task(self._say(running))

    async def close(self) -> None:
        """Stop everything; what is on its way stays where it is, and goes on with the next pull."""
        tasks = [task for one in self._orders.values() for task in (one.task, one.again) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self) -> None:
        over = [name for name, one in self._orders.items() if one.state != "fetching"]
        for name in over[: max(0, len(self._orders) - MOST)]:
            del self._orders[name]

    async def _run(self, running: _Running, images: tuple[str, ...], wanted: str) -> None:
        teller = asyncio.create_task(self._say_often(running))
        begun = asyncio.get_running_loop().time()
        try:
            for text in images:
                try:
                    await self._image(running, parse_image(text), wanted)
                except (SwarmError, OSError, ValueError) as error:
                    running.error = running.error or f"{text}: {' '.join(str(error).split())}"
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
        running.state = "failed" if running.error else "done"
        fields = {
            "order": running.identity, "state": running.state, "bytes": running.done, "error": running.error,
            "seconds": round(asyncio.get_running_loop().time() - begun, 2), **running.sources,
        }  # fmt: skip
        log.info("preheated", extra={"fields": fields})
        await self._say(running)

    async def _image(self, running: _Running, image: Image, wanted: str) -> None:
        digest = await self._resolved(image)
        parts: list[Part] = []
        for _ in range(DEPTH):
            content = await self._manifest(running, image, digest)
            self._images.saw(f"{image.registry}/{image.repository}", digest, content)
            document = json.loads(content)
            if not isinstance(document, dict):
                raise SourceRefused("upstream's manifest is none")
            if isinstance(document.get("manifests"), list) and "layers" not in document:
                digest = chosen(document, wanted)
                continue
            parts = list(dict.fromkeys(blobs_of(document)))
            break
        else:
            raise SourceRefused("too many indexes within one another")
        running.total += sum(part.size for part in parts)
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(self._blob(running, image, part))

    async def _resolved(self, image: Image) -> Digest:
        if image.pinned:
            return digests.parse(image.reference)
        registry = self._upstream.registries.find(image.registry, image.repository)
        named = await tags.resolve(
            self._swarm.names, self._upstream, registry.host, image.repository, image.reference, registry.tag_ttl or 0.0
        )
        return named.meaning.digest

    async def _manifest(self, running: _Running, image: Image, digest: Digest) -> bytes:
        source = self._upstream.manifest(image.registry, image.repository, digest)
        async with self._swarm.open(digest, source, low=True) as blob:
            if blob.size > manifests.LARGEST:
                raise BlobUnavailable("too large for a manifest")
            parts = []
            async for span in blob.read(0, blob.size):
                parts.append(await read_span(span))
                running.count(span.origin, span.count)
        return b"".join(parts)

    async def _blob(self, running: _Running, image: Image, part: Part) -> None:
        """Have one blob here. What fails is told; the others go on."""
        async with self._gate:
            if self._swarm.held(part.digest) is not None:
                running.done += part.size
                return
            source = self._upstream.blob(image.registry, image.repository, part.digest, low=True)
            try:
                async with self._swarm.open(part.digest, source, low=True) as blob:
                    async for span in blob.read(0, blob.size):
                        running.count(span.origin, span.count)
                        running.done += span.count
            except (SwarmError, OSError) as error:
                running.error = running.error or f"{image}: {part.digest}: {' '.join(str(error).split())}"

    async def _say_often(self, running: _Running) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY)
            await self._say(running)

    async def _say(self, running: _Running) -> None:
        await self._tell(
            running.identity, running.state, running.done, running.total, dict(running.sources), running.error
        )


class _Running:
    """One order under way. *sources*: bytes by where they came from, without those that were here already."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.state = "fetching"
        self.done = self.total = 0
        self.sources: dict[str, int] = {}
        self.error = ""
        self.task: asyncio.Task[None] | None = None
        self.again: asyncio.Task[None] | None = None

    def count(self, origin: str, count: int) -> None:
        """*count* bytes came from *origin*."""
        if origin not in ("disk", "containerd"):
            self.sources[origin] = self.sources.get(origin, 0) + count
