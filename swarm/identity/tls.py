"""TLS contexts of one agent or tracker: both ends show a certificate, and both are renewed under open connections.

The contract for whoever listens or dials:

* `identity.server_context()` takes only peers whose certificate the authority signed;
* `identity.client_context()`, dialled with `server_hostname=Role.AGENT.host` or `Role.TRACKER.host`, takes only a
  peer of that role;
* `peer_name(ssl_object)` says who the peer is: `agent/<name>` or `tracker/<name>`.

The contexts are made once. New credentials are put into them, so connections that are open go on with the old
ones, and new ones show the new ones.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from swarm.blob.errors import IdentityError
from swarm.identity.name import from_uri


@dataclass(frozen=True)
class Credentials:
    """PEM texts: whom to trust, who one is, and the key that proves it."""

    authority: bytes
    """Certificates of the authorities, at least one."""
    certificate: bytes
    """One's own, with what stands between it and the authority, if anything."""
    key: bytes = field(repr=False)
    """The private key of the certificate, not encrypted."""


DH = """\
-----BEGIN X9.42 DH PARAMETERS-----
MIICDAKCAQEA///////////JD9qiIWjCNMTGYouA3BzRKQJOCIpnzHQCC76mOxOb
IlFKCHmONATd75UZs806QxswKwpt8l8UN0/hNW1tUcJF5IW1dmJefsb0TELppjft
awv/XLb0Brft7jhr+1qJn6WunyQRfEsf5kkoZlHs5Fs9wgB8uKFjvwWY2kg2HFXT
mmkWP6j9JM9fg2VdI9yjrZYcYvNWIIVSu57VKQdwlpZtZww1Tkq8mATxdGwIyhgh
fDKQXkYuNs474553LBgOhgObJ4Oi7Aeij7XFXfBvTFLJ3ivL9pVYFxg5lUl86pVq
5RXSJhiY+gUQFXKOWoqsqmj//////////wIBAgKCAQB//////////+SH7VEQtGEa
YmMxRcBuDmiUgScERTPmOgEF31Mdic2RKKUEPMcaAm73yozZ5p0hjZgVhTb5L4ob
p/Catrao4SLyQtq7MS8/Y3omIXTTG/a1hf+uW3oDW/b3HDX9rUTP0tdPkgi+JY/z
JJQzKPZyLZ7hAD5cULHfgsxtJBsOKunNNIsf1H6SZ6/Bsq6R7lHWyw4xeasQQqld
z2qUg7hLSzazhhqnJV5MAni6NgRlDBC+GUgvIxcbZx3xzzuWDAdDAc2TwdF2A9FH
2uKu+DemKWTvFeX7SqwLjBzKpL51SrVyiukTDEx9AogKuUctRVZVNH//////////
-----END X9.42 DH PARAMETERS-----
"""
"""Parameters of Diffie-Hellman (RFC 3526, group 14), which libtorrent asks for and TLS 1.3 does not use."""


class Peered(Protocol):
    """What knows the certificate of the other end: ssl.SSLObject and ssl.SSLSocket."""

    def getpeercert(self, binary_form: bool = False, /) -> object: ...


class Identity:
    """The TLS contexts of one process. Thread-safe: connections of every thread share them."""

    def __init__(self, credentials: Credentials, refresh: Callable[[], None] | None = None) -> None:
        """*refresh* is called before a connection is made or taken: it may `renew`. Raises IdentityError."""
        self._refresh = refresh or (lambda: None)
        self._listeners: list[Callable[[], None]] = []
        self._server = self._context(ssl.PROTOCOL_TLS_SERVER)
        self._open_server = self._context(ssl.PROTOCOL_TLS_SERVER)
        self._open_server.verify_mode = ssl.CERT_OPTIONAL
        self._client = self._context(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = True
        for context in (self._server, self._open_server):
            context.num_tickets = 0  # a resumed session would outlive its certificate
            context.sni_callback = self._greeted
        self.credentials = credentials
        self._fill(credentials)

    def renew(self, credentials: Credentials) -> None:
        """Show *credentials* on every connection from now on; those that are open stay. Raises IdentityError.

        A new authority is trusted beside the old one until the process ends.
        """
        if credentials != self.credentials:
            self._fill(credentials)
            self.credentials = credentials
            for listener in self._listeners:
                listener()

    def on_renew(self, listener: Callable[[], None]) -> None:
        """Call *listener* after every `renew`, from whatever thread that comes."""
        self._listeners.append(listener)

    def server_context(self, *, strangers: bool = False) -> ssl.SSLContext:
        """For a listener. *strangers*: peers without a certificate may come, and have no `peer_name`."""
        return self._open_server if strangers else self._server

    def client_context(self) -> ssl.SSLContext:
        """For whoever dials; `server_hostname` is the role's host (swarm.identity.name)."""
        self._refresh()
        return self._client

    @staticmethod
    def _context(kind: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(kind)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        # 3.12: the kernel encrypts where it can (TLS 1.3, AES-GCM), and sendfile works on the socket.
        context.options |= getattr(ssl, "OP_ENABLE_KTLS", 0)
        return context

    def _greeted(self, _ssl: object, _name: str | None, _context: object) -> None:
        with contextlib.suppress(IdentityError):  # the old certificate is still shown; who renews it says why
            self._refresh()

    def _fill(self, credentials: Credentials) -> None:
        try:
            with _in_memory(credentials.certificate + b"\n" + credentials.key) as path:
                # First into a context of its own: a half of a pair must not get into those that are in use.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
                for context in (self._server, self._open_server, self._client):
                    context.load_cert_chain(path)
                    context.load_verify_locations(cadata=credentials.authority.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError, OSError) as error:
            raise IdentityError(f"the certificate, its key or its authority cannot be used: {_why(error)}") from None


def peer_name(connection: Peered | None) -> str:
    """Who is at the other end of a connection that was made: `agent/<name>` or `tracker/<name>`.

    *connection*: the SSLSocket, or `transport.get_extra_info("ssl_object")`. Raises IdentityError: no TLS, no
    certificate, or one that is not ours.
    """
    shown = connection.getpeercert() if connection is not None else None
    if isinstance(shown, dict):
        for kind, value in shown.get("subjectAltName", ()):
            if kind == "URI" and (known := from_uri(value)) is not None:
                return known
    raise IdentityError("the peer shows no certificate that names an agent or a tracker")


@contextlib.contextmanager
def _in_memory(text: bytes) -> Iterator[str]:
    """A path under which OpenSSL reads *text*: it takes keys from files only, and a key must not touch a disk."""
    number = os.memfd_create("shoal", os.MFD_CLOEXEC)
    try:
        os.write(number, text)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    return str(reason).replace("\n", " ")[:200]
