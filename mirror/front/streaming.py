"""Ranges of files for lazy readers (overlaybd and others) at their addresses (docs/contract.md, "Streaming")."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from aiohttp import web

from mirror.errors import RangeUnsatisfiable, Refusal, UrlInvalid
from mirror.front import bodies, urls
from mirror.front.access import fingerprint
from mirror.front.background import Background
from mirror.front.bodies import BlobRequest, Bodies, complete, head_of, send_chunks, unsatisfiable
from mirror.front.door import Door, Opened
from mirror.front.opaque import OpaqueCache
from mirror.front.possession import Possession
from mirror.front.ranges import Range, resolve
from mirror.front.ranges import parse as parse_range
from mirror.front.readahead import Readahead
from mirror.front.requestlog import REQUEST_LOG
from mirror.front.sending import send_spans
from mirror.front.urls import Wanted
from mirror.upstream.client import Upstream
from swarm.blob.digest import Digest
from swarm.blob.errors import BlobUnavailable, SourceBusy, SourceError, StoreFull, SwarmError
from swarm.fetch.proof import Proof, origin_of
from swarm.upstream.source import Source

_CORRELATION = re.compile(r"[A-Za-z0-9._:-]{1,128}")

PASSED_ON = frozenset({401, 403, 404, 429})
"""Upstream's answers that the reader must see as they are: it renews its token, or gives up."""


