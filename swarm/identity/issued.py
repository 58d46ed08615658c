"""Identities that an authority makes: a tracker's own, and those that agents get for a token of theirs.

An agent without a certificate yet has a self-made one, which nobody takes: it works alone until a tracker
has signed. Keys are made here, stay in memory, and never travel.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec

from swarm.base.seldom import Seldom
from swarm.blob.errors import IdentityError
from swarm.identity.authority import Authority, expiry, key_pem, make_authority, new_key, request
from swarm.identity.name import Role
from swarm.identity.tls import Credentials, Identity

log = logging.getLogger("shoal.identity")

LIFE = timedelta(hours=24)
"""How long a certificate counts. An API server that is away for half a day costs nobody its membership."""

RENEW_AFTER = 1 / 3
"""Part of a certificate's life after which a new one is fetched: two thirds of it are left for trying."""

TRY_AGAIN = (0.2, 5.0)
"""Seconds between two tries to get a certificate: first, and at most."""

ASK_WITHIN = 5.0
"""Seconds for a tracker to sign: it asks the API server about the token."""


class IssuedIdentity:
    """The identity of a process that has the authority's key: a tracker's."""

    def __init__(
        self, authority: Authority, role: Role, name: str, clock: Callable[[], datetime] | None = None
    ) -> None:
        """Raises ValueError if *name* is none. *clock*: UTC."""
        self.authority = authority
        self._role, self._name = role, name
        self._clock = clock or (lambda: datetime.now(UTC))
        self._lock = threading.Lock()
        self.identity = Identity(self._made(), self.refresh)

    def refresh(self) -> None:
        """A new certificate when the old one is half through."""
        with self._lock:
            if self._clock() >= self._renew_at:
                self.identity.renew(self._made())

    def _made(self) -> Credentials:
        now = self._clock()
        self._renew_at = now + LIFE * RENEW_AFTER
        certificate, key = self.authority.issue(self._role, self._name, now, LIFE)
        return Credentials(self.authority.certificate, certificate, key)


class Asked(msgspec.Struct, frozen=True):
    """POST /v1/certificate: a certificate for the key that signed *request*, please."""

    token: str
    """Service account token, bound to the pod that it speaks for and to the audience of trackers."""
    request: str
    """PKCS #10, PEM."""


class Signed(msgspec.Struct, frozen=True):
    """The answer to Asked."""

    certificate: str
    """PEM."""


class EnrolledIdentity:
    """The identity of an agent that proves itself to trackers with a token, and has a certificate for it."""

    def __init__(self, authority: Path, token: Path) -> None:
        """Raises IdentityError: the authority cannot be read."""
        self._authority, self._token = authority, token
        self._key = new_key()
        self._seldom = Seldom()
        nobody = Authority(*make_authority(datetime.now(UTC), LIFE))
        unsigned = nobody.sign(request(self._key), Role.AGENT, "unsigned", datetime.now(UTC), LIFE)
        self.identity = Identity(Credentials(self._trusted(), unsigned, key_pem(self._key)))
        self.enrolled = asyncio.Event()
        """Set once a tracker has signed."""

    async def run(self, trackers: Callable[[], Iterable[str]]) -> None:
        """Get a certificate, and the next before it ends, until cancelled. *trackers*: `https://host:port` each."""
        while True:
            began = datetime.now(UTC)
            certificate = await self._enrol(trackers)
            self.identity.renew(Credentials(self._trusted(), certificate, key_pem(self._key)))
            self.enrolled.set()
            life = expiry(certificate) - began
            log.info("identity-enrolled", extra={"fields": {"seconds": round(life.total_seconds())}})
            await asyncio.sleep(max(1.0, life.total_seconds() * RENEW_AFTER * random.uniform(0.9, 1.0)))

    async def _enrol(self, trackers: Callable[[], Iterable[str]]) -> bytes:
        pause, longest = TRY_AGAIN
        while True:
            why = "no tracker is known yet"
            for url in trackers():
                try:
                    return await self._ask(url)
                except (IdentityError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    why = f"{url}: {error}" if isinstance(error, IdentityError) else f"{url}: {type(error).__name__}"
            now = asyncio.get_running_loop().time()
            if (before := self._seldom.due(why, now)) is not None:
                log.warning("identity-not-enrolled", extra={"fields": {"reason": why, "held_back": before}})
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    async def _ask(self, url: str) -> bytes:
        """One tracker's signature. The token goes to nobody who is no tracker: TLS has checked that before."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._trusted().decode("ascii", "replace"))
        try:
            token = await asyncio.to_thread(self._token.read_text, "ascii")
        except OSError as error:
            raise IdentityError(f"{error.filename}: {error.strerror}") from None
        body = msgspec.json.encode(Asked(token.strip(), request(self._key).decode()))
        timeout = aiohttp.ClientTimeout(total=ASK_WITHIN)
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.post(
                f"{url}/v1/certificate", data=body, headers=headers, ssl=context, server_hostname=Role.TRACKER.host,
                allow_redirects=False,
            ) as answer,
        ):  # fmt: skip
            text = await answer.content.read(64 * 1024)
            if answer.status != 200:
                raise IdentityError(f"{answer.status} {text[:200].decode('utf-8', 'replace')}")
            return msgspec.json.decode(text, type=Signed).certificate.encode()

    def _trusted(self) -> bytes:
        try:
            return self._authority.read_bytes()
        except OSError as error:
            raise IdentityError(f"{error.filename}: {error.strerror}") from None
