"""The one door to the Kubernetes API: the `kubernetes` client, its configuration and its errors.

The client's asyncio half does the connecting, TLS, tokens and URLs; the bytes are decoded by the
callers, who want five fields of a pod and not its whole model. No error text of the client gets
out: it carries headers and bodies.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from kubernetes.aio import client, config
from kubernetes.aio.config.config_exception import ConfigException

from swarm.base import bounded
from tracker.errors import ApiError, DiscoveryError
from tracker.members.events import PodEvent

CONNECT = 10.0
"""Seconds for the first bytes of an answer's head; an API server under load takes a few."""

LIST = 60.0
"""Seconds for one page: the API server's own limit for a request."""

WATCH = (240.0, 480.0)
"""Seconds after which the server is asked to end a watch, at random: reconnects must not bunch up.
client-go asks for 5 to 10 minutes."""

WATCH_GRACE = 15.0
"""Seconds that the server may be late in ending a watch before we cut it."""

KEEPALIVE = (15, 5, 3)
"""Idle seconds, interval, probes: a server that vanished without a word is noticed within 30 s."""

MAX_BODY = 64 * 1024 * 1024
"""Bytes of the largest list: 5,000 pods of 12 KiB in one piece, should the server not page."""

METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
METADATA_WATCH = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
"""Accept headers for nodes: their status names every image on them, and we need one label. A list and a watch want
a form of their own: the API server takes the first that is offered, and ends a watch in the other at once."""

RUNNING = "status.phase=Running"
"""Field selector for pods. Half of what happens to a pod happens before it runs, and is not sent. One that stops
running comes as DELETED."""

TAINT = "shoal.io/agent-not-ready"
"""Taint (effect NoSchedule) that a node may be made with; it goes once the node's agent is a member."""

Call = Callable[..., Awaitable[aiohttp.ClientResponse]]


class _User(msgspec.Struct, frozen=True):
    extra: dict[str, list[str]] | None = None


class _ReviewStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    audiences: list[str] | None = None
    user: _User = _User()


class _Review(msgspec.Struct, frozen=True):
    """A TokenReview, as far as we look."""

    status: _ReviewStatus = _ReviewStatus()


class _Taint(msgspec.Struct, frozen=True):
    key: str = ""


class _Tainted(msgspec.Struct, frozen=True):
    taints: list[_Taint] | None = None


class _TaintedNode(msgspec.Struct, frozen=True):
    """A node, as far as we look."""

    spec: _Tainted = _Tainted()


