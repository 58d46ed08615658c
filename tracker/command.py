"""`shoal tracker`: announces, boards, claims, membership and the status page."""

from __future__ import annotations

import re
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from swarm.base import logs
from swarm.base.flags import (
    DURATION,
    ENDPOINT,
    LOG_FORMAT,
    LOG_LEVEL,
    NETWORK,
    PATH,
    TEXT,
    TRACKER,
    Endpoint,
    Flag,
    options,
    setting,
)
from swarm.identity.authority import Authority
from swarm.identity.files import identity_files
from swarm.identity.issued import IssuedIdentity
from swarm.identity.name import Role
from swarm.identity.tls import Identity
from tracker.errors import TrackerError
from tracker.members.discovery import Discovery
from tracker.settings import TrackerSettings

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def parse_discovery(text: str) -> str:
    """`kubernetes`, `dns` or `static`. Raises ValueError."""
    plain = text.strip().lower()
    if plain not in ("kubernetes", "dns", "static"):
        raise ValueError(f"{text!r} is no discovery; write kubernetes, dns or static")
    return plain


DISCOVERY = Flag("KIND", parse_discovery)


@dataclass(frozen=True)
class TrackerFlags:
    """Every flag of `shoal tracker`."""

    listen: Endpoint = setting(
        Endpoint("127.0.0.1", 6969),
        ENDPOINT,
        "Where agents, BitTorrent clients, browsers and Prometheus ask this tracker.",
        unit="host and TCP port",
        reason="Loopback unless somebody opens it; 6969 is the usual port of trackers.",
    )
    page_listen: Endpoint | None = setting(
        None,
        ENDPOINT,
        "Where the page, its API and the metrics are read, apart from the agents' port.",
        unit="host and TCP port",
        reason="One port is simpler; two can be opened to different people. The chart uses loopback, for port-forward.",
    )
    metrics_listen: Endpoint | None = setting(
        None,
        ENDPOINT,
        "Where Prometheus reads /metrics, apart from the rest; it names no image and no node's content.",
        unit="host and TCP port",
        reason="With the page, unless that is closed to Prometheus.",
    )
    page_token_file: Path | None = setting(
        None,
        PATH,
        "File with the token that readers of page, API and metrics show (Bearer, or as password); read at the start.",
        unit="file",
        reason="A file is not seen in a list of processes. Without it who reaches the port may read.",
    )
    host: tuple[str, ...] = setting(
        (),
        TEXT,
        "A public name of this tracker, as browsers write it; addresses and inside names always count. Repeatable.",
        unit="DNS name",
        reason="Other names are refused: a web page could give its own name this tracker's address and read it.",
    )
    tls_ca: Path | None = setting(
        None,
        PATH,
        "Authority of agents and trackers (PEM). With it and the two below, agents come by TLS with a certificate.",
        unit="file",
        reason="None: members are known by address, and the network is trusted. `shoal ca` makes one.",
    )
    tls_cert: Path | None = setting(
        None,
        PATH,
        "This tracker's certificate (PEM); read again when it changes.",
        unit="file",
        reason="`shoal ca issue tracker NAME` makes it, or cert-manager.",
    )
    tls_key: Path | None = setting(
        None,
        PATH,
        "The key of that certificate (PEM, not encrypted).",
        unit="file",
        reason="Readable by the tracker alone.",
    )
    tls_ca_key: Path | None = setting(
        None,
        PATH,
        "The authority's key (PEM), instead of --tls-cert: this tracker signs its own certificate, and the agents'.",
        unit="file",
        reason="Kubernetes discovery: agents prove their pod by a token, and need no certificate beforehand.",
    )
    discovery: str = setting(
        "static",
        DISCOVERY,
        "How members are found: kubernetes (running pods), dns (addresses of a name) or static (--member).",
        unit="kind",
        reason="Static needs nothing around it; the chart says kubernetes.",
    )
    member: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1/128"),
        NETWORK,
        "Static discovery: a network whose agents are members. Repeatable.",
        unit="CIDR",
        reason="This machine only, until somebody names networks.",
    )
    member_name: tuple[str, ...] = setting(
        (),
        TEXT,
        "DNS discovery: a name whose A and AAAA records are the members. Repeatable.",
        unit="DNS name",
        reason="Which name it is, only the operator knows.",
    )
    namespace: str = setting(
        "",
        TEXT,
        "Kubernetes discovery: the agents' namespace; the tracker's own if empty.",
        unit="namespace",
        reason="The chart installs both into one.",
    )
    selector: str = setting(
        "app.kubernetes.io/name=shoal,app.kubernetes.io/component=agent",
        TEXT,
        "Kubernetes discovery: label selector of the agents' pods.",
        unit="label selector",
        reason="The labels that the chart gives them.",
    )
    zones: bool = setting(
        True,
        bool,
        "Kubernetes discovery: learn the nodes' zones where permitted, and prefer peers within one.",
        unit="on or off",
        reason="Traffic between zones is slower, and usually billed.",
    )
    lift_taint: bool = setting(
        False,
        bool,
        "Kubernetes discovery: take shoal.io/agent-not-ready:NoSchedule off a node once its agent is a member.",
        unit="on or off",
        reason="Needs the right to patch nodes, and nodes that join with the taint.",
    )
    near_zone: tuple[str, ...] = setting(
        (),
        TEXT,
        "A zone that is near to upstream: its agents bring blobs in before others do. Repeatable.",
        unit="zone",
        reason="Which zone has the way out (a NAT gateway, a cache, an endpoint), only the operator knows.",
    )
    copy_per_zone: bool = setting(
        False,
        bool,
        "Each zone brings in a copy of its own, and nothing crosses zones while it can.",
        unit="on or off",
        reason="Off: one copy per cluster. On pays where traffic between zones costs more than traffic from upstream.",
    )
    kubeconfig: Path | None = setting(
        None,
        PATH,
        "Kubernetes discovery: configuration file; the pod's service account, else ~/.kube/config, if empty.",
        unit="file",
        reason="In a pod there is nothing to set.",
    )
    peer: tuple[str, ...] = setting(
        (),
        TRACKER,
        "The other trackers, for the page: http://HOST:PORT, or dns+http://NAME:PORT for every address. Repeatable.",
        unit="URL",
        reason="One tracker has no others; the chart names its headless service.",
    )
    quarantine: float = setting(
        TrackerSettings.quarantine,
        DURATION,
        "For how long an agent that told wrong hashes gets no claims and is handed to nobody.",
        unit="seconds",
        reason="Long enough that a bad disk does not keep costing refetches, short enough to come back by itself.",
    )
    preheat_token: Path | None = setting(
        None,
        PATH,
        "File with the token of those who may order preheats over HTTP (`shoal preheat`); read with each order.",
        unit="file",
        reason="Off: an order makes every node fetch, so only who was given the token may.",
    )
    keep_patience: float = setting(
        TrackerSettings.keep_patience,
        DURATION,
        "For how long an agent that keeps an image and left may come back before another takes its place.",
        unit="seconds",
        reason="A restart or an upgrade takes less; each replacement moves the image once more.",
    )
    log_level: str = setting(
        "info",
        LOG_LEVEL,
        "debug, info, warning or error.",
        unit="level",
        reason="Info says what happened to a swarm; debug says what happened to a claim.",
    )
    log_format: str = setting(
        "text",
        LOG_FORMAT,
        "text (key=value) or json (one object per line).",
        unit="format",
        reason="Text for people; the chart sets json.",
    )


