"""What agents and trackers say to each other: JSON over HTTP, as values both sides import.

Every request is `POST /v1/<verb>` with one of the structs below; the answer is 200 with the struct
named beside it. A refusal is `Problem` with 400 (malformed), 403 (no member), 404, 409 (another
tracker incarnation: join again) or 503. `bytes` travel as base64. Unknown fields are ignored, so
either side may be newer. Piece hashes are 20 bytes each, concatenated in order.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

MAX_BODY = 16 * 1024 * 1024
"""Bytes of the largest request or answer: the hashes of 800,000 pieces."""

MAX_WAIT = 25.0
"""Seconds for which a tracker holds a long-poll at most, but for an agent's channel."""

LONGEST_HOLD = 60.0
"""Seconds for which a tracker with very many agents holds the channel of one that it has nothing to say to."""


MAX_SIZE = 1 << 40
"""Bytes of the largest blob that is spoken of: one TiB, 21 MB of hashes."""

MAX_HELD = 20_000
"""Blobs that one agent says it holds."""

MAX_NAMES = 10_000
"""Tags whose meaning one agent tells."""

MAX_IMAGES = 64
"""Images whose parts one agent tells at once."""

MAX_KEPT = 64
"""Images that one agent keeps, or remembers that nobody keeps any more."""

MAX_PARTS = 256
"""Blobs of one image that are told: Docker builds 127 layers at most."""

MOST_ASKED = 64
"""Names that one agent is told to ask for at once."""

Size = Annotated[int, Meta(ge=0, le=MAX_SIZE)]
"""Bytes of a blob."""

Text = Annotated[str, Meta(max_length=1024)]
"""A name of anything; digests, hosts and sessions are shorter."""

Bitmap = Annotated[bytes, Meta(max_length=1024)]
"""Bit w, little-endian, is window w."""

Origin = Annotated[str, Meta(pattern=r"^([0-9a-f]{40})?$")]
"""A fingerprint of where bytes come from (swarm/fetch/proof.py)."""

Windows = Annotated[tuple[int, ...], Meta(max_length=4096)]
"""Numbers of windows."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages."""


class Me(Wire, frozen=True, kw_only=True):
    """Who speaks. The tracker takes the IP address from the connection."""

    node: Text
    """Node name, for people."""
    port: int
    """Swarm port (BitTorrent)."""
    session: Text
    """Random text, new at each start of the agent."""
    lane: int = 0
    """TCP port, on the same address, from which it gives windows away over HTTP; 0: none."""


class Problem(Wire, frozen=True, kw_only=True):
    """Why a request was refused."""

    code: Text
    message: Annotated[str, Meta(max_length=65_536)]


class CompleteBlob(Wire, frozen=True, kw_only=True):
    """A complete blob that an agent offers."""

    digest: Text
    size: Size


class Name(Wire, frozen=True, kw_only=True):
    """A mutable name (registry/repository:tag) and what it last meant."""

    name: Text
    digest: Text
    media_type: Text
    size: Size
    age: float
    """Seconds since upstream said so."""


class Image(Wire, frozen=True, kw_only=True):
    """What a manifest that went by at an agent consists of. For people: nothing that moves depends on it."""

    name: Text
    """registry/repository."""
    manifest: Text
    blobs: Annotated[tuple[CompleteBlob, ...], Meta(max_length=MAX_PARTS)]
    """Config and layers, as the manifest says (OCI image-spec, manifest.md)."""
    index: Text = ""
    """The index through which it was found; "" if there was none."""
    platform: Text = ""
    """os/architecture, as that index says."""
    pulled: bool = False
    """A pull of it begins on this node."""


class Keep(Wire, frozen=True, kw_only=True):
    """An order that *image* stays on *copies* agents; 0: nobody keeps it any more.

    Known by image and platform. Of two of them the one with the higher *serial* counts.
    """

    image: Text
    copies: Annotated[int, Meta(ge=0, le=1_000_000)]
    serial: Annotated[int, Meta(ge=0, le=1 << 53)]
    """Milliseconds since 1970 at which it was ordered."""
    platform: Text = ""
    """os/architecture; "": the agent's own."""
    zone: Text = ""
    """Only agents of this zone; "": any."""
    labels: Text = ""
    """Only agents on nodes with these labels; "": any."""
    proof: Annotated[bytes, Meta(max_length=64)] = b""
    """That who ordered it had the token (tracker.state.keeps): members pass orders on, and make none up."""

    @property
    def name(self) -> str:
        """What it is known by."""
        return f"{self.image} {self.platform}"


