"""The tracker's HTTP face: announces, the agents' protocol, JSON, metrics, the page. Translates, decides nothing.

It stands on aiohttp's low-level server with one look-up per request instead of a router: a tracker
answers thousands of small requests per second. Every answer is one write (docs/engine.md: a second one
would wait for a delayed ACK), which aiohttp does for answers that are complete; it sets TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from urllib.parse import parse_qs

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

from swarm.base.browser import SAFE
from swarm.base.flags import Endpoint
from swarm.base.seldom import Seldom
from swarm.blob.digest import parse
from swarm.blob.metainfo import torrent_file
from swarm.identity.authority import Authority
from swarm.identity.tls import Identity
from swarm.protocol import wire
from tracker.errors import Locked, Malformed, NotAMember, Refused, Unknown, Unready
from tracker.http.doors import PREHEATS, Doors, Where, claim_of, proven_by
from tracker.http.listening import Handler, Listening
from tracker.http.preheats import PreheatApi
from tracker.http.signing import Signing
from tracker.http.v1 import Verbs
from tracker.members.discovery import Discovery, Labelled, Reviewing
from tracker.members.gate import Gate, Visitor
from tracker.metrics import Metrics
from tracker.page import report
from tracker.page.live import Live
from tracker.page.replicas import Replicas
from tracker.page.site import Page
from tracker.settings import TrackerSettings
from tracker.state import announce
from tracker.state.announcers import counts
from tracker.state.cluster import Cluster

log = logging.getLogger("shoal.tracker")

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")

BODY = 30.0
"""Seconds for the body of a request: the hashes of a large blob over a thin line, and no more."""


class TrackerServer:
    """A tracker that listens. `start`, then `close`; `url` once started.

    Above the bound of methods: one for each address that it answers.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        discovery: Discovery,
        registry: CollectorRegistry | None = None,
        *,
        identity: Identity | None = None,
        authority: Authority | None = None,
    ) -> None:
        """*identity*: agents come by TLS and are known by their certificates; None: by their addresses.

        *authority*: signs the certificates of agents, where discovery can say whose token they have.
        """
        self._settings = settings
        self._discovery = discovery
        self._gate = Gate(discovery, by_key=identity is not None)
        self.metrics = Metrics(registry or CollectorRegistry())
        labelled = discovery if isinstance(discovery, Labelled) else None
        labels = labelled.labels if labelled is not None else _unlabelled
        self.cluster = Cluster(settings, self.metrics, note=discovery.note, labels=labels)
        self._verbs = Verbs(self.cluster).verbs
        others = Replicas(settings.replicas, self.cluster.incarnation, identity=identity, token=settings.page_token)
        self._live = Live(self.cluster, others, lambda: self.ready)
        self._page = Page(self._live)
        self._preheats = PreheatApi(self.cluster, settings.preheat_token, labelled)
        self._seldom = Seldom()
        self._counted: dict[tuple[str, int], Counter] = {}
        self._tls = identity.server_context(strangers=True) if identity is not None else None
        self._signing = None
        if authority is not None and isinstance(discovery, Reviewing):
            self._signing = Signing(authority, discovery.review, discovery.named)
        self._doors = Doors(
            hosts=frozenset(name.lower() for name in settings.hosts),
            token=settings.page_token,
            by_key=identity is not None,
            page_apart=settings.page_listen is not None,
            metrics_apart=settings.metrics_listen is not None,
        )
        self._open_doors: list[Listening] = []
        self._watch: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gets: dict[str, Handler] = {
            "/": self._file,
            "/announce": self._announce,
            "/scrape": self._scrape,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/api/v1/state": self._state,
            "/api/v1/agents": self._agents,
            "/api/v1/boards": self._boards,
            "/api/v1/cluster": self._page.view,
            "/api/v1/schema": self._schema,
        }
        self.url = ""

    @property
    def ready(self) -> bool:
        """Whether agents should come here."""
        return self._discovery.ready and not self.cluster.stopping

    async def start(self) -> None:
        """Listen. Raises TrackerError if the address cannot be had."""
        settings = self._settings
        await self._preheats.open()
        await self._open(self._main, settings.listen, self._tls)
        self.url = self._open_doors[0].url
        if settings.page_listen is not None:
            await self._open(self._at_page, settings.page_listen)
        if settings.metrics_listen is not None:
            await self._open(self._at_metrics, settings.metrics_listen)
        self._watch = asyncio.ensure_future(self._discovery.run(self._changed))
        self._watch.add_done_callback(self._discovered)
        fields = {"url": self.url, "incarnation": self.cluster.incarnation}
        if len(self._open_doors) > 1:
            fields["also"] = " ".join(door.url for door in self._open_doors[1:])
        log.info("tracker.started", extra={"fields": fields})

    async def run(self) -> None:
        """Serve until cancelled. Raises what made discovery end."""
        await self._failure

    async def close(self) -> None:
        """Not ready any more; open polls are answered 503, then the listener closes."""
        self.cluster.stop()
        await self._live.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.sleep(0)  # lets the polls that were just woken write their answers
        await asyncio.gather(*(door.close() for door in self._open_doors))
        if not self._failure.done():
            self._failure.cancel()
        log.info("tracker.stopped", extra={"fields": {"url": self.url}})

    # -- requests -----------------------------------------------------------------------------------

    async def _open(self, handler: Handler, where: tuple[str, int], tls: ssl.SSLContext | None = None) -> None:
        door = Listening(
            handler,
            max_body=self._settings.max_body,
            stop=self._settings.stop,
            known=lambda ip: self._gate.visitor(ip).member,
            tls=tls,
        )
        await door.start(*where)
        self._open_doors.append(door)

    async def _main(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._handle(request, Where.MAIN)

    async def _at_page(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._handle(request, Where.PAGE)

    async def _at_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._handle(request, Where.METRICS)

    async def _handle(self, request: web.BaseRequest, where: Where) -> web.StreamResponse:
        try:
            self._doors.check(request, where, proven_by(request))
        except Refused as refused:
            self._tell_refusal(request, refused)
            answer = _json(wire.Problem(code=refused.code, message=str(refused)), refused.status)
            if isinstance(refused, Locked):
                answer.headers["WWW-Authenticate"] = 'Basic realm="shoal"'
            answer.headers.update(SAFE)
            answer.force_close()
            return answer
        response = await self._route(request)
        if not response.prepared:
            for name, value in SAFE.items():
                response.headers.setdefault(name, value)
        return response

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path.startswith("/v1/"):
            return await self._speak(request, path[4:])
        if path == PREHEATS or path.startswith(f"{PREHEATS}/"):
            return await self._translated(self._preheats.handle, request)
        if request.method not in ("GET", "HEAD"):
            return _text("method not allowed\n", 405, {"Allow": "GET, HEAD"})
        handler = self._gets.get(path)
        if handler is None:
            if path.startswith("/api/v1/boards/"):
                handler = self._board
            elif path.startswith("/torrents/"):
                handler = self._torrent
            elif path.startswith("/api/v1/cluster/"):
                handler = self._page.view
            elif path.startswith("/page/"):
                handler = self._file
            else:
                return _text("not found\n", 404)
        return await self._translated(handler, request)

    async def _translated(self, handler: Handler, request: web.BaseRequest) -> web.StreamResponse:
        """What *handler* answers, or its refusal in the protocol's form."""
        try:
            return await handler(request)
        except Refused as refused:
            return _json(wire.Problem(code=refused.code, message=str(refused)), refused.status)
        except ValueError as error:
            return _json(wire.Problem(code="malformed", message=str(error)), 400)

    async def _speak(self, request: web.BaseRequest, verb: str) -> web.Response:
        """A verb of the agents' protocol."""
        if verb == "certificate" and self._signing is not None and request.secure:
            return await self._sign(request, self._signing)
        speak = self._verbs.get(verb)
        status = 200
        try:
            if speak is None:
                raise Unknown(f"no such verb: {verb[:40]}")
            if request.method != "POST":
                return _text("method not allowed\n", 405, {"Allow": "POST"})
            visitor = self._visitor(request)
            async with asyncio.timeout(BODY):
                body = await request.read()
            return web.Response(body=await speak(visitor, body), content_type="application/json")
        except TimeoutError:
            status, problem = 408, wire.Problem(code="too-slow", message="the body did not come in time")
        except Refused as refused:
            self._tell_refusal(request, refused)
            status, problem = refused.status, wire.Problem(code=refused.code, message=str(refused))
        except ValueError as error:  # DigestInvalid, BadHashes
            status, problem = 400, wire.Problem(code="malformed", message=str(error))
        except web.HTTPRequestEntityTooLarge:
            status, problem = 413, wire.Problem(code="too-large", message="the request is too large")
        except Exception:
            log.exception("verb.failed", extra={"fields": {"verb": verb}})
            status, problem = 500, wire.Problem(code="internal", message="the tracker failed; its log says why")
        finally:
            self._count(verb if speak is not None else "unknown", status)
        response = _json(problem, status)
        if status == 503:
            response.force_close()
        return response

    async def _sign(self, request: web.BaseRequest, signing: Signing) -> web.Response:
        """A certificate for whoever has a member's token: the one verb that needs none."""
        status = 200
        try:
            async with asyncio.timeout(BODY):
                body = await request.read()
            return web.Response(body=await signing.answer(body), content_type="application/json")
        except Refused as refused:
            self._tell_refusal(request, refused)
            status = refused.status
            return _json(wire.Problem(code=refused.code, message=str(refused)), status)
        except (TimeoutError, web.HTTPRequestEntityTooLarge):
            status = 400
            return _json(wire.Problem(code="malformed", message="the body is too long or too slow"), status)
        finally:
            self._count("certificate", status)

    def _tell_refusal(self, request: web.BaseRequest, refused: Refused) -> None:
        """Name who was refused and why: once a minute per address and kind, or an agent stays away unseen."""
        remote = request.remote or ""
        if isinstance(refused, NotAMember):
            self.cluster.refusals.note(remote, str(refused), self.cluster.now())
        before = self._seldom.due((remote, refused.code), self.cluster.now())
        if before is not None:
            fields = {"from": remote, "code": refused.code, "reason": str(refused)[:200], "held_back": before}
            log.warning("agent.refused", extra={"fields": fields})

    def _count(self, verb: str, status: int) -> None:
        counter = self._counted.get((verb, status))
        if counter is None:
            counter = self._counted[verb, status] = self.metrics.requests.labels(verb, str(status))
        counter.inc()

    # -- BitTorrent -----------------------------------------------------------------------------------

    async def _announce(self, request: web.BaseRequest) -> web.Response:
        try:
            visitor = self._visitor(request)
            asked = announce.parse_announce(request.raw_path, self._settings.peers)
            counts, peers = self.cluster.announcers.announce(asked, visitor)
            body = announce.announce_answer(asked, counts, peers, self._settings.interval)
        except Refused as refused:
            return self._failure_reason(request, refused)
        self._announces("ok").inc()
        return web.Response(body=body, content_type="text/plain")

    async def _scrape(self, request: web.BaseRequest) -> web.Response:
        try:
            self._visitor(request)
            files = {}
            for info_hash in announce.parse_scrape(request.raw_path):
                if (swarm := self.cluster.swarms.by_info_hash(info_hash)) is not None:
                    files[info_hash] = counts(swarm)
        except Refused as refused:
            return self._failure_reason(request, refused)
        self._announces("ok").inc()
        return web.Response(body=announce.scrape_answer(files), content_type="text/plain")

    def _visitor(self, request: web.BaseRequest) -> Visitor:
        if not self.ready:
            raise Unready("this tracker stops" if self.cluster.stopping else "members are not known yet")
        visitor = self._gate.visitor(request.remote or "", claim_of(request, proven_by(request)))
        if not visitor.member:
            self.metrics.strangers.inc()
            raise NotAMember(f"{visitor.ip} is no member")
        return visitor

    def _failure_reason(self, request: web.BaseRequest, refused: Refused) -> web.Response:
        """BEP 3: clients read the reason only from an answer with status 200."""
        self._announces(refused.code).inc()
        self._tell_refusal(request, refused)
        return web.Response(body=announce.failure(str(refused)), content_type="text/plain")

    def _announces(self, outcome: str) -> Counter:
        counter = self._counted.get((outcome, 0))
        if counter is None:
            counter = self._counted[outcome, 0] = self.metrics.announces.labels(outcome)
        return counter

    async def _torrent(self, request: web.BaseRequest) -> web.Response:
        """The .torrent of a sealed blob: `/torrents/<digest>.torrent`; our announce URL and some holders inside."""
        name = request.path.removeprefix("/torrents/")
        if not name.endswith(".torrent"):
            raise Unknown("torrents are /torrents/sha256:<hex>.torrent")
        self._visitor(request)  # the piece hashes are the key to the swarm: members only
        swarm = self.cluster.swarms.get(parse(name.removesuffix(".torrent")))
        if swarm is None or swarm.info_hash is None:
            raise Unknown("no sealed blob of that name")
        host = request.headers.get("Host", "")
        if not _HOST.fullmatch(host):
            raise Malformed("the Host header names no host")
        scheme = "https" if request.secure else "http"  # where trackers have keys, so have agents
        seeds = [f"{scheme}://{Endpoint(p.ip, p.lane)}/" for p in self.cluster.answers.seeds(swarm)]
        body = torrent_file(swarm.info(), [f"http://{host}/announce"], seeds)
        return web.Response(body=body, content_type="application/x-bittorrent")

    # -- people and probes ------------------------------------------------------------------------------

    async def _file(self, request: web.BaseRequest) -> web.Response:
        return self._page.file(request)

    async def _schema(self, _request: web.BaseRequest) -> web.Response:
        return self._page.schema()

    async def _healthz(self, _request: web.BaseRequest) -> web.Response:
        return _text("ok\n")

    async def _readyz(self, _request: web.BaseRequest) -> web.Response:
        return _text("ready\n") if self.ready else _text("not ready\n", 503)

    async def _metrics(self, _request: web.BaseRequest) -> web.Response:
        counts = dict.fromkeys(("new", "entering", "sealed", "poisoned"), 0)
        for swarm in self.cluster.swarms:
            counts[report.board_state(swarm)] += 1
        for name, count in counts.items():
            self.metrics.boards.labels(name).set(count)
        self.metrics.names.set(len(self.cluster.names))
        self.metrics.keeps.set(len(self.cluster.keeping))
        self.metrics.keeps_short.set(self.cluster.keeping.short)
        self.metrics.conflicts.set(len(self.cluster.rivals.standing(self.cluster.now())))
        body = generate_latest(self.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _state(self, _request: web.BaseRequest) -> web.Response:
        return _json(report.state(self.cluster, ready=self.ready))

    async def _agents(self, request: web.BaseRequest) -> web.Response:
        query = _Query(request)
        return _json(report.agents(self.cluster, query.text("q"), query.offset, query.limit))

    async def _boards(self, request: web.BaseRequest) -> web.Response:
        query = _Query(request)
        which = query.text("state")
        return _json(report.boards(self.cluster, query.text("q"), which, query.offset, query.limit))

    async def _board(self, request: web.BaseRequest) -> web.Response:
        swarm = self.cluster.swarms.get(parse(request.path.removeprefix("/api/v1/boards/")))
        if swarm is None:
            raise Unknown("no such board")
        query = _Query(request)
        return _json(report.board(self.cluster, swarm, query.offset, query.limit))

    # -- membership ---------------------------------------------------------------------------------------

    def _discovered(self, watch: asyncio.Task[None]) -> None:
        """Discovery ended: by itself if the members can never change, else with what it failed of."""
        if watch.cancelled() or self._failure.done():
            return
        if (error := watch.exception()) is not None:
            self._failure.set_exception(error)

    def _changed(self) -> None:
        changed = self._discovery.touched()
        self._gate.forget(changed)
        self.cluster.review(self._gate, changed)


class _Query:
    """`q`, `offset`, `limit` of a list. Raises Malformed."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._values = parse_qs(request.rel_url.raw_query_string, keep_blank_values=True)
        self.offset = self._number("offset", 0)
        self.limit = min(report.MAX_PAGE, self._number("limit", 100))

    def text(self, key: str) -> str:
        return self._values.get(key, [""])[0][:200]

    def _number(self, key: str, default: int) -> int:
        text = self.text(key)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise Malformed(f"{key} must be a number")
        return int(text)


def _unlabelled(_ip: str) -> None:
    """The labels of a node where discovery knows none."""


def _json(value: object, status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


def _text(text: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=text, status=status, headers=headers)
