"""Which request may come in by which door, before anybody looks at what it wants.

Three doors: *main*, where agents speak; *page*, where people and their tools read, if it is apart; *metrics*, for
Prometheus, if it is apart. Health is answered at all of them, to everybody.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from swarm.base.browser import is_json, objection
from swarm.blob.errors import IdentityError
from swarm.identity.tls import peer_name
from tracker.errors import Closed, Locked, NoJson
from tracker.members.gate import Claim

HEALTH = ("/healthz", "/readyz")
BITTORRENT = ("/announce", "/scrape", "/torrents/")
PREHEATS = "/api/v1/preheats"

ADDRESS, POD = "X-Shoal-Address", "X-Shoal-Pod"
"""Headers in which an agent says where it is reached and which pod it is (tracker.members.gate.Claim)."""


class Where(StrEnum):
    """The door that a request came by."""

    MAIN = "main"
    PAGE = "page"
    METRICS = "metrics"


@dataclass(frozen=True)
class Doors:
    """The rules. *hosts*: further names of this tracker. *token*: what readers have to show; "": nothing.

    *by_key*: agents show certificates. *page_apart*, *metrics_apart*: those have a listener of their own.
    """

    hosts: Collection[str] = ()
    token: str = ""
    by_key: bool = False
    page_apart: bool = False
    metrics_apart: bool = False

    def check(self, request: web.BaseRequest, where: Where, proven: str) -> None:
        """*proven*: identity of the certificate that the connection showed. Raises Closed, Locked, NoJson."""
        path, method = request.path, request.method
        if path in HEALTH:
            return
        if problem := objection(method, request.headers, self.hosts):
            raise Closed(problem)
        if path.startswith(("/v1/", f"{PREHEATS}/")) or path == PREHEATS:
            self._check_speech(request, where)
            return  # agents are known by the gate, and orders by a token of their own (tracker.http.preheats)
        if path.startswith(BITTORRENT):
            if where is not Where.MAIN:
                raise Closed("BitTorrent clients ask at another port")
            return  # who is no member is turned away by the gate
        if path == "/metrics" and where is Where.METRICS:
            return
        if where is Where.METRICS or (where is Where.MAIN and not proven and not self._open(path)):
            raise Closed("this is read at another port")
        if not proven and self.token and not self._shown(request.headers):
            raise Locked("a token is needed: as Bearer, or as the password of any user")

    def _check_speech(self, request: web.BaseRequest, where: Where) -> None:
        """What agents and those who order say. Raises Closed, NoJson."""
        if where is Where.METRICS or (where is not Where.MAIN and request.path.startswith("/v1/")):
            raise Closed("agents speak at another port")
        if request.method == "POST" and not is_json(request.headers.get("Content-Type", "")):
            raise NoJson("the body must be application/json")

    def _open(self, path: str) -> bool:
        """Whether strangers may read *path* at the main door."""
        apart = self.metrics_apart if path == "/metrics" else self.page_apart
        return not apart and (not self.by_key or bool(self.token))

    def _shown(self, headers: Mapping[str, str]) -> bool:
        """Whether the token was shown, as RFC 6750 (Bearer) or RFC 7617 (Basic, for browsers) say."""
        kind, _, value = headers.get("Authorization", "").partition(" ")
        shown = value.strip()
        if kind.lower() == "basic":
            try:
                shown = base64.b64decode(shown, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(shown.encode(), self.token.encode())


def proven_by(request: web.BaseRequest) -> str:
    """The identity in the certificate that the connection showed; "": none."""
    transport = request.transport
    shown = transport.get_extra_info("ssl_object") if transport is not None else None
    if shown is None:
        return ""
    try:
        return peer_name(shown)
    except IdentityError:
        return ""


def claim_of(request: web.BaseRequest, proven: str) -> Claim:
    """What *request* says of its sender."""
    return Claim(proven, request.headers.get(ADDRESS, "")[:64], request.headers.get(POD, "")[:64])