class Kept(Wire, frozen=True, kw_only=True):
    """How far an order is at the agent that says so. *state*: "fetching", "whole", "failed", or "none" of 0 copies."""

    keep: Keep
    state: Text
    digest: Text = ""
    """Manifest or index that the image means here; "" until that is known."""
    error: Text = ""


# -- POST /v1/agent -> AgentAnswer: the agent's channel, a long-poll ------------------------------


class AgentPoll(Me, frozen=True, kw_only=True):
    """The agent is alive, and what changed in what it holds since its last answered poll.

    *full*: *add* and *names* are everything. The tracker answers at once when it has something to
    say, else after *wait* seconds. An agent opens the next poll as soon as one is answered, and at
    once (closing the old one) when its holdings change.
    """

    full: bool = False
    add: Annotated[tuple[CompleteBlob, ...], Meta(max_length=MAX_HELD)] = ()
    remove: Annotated[tuple[Text, ...], Meta(max_length=MAX_HELD)] = ()
    names: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)] = ()
    images: Annotated[tuple[Image, ...], Meta(max_length=MAX_IMAGES)] = ()
    """Images that went by since the last poll; with *full*, the latest ones."""
    kept: Annotated[tuple[Kept, ...], Meta(max_length=MAX_KEPT)] | None = None
    """All images that it keeps; None: as it said last."""
    wait: float = 0.0
    stats: Annotated[dict[Annotated[str, Meta(max_length=64)], float], Meta(max_length=64)] = {}
    """Counters for the page: store_bytes, store_budget, upstream_bytes, peer_bytes_in, peer_bytes_out ..."""


class Backoff(Wire, frozen=True, kw_only=True):
    """No agent should ask this upstream host for *seconds* (Retry-After, shared cluster-wide)."""

    host: Text
    seconds: float


class Preheat(Wire, frozen=True, kw_only=True):
    """An order to have *images* on this node, below every pull that somebody waits for. Known by its *id*."""

    id: Text
    images: tuple[Text, ...]
    platform: Text = ""
    """os/architecture; "": the agent's own."""


class KeepHere(Wire, frozen=True, kw_only=True):
    """Whether the agent that is told this is one of those that keep the image; *digest*: what it means, if known."""

    keep: Keep
    here: bool
    digest: Text = ""


class AgentAnswer(Wire, frozen=True, kw_only=True):
    """*resend*: the tracker does not know this session: poll again with full=True."""

    resend: bool = False
    need: tuple[str, ...] = ()
    """Digests among those held whose piece hashes the tracker lacks: send a Whole for each."""
    suspect: tuple[str, ...] = ()
    """Digests whose copy on this agent others found corrupt: check the file again."""
    quarantined: float = 0.0
    """Seconds for which this agent gets no claims, and is handed to nobody as a peer."""
    backoff: tuple[Backoff, ...] = ()
    preheat: tuple[Preheat, ...] = ()
    keep: tuple[KeepHere, ...] = ()
    resolve: Annotated[tuple[Text, ...], Meta(max_length=MOST_ASKED)] = ()
    """Names that this agent was chosen to ask upstream for: answer each with NameTold or NameFailed within 5 s."""
    you: Text = ""
    """The address under which the tracker knows the agent: "ip:port"."""
    hold: float = 0.0
    """Seconds for which the next poll may be held, if more than MAX_WAIT."""


# -- POST /v1/board -> BoardAnswer: join, long-poll -----------------------------------------------


