"""The agents that a tracker knows: who they are, what they hold, what they are still to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

from swarm.base.flags import Endpoint
from swarm.protocol import wire
from tracker.state.announce import Told

RETIRED = 4
"""Earlier sessions remembered per agent, so that a late request of a dead process is not taken for its successor."""


@dataclass(eq=False, slots=True)
class Agent:
    """One agent, by the address of its swarm port. Digests are plain text here."""

    key: str
    ip: str
    port: int
    name: str
    session: str
    zone: str
    since: float
    seen: float
    peer: wire.Peer
    told: Told
    member: str = ""
    """Who it is where quotas and quarantine count: see `member_at`."""
    synced: bool = False
    """It has told everything that it holds."""
    held: set[str] = field(default_factory=set)
    boards: set[str] = field(default_factory=set)
    """Boards that it takes part in."""
    suspects: dict[str, None] = field(default_factory=dict)
    """Copies that it is still to be told to check again."""
    withdrawn: set[str] = field(default_factory=set)
    """Copies that are not handed out until it says again that it holds them."""
    needs: dict[str, None] = field(default_factory=dict)
    """Blobs whose hashes it is to be asked for, in this order."""
    asked: set[str] = field(default_factory=set)
    """Blobs whose hashes it was asked for."""
    strikes: list[float] = field(default_factory=list)
    quarantine_told: float = 0.0
    """End of the quarantine that it has been told of; 0: none."""
    backoff_seen: int = 0
    resolve: dict[str, None] = field(default_factory=dict)
    """Names that it is to be told to ask upstream for."""
    stats: dict[str, float] = field(default_factory=dict)
    channels: int = 0
    """Open polls of its channel."""
    waiting: int = 0
    """Boards that it waits on."""
    news: asyncio.Future[None] | None = None
    """The open poll of its channel."""


def key_of(ip: str, port: int) -> str:
    """The name of the agent whose swarm port this is: `ip:port`."""
    return str(Endpoint(ip, port))


def member_at(key: str) -> str:
    """The member whose agent is named *key*: its address, for a port costs nothing.

    On this machine itself several agents stand beside each other, and each is a member of its own.
    """
    ip = key.rpartition(":")[0].strip("[]")
    return key if ip in ("127.0.0.1", "::1") else ip


def member_as(identity: str, ip: str, port: int) -> str:
    """The member whose word counts: *identity* if it is more than an address, else see `member_at`."""
    return identity if identity and identity != ip else member_at(key_of(ip, port))


class Agents:
    """Agents by key and by IP address."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._by_ip: dict[str, dict[str, Agent]] = {}
        self._by_member: dict[str, dict[str, Agent]] = {}
        self._retired: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def __contains__(self, key: str) -> bool:
        return key in self._agents

    @property
    def by_key(self) -> Mapping[str, Agent]:
        """All of them; for loops."""
        return self._agents

    def get(self, key: str) -> Agent | None:
        """The agent named *key*."""
        return self._agents.get(key)

    def all(self) -> list[Agent]:
        """All of them, oldest first."""
        return list(self._agents.values())

    def member_of(self, key: str) -> str:
        """The member that the agent named *key* is a process of."""
        agent = self._agents.get(key)
        return agent.member if agent is not None else member_at(key)

    def direct(self, key: str, other: str) -> bool:
        """Whether the agents named *key* and *other* both give windows over a lane of their own."""
        return all((agent := self._agents.get(name)) is not None and agent.peer.lane for name in (key, other))

    def zone_of(self, key: str) -> str:
        """The zone of the agent named *key*; "" if unknown."""
        agent = self._agents.get(key)
        return agent.zone if agent is not None else ""

    def addresses(self) -> list[str]:
        """The IP addresses at which there are agents."""
        return list(self._by_ip)

    def at(self, ip: str) -> list[Agent]:
        """Those at one IP address."""
        return list(self._by_ip.get(ip, {}).values())

    def is_retired(self, key: str, session: str) -> bool:
        """Whether *session* is of a process that was replaced at *key*."""
        return session in self._retired.get(key, ())

    def of(self, member: str) -> list[Agent]:
        """The agents of one member."""
        return list(self._by_member.get(member, {}).values())

    def draw(self, chance: Random, count: int, but: Collection[str], fit: Callable[[Agent], bool]) -> list[Agent]:
        """So many agents by chance that are *fit*, one of each member, none of the members *but*; or what there is."""
        members = list(self._by_member)
        found: dict[str, Agent] = {}

        def look(member: str) -> bool:
            if member not in but and member not in found:
                agent = next((one for one in self._by_member[member].values() if fit(one)), None)
                if agent is not None:
                    found[member] = agent
            return len(found) >= count

        if members and not any(look(chance.choice(members)) for _ in range(8 * count)):  # mostly enough: no shuffle
            any(look(member) for member in chance.sample(members, len(members)))
        return list(found.values())

    def held_by(self, member: str) -> int:
        """How many blobs the processes of *member* say they hold, one by one."""
        return sum(len(agent.held) for agent in self._by_member.get(member, {}).values())

    def add(self, me: wire.Me, ip: str, zone: str, now: float, identity: str = "") -> Agent:
        """A new agent; there must be none of its key. *identity*: who it is, if that is more than an address."""
        key = key_of(ip, me.port)
        agent = Agent(
            key=key,
            ip=ip,
            port=me.port,
            name=me.node[:253],
            session=me.session,
            zone=zone,
            since=now,
            seen=now,
            peer=wire.Peer(ip=ip, port=me.port, lane=me.lane),
            told=Told(ip_address(ip).packed, me.port),
            member=member_as(identity, ip, me.port),
        )
        self._agents[key] = agent
        self._by_ip.setdefault(ip, {})[key] = agent
        self._by_member.setdefault(agent.member, {})[key] = agent
        return agent

    def remove(self, agent: Agent, *, replaced: bool) -> None:
        """Forget *agent*. *replaced*: by another process, so its session never comes back."""
        del self._agents[agent.key]
        here = self._by_ip[agent.ip]
        del here[agent.key]
        if not here:
            del self._by_ip[agent.ip]
        processes = self._by_member[agent.member]
        del processes[agent.key]
        if not processes:
            del self._by_member[agent.member]
        if replaced:
            self._retired[agent.key] = (*self._retired.pop(agent.key, ()), agent.session)[-RETIRED:]
            while len(self._retired) > 4 * max(1024, len(self._agents)):
                del self._retired[next(iter(self._retired))]
