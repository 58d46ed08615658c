"""One node's pull, as containerd does it: manifest by tag, then the layers, three at a time.

Reads one line of JSON (bench/pulls.py) from standard input, prints `ready`, reads the instant to
start at (monotonic seconds), works, prints one line of JSON. Walks its hosts on 404, 5xx and refused
connections; resumes a body that was cut short. Standard library only, run under `python -I -S`: it
starts fast and costs little beside what is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_BLOCK = 256 * 1024
_SAMPLE = 0.05
"""Seconds between two points of the completion curve."""
_RESUMES = 3


class Unserved(Exception):
    """No host gave what was asked; the text says what the last one did."""


class NextHost(Exception):
    """This host does not have it."""


class Tally:
    """Bytes over time, from all threads."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.first: float | None = None
        self.total = 0
        self.samples: list[tuple[float, int]] = [(0.0, 0)]
        self.fell_back = 0
        self.resumed = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """*count* more body bytes have come."""
        now = time.monotonic() - self.start
        with self._lock:
            if self.first is None:
                self.first = now
            self.total += count
            if now - self.samples[-1][0] >= _SAMPLE:
                self.samples.append((round(now, 4), self.total))


def attempt(
    order: dict[str, Any], host: str, path: str, offset: int, accept: str, take: Callable[[memoryview], None]
) -> None:
    """Give the body at *path* from *offset* on to *take*. Raises NextHost, OSError, HTTPException."""
    url = urlsplit(host)
    buffer = bytearray(_BLOCK)
    link = http.client.HTTPConnection(url.netloc, timeout=order["timeout"])
    try:
        headers = {"Accept": accept, "User-Agent": "shoal-bench"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        link.request("GET", url.path + path + (f"?ns={order['ns']}" if order["ns"] else ""), headers=headers)
        answer = link.getresponse()
        if answer.status != (206 if offset else 200):
            raise NextHost(f"{host}{path}: {answer.status}")
        while count := answer.readinto(buffer):
            take(memoryview(buffer)[:count])
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
    except ConnectionRefusedError:
        raise NextHost(f"{host}{path}: refused") from None
    finally:
        link.close()


def fetch(
    order: dict[str, Any], path: str, take: Callable[[memoryview], None], tally: Tally, accept: str = "*/*"
) -> None:
    """The body at *path* to *take*, from the first host that has it. Raises Unserved."""
    done = 0

    def taken(part: memoryview) -> None:
        nonlocal done
        done += len(part)
        take(part)

    why = "no host"
    for place, host in enumerate(order["hosts"]):
        tally.fell_back += place > 0
        fruitless = 0
        while fruitless < _RESUMES:
            before = done
            try:
                attempt(order, host, path, done, accept, taken)
                return
            except NextHost as error:
                why = str(error)
                break
            except (OSError, http.client.HTTPException) as error:
                why = f"{host}{path}: {error!r}"
                tally.resumed += 1
                fruitless = fruitless + 1 if done == before else 0
    raise Unserved(why)


def pull(order: dict[str, Any], tally: Tally) -> None:
    """Manifest, then the layers that the node lacks. Raises Unserved."""
    manifest = bytearray()
    fetch(order, f"/v2/{order['repository']}/manifests/{order['tag']}", manifest.extend, Tally(tally.start), ACCEPT)
    layers = [layer["digest"] for layer in json.loads(manifest)["layers"]]

    def layer(digest: str) -> None:
        hasher = hashlib.sha256()

        with contextlib.ExitStack() as stack:
            keep = order["keep"]
            kept = stack.enter_context(Path(keep, digest).open("wb", buffering=0)) if keep else None

            def take(part: memoryview) -> None:
                tally.add(len(part))
                if order["check"]:
                    hasher.update(part)
                if kept is not None:
                    kept.write(part)

            fetch(order, f"/v2/{order['repository']}/blobs/{digest}", take, tally)
        if order["check"] and "sha256:" + hasher.hexdigest() != digest:
            raise Unserved(f"a complete body with wrong bytes: {digest}")

    with ThreadPoolExecutor(order["parallel"]) as pool:
        list(pool.map(layer, [digest for digest in layers if digest not in order["skip"]]))


def read(order: dict[str, Any], tally: Tally) -> list[float]:
    """Random ranges over keep-alive connections: seconds of each. Raises Unserved."""
    chance = random.Random(order["seed"])
    starts = [chance.randrange(order["size"] - order["length"]) for _ in range(order["count"])]
    times: list[float] = []
    lock = threading.Lock()
    url = urlsplit(order["hosts"][0])

    def reader(mine: list[int]) -> None:
        link = http.client.HTTPConnection(url.netloc, timeout=order["timeout"])
        for start in mine:
            begun = time.monotonic()
            stop = start + order["length"] - 1
            link.request("GET", url.path + order["path"], headers={"Range": f"bytes={start}-{stop}"})
            answer = link.getresponse()
            body = answer.read()
            if answer.status != 206 or len(body) != order["length"]:
                raise Unserved(f"{order['path']}: {answer.status}, {len(body)} bytes")
            tally.add(len(body))
            with lock:
                times.append(time.monotonic() - begun)
        link.close()

    with ThreadPoolExecutor(order["parallel"]) as pool:
        list(pool.map(reader, [starts[place :: order["parallel"]] for place in range(order["parallel"])]))
    return times


def wait_for(host: str, port: int, deadline: float) -> None:
    """Return when somebody listens there. Raises Unserved at the deadline (monotonic)."""
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unserved(f"nobody listens on {host}:{port}: {error}") from None
            time.sleep(0.02)


def main() -> None:
    """See the module."""
    order = json.loads(sys.stdin.readline())
    if order["kind"] == "wait":
        wait_for(order["host"], order["port"], time.monotonic() + order["timeout"])
        return
    print("ready", flush=True)
    at = float(sys.stdin.readline()) + order["delay"]
    time.sleep(max(0.0, at - time.monotonic()))
    tally = Tally(at)
    times: list[float] = []
    error = ""
    try:
        if order["kind"] == "pull":
            pull(order, tally)
        else:
            times = read(order, tally)
    except (Unserved, OSError, http.client.HTTPException) as problem:
        error = str(problem) or repr(problem)
    end = time.monotonic() - tally.start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "seconds": end,
        "first_byte": tally.first,
        "bytes": tally.total,
        "samples": [*tally.samples, (round(end, 4), tally.total)],
        "fell_back": tally.fell_back,
        "resumed": tally.resumed,
        "times": times,
        "cpu": usage.ru_utime + usage.ru_stime,
        "error": error,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
