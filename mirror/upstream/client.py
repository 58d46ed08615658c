"""The upstream client: blobs, manifests and URLs as sources of byte ranges, with the agent's own credentials."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from yarl import URL

from mirror.errors import Forbidden
from mirror.upstream import manifests
from mirror.upstream.addresses import AddressRules
from mirror.upstream.answers import refusal
from mirror.upstream.auth import Credentials, NoCredentials
from mirror.upstream.bodies import bounded
from mirror.upstream.coding import is_identity
from mirror.upstream.exchange import Exchanges, Target, usable_url
from mirror.upstream.guard import Guard
from mirror.upstream.proxies import Proxies
from mirror.upstream.reach import Reach
from mirror.upstream.registries import Registries
from mirror.upstream.sources import Passed, UpstreamSource
from mirror.upstream.transport import Deadlines
from mirror.upstream.urlrules import UrlRules
from swarm.base.pace import Pace
from swarm.blob.digest import Digest, parse
from swarm.blob.errors import DigestInvalid, SourceBroken
from swarm.tracking.tags import Meaning

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
)
MANIFEST_LIMIT = 4 << 20
"""Bytes: the largest manifest a registry must accept (distribution-spec, "Pushing Manifests")."""

HEAD_REFUSED = frozenset({400, 403, 404, 405, 406, 501})
"""What gateways that let only GET through answer to a HEAD; whether it is true, the GET tells (as Docker does)."""

_PASSED_PATH = re.compile(
    r"/v2/(?P<repository>[^?]+?)/(?P<rest>tags/list|(?:referrers|manifests|blobs)/[^/?]+)(?P<query>\?[!-~]*)?"
)
_REST = re.compile(
    r"tags/list|(blobs|manifests|referrers)/([A-Za-z0-9_][A-Za-z0-9._-]{0,127}|[a-z0-9.+_-]+:[A-Za-z0-9=_-]+)"
)
_PASSED_DOWN = ("Accept", "Range", "If-None-Match", "If-Range")
_PASSED_BACK = (
    "Accept-Ranges",
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "Docker-Content-Digest",
    "ETag",
    "Last-Modified",
    "OCI-Filters-Applied",
    "OCI-Subject",
)


class Upstream:
    """Everything the agent asks of registries and blob stores. Made, used and closed inside one event loop."""

    def __init__(
        self,
        registries: Registries | None = None,
        *,
        credentials: Credentials | None = None,
        guard: Guard | None = None,
        url_rules: UrlRules | None = None,
        deadlines: Deadlines | None = None,
        private: AddressRules | None = None,
        public: AddressRules | None = None,
        proxies: Proxies | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*pace*: how fast bodies may come, all together.

        *private*: addresses for registries and for hosts that *url_rules* name; *public*: for other URLs.
        """
        registries, self._url_rules = registries or Registries(), url_rules or UrlRules()
        reach = Reach(
            registries,
            self._url_rules,
            private or AddressRules(private=True),
            public or AddressRules(private=False),
            deadlines or Deadlines(),
            proxies or Proxies(),
        )
        self._exchanges = Exchanges(registries, credentials or NoCredentials(), guard or Guard(), reach, clock, pace)

    @property
    def registries(self) -> Registries:
        """Which registries are served, and how."""
        return self._exchanges.registries

    @property
    def guard(self) -> Guard:
        """What protects upstreams: `hold`, `status`."""
        return self._exchanges.guard

    def blob(
        self, ns: str | None, repository: str, digest: Digest, *, urgent: bool = False, low: bool = False
    ) -> UpstreamSource:
        """The blob of *repository* at registry *ns*. Raises Forbidden if it is not mirrored.

        *urgent*: somebody waits for a few bytes, which must not queue behind bulk downloads. *low*: nobody waits.
        """
        target = replace(self._target(ns, repository, f"blobs/{digest}"), urgent=urgent, low=low)
        return UpstreamSource(self._exchanges, target, digest)

    def manifest(self, ns: str | None, repository: str, digest: Digest) -> UpstreamSource:
        """The manifest or index by digest. Raises Forbidden if it is not mirrored."""
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        # Registries do not do ranges on manifests; some answer nonsense when asked.
        target = self._target(ns, repository, f"manifests/{digest}", accept)
        return UpstreamSource(self._exchanges, target, digest, ranges=False)

    def url(
        self, url: str, headers: Mapping[str, str] | None = None, *, urgent: bool = True, low: bool = False
    ) -> UpstreamSource:
        """The file behind an absolute URL, with the caller's Authorization (if in *headers*) and signed query.

        *urgent*: somebody waits for a few bytes, which must not queue behind bulk downloads.
        Raises Forbidden if the URL is not one that may be fetched.
        """
        parsed = usable_url(url)
        if parsed is None:
            raise Forbidden("not an absolute http or https URL")
        if not self._url_rules.allows(parsed):
            raise Forbidden("this host is not on the list of those that may be fetched from")
        sent = {name: value for name, value in (headers or {}).items() if name.lower() == "authorization"}
        return UpstreamSource(self._exchanges, Target(parsed, None, headers=sent, urgent=urgent, low=low), None)

    async def head_manifest(self, ns: str | None, repository: str, reference: str) -> Meaning:
        """What tag or digest *reference* means at upstream.

        A meaning is only what is a manifest: what a HEAD tells as one, or bytes that are one and fit the digest.
        Raises SourceRefused, SourceBusy, SourceBroken.
        """
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        target = replace(self._target(ns, repository, f"manifests/{reference}", accept), is_file=False)
        async with self._exchanges.ask(target, "HEAD", {}) as answer:
            response = answer.response
            if response.status == 200:
                if meaning := _meaning(response.headers):
                    return meaning
            elif response.status not in HEAD_REFUSED:
                raise refusal(response.status, response.headers, answer.host)
        return (await self._get_manifest(target))[0]

    async def get_manifest(self, ns: str | None, repository: str, reference: str) -> tuple[Meaning, bytes]:
        """As `head_manifest`, with the manifest itself: who can show the bytes has them."""
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        target = self._target(ns, repository, f"manifests/{reference}", accept)
        return await self._get_manifest(replace(target, is_file=False))

    async def _get_manifest(self, target: Target) -> tuple[Meaning, bytes]:
        async with self._exchanges.ask(target, "GET", {}) as answer:
            response = answer.response
            if response.status != 200:
                raise refusal(response.status, response.headers, answer.host)
            content = await bounded(response, MANIFEST_LIMIT, answer.host)
        told = response.headers.get("Docker-Content-Digest", "")
        kind = manifests.media_type(content)
        if kind is None:
            raise SourceBroken(f"{answer.host} answered with something that is no manifest")
        if told and not fits(told, content):
            raise SourceBroken(f"{answer.host} sent a manifest that does not fit its digest")
        stated = manifests.stated(response.headers.get("Content-Type", ""))
        digest = parse(f"sha256:{hashlib.sha256(content).hexdigest()}")
        return Meaning(digest, stated or kind, len(content)), content

    @contextlib.asynccontextmanager
    async def passthrough(
        self, ns: str | None, method: str, path_qs: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Passed]:
        """Hand a GET or HEAD on: tags/list, referrers, digests of algorithms that have no swarm.

        *path_qs*: `/v2/<repository>/...` with its query, as the client sent it. Yields 2xx, 304 and 416;
        every other answer raises SourceRefused, SourceBusy or SourceBroken.
        """
        match = _PASSED_PATH.fullmatch(path_qs)
        if match is None or method not in ("GET", "HEAD"):
            raise Forbidden("this request is not handed on")
        sent = {name: value for name in _PASSED_DOWN if (value := (headers or {}).get(name)) is not None}
        target = self._target(ns, match["repository"], match["rest"], query=match["query"] or "")
        target = replace(target, is_file=match["rest"].startswith("blobs/"))
        for asked in dict.fromkeys((method, "GET")):
            async with self._exchanges.ask(target, asked, sent) as answer:
                response = answer.response
                if asked == "HEAD" and response.status in HEAD_REFUSED:
                    continue
                if not (200 <= response.status < 300 or response.status in (304, 416)):
                    raise refusal(response.status, response.headers, answer.host)
                back = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
                if not is_identity(response.headers.get("Content-Encoding")):
                    if response.status == 206:
                        raise SourceBroken(f"{answer.host} compressed a range, which cannot be undone")
                    for name in ("Content-Length", "Accept-Ranges", "ETag"):
                        back.pop(name, None)  # they are about the coded bytes
                links = tuple(response.headers.getall("Link", []))
                yield Passed(response.status, back, links, str(answer.elsewhere or target.url), answer)
                return

    def _target(
        self, ns: str | None, repository: str, rest: str, headers: Mapping[str, str] | None = None, query: str = ""
    ) -> Target:
        if not _REST.fullmatch(rest):
            raise Forbidden("no tag or digest has such a name")
        registry = self.registries.find(ns, repository)
        name = registry.repository(repository)
        return Target(URL(f"{registry.api}/{name}/{rest}{query}", encoded=True), registry, name, headers or {})

    async def close(self) -> None:
        """Close every connection; what is still open breaks."""
        await self._exchanges.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _meaning(headers: Mapping[str, str]) -> Meaning | None:
    """What a HEAD's *headers* tell; None: not enough, or not of a manifest."""
    length, kind = headers.get("Content-Length", ""), manifests.stated(headers.get("Content-Type", ""))
    if not (length.isascii() and length.isdigit() and int(length) > 0 and kind):
        return None
    if not is_identity(headers.get("Content-Encoding")):
        return None
    try:
        digest = parse(headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None
    return Meaning(digest, kind, int(length))


def fits(digest: str, content: bytes) -> bool:
    """Whether *content* is what *digest*, of any algorithm that is known here, names."""
    algorithm, _, value = digest.partition(":")
    if algorithm not in ("sha256", "sha384", "sha512"):
        return False
    return hashlib.new(algorithm, content).hexdigest() == value
