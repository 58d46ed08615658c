"""An HTTP client in a thread of its own: fetches a blob, checks its sha256, and says what really came."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.parts.registry import Blob

BUFFER = 1024 * 1024


@dataclass
class Fetched:
    """One answer. *error* is set if the body broke off or no answer came; what came before is counted."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    size: int = 0
    digest: str = ""
    """sha256 of the bytes that came."""
    body: bytes = b""
    """The first 64 KiB."""
    error: str = ""
    seconds: float = 0.0
    first: float = 0.0
    """Seconds until the first byte of the body."""

    @property
    def whole(self) -> bool:
        """Whether a complete body came, as HTTP sees it."""
        return not self.error


def assert_right(pulls: Sequence[Fetched], blob: Blob) -> None:
    """Everyone has exactly the blob, in one answer."""
    told = [(pull.status, pull.size, pull.digest, pull.error) for pull in pulls]
    assert told == [(200, blob.size, blob.digest, "")] * len(pulls), pulls


def get(url: str, headers: Mapping[str, str] | None = None, *, deadline: float = 60.0, method: str = "GET") -> Fetched:
    """Blocking. *deadline*: seconds for each read from the socket."""
    parts = urlsplit(url)
    told = Fetched()
    sha = hashlib.sha256()
    begun = time.monotonic()
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=deadline)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers=dict(headers or {}))
        answer = connection.getresponse()
        told.status = answer.status
        told.headers = {name.lower(): value for name, value in answer.getheaders()}
        buffer = memoryview(bytearray(BUFFER))
        while count := answer.readinto(buffer):
            if not told.size:
                told.first = time.monotonic() - begun
            sha.update(buffer[:count])
            if len(told.body) < 65536:
                told.body += bytes(buffer[: min(count, 65536 - len(told.body))])
            told.size += count
        # readinto ends quietly where the connection was cut
        told.error = "cut short" if answer.length else ""
    except (OSError, http.client.HTTPException) as error:
        told.error = repr(error)
    finally:
        connection.close()
    told.digest = f"sha256:{sha.hexdigest()}"
    told.seconds = time.monotonic() - begun
    return told


async def fetch(
    url: str, headers: Mapping[str, str] | None = None, *, deadline: float = 60.0, method: str = "GET"
) -> Fetched:
    """`get` in a thread that nobody else waits for (a pool would queue the seventeenth client)."""
    done: Future[Fetched] = Future()

    def work() -> None:
        if done.set_running_or_notify_cancel():  # from here on a cancelled waiter does not cancel the future
            try:
                done.set_result(get(url, headers, deadline=deadline, method=method))
            except BaseException as error:  # noqa: BLE001 - whatever it was belongs to the waiter
                done.set_exception(error)

    threading.Thread(target=work, name="fetch", daemon=True).start()
    return await asyncio.wrap_future(done)
