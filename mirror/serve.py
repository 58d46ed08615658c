"""One agent: its parts made from settings, started in order, and stopped so that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from mirror.errors import SettingsInvalid
from mirror.front import blobs, tags
from mirror.front.access import AuthCache
from mirror.front.app import MOST_REQUESTS, Front, make_app, make_site
from mirror.front.background import Background
from mirror.front.bodies import Bodies
from mirror.front.door import Door
from mirror.front.gathering import Gathering
from mirror.front.images import Images
from mirror.front.keeping import Keeper
from mirror.front.opaque import OpaqueCache
from mirror.front.possession import Possession
from mirror.front.preheat import Preheater
from mirror.front.quiet import Quiet
from mirror.front.streaming import StreamingFront
from mirror.front.v2 import RegistryFront
from mirror.limitsfile import Limits, LimitsFile
from mirror.metrics import FrontMetrics, watch_loop
from mirror.settings import MirrorSettings
from mirror.upstream import kubelet, registryfile
from mirror.upstream.addresses import AddressRules
from mirror.upstream.auth import Chain, Credentials
from mirror.upstream.client import Upstream
from mirror.upstream.dockerconfig import DockerConfig
from mirror.upstream.guard import Guard
from mirror.upstream.limits import Limits as RequestLimits
from mirror.upstream.proxies import Proxies, from_environment
from mirror.upstream.registries import Registries
from mirror.upstream.transport import Deadlines
from mirror.upstream.urlrules import UrlRules, named_hosts
from swarm.base.flags import Endpoint
from swarm.base.heap import give_back, settle
from swarm.base.listener import Listener
from swarm.base.pace import Pace
from swarm.base.scheduling import batch
from swarm.blob.digest import Digest
from swarm.fetch.proof import Proof
from swarm.identity.files import identity_files
from swarm.identity.tls import Identity
from swarm.node import Node
from swarm.protocol import wire

if TYPE_CHECKING:
    from swarm.identity.issued import EnrolledIdentity

log = logging.getLogger("shoal.mirror")

GRACE = 2.0
"""Seconds for requests under way after SIGTERM. Together with the swarm's own goodbye it stays below the 10 s that
are promised; containerd goes on elsewhere from the byte where it was cut."""

KEEP_ALIVE = 75.0
"""Seconds for which an idle connection is kept: longer than the pauses between layers, short enough to free it."""


WAITING = 1024
"""Connections that the kernel keeps for us: containerd opens one per layer and chunk."""


@dataclass(frozen=True)
class _Orders:
    """What trackers pass on to this agent, for those who act on it."""

    guard: Guard
    preheater: Preheater
    keeper: Keeper

    def hold(self, host: str, seconds: float) -> None:
        self.guard.hold(host, seconds)

    def preheat(self, order: wire.Preheat) -> None:
        self.preheater.take(order.id, order.images, order.platform)

    def keep(self, order: wire.KeepHere) -> None:
        self.keeper.take(order)

    def changed(self, digest: Digest, size: int | None) -> None:
        self.keeper.changed(digest, size)

    def kept(self) -> tuple[wire.Kept, ...]:
        return self.keeper.kept()


async def serve(settings: MirrorSettings) -> None:
    """Run the agent until cancelled (SIGTERM, SIGINT). Raises OSError, SwarmError if it cannot start."""
    async with running(settings):
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def running(settings: MirrorSettings) -> AsyncIterator[Front]:
    """A running agent. Leaving stops it: no new requests, GRACE for the old, then the swarm says goodbye."""
    give_back()
    batch()
    calm(asyncio.get_running_loop())
    prometheus = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=prometheus)
    metrics = FrontMetrics(prometheus)
    async with AsyncExitStack() as stack:
        enrolled = enrolment(settings)
        identity = enrolled.identity if enrolled is not None else identity_of(settings)
        swarm = Node(settings.swarm(), prometheus, identity=identity)
        pace = Pace()
        telling: set[asyncio.Task[None]] = set()

        def tell(host: str, seconds: float) -> None:
            task = asyncio.create_task(swarm.tell_backoff(host, seconds))
            telling.add(task)
            task.add_done_callback(telling.discard)

        upstream = await stack.enter_async_context(await upstream_of(settings, prometheus, pace, tell))
        images = Images(swarm.tell_image)
        gathering = Gathering(swarm, upstream, images)
        preheater = Preheater(gathering, swarm.tell_preheat)
        keeper = Keeper(gathering, swarm.keeping, swarm.tell_kept)
        stack.push_async_callback(preheater.close)
        stack.push_async_callback(keeper.close)
        swarm.names.ask_upstream = tags.asker(upstream)
        stack.push_async_callback(swarm.close)
        front = front_of(settings, swarm, upstream, metrics, stack, images, Quiet(given=lambda: swarm.given))
        listens = asyncio.Event()

        def ready() -> bool:
            """This node's work can be done: the mirror listens and the store is open. Trackers are not asked for."""
            return listens.is_set() and swarm.ready

        site = make_site(metrics, ready, lambda: {**swarm.status(), "requests": front.under_way}, front.quiet)
        # Probes are answered while the store is still being read; the mirror listens once it can serve.
        await stack.enter_async_context(listening(site, settings.metrics_listen, grace=0.5))
        await keeper.load()
        await swarm.start(_Orders(upstream.guard, preheater, keeper))
        keeper.start()
        limiting: set[asyncio.Task[None]] = set()

        def limit(limits: Limits) -> None:
            pace.set(limits.download)
            task = asyncio.create_task(swarm.limit(limits.upload))
            limiting.add(task)
            task.add_done_callback(limiting.discard)

        limits = LimitsFile(settings.limits_file, Limits(settings.upload_limit, settings.download_limit), limit)
        await limits.open()
        stack.push_async_callback(limits.close)
        if enrolled is not None:
            enrolling = asyncio.create_task(enrolled.run(swarm.tracker_urls))
            stack.callback(enrolling.cancel)
        await front.streaming.door.load()
        lag = asyncio.create_task(watch_loop(metrics))
        stack.callback(lag.cancel)
        await stack.enter_async_context(listening(make_app(front), settings.listen, grace=GRACE))
        listens.set()
        stack.callback(listens.clear)  # first of all when the agent stops: no new requests come here
        log.info("mirror-listening", extra={"fields": {"address": str(settings.listen)}})
        settle()
        yield front
        log.info("stopping", extra={"fields": {"requests": front.under_way}})


