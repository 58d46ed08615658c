"""Streaming paths: which URL a reader means, and which digest that URL names (docs/contract.md, "Streaming"). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from mirror.errors import UrlInvalid
from swarm.blob.digest import Digest, from_hex

PREFIXES = ("/blobs/", "/dadip2p/", "/accelerator/")
"""Where overlaybd and DADI put the URL behind: Peerd's address, DADI's own, and its accelerator's."""

LONGEST = 8000
"""Characters of a URL; signed ones have about 1500."""

_SCHEME = re.compile(r"(https?):/+(?=[^/])", re.IGNORECASE)
_HEX = r"(?P<hex>[0-9a-f]{64})(?![0-9A-Za-z])"
_IN_PATH = (
    re.compile(rf"/blobs/sha256:{_HEX}"),
    re.compile(rf"/docker/registry/v2/blobs/sha256/(?P<xx>[0-9a-f]{{2}})/(?=(?P=xx)){_HEX}/data(?:/|$)"),
    re.compile(rf"sha256(?::|%3[Aa]){_HEX}"),
)
_REGISTRY = re.compile(r"/v2(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+/blobs/sha256:[0-9a-f]{64}")
"""Nothing that a server could take for another path: no dots alone, and no escapes."""

_VALUE = re.compile(rf"sha256:{_HEX}")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a reader wants. *url* holds signatures and must not be shown; *place* may."""

    url: str = field(repr=False)
    host: str
    """Host and unusual port, in lower case."""
    place: str
    """scheme://host/path: no query. The key of a file without a digest."""
    digest: Digest | None

    @property
    def word(self) -> str:
        """Who answers for it that the bytes are those of the digest: a registry, which looks at what is uploaded to it
        (OCI distribution-spec), by its name; elsewhere whoever may write to that place."""
        path = self.place.partition("://")[2].removeprefix(self.host)
        return self.host if _REGISTRY.fullmatch(path) else self.place


def parse(target: str) -> Wanted:
    """What the request target (path and query, as sent) wants. Raises UrlInvalid."""
    prefix = next((prefix for prefix in PREFIXES if target.startswith(prefix)), None)
    match = _SCHEME.match(target, len(prefix)) if prefix else None
    if match is None:
        raise UrlInvalid("an absolute http or https URL must follow the prefix")
    scheme = match[1].lower()
    # Proxies merge slashes: `https:/host` means `https://host`.
    url = f"{scheme}://{target[match.end() :].partition('#')[0]}"
    if len(url) > LONGEST or not url.isascii() or re.search(r"[\x00-\x20\x7f]", url):
        raise UrlInvalid("the URL is too long, or not percent-encoded")
    try:
        parts = urlsplit(url)
        name, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise UrlInvalid("the URL's host or port is invalid") from None
    if not name or parts.username is not None or parts.password is not None:
        raise UrlInvalid("the URL needs a host, and no credentials in front of it")
    host = f"[{name}]" if ":" in name else name
    if port is not None and port != _PORTS[scheme]:
        host = f"{host}:{port}"
    return Wanted(url, host, f"{scheme}://{host}{parts.path or '/'}", digest_of(parts.path, parts.query))


def digest_of(path: str, query: str) -> Digest | None:
    """The digest that a URL's percent-encoded *path* and *query* name; the first match of the listed forms counts."""
    for pattern in _IN_PATH:
        if match := pattern.search(path):
            return from_hex(match["hex"])
    for key, value in parse_qsl(query, keep_blank_values=True):
        # Azure's registry signs `d=sha256:<hex>` into the URL of its blob store.
        if key == "d" and (match := _VALUE.fullmatch(value)):
            return from_hex(match["hex"])
    return None
