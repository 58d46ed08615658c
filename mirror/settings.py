"""What can be set about an agent: every flag of `shoal agent`, with unit, default and reason."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from swarm.base.flags import (
    COUNT,
    DURATION,
    ENDPOINT,
    LOG_FORMAT,
    LOG_LEVEL,
    NUMBER,
    PATH,
    SIZE,
    TEXT,
    TRACKER,
    Endpoint,
    Flag,
    format_duration,
    parse_duration,
    parse_endpoint,
    setting,
)
from swarm.settings import SwarmSettings

_PATTERN = re.compile(
    r"(?:[A-Za-z0-9.*?_-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9*?]+)?(?:/[a-z0-9.*?_/-]*)?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*"
)


class TagTtl(NamedTuple):
    """For how long a tag's digest answers without asking upstream again."""

    host: str
    """Registry (`host` or `host:port`); empty: every registry that is not named."""

    seconds: float | None
    """0: always ask. None: tags are left to containerd (404)."""

    def __str__(self) -> str:
        time = "off" if self.seconds is None else format_duration(self.seconds)
        return f"{self.host}={time}" if self.host else time


def parse_registry(text: str) -> str:
    """`host` or `host:port`, in lower case. Raises ValueError."""
    plain = text.strip().lower()
    where = parse_endpoint(plain, port=443)
    host = f"[{where.host}]" if ":" in where.host else where.host
    return f"{host}:{where.port}" if re.search(r":\d+$", plain) else host


def parse_ip(text: str) -> str:
    """An IPv4 or IPv6 address; "" for none. Raises ValueError."""
    return str(ip_address(text.strip())) if text.strip() else ""


IP = Flag("IP", parse_ip)


def parse_tag_ttl(text: str) -> TagTtl:
    """`10s`, `0`, `off`, or one of them for one registry: `registry.example:5000=1m`. Raises ValueError."""
    host, equals, time = text.strip().rpartition("=")
    try:
        if equals:
            host = parse_registry(host)
        return TagTtl(host.lower(), None if time.lower() == "off" else parse_duration(time))
    except ValueError:
        raise ValueError(f"{text!r} is no tag TTL; write 10s, 0, off, or one for a registry: HOST=1m") from None


def parse_pattern(text: str) -> str:
    """A glob over `host[:port]/repository`; without a slash it means every repository. Raises ValueError."""
    plain = text.strip()
    if not _PATTERN.fullmatch(plain):
        raise ValueError(f"{text!r} is no pattern; write HOST[:PORT][/REPOSITORY] with * and ?, as in ghcr.io/team/*")
    return plain


TAG_TTL = Flag("[HOST=]TTL", parse_tag_ttl)
REGISTRY = Flag("HOST[:PORT]", parse_registry)
PATTERN = Flag("PATTERN", parse_pattern)


