"""Views of what this tracker alone knows (tracker.page.views), read from the state. No I/O, changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from msgspec import UNSET

from swarm.protocol.board import Participant
from tracker.errors import Unknown
from tracker.page import views
from tracker.page.ask import Ask
from tracker.page.pictures import Pictures
from tracker.page.report import board_state
from tracker.state.agents import Agent
from tracker.state.cluster import Cluster
from tracker.state.history import STEP, STEPS
from tracker.state.swarms import Swarm
from tracker.state.trust import Entry

ACTIVE = 8
"""Images and swarms shown beside the cluster's figures."""

FOUND = 20
"""Swarms and agents that a search shows at once."""

BLAME = 20
"""Lines of blame shown."""

NAMES = 5
"""Tags shown per blob."""

DOWNLOADS = 20
PEERS = 20

_RANK = {"entering": 0, "poisoned": 1, "sealed": 2, "new": 3}


class Look:
    """One look at the cluster, at one moment."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at = cluster.now()
        self._quarantined = cluster.trust.quarantined(self._at)
        self._names: dict[str, list[str]] = {}
        for name, meaning in cluster.names.meanings():
            self._names.setdefault(meaning.digest, []).append(name)
        self.now = round(cluster.epoch + self._at, 1)
        self._pictures = Pictures(cluster, self._names, self._at, self._swarm_line)

    def view(self, ask: Ask) -> views.AnyView:
        """What *ask* wants to see. Raises Unknown."""
        match ask.kind:
            case "cluster":
                return self.cluster()
            case "swarms":
                return views.SwarmsView(now=self.now, list=self.swarms(ask))
            case "agents":
                zones = Counter(agent.zone for agent in self._cluster.agents.all())
                return views.AgentsView(now=self.now, zones=dict(sorted(zones.items())), list=self.agents(ask))
            case "images":
                return views.ImagesView(now=self.now, list=self._pictures.list(ask))
            case "image":
                return self._pictures.one(ask, self.now)
            case "swarm":
                return self.swarm(ask)
            case "agent":
                return self.agent(ask)
            case _:
                top = Ask(q=ask.q, limit=FOUND)
                found = (self._pictures.list(top), self.swarms(top), self.agents(top))
                return views.SearchView(now=self.now, images=found[0], swarms=found[1], agents=found[2])

    # -- the cluster ------------------------------------------------------------------------------

    def cluster(self) -> views.ClusterView:
        """Everything at a glance."""
        cluster = self._cluster
        zones: dict[str, Counter[str]] = {}
        for agent in cluster.agents.all():
            zone = zones.setdefault(agent.zone, Counter())
            zone["total"] += 1
            zone[self._state(agent)] += 1
            zone["fetching"] += bool(_stat(agent, "fetches"))
        counted = {zone: views.Count(**zones[zone]) for zone in sorted(zones)}
        swarms: Counter[str] = Counter(new=0, entering=0, sealed=0, poisoned=0)
        rate, arrived, entered = 0.0, 0, 0
        for swarm in cluster.swarms:
            swarms[board_state(swarm)] += 1
            if swarm.arrived:
                rate += swarm.rate_at(self._at)
                arrived += swarm.arrived
                entered += _entered(swarm)
        failures = {
            sample.labels["why"]: int(sample.value)
            for metric in cluster.metrics.releases.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
        upstream, peers = cluster.history.total
        return views.ClusterView(
            now=self.now,
            replicas={},
            agents=total(counted.values()),
            zones=counted,
            swarms=dict(swarms),
            names=len(cluster.names),
            rate=_rate(rate),
            arrived=arrived,
            entered=entered,
            moved=(upstream, peers),
            hour=views.Hour(
                step=STEP,
                span=STEP * STEPS,
                steps={str(at): (step[0], step[1]) for at, step in cluster.history.steps(self.now).items()},
            ),
            upstreams={host: self._wall(self._at + left) for host, left in cluster.backoffs.since(0, self._at)},
            failures=failures,
            quarantined={key: self._quarantine(key, until) for key, until in self._quarantined.items()},
            conflicts={
                rival.key: views.Conflict(taken=rival.taken, refused=rival.refused, since=self._wall(rival.since))
                for rival in cluster.rivals.standing(self._at)
            },
            refused={
                one.address: views.Turned(reason=one.reason, since=self._wall(one.since))
                for one in cluster.refusals.standing(self._at)
            },
            kept={
                f"{one.image} {one.platform}": views.Kept(
                    image=one.image,
                    platform=one.platform,
                    copies=one.copies,
                    whole=one.whole,
                    serial=one.serial,
                    keepers=one.keepers,
                    failed=one.failed,
                )
                for one in cluster.keeping.all()
            },
            blame=tuple(self._blamed(entry) for entry in list(reversed(cluster.trust.record))[:BLAME]),
            active=self.swarms(Ask(limit=ACTIVE)),
            images=self._pictures.list(Ask(limit=ACTIVE)),
        )

    # -- swarms -----------------------------------------------------------------------------------

    def swarms(self, ask: Ask) -> views.SwarmList:
        """Blobs by digest, tag or node, those that move first, then those used last."""
        found = [
            (_RANK[state], -int(swarm.used), swarm.digest, swarm)
            for swarm in self._matching(ask.q)
            if ask.state in ("", state := board_state(swarm))
        ]
        found.sort(key=lambda entry: entry[:3])
        rows = {str(swarm.digest): self._swarm_line(swarm) for *_, swarm in found[ask.offset : ask.offset + ask.limit]}
        return views.SwarmList(total=len(found), offset=ask.offset, order=tuple(rows), rows=rows)

    def swarm(self, ask: Ask) -> views.SwarmView:
        """One blob with the strips of its agents: those that fetch first. Raises Unknown."""
        swarm = self._cluster.swarms.get(ask.name)
        if swarm is None:
            raise Unknown("no such swarm")
        board = swarm.board
        keys = [key for key in {**board.participants, **dict.fromkeys(board.holders)} if self._named(key, ask.q)]
        keys.sort(key=lambda key: (key in board.holders, self._name(key), key))
        rows = {key: self._strip(swarm, key) for key in keys[ask.offset : ask.offset + ask.limit]}
        copies, held = _copies(swarm)
        return views.SwarmView(
            now=self.now,
            swarm=self._swarm_line(swarm),
            info_hash=swarm.info_hash.hex() if swarm.info_hash is not None else "",
            generation=board.generation,
            copies=copies,
            held=held,
            claims={
                str(window): views.ClaimLine(
                    agent=claim.agent,
                    name=self._name(claim.agent),
                    since=self._wall(claim.since),
                    deadline=self._wall(claim.deadline),
                    bytes=claim.done,
                    length=board.window_length(window) if board.size is not None else 0,
                )
                for window, claim in sorted(board.claims.items())
            },
            publishers={str(window): self._name(told.agent) for window, told in sorted(board.windows.items())},
            total=len(keys),
            offset=ask.offset,
            order=tuple(rows),
            rows=rows,
        )

    # -- agents -----------------------------------------------------------------------------------

    def agents(self, ask: Ask) -> views.AgentList:
        """Agents by node name, address or zone, in the order of their names."""
        found = [
            agent
            for agent in self._cluster.agents.all()
            if ask.q in f"{agent.name} {agent.key} {agent.zone}".lower()
            and ask.zone in ("", agent.zone)
            and (ask.state in ("", self._state(agent)) or (ask.state == "fetching" and _stat(agent, "fetches")))
        ]
        found.sort(key=lambda agent: (agent.name, agent.key))
        rows = {agent.key: self._agent_line(agent) for agent in found[ask.offset : ask.offset + ask.limit]}
        return views.AgentList(total=len(found), offset=ask.offset, order=tuple(rows), rows=rows)

    def agent(self, ask: Ask) -> views.AgentView:
        """One agent. Raises Unknown."""
        cluster = self._cluster
        agent = cluster.agents.get(ask.name)
        if agent is None:
            raise Unknown("no such agent")
        until = self._quarantined.get(agent.key)
        boards = [swarm for digest in sorted(agent.boards) if (swarm := cluster.swarms.get(digest)) is not None]
        peers: dict[str, list[int]] = {}
        for swarm in boards:
            for key in swarm.pool:
                if key != agent.key and (key in peers or len(peers) < PEERS):
                    shares = peers.setdefault(key, [0, 0])
                    shares[0] += 1
                    shares[1] += key in swarm.board.holders
        held = sorted(agent.held)
        shown = held[ask.offset : ask.offset + ask.limit]
        return views.AgentView(
            now=self.now,
            key=agent.key,
            agent=self._agent_line(agent),
            seen=int(self._wall(agent.seen)),
            stats=agent.stats,
            quarantined=self._quarantine(agent.key, until) if until is not None else UNSET,
            blame=tuple(self._blamed(e) for e in reversed(cluster.trust.record) if e.agent == agent.key)[:BLAME],
            downloads={
                swarm.digest: views.Download(swarm=self._swarm_line(swarm), strip=self._strip(swarm, agent.key))
                for swarm in boards[:DOWNLOADS]
            },
            peers={
                key: views.Sharer(name=self._name(key), zone=self._zone(key), swarms=shares[0], whole=shares[1])
                for key, shares in peers.items()
            },
            total=len(held),
            offset=ask.offset,
            order=tuple(shown),
            held={digest: self._held(agent, digest) for digest in shown},
        )

    # -- inside -----------------------------------------------------------------------------------

    def _wall(self, at: float) -> float:
        return round(self._cluster.epoch + at, 1)

    def _name(self, key: str) -> str:
        agent = self._cluster.agents.get(key)
        return agent.name if agent is not None else key

    def _zone(self, key: str) -> str:
        agent = self._cluster.agents.get(key)
        return agent.zone if agent is not None else ""

    def _named(self, key: str, q: str) -> bool:
        return not q or q in f"{self._name(key)} {key} {self._zone(key)}".lower()

    def _state(self, agent: Agent) -> views.AgentState:
        if agent.key in self._quarantined:
            return "quarantined"
        return "connected" if agent.channels else "away"

    def _matching(self, q: str) -> Iterable[Swarm]:
        if not q:
            return self._cluster.swarms
        tagged = {digest for digest, names in self._names.items() if any(q in name.lower() for name in names)}
        if len(q) > 1:
            for agent in self._cluster.agents.all():
                if agent.boards and q in f"{agent.name} {agent.key}".lower():
                    tagged |= agent.boards
        tagged |= self._pictures.blobs(q)
        return [swarm for swarm in self._cluster.swarms if q in swarm.digest or swarm.digest in tagged]

    def _tags(self, digest: str) -> tuple[str, ...]:
        return tuple(sorted(self._names.get(digest, ()))[:NAMES])

    def _swarm_line(self, swarm: Swarm) -> views.SwarmLine:
        board = swarm.board
        agents = len(board.participants.keys() | board.holders)
        _, held = _copies(swarm)
        return views.SwarmLine(
            digest=swarm.digest,
            names=self._tags(swarm.digest),
            state=cast("views.SwarmState", board_state(swarm)),
            size=board.size if board.size is not None else UNSET,
            windows=board.window_count,
            published=len(board.windows),
            arrived=swarm.arrived,
            entered=_entered(swarm),
            holders=len(board.holders),
            fetching=sum(key not in board.holders for key in board.participants),
            claims=len(board.claims),
            rate=_rate(swarm.rate_at(self._at)),
            spread=round(held / (board.size * agents), 3) if board.size and agents else 0.0,
            used=int(self._wall(swarm.used)),
            images=self._pictures.naming(swarm.digest),
        )

    def _strip(self, swarm: Swarm, key: str) -> views.Strip:
        board = swarm.board
        who = board.participants.get(key) or Participant()
        whole = key in board.holders
        brought = swarm.published_by.get(key, 0)
        claims = set(board.claims_of(key))
        took_part = brought or key in board.participants
        cells = []
        for window in range(board.window_count):
            told = board.windows.get(window)
            if window in claims:
                cells.append("c")
            elif whole or who.have >> window & 1:
                own = brought and told is not None and told.agent == key
                cells.append("u" if own else "p" if took_part else "h")
            else:
                cells.append("w" if told is not None else ".")
        return views.Strip(
            name=self._name(key),
            zone=self._zone(key),
            whole=whole,
            cells="".join(cells),
            barred=self._wall(who.barred_until) if who.barred_until > self._at else 0.0,
        )

    def _agent_line(self, agent: Agent) -> views.AgentLine:
        return views.AgentLine(
            name=agent.name,
            zone=agent.zone,
            state=self._state(agent),
            since=int(self._wall(agent.since)),
            held=len(agent.held),
            fetching=int(_stat(agent, "fetches")),
            store=int(_stat(agent, "store_bytes")),
            budget=int(_stat(agent, "store_budget")),
            upstream=int(_stat(agent, "upstream_bytes")),
            received=int(_stat(agent, "peer_bytes_in")),
            served=int(_stat(agent, "peer_bytes_out")),
        )

    def _held(self, agent: Agent, digest: str) -> views.HeldLine:
        swarm = self._cluster.swarms.get(digest)
        size = swarm.board.size if swarm is not None else None
        return views.HeldLine(
            names=self._tags(digest),
            size=size if size is not None else UNSET,
            doubted=digest in agent.withdrawn,
        )

    def _quarantine(self, key: str, until: float) -> views.Quarantined:
        reason = next(
            (e.reason for e in reversed(self._cluster.trust.record) if e.agent == key and e.what == "quarantined"), ""
        )
        return views.Quarantined(
            name=self._name(key), zone=self._zone(key), until=self._wall(until), reason=reason[:300]
        )

    def _blamed(self, entry: Entry) -> views.Blamed:
        return views.Blamed(
            at=self._wall(entry.at),
            agent=entry.agent,
            name=entry.name,
            what="quarantined" if entry.what == "quarantined" else "suspect",
            reason=entry.reason[:300],
        )


def total(counts: Iterable[views.Count]) -> views.Count:
    """The sum of *counts*."""
    summed = Counter[str]()
    for count in counts:
        summed.update({name: getattr(count, name) for name in views.Count.__struct_fields__})
    return views.Count(**summed)


def order_of(lines: Iterable[views.SwarmLine]) -> Sequence[views.SwarmLine]:
    """Lines in the order in which a list shows them."""
    return sorted(lines, key=lambda line: (_RANK[line.state], -line.used, line.digest))


def _entered(swarm: Swarm) -> int:
    """Bytes of the windows that were brought in from upstream, or of which a part arrived."""
    board = swarm.board
    if not swarm.arrived or board.size is None:
        return swarm.arrived
    whole = sum(board.window_length(w) for w, told in board.windows.items() if told.agent in swarm.published_by)
    return max(1, whole + sum(claim.done for claim in board.claims.values()))


def _copies(swarm: Swarm) -> tuple[str, int]:
    """Per window how many agents have it (a digit, 0 to 9), and the bytes of all copies."""
    board = swarm.board
    agents = len(board.participants.keys() | board.holders)
    apart = [key for key in board.holders if key not in board.participants]
    full = (1 << board.window_count) - 1
    late = [full & ~board.participants[key].have for key in board.holders if key in board.participants]
    late = [missing for missing in late if missing]
    digits, held = [], 0
    for window in range(board.window_count):
        count = board.copies(window) + len(apart) + sum(missing >> window & 1 for missing in late)
        held += count * board.window_length(window)
        digits.append("0" if not count else str(max(1, 9 * count // agents)))
    return "".join(digits), held


def _rate(rate: float) -> float:
    """Three digits are what a person reads, and they change less often."""
    return float(f"{rate:.3g}")


def _stat(agent: Agent, name: str) -> float:
    return min(max(0.0, agent.stats.get(name, 0.0)), 2.0**60)
