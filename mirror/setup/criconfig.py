"""What containerd's own configuration says about registries: pure reading of config.toml, versions 1 to 3."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mirror.errors import ConfigInvalid

DEFAULT_ROOT = "/var/lib/containerd"

_IMAGES = {
    1: ("cri",),
    2: ("io.containerd.grpc.v1.cri",),
    3: ("io.containerd.cri.v1.images",),
}
"""Where `registry` and the image settings live, by version of the file (containerd docs/cri/config.md)."""


class CriConfig(NamedTuple):
    """What matters to a mirror."""

    config_path: tuple[str, ...]
    """Directories with one directory per registry; empty: hosts.toml files are not looked at."""

    discards_layers: bool
    """Layers leave the content store after unpacking: then only Shoal's own store can offer them."""

    old_mirrors: bool
    """The `mirrors` table of old is in use; containerd refuses it together with `config_path`."""

    root: str
    """containerd's state directory."""


def parse(text: str) -> dict[str, Any]:
    """One file. Raises ConfigInvalid."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigInvalid(f"is no TOML: {problem}") from None


def imports_of(parsed: Mapping[str, Any]) -> list[str]:
    """Glob patterns of further files, which win over this one."""
    found = parsed.get("imports", [])
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def read(files: Sequence[Mapping[str, Any]]) -> CriConfig:
    """The settings of *files*, each of which wins over those before it."""
    config_path: tuple[str, ...] = ()
    discards = old = False
    root = DEFAULT_ROOT
    for parsed in files:
        version = parsed.get("version", 1)
        if isinstance(parsed.get("root"), str) and parsed["root"]:
            root = parsed["root"]
        plugins = _table(parsed, "plugins")
        names = _IMAGES.get(version, _IMAGES[3]) if isinstance(version, int) else _IMAGES[3]
        for name in names:
            cri = _table(plugins, name)
            registry = _table(cri, "registry")
            if isinstance(registry.get("config_path"), str):
                config_path = tuple(part for part in registry["config_path"].split(":") if part)
            old = old or bool(_table(registry, "mirrors"))
            # Version 3 has the key beside `registry`, older ones below `containerd`.
            for table in (cri, _table(cri, "containerd")):
                if isinstance(table.get("discard_unpacked_layers"), bool):
                    discards = table["discard_unpacked_layers"]
    return CriConfig(config_path, discards, old, root)


def _table(parsed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parsed.get(name, {})
    return found if isinstance(found, dict) else {}
