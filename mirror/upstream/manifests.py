"""What kind of manifest some bytes are: the Content-Type that a client must be told. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

LARGEST = 4 * 1024 * 1024
"""Bytes. distribution-spec, "Pushing manifests": registries may refuse what is larger, so none is held in memory."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

# RFC 6838, 4.2: what may stand in a media type, so that no manifest writes a header of ours.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


_KNOWN = frozenset(
    {OCI_MANIFEST, OCI_INDEX, OCI_ARTIFACT, DOCKER_MANIFEST, DOCKER_LIST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}
)


def stated(content_type: str) -> str | None:
    """The manifest's media type that a Content-Type header names; None: it names none (a page, JSON, nothing)."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind if kind in _KNOWN else None


def media_type(content: bytes) -> str | None:
    """The media type that *content* declares, or that its structure implies; None: it is no manifest."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    declared = document.get("mediaType")
    if isinstance(declared, str) and _MEDIA_TYPE.fullmatch(declared):
        return declared
    return _by_structure(document)


def _by_structure(document: dict[str, Any]) -> str | None:
    # image-spec, manifest.md and image-index.md: mediaType is only a SHOULD, so structure has to tell.
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    entries = document.get("manifests")
    if isinstance(entries, list):
        return DOCKER_LIST if entries and all(map(_is_docker, entries)) else OCI_INDEX
    if isinstance(document.get("config"), dict) and isinstance(document.get("layers"), list):
        return DOCKER_MANIFEST if _is_docker(document["config"]) else OCI_MANIFEST
    if isinstance(document.get("blobs"), list) and "artifactType" in document:
        return OCI_ARTIFACT
    return None


def _is_docker(descriptor: Any) -> bool:
    kind = descriptor.get("mediaType") if isinstance(descriptor, dict) else None
    return isinstance(kind, str) and kind.startswith("application/vnd.docker.")
