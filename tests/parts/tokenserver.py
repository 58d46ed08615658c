"""A token server that a real docker-registry trusts (docs/spec/auth/jwt.md): tokens signed by an RSA key whose
certificate the registry knows."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import BasicAuth, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

ISSUER = "shoal-tests"
SERVICE = "test registry"


@dataclass
class TokenServer:
    """Running; its knobs may be turned at any time, its records read."""

    url: str
    certificate: Path
    """What the registry's `rootcertbundle` needs."""

    _key: rsa.RSAPrivateKey = field(repr=False)
    users: dict[str, str] = field(default_factory=dict)
    """Passwords by user name. Anonymous callers get nothing while there are users."""

    refresh_tokens: set[str] = field(default_factory=set)
    """What the refresh_token grant accepts."""

    life: float = 300.0
    """Seconds that `expires_in` says."""

    key: str = "token"
    """Name under which the token comes: `token` or `access_token`."""

    rights: tuple[str, ...] = ("pull",)
    """Actions in the tokens; empty: tokens that open nothing."""

    asked: list[dict[str, str]] = field(default_factory=list)
    """Every request: its query or form, and `user`."""

    @property
    def auth(self) -> dict[str, object]:
        """The `auth` section of the registry's configuration."""
        return {
            "token": {
                "realm": self.url,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.certificate),
            }
        }

    def sign(self, scope: str, user: str) -> str:
        """A token for *scope*."""
        kind, name, _ = scope.split(":", 2) if scope.count(":") >= 2 else ("repository", "", "")
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "iat": now - 10,
            "nbf": now - 10,
            "exp": now + 3600,
            "jti": f"{len(self.asked)}",
            "access": [{"type": kind, "name": name, "actions": list(self.rights)}] if self.rights else [],
        }
        header = {"typ": "JWT", "alg": "RS256", "kid": self._kid()}
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_b64(signature)}"

    def _kid(self) -> str:
        """libtrust's key id: 240 bits of the SHA-256 of the public key, base32 in groups of four."""
        public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        text = base64.b32encode(hashlib.sha256(public).digest()[:30]).decode()
        return ":".join(text[i : i + 4] for i in range(0, len(text), 4))

    async def _get(self, request: web.Request) -> web.Response:
        user = ""
        if "Authorization" in request.headers:
            given = BasicAuth.decode(request.headers["Authorization"])
            user = given.login
            if self.users.get(user) != given.password:
                self.asked.append(dict(request.query) | {"user": user})
                return web.json_response({"details": "no"}, status=401)
        elif self.users:
            self.asked.append(dict(request.query) | {"user": ""})
            return web.json_response({"details": "no"}, status=401)
        return self._give(dict(request.query), user)

    async def _post(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if form.get("grant_type") != "refresh_token" or form.get("refresh_token") not in self.refresh_tokens:
            return web.json_response({"details": "no"}, status=401)
        return self._give(form, "refreshed")

    def _give(self, asked: dict[str, str], user: str) -> web.Response:
        self.asked.append(asked | {"user": user})
        return web.json_response({self.key: self.sign(asked.get("scope", ""), user), "expires_in": self.life})


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@asynccontextmanager
async def token_server(directory: Path) -> AsyncIterator[TokenServer]:
    """A token server on a free loopback port; its certificate is written into *directory*."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "token-signer.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    server = TokenServer(url="", certificate=file, _key=key)
    app = web.Application()
    app.router.add_get("/token", server._get)
    app.router.add_post("/token", server._post)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
        yield server
    finally:
        await runner.cleanup()
