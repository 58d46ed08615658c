"""Whether the node's container runtimes ask this agent first: containerd's, CRI-O's and Docker's files, only read.

Sources: containerd docs/hosts.md and docs/cri/registry.md; containers-registries.conf(5); Docker's daemon.json.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mirror.doctor.finding import Finding, note, ok, wrong
from mirror.errors import ConfigInvalid
from mirror.setup import containerd as setup
from mirror.setup import criconfig

_SIGNS = {
    "containerd": ("etc/containerd", "run/containerd/containerd.sock"),
    "cri-o": ("etc/crio", "run/crio/crio.sock"),
    "docker": ("etc/docker", "run/docker.sock"),
}
"""What tells that a runtime is there, below the host's root."""

_UNITS = {"containerd": "containerd", "cri-o": "crio", "docker": "docker"}


def runtimes_of(root: Path) -> list[str]:
    """The runtimes that the node has."""
    return [name for name, signs in _SIGNS.items() if any((root / sign).exists() for sign in signs)]


def check(root: Path, certs: Path, config: Path, mirror: str) -> Iterator[Finding]:
    """Every runtime of the node below *root*. *certs* and *config* are containerd's, with *root* in front."""
    found = runtimes_of(root)
    if not found:
        yield note("runtime", f"no containerd, CRI-O or Docker below {root}: name the node's root with --host-root")
    for name in found:
        match name:
            case "containerd":
                yield from _containerd(root, certs, config, mirror)
            case "cri-o":
                yield from _crio(root, mirror)
            case _:
                yield from _docker(root, mirror)
        yield from _proxied(root, name, mirror)


# --------------------------------------------------------------------------- containerd


def _containerd(root: Path, certs: Path, config: Path, mirror: str) -> Iterator[Finding]:
    wanted = setup.seen_by_containerd(certs, root)
    add = f'set registry config_path = "{wanted}" in {config}, then systemctl restart containerd'
    try:
        files = setup.config_files(config, root)
        read = criconfig.read(files)
    except FileNotFoundError:
        yield wrong("containerd", f"{config} is not there, so containerd reads no hosts.toml", add)
        return
    except OSError as problem:
        yield wrong("containerd", f"{config} cannot be read ({problem.strerror})", "run shoal doctor as root")
        return
    except ConfigInvalid as problem:
        yield wrong("containerd", str(problem), f"containerd config dump, and mend {config}")
        return
    before = 0
    for finding in _config(files, read, wanted, add, config):
        before += finding.level == "wrong"
        yield finding
    for finding in _hosts(certs, mirror):
        before += finding.level == "wrong"
        yield finding
    if not before:
        yield ok("containerd", f"asks {mirror} first")


def _config(
    files: list[dict[str, object]], read: criconfig.CriConfig, wanted: str, add: str, config: Path
) -> Iterator[Finding]:
    paths = [os.path.normpath(path) for path in read.config_path]
    if not paths:
        yield wrong("containerd", f"{config} sets no registry config_path, so no hosts.toml is read", add)
    elif os.path.normpath(wanted) not in paths:
        named = ":".join(paths)
        yield wrong(
            "containerd",
            f"config_path is {named}, and Shoal's files are in {wanted}",
            f"shoal containerd install --containerd-certs {paths[0]}",
        )
    if read.old_mirrors:
        yield wrong(
            "containerd",
            f"{config} has registry.mirrors, which containerd refuses beside config_path",
            f"move each of them to {wanted}/HOST/hosts.toml, then systemctl restart containerd",
        )
    local, transfer = _transfer(files)
    if len(paths) > 1 and not local and _version(files) >= 3:
        yield wrong(
            "containerd",
            "config_path names several directories, which the transfer service takes for one name",
            f'set config_path = "{wanted}" alone (or use_local_image_pull = true), then systemctl restart containerd',
        )
    if transfer and os.path.normpath(transfer) != os.path.normpath(wanted):
        yield wrong(
            "containerd",
            f"the transfer service has a config_path of its own, {transfer}",
            f'set config_path = "{wanted}" below io.containerd.transfer.v1.local, then systemctl restart containerd',
        )
    if read.discards_layers:
        yield note("containerd", "discard_unpacked_layers is on: let --store-budget hold the images in use")


def _transfer(files: list[dict[str, object]]) -> tuple[bool, str]:
    """Whether CRI pulls without the transfer service (2.1+), and the directory that service is told."""
    local, path = False, ""
    for parsed in files:
        plugins = _table(parsed, "plugins")
        local = _table(plugins, "io.containerd.cri.v1.images").get("use_local_image_pull", local) is True
        own = _table(plugins, "io.containerd.transfer.v1.local").get("config_path")
        path = own if isinstance(own, str) else path
    return local, path


def _version(files: list[dict[str, object]]) -> int:
    found = files[0].get("version", 1) if files else 1
    return found if isinstance(found, int) else 1


