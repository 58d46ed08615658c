"""How an agent or tracker is named in its certificate. Pure.

The name stands in the subject's alternative names (RFC 5280 section 4.2.1.6) twice. The URI says who it is. The DNS
name says only what it is, so that whoever dials can let TLS itself check the role (RFC 9525).
"""

from __future__ import annotations

import re
from enum import StrEnum

_SCHEME = "shoal://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}")


class Role(StrEnum):
    """What a certificate speaks for."""

    AGENT = "agent"
    TRACKER = "tracker"

    @property
    def host(self) -> str:
        """The DNS name in every certificate of the role: the `server_hostname` of whoever dials one."""
        return f"{self.value}.shoal.internal"


def identity(role: Role, name: str) -> str:
    """`agent/<name>` or `tracker/<name>`. Raises ValueError if *name* is no name (letters, digits, `._:-`)."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name for a certificate")
    return f"{role.value}/{name}"


def uri(role: Role, name: str) -> str:
    """The URI that a certificate carries. Raises ValueError."""
    return _SCHEME + identity(role, name)


def from_uri(text: str) -> str | None:
    """The identity (`agent/<name>`) that a URI of a certificate spells; None: it is none of ours."""
    if not text.startswith(_SCHEME):
        return None
    role, _, name = text.removeprefix(_SCHEME).partition("/")
    try:
        return identity(Role(role), name)
    except ValueError:
        return None


def role_of(known: str) -> Role:
    """The role in an identity. Raises ValueError."""
    return Role(known.partition("/")[0])


def name_of(known: str) -> str:
    """The name in an identity."""
    return known.partition("/")[2]