class BoardPoll(Me, frozen=True, kw_only=True):
    """Take part in a board. Answered at once if the board is newer than *since*, or if the claims
    that the tracker has for this agent are not *claims*; else when that happens, or after *wait* s."""

    digest: Text
    incarnation: Text = ""
    """Of the last answer; another one means that the tracker forgot: since and generation are void."""
    generation: int = 0
    since: int = 0
    wait: float = 0.0
    size: int | None = None
    """Bytes of the blob, if known. One that no blob has counts as unknown."""
    want: int = 0
    """Claims to hold at once, in total. 0: cannot go upstream."""
    prefer: Windows = ()
    only_preferred: bool = False
    """True: claims on the preferred windows only (a reader of ranges)."""
    claims: Windows = ()
    """Windows that the agent is bringing in now."""
    have: Bitmap = b""
    """Bitmap of the windows it holds: little-endian, bit w of the integer is window w."""
    stalled: Windows = ()
    """Published windows that no peer delivers: please let me bring them in."""
    turns: int = 0
    """Windows that it would fetch at once from a sole seed, by claim. 0: it has the blob, or reads ranges of it."""
    concurrent: int = 0
    """How many other blobs it has enter the cluster at the same time: they share upstream."""
    direct: Windows = ()
    """Windows that it brings in from upstream without a claim, because its readers could not wait."""


class Peer(Wire, frozen=True, kw_only=True, array_like=True, omit_defaults=False):
    """Somebody to fetch from."""

    ip: Text
    port: int
    """Swarm port (BitTorrent)."""
    lane: int = 0
    """TCP port for windows over HTTP; 0: none."""


class BoardAnswer(Wire, frozen=True, kw_only=True):
    """A View of the board (swarm.protocol.board) plus whom to fetch from."""

    incarnation: Text
    version: int
    """How far *published* tells the news of the board; the next poll says it as *since*.
    0: this answer does not tell the news, and `since` stays where it is."""
    generation: int
    serial: int = 0
    """Counts the answers that a tracker made: one with a lower serial shows an older state."""
    size: Size | None = None
    sealed: bool = False
    vouched: bool = False
    """Two members have seen the sha256 of what is published."""
    published: dict[int, bytes] = {}
    origins: Annotated[dict[Origin, Bitmap], Meta(max_length=64)] = {}
    """Origin -> bitmap of the windows in *published* whose bytes are of it, as who told them says."""
    claims: Windows = ()
    hope: bool = True
    poisoned: bool = False
    copies: int = 0
    """How many agents hold the whole blob."""
    holders: dict[int, tuple[Peer, ...]] = {}
    """For some published windows that the asker lacks, most urgent first: who holds them, best first.
    A window that is missing here has no holder with room to spare at the moment. Told to who has a lane itself."""
    peers: tuple[Peer, ...] = ()
    sole: Peer | None = None
    """The only agent that holds the blob: *claims* are on windows to fetch from it, and *peers* are the others."""
    available: Bitmap | None = None
    """Bitmap of the windows that *peers* hold, where not all that are published do; None: they do."""
    coming: Annotated[dict[int, float], Meta(max_length=256)] = {}
    """Window that another brings in from upstream, by a claim that is alive -> bytes per second since it was granted;
    0: upstream has sent nothing yet."""


# -- POST /v1/publish -> BoardAnswer (without waiting) --------------------------------------------


class Publish(Me, frozen=True, kw_only=True):
    """The hashes of a window that this agent brought in and now offers."""

    digest: Text
    incarnation: Text
    generation: int
    size: Size
    window: int
    hashes: bytes
    origin: Origin = ""
    """Of which origin its bytes are (swarm/fetch/proof.py); "": of several, or not known."""
    since: int = 0


# -- POST /v1/progress -> BoardAnswer (claims only; published is empty, version 0) ----------------


class Progress(Me, frozen=True, kw_only=True):
    """How far the claims are; sent about once a second while there are any."""

    digest: Text
    incarnation: Text
    generation: int = 0
    """Of *have*."""
    done: Annotated[dict[int, int], Meta(max_length=256)]
    """Window -> bytes that have arrived, of a piece that is not complete as well."""
    have: Bitmap = b""
    waiting: Annotated[dict[int, float], Meta(max_length=256)] = {}
    """Window -> seconds since upstream was asked for it, where no byte has come yet."""
    upstream_timeout: float = 0.0
    """Seconds for which this agent waits for upstream's first byte; the tracker believes 60 at most."""


# -- POST /v1/release -> BoardAnswer (claims only, as of progress) ---------------------------------


class Release(Me, frozen=True, kw_only=True):
    """Claims given back. *failure*: a swarm.protocol.board.Failure value."""

    digest: Text
    incarnation: Text
    windows: Windows
    failure: Text
    retry_after: float | None = None


# -- POST /v1/seal, /v1/reject, /v1/leave -> Ok ----------------------------------------------------


