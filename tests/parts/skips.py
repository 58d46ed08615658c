"""Why tests were skipped, as one line per kind that says how to have them run. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

LACKS = "this machine lacks "
"""How a reason begins that names missing commands."""

PACKAGES = {
    "docker-registry": "docker-registry", "containerd": "containerd", "ctr": "containerd", "skopeo": "skopeo",
    "podman": "podman", "nginx": "nginx", "aria2c": "aria2", "chromium": "chromium", "chromedriver": "chromium-driver",
    "ip": "iproute2", "tc": "iproute2", "httpdirfs": "httpdirfs", "mke2fs": "e2fsprogs", "mount": "mount",
    "umount": "mount", "nbdkit": "nbdkit", "nbdcopy": "libnbd-bin", "promtool": "prometheus",
    "prometheus": "prometheus", "runc": "runc", "debootstrap": "debootstrap", "iptables": "iptables",
    "conntrack": "conntrack", "tcpdump": "tcpdump", "containernetworking-plugins": "containernetworking-plugins",
}  # fmt: skip
"""The Debian package of each command that tests use."""

_OTHER = {
    "helm": "install Go or helm; the tests build helm where Go is",
    "actionlint": "install Go or actionlint; `make release-check` builds it where Go is",
    "Kubernetes' binaries": "install Go 1.26; the tests compile them once, behind the others",
    "SHOAL_CLUSTER=0": "leave SHOAL_CLUSTER out",
    "SHOAL_CLUSTER_UNTIL": "give it more minutes",
    "SHOAL_CLUSTER_WITHIN": "give it more minutes, or `make cluster-build` before",
    "long: make cluster-test": "make cluster-test",
    "root's rights": "run `make test` as root",
    "mounting a tmpfs needs root": "run `make test` as root",
    "this machine has no /dev/fuse": "modprobe fuse, or give the container /dev/fuse",
    "only root may attach socket filters here": "run `make test` as root",
    "no IPv6 here": "give this machine IPv6 on its loopback device",
    "no loop device": "modprobe loop, or give the container /dev/loop-control and loop devices",
    "the package index cannot be reached": "let this machine reach a package index (PIP_INDEX_URL names one)",
}


def lacking(commands: Iterable[str]) -> str:
    """The reason of a test that needs *commands* which are not there."""
    return LACKS + ", ".join(commands)


def summary(reasons: Iterable[str]) -> list[str]:
    """One line for each kind of *reasons*, most frequent first: how many, why, and what to do."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    return [f"skipped {count}: {reason}. To run: {remedy(reason)}" for reason, count in counts.most_common()]


def remedy(reason: str) -> str:
    """What to do so that a test skipped for *reason* is run."""
    if not reason.startswith(LACKS):
        return next((what for start, what in _OTHER.items() if reason.startswith(start)), "see the test's own reason")
    missing = reason.removeprefix(LACKS).split(", ")
    packages = sorted({PACKAGES[name] for name in missing if name in PACKAGES})
    steps = [f"apt-get install {' '.join(packages)}"] if packages else []
    steps += [what for name, what in _OTHER.items() if name in missing]
    unknown = [name for name in missing if name not in PACKAGES and name not in _OTHER]
    steps += [f"install {' '.join(unknown)}"] if unknown else []
    return "; ".join(dict.fromkeys(steps))
