"""The tracker's state as JSON for the page and for `shoal status`: plain values, paged.

Times are seconds; `age` counts from when something happened until now. Bitmaps of windows are
strings of one character per window, so that a page draws them without arithmetic:
`.` missing, `h` held, `c` being brought in.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from tracker.state.agents import Agent
from tracker.state.cluster import Cluster
from tracker.state.keeps import Held
from tracker.state.swarms import Swarm

MAX_PAGE = 500
"""Entries on one page at most."""

_SUMMED = ("upstream_bytes", "peer_bytes_in", "peer_bytes_out", "disk_bytes", "store_bytes", "store_budget")


class Blamed(msgspec.Struct, frozen=True):
    """A line of the record of blame. *what*: "quarantined" or "suspect"."""

    agent: str
    name: str
    what: str
    reason: str
    age: float


class Zone(msgspec.Struct, frozen=True):
    """Agents of one zone; "" if it is not known."""

    name: str
    agents: int
    quarantined: int


class Upstream(msgspec.Struct, frozen=True):
    """An upstream host that asked us to wait for *seconds* more."""

    host: str
    seconds: float


class Conflict(msgspec.Struct, frozen=True):
    """Two agents that announce one address. *key*: it; *taken*, *refused*: their nodes; *age*: since when."""

    key: str
    taken: str
    refused: str
    age: float


class Turned(msgspec.Struct, frozen=True):
    """An address that was refused, and so works alone. *age*: since when."""

    address: str
    reason: str
    age: float


class State(msgspec.Struct, frozen=True):
    """GET /api/v1/state. *totals*: sums of what agents count (bytes). *boards*: by state."""

    incarnation: str
    uptime: float
    ready: bool
    agents: int
    zones: list[Zone]
    boards: dict[str, int]
    names: int
    rate: float
    """Bytes per second from upstream into all windows now."""
    totals: dict[str, float]
    quarantined: dict[str, float]
    """Agent -> seconds left."""
    blame: list[Blamed]
    upstreams: list[Upstream]
    conflicts: list[Conflict]
    refused: list[Turned]
    kept: list[Held]
    """Images that are to stay."""


class AgentLine(msgspec.Struct, frozen=True):
    """An agent in GET /api/v1/agents. *quarantined*: seconds left; *seen*: seconds since its last word."""

    key: str
    name: str
    zone: str
    age: float
    seen: float
    connected: bool
    held: int
    boards: int
    quarantined: float
    stats: dict[str, float]


class BoardLine(msgspec.Struct, frozen=True):
    """A board in GET /api/v1/boards. *state*: "new", "entering", "sealed" or "poisoned"."""

    digest: str
    state: str
    size: int | None
    windows: int
    """How many the blob has; 0 while the size is unknown."""
    published: int
    generation: int
    holders: int
    participants: int
    claims: int
    rate: float
    used: float


class ClaimLine(msgspec.Struct, frozen=True):
    """A claim. *left*: seconds until its lease ends."""

    window: int
    agent: str
    age: float
    left: float
    bytes: int
    length: int


class Strip(msgspec.Struct, frozen=True):
    """One agent's windows of a blob."""

    agent: str
    name: str
    zone: str
    holder: bool
    want: int
    barred: float
    published: int
    """Windows that it brought in."""
    windows: str


class BoardPage(msgspec.Struct, frozen=True):
    """GET /api/v1/boards/{digest}. *publishers*: per window who told its hashes; "" if nobody did."""

    board: BoardLine
    info_hash: str | None
    arrived: int
    claims: list[ClaimLine]
    publishers: list[str]
    agents: list[Strip]
    total: int
    offset: int


class AgentPage(msgspec.Struct, frozen=True):
    """GET /api/v1/agents: *items* from *offset* on, of *total*."""

    total: int
    offset: int
    items: list[AgentLine]


class BoardsPage(msgspec.Struct, frozen=True):
    """GET /api/v1/boards: *items* from *offset* on, of *total*."""

    total: int
    offset: int
    items: list[BoardLine]


