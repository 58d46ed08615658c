"""A server that speaks the wire protocol of the Kubernetes API for pods, nodes and events.

Lists come in pages of one snapshot, watches replay from a resource version and then follow, with
bookmarks and 410 as kube-apiserver sends them (kubernetes.io/docs/reference/using-api/api-concepts).
A test says what goes wrong, and waits for what the client asked: there is no clock in here.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

Object = dict[str, Any]
TOKEN = "the-service-account-token"


@dataclass
class Asked:
    """One request, as the server saw it."""

    resource: str
    verb: str
    """get, list, watch, create or patch."""
    query: dict[str, str]
    accept: str


@dataclass
class _Kind:
    """One collection: its objects and all that happened to them."""

    resource: str
    kind: str
    objects: dict[str, Object] = field(default_factory=dict)
    history: list[tuple[int, str, Object, Object | None]] = field(default_factory=list)
    """Version, type, the object then, and what it was before."""
    forgotten: int = 0
    """Versions below this are compacted away."""


@dataclass(eq=False)
class _Watcher:
    """One open watch."""

    request: web.Request
    lines: asyncio.Queue[bytes | None]
    """What to send; None ends the watch."""

    @property
    def resource(self) -> str:
        return _resource(self.request)

    def take(self, type_: str, item: Object, before: Object | None) -> None:
        """One change as this watch sees it: what leaves its selection is DELETED, what enters it ADDED."""
        here = _selected(self.request, item) and type_ != "DELETED"
        was = before is not None and _selected(self.request, before)
        if not here and not was:
            return
        seen = "DELETED" if not here else "MODIFIED" if was else "ADDED"
        match _form(self.request):
            case "PartialObjectMetadataList":
                self.lines.put_nowait(None)  # it cannot be made of one object: the stream ends, without a word
            case "PartialObjectMetadata":
                self.lines.put_nowait(_line(seen, _metadata(item)))
            case _:
                self.lines.put_nowait(_line(seen, item))


class KubeApi:
    """The server's state. Change it by `put` and `delete`; break it by the knobs."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.events: list[Object] = []
        self.patches: list[tuple[str, list[Object]]] = []
        """Name and body of every patch of a node."""
        self.token = TOKEN
        """What a request has to show."""
        self.tokens: dict[str, tuple[str, str]] = {}
        """Service account token -> UID of the pod that it is bound to, and its audience."""
        self.denied: set[str] = set()
        """Resources that are answered 403."""
        self.statuses: dict[str, list[tuple[int, dict[str, str]]]] = {}
        """Per resource: statuses (with headers) for the next requests."""
        self.gone_as_event = False
        """410 comes as an ERROR event in a 200 stream; else as an HTTP status."""
        self.gate = asyncio.Event()
        """Requests wait for it: cleared, the API is slow."""
        self.gate.set()
        self.page_limit = 1000
        """Objects per page at most, whatever the client asks for."""
        self.expire_pages = False
        """The next `continue` token is refused with 410."""
        self.waiting = 0
        """Requests that wait at the gate."""
        self._version = 100
        self._kinds = {"pods": _Kind("pods", "Pod"), "nodes": _Kind("nodes", "Node")}
        self._happened = asyncio.Condition()
        self._watchers: set[_Watcher] = set()

    # -- what a test does ------------------------------------------------------------------------

    async def put(self, resource: str, item: Object) -> None:
        """Create or update an object."""
        kind = self._kinds[resource]
        key = item["metadata"]["name"]
        self._version += 1
        item = copy.deepcopy(item)
        item["metadata"]["resourceVersion"] = str(self._version)
        await self._record(kind, "MODIFIED" if key in kind.objects else "ADDED", item)
        kind.objects[key] = item

    async def delete(self, resource: str, name: str) -> None:
        """Delete an object: the event carries its last state with the version of the deletion."""
        kind = self._kinds[resource]
        self._version += 1
        item = copy.deepcopy(kind.objects[name])
        item["metadata"]["resourceVersion"] = str(self._version)
        await self._record(kind, "DELETED", item)
        del kind.objects[name]

    async def bookmark(self, resource: str) -> str:
        """Tell the watchers the newest version, which no object of theirs has. Returns it."""
        self._version += 10
        item = {"kind": self._kinds[resource].kind, "metadata": {"resourceVersion": str(self._version)}}
        await self._send(resource, _line("BOOKMARK", item))
        return str(self._version)

    async def raw(self, resource: str, line: bytes) -> None:
        """Send *line* to the watchers as it is."""
        await self._send(resource, line)

    def object(self, resource: str, name: str) -> Object:
        """What the server has of an object now."""
        return self._kinds[resource].objects[name]

    def compact(self, resource: str) -> None:
        """Forget the history: any version known so far is too old."""
        self._version += 1
        self._kinds[resource].forgotten = self._version

    def cut(self) -> None:
        """Break every watch connection without a word."""
        for watcher in self._watchers:
            if watcher.request.transport is not None:
                watcher.request.transport.abort()

    def end(self) -> None:
        """End every watch properly, as the server does after timeoutSeconds."""
        for watcher in self._watchers:
            watcher.lines.put_nowait(None)

    def counts(self, resource: str, verb: str) -> int:
        """How many such requests came."""
        return sum(1 for asked in self.asked if (asked.resource, asked.verb) == (resource, verb))

    def watching(self, resource: str) -> int:
        """How many watches of *resource* are open."""
        return sum(1 for watcher in self._watchers if watcher.resource == resource)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at whenever something happened."""
        async with asyncio.timeout(20), self._happened:
            await self._happened.wait_for(condition)

    def kubeconfig(self, path: Path, *, ca: Path | None = None, token: str = TOKEN) -> Path:
        """A kubeconfig for this server, written to *path*."""
        cluster: Object = {"server": self.url}
        if ca is not None:
            cluster["certificate-authority"] = str(ca)
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": token}}],
                }
            )
        )
        return path

    # -- what the server does --------------------------------------------------------------------

    async def _record(self, kind: _Kind, type_: str, item: Object) -> None:
        before = kind.objects.get(item["metadata"]["name"])
        kind.history.append((self._version, type_, item, before))
        for watcher in self._watchers:
            if watcher.resource == kind.resource:
                watcher.take(type_, item, before)
        await self._tell()

    async def _send(self, resource: str, line: bytes) -> None:
        for watcher in self._watchers:
            if watcher.resource == resource:
                watcher.lines.put_nowait(line)
        await self._tell()

    async def _tell(self) -> None:
        async with self._happened:
            self._happened.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request of the API."""
        resource = _resource(request)
        watch = request.query.get("watch") in ("true", "True", "1")
        verb = {"POST": "create", "PATCH": "patch"}.get(request.method, "watch" if watch else "list")
        if verb == "list" and request.path.split("/")[-2] == "nodes":
            verb = "get"
        self.asked.append(Asked(resource, verb, dict(request.query), request.headers.get("Accept", "")))
        self.waiting += 1
        await self._tell()
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if request.headers.get("Authorization", "").lower() != f"bearer {self.token.lower()}":
            return _status(401, "Unauthorized")
        if resource in self.denied:
            return _status(403, "Forbidden")
        if self.statuses.get(resource):
            status, headers = self.statuses[resource].pop(0)
            return _status(status, "InternalError", headers)
        if resource == "tokenreviews":
            return web.json_response(self._review(await request.json()), status=201)
        if verb == "create":
            event = await request.json()
            if any(event["metadata"]["name"] == known["metadata"]["name"] for known in self.events):
                return _status(409, "AlreadyExists")
            self.events.append(event)
            await self._tell()
            return web.json_response(event, status=201)
        if verb == "patch":
            return await self._patch(request)
        if verb == "get":
            return self._one(request)
        kind = self._kinds[resource]
        return await self._watch(request, kind) if watch else self._list(request, kind)

    def _review(self, asked: Object) -> Object:
        """A TokenReview: authenticated only for an audience that the token was made for."""
        uid, audience = self.tokens.get(asked["spec"]["token"], ("", ""))
        if not uid or audience not in asked["spec"]["audiences"]:
            return asked | {"status": {"user": {}, "error": "invalid bearer token"}}
        extra = {"authentication.kubernetes.io/pod-uid": [uid], "authentication.kubernetes.io/pod-name": ["a"]}
        user = {"username": "system:serviceaccount:shoal:default", "extra": extra}
        return asked | {"status": {"authenticated": True, "audiences": [audience], "user": user}}

    def _one(self, request: web.Request) -> web.Response:
        """One node, whole."""
        found = self._kinds["nodes"].objects.get(request.path.rsplit("/", 1)[1])
        return web.json_response(found) if found is not None else _status(404, "NotFound")

    async def _patch(self, request: web.Request) -> web.Response:
        """A JSON patch of a node that tests and removes. Another kind of patch would replace the list of taints."""
        name = request.path.rsplit("/", 1)[1]
        if request.content_type != "application/json-patch+json":
            return _status(415, "UnsupportedMediaType")
        found = self._kinds["nodes"].objects.get(name)
        if found is None:
            return _status(404, "NotFound")
        body = await request.json()
        changed = copy.deepcopy(found)
        for step in body:
            *way, last = step["path"].strip("/").split("/")
            place: Any = changed
            try:
                for key in way:
                    place = place[int(key)] if isinstance(place, list) else place[key]
                index = int(last) if isinstance(place, list) else last
                if step["op"] == "test" and place[index] != step["value"]:
                    return _status(422, "Invalid")
            except (KeyError, IndexError):
                return _status(422, "Invalid")
            if step["op"] == "remove":
                del place[index]
        await self.put("nodes", changed)
        self.patches.append((name, body))
        await self._tell()
        return web.json_response(changed)

    def _list(self, request: web.Request, kind: _Kind) -> web.Response:
        limit = min(int(request.query.get("limit", "0")) or self.page_limit, self.page_limit)
        if "limit" not in request.query:
            limit = len(kind.objects) + 1
        start, version = 0, self._version
        names = sorted(kind.objects)
        if token := request.query.get("continue", ""):
            version, start, names = json.loads(base64.b64decode(token))
            if self.expire_pages or version < kind.forgotten:
                self.expire_pages = False
                return _status(410, "Expired")
        items = [kind.objects[name] for name in names[start : start + limit] if name in kind.objects]
        meta = {"resourceVersion": str(version)}
        if start + limit < len(names):
            meta["continue"] = base64.b64encode(json.dumps([version, start + limit, names]).encode()).decode()
        items = [item for item in items if _selected(request, item)]
        form = _form(request)
        if form == "PartialObjectMetadata":
            return _status(406, "NotAcceptable")  # a list is no object
        only = form == "PartialObjectMetadataList"
        body = {
            "kind": "PartialObjectMetadataList" if only else f"{kind.kind}List",
            "apiVersion": "meta.k8s.io/v1" if only else "v1",
            "metadata": meta,
            # Items of a list carry no kind; an empty list may be null.
            "items": [{"metadata": item["metadata"]} if only else item for item in items] or None,
        }
        return web.json_response(body)

    async def _watch(self, request: web.Request, kind: _Kind) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        if version < kind.forgotten and not self.gone_as_event:
            return _status(410, "Expired")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        watcher = _Watcher(request, asyncio.Queue())
        if version < kind.forgotten:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(_line("ERROR", gone))
            return response
        for at, type_, item, before in kind.history:
            if at > version:
                watcher.take(type_, item, before)
        self._watchers.add(watcher)
        await self._tell()
        try:
            while (line := await watcher.lines.get()) is not None:
                await response.write(line)
        except ConnectionError:
            pass
        finally:
            self._watchers.discard(watcher)
            # Not awaited: on the way out of a cancelled handler.
            self._gone = asyncio.get_running_loop().create_task(self._tell())
        return response


