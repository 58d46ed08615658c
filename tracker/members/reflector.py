"""Keep a copy of a Kubernetes collection true: list in pages, then watch, for ever.

It keeps to what the API promises (kubernetes.io/docs/reference/using-api/api-concepts): resource
versions are opaque and only handed back; a list is taken whole or not at all; bookmarks may come
or not; 410 Gone, as an HTTP status or as an ERROR event, means list again. While the API is away
or slow the copy stays as it was. Knows no client library: an Api brings the bytes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from tracker.members.backoff import USUAL, Backoff
from tracker.members.podset import Meta

log = logging.getLogger("shoal.tracker")

PAGE = 250
"""Objects per page: about 4 MiB of pods, decoded in a few milliseconds."""

STEADY = 5.0
"""Seconds after which a watch that ends has been a good one: the next one follows at once."""

PATIENCE = 3
"""Failed watches in a row after which the resource version is doubted and the list read again."""


class ApiError(Exception):
    """The API did not do what was asked. *status*: HTTP status, or 0 if there was no answer."""

    def __init__(self, reason: str, *, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after
        """Seconds that the server asked us to wait."""


class Api(Protocol):
    """One collection of the API."""

    async def page(self, *, limit: int, token: str) -> bytes:
        """The JSON of a list. *limit* 0: everything. *token*: `continue` of the page before. Raises ApiError."""

    def watch(self, version: str) -> AsyncGenerator[bytes, None]:
        """The lines of a watch from *version* on, with bookmarks, until the server ends it. Raises ApiError."""


T = TypeVar("T")


T_contra = TypeVar("T_contra", contravariant=True)


class Copy(Protocol[T_contra]):
    """What the objects are kept in. Each method returns True if something changed that matters."""

    def put(self, item: T_contra, /) -> bool: ...

    def drop(self, item: T_contra, /) -> bool: ...

    def replace(self, items: Sequence[T_contra], /) -> bool: ...


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    next: str | None = msgspec.field(name="continue", default=None)


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: Meta


class _Status(msgspec.Struct, frozen=True):
    """meta/v1 Status: what an ERROR event carries."""

    code: int = 0
    reason: str = ""


@dataclass
class Course:
    """Where the reflector stands, and what follows from what happened. Pure."""

    version: str = ""
    """Resource version to watch from; "": list first."""
    failures: int = 0
    """Tries in a row that brought nothing."""

    def moved(self) -> None:
        """An object changed: the API works."""
        self.failures = 0

    def ended(self, lived: float) -> None:
        """The server ended the watch after *lived* seconds, as it does now and then."""
        self.failures = 0 if lived >= STEADY else self.failures + 1

    def failed(self, error: ApiError) -> None:
        """A list or watch failed. The version is kept only where the server may yet know it."""
        self.failures += 1
        passing = error.status in (0, 401, 403, 429) or error.status >= 500
        if not passing or self.failures % PATIENCE == 0:
            self.version = ""


class Reflector(Generic[T]):
    """Copies one collection into *copy*. `ready` after the first whole list."""

    def __init__(
        self,
        name: str,
        api: Api,
        kind: type[T],
        copy: Copy[T],
        on_change: Callable[[], None],
        *,
        backoff: Backoff = USUAL,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """*name*: of the collection, for the log. *kind*: msgspec struct of an object, with `metadata`."""
        self.name = name
        self.ready = False
        self.lists = 0
        """Whole lists read so far."""
        self.watches = 0
        """Watches begun so far."""
        self._api = api
        self._page: msgspec.json.Decoder[_List] = msgspec.json.Decoder(_List)
        self._event: msgspec.json.Decoder[_Event] = msgspec.json.Decoder(_Event)
        self._object: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self._copy = copy
        self._on_change = on_change
        self._backoff = backoff
        self._chance = chance
        self._trouble = ""

    async def run(self) -> None:
        """List and watch until cancelled. Every failure waits, longer each time, and is logged once."""
        course = Course()
        while True:
            asked = 0.0
            try:
                if not course.version:
                    course.version = await self._list()
                began = time.monotonic()
                await self._watch(course)
                course.ended(time.monotonic() - began)
            except ApiError as error:
                asked = error.retry_after
                course.failed(error)
                if error.status != 410:
                    self._tell(error)
            except msgspec.MsgspecError:
                course.failed(ApiError("malformed", status=400))
                self._tell(ApiError("malformed"))
            if course.failures:
                await asyncio.sleep(self._backoff.delay(course.failures, self._chance(), asked))

    async def _list(self) -> str:
        """Read everything, page by page, and put it in place at once. Returns its resource version."""
        limit = PAGE
        while True:
            items: list[T] = []
            token = ""
            try:
                while True:
                    page = self._page.decode(await self._api.page(limit=limit, token=token))
                    items += [self._object.decode(raw) for raw in page.items or ()]
                    token = page.metadata.next or ""
                    if not token:
                        break
            except ApiError as error:
                # A continue token lives 5 to 15 minutes: a reader too slow for pages takes all at once.
                if error.status != 410 or not token or not limit:
                    raise
                limit = 0
                continue
            version = page.metadata.resource_version
            if not version:
                raise ApiError("a list without resourceVersion", status=400)
            self.lists += 1
            first, self.ready = not self.ready, True
            if self._copy.replace(items) or first:
                self._on_change()
            self._tell(None)
            return version

    async def _watch(self, course: Course) -> None:
        """Follow the changes until the server ends the stream."""
        self.watches += 1
        async with aclosing(self._api.watch(course.version)) as lines:
            async for line in lines:
                self._tell(None)
                event = self._event.decode(line)
                if event.type == "ERROR":
                    status = msgspec.json.decode(event.object, type=_Status)
                    # Whatever went wrong in mid-stream, the version is in doubt: list again.
                    raise ApiError(status.reason or "error event", status=429 if status.code == 429 else 410)
                if event.type == "BOOKMARK":
                    course.version = msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
                    continue
                item = self._object.decode(event.object)
                changed = self._copy.drop(item) if event.type == "DELETED" else self._copy.put(item)
                course.version = item.metadata.resource_version or course.version
                course.moved()
                if changed:
                    self._on_change()

    def _tell(self, error: ApiError | None) -> None:
        """Log a change between working and failing; not every try."""
        trouble = f"{error.status} {error.reason}" if error else ""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if error is None:
            log.info("discovery_back", extra={"fields": {"resource": self.name}})
        else:
            fields = {"resource": self.name, "status": error.status, "reason": error.reason}
            log.warning("discovery_failing", extra={"fields": fields})
