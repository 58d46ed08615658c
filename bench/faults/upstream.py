"""A registry that goes wrong on demand: blobs and manifests over HTTP, and a mood that spoils its answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from bench.faults.hosts import inside
from bench.net import Host

MIB = 1024 * 1024
PORT = 5000
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Spoilt:
    """What is wrong with one answer. Counts in bytes of body, times in seconds."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    """With *status*, instead of the right body."""
    drop: bool = False
    """Closed without an answer."""
    header_rate: float = 0.0
    """Bytes per second of the head."""
    delay: float = 0.0
    """Before the head."""
    rate: float = 0.0
    """Of the body, bytes per second."""
    cut: int | None = None
    """A reset after so much."""
    short: int | None = None
    """A clean end after so much, of a body that was promised longer."""
    hang: int | None = None
    """Silence after so much."""
    flip: int | None = None
    """Wrong bytes from here on."""
    extra: int = 0
    """Added to the size that is told."""
    no_range: bool = False


@dataclass(frozen=True)
class Asked:
    """One request, as a mood sees it. *number* counts requests for blobs, *at* is monotonic."""

    method: str
    path: str
    headers: dict[str, str]
    ip: str
    number: int
    at: float


Mood = Callable[[Asked], Spoilt | None]


class Upstream:
    """The registry on one host. *mood* may be changed at any time; *rate*: bytes per second in all, 0: no limit."""

    def __init__(self, host: Host) -> None:
        self.mood: Mood | None = None
        self.rate = 0.0
        self.down = False
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        """Body bytes by digest."""
        self.name = f"{host.ip}:{PORT}"
        self._blobs: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}
        self._types: dict[str, str] = {}
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._number = 0
        self._closing = threading.Event()
        self._server = inside(host, lambda: socket.create_server((host.ip, PORT), backlog=256))
        threading.Thread(target=self._accept, daemon=True).start()

    def put(self, content: bytes) -> str:
        """The digest under which *content* is served."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return digest

    def tag(self, tag: str, layers: list[bytes]) -> str:
        """The digest of an image's manifest that *tag* means from now on."""
        config = self.put(json.dumps({"architecture": "amd64", "os": "linux", "tag": tag}).encode())
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config,
                "size": len(self._blobs[config]),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": self.put(layer),
                    "size": len(layer),
                }
                for layer in layers
            ],
        }
        digest = self.put(json.dumps(document).encode())
        self._types[digest] = MANIFEST
        self._tags[tag] = digest
        return digest

    def content(self, digest: str) -> bytes:
        """The bytes of a blob."""
        return self._blobs[digest]

    def copies(self, digest: str) -> float:
        """How often the whole blob was sent, in bytes."""
        return self.sent.get(digest, 0) / max(1, len(self._blobs[digest]))

    def close(self) -> None:
        """No more answers."""
        self._closing.set()
        self._server.close()

    # -- inside ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                link, peer = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link, peer[0]), daemon=True).start()

    def _serve(self, link: socket.socket, ip: str) -> None:
        with contextlib.suppress(OSError, ValueError), link, link.makefile("rb") as lines:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            while not self._closing.is_set():
                words = lines.readline().decode("latin-1").split()
                if len(words) < 3:
                    return
                headers: dict[str, str] = {}
                while line := lines.readline().decode("latin-1").strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                path = unquote(urlsplit(words[1]).path)
                with self._lock:
                    self._number += "/blobs/" in path
                    asked = Asked(words[0], path, headers, ip, self._number, time.monotonic())
                    self.asked.append(asked)
                if not self._answer(link, asked):
                    return

    def _answer(self, link: socket.socket, asked: Asked) -> bool:
        mood = self.mood
        spoilt = (mood(asked) if mood else None) or Spoilt()
        if self.down or spoilt.drop:
            return False
        self._closing.wait(spoilt.delay)
        digest, content, kind = self._find(asked.path)
        if spoilt.status:
            self._head(link, spoilt.status, {**spoilt.headers, "Content-Length": str(len(spoilt.body))}, spoilt)
            link.sendall(spoilt.body)
            return True
        if content is None:
            self._head(link, 404, {"Content-Length": "0"}, spoilt)
            return True
        headers = {"Content-Type": kind, "Docker-Content-Digest": digest, **spoilt.headers}
        status, start, stop, size = 200, 0, len(content), len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
        if wanted and not spoilt.no_range and kind != MANIFEST:
            status, start = 206, int(wanted[1])
            stop = min(int(wanted[2] or size - 1) + 1, size)
            if start >= size:
                self._head(link, 416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"}, spoilt)
                return True
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size + spoilt.extra}"
        self._head(link, status, {**headers, "Content-Length": str(stop - start)}, spoilt)
        return asked.method == "HEAD" or self._body(link, digest, memoryview(content)[start:stop], spoilt)

    def _find(self, path: str) -> tuple[str, bytes | None, str]:
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if not found:
            return "", (b"{}" if path.rstrip("/") == "/v2" else None), "application/json"
        digest = self._tags.get(found[3], found[3])
        return digest, self._blobs.get(digest), self._types.get(digest, "application/octet-stream")

    def _head(self, link: socket.socket, status: int, headers: dict[str, str], spoilt: Spoilt) -> None:
        text = f"HTTP/1.1 {status} -\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        if not spoilt.header_rate:
            link.sendall(text.encode())
            return
        for byte in text.encode():
            link.sendall(bytes([byte]))
            self._closing.wait(1 / spoilt.header_rate)

    def _body(self, link: socket.socket, digest: str, content: memoryview, spoilt: Spoilt) -> bool:
        ends = [end for end in (spoilt.cut, spoilt.short, spoilt.hang) if end is not None]
        stop = min([len(content), *ends])
        began, done = time.monotonic(), 0
        step = max(512, min(65536, int(spoilt.rate / 20))) if spoilt.rate else 65536
        while done < stop:
            chunk = bytes(content[done : min(done + step, stop)])
            if spoilt.flip is not None and done + len(chunk) > spoilt.flip:
                chunk = bytes(byte ^ 0xFF for byte in chunk)
            link.sendall(chunk)
            done += len(chunk)
            with self._lock:
                self.sent[digest] = self.sent.get(digest, 0) + len(chunk)
                if self.rate:
                    self._free_at = max(self._free_at, time.monotonic()) + len(chunk) / self.rate
            ahead = self._free_at - time.monotonic() - 0.05 if self.rate else 0.0
            if spoilt.rate:
                ahead = max(ahead, done / spoilt.rate - (time.monotonic() - began))
            if ahead > 0:
                self._closing.wait(ahead)
        if done == len(content):
            return True
        if spoilt.hang is not None:
            self._closing.wait(400)
        if spoilt.cut is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