def state(cluster: Cluster, *, ready: bool) -> State:
    """The cluster at a glance."""
    now = cluster.now()
    quarantined = cluster.trust.quarantined(now)
    zones: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    totals = dict.fromkeys(_SUMMED, 0.0)
    for agent in cluster.agents.all():
        zones[agent.zone] += 1
        bad[agent.zone] += agent.key in quarantined
        for key in _SUMMED:
            totals[key] += agent.stats.get(key, 0.0)
    boards: Counter[str] = Counter(new=0, entering=0, sealed=0, poisoned=0)
    rate = 0.0
    for swarm in cluster.swarms:
        boards[board_state(swarm)] += 1
        rate += swarm.rate_at(now)
    return State(
        incarnation=cluster.incarnation,
        uptime=round(now - cluster.started, 3),
        ready=ready,
        agents=len(cluster.agents),
        zones=[Zone(name, count, bad[name]) for name, count in sorted(zones.items())],
        boards=dict(boards),
        names=len(cluster.names),
        rate=round(rate, 1),
        totals=totals,
        quarantined={agent: round(until - now, 1) for agent, until in quarantined.items()},
        blame=[
            Blamed(entry.agent, entry.name, entry.what, entry.reason, round(now - entry.at, 3))
            for entry in reversed(cluster.trust.record)
        ],
        upstreams=[Upstream(host, round(left, 1)) for host, left in cluster.backoffs.since(0, now)],
        conflicts=[
            Conflict(rival.key, rival.taken, rival.refused, round(now - rival.since, 1))
            for rival in cluster.rivals.standing(now)
        ],
        refused=[Turned(one.address, one.reason, round(now - one.since, 1)) for one in cluster.refusals.standing(now)],
        kept=cluster.keeping.all(),
    )


def agents(cluster: Cluster, search: str, offset: int, limit: int) -> AgentPage:
    """Agents whose key, name or zone contains *search*, by name."""
    now = cluster.now()
    found = [a for a in cluster.agents.all() if not search or search in f"{a.key} {a.name} {a.zone}"]
    found.sort(key=lambda a: (a.name, a.key))
    return AgentPage(len(found), offset, [_agent_line(cluster, a, now) for a in found[offset : offset + limit]])


def boards(cluster: Cluster, search: str, which: str, offset: int, limit: int) -> BoardsPage:
    """Boards whose digest contains *search* and whose state is *which* ("": any), last used first."""
    now = cluster.now()
    found = [s for s in cluster.swarms if search in s.digest and which in ("", board_state(s))]
    found.reverse()
    return BoardsPage(len(found), offset, [_board_line(s, now) for s in found[offset : offset + limit]])


def board(cluster: Cluster, swarm: Swarm, offset: int, limit: int) -> BoardPage:
    """All about one board; its agents paged."""
    now = cluster.now()
    record = swarm.board
    count = record.window_count
    keys = [*record.participants, *(key for key in record.holders if key not in record.participants)]
    return BoardPage(
        board=_board_line(swarm, now),
        info_hash=swarm.info_hash.hex() if swarm.info_hash is not None else None,
        arrived=swarm.arrived,
        claims=[
            ClaimLine(
                window=window,
                agent=claim.agent,
                age=round(now - claim.since, 3),
                left=round(claim.deadline - now, 3),
                bytes=claim.done,
                length=record.window_length(window) if record.size is not None else 0,
            )
            for window, claim in sorted(record.claims.items())
        ],
        publishers=[record.windows[w].agent if w in record.windows else "" for w in range(count)],
        agents=[_strip(cluster, swarm, key, count, now) for key in keys[offset : offset + limit]],
        total=len(keys),
        offset=offset,
    )


def board_state(swarm: Swarm) -> str:
    """ "new", "entering", "sealed" or "poisoned"."""
    record = swarm.board
    if record.poisoned:
        return "poisoned"
    if record.sealed:
        return "sealed"
    return "entering" if record.windows or record.claims else "new"


def _agent_line(cluster: Cluster, agent: Agent, now: float) -> AgentLine:
    until = cluster.trust.until(agent.key, now)
    return AgentLine(
        key=agent.key,
        name=agent.name,
        zone=agent.zone,
        age=round(now - agent.since, 3),
        seen=round(now - agent.seen, 3),
        connected=agent.channels > 0,
        held=len(agent.held),
        boards=len(agent.boards),
        quarantined=round(until - now, 1) if until else 0.0,
        stats=agent.stats,
    )


def _board_line(swarm: Swarm, now: float) -> BoardLine:
    record = swarm.board
    return BoardLine(
        digest=swarm.digest,
        state=board_state(swarm),
        size=record.size,
        windows=record.window_count,
        published=len(record.windows),
        generation=record.generation,
        holders=len(record.holders),
        participants=len(record.participants),
        claims=len(record.claims),
        rate=round(swarm.rate_at(now), 1),
        used=round(now - swarm.used, 3),
    )


def _strip(cluster: Cluster, swarm: Swarm, key: str, count: int, now: float) -> Strip:
    record = swarm.board
    agent = cluster.agents.get(key)
    who = record.participants.get(key)
    holder = key in record.holders
    have = who.have if who is not None else 0
    cells = ["h" if holder or have >> window & 1 else "." for window in range(count)]
    for window in record.claims_of(key):
        if window < count:
            cells[window] = "c"
    return Strip(
        agent=key,
        name=agent.name if agent is not None else "",
        zone=agent.zone if agent is not None else "",
        holder=holder,
        want=who.want if who is not None else 0,
        barred=round(max(0.0, who.barred_until - now), 3) if who is not None else 0.0,
        published=swarm.published_by.get(key, 0),
        windows="".join(cells),
    )
