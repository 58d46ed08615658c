"""A client of the bench: asks over plain HTTP, and says what came, when, and how long nothing came."""

from __future__ import annotations

import hashlib
import http.client
import time
from dataclasses import dataclass, field

READ = 256 * 1024


@dataclass
class Answer:
    """One answer. Times in seconds from the request on; *gap*: the longest time without a byte."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 0
    digest: str = ""
    first: float = 0.0
    seconds: float = 0.0
    gap: float = 0.0
    error: str = ""
    body: bytes = b""
    """The first bytes, as many as were to be kept."""

    @property
    def complete(self) -> bool:
        """Whether a body came to the end that was promised."""
        return self.status in (200, 206) and not self.error

    def right(self, digest: str) -> bool:
        """Whether it is all of the blob."""
        return self.status == 200 and self.complete and self.digest == digest

    def wrong(self, digest: str) -> bool:
        """Whether it is a complete body with other bytes."""
        return self.status == 200 and self.complete and self.digest != digest

    @property
    def refused(self) -> bool:
        """Whether the client was sent elsewhere before the first byte."""
        return self.status in (404, 429, 502, 503) and not self.error

    def __str__(self) -> str:
        return f"{self.status or 'none'}{' ' + self.error if self.error else ''} {self.seconds:.1f} s"


def ask(
    port: int,
    path: str,
    *,
    ip: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
    seconds: float = 60.0,
    rate: float = 0.0,
    leave_after: int | None = None,
    keep: int = 0,
) -> Answer:
    """GET *path*. *seconds*: for all of it. *rate*: read so many bytes per second. Never raises."""
    answer, began, sha256 = Answer(), time.monotonic(), hashlib.sha256()
    last, body = began, bytearray()
    link = http.client.HTTPConnection(ip, port, timeout=seconds)
    try:
        link.request("GET", path, headers=headers or {})
        response = link.getresponse()
        answer.status, length = response.status, response.length
        answer.headers = {name.lower(): value for name, value in response.getheaders()}
        while True:
            left = began + seconds - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if link.sock is not None:
                link.sock.settimeout(left)
            chunk = response.read1(max(1, int(rate / 4)) if rate else READ)
            if not chunk:
                break
            now = time.monotonic()
            answer.first = answer.first or now - began
            answer.gap, last = max(answer.gap, now - last), now
            answer.size += len(chunk)
            sha256.update(chunk)
            body += chunk[: max(0, keep - len(body))]
            if rate:
                time.sleep(len(chunk) / rate)
            if leave_after is not None and answer.size >= leave_after:
                answer.error = "left"
                break
        if not answer.error and length is not None and answer.size < length:
            answer.error = "cut"
    except TimeoutError:
        answer.error = "nothing more"
    except (OSError, http.client.HTTPException) as error:
        answer.error = "cut" if answer.status else type(error).__name__
    finally:
        link.close()
    answer.body = bytes(body)
    answer.digest = "sha256:" + sha256.hexdigest()
    answer.seconds = time.monotonic() - began
    answer.gap = max(answer.gap, time.monotonic() - last)
    return answer
