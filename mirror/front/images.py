"""What a manifest consists of, and which manifests went by on this node. Pure."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from swarm.blob import digest as digests
from swarm.blob.digest import Digest
from swarm.blob.errors import SwarmError
from swarm.protocol import wire

MOST_CHILDREN = 4096
"""Manifests of indexes that are remembered: some hundred indexes of a dozen platforms each."""


class Part(NamedTuple):
    """A blob of an image. *size*: bytes, as its manifest says."""

    digest: Digest
    size: int


class Child(NamedTuple):
    """A manifest that the index *parent* names. *platform*: os/architecture, with the variant if there is one."""

    parent: str
    platform: str


def blobs_of(manifest: dict[str, Any]) -> Iterator[Part]:
    """Config and layers of an image, an artifact or a model. OCI image-spec, manifest.md."""
    found = [manifest.get("config"), *entries(manifest, "layers"), *entries(manifest, "blobs")]
    for one in found:
        if isinstance(one, dict) and not one.get("urls"):
            with contextlib.suppress(SwarmError):  # another algorithm than sha256 has no swarm
                yield Part(digests.parse(str(one.get("digest"))), _size(one))


def entries(document: dict[str, Any], name: str) -> list[Any]:
    """The list *name* of *document*; empty if there is none."""
    found = document.get(name)
    return found if isinstance(found, list) else []


def platform_of(entry: dict[str, Any]) -> str:
    """os/architecture[/variant] of an index's entry; "" if it says none. OCI image-spec, image-index.md."""
    found = entry.get("platform")
    if not isinstance(found, dict):
        return ""
    words = (found.get("os"), found.get("architecture"), found.get("variant"))
    return "/".join(str(word) for word in words if word)


class Images:
    """Manifests that went by. *tell*: is told what each image consists of."""

    def __init__(self, tell: Callable[[wire.Image], None] = lambda image: None) -> None:
        self._tell = tell
        self._children: OrderedDict[str, Child] = OrderedDict()

    def saw(self, name: str, digest: str, content: bytes) -> None:
        """The manifest *digest* of *name* (registry/repository) went by. What is no manifest is left alone."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return
        if not isinstance(document, dict):
            return
        if isinstance(document.get("manifests"), list) and "layers" not in document:
            self._note(digest, document)
            return
        parts = tuple(dict.fromkeys(part for part in blobs_of(document) if part.size <= wire.MAX_SIZE))
        if parts:
            child = self._children.get(digest, Child("", ""))
            blobs = tuple(wire.CompleteBlob(digest=part.digest, size=part.size) for part in parts[: wire.MAX_PARTS])
            self._tell(
                wire.Image(
                    name=name[:512], manifest=digest, blobs=blobs, index=child.parent, platform=child.platform[:64]
                )
            )

    def _note(self, index: str, document: dict[str, Any]) -> None:
        for entry in entries(document, "manifests")[:MOST_CHILDREN]:
            if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
                self._children.pop(entry["digest"], None)
                self._children[entry["digest"]] = Child(index, platform_of(entry))
        while len(self._children) > MOST_CHILDREN:
            self._children.popitem(last=False)


def _size(entry: dict[str, Any]) -> int:
    size = entry.get("size")
    return size if isinstance(size, int) and size >= 0 else 0
