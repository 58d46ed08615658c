"""A blob store for streaming: nginx serves files with ranges, a counter in front says what left it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts import data
from tests.parts.counter import Counter, counter
from tests.parts.nginx import Nginx, static


@dataclass
class BlobServer:
    """Files behind a counter. Faults and limits are the counter's."""

    files: Nginx
    counter: Counter

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`; `?query` is accepted and ignored, as a signed URL's would be."""
        return self.counter.url

    def add(self, size: int, seed: int, *, path: str = "layers/sha256:{hex}") -> tuple[str, str]:
        """A file of *size* bytes; `{hex}` in *path* becomes its sha256. (URL, digest)."""
        rough = self.files.root / f".{seed}-{size}"
        digest = data.write(rough, size, seed)
        name = path.format(hex=digest.removeprefix("sha256:"))
        place = self.files.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        rough.rename(place)
        return f"{self.url}/{name}", digest


@asynccontextmanager
async def blob_server(directory: Path, *, name: str = "blobs") -> AsyncIterator[BlobServer]:
    """An empty blob server."""
    async with (
        static(directory, name=f"{name}-nginx") as files,
        counter(files.url, directory, name=f"{name}-counter") as front,
    ):
        yield BlobServer(files, front)