@dataclass(frozen=True)
class MirrorSettings:
    """Everything an agent is told. `swarm()` is the part that the swarm engine is told."""

    listen: Endpoint = setting(
        Endpoint("127.0.0.1", 30000),
        ENDPOINT,
        "Where containerd, overlaybd and others ask this agent.",
        unit="host and TCP port",
        reason="Loopback only: whoever may ask gets what this node's credentials can pull. Port 30000 is Peerd's.",
    )
    called: tuple[str, ...] = setting(
        (),
        REGISTRY,
        "A name by which clients call this agent, beside addresses, localhost and the node's name. Repeatable.",
        unit="host",
        reason="Other names are refused: a web page can bend its own name to this address (DNS rebinding).",
    )
    swarm_listen: Endpoint = setting(
        Endpoint("0.0.0.0", 6881),
        ENDPOINT,
        "Where other agents reach this one by BitTorrent.",
        unit="IP and TCP port",
        reason="Peers are other nodes, so every address; 6881 is BitTorrent's usual port.",
    )
    window_lane: bool = setting(
        True,
        bool,
        "Give and take windows over HTTP as well, on the port after --swarm-listen's (6882).",
        unit="on or off",
        reason="Bytes move in the kernel, at half the CPU. Off where only BitTorrent's port may be open between nodes.",
    )
    metrics_listen: Endpoint = setting(
        Endpoint("127.0.0.1", 5004),
        ENDPOINT,
        "Where Prometheus and probes find /metrics, /healthz and /status.",
        unit="host and TCP port",
        reason="Apart from the mirror, so that it can be opened to the cluster without opening the mirror.",
    )
    tracker: tuple[str, ...] = setting(
        (),
        TRACKER,
        "A tracker, http://HOST:PORT, or dns+http://NAME:PORT for every address of a name. Repeatable.",
        unit="URL",
        reason="None is allowed: the agent then works alone, from its disk and upstream.",
    )
    address: str = setting(
        "",
        IP,
        "Address under which other agents reach this one, if trackers see another (NAT, hostNetwork).",
        unit="IP",
        reason="What trackers see is right on flat networks; the chart sets the pod's own.",
    )
    pod: str = setting(
        "",
        TEXT,
        "UID of the pod that this agent runs in: trackers compare it with what the Kubernetes API says.",
        unit="UID",
        reason="Outside Kubernetes there is none; the chart sets metadata.uid.",
    )
    tls_ca: Path | None = setting(
        None,
        PATH,
        "Authority of agents and trackers (PEM). With it, all speak by TLS and know each other by certificate.",
        unit="file",
        reason="None: known by address, in clear, on a network that is trusted. `shoal ca` makes one.",
    )
    tls_cert: Path | None = setting(
        None,
        PATH,
        "This agent's certificate (PEM); read again when it changes.",
        unit="file",
        reason="`shoal ca issue agent NAME` makes it, or cert-manager.",
    )
    tls_key: Path | None = setting(
        None,
        PATH,
        "The key of that certificate (PEM, not encrypted).",
        unit="file",
        reason="Readable by the agent alone.",
    )
    tls_token: Path | None = setting(
        None,
        PATH,
        "Instead of --tls-cert: the pod's token for the audience shoal-tracker, for which trackers sign a certificate.",
        unit="file",
        reason="In a cluster kubelet makes and renews it, and the key is on no disk. The chart sets it.",
    )
    store: Path = setting(
        Path("/var/lib/shoal"),
        PATH,
        "Directory of this agent's blob store; one agent per directory.",
        unit="directory",
        reason="State of a service belongs under /var/lib (FHS 5.8).",
    )
    store_budget: int = setting(
        20 << 30,
        SIZE,
        "What the store may take of the disk.",
        unit="bytes",
        reason="Holds the images of a usual node twice, and leaves kubelet's disk thresholds alone on a 100 GB disk.",
    )
    upload_limit: int = setting(
        0,
        SIZE,
        "What this agent sends to all other agents together, a second; 0: no bound.",
        unit="bytes/s",
        reason="A cluster's own network is there to be used; a node that shares its link with a service wants a bound.",
    )
    download_limit: int = setting(
        0,
        SIZE,
        "What comes from all upstreams together, a second; 0: no bound. Pulls that somebody waits for come before "
        "preheats and prefetches.",
        unit="bytes/s",
        reason="One copy comes for the whole cluster; a thin line that others need as well wants a bound.",
    )
    limits_file: Path | None = setting(
        None,
        PATH,
        "TOML with upload-limit and download-limit, in place of the two flags; followed, so that they change at once.",
        unit="file",
        reason="None: they change with a restart. The chart mounts a ConfigMap here.",
    )
    node_name: str = setting(
        "",
        TEXT,
        "This node's name on the status page; the host's name if empty.",
        unit="text",
        reason="In a pod the host's name is the pod's; the chart sets spec.nodeName here.",
    )
    containerd_content: Path | None = setting(
        None,
        PATH,
        "containerd's content directory, read-only: offer what it holds to the swarm.",
        unit="directory",
        reason="Off unless named: it is /var/lib/containerd/io.containerd.content.v1.content where nobody moved it.",
    )
    allow: tuple[str, ...] = setting(
        ("*",),
        PATTERN,
        "Registries and repositories that are mirrored, HOST[:PORT][/REPOSITORY] with * and ?. Repeatable.",
        unit="glob",
        reason="hosts.toml already says which registries come here.",
    )
    deny: tuple[str, ...] = setting(
        (),
        PATTERN,
        "Registries and repositories that are not, whatever --allow says. Repeatable.",
        unit="glob",
        reason="An exception is easier to read than a list of everything else.",
    )
    plain_http: tuple[str, ...] = setting(
        (),
        REGISTRY,
        "A registry that speaks plain HTTP. Loopback registries always do. Repeatable.",
        unit="host and port",
        reason="As containerd: encryption is only left out where somebody said so.",
    )
    registry_certs: Path | None = setting(
        None,
        PATH,
        "Directory with one directory per HOST[:PORT]: *.crt (CAs), client.cert, client.key, as in Docker's certs.d.",
        unit="directory",
        reason="The layout that Docker, containerd and podman users already have.",
    )
    registries: Path | None = setting(
        None,
        PATH,
        "TOML file with what is special about single registries: URL, TLS, tag TTL, bounds.",
        unit="file",
        reason="What differs by registry is easier to read in a file than in flags.",
    )
    docker_config: Path | None = setting(
        None,
        PATH,
        "Docker config.json with this agent's credentials; re-read when it changes.",
        unit="file",
        reason="None: anonymous. A Kubernetes pull secret can be mounted as it is.",
    )
    credential_provider_config: Path | None = setting(
        None,
        PATH,
        "kubelet's --image-credential-provider-config: its providers' credentials, after those of --docker-config.",
        unit="file",
        reason="What kubelet pulls with by itself, the agent can pull with, too: nothing else is to be set up.",
    )
    credential_provider_bin_dir: Path | None = setting(
        None,
        PATH,
        "kubelet's --image-credential-provider-bin-dir, where the providers' programs are.",
        unit="directory",
        reason="Only with --credential-provider-config; both are mounted from the node, read-only.",
    )
    share_private: bool = setting(
        True,
        bool,
        "Serve peers' and stored copies of content that was pulled with credentials.",
        unit="on or off",
        reason="On, as Spegel and Peerd behave: a node's users are trusted as a whole. Off: see --share-private-ttl.",
    )
    share_private_ttl: float = setting(
        300.0,
        DURATION,
        "With --no-share-private: for how long upstream's yes to this agent's own credentials holds.",
        unit="seconds",
        reason="About the life of a registry token: a withdrawn right is gone after five minutes.",
    )
    tag_ttl: tuple[TagTtl, ...] = setting(
        (TagTtl("", 10.0),),
        TAG_TTL,
        "For how long a tag keeps its digest: 10s, 0 (always ask), off (left to containerd), HOST=... Repeatable.",
        unit="seconds",
        reason="One question per cluster and rollout; ten seconds is below what a person pushes and redeploys in.",
    )
    tag_keep: float = setting(
        24 * 3600.0,
        DURATION,
        "For how long the last known digest of a tag answers while upstream is down or throttles.",
        unit="seconds",
        reason="A day outlasts the registry outages on record; after that an old image is worse than an error.",
    )
    upstream_connections: int = setting(
        16,
        COUNT,
        "Requests under way at once to one registry.",
        unit="requests",
        reason="Enough for four claims of four blobs; far below what registries throttle.",
    )
    upstream_rate: float = setting(
        0.0,
        NUMBER,
        "Requests per second to one registry; 0: no bound.",
        unit="requests/s",
        reason="Windows are large, so requests are few; a bound is for registries that bill or throttle by request.",
    )
    upstream_timeout: float = setting(
        10.0,
        DURATION,
        "Without a byte from upstream for so long, a request has failed.",
        unit="seconds",
        reason="Longer than TCP needs to mend a lost burst; the window goes to somebody else after 5 s anyway.",
    )
    blob_host: tuple[str, ...] = setting(
        (),
        PATTERN,
        "A further host that /blobs/<URL> may fetch from, beside the mirrored registries and their known stores. "
        "Repeatable.",
        unit="glob",
        reason="Anything not named is refused: otherwise the agent would be an open proxy.",
    )
    stream_trust_node: bool = setting(
        False,
        bool,
        "Streamed files that this node holds are served without asking upstream whether this reader may have them.",
        unit="on or off",
        reason="Off: a URL opens the door only after upstream accepted it once. On saves that question per URL.",
    )
    stream_ttl: float = setting(
        300.0,
        DURATION,
        "For how long upstream's yes to a reader's URL and Authorization holds.",
        unit="seconds",
        reason="About the life of a registry token; signatures live longer and are asked about a few times.",
    )
    strict_ranges: bool = setting(
        False,
        bool,
        "Streamed reads get bytes that this node asked upstream for itself, until two members have seen the sha256.",
        unit="on or off",
        reason="Off: until then the hashes of who asked the same place first count. On, each node reads from upstream.",
    )
    stream_prefetch: bool = setting(
        False,
        bool,
        "Bring the whole file in behind the first streamed read, in the background.",
        unit="on or off",
        reason="A lazily loaded image reads a tenth of its bytes; bringing all of them in is for who runs it again.",
    )
    stream_prefetch_rate: int = setting(
        32 << 20,
        SIZE,
        "With --stream-prefetch: bytes per second of all prefetches of this agent together; 0: no bound.",
        unit="bytes/s",
        reason="A quarter of a 1 Gbit/s link: an image of 4 GiB is whole after two minutes, and readers do not notice.",
    )
    stream_cache: int = setting(
        1 << 30,
        SIZE,
        "What streamed files without a digest may take of the disk, beside the store.",
        unit="bytes",
        reason="They cannot be shared, so they only help repeated reads on this node.",
    )
    private_upstreams: bool = setting(
        True,
        bool,
        "Registries may have private addresses (10/8, 192.168/16, ...). Cloud metadata addresses never.",
        unit="on or off",
        reason="Many clusters have their registry inside.",
    )
    log_level: str = setting(
        "info",
        LOG_LEVEL,
        "debug, info, warning or error.",
        unit="level",
        reason="Info says what happened to a blob; debug says what happened to a window.",
    )
    log_format: str = setting(
        "text",
        LOG_FORMAT,
        "text (key=value) or json (one object per line).",
        unit="format",
        reason="Text for people; the chart sets json.",
    )

    def swarm(self) -> SwarmSettings:
        """What the swarm engine of this agent is told."""
        return SwarmSettings(
            store=self.store,
            name=self.node_name or socket.gethostname(),
            store_budget=self.store_budget,
            listen=self.swarm_listen,
            window_lane=self.window_lane,
            trackers=self.tracker,
            address=self.address,
            pod=self.pod,
            containerd_content=self.containerd_content,
            names_keep=self.tag_keep,
        )
