"""Upstream's front door: counts bytes and requests, and limits each connection to a rate.

A TCP relay before the registry. The limit is SO_MAX_PACING_RATE on every accepted socket, so the
kernel's TCP itself spaces the packets: exact from the first byte, and no qdisc needed. (nginx'
limit_rate counts per request and lets the first second through at any speed, which hides the limit
for requests of a few MiB; `fq maxrate` needs a qdisc that many kernels lack.) Bytes move by splice.

    python gate.py LISTEN-IP LISTEN-PORT TO-IP TO-PORT CONTROL-SOCKET [BYTES-PER-SECOND]

Each connection to the UNIX socket CONTROL-SOCKET is told the counts so far as one JSON object.
Standard library only, so that it starts fast and runs under `python -I -S`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading

SO_MAX_PACING_RATE = 47
TCP_NOTSENT_LOWAT = 25
_BLOCK = 256 * 1024
_UNSENT = 128 * 1024
"""Bytes the kernel may hold unsent: what a client that hangs up can make us overcount."""
_REQUEST = re.compile(rb"^(GET|HEAD) (\S+) HTTP/1\.[01]\r\n", re.MULTILINE)


class Counts:
    """What went through, for all connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {"bytes": 0, "connections": 0, "open": 0, "most_open": 0, "requests": 0, "blob_requests": 0}

    def add(self, **by: int) -> None:
        """Add to the named counts."""
        with self._lock:
            for name, amount in by.items():
                self._counts[name] += amount
            self._counts["most_open"] = max(self._counts["most_open"], self._counts["open"])

    def told(self) -> bytes:
        """The counts as JSON."""
        with self._lock:
            return json.dumps(self._counts).encode()


def main() -> None:
    """See the module."""
    ip, port, to_ip, to_port, control = sys.argv[1:6]
    rate = int(sys.argv[6]) if len(sys.argv) > 6 else 0
    counts = Counts()
    teller = socket.socket(socket.AF_UNIX)
    teller.bind(control)
    teller.listen()
    threading.Thread(target=_tell, args=(teller, counts), daemon=True).start()
    server = socket.create_server((ip, int(port)), backlog=512)
    while True:
        client, _ = server.accept()
        threading.Thread(target=_relay, args=(client, (to_ip, int(to_port)), rate, counts), daemon=True).start()


def _tell(teller: socket.socket, counts: Counts) -> None:
    while True:
        asker, _ = teller.accept()
        with asker, contextlib.suppress(OSError):
            asker.sendall(counts.told())


def _relay(client: socket.socket, to: tuple[str, int], rate: int, counts: Counts) -> None:
    counts.add(connections=1, open=1)
    try:
        with client, socket.create_connection(to) as registry:
            for end in (client, registry):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, _UNSENT)
            if rate:
                client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
            asking = threading.Thread(target=_ask, args=(client, registry, counts), daemon=True)
            asking.start()
            _answer(registry, client, counts)
            asking.join()
    except OSError:
        pass
    finally:
        counts.add(open=-1)


def _ask(client: socket.socket, registry: socket.socket, counts: Counts) -> None:
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            for request in _REQUEST.finditer(data):
                counts.add(requests=1, blob_requests=int(b"/blobs/" in request[2]))
            registry.sendall(data)
    _hang_up(client, registry)


def _answer(registry: socket.socket, client: socket.socket, counts: Counts) -> None:
    reading, writing = os.pipe()
    try:
        while count := os.splice(registry.fileno(), writing, _BLOCK):
            while count:
                moved = os.splice(reading, client.fileno(), count)
                counts.add(bytes=moved)
                count -= moved
    except OSError:
        pass
    finally:
        os.close(reading)
        os.close(writing)
        _hang_up(client, registry)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
