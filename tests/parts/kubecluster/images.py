"""Images without a container engine: Shoal's by its own Dockerfile, a node's pause, and workloads to pull.

`podman build` takes the Dockerfile as it is. Its base image comes from a registry that a test must not need, so a
stand-in of the same name is made from Debian's packages: the Debian and the Python that the real one has.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

from tests.parts.kubecluster.binaries import cache, directory
from tests.parts.kubecluster.node import PAUSE
from tests.parts.procs import guard, run
from tests.parts.registry import layer_tar

ROOT = Path(__file__).parents[3]
DEBIAN = {"3.11": "bookworm", "3.13": "trixie"}
"""Python of the Dockerfile -> the Debian release that has it."""

PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates")
UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache/apt")
"""Directories of the base that are emptied: nobody reads them in a container."""

APART = (*guard(), "nice", "-n", "5", "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child")
"""How a command is run that mounts things and starts many processes: with it, however it ends, they are gone."""

NAME = "localhost/shoal:cluster"
"""What the built image is called in the nodes' containerd."""


def python_version() -> str:
    """The Python that the Dockerfile asks for, `3.13`."""
    found = re.search(r"^ARG PYTHON=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def podman(*words: str) -> list[str]:
    """A podman with a store of its own in the cache directory; layers are plain directories, so no kernel matters."""
    store = cache() / "podman"
    return ["podman", "--root", f"{store}/store", "--runroot", f"{store}/run", "--storage-driver", "vfs", *words]


def built() -> bool:
    """Whether the archive of this tree's image is there."""
    return _archive().exists()


def _archive() -> Path:
    return cache() / f"shoal-{_sources()}.tar"


async def shoal_image() -> Path:
    """An archive of Shoal's image, built from the Dockerfile of this tree; built again only when a source changed."""
    archive = _archive()
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".image").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not archive.exists():
            await asyncio.to_thread(_forget)
            await _base()
            volume = ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
            build = [
                "build",
                "--isolation",
                "chroot",
                "--network",
                "host",
                "--format",
                "docker",
                "--pull-never",
                "--layers=false",
            ]
            await run([*APART, *podman(*build, *volume, "--tag", NAME, str(ROOT))], deadline=900)
            rough = archive.with_suffix(".new")
            rough.unlink(missing_ok=True)
            await run(podman("save", "--format", "docker-archive", "--output", str(rough), NAME), deadline=300)
            rough.rename(archive)
            for old in cache().glob("shoal-*.tar"):
                if old != archive:
                    old.unlink()
            await run(podman("image", "prune", "--force"), deadline=120)
    return archive


def forget() -> None:
    """Take away what a build that was killed left in the cache, unless another one is at work there."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".image").open("w") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _forget()


def _forget() -> None:
    """The lock is this process': no build is at work."""
    for left in (*cache().glob("base-*"), *cache().glob("shoal-*.new")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()


async def _base() -> None:
    """Import the stand-in of the Dockerfile's base image, unless podman has it."""
    version = python_version()
    name = f"docker.io/library/python:{version}-slim"
    known = await run(podman("images", "--quiet", "--filter", f"reference={name}"), deadline=60)
    if known.strip():
        return
    tree = cache() / f"base-{version}-{os.getpid()}"
    try:
        packages = f"--include={','.join(PACKAGES)}"
        release = DEBIAN[version]
        await run([*APART, "debootstrap", "--variant=minbase", packages, release, str(tree)], deadline=900)
        await asyncio.to_thread(_slim, tree)
        packed = cache() / f"base-{version}.tar"
        await run(["tar", "-C", str(tree), "-cf", str(packed), "."], deadline=300)
        await run(podman("import", "--quiet", str(packed), name), deadline=300)
        packed.unlink()
    finally:
        await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)


def _slim(tree: Path) -> None:
    """What makes Debian's Python look as it does in the official image."""
    for name in UNUSED:
        shutil.rmtree(tree / name, ignore_errors=True)
    (tree / "usr/bin/python").unlink(missing_ok=True)
    (tree / "usr/bin/python").symlink_to("python3")
    for mark in tree.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()


def _sources() -> str:
    """A digest of everything that the Dockerfile copies, and of itself."""
    digest = hashlib.sha256()
    names = ["Dockerfile", "pyproject.toml", "README.md", "LICENSE"]
    paths = [ROOT / name for name in names]
    for package in ("swarm", "mirror", "tracker"):
        paths += [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def pause_image(base: Path) -> Path:
    """An archive of the image of a pod's first process."""
    path = base / "pause.tar"
    layer = layer_tar({"pause": (directory() / "pause").read_bytes()}, mode=0o755)
    path.write_bytes(docker_archive(PAUSE, layer, {"Entrypoint": ["/pause"]}))
    return path


def docker_archive(name: str, layer: bytes, config: dict[str, object]) -> bytes:
    """An archive of one layer that `ctr images import` takes."""
    diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    described = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    }
    text = json.dumps(described).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry, content in (
            (config_name, text),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            told = tarfile.TarInfo(entry)
            told.size = len(content)
            archive.addfile(told, io.BytesIO(content))
    return out.getvalue()
