"""The programs of a cluster, compiled once from pinned Go modules and kept.

`python -m tests.parts.kubecluster.binaries` builds all of them, with `helm` helm alone. The directory's name is a
digest of the sources and of Go's version: another pin is another directory, and an old one stays usable.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.parts.procs import guard

SOURCE = Path(__file__).parents[2] / "cluster"
"""The Go module: `go.mod` pins every version."""

PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
"""Names that the one binary `kube` answers to."""

PACKAGES = {"pause": "./pause", "coredns": "./dns", "helm": "helm.sh/helm/v3/cmd/helm", "kube": "."}
"""Binary -> package, the quick ones first."""

FOR_SCALE = {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}
"""What only `make bench-cluster` needs. It has a module of its own, `scale`: what it requires is not Kubernetes'."""


def cache() -> Path:
    """Where builds survive a session: `$SHOAL_CLUSTER_CACHE`, else `shoal-cluster` in the user's cache directory."""
    given = os.environ.get("SHOAL_CLUSTER_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "shoal-cluster"


def go() -> str | None:
    """The Go command of this machine."""
    return shutil.which("go") or shutil.which("/usr/local/go/bin/go")


def kubernetes_version() -> str:
    """The pinned version, `v1.34.4`."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (SOURCE / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def directory() -> Path:
    """Where the binaries of these sources are, or will be."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCE.rglob("*.go"), SOURCE / "go.mod", SOURCE / "go.sum"]):
        digest.update(f"{path.relative_to(SOURCE)}\0".encode() + path.read_bytes())
    return cache() / f"bin-{kubernetes_version()}-{digest.hexdigest()[:12]}"


def kwok() -> Path:
    """Where kwok is, or will be."""
    found = re.search(r"^\s*sigs.k8s.io/kwok (v\S+)", (SOURCE / "scale" / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return cache() / f"kwok-{found[1]}"


def built(*names: str) -> bool:
    """Whether the binaries (all that a cluster needs, if none is named) are there."""
    return all((directory() / name).exists() for name in names or PACKAGES)


def build(*names: str) -> float:
    """Compile what is missing of *names* (all that a cluster needs, if none is given). Seconds that it took.

    Two builds at once are one: the second waits. Raises RuntimeError without Go, CalledProcessError if it fails.
    """
    begun, target = time.monotonic(), directory()
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names or PACKAGES:
            if name in FOR_SCALE and not kwok().exists():
                _compile(FOR_SCALE[name], kwok(), SOURCE / "scale")
            elif name in PACKAGES and not (target / name).exists():
                _compile(PACKAGES[name], target / name, SOURCE)
        if (target / "kube").exists():
            for part in PARTS:
                (target / part).unlink(missing_ok=True)
                (target / part).symlink_to("kube")
    return time.monotonic() - begun


def _compile(package: str, target: Path, module: Path) -> None:
    """One binary: without debugging data, which costs a tenth of the time and half of the size."""
    command = go()
    if command is None:
        raise RuntimeError("Go is not installed: https://go.dev/dl, version 1.26 or newer")
    begun = time.monotonic()
    version = kubernetes_version()
    minor = version.split(".")[1]
    stamped = {
        "k8s.io/component-base/version.gitVersion": version,
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/client-go/pkg/version.gitVersion": version,
    }
    flags = "-s -w " + " ".join(f"-X {key}={value}" for key, value in stamped.items())
    words = [*guard(), command, "build", "-mod=readonly", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", flags]
    rough = target.with_name(f".{target.name}")
    subprocess.run(
        [*words, "-o", str(rough), package], cwd=module, env=dict(os.environ) | {"CGO_ENABLED": "0"}, check=True
    )
    rough.rename(target)
    print(f"{target.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(f"{build(*sys.argv[1:]):.0f} s: {directory()}")
    except (RuntimeError, subprocess.CalledProcessError) as problem:
        sys.exit(f"{', '.join(sys.argv[1:]) or 'the cluster'}: {problem}")
