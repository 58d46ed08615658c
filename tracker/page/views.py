"""What the page shows, as values: the JSON of `GET /api/v1/cluster...`, described by `/api/v1/schema`.

Nothing in a view is null, and what changes one by one is an object by key, with its order beside it, so
that changes travel as small merge patches (tracker.page.patch). Times are seconds since the epoch on the
tracker's clock, so that a view changes only when something happened; sizes are bytes, rates bytes per second.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

SwarmState = Literal["new", "entering", "sealed", "poisoned"]
"""new: nobody brings it in yet; entering: windows arrive; sealed: whole and proven; poisoned: too often wrong."""

AgentState = Literal["connected", "away", "quarantined"]
"""away: its channel is closed for the moment."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all views."""


class Replica(View, frozen=True, kw_only=True):
    """A tracker of this cluster. *error*: why it did not answer; "" if it did."""

    incarnation: str = ""
    ready: bool = False
    started: float = 0.0
    agents: int = 0
    error: str = ""


class Count(View, frozen=True, kw_only=True):
    """Agents by state. *fetching*: those with a blob on its way; they are connected or away too."""

    total: int = 0
    connected: int = 0
    away: int = 0
    fetching: int = 0
    quarantined: int = 0


class Quarantined(View, frozen=True, kw_only=True):
    """An agent on which nobody relies for a while."""

    name: str
    zone: str
    until: float
    reason: str


class Blamed(View, frozen=True, kw_only=True):
    """A line of the record of blame."""

    at: float
    agent: str
    name: str
    what: Literal["quarantined", "suspect"]
    reason: str


class Conflict(View, frozen=True, kw_only=True):
    """Two agents that announce one address and port. *taken*: the node that is taken; *refused*: the other."""

    taken: str
    refused: str
    since: float


class Turned(View, frozen=True, kw_only=True):
    """An address that is refused, and so works alone."""

    reason: str
    since: float


class Kept(View, frozen=True, kw_only=True):
    """An image that is to stay on *copies* agents. *keepers*: node -> told, fetching, whole or away; *failed*: node ->
    why it does not keep it."""

    image: str
    platform: str
    copies: int
    whole: int
    serial: int
    keepers: dict[str, str] = {}
    failed: dict[str, str] = {}


class Hour(View, frozen=True, kw_only=True):
    """The last hour. *steps*: start of a step -> bytes that came from [upstream, peers] in it; without a step: none."""

    step: int
    span: int
    steps: dict[str, tuple[int, int]]


class SwarmLine(View, frozen=True, kw_only=True):
    """A blob. *names*: tags that mean it. *windows* and *size* are known once somebody learned the size."""

    digest: str
    names: tuple[str, ...]
    state: SwarmState
    size: int | UnsetType = UNSET
    windows: int
    published: int
    """Windows that entered the cluster."""
    arrived: int
    """Bytes that came from upstream."""
    entered: int
    """Bytes of the windows that came from upstream: *arrived* / *entered* is the copies that upstream sent."""
    holders: int
    """Agents with the whole blob."""
    fetching: int
    """Agents that take part and lack something."""
    claims: int
    rate: float
    """From upstream now."""
    spread: float
    """Share of all windows of all its agents that is there, 0 to 1."""
    used: int
    images: tuple[str, ...] = ()
    """Images that it belongs to, as their names: registry/repository:tag."""


class SwarmList(View, frozen=True, kw_only=True):
    """Part of a list of blobs: those in *order*, of *total*."""

    total: int
    offset: int
    order: tuple[str, ...]
    rows: dict[str, SwarmLine]


class ImageLine(View, frozen=True, kw_only=True):
    """An image, by its manifest. *names*: registry/repository:tag, or registry/repository where no tag is known."""

    manifest: str
    names: tuple[str, ...]
    platform: str
    """os/architecture; "" if no index said so."""
    size: int
    """Bytes of config and layers."""
    blobs: int
    """How many these are."""
    nodes: int
    """Agents that have all of it..."""
    of: int
    """... of so many."""
    fetching: int
    """Agents that are pulling it."""
    fetchers: dict[str, str]
    """Some of these: agent -> node."""
    began: float = 0.0
    """When the first of these began to pull; 0: nobody does."""
    ends: float = 0.0
    """When these have it if it goes on so; 0: not known."""
    held: int = 0
    """Bytes of whole blobs that these have..."""
    arriving: int = 0
    """... and of blobs that are on their way to them."""
    moved: tuple[int, int] = (0, 0)
    """Bytes of its blobs that came from [upstream, peers], to all nodes."""
    seen: int = 0
    """When an agent saw its manifest go by last."""


class ImageList(View, frozen=True, kw_only=True):
    """Part of a list of images: those in *order*, of *total*."""

    total: int = 0
    offset: int = 0
    order: tuple[str, ...] = ()
    rows: dict[str, ImageLine] = {}


class ImagesView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/images."""

    now: float
    list: ImageList


class Layer(View, frozen=True, kw_only=True):
    """A blob of an image. *nodes*: agents that have it. *swarm*: absent while it has no board."""

    size: int
    nodes: int
    swarm: SwarmLine | UnsetType = UNSET


class ImageNode(View, frozen=True, kw_only=True):
    """An agent that has blobs of an image. *held*, *arriving*: bytes in whole blobs, and of those on their way."""

    name: str
    zone: str
    state: Literal["whole", "fetching", "part"]
    held: int
    arriving: int = 0
    began: float = 0.0
    """When it began to pull; 0: not known."""


class ImageView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/images/{manifest}. Its nodes: those in *order*, of *total*."""

    now: float
    image: ImageLine
    index: str
    """The index that names it; "" if none is known."""
    layers: dict[str, Layer]
    total: int
    offset: int
    order: tuple[str, ...]
    rows: dict[str, ImageNode]


