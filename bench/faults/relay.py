"""A proxy between an agent and its tracker, on the agent's own host, that spoils the answers to some verbs."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading

from bench.faults.hosts import enter, inside
from bench.net import Host

PORT = 7000

ANSWERS = {
    "404": (404, b'{"detail":"Not Found"}', "application/json"),
    "500": (500, b"oops", "text/plain"),
    "page": (200, b"<html>Please log in</html>", "text/html"),
    "nothing": (204, b"", ""),
}


class Relay:
    """Listens on 127.0.0.1:PORT of *host* for the tracker at *ip*:*port*.

    *spoil*: verb ("publish", "board", ...; "" for all) -> a key of ANSWERS, "silent", or "fields".
    """

    def __init__(self, host: Host, ip: str, port: int) -> None:
        self.spoil: dict[str, str] = {}
        self._host, self._to = host, (ip, port)
        self._closing = threading.Event()
        self._server = inside(host, lambda: socket.create_server(("127.0.0.1", PORT), backlog=64))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No more answers."""
        self._closing.set()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        enter(self._host)
        with contextlib.suppress(OSError, http.client.HTTPException), link, link.makefile("rb") as lines:
            while words := lines.readline().decode("latin-1").split():
                headers: dict[str, str] = {}
                while line := lines.readline().decode("latin-1").strip():
                    name, _, value = line.partition(":")
                    headers[name.title()] = value.strip()
                body = lines.read(int(headers.get("Content-Length", 0)))
                verb = words[1].partition("?")[0].rpartition("/")[2]
                how = self.spoil.get(verb, self.spoil.get("", ""))
                if how == "silent":
                    self._closing.wait(60)
                    return
                status, content, kind = ANSWERS[how] if how in ANSWERS else self._pass(words, headers, body)
                if how == "fields" and content.startswith(b"{") and len(content) > 2:
                    content = b'{"unknown_field":[1],' + content[1:]
                head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
                link.sendall(head.encode() + content)

    def _pass(self, words: list[str], headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        link = http.client.HTTPConnection(*self._to, timeout=60)
        try:
            kept = {name: value for name, value in headers.items() if name not in ("Connection", "Host")}
            link.request(words[0], words[1], body=body, headers=kept)
            answer = link.getresponse()
            return answer.status, answer.read(), answer.getheader("Content-Type", "")
        finally:
            link.close()
