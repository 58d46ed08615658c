"""Credentials in three files (--tls-ca, --tls-cert, --tls-key), read again when they change."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from swarm.base.seldom import Seldom
from swarm.blob.errors import IdentityError
from swarm.identity.tls import Credentials, Identity

log = logging.getLogger("shoal.identity")

LOOK = 1.0
"""Seconds between two looks at the files at most: connections that come in numbers share one."""


def identity_files(authority: Path | None, certificate: Path | None, key: Path | None) -> IdentityFiles | None:
    """The identity in the files of --tls-ca, --tls-cert and --tls-key; None: none is named. Raises IdentityError."""
    if authority is None and certificate is None and key is None:
        return None
    if authority is None or certificate is None or key is None:
        raise IdentityError("an identity needs all of --tls-ca, --tls-cert and --tls-key")
    return IdentityFiles(authority, certificate, key)


class IdentityFiles:
    """An Identity made of files. A Secret that is mounted changes all three at once, by a link; others may not."""

    def __init__(self, authority: Path, certificate: Path, key: Path) -> None:
        """Raises IdentityError: a file that cannot be read or used."""
        self._paths = (authority, certificate, key)
        self._seen = self._stamps()
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._seldom = Seldom()
        self.identity = Identity(self._read(), self.refresh)

    def refresh(self) -> None:
        """Read the files again if they changed. What cannot be used is told in the log, and the old stays in use."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked < LOOK:
                return
            self._looked = now
            try:
                stamps = self._stamps()
                if stamps == self._seen:
                    return
                self.identity.renew(self._read())
                self._seen = stamps
                log.info("identity-renewed", extra={"fields": {"certificate": str(self._paths[1])}})
            except IdentityError as error:
                if (before := self._seldom.due("files", now)) is not None:
                    log.warning("identity-not-renewed", extra={"fields": {"reason": str(error), "held_back": before}})

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        try:
            return tuple((at.st_ino, at.st_mtime_ns, at.st_size) for at in (path.stat() for path in self._paths))
        except OSError as error:
            raise IdentityError(f"{error.filename}: {error.strerror}") from None

    def _read(self) -> Credentials:
        try:
            return Credentials(*(path.read_bytes() for path in self._paths))
        except OSError as error:
            raise IdentityError(f"{error.filename}: {error.strerror}") from None
