"""Credentials of the agent towards registries: challenges, bearer tokens and their cache, Basic.

The flow is Docker's token authentication (distribution/distribution, docs/spec/auth): the registry answers
401 with a challenge, the realm named there gives a token for a scope, the token opens the registry.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cachetools import LRUCache, TLRUCache

from swarm.blob.errors import SourceBroken, SourceRefused

TOKEN_LIFE = 60.0
"""Seconds a token lives if the realm does not say (docs/spec/auth/token.md, `expires_in`)."""

TOKEN_MARGIN = 10.0
"""Seconds before its end at which a token is no longer used: a request takes time to arrive."""

LONGEST_TOKEN_LIFE = 6 * 3600.0
"""Seconds: no token is kept longer, whatever the realm says."""

MOST_CREDENTIALS = 8
"""Credentials that are tried for one request. Each one costs a round trip, and a registry counts failed logins."""

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME = re.compile(rf"[\s,]*({_WORD})(?=[\s,]|$)")
_PARAMETER = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))')
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9\-._~+/]+=*\s*(?=,|$)")


@dataclass(frozen=True)
class Challenge:
    """One challenge of a WWW-Authenticate header (RFC 9110, 11.6.1)."""

    scheme: str
    """In lower case."""

    parameters: Mapping[str, str]
    """Names in lower case."""


@dataclass(frozen=True)
class Credential:
    """What opens a registry. Never shown: its repr says only that it exists."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """OAuth2 refresh token; used instead of the password where the realm gives tokens."""

    registry_token: str = field(default="", repr=False)
    """A ready bearer token."""

    def basic(self) -> str:
        """The Authorization header of RFC 7617."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


@dataclass(frozen=True)
class Grant:
    """An Authorization header that upstream accepts."""

    header: str = field(repr=False)
    own: bool
    """Whether the agent's own credentials stand behind it (False: anonymous)."""

    life: float
    """Seconds for which it may be used."""

    credential: Credential | None = field(default=None, repr=False)
    """What it was got with."""

    fresh: bool = field(default=False, compare=False)
    """Whether it was got for the request that it is sent with, so that a refusal of it is one of the credential."""


class Credentials(Protocol):
    """Where credentials come from."""

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """The credential for *repository* at registry *host*: of all that fit the narrowest, after *skip* of them.

        None: no further one; without any, one goes there anonymously.
        """


class NoCredentials:
    """Anonymous everywhere."""

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """None."""
        return None


class Chain:
    """The credentials of several sources, those of the first source first."""

    def __init__(self, *sources: Credentials) -> None:
        self._sources = sources

    async def find(self, host: str, repository: str, skip: int = 0) -> Credential | None:
        """See Credentials."""
        for source in self._sources:
            for place in range(MOST_CREDENTIALS):
                found = await source.find(host, repository, place)
                if found is None:
                    break
                if not skip:
                    return found
                skip -= 1
        return None


