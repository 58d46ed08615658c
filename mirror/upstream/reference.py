"""The name of an image, as people write it: registry, repository, and tag or digest. Pure.

Source: distribution/reference, as Docker, containerd and kubelet read names: without a registry it is Docker Hub,
without a namespace there `library/`, without a tag `latest`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+|/)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[a-z0-9]+:[A-Za-z0-9=_-]{32,}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?")


class Image(NamedTuple):
    """One image. *reference*: its digest if the name has one, else its tag."""

    registry: str
    repository: str
    reference: str

    @property
    def pinned(self) -> bool:
        """Named by digest."""
        return ":" in self.reference

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{'@' if self.pinned else ':'}{self.reference}"


def parse_image(text: str) -> Image:
    """`alpine`, `quay.io/team/app:v1`, `registry:5000/x@sha256:…`. Raises ValueError with one line."""
    wrong = ValueError(f"{text!r} is no image; write [REGISTRY/]REPOSITORY[:TAG][@DIGEST]")
    plain, at, digest = text.strip().partition("@")
    first, slash, rest = plain.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    registry, path = (first.lower(), rest) if has_host else ("docker.io", plain)
    path, _, tag = path.partition(":")
    if registry in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        registry = "docker.io"
        path = path if "/" in path else f"library/{path}"
    reference = digest if at else tag or "latest"
    if not _HOST.fullmatch(registry) or not _REPOSITORY.fullmatch(path) or len(path) > 255:
        raise wrong
    if not (_DIGEST if at else _TAG).fullmatch(reference):
        raise wrong
    return Image(registry, path, reference)
