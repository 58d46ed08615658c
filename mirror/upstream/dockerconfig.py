"""Credentials from Docker's config.json: auths, credHelpers, credsStore; read again when a file changes.

Keys are matched as kubelet does it (pkg/credentialprovider/keyring.go): globs in the host's labels, the port
exactly, the path as a prefix; the longest match wins.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cachetools import TTLCache

from mirror.errors import DockerConfigInvalid, Forbidden
from mirror.upstream.auth import Credential
from mirror.upstream.plugins import DEADLINE, ask
from mirror.upstream.registries import DOCKER_HUB, canonical

LOG = logging.getLogger("shoal.mirror")

HELPER_LIFE = 300.0
"""Seconds for which a helper's answer is used: the shortest life of what cloud helpers give is an hour."""

RECHECK = 1.0
"""Seconds for which a look at the files' times is good: a busy agent must not stat for each request."""

_HELPERS_AT_ONCE = 4
_LARGEST_FILE = 1 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_SERVER = "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Key:
    """A key of `auths` or `credHelpers`, taken apart."""

    labels: tuple[str, ...]
    """The host's labels, each perhaps a glob."""

    port: str
    """Empty: the scheme's usual one."""

    path: tuple[str, ...]

    @property
    def specificity(self) -> tuple[int, int, int]:
        """Greater: the narrower match."""
        globs = sum("*" in label or "?" in label or "[" in label for label in self.labels)
        return (len(self.path), -globs, sum(map(len, self.labels)))

    def matches(self, host: str, repository: str) -> bool:
        """Whether the key covers *repository* at canonical registry *host*."""
        target = key_of(host)
        if self.port != target.port or len(self.labels) != len(target.labels):
            return False
        if not all(_label_fits(glob, label) for glob, label in zip(self.labels, target.labels, strict=True)):
            return False
        return tuple(repository.split("/"))[: len(self.path)] == self.path


def _label_fits(glob: str, label: str) -> bool:
    # An IPv6 address is no set of characters.
    return glob == label if label.startswith("[") else fnmatchcase(label, glob)


def key_of(text: str) -> Key:
    """The key that *text* spells: `host`, `*.host:port/path`, or an URL as Docker itself writes it."""
    rest = re.sub(r"^https?://", "", text.strip(), flags=re.IGNORECASE)
    place, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if parts and parts[0] in ("v1", "v2"):
        parts = parts[1:]  # https://index.docker.io/v1/: the version is no part of a repository's name
    with contextlib.suppress(Forbidden):  # a glob is no host, and stands for itself
        place = canonical(place)
    name, colon, port = place.lower().rpartition(":")
    if not colon or not port.isdigit():
        name, port = place.lower(), ""
    labels = (name,) if name.startswith("[") else tuple(name.split("."))
    return Key(labels, "" if port == "443" else port, tuple(parts))


@dataclass(frozen=True)
class Config:
    """One config.json."""

    auths: tuple[tuple[Key, Credential], ...] = ()
    helpers: tuple[tuple[Key, str, str], ...] = ()
    """(key, the text of the key, helper name)."""

    store: str = ""
    """Helper for everything else."""


def parse(text: bytes | str, name: str) -> Config:
    """The configuration in *text* (also the bare `auths` object of a kubernetes.io/dockercfg secret).

    Raises DockerConfigInvalid. *name*: the file, for messages.
    """
    try:
        document = json.loads(text)
    except ValueError:
        raise DockerConfigInvalid(f"{name}: not JSON") from None  # the parser's message would quote it
    if not isinstance(document, dict):
        raise DockerConfigInvalid(f"{name}: not a JSON object")
    if not document.keys() & {"auths", "credHelpers", "credsStore"} and _looks_like_auths(document):
        document = {"auths": document}
    document = {name: value for name, value in document.items() if value is not None}
    auths, helpers = document.get("auths", {}), document.get("credHelpers", {})
    store = document.get("credsStore", "")
    if not isinstance(auths, dict) or not isinstance(helpers, dict) or not isinstance(store, str):
        raise DockerConfigInvalid(f"{name}: auths and credHelpers must be objects, credsStore a text")
    for helper in (*helpers.values(), *([store] if store else [])):
        if not isinstance(helper, str) or not _HELPER_NAME.fullmatch(helper):
            raise DockerConfigInvalid(f"{name}: a credential helper has a name that none can have")
    found = []
    for key, entry in auths.items():
        credential = _credential(entry, f"{name}: auths[{key!r}]")
        if credential is not None:
            found.append((key_of(key), credential))
    return Config(tuple(found), tuple((key_of(key), key, helper) for key, helper in helpers.items()), store)


def _looks_like_auths(document: Mapping[str, object]) -> bool:
    return bool(document) and all(isinstance(entry, dict) and "auth" in entry for entry in document.values())


def _credential(entry: object, where: str) -> Credential | None:
    if not isinstance(entry, dict):
        raise DockerConfigInvalid(f"{where} is no object")
    texts = {}
    for name in ("auth", "username", "password", "identitytoken", "registrytoken"):
        value = entry.get(name) or ""
        if not isinstance(value, str):
            raise DockerConfigInvalid(f"{where}: {name} is no text")
        texts[name] = value
    username, password = texts["username"], texts["password"]
    if texts["auth"]:
        try:
            username, colon, password = _decoded(texts["auth"]).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise DockerConfigInvalid(f"{where}: auth is no base64 of user:password") from None
        if not colon:
            raise DockerConfigInvalid(f"{where}: auth is no base64 of user:password")
        password = password.rstrip("\x00")
    if not (username or texts["identitytoken"] or texts["registrytoken"]):
        return None  # Docker leaves `{}` behind where a credential store keeps the secret
    return Credential(username, password, texts["identitytoken"], texts["registrytoken"])


