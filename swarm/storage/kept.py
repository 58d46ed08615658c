"""The images that this node was told to keep: their blobs are not evicted, and a restart knows them still.

`kept.json` in the store's directory holds them. Together they never take more than SHARE of the store, so that what is
spared cannot fill it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from swarm.blob.errors import StoreFull
from swarm.protocol import wire
from swarm.storage.disk import write_whole
from swarm.storage.evict import cost

log = logging.getLogger("shoal.swarm")

SHARE = 0.5
"""The part of the store's budget that kept images may take: the rest is for what is pulled now."""

MOST_BYTES = 8 * 1024 * 1024
"""Bytes of the longest `kept.json` that is read: MAX_KEPT images of MAX_PARTS blobs take two."""


class KeptImage(msgspec.Struct, frozen=True):
    """An image that is kept here, or that nobody keeps any more (0 copies).

    *digest*: manifest or index that it means, "" until that is known. *blobs*: its manifests, config and layers, digest
    -> bytes.
    """

    keep: wire.Keep
    digest: str = ""
    blobs: dict[str, int] = {}


def room_of(images: Iterable[KeptImage]) -> int:
    """Bytes of the store that *images* take together; a blob of several counts once, by the largest size told of it."""
    blobs: dict[str, int] = {}
    for image in images:
        for digest, size in image.blobs.items():
            blobs[digest] = max(size, blobs.get(digest, 0))
    return sum(cost(size) for size in blobs.values())


def refusal(known: Mapping[str, KeptImage], image: KeptImage, budget: int) -> str:
    """Why *image* cannot be kept beside those *known* in a store of *budget* bytes, as one line; "" if it can."""
    others = [one for name, one in known.items() if name != image.keep.name]
    if image.keep.copies and sum(bool(one.keep.copies) for one in others) >= wire.MAX_KEPT:
        return f"this node keeps {wire.MAX_KEPT} images already"
    if len(image.blobs) > 2 * wire.MAX_PARTS:
        return f"the image has {len(image.blobs)} parts; {2 * wire.MAX_PARTS} are kept at most"
    room, taken = room_of([*others, image]), room_of(others)
    if image.blobs and room > SHARE * budget:
        return (
            f"it takes {(room - taken) / 2**20:.1f} MiB beside {taken / 2**20:.1f} MiB that are kept already: more "
            f"than half of this node's store of {budget / 2**20:.1f} MiB"
        )
    return ""


def trimmed(known: Mapping[str, KeptImage]) -> dict[str, KeptImage]:
    """*known* without what is too much: of the images that nobody keeps any more the oldest orders are forgotten."""
    ended = sorted((one.keep.serial, name) for name, one in known.items() if not one.keep.copies)
    over = {name for _, name in ended[: max(0, len(known) - wire.MAX_KEPT)]}
    return {name: one for name, one in known.items() if name not in over}


class Kept:
    """See the module. *path*: the file; *budget*: bytes of the store."""

    def __init__(self, path: Path, budget: int) -> None:
        self._path, self._budget = path, budget
        self._images: dict[str, KeptImage] = {}
        self._spared: frozenset[str] = frozenset()
        self._one_writer = asyncio.Lock()

    def __contains__(self, digest: object) -> bool:
        """Whether the blob is part of an image that is kept."""
        return digest in self._spared

    @property
    def bytes(self) -> int:
        """Bytes of the store that are promised to what is kept."""
        return room_of(self._images.values())

    def images(self) -> Mapping[str, KeptImage]:
        """All of them, by the name of their order."""
        return self._images

    async def load(self) -> list[tuple[wire.Keep, str]]:
        """Read what a former process kept; what is no such file counts as empty.

        Returns what a smaller store takes no longer, each with the reason.
        """
        found: list[KeptImage] = []
        try:
            found = msgspec.json.decode(await asyncio.to_thread(_read, self._path), type=list[KeptImage])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("kept-unreadable", extra={"fields": {"file": str(self._path), "error": str(error)}})
        refused = []
        for image in sorted(found, key=lambda image: image.keep.serial):
            if reason := refusal(self._images, image, self._budget):
                refused.append((image.keep, reason))
            else:
                self._images[image.keep.name] = image
        self._changed()
        return refused

    async def put(self, image: KeptImage) -> None:
        """Keep *image* from now on, in place of what its name meant. Raises StoreFull if it does not fit: all is as
        before then."""
        if reason := refusal(self._images, image, self._budget):
            raise StoreFull(reason)
        self._images.pop(image.keep.name, None)
        self._images[image.keep.name] = image
        self._changed()
        await self._save()

    async def drop(self, name: str) -> None:
        """Keep it no longer: it goes when room is needed."""
        if self._images.pop(name, None) is not None:
            self._changed()
            await self._save()

    def _changed(self) -> None:
        self._images = trimmed(self._images)
        self._spared = frozenset(digest for image in self._images.values() for digest in image.blobs)

    async def _save(self) -> None:
        """Write all down, atomically. A full disk loses it, and says so."""
        async with self._one_writer:
            data = msgspec.json.encode(list(self._images.values()))
            try:
                await asyncio.to_thread(write_whole, self._path, data)
            except OSError as error:
                log.warning("kept-unsaved", extra={"fields": {"file": str(self._path), "error": error.strerror}})


def _read(path: Path) -> bytes:
    """The file. Blocks. Raises OSError."""
    with path.open("rb") as file:
        return file.read(MOST_BYTES)