def enrolment(settings: MirrorSettings) -> EnrolledIdentity | None:
    """The identity that trackers sign for a token, if there is one. Raises IdentityError, SettingsInvalid."""
    if settings.tls_token is None:
        return None
    if settings.tls_ca is None or settings.tls_cert is not None or settings.tls_key is not None:
        raise SettingsInvalid("--tls-token needs --tls-ca, and no --tls-cert or --tls-key")
    from swarm.identity.issued import EnrolledIdentity  # 15 MiB that only this agent needs

    return EnrolledIdentity(settings.tls_ca, settings.tls_token)


def identity_of(settings: MirrorSettings) -> Identity | None:
    """The identity in files, if they are named. Raises IdentityError."""
    named = identity_files(settings.tls_ca, settings.tls_cert, settings.tls_key)
    return named.identity if named is not None else None


@contextlib.asynccontextmanager
async def listening(app: web.Application, where: Endpoint, *, grace: float) -> AsyncIterator[web.AppRunner]:
    """*app* served at *where*. Leaving: no new connections, *grace* seconds for requests under way."""
    listener: Listener | None = None

    @web.middleware
    async def busy(request: web.Request, handler: Handler) -> web.StreamResponse:
        assert listener is not None
        with listener.busy(request.transport):
            return await handler(request)

    app.middlewares.insert(0, busy)
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, keepalive_timeout=KEEP_ALIVE, shutdown_timeout=grace
    )
    await runner.setup()
    server = runner.server
    assert server is not None
    # Everything on this node comes from one address: 32 layers that are read 16 wide by four images at once.
    listener = Listener(server, unproven=MOST_REQUESTS)
    try:
        for place in await _bound(where):
            listener.take(place, WAITING)
        yield runner
    finally:
        listener.close()
        await runner.cleanup()


async def _bound(where: Endpoint) -> list[socket.socket]:
    """A socket for each address of *where*, bound. `::` takes both families. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(where.host or None, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places: list[socket.socket] = []
    apart = any(family == socket.AF_INET for family, *_ in found)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            place = socket.socket(family, kind, protocol)
            places.append(place)
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(apart or address[0] != "::"))
            place.bind(address)
    except OSError as error:
        for place in places:
            place.close()
        raise OSError(error.errno, f"cannot listen at {where}: {os.strerror(error.errno or 0)}") from None
    return places


def calm(loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
    """Have *loop* tell once a second that it can accept no connection, instead of once for each that waits."""
    told = float("-inf")

    def tell(inner: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if not str(context.get("message", "")).startswith("socket.accept() out of"):
            inner.default_exception_handler(context)
        elif clock() - told >= 1.0:
            told = clock()
            fields = {"reason": str(context.get("exception"))}
            log.warning("connections-wait", extra={"fields": fields})

    loop.set_exception_handler(tell)


def front_of(
    settings: MirrorSettings,
    swarm: blobs.Node,
    upstream: Upstream,
    metrics: FrontMetrics,
    stack: AsyncExitStack,
    images: Images | None = None,
    quiet: Quiet | None = None,
) -> Front:
    """What answers requests; what it has to end is put onto *stack*."""
    bodies = Bodies(swarm)
    door = Door(settings.stream_ttl, settings.tag_keep, settings.store / "door")
    opaque = OpaqueCache(settings.store / "opaque", settings.stream_cache)
    background = Background(swarm, metrics, rate=settings.stream_prefetch_rate)
    stack.callback(opaque.close)
    stack.push_async_callback(door.close)
    stack.push_async_callback(background.close)
    private = None if settings.share_private else AuthCache(settings.share_private_ttl)
    return Front(
        RegistryFront(bodies, upstream, metrics, private, images=images or Images()),
        StreamingFront(
            bodies,
            upstream,
            door,
            opaque,
            background,
            node=header_word(settings.swarm().name),
            possession=None if settings.share_private else Possession(),
            trust_node=settings.stream_trust_node,
            prefetch=settings.stream_prefetch,
            proof=Proof.OWN if settings.strict_ranges else Proof.ORIGIN,
        ),
        metrics,
        names=frozenset({settings.listen.host, settings.swarm().name, *settings.called}),
        quiet=quiet or Quiet(),
    )


def header_word(text: str) -> str:
    """*text* as it may stand in a header."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", text)[:253] or "-"