class Kube:
    """A connection to the API server; `async with connect(...)` makes one."""

    def __init__(
        self,
        core: client.CoreV1Api,
        authentication: client.AuthenticationV1Api,
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self._core = core
        self._authentication = authentication
        self._renew = renew

    def pods(self, namespace: str, selector: str) -> Collection:
        """The pods of *namespace* that match the label *selector*."""
        call: Call = self._core.list_namespaced_pod_without_preload_content
        where = {"namespace": namespace, "label_selector": selector, "field_selector": RUNNING}
        return Collection(call, where, self._renew)

    def nodes(self) -> Collection:
        """The metadata of all nodes."""
        call: Call = self._core.list_node_without_preload_content
        return Collection(call, {}, self._renew, accept=(METADATA_LIST, METADATA_WATCH))

    async def review(self, token: str, audience: str) -> str:
        """The UID of the pod that *token* is bound to, if it was made for *audience*; "": it was not. Raises ApiError.

        A TokenReview (kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1).
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        call: Call = self._authentication.create_token_review_without_preload_content
        async with _answer(call, self._renew, body=body, _request_timeout=CONNECT) as answer:
            told = msgspec.json.decode(await _within(CONNECT, _read(answer)), type=_Review).status
        if not told.authenticated or audience not in (told.audiences or ()):
            return ""
        return next(iter((told.user.extra or {}).get("authentication.kubernetes.io/pod-uid", ())), "")

    async def lift(self, node: str) -> None:
        """Take TAINT off *node*; nothing happens where it has none. Raises ApiError."""
        read: Call = self._core.read_node_without_preload_content
        async with _answer(read, self._renew, name=node, _request_timeout=CONNECT) as answer:
            spec = msgspec.json.decode(await _within(CONNECT, _read(answer)), type=_TaintedNode).spec
        places = [index for index, taint in enumerate(spec.taints or ()) if taint.key == TAINT]
        if not places:
            return
        # The list of taints is replaced as a whole by every merge (its listType is atomic), so that another's new taint
        # would be lost. RFC 6902 takes one out, if it is still where it was; else the server says 422.
        body: list[dict[str, str]] = []
        for index in reversed(places):
            place = f"/spec/taints/{index}"
            body.append({"op": "test", "path": f"{place}/key", "value": TAINT})
            body.append({"op": "remove", "path": place})
        call: Call = self._core.patch_node_without_preload_content
        kind = "application/json-patch+json"
        async with _answer(
            call, self._renew, name=node, body=body, _content_type=kind, _request_timeout=CONNECT
        ) as answer:
            await _within(CONNECT, _read(answer))

    async def post(self, event: PodEvent) -> None:
        """Create an Event on a pod. Raises ApiError."""
        body = client.CoreV1Event.from_dict(event.manifest())
        call = self._core.create_namespaced_event_without_preload_content
        async with _answer(call, self._renew, namespace=event.namespace, body=body, _request_timeout=CONNECT) as answer:
            await answer.read()


class Collection:
    """One collection of the API, as a tracker.members.reflector.Api."""

    def __init__(
        self,
        call: Call,
        where: dict[str, str],
        renew: Callable[[], Awaitable[None]],
        *,
        accept: tuple[str, str] = ("", ""),
    ) -> None:
        """*accept*: header Accept of a list and of a watch; "": the whole objects as JSON."""
        self._call = call
        self._where = where
        self._renew = renew
        self._accept = accept

    def _asked(self, accept: str, **more: Any) -> dict[str, Any]:
        headers = {"_headers": {"Accept": accept}} if accept else {}
        return {**self._where, **headers, **more}

    async def page(self, *, limit: int, token: str) -> bytes:
        paging: dict[str, Any] = {"limit": limit} if limit else {}
        if token:
            paging["_continue"] = token
        asked = self._asked(self._accept[0], **paging, _request_timeout=LIST)
        async with _answer(self._call, self._renew, **asked) as answer:
            return await _within(LIST, _read(answer))

    async def watch(self, version: str) -> AsyncGenerator[bytes, None]:
        seconds = int(WATCH[0] + (WATCH[1] - WATCH[0]) * int.from_bytes(os.urandom(2), "big") / 65536)
        asked = self._asked(
            self._accept[1],
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=seconds,
            _request_timeout=seconds + WATCH_GRACE,
        )
        async with _answer(self._call, self._renew, **asked) as answer:
            while True:
                try:
                    line = await answer.content.readline()
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    # ValueError: a line longer than the buffer of 4 MiB; etcd holds no object of that size.
                    raise ApiError(type(error).__name__) from None
                if not line.endswith(b"\n"):
                    return  # the end; half a line is what a cut connection leaves
                if line.strip():
                    yield line


@asynccontextmanager
async def _answer(
    call: Call, renew: Callable[[], Awaitable[None]], **asked: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The 2xx answer to one request, its body unread; every failure as ApiError."""
    try:
        answer = await _within(CONNECT if asked.get("watch") else asked["_request_timeout"], call(**asked))
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(type(error).__name__) from None
    except ConfigException:
        raise ApiError("the credentials cannot be read") from None
    try:
        if answer.status >= 300:
            if answer.status == 401:
                await renew()
            raise ApiError(answer.reason or "", status=answer.status, retry_after=_seconds(answer.headers))
        yield answer
    finally:
        answer.close()


T = TypeVar("T")


async def _within(seconds: float, what: Awaitable[T]) -> T:
    """The result of *what*, or ApiError after *seconds*."""
    try:
        async with asyncio.timeout(seconds):
            return await what
    except TimeoutError:
        raise ApiError("no answer in time") from None


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The body, at most MAX_BODY bytes."""
    try:
        return await bounded.read(answer, MAX_BODY)
    except ValueError as error:
        raise ApiError(str(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(type(error).__name__) from None


def _seconds(headers: Any) -> float:
    """Retry-After in seconds; the API server sends no dates."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


@asynccontextmanager
async def connect(kubeconfig: Path | None = None, context: str | None = None) -> AsyncIterator[Kube]:
    """A connection made with *kubeconfig*, else the pod's service account, else ~/.kube/config.

    Raises DiscoveryError if the configuration cannot be used. Does not talk to the server yet.
    """
    configuration = client.Configuration()

    async def load() -> None:
        try:
            if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # no hints
            else:
                await config.load_kube_config(  # type: ignore[no-untyped-call]  # no hints
                    config_file=str(kubeconfig) if kubeconfig else None,
                    context=context,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise DiscoveryError(f"the Kubernetes configuration cannot be used: {type(error).__name__}") from None

    async def renew() -> None:
        # A token of a kubeconfig may have run out; in a pod the client reads its file anew each minute by itself.
        try:
            await load()
        except DiscoveryError:
            raise ApiError("the credentials cannot be read", status=401) from None

    await load()
    # From Python 3.13 on, strict checks refuse authorities without key usage, as older EKS and microk8s have them.
    configuration.disable_strict_ssl_verification = True
    api = client.ApiClient(configuration)
    # One page or watch each for pods and nodes, and an event now and then.
    connector = aiohttp.TCPConnector(limit=8, ssl=api.rest_client.ssl_context, socket_factory=_socket)
    configuration.client_session_kwargs = {"connector": connector}
    try:
        yield Kube(client.CoreV1Api(api), client.AuthenticationV1Api(api), renew)
    finally:
        await api.close()  # type: ignore[no-untyped-call]  # no hints
        await connector.close()


def _socket(address: Any) -> socket.socket:
    """A TCP socket that notices when the other side is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle, interval, count = KEEPALIVE
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)  # a server that is away is tried again after 3 s, not 10
    return made
