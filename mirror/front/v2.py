"""The registry that a node's clients see: /v2/ as the OCI distribution-spec 1.1 wants its pull side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from mirror.errors import LinkInvalid, Refusal
from mirror.front import browsers, oci, passthrough
from mirror.front import tags as names
from mirror.front.access import AuthCache, Standing
from mirror.front.bodies import BlobRequest, Bodies, complete, is_known
from mirror.front.images import Images
from mirror.front.links import next_page
from mirror.front.oci import Route
from mirror.front.ownline import first_good
from mirror.front.possession import Possession
from mirror.front.ranges import parse as parse_range
from mirror.front.requestlog import REQUEST_LOG
from mirror.front.sending import read_span
from mirror.metrics import FrontMetrics
from mirror.upstream import manifests
from mirror.upstream.client import Upstream, fits
from swarm.blob import digest as digests
from swarm.blob.digest import Digest
from swarm.blob.errors import (
    BlobUnavailable,
    DigestInvalid,
    SourceBusy,
    SourceError,
    SourceRefused,
    StoreFull,
    SwarmError,
)
from swarm.fetch.proof import origin_of
from swarm.upstream.source import Source

LARGEST_LIST = 32 * 1024 * 1024
"""Bytes of a page of tags or referrers: a hundred thousand tags are a tenth of it."""


@dataclass
class RegistryFront:
    """Answers /v2/. *private*: None shares everything; else what upstream allowed to this agent's own credentials."""

    bodies: Bodies
    upstream: Upstream
    metrics: FrontMetrics
    private: AuthCache | None = None
    possession: Possession = field(default_factory=Possession)
    images: Images = field(default_factory=Images)
    """Is shown the manifests that go by."""

    async def answer(self, request: web.Request, raw_path: str) -> web.StreamResponse:
        """Answer one request. Raises Refusal."""
        route = oci.route(request.method, raw_path)
        account = request[REQUEST_LOG]
        account.kind = route.kind
        if route.kind == "check":
            return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})
        ns, route = oci.meant(route, request.query.get("ns"), self.upstream.registries.is_named)
        account.upstream = ns
        if route.kind in ("tags", "referrers"):
            return await self._pass(request, route, ns)
        digest: Digest | None = None
        if route.by_digest:
            try:
                digest = digests.parse(route.reference)
            except DigestInvalid:
                # Another algorithm than sha256: there is no swarm for it.
                return await self._pass(request, route, ns)
        if route.kind == "blob":
            assert digest is not None
            return await self._blob(request, ns, route, digest)
        return await self._manifest(request, ns, route, digest)

    # -- blobs ------------------------------------------------------------------------------------

    async def _blob(self, request: web.Request, ns: str, route: Route, digest: Digest) -> web.StreamResponse:
        unknown = Refusal("BLOB_UNKNOWN", "this mirror cannot get the blob: ask its registry")
        try:
            source = self.upstream.blob(ns, route.name, digest)
            if not await self._is_admitted(request, ns, route.name, digest, source):
                raise unknown
            asked = parse_range(request.headers.get("Range")) if request.method == "GET" else None
            etag = f'"{digest}"'
            # A reader of a given range wants that and no more; one that may go on to the end wants the blob.
            whole = request.method == "GET" and (asked is None or asked.open_ended)
            headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, "ETag": etag}
            return await self.bodies.answer(BlobRequest(request, digest, source, asked, headers, whole, origin_of(ns)))
        except SwarmError as error:
            request[REQUEST_LOG].note = str(error)
            if self.bodies.begun.standing(digest, time.monotonic()) is Standing.FRESH:
                # After a blob's first byte a 404 would end the whole pull; a 503 sends this part elsewhere.
                raise Refusal("UNAVAILABLE", "the blob cannot be had now", headers={"Retry-After": "1"}) from None
            raise unknown from None

    # -- manifests --------------------------------------------------------------------------------

    async def _manifest(self, request: web.Request, ns: str, route: Route, digest: Digest | None) -> web.StreamResponse:
        unknown = Refusal("MANIFEST_UNKNOWN", "this mirror cannot get the manifest: ask its registry")
        extra: dict[str, str] = {}
        try:
            if digest is None:
                named = await self._named(request, ns, route)
                digest, extra = named.meaning.digest, named.headers
            source = self.upstream.manifest(ns, route.name, digest)
            await self._admit(ns, route.name, digest, lambda: self._manifest_readable(ns, route.name, digest))
            content, origins = await first_good(
                self._content(request, digest, source, origin_of(ns)), lambda: self._straight(ns, route.name, digest)
            )
            for origin, count in origins.items() if request.method == "GET" else ():
                request[REQUEST_LOG].sent(origin, count)
        except SwarmError as error:
            request[REQUEST_LOG].note = str(error)
            raise unknown from None
        media_type = manifests.media_type(content)
        if media_type is None:
            raise unknown
        if request.method == "GET":
            self.images.saw(f"{ns}/{route.name}", digest, content)
        etag = f'"{digest}"'
        headers = {"Docker-Content-Digest": digest, "ETag": etag, **extra}
        if is_known(request, etag):
            return web.Response(status=304, headers=headers)
        response = web.Response(body=content, headers={**headers, "Content-Type": media_type})
        # An unsolicited encoding would change the bytes that the digest is of.
        response.headers["Accept-Ranges"] = "none"
        return response

    async def _named(self, request: web.Request, ns: str, route: Route) -> names.Named:
        registry = self.upstream.registries.find(ns, route.name)
        if registry.tag_ttl is None:
            raise SourceRefused("tags of this registry are left to the client")
        named = await names.resolve(
            self.bodies.swarm.names, self.upstream, registry.host, route.name, route.reference, registry.tag_ttl
        )
        if named.stale:
            self.metrics.stale_names.inc()
            request[REQUEST_LOG].note = f"last known digest, {named.age:.0f} s old"
        return named

    async def _content(
        self, request: web.Request, digest: Digest, source: Source, origin: str
    ) -> tuple[bytes, Counter[str]]:
        """The bytes of a manifest, which are few, and where they came from.

        Raises BlobUnavailable, BlobCorrupt, SourceError.
        """
        origins: Counter[str] = Counter()
        try:
            async with self.bodies.swarm.open(digest, source, origin=origin) as blob:
                if blob.size > manifests.LARGEST:
                    raise BlobUnavailable("too large for a manifest")
                parts = []
                async for span in blob.read(0, blob.size):
                    parts.append(await read_span(span))
                    origins[span.origin] += span.count
                return b"".join(parts), origins
        except StoreFull:
            request[REQUEST_LOG].note = "passed through: the store is full"
        total = await passthrough.size_of(source)
        if total > manifests.LARGEST:
            raise BlobUnavailable("too large for a manifest")
        content = b"".join([chunk async for chunk in passthrough.verified(source, digest, total, 0)])
        return content, Counter({"upstream": len(content)})

    async def _straight(self, ns: str, repository: str, digest: Digest) -> tuple[bytes, Counter[str]]:
        """The manifest straight from upstream, past whatever the cluster waits for. Raises SourceError."""
        _, content = await self.upstream.get_manifest(ns, repository, digest)
        if not fits(digest, content):
            raise SourceRefused("upstream answered with another manifest", status=404)
        return content, Counter({"upstream": len(content)})

    # -- who may read -----------------------------------------------------------------------------

    async def _admit(self, ns: str, repository: str, digest: Digest, ask: Callable[[], Awaitable[object]]) -> None:
        """With share-private off: upstream must have shown this content of this repository to our own credentials.

        The key holds the digest: a yes to one repository must not open what belongs to another. Raises SourceError.
        """
        if self.private is None:
            return
        key = (ns, repository, digest)
        if self.private.standing(key, time.monotonic()) is Standing.FRESH:
            return
        try:
            await ask()
        except SourceRefused:
            self.private.forget(key)
            raise
        self.private.note(key, time.monotonic())

    async def _is_admitted(
        self, request: web.Request, ns: str, repository: str, digest: Digest, source: Source
    ) -> bool:
        """Whether upstream lets this agent have the blob; a refusal is 404 also where it was answered before."""
        try:
            await self._admit(ns, repository, digest, lambda: self._shown(ns, repository, digest, source))
        except SourceRefused as error:
            request[REQUEST_LOG].note = str(error)
            return False
        return True

    async def _shown(self, ns: str, repository: str, digest: Digest, source: Source) -> None:
        await self.possession.prove((ns, repository), digest, source, self.bodies.swarm, origin_of(ns))

    async def _manifest_readable(self, ns: str, repository: str, digest: Digest) -> None:
        # The bytes, not a HEAD: whoever runs a registry can say that it has a digest.
        _, content = await self.upstream.get_manifest(ns, repository, digest)
        if not fits(digest, content):
            raise SourceRefused("upstream answered with another manifest", status=404)

    # -- everything else --------------------------------------------------------------------------

    async def _pass(self, request: web.Request, route: Route, ns: str) -> web.StreamResponse:
        """Hand the request on to upstream, and its answer back."""
        account = request[REQUEST_LOG]
        query = oci.without_ns(request.query_string)
        unknown = "BLOB_UNKNOWN" if account.kind == "blob" else "MANIFEST_UNKNOWN"
        unknown = "NAME_UNKNOWN" if account.kind == "tags" else unknown
        try:
            async with self.upstream.passthrough(
                ns, request.method, route.path + (f"?{query}" if query else ""), request.headers
            ) as answer:
                headers = dict(answer.headers)
                if route.kind in ("tags", "referrers") and int(headers.get("Content-Length", 0)) > LARGEST_LIST:
                    raise SourceRefused("upstream announces a list that is none")
                if "Content-Type" in headers:
                    headers["Content-Type"] = browsers.content_type(headers["Content-Type"])
                if route.kind in ("tags", "referrers") and (link := next_page(answer.links, answer.url, route, ns)):
                    headers["Link"] = link
                response = web.StreamResponse(status=answer.status, headers=headers)
                if request.method == "HEAD" or answer.status == 304:
                    await response.prepare(request)
                    return response
                await response.prepare(request)

                async def send() -> None:
                    async for chunk in answer.chunks():
                        await response.write(chunk)
                        account.sent("upstream", len(chunk))

                await complete(request, response, account, send())
                return response
        except SourceBusy as error:
            after = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:.0f}"}
            raise Refusal(
                "TOOMANYREQUESTS", "the registry asks to come back later", status=429, headers=after
            ) from None
        except (SourceError, LinkInvalid) as error:
            account.note = str(error)
            raise Refusal(unknown, "this mirror cannot get it: ask its registry", status=404) from None
