"""The registry API's own forms: paths, names, error documents (OCI distribution-spec 1.1, pull side). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

from mirror.errors import Refusal
from swarm.blob import digest as digests

DEFAULT_REGISTRY = "docker.io"
"""The registry that a request means which names none (containerd sends no `ns` to docker.io's mirrors of old)."""

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_NS = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST_IN_NAME = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*)(?:_(?P<port>[0-9]{{1,5}}))?")
_API = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<reference>[^/]+)", re.DOTALL)
_UPLOADS = re.compile(r"/v2/(?P<name>.+)/blobs/uploads(?:/.*)?", re.DOTALL)

LONGEST_NAME = 255
"""Characters of a repository name: what registries accept (distribution-spec, "Pulling manifests", note)."""


Kind = Literal["check", "manifest", "blob", "referrers", "tags"]


@dataclass(frozen=True, slots=True)
class Route:
    """What a path under /v2/ asks for. *reference*: tag or digest; empty where there is none."""

    kind: Kind
    name: str = ""
    reference: str = ""

    @property
    def by_digest(self) -> bool:
        """Whether the reference is a digest."""
        return ":" in self.reference

    @property
    def path(self) -> str:
        """The path at a registry of its own, without a query."""
        return f"/v2/{self.name}/{_ENDPOINTS[self.kind]}/{self.reference or 'list'}"


_ENDPOINTS: dict[Kind, str] = {"manifest": "manifests", "blob": "blobs", "referrers": "referrers", "tags": "tags"}
_KINDS: dict[str, Kind] = {endpoint: kind for kind, endpoint in _ENDPOINTS.items()}


def route(method: str, raw_path: str) -> Route:
    """What *method* on *raw_path* (percent-encoded, without its query) asks for. Raises Refusal."""
    path = unquote(raw_path)
    if method not in ("GET", "HEAD"):
        raise Refusal("UNSUPPORTED", "this is a mirror: it can only be pulled from", headers={"Allow": "GET, HEAD"})
    if path in ("/v2", "/v2/"):
        return Route("check")
    if _UPLOADS.fullmatch(path):
        raise Refusal("UNSUPPORTED", "this is a mirror: it can only be pulled from", headers={"Allow": "GET, HEAD"})
    match = _API.fullmatch(path)
    if match is None or (match["kind"] == "tags" and match["reference"] != "list"):
        raise Refusal("UNSUPPORTED", "no such endpoint", status=404)
    name, kind, reference = match["name"], _KINDS[match["kind"]], match["reference"]
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise Refusal("NAME_INVALID", "not a repository name: lower case letters, digits and . _ - / between them")
    if kind == "tags":
        return Route(kind, name)
    if ":" in reference or kind != "manifest":
        if not digests.is_well_formed(reference):
            raise Refusal("DIGEST_INVALID", "not a digest")
    elif not _TAG.fullmatch(reference):
        raise Refusal("TAG_INVALID", "not a tag")
    return Route(kind, name, reference)


def meant(route: Route, ns: str | None, named: Callable[[str], bool] = lambda _host: False) -> tuple[str, Route]:
    """The registry (see `registry`) and what is asked of it. Raises Refusal.

    Only containerd says `ns`. For everybody else the repository's name may begin with the registry, as in
    `quay.io/team/app`; `_` stands for the colon before a port, which no repository's name may hold
    (`registry.example_5000/team/app`). Docker Hub has no names with a dot, or `_` and a number, before the first
    slash; any other word is a registry where *named* says that somebody configured it (`harbor/team/app`).
    """
    first, slash, rest = route.name.partition("/")
    if not ns and slash and (match := _HOST_IN_NAME.fullmatch(first)):
        host = match["host"] + (f":{match['port']}" if match["port"] else "")
        if match["port"] or "." in host or host == "localhost" or named(host):
            ns, route = host, replace(route, name=rest)
    return registry(ns), route


def registry(ns: str | None) -> str:
    """The registry (`host` or `host:port`, lower case) that the query parameter *ns* names. Raises Refusal."""
    text = (ns or DEFAULT_REGISTRY).lower()
    if len(text) > LONGEST_NAME or not _NS.fullmatch(text):
        raise Refusal("NAME_INVALID", "ns is not a registry host")
    return text


def without_ns(query: str) -> str:
    """*query* without the `ns` parameter, which is for mirrors only."""
    return urlencode([(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if key != "ns"])
