"""nginx: a static file server (the yardstick for sending finished blobs) or a slice cache in front of an upstream."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.parts.procs import Process, free_port

CONFIG = """\
daemon off; worker_processes {workers}; pid {base}/pid; error_log stderr info;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  types {{}} default_type application/octet-stream;
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f;
  uwsgi_temp_path {base}/u; scgi_temp_path {base}/s;
  {cache}
  server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}
}}
"""

SLICE_CACHE = "proxy_cache_path {base}/cache keys_zone=slices:10m max_size=10g;"
SLICE = (
    "slice {size}; proxy_cache slices; proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range;"
    " proxy_http_version 1.1; proxy_cache_valid 200 206 1h; proxy_cache_lock on; proxy_pass {upstream};"
)


@dataclass
class Nginx:
    """A running nginx. *root*: the directory it serves (not for a cache)."""

    port: int
    root: Path
    process: Process

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def static(directory: Path, *, name: str = "nginx", workers: int = 1) -> AsyncIterator[Nginx]:
    """Serves the files under *directory*/*name*/root, with ranges."""
    base = directory / name
    root = base / "root"
    root.mkdir(parents=True)
    async with _nginx(base, f"root {root};", "", workers) as (port, part):
        yield Nginx(port, root, part)


@asynccontextmanager
async def slice_cache(
    upstream: str, directory: Path, *, name: str = "nginx-slice", size: str = "1m", workers: int = 1
) -> AsyncIterator[Nginx]:
    """A cache in front of *upstream* (URL) that asks for slices of *size*."""
    base = directory / name
    base.mkdir(parents=True)
    location = SLICE.format(size=size, upstream=upstream)
    async with _nginx(base, location, SLICE_CACHE.format(base=base), workers) as (port, part):
        yield Nginx(port, base, part)


@asynccontextmanager
async def _nginx(base: Path, location: str, cache: str, workers: int) -> AsyncIterator[tuple[int, Process]]:
    port = free_port()
    file = base / "nginx.conf"
    file.write_text(CONFIG.format(base=base, port=port, location=location, cache=cache, workers=workers))
    # the workers must read files of the tests' user, which may be root with a closed home
    user = "user root;" if os.geteuid() == 0 else ""
    argv = ["nginx", "-c", str(file), "-p", str(base), "-e", "stderr", "-g", user]
    part = Process(argv, name=base.name, log=base.parent / f"{base.name}.log")
    part.start()
    try:
        await part.says("start worker process ")
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
            answer.release()
        yield port, part
    finally:
        await part.stop()
