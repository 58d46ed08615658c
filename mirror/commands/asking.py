"""How commands ask trackers: the addresses of a name, TLS, a token."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from swarm.base.flags import PATH, TRACKER, setting, tracker_urls
from swarm.identity.name import Role

RESOLVE_WITHIN = 5.0
"""Seconds for a name to be resolved."""


@dataclass(frozen=True)
class Asking:
    """What every command that asks trackers is told."""

    tracker: tuple[str, ...] = setting(
        ("http://127.0.0.1:6969",),
        TRACKER,
        "The tracker to ask, http://HOST:PORT, or dns+http://NAME:PORT for every address of a name. Repeatable.",
        unit="URL",
        reason="Where `shoal up` and `shoal tracker` listen unless told otherwise.",
    )
    tls_ca: Path | None = setting(
        None,
        PATH,
        "Authority of the trackers (PEM), where they speak by TLS: they are asked so, and must be signed by it.",
        unit="file",
        reason="None: trackers are asked in clear, as --tracker says.",
    )


async def addresses(tracker: str) -> list[str]:
    """`dns+http://name:port` as one URL for each address of the name; another URL as it is."""
    if not tracker.startswith("dns+"):
        return [tracker]
    host = urlsplit(tracker.removeprefix("dns+")).hostname
    try:
        async with asyncio.timeout(RESOLVE_WITHIN):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return [tracker.removeprefix("dns+")]  # the error comes with the question, in the same words as any other
    return list(tracker_urls(tracker, (str(place[4][0]) for place in found)))


def secured(authority: Path | None, certificate: Path | None = None, key: Path | None = None) -> dict[str, Any]:
    """How aiohttp connects to a tracker that *authority* signed: by its role's name, whatever its address.

    *certificate*, *key*: who asks, for trackers that are read by members only. Empty: in clear, as the URL says.
    Raises OSError, click.ClickException.
    """
    if (certificate is None) != (key is None) or (authority is None and certificate is not None):
        raise click.UsageError("--tls-cert and --tls-key belong together, and need --tls-ca")
    if authority is None:
        return {}
    path = authority
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None and key is not None:
            path = certificate
            context.load_cert_chain(certificate, key)
    except ssl.SSLError:
        raise click.ClickException(f"{path} holds no certificate (PEM), or one that its key is not of") from None
    return {"ssl": context, "server_hostname": Role.TRACKER.host}


def place(url: str, how: dict[str, Any]) -> str:
    """*url* as it is asked: by https where *how* says so."""
    return url.replace("http://", "https://", 1) if how and url.startswith("http://") else url


def bearer(token: Path | None) -> dict[str, str]:
    """The header that shows the token in a file (RFC 6750); empty without one. Raises OSError."""
    return {"Authorization": f"Bearer {token.read_text(encoding='utf-8').strip()}"} if token is not None else {}