def _resource(request: web.Request) -> str:
    parts = request.path.split("/")
    return parts[-2] if parts[-2] == "nodes" else parts[-1]


def _form(request: web.Request) -> str:
    """The form in which the client wants objects: of the first media type that it names, as the API server takes it."""
    first = request.headers.get("Accept", "").partition(",")[0]
    parts = dict(part.strip().partition("=")[::2] for part in first.split(";")[1:])
    return parts.get("as", "")


def _metadata(item: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _selected(request: web.Request, item: Object) -> bool:
    labels = item["metadata"].get("labels") or {}
    wanted = [part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part]
    fields = [part.split("=", 1) for part in request.query.get("fieldSelector", "").split(",") if part]
    return all(labels.get(key) == value for key, value in wanted) and all(
        path == "status.phase" and item["status"].get("phase") == value for path, value in fields
    )


def _line(type_: str, item: Object) -> bytes:
    return json.dumps({"type": type_, "object": item}).encode() + b"\n"


def _status(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return web.json_response(body, status=code, headers=headers)


@asynccontextmanager
async def kube_api(tls: ssl.SSLContext | None = None) -> AsyncIterator[KubeApi]:
    """A running server on a free port of 127.0.0.1."""
    api = KubeApi()
    app = web.Application()
    app.router.add_route("*", "/api/v1/{rest:.*}", api.handle)
    app.router.add_route("*", "/apis/authentication.k8s.io/v1/{rest:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    api.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield api
    finally:
        api.gate.set()
        api.end()
        await runner.cleanup()


def pod(
    name: str,
    *ips: str,
    node: str = "node-1",
    ready: bool = True,
    phase: str = "Running",
    terminating: bool = False,
    uid: str = "",
    labels: dict[str, str] | None = None,
    namespace: str = "shoal",
) -> Object:
    """A pod as the API shows it."""
    meta: Object = {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"uid-of-{name}",
        "labels": {"app": "shoal-agent"} if labels is None else labels,
        "creationTimestamp": None,
    }
    if terminating:
        meta["deletionTimestamp"] = "2024-01-01T00:00:00Z"
        meta["deletionGracePeriodSeconds"] = 30
    status: Object = {"phase": phase, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    if ips:
        status |= {"podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips], "hostIP": "192.0.2.1"}
    return {"metadata": meta, "spec": {"nodeName": node, "containers": []}, "status": status}


def node(name: str, zone: str = "") -> Object:
    """A node as the API shows it."""
    labels = {"kubernetes.io/hostname": name} | ({"topology.kubernetes.io/zone": zone} if zone else {})
    return {"metadata": {"name": name, "uid": f"uid-of-{name}", "labels": labels}, "status": {"images": []}}
