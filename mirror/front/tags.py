"""From a tag to a manifest: asked upstream within a deadline, and what is said of a meaning that is stale."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mirror.front.blobs import Tags
from mirror.upstream.client import Upstream
from swarm.blob.errors import SourceBroken, SourceRefused
from swarm.tracking.tags import Meaning

ASK_DEADLINE = 45.0
"""Seconds for upstream to say what a tag means. One that answers nothing at all is known after 10 s or less
(mirror/upstream/transport.py), and the last known meaning answers; one that is slow is waited for, as anybody who
asked it directly would have to."""

CHOSEN_DEADLINE = 10.0
"""The same for an agent that a tracker chose to ask for others: they do not wait for longer than 5 s."""

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


def asker(upstream: Upstream) -> Callable[[str], Awaitable[Meaning]]:
    """What asks upstream for a tag because a tracker chose this agent to: only where it would for clients, too."""

    async def ask(name: str) -> Meaning:
        ns, _, rest = name.partition("/")
        repository, _, tag = rest.rpartition(":")
        if upstream.registries.find(ns, repository).tag_ttl is None:
            raise SourceRefused("tags of this registry are left to the client")
        return await _head(upstream, ns, repository, tag, CHOSEN_DEADLINE)

    return ask


async def _head(upstream: Upstream, ns: str, repository: str, tag: str, deadline: float) -> Meaning:
    try:
        async with asyncio.timeout(deadline):
            return await upstream.head_manifest(ns, repository, tag)
    except TimeoutError:
        raise SourceBroken(f"{ns} did not answer within {deadline:g} s") from None


async def resolve(names: Tags, upstream: Upstream, ns: str, repository: str, tag: str, ttl: float) -> Named:
    """What *tag* means. Raises SourceError if upstream does not say and nothing is known."""

    async def ask() -> Meaning:
        return await _head(upstream, ns, repository, tag, ASK_DEADLINE)

    found = await names.resolve(f"{ns}/{repository}:{tag}", ttl, ask)
    return Named(found.meaning, found.stale, found.age)