def _hosts(certs: Path, mirror: str) -> Iterator[Finding]:
    install = f"shoal containerd install --containerd-certs {certs}"
    shown = setup.show(certs)
    if not any(item.host == setup.EVERY and mirror in item.hosts for item in shown):
        named = [item.host for item in shown if mirror in item.hosts]
        if not named:
            yield wrong("containerd", f"no hosts.toml below {certs} names {mirror}", install)
            return
        yield note("containerd", f"only {', '.join(named[:5])} come to the agent; the other registries do not")
    for item in shown:
        if item.problem:
            yield wrong("containerd", f"{certs / item.host / 'hosts.toml'} {item.problem}", f"mend it, then {install}")
        elif mirror not in item.hosts:
            yield wrong(
                "containerd",
                f"{certs / item.host / 'hosts.toml'} hides _default and does not name {mirror}",
                f"{install} {item.host}",
            )
        elif item.hosts[0] != mirror:
            yield wrong(
                "containerd",
                f"{certs / item.host / 'hosts.toml'} asks {item.hosts[0]} before {mirror}",
                f"take the entry of {mirror} out, then {install} {item.host}",
            )


# --------------------------------------------------------------------------- CRI-O and podman


def _crio(root: Path, mirror: str) -> Iterator[Finding]:
    place = urlsplit(mirror).netloc
    folder = root / "etc/containers"
    say = f"write {folder}/registries.conf.d/50-shoal.conf as docs/clients.md says, then systemctl reload crio"
    registries: dict[str, Mapping[str, Any]] = {}
    for path in [folder / "registries.conf", *sorted((folder / "registries.conf.d").glob("*.conf"))]:
        try:
            parsed = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
            yield wrong("cri-o", f"{path} cannot be read: {problem}", f"mend {path}, then systemctl reload crio")
            return
        if "registries" in parsed:
            yield wrong("cri-o", f"{path} has the old form [registries.…], which knows no mirrors", say)
            return
        for entry in parsed.get("registry", []):
            if isinstance(entry, dict):
                registries[str(entry.get("prefix") or entry.get("location"))] = entry
    ours = {name: entry for name, entry in registries.items() if place in str(entry.get("mirror", ""))}
    if not ours:
        yield wrong("cri-o", f"no registry has {place} for a mirror", say)
        return
    faults = [finding for name, entry in ours.items() for finding in _mirrors(name, entry, place, say)]
    yield from faults
    if not faults:
        yield ok("cri-o", f"asks {place} first for {', '.join(sorted(ours)[:5])}")


def _mirrors(name: str, entry: Mapping[str, Any], place: str, say: str) -> Iterator[Finding]:
    mirrors = [one for one in entry.get("mirror", []) if isinstance(one, dict)]
    first = next((n for n, one in enumerate(mirrors) if str(one.get("location", "")).startswith(place)), 0)
    own = mirrors[first]
    location = str(own.get("location", ""))
    if first:
        yield wrong("cri-o", f"{name} asks {mirrors[0].get('location')} before {place}", f"put {place} first; {say}")
    if own.get("insecure") is not True:
        yield wrong("cri-o", f"the mirror of {name} is asked by TLS, and the agent has none on loopback", say)
    expected = f"{place}/{name.replace(':', '_')}"
    if name != "docker.io" and not location.startswith(expected):
        yield wrong("cri-o", f"the mirror of {name} is {location}, which does not say the registry: {expected}", say)


# --------------------------------------------------------------------------- Docker


def _docker(root: Path, mirror: str) -> Iterator[Finding]:
    path = root / "etc/docker/daemon.json"
    mend = f'add {{"registry-mirrors": ["{mirror}"]}} to {path}, then systemctl restart docker'
    try:
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        parsed = {}
    except (OSError, ValueError) as problem:
        yield wrong("docker", f"{path} cannot be read: {problem}", mend)
        return
    found = parsed.get("registry-mirrors", []) if isinstance(parsed, dict) else []
    mirrors = [str(one).rstrip("/") for one in found] if isinstance(found, list) else []
    if mirror not in mirrors:
        yield wrong("docker", f"{path} does not name {mirror} among its registry-mirrors", mend)
    elif mirrors[0] != mirror:
        yield wrong("docker", f"Docker asks {mirrors[0]} before {mirror}", f"put {mirror} first in {path}, and restart")
    else:
        yield ok("docker", f"asks {mirror} first for Docker Hub; it has no mirrors for other registries")


# --------------------------------------------------------------------------- proxies of the runtime


def _proxied(root: Path, name: str, mirror: str) -> Iterator[Finding]:
    """Go's clients never ask a proxy for loopback; an agent at another address needs NO_PROXY."""
    host = urlsplit(mirror).hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return
    unit = _UNITS[name]
    folder = root / f"etc/systemd/system/{unit}.service.d"
    text = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.conf")))
    lines = [line.partition("=")[2].strip(" \"'") for line in text.splitlines() if line.startswith("Environment=")]
    words = dict(line.split("=", 1) for line in lines if "=" in line)
    upper = {key.upper(): value for key, value in words.items()}
    if "HTTP_PROXY" in upper and host not in upper.get("NO_PROXY", "").split(","):
        yield wrong(
            "proxy",
            f"{name} asks its HTTP_PROXY for {mirror}, and a proxy does not reach this node's agent",
            f"add {host} to NO_PROXY in {folder}, then systemctl daemon-reload and systemctl restart {unit}",
        )


def _table(parsed: Mapping[str, object], name: str) -> Mapping[str, Any]:
    found = parsed.get(name, {})
    return found if isinstance(found, dict) else {}