async def upstream_of(
    settings: MirrorSettings,
    prometheus: CollectorRegistry,
    pace: Pace | None = None,
    on_backoff: Callable[[str, float], None] | None = None,
) -> Upstream:
    """The upstream client, from the flags and the files that they name. *on_backoff*: see Guard.

    Raises SettingsInvalid.
    """
    registries = registries_of(settings)
    if settings.registries is not None:
        registries = await asyncio.to_thread(registryfile.load, settings.registries, registries)
    credentials = await credentials_of(settings)
    general = RequestLimits(connections=settings.upstream_connections, rate=settings.upstream_rate)
    own = own_addresses(settings.listen, settings.metrics_listen, settings.swarm_listen)
    return Upstream(
        registries,
        credentials=credentials,
        guard=Guard(lambda host: registries.limits(host, general), on_backoff=on_backoff, metrics=prometheus),
        url_rules=UrlRules(named=(*settings.blob_host, *named_hosts((*registries.allow, *registries.configured)))),
        deadlines=deadlines_of(settings.upstream_timeout),
        private=AddressRules(private=settings.private_upstreams, own=own),
        public=AddressRules(private=False, own=own),
        proxies=proxies_of(os.environ),
        pace=pace,
    )


async def credentials_of(settings: MirrorSettings) -> Credentials:
    """This agent's credentials: Docker's config.json first, then kubelet's providers. Raises SettingsInvalid."""
    sources: list[Credentials] = []
    if settings.docker_config is not None:
        config = DockerConfig([settings.docker_config])
        await config.load()
        sources.append(config)
    configuration, programs = settings.credential_provider_config, settings.credential_provider_bin_dir
    if (configuration is None) != (programs is None):
        raise SettingsInvalid("--credential-provider-config and --credential-provider-bin-dir belong together")
    if configuration is not None and programs is not None:
        sources.append(await asyncio.to_thread(kubelet.load, configuration, programs))
    return Chain(*sources)


def deadlines_of(timeout: float) -> Deadlines:
    """The deadlines for upstreams, from `--upstream-timeout` in seconds."""
    return Deadlines(connect=min(Deadlines.connect, timeout), first_byte=timeout, slow=4 * timeout, stall=timeout)


def own_addresses(*places: Endpoint) -> frozenset[tuple[str, int]]:
    """Where this agent listens, as far as its flags tell: it must not take itself for a registry."""
    own = set()
    for place in places:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address("127.0.0.1" if place.host == "localhost" else place.host)
            own.add((str(address), place.port))
            if address.is_unspecified:
                own |= {("127.0.0.1", place.port), ("::1", place.port)}
    return frozenset(own)


def proxies_of(environment: Mapping[str, str]) -> Proxies:
    """The proxies of the environment, and a line in the log that says what they change. Raises ProxyInvalid."""
    proxies = from_environment(environment)
    if proxies:
        fields = {"proxies": ",".join(proxies.places), "no_proxy": ",".join(proxies.bypass)}
        log.info("upstream-proxies", extra={"fields": fields})
        log.warning(
            "address-rules-by-proxy",
            extra={
                "fields": {
                    "note": "names are looked up by the proxy: which addresses it may reach for us is for it to say; "
                    "addresses in a URL are still judged here"
                }
            },
        )
    return proxies


def registries_of(settings: MirrorSettings) -> Registries:
    """Which registries are served and how, from the flags."""
    general = next((ttl.seconds for ttl in reversed(settings.tag_ttl) if not ttl.host), Registries.tag_ttl)
    registries = Registries(
        allow=settings.allow,
        deny=settings.deny,
        plain_http=frozenset(settings.plain_http),
        certs=settings.registry_certs,
        tag_ttl=general,
    )
    own = {
        (registry := registries.registry(ttl.host)).host: replace(registry, tag_ttl=ttl.seconds)
        for ttl in settings.tag_ttl
        if ttl.host
    }
    return replace(registries, configured=own)