@dataclass
class StreamingFront:
    """Answers /blobs/, /dadip2p/ and /accelerator/. *node*: this node's name, for Peerd's header."""

    bodies: Bodies
    upstream: Upstream
    door: Door
    opaque: OpaqueCache
    background: Background
    node: str
    possession: Possession | None = None
    """None: what nodes hold is shared with every reader whose URL upstream accepts; else it must show the bytes."""
    trust_node: bool = False
    """Serve what this node holds without asking upstream whether this reader may have it."""
    prefetch: bool = False
    """Bring the whole file in behind the first read."""
    proof: Proof = Proof.ORIGIN
    """What a reader asks of the bytes."""
    readahead: Readahead = field(default_factory=Readahead)

    async def answer(self, request: web.Request, target: str) -> web.StreamResponse:
        """Answer one request. Raises Refusal."""
        account = request[REQUEST_LOG]
        account.kind = "stream"
        if request.method not in ("GET", "HEAD"):
            raise Refusal("UNSUPPORTED", "files can only be read", headers={"Allow": "GET, HEAD"})
        try:
            wanted = urls.parse(target)
        except UrlInvalid as error:
            account.path = next((prefix for prefix in urls.PREFIXES if target.startswith(prefix)), "")
            raise Refusal("NAME_INVALID", str(error)) from None
        account.path, account.upstream = wanted.place, wanted.host
        headers = self._headers(request)
        asked = parse_range(request.headers.get("Range")) if request.method == "GET" else None
        authorization = request.headers.get("Authorization", "")
        try:
            source = self.upstream.url(wanted.url, _sent(authorization))
            return await self._serve(request, wanted, source, authorization, asked, headers)
        except SwarmError as error:
            account.note = str(error)
            raise _refusal(error, headers) from None

    async def _serve(
        self,
        request: web.Request,
        wanted: Wanted,
        source: Source,
        authorization: str,
        asked: Range | None,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        if wanted.digest is None:
            opened = await self.door.enter(wanted.url, authorization, source)
            return await self._serve_opaque(request, wanted, source, opened, asked, headers)
        size: int | None = None
        if not self.trust_node:
            opened = await self.door.enter(wanted.url, authorization, source)
            await self._same_file(wanted.digest, opened)
            size = opened.size
        if self.possession is not None:
            key = fingerprint(wanted.url, authorization)
            await self.possession.prove(key, wanted.digest, source, self.bodies.swarm, origin_of(wanted.word))
        headers["Docker-Content-Digest"], headers["ETag"] = wanted.digest, f'"{wanted.digest}"'
        if request.method == "GET":
            self._look_ahead(wanted, wanted.digest, authorization, asked)
        wish = BlobRequest(
            request, wanted.digest, source, asked, headers, whole=False, patient=True,
            origin=origin_of(wanted.word), proof=self.proof, size=size,
        )  # fmt: skip
        return await self.bodies.answer(wish)

    async def _same_file(self, digest: Digest, opened: Opened) -> None:
        """The URL only claims the digest: what upstream showed must at least be as long as what we would serve."""
        held = self.bodies.swarm.held(digest)
        if held is not None and held != opened.size:
            raise SourceError("upstream's file is not the one that its URL names", status=403)

    async def _serve_opaque(
        self,
        request: web.Request,
        wanted: Wanted,
        source: Source,
        opened: Opened,
        asked: Range | None,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        account = request[REQUEST_LOG]
        if opened.etag:
            headers["ETag"] = opened.etag
        try:
            place = resolve(asked, opened.size)
        except RangeUnsatisfiable as error:
            return unsatisfiable(error, headers)
        response = head_of(place, headers)
        if request.method == "HEAD" or not place.length:
            await response.prepare(request)
            return response

        async def send() -> None:
            before = account.origins.total()
            try:
                async with self.opaque.open(wanted.place, wanted.url, opened.size, opened.etag) as file:
                    spans = self.opaque.read(file, source, place.start, place.stop)
                    await send_spans(request, response, spans, account.sent)
            except StoreFull:
                account.note = "passed through: no room for files without a digest"
                at = place.start + account.origins.total() - before
                await send_chunks(response, bodies.unchecked(source, opened.size, at, place.stop), account)

        await response.prepare(request)
        await complete(request, response, account, send())
        return response

    def _look_ahead(self, wanted: Wanted, digest: Digest, authorization: str, asked: Range | None) -> None:
        size = self.bodies.swarm.held(digest)
        if size is not None or asked is None or asked.first is None or asked.last is None:
            return
        # Nobody waits for it: it takes none of the connections that are kept for those who do.
        source = self.upstream.url(wanted.url, _sent(authorization), urgent=False, low=True)
        origin = origin_of(wanted.word)
        if self.prefetch:
            self.background.prefetch(digest, source, origin)
        # The blob's end is not known here; whoever fetches cuts the range.
        ahead = self.readahead.read(digest, asked.first, asked.last + 1, 1 << 62)
        if ahead is not None:
            self.background.fetch(digest, source, origin, *ahead)

    def _headers(self, request: web.Request) -> dict[str, str]:
        given = request.headers.get("X-MS-Peerd-CorrelationId", "")
        return {
            "Content-Type": "application/octet-stream",
            "X-MS-Peerd-Node": self.node,
            "X-MS-Peerd-CorrelationId": given if _CORRELATION.fullmatch(given) else str(uuid.uuid4()),
        }


def _sent(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _refusal(error: Exception, headers: dict[str, str]) -> Refusal:
    """What a reader is told: upstream's own status where it means something to it, else that trying again may help."""
    cause = error.cause if isinstance(error, BlobUnavailable) else error
    kept = {name: value for name, value in headers.items() if name.startswith("X-MS-")}
    if isinstance(cause, SourceError) and cause.status in PASSED_ON:
        if isinstance(cause, SourceBusy) and cause.retry_after is not None:
            kept["Retry-After"] = f"{cause.retry_after:.0f}"
        code = {401: "UNAUTHORIZED", 403: "DENIED", 404: "BLOB_UNKNOWN", 429: "TOOMANYREQUESTS"}[cause.status]
        return Refusal(code, f"upstream answered {cause.status}", status=cause.status, headers=kept)
    kept["Retry-After"] = "1"
    return Refusal("UNAVAILABLE", "upstream cannot be read now", status=503, headers=kept)