@click.command()
@options(TrackerFlags)
def tracker(**values: Any) -> Coroutine[Any, Any, None]:
    """Run a tracker: who has what, who fetches what, and the status page."""
    flags = TrackerFlags(**values)
    if flags.discovery == "dns" and not flags.member_name:
        raise click.UsageError("--discovery dns needs --member-name NAME")
    logs.configure(flags.log_level, flags.log_format)
    return _serve(flags)


async def _serve(flags: TrackerFlags) -> None:
    from tracker.serve import serve

    identity, authority = _identity(flags)
    settings = TrackerSettings(
        listen=flags.listen,
        page_listen=flags.page_listen,
        metrics_listen=flags.metrics_listen,
        page_token=_token(flags.page_token_file),
        hosts=flags.host,
        replicas=flags.peer,
        near_zone=flags.near_zone,
        copy_per_zone=flags.copy_per_zone,
        quarantine=flags.quarantine,
        preheat_token=flags.preheat_token,
        keep_patience=flags.keep_patience,
    )
    try:
        await serve(settings, _discovery(flags), identity, authority)
    except TrackerError as problem:
        raise click.ClickException(str(problem)) from None


def _discovery(flags: TrackerFlags) -> Discovery:
    """The kind of membership that was asked for; each kind is loaded only then (kubernetes costs 30 MB)."""
    match flags.discovery:
        case "kubernetes":
            from tracker.members.events import Events
            from tracker.members.pods import KubernetesDiscovery
            from tracker.members.taints import Taints

            return KubernetesDiscovery(
                flags.namespace or _own_namespace(),
                flags.selector,
                zones=flags.zones,
                kubeconfig=flags.kubeconfig,
                events=Events(),
                taints=Taints() if flags.lift_taint else None,
            )
        case "dns":
            from tracker.members.dns import DnsDiscovery

            return DnsDiscovery(flags.member_name)
        case _:
            from tracker.members.static import StaticDiscovery

            return StaticDiscovery(flags.member)


def _identity(flags: TrackerFlags) -> tuple[Identity | None, Authority | None]:
    """What the flags say of keys: this tracker's identity, and the authority if it signs. Raises IdentityError."""
    if flags.tls_ca_key is None:
        named = identity_files(flags.tls_ca, flags.tls_cert, flags.tls_key)
        return (named.identity if named is not None else None), None
    if flags.tls_ca is None or flags.tls_cert is not None or flags.tls_key is not None:
        raise click.UsageError("--tls-ca-key needs --tls-ca, and no --tls-cert or --tls-key")
    authority = Authority(flags.tls_ca.read_bytes(), flags.tls_ca_key.read_bytes())
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.") or "tracker"
    return IssuedIdentity(authority, Role.TRACKER, host).identity, authority


def _token(path: Path | None) -> str:
    """The token in a file. Raises OSError, click.UsageError."""
    if path is None:
        return ""
    text = path.read_text(encoding="utf-8").strip()
    if not text:
        raise click.UsageError(f"{path} holds no token")
    return text


def _own_namespace() -> str:
    try:
        return _NAMESPACE.read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"
