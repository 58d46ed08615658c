"""The registries file: TOML that says what is special about single registries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
from yarl import URL

from mirror.errors import Forbidden, RegistriesInvalid
from mirror.upstream.registries import DOCKER_HUB, HUB_URL, Registries, Registry, Tls, canonical
from swarm.base.flags import parse_duration


class _Entry(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    url: str | None = None
    override_path: bool = False
    plain_http: bool = False
    ca: str | list[str] = []
    client_certificate: str | None = None
    client_key: str | None = None
    tag_ttl: str | int | float | None = None
    connections: int | None = None
    rate: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    registry: dict[str, _Entry] = {}
    allow: list[str] | None = None
    deny: list[str] | None = None


def load(path: Path, general: Registries) -> Registries:
    """*general* with what the file at *path* says. Reads files. Raises RegistriesInvalid with one line.

    ```toml
    allow = ["docker.io", "registry.example:5000/team/*"]   # optional, in place of the general one
    deny = ["docker.io/secret/*"]                           # beside the general one
    [registry."registry.example:5000"]
    url = "https://10.0.0.7:5000"         # default: https:// and the name
    override-path = false                 # true: the url's path is where repositories begin, no /v2 is added
    plain-http = false
    ca = "/etc/ssl/example.pem"           # or a list
    client-certificate = "/etc/ssl/me.crt"
    client-key = "/etc/ssl/me.key"
    tag-ttl = "1m"                        # 0: always ask; "off": left to containerd
    connections = 8                       # requests under way at once
    rate = 20                             # requests per second; 0: no bound
    ```
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RegistriesInvalid(f"{path}: {error.strerror}") from None
    return parse(text, str(path), general)


def parse(text: bytes, name: str, general: Registries) -> Registries:
    """What `load` does with the file's content. *name*: the file, for messages."""
    try:
        file = msgspec.toml.decode(text, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RegistriesInvalid(f"{name}: {' '.join(str(error).split())}") from None
    configured = dict(general.configured)
    for host, entry in file.registry.items():
        try:
            registry = _registry(host, entry, general)
        except (Forbidden, ValueError) as error:
            raise RegistriesInvalid(f"{name}: registry {host!r}: {error}") from None
        configured[registry.host] = registry
    return replace(
        general,
        configured=configured,
        allow=general.allow if file.allow is None else tuple(file.allow),
        deny=(*general.deny, *(file.deny or ())),
    )


def _registry(host: str, entry: _Entry, general: Registries) -> Registry:
    plain = canonical(host)
    ca = [entry.ca] if isinstance(entry.ca, str) else entry.ca
    if entry.client_key is not None and entry.client_certificate is None:
        raise ValueError("client-key without client-certificate")
    tls = Tls(
        ca=tuple(Path(file) for file in ca),
        certificate=None if entry.client_certificate is None else Path(entry.client_certificate),
        key=None if entry.client_key is None else Path(entry.client_key),
    )
    for file in (*tls.ca, tls.certificate, tls.key):
        if file is not None and not file.is_file():
            raise ValueError(f"{file} is no file")
    if entry.connections is not None and entry.connections < 1:
        raise ValueError("connections must be at least 1")
    if entry.rate is not None and not entry.rate >= 0:
        raise ValueError("rate must not be negative")
    return Registry(
        host=plain,
        url=_url(plain, entry, general),
        override_path=entry.override_path,
        # What the file does not say holds as the flags have it, for this registry or for all.
        tag_ttl=general.registry(plain).tag_ttl if entry.tag_ttl is None else tag_ttl(entry.tag_ttl),
        tls=tls,
        connections=entry.connections,
        rate=entry.rate,
    )


def _url(host: str, entry: _Entry, general: Registries) -> str:
    if entry.override_path and entry.url is None:
        raise ValueError("override-path without url")
    if entry.url is None:
        if host == DOCKER_HUB:
            return HUB_URL
        return f"{'http' if entry.plain_http else general.scheme(host)}://{host}"
    if entry.plain_http:
        raise ValueError("url and plain-http: say http:// in the url instead")
    url = URL(entry.url)
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or url.user or url.password:
        raise ValueError("url must be http://HOST[:PORT][/PATH] or https://..., without user, query and fragment")
    return entry.url.rstrip("/")


def tag_ttl(value: str | float) -> float | None:
    """Seconds; None for `off`. Raises ValueError."""
    if isinstance(value, str):
        return None if value.lower() == "off" else parse_duration(value)
    if not 0 <= value < float("inf"):
        raise ValueError("tag-ttl must be a time such as 10s, 0, or off")
    return float(value)