class Seal(Me, frozen=True, kw_only=True):
    """The whole blob is here and its sha256 matched."""

    digest: Text
    incarnation: Text
    generation: int


class Reject(Me, frozen=True, kw_only=True):
    """The sha256 of the bytes that this generation describes is wrong."""

    digest: Text
    incarnation: Text
    generation: int
    reason: Text = ""


class Leave(Me, frozen=True, kw_only=True):
    """No longer interested in this board."""

    digest: Text


class Whole(Me, frozen=True, kw_only=True):
    """POST /v1/whole -> Ok: size and all hashes of a blob that this agent holds, sha256 checked."""

    digest: Text
    size: Size
    hashes: bytes


class Corrupt(Me, frozen=True, kw_only=True):
    """POST /v1/corrupt -> Ok: a peer sent pieces that do not match their hash."""

    digest: Text
    peer_ip: Text
    peer_port: int = 0
    """0: unknown (an incoming connection)."""


class Gone(Me, frozen=True, kw_only=True):
    """POST /v1/gone -> Ok: the agent stops; forget it at once."""


class Ok(Wire, frozen=True, kw_only=True):
    """Done."""


# -- POST /v1/name -> NameAnswer: tags, resolved once per cluster --------------------------------


class NameLookup(Me, frozen=True, kw_only=True):
    """What does *name* mean? If nobody asked upstream within *ttl* seconds, two agents chosen by chance are told to
    (AgentAnswer.resolve, or `resolve` here); the others wait up to *wait* seconds until they agree."""

    name: Text
    ttl: float
    wait: float = 0.0


class Proof(Wire, frozen=True, kw_only=True):
    """That an agent said what a tag means: swarm.identity.words. Where agents have keys."""

    asked: float
    """Seconds since 1970, by that agent's clock, at which it asked upstream."""
    certificates: Annotated[tuple[Annotated[bytes, Meta(max_length=8192)], ...], Meta(max_length=4)]
    """DER; its own first."""
    signature: Annotated[bytes, Meta(max_length=1024)]


class NameAnswer(Wire, frozen=True, kw_only=True):
    """*known* may be older than the ttl: then it is the last known one, for when upstream is down."""

    known: Name | None = None
    fresh: bool = False
    resolve: bool = False
    """You ask upstream, and answer with NameTold or NameFailed within 5 s."""
    proofs: Annotated[tuple[Proof, ...], Meta(max_length=8)] = ()
    """Of those who said what is *known*."""


class NameTold(Me, frozen=True, kw_only=True):
    """POST /v1/name/told -> Ok: upstream says that *name* means *digest*."""

    name: Text
    digest: Text
    media_type: Text
    size: Size
    proof: Proof | None = None


class NameFailed(Me, frozen=True, kw_only=True):
    """POST /v1/name/failed -> Ok: upstream did not say. The others stop waiting."""

    name: Text
    gone: bool = False
    """True: upstream answered that the name does not exist."""
    declined: bool = False
    """True: this agent may not ask there, or does not ask for others: somebody else should."""


class PreheatTold(Me, frozen=True, kw_only=True):
    """POST /v1/preheat -> Ok: how far an order is on this node. *state*: "fetching", "done" or "failed"."""

    id: Text
    state: Text
    done: int = 0
    """Bytes that are here, of *total*."""
    total: int = 0
    sources: Annotated[dict[Text, int], Meta(max_length=8)] = {}
    """Bytes that came by this order: from "upstream", "peer"."""
    error: Text = ""


class BackoffTold(Me, frozen=True, kw_only=True):
    """POST /v1/backoff -> Ok: an upstream asked this agent to wait."""

    host: Text
    seconds: float


M = TypeVar("M", bound=Wire)


def encode(message: Wire) -> bytes:
    """JSON of *message*."""
    return msgspec.json.encode(message)


def decode(body: bytes, kind: type[M]) -> M:
    """The *kind* that *body* spells. Raises ValueError with one line that says what is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def bitmap(windows: int) -> bytes:
    """The bytes of a window bitmap."""
    return windows.to_bytes((windows.bit_length() + 7) // 8, "little")


def from_bitmap(data: bytes) -> int:
    """The integer of a window bitmap."""
    return int.from_bytes(data, "little")