class ClusterView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster: everything at a glance. *now*: the tracker's clock."""

    now: float
    replicas: dict[str, Replica]
    agents: Count
    zones: dict[str, Count]
    swarms: dict[str, int]
    """How many there are by state."""
    names: int
    """Tags whose meaning is known."""
    rate: float
    """From upstream into all swarms now."""
    arrived: int
    """Bytes that came from upstream into the swarms known now..."""
    entered: int
    """... for so many bytes of blobs: their quotient is the copies that upstream sent."""
    moved: tuple[int, int]
    """Bytes from [upstream, peers] since the tracker started. What came from peers is the egress avoided."""
    hour: Hour
    upstreams: dict[str, float]
    """Upstream hosts that asked us to wait -> until when."""
    failures: dict[str, int]
    """Claims that upstream did not fulfil since the tracker started, by why: refused, busy, broken."""
    quarantined: dict[str, Quarantined]
    conflicts: dict[str, Conflict] = {}
    """Address -> the two agents that announce it."""
    refused: dict[str, Turned] = {}
    """Address -> why it is no member here."""
    kept: dict[str, Kept] = {}
    """Image and platform -> who keeps it."""
    blame: tuple[Blamed, ...]
    active: SwarmList
    """The swarms at the top of the list."""
    images: ImageList = ImageList()
    """The images at the top of theirs."""


class SwarmsView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/swarms."""

    now: float
    list: SwarmList


class ClaimLine(View, frozen=True, kw_only=True):
    """An agent brings a window in from upstream: *bytes* of *length* so far; its lease ends at *deadline*."""

    agent: str
    name: str
    since: float
    deadline: float
    bytes: int
    length: int


class Strip(View, frozen=True, kw_only=True):
    """One agent's windows of a blob, a character each.

    `u` brought in from upstream, `p` got from peers, `h` held as part of a whole copy, `c` on its way from
    upstream (a claim), `w` on its way from peers (others have it, this one lacks it), `.` not in the cluster yet.
    """

    name: str
    zone: str
    whole: bool
    cells: str
    barred: float = 0.0
    """Gets no claims until then, because upstream failed it; 0: it may."""


class SwarmView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/swarms/{digest}. Its agents: those in *order*, of *total*."""

    now: float
    swarm: SwarmLine
    info_hash: str
    generation: int
    copies: str
    """Per window how many of its agents have it, as a digit: 0 nobody, 9 all."""
    held: int
    """Bytes of this blob that all its agents have together."""
    claims: dict[str, ClaimLine]
    publishers: dict[str, str]
    """Window -> who told its hashes."""
    total: int
    offset: int
    order: tuple[str, ...]
    rows: dict[str, Strip]


class AgentLine(View, frozen=True, kw_only=True):
    """An agent, by the address of its swarm port. The figures are its own, since it started."""

    name: str
    zone: str
    state: AgentState
    since: int
    held: int
    """Whole blobs."""
    fetching: int
    store: int
    budget: int
    upstream: int
    received: int
    """Bytes from peers."""
    served: int
    """Bytes to peers."""


class AgentList(View, frozen=True, kw_only=True):
    """Part of a list of agents: those in *order*, of *total*."""

    total: int
    offset: int
    order: tuple[str, ...]
    rows: dict[str, AgentLine]


class AgentsView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/agents. *zones*: how many agents each zone has, for a filter."""

    now: float
    zones: dict[str, int]
    list: AgentList


class Download(View, frozen=True, kw_only=True):
    """A blob on its way to an agent: the blob, and the agent's strip."""

    swarm: SwarmLine
    strip: Strip


class Sharer(View, frozen=True, kw_only=True):
    """Another agent in the same swarms. *swarms*: how many; *whole*: in how many of them it has everything."""

    name: str
    zone: str
    swarms: int
    whole: int


class HeldLine(View, frozen=True, kw_only=True):
    """A whole blob on an agent. *doubted*: others found it corrupt; it is handed to nobody until it was read again."""

    names: tuple[str, ...]
    size: int | UnsetType = UNSET
    doubted: bool = False


class AgentView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/agents/{ip:port}. The blobs that it holds: those in *order*, of *total*."""

    now: float
    key: str
    agent: AgentLine
    seen: int
    stats: dict[str, float]
    quarantined: Quarantined | UnsetType = UNSET
    blame: tuple[Blamed, ...]
    downloads: dict[str, Download]
    peers: dict[str, Sharer]
    total: int
    offset: int
    order: tuple[str, ...]
    held: dict[str, HeldLine]


class SearchView(View, frozen=True, kw_only=True):
    """GET /api/v1/cluster/search?q=: the first images, blobs by image or digest, and agents by node."""

    now: float
    images: ImageList = ImageList()
    swarms: SwarmList
    agents: AgentList


AnyView = ClusterView | ImagesView | ImageView | SwarmsView | SwarmView | AgentsView | AgentView | SearchView