def _decoded(text: str) -> bytes:
    """The bytes of base64 *text*, with or without padding and wrapped or not, as kubelet and Docker take it."""
    plain = re.sub(r"\s", "", text).rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def find(configs: Sequence[Config], host: str, repository: str) -> list[Credential | tuple[str, str]]:
    """Credentials, and (helper name, what to ask it for), in the order in which they are tried. Helpers named for a
    host come first, then auths, then the general store; among each the narrowest key first, then the earlier file."""
    named = [(key, text, helper) for config in configs for key, text, helper in config.helpers]
    helpers = [entry for entry in named if entry[0].matches(host, repository)]
    helpers.sort(key=lambda entry: entry[0].specificity, reverse=True)
    auths = [entry for config in configs for entry in config.auths if entry[0].matches(host, repository)]
    auths.sort(key=lambda entry: entry[0].specificity, reverse=True)
    store = next((config.store for config in configs if config.store), "")
    return [
        *((helper, host if "*" in text else text) for _, text, helper in helpers),
        *(credential for _, credential in auths),
        *([(store, _HUB_SERVER if host == DOCKER_HUB else host)] if store else []),
    ]


class DockerConfig:
    """Credentials (mirror/upstream/auth.py) from files; also a mounted Secret, changed by a swapped symlink."""

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._configs: tuple[Config, ...] = ()
        self._seen: tuple[object, ...] | None = None
        self._looked = float("-inf")
        self._lock = asyncio.Lock()
        self._helped: TTLCache[tuple[str, str], Credential | None] = TTLCache(1024, HELPER_LIFE, timer=clock)
        self._helping: dict[tuple[str, str], asyncio.Task[Credential | None]] = {}
        self._slots = asyncio.Semaphore(_HELPERS_AT_ONCE)

    async def load(self) -> None:
        """Read the files now. Raises DockerConfigInvalid."""
        self._seen, self._configs = await asyncio.to_thread(_read, self._paths)
        self._looked = self._clock()
        self._helped.clear()

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """See Credentials (mirror/upstream/auth.py); *host*: the canonical registry."""
        await self._refresh()
        for found in find(self._configs, host, repository):
            credential = found if isinstance(found, Credential) else await self._helped_by(*found)
            if credential is not None:
                if not skip:
                    return credential
                skip -= 1
        return None

    async def _helped_by(self, helper: str, server: str) -> Credential | None:
        found = (helper, server)
        if found in self._helped:
            return self._helped[found]
        task = self._helping.get(found)
        if task is None:
            task = asyncio.ensure_future(self._help(*found))
            self._helping[found] = task
        return await asyncio.shield(task)

    async def _refresh(self) -> None:
        if self._seen is not None and self._clock() - self._looked < RECHECK:
            return
        async with self._lock:
            if self._seen is not None and self._clock() - self._looked < RECHECK:
                return
            # Before the reading: whoever asks meanwhile goes on with what was good until now. Only the very
            # first has nothing to go on with, and everybody waits for it.
            self._looked = self._clock()
            try:
                if await asyncio.to_thread(_stamp, self._paths) != self._seen:
                    await self.load()
                    LOG.info("docker_config_read", extra={"fields": {"files": len(self._paths)}})
            except DockerConfigInvalid as error:
                # Half-written, or gone for a moment: what was good before is better than nothing.
                self._seen = self._seen or ()
                LOG.warning("docker_config_kept", extra={"fields": {"reason": str(error)}})

    async def _help(self, helper: str, server: str) -> Credential | None:
        try:
            async with self._slots:
                credential = await run_helper(helper, server)
            self._helped[helper, server] = credential
            return credential
        finally:
            del self._helping[helper, server]


def _stamp(paths: Sequence[Path]) -> tuple[object, ...]:
    stamps: list[object] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def _read(paths: Sequence[Path]) -> tuple[tuple[object, ...], tuple[Config, ...]]:
    stamp = _stamp(paths)  # before reading: a change in between is seen next time
    configs = []
    for path in paths:
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise DockerConfigInvalid(f"{path}: {error.strerror}") from None
        if len(text) > _LARGEST_FILE:
            raise DockerConfigInvalid(f"{path}: larger than any Docker configuration")
        configs.append(parse(text, str(path)))
    return stamp, tuple(configs)


async def run_helper(helper: str, server: str, *, deadline: float = DEADLINE) -> Credential | None:
    """What `docker-credential-<helper> get` says about *server*; None if it has nothing, fails or takes too long.

    docker/docker-credential-helpers, README, "Development". Its output is never logged.
    """
    fields = {"helper": helper, "server": server}
    said = await ask([f"docker-credential-{helper}", "get"], server.encode(), deadline=deadline)
    if said.failure:
        if b"credentials not found" not in said.output:
            LOG.warning("credential_helper_failed", extra={"fields": fields | {"reason": said.failure}})
        return None
    try:
        answer = json.loads(said.output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, TypeError, KeyError):
        username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str):
        LOG.warning("credential_helper_failed", extra={"fields": fields | {"reason": "no Username and Secret"}})
        return None
    return Credential(identity_token=secret) if username == "<token>" else Credential(username, secret)
