"""From a tag to a manifest: asked upstream within a deadline, and what is said of a meaning that is stale."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mirror.front.blobs import Names
from mirror.upstream.client import Upstream
from swarm.blob.errors import SourceBroken
from swarm.tracking.tags import Meaning

ASK_DEADLINE = 45.0
"""Seconds for upstream to say what a tag means. One that answers nothing at all is known after 10 s or less
(mirror/upstream/transport.py), and the last known meaning answers; one that is slow is waited for, as anybody who
asked it directly would have to."""

STALE = '110 shoal "Response is Stale"'
"""The Warning header (RFC 7234, 5.5.1) of a meaning that upstream did not confirm."""


@dataclass(frozen=True)
class Named:
    """What a tag means here. *age*: seconds since upstream said so."""

    meaning: Meaning
    stale: bool
    age: float

    @property
    def headers(self) -> dict[str, str]:
        """What the client is told beside the manifest."""
        return {"Warning": STALE, "Age": f"{self.age:.0f}"} if self.stale else {}


async def resolve(names: Names, upstream: Upstream, ns: str, repository: str, tag: str, ttl: float) -> Named:
    """What *tag* means. Raises SourceError if upstream does not say and nothing is known."""

    async def ask() -> Meaning:
        try:
            async with asyncio.timeout(ASK_DEADLINE):
                return await upstream.head_manifest(ns, repository, tag)
        except TimeoutError:
            raise SourceBroken(f"{ns} did not answer within {ASK_DEADLINE:g} s") from None

    found = await names.resolve(f"{ns}/{repository}:{tag}", ttl, ask)
    return Named(found.meaning, found.stale, found.age)
