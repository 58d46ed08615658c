"""A real containerd with own root, state and socket; pulls through `ctr` and through the CRI plugin.

The native snapshotter needs no kernel feature, and a pull needs no runc: layers are unpacked by
containerd itself. One config serves both ways: `ctr` is given the hosts directory as a flag, the CRI plugin
finds the same directory as its `config_path`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from tests.parts.procs import Process, run

CONFIG = """\
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.internal.v1.opt"]
[grpc]
address = "{base}/c.sock"
[ttrpc]
address = "{base}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
disable_tcp_service = true
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
discard_unpacked_layers = {discard}
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{base}/certs.d"
"""

PULL = "/runtime.v1.ImageService/PullImage"
"""CRI's method: PullImageRequest{1: ImageSpec{1: string image}} -> PullImageResponse{1: string image_ref}."""


@dataclass
class Containerd:
    """A running daemon."""

    base: Path
    process: Process

    @property
    def socket(self) -> Path:
        """Its gRPC socket."""
        return self.base / "c.sock"

    @property
    def hosts(self) -> Path:
        """Its `certs.d`."""
        return self.base / "certs.d"

    @property
    def content(self) -> Path:
        """Where its blobs are, one file per digest, named by the hex."""
        return self.base / "root/io.containerd.content.v1.content/blobs/sha256"

    def mirror(self, registry: str, agent: str, *, fallback: bool = True) -> None:
        """Send pulls of `registry/...` through the agent at URL *agent* first. *fallback* False: and nowhere
        else, so that a pull that succeeds came through the agent."""
        place = self.hosts / registry
        place.mkdir(parents=True, exist_ok=True)
        server = f"http://{registry}" if fallback else agent
        lines = [f'server = "{server}"', f'[host."{agent}"]', 'capabilities = ["pull", "resolve"]']
        (place / "hosts.toml").write_text("\n".join(lines) + "\n")

    async def ctr(self, *words: str, deadline: float = 60.0, namespace: str = "default") -> str:
        """Output of `ctr`. Raises PartFailed if it fails."""
        return await run(["ctr", "-a", str(self.socket), "-n", namespace, *words], deadline=deadline)

    async def pull(self, name: str, *, deadline: float = 60.0) -> None:
        """`ctr images pull --hosts-dir` of `registry/repository:tag` or `...@digest` for linux/amd64."""
        words = ["images", "pull", "--hosts-dir", str(self.hosts), "--snapshotter", "native"]
        # a loopback registry is plain HTTP by ctr's default
        await self.ctr(*words, "--platform", "linux/amd64", name, deadline=deadline)

    async def cri_pull(self, name: str, *, deadline: float = 60.0) -> str:
        """Pull as kubelet does, by the CRI plugin; the image reference it answers with.

        The two messages have one string field each, so they are spelled by hand instead of by generated code.
        """
        inner = _field(name.encode())
        async with grpc.aio.insecure_channel(f"unix://{self.socket}") as channel:
            call = channel.unary_unary(PULL, request_serializer=bytes, response_deserializer=bytes)
            answer = await call(_field(inner), timeout=deadline)
        count, start = _varint(answer, 1)
        return bytes(answer[start : start + count]).decode()

    async def images(self, *, namespace: str = "default") -> dict[str, str]:
        """Name -> digest of the images it knows."""
        table = (await self.ctr("images", "ls", namespace=namespace)).splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in table}

    async def blobs(self, *, namespace: str = "default") -> set[str]:
        """Digests in its content store."""
        return set((await self.ctr("content", "ls", "-q", namespace=namespace)).split())

    async def lost(self, digest: str, *, deadline: float = 30.0) -> None:
        """Until its garbage collection has taken the blob away. Raises TimeoutError at the deadline (seconds)."""
        path = self.content / digest.removeprefix("sha256:")
        async with asyncio.timeout(deadline):
            while path.exists():  # noqa: ASYNC110 - another process's disk: no event of ours
                await asyncio.sleep(0.02)

    async def forget(self, names: Iterable[str], *, namespace: str = "default") -> None:
        """Remove images and, before this returns, everything that only they held."""
        await self.ctr("images", "rm", "--sync", *names, namespace=namespace)


def _field(content: bytes) -> bytes:
    """Protocol-buffer field 1, length-delimited."""
    head, count = bytearray([0x0A]), len(content)
    while count > 0x7F:
        head.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes(head) + bytes([count]) + content


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(value, offset behind it)."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


@asynccontextmanager
async def containerd(
    directory: Path, *, name: str = "containerd", discard_unpacked_layers: bool = False
) -> AsyncIterator[Containerd]:
    """A containerd whose files are all under *directory*/*name*."""
    base = directory / name
    (base / "certs.d").mkdir(parents=True)
    file = base / "config.toml"
    file.write_text(CONFIG.format(base=base, discard=str(discard_unpacked_layers).lower()))
    part = Process(["containerd", "--config", str(file)], name=name, log=directory / f"{name}.log")
    part.start()
    try:
        await part.says("containerd successfully booted")
        yield Containerd(base, part)
    finally:
        await part.stop()
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)
