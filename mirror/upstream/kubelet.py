"""Credentials from kubelet's own credential providers: its configuration file and its binaries, mounted read-only.

The binaries speak kubelet's exec API (credentialprovider.kubelet.k8s.io/v1): an image on standard input, user and
password for patterns of registries on standard output. What kubelet pulls with, the agent pulls with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from cachetools import TLRUCache

from mirror.errors import ProvidersInvalid
from mirror.upstream.auth import Credential
from mirror.upstream.dockerconfig import key_of
from mirror.upstream.plugins import ask

LOG = logging.getLogger("shoal.mirror")

VERSIONS = tuple(f"credentialprovider.kubelet.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ANSWERS = 1024
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|[hms]))+|0")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|[hms])")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

RETRY = 5.0
"""Seconds after which a program that failed is asked again: not by each of the requests that come meanwhile."""


class _Variable(msgspec.Struct):
    name: str
    value: str = ""


class _Entry(msgspec.Struct, rename="camel"):
    name: str
    match_images: list[str]
    api_version: str
    default_cache_duration: str = "0"
    args: list[str] | None = None
    env: list[_Variable] | None = None
    token_attributes: dict[str, Any] | None = None


class _File(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    providers: list[_Entry]


class _Login(msgspec.Struct):
    username: str = ""
    password: str = ""


class _Answer(msgspec.Struct, rename="camel"):
    cache_key_type: str
    cache_duration: str | None = None
    auth: dict[str, _Login] | None = None


@dataclass(frozen=True)
class Provider:
    """One entry of the file. *life*: seconds for which its answers hold where they do not say."""

    name: str
    images: tuple[str, ...]
    version: str
    life: float
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def covers(self, host: str, repository: str) -> bool:
        """Whether one of its patterns fits, as kubelet matches them: globs in labels, port, path as a prefix."""
        return any(key_of(pattern).matches(host, repository) for pattern in self.images)


def duration(text: str) -> float:
    """Seconds of Go's duration *text* (`1h30m`, `0`). Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def parse(text: bytes, name: str) -> tuple[Provider, ...]:
    """The providers of a CredentialProviderConfig, YAML or JSON. Raises ProvidersInvalid. *name*: for messages."""
    try:
        file = msgspec.yaml.decode(text, type=_File)
    except (msgspec.DecodeError, ValueError) as error:
        raise ProvidersInvalid(f"{name}: {' '.join(str(error).split())[:300]}") from None
    if file.kind != "CredentialProviderConfig" or not file.api_version.startswith("kubelet.config.k8s.io/"):
        raise ProvidersInvalid(f"{name}: no CredentialProviderConfig of kubelet.config.k8s.io")
    found = []
    for entry in file.providers:
        if not _NAME.fullmatch(entry.name):
            raise ProvidersInvalid(f"{name}: a provider has a name that no program has")
        if entry.api_version not in VERSIONS:
            raise ProvidersInvalid(f"{name}: {entry.name}: apiVersion must be one of {', '.join(VERSIONS)}")
        try:
            life = duration(entry.default_cache_duration)
        except ValueError:
            raise ProvidersInvalid(f"{name}: {entry.name}: defaultCacheDuration is no duration") from None
        if entry.token_attributes is not None:
            LOG.warning(
                "credential-provider-skipped",
                extra={"fields": {"provider": entry.name, "reason": "it wants a pod's service account token"}},
            )
            continue
        variables = tuple((variable.name, variable.value) for variable in entry.env or ())
        found.append(
            Provider(entry.name, tuple(entry.match_images), entry.api_version, life, tuple(entry.args or ()), variables)
        )
    return tuple(found)


@dataclass(frozen=True)
class _Kept:
    """An answer. *credentials*: (pattern, credential), the narrowest first; *life* in seconds."""

    credentials: tuple[tuple[str, Credential], ...]
    life: float


class KubeletProviders:
    """Credentials (mirror/upstream/auth.py) from the programs in *directory*. Lives on one event loop."""

    def __init__(
        self, providers: tuple[Provider, ...], directory: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._providers = providers
        self._directory = directory
        self._answers: TLRUCache[tuple[str, str], _Kept] = TLRUCache(
            _ANSWERS, ttu=lambda _key, kept, now: now + kept.life, timer=clock
        )
        self._asking: dict[tuple[str, str], asyncio.Task[_Kept]] = {}

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """See Credentials; of several providers the earlier one's come first."""
        for provider in self._providers:
            if not provider.covers(host, repository):
                continue
            for pattern, credential in (await self._ask(provider, host, repository)).credentials:
                if key_of(pattern).matches(host, repository):
                    if not skip:
                        return credential
                    skip -= 1
        return None

    async def _ask(self, provider: Provider, host: str, repository: str) -> _Kept:
        image = f"{host}/{repository}"
        for scope in (image, host, ""):  # cacheKeyType Image, Registry, Global
            kept = self._answers.get((provider.name, scope))
            if kept is not None:
                return kept
        task = self._asking.get((provider.name, image))
        if task is None:
            task = asyncio.create_task(self._run(provider, host, image))
            self._asking[provider.name, image] = task
            task.add_done_callback(lambda _: self._asking.pop((provider.name, image), None))
        return await asyncio.shield(task)

    async def _run(self, provider: Provider, host: str, image: str) -> _Kept:
        request = {"apiVersion": provider.version, "kind": "CredentialProviderRequest", "image": image}
        said = await ask(
            [str(self._directory / provider.name), *provider.arguments],
            json.dumps(request).encode(),
            environment={**os.environ, **dict(provider.environment)},
        )
        failure, scope, kept = said.failure, image, _Kept((), RETRY)
        if not failure:
            try:
                answer = msgspec.json.decode(said.output, type=_Answer)
                scope = {"Image": image, "Registry": host, "Global": ""}[answer.cache_key_type]
                life = provider.life if answer.cache_duration is None else duration(answer.cache_duration)
                kept = _Kept(_sorted(answer.auth or {}), life)
            except (msgspec.DecodeError, ValueError, KeyError):
                failure = "no CredentialProviderResponse"
        if failure:
            fields = {"provider": provider.name, "image": image, "reason": failure}
            LOG.warning("credential-provider-failed", extra={"fields": fields})
        if kept.life > 0:
            self._answers[provider.name, scope] = kept
        return kept


def _sorted(auth: Mapping[str, _Login]) -> tuple[tuple[str, Credential], ...]:
    patterns = sorted(auth, key=lambda pattern: key_of(pattern).specificity, reverse=True)
    return tuple((pattern, Credential(auth[pattern].username, auth[pattern].password)) for pattern in patterns)


def load(configuration: Path, directory: Path) -> KubeletProviders:
    """The providers of kubelet's *configuration*, with its programs in *directory*. Reads files.

    Raises ProvidersInvalid.
    """
    try:
        text = configuration.read_bytes()
    except OSError as error:
        raise ProvidersInvalid(f"{configuration}: {error.strerror}") from None
    providers = parse(text, str(configuration))
    for provider in providers:
        program = directory / provider.name
        if not os.access(program, os.X_OK) or not program.is_file():
            raise ProvidersInvalid(f"{configuration}: {program} is no program that can be run")
    return KubeletProviders(providers, directory)
