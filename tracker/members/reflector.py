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

from tracker.errors import ApiError
from tracker.members.backoff import USUAL, Backoff
from tracker.members.podset import Meta

log = logging.getLogger("shoal.tracker")

PAGES = (250, 1000, 4000)
"""Objects per page: about 4 MiB of pods, decoded in a few milliseconds. A reader too slow for the life of a page's
token takes longer pages, and never all in one piece."""

STEADY = 5.0
"""Seconds after which a watch that ends has been a good one: the next one follows at once."""

PATIENCE = 3
"""Failed watches in a row after which the resource version is doubted and the list read again."""

LONGEST_AWAY = 0.8
"""Seconds between two tries while the server does not answer at all, or is starting: who joins when it is back is known
within a second. A tracker or two cannot hurt it with that."""


class Api(Protocol):
    """One collection of the API."""

    async def page(self, *, limit: int, token: str) -> bytes:
        """The JSON of a list. *limit*: objects at most. *token*: `continue` of the page before. Raises ApiError."""

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
    early: int = 0
    """Watches in a row that the server ended at once, and that brought nothing."""
    status: int = -1
    """What the last failure was; -1: none, or a watch that ended early."""

    def moved(self) -> None:
        """An object changed: the API works."""
        self.failures = self.early = 0

    def ended(self, lived: float) -> bool:
        """The server ended the watch after *lived* seconds, as it does now and then.

        True: it does so again and again. That is how a server ends a watch that it cannot serve, without a word, so
        the version is doubted.
        """
        self.status = -1
        if lived >= STEADY:
            self.moved()
            return False
        self.failures += 1
        self.early += 1
        if self.early < PATIENCE:
            return False
        if self.early % PATIENCE == 0:
            self.version = ""
        return True

    def failed(self, error: ApiError) -> None:
        """A list or watch failed. The version is kept only where the server may yet know it."""
        if (error.status == 0) != (self.status == 0):
            self.failures = 0  # it went, or it is back: what it says now is another trouble
        self.failures += 1
        self.status = error.status
        passing = error.status in (0, 401, 403, 429) or error.status >= 500
        # A server that is away says nothing about the version.
        if not passing or (error.status != 0 and self.failures % PATIENCE == 0):
            self.version = ""

    def pause(self, backoff: Backoff, chance: float, asked: float) -> float:
        """Seconds until the next try."""
        if not self.failures or (self.status == 410 and self.failures == 1):
            return 0.0  # 410 says what to do: list, now
        full = backoff.delay(self.failures, chance)
        if self.status in (0, 401) or self.status >= 500:
            full = min(full, LONGEST_AWAY)
        return max(full, min(asked, backoff.longest))


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
                    course.version = await self._list(quiet=course.early >= PATIENCE)
                began = time.monotonic()
                await self._watch(course)
                if course.ended(time.monotonic() - began):
                    self._tell(ApiError("watches end at once"))
            except ApiError as error:
                asked = error.retry_after
                course.failed(error)
                if error.status != 410:
                    self._tell(error)
            except msgspec.MsgspecError:
                course.failed(ApiError("malformed", status=400))
                self._tell(ApiError("malformed"))
            if (pause := course.pause(self._backoff, self._chance(), asked)) > 0:
                await asyncio.sleep(pause)

    async def _list(self, *, quiet: bool) -> str:
        """Read everything, page by page, and put it in place at once. Returns its resource version.

        *quiet*: that a list can be read does not end the trouble.
        """
        for limit in PAGES:
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
                if error.status != 410 or not token or limit == PAGES[-1]:
                    raise
                continue  # a continue token lives 5 to 15 minutes: again, with longer pages
            version = page.metadata.resource_version
            if not version:
                raise ApiError("a list without resourceVersion", status=400)
            self.lists += 1
            first, self.ready = not self.ready, True
            if self._copy.replace(items) or first:
                self._on_change()
            if not quiet:
                self._tell(None)
            return version
        raise AssertionError("the last page size returns or raises")

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