class Ask(Protocol):
    """How the realm is asked: answers (status, body); raises SourceError, also for 429 and 5xx."""

    def __call__(
        self,
        host: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> Awaitable[tuple[int, bytes]]:
        """GET *url* with *query*, or POST *form*. *host*: the registry whose challenge named the URL."""


def challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges in the WWW-Authenticate header lines *values*, in order; what is malformed is left out."""
    found: list[Challenge] = []
    for value in values:
        position = 0
        while match := _SCHEME.match(value, position):
            scheme, position = match[1].lower(), match.end()
            parameters: dict[str, str] = {}
            if token68 := _TOKEN68.match(value, position):
                position = token68.end()
            while parameter := _PARAMETER.match(value, position):
                quoted, plain = parameter[2], parameter[3]
                text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(parameter[1].lower(), text)
                position = parameter.end()
            found.append(Challenge(scheme, parameters))
    return found


def token_of(body: bytes, host: str) -> tuple[str, float]:
    """Token and its usable life in seconds from a realm's answer. Raises SourceBroken if there is none."""
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
        life = answer.get("expires_in", TOKEN_LIFE)
    except (ValueError, AttributeError, RecursionError):
        raise SourceBroken(f"the token service of {host} answered no JSON object") from None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise SourceBroken(f"the token service of {host} answered no token")
    if isinstance(life, bool) or not isinstance(life, (int, float)) or not life > 0:
        life = TOKEN_LIFE
    # A token that lives for less than the margin is used at least once, by the request that waits for it.
    return token, max(min(float(life), LONGEST_TOKEN_LIFE) - TOKEN_MARGIN, 1.0)


class Authorizer:
    """Knows the Authorization header for each registry and repository; asks the realms for tokens."""

    def __init__(self, ask: Ask, credentials: Credentials, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._credentials = credentials
        # Bounded: names of repositories come from clients.
        self._challenges: LRUCache[tuple[str, str], Challenge] = LRUCache(4096)
        self._grants: TLRUCache[tuple[str, str, Credential | None], Grant] = TLRUCache(
            4096, ttu=lambda _key, grant, now: now + grant.life, timer=clock
        )
        self._places: LRUCache[tuple[str, str], int] = LRUCache(4096)  # which of the credentials opened it
        self._asking: dict[tuple[str, str, Credential | None], asyncio.Task[Grant]] = {}

    async def known(self, host: str, repository: str) -> Grant | None:
        """The header to send at once: what worked before, renewed if it has run out; None: nothing is known."""
        challenge = self._challenges.get((host, repository))
        if challenge is None:
            return None
        place = self._places.get((host, repository), 0)
        credential = await self._credentials.find(host, repository, place)
        try:
            return await self._grant(challenge, host, repository, credential)
        except SourceRefused:
            # It may ask for none any more, or for another one: it says so itself.
            self._challenges.pop((host, repository), None)
            return None

    def refused(self, host: str, repository: str, header: str) -> None:
        """A token was refused that was good before: it is not sent again."""
        for key, grant in list(self._grants.items()):
            if key[:2] == (host, repository) and grant.header == header:
                del self._grants[key]

    async def answer(
        self, offered: Iterable[Challenge], host: str, repository: str, rejected: Sequence[Grant]
    ) -> Grant | None:
        """The header that answers a refusal, None: there is none. *rejected*: what this request was refused with.

        Credentials that fit are tried from the narrowest on, as kubelet does it. Without a challenge in *offered*
        the last one still counts. Raises SourceRefused if the token service refuses the last of them.
        """
        usable = {challenge.scheme: challenge for challenge in offered}
        challenge = usable.get("bearer") or usable.get("basic")
        if challenge is None and rejected:
            challenge = self._challenges.get((host, repository))
        if challenge is None:
            return None
        self._challenges[host, repository] = challenge
        refused: SourceRefused | None = None
        for place in range(MOST_CREDENTIALS):
            credential = await self._credentials.find(host, repository, place)
            if credential is None and place:
                break
            try:
                grant = await self._again(challenge, host, repository, credential, rejected)
            except SourceRefused as error:
                refused = error
                continue
            if grant is not None:
                self._places[host, repository] = place
                return grant
        self._places.pop((host, repository), None)
        if refused is not None:
            self._challenges.pop((host, repository), None)  # the next one asks plainly: it may be open by then
            raise refused
        return None

    async def _again(
        self,
        challenge: Challenge,
        host: str,
        repository: str,
        credential: Credential | None,
        rejected: Sequence[Grant],
    ) -> Grant | None:
        """A grant of *credential* that was not rejected yet; None: there is none."""
        mine = [grant for grant in rejected if grant.credential == credential]
        if any(grant.fresh for grant in mine):
            return None
        key = (host, repository, credential)
        if self._grants.get(key) in mine:
            del self._grants[key]  # it ran out before its time: the next one may do
        grant = await self._grant(challenge, host, repository, credential)
        return None if grant is None or grant in mine else replace(grant, fresh=True)

    async def _grant(
        self, challenge: Challenge, host: str, repository: str, credential: Credential | None
    ) -> Grant | None:
        if credential is not None and credential.registry_token:
            return Grant(f"Bearer {credential.registry_token}", own=True, life=0.0, credential=credential)
        if challenge.scheme == "basic":
            return None if credential is None else Grant(credential.basic(), True, 0.0, credential)
        key = (host, repository, credential)
        grant = self._grants.get(key)
        if grant is not None:
            return grant
        task = self._asking.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fetch(challenge, host, repository, credential))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        # Shielded: one reader that goes away must not take the token from the others that wait for it.
        return await asyncio.shield(task)

    def _asked(self, key: tuple[str, str, Credential | None], task: asyncio.Task[Grant]) -> None:
        del self._asking[key]
        if not task.cancelled() and task.exception() is None:
            self._grants[key] = task.result()

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, challenge: Challenge, host: str, repository: str, credential: Credential | None) -> Grant:
        realm = challenge.parameters.get("realm", "")
        scope = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        query = {"scope": scope}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        if credential is not None and credential.identity_token:
            form = query | {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "client_id": "shoal",
            }
            status, body = await self._ask(host, realm, form=form)
        else:
            basic = None if credential is None else credential.basic()
            status, body = await self._ask(host, realm, query=query, authorization=basic)
        if status != 200:
            raise SourceRefused(f"the token service of {host} answered {status}", status=status)
        token, life = token_of(body, host)
        return Grant(f"Bearer {token}", own=credential is not None, life=life, credential=credential)
