"""A running cluster for one fault: hosts, a registry, trackers and agents, and the verbs that cases are written in."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import net
from bench.faults import relay
from bench.faults.client import Answer
from bench.faults.disks import Disk, Injector
from bench.faults.hosts import Later, Mounted, Switch, together
from bench.faults.parts import TRACKER, Agent, Tracker, Use
from bench.faults.upstream import MIB, Upstream

UPSTREAM = "up"


@dataclass(frozen=True)
class Shape:
    """What a scene is made of. *rate*: MiB per second of upstream in all; *link*: Mbit/s of each agent."""

    agents: int = 3
    trackers: int = 1
    rate: float = 8.0
    link: float | None = None
    flags: tuple[str, ...] = ()
    budget: str = "2GiB"
    disk: int = 0
    """MiB of a file system of its own for the first agent's store; 0: none."""
    inodes: int | None = None
    mount: str = ""
    """Its mount options."""
    inject: str = ""
    """"store": an injector in the first agent; "clock": in the first agent and the tracker."""
    prefix: tuple[str, ...] = ()
    """A command that runs the first agent."""
    spare: tuple[str, ...] = ()
    """Hosts beside."""
    start: bool = True
    """Whether the agents are started."""
    relay: bool = False
    """A proxy between each agent and the tracker, which can spoil its answers."""


@dataclass
class Scene:
    """The verbs. Blobs are made on demand, and their digests are what they are named by."""

    shape: Shape
    work: Path
    network: net.Network
    switch: Switch
    up: Upstream
    trackers: list[Tracker]
    agents: list[Agent]
    disk: Disk | None = None
    injector: Injector | None = None
    relays: list[relay.Relay] = field(default_factory=list)
    seed: int = 0
    before: list[Use] = field(default_factory=list)
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    """Every answer to a pull, with the digest that was asked for."""

    # -- blobs -----------------------------------------------------------------------------------

    def blob(self, mib: float) -> str:
        """A new blob of upstream."""
        self.seed += 1
        return self.up.put(bytes_of(int(mib * MIB), self.seed))

    def held(self, mib: float, *holders: int) -> str:
        """A new blob that only these agents hold."""
        digest = self.blob(mib)
        rate, self.up.rate = self.up.rate, 0.0
        for holder in holders or (0,):
            self.pull(digest, holder)
            self.agents[holder].keep(digest)
        self.up.rate = rate
        time.sleep(0.5)  # the tracker is told
        self.up.sent[digest] = 0
        return digest

    # -- clients ---------------------------------------------------------------------------------

    def pull(self, digest: str, agent: int = 0, seconds: float = 60.0) -> Answer:
        """One pull through one agent."""
        answer = self.agents[agent].pull(digest, seconds)
        self.answers.append((digest, answer))
        return answer

    def pulling(
        self, digest: str, agents: Sequence[int], seconds: float, *, resume: bool = False
    ) -> list[Later[Answer]]:
        """Pulls that have begun. *resume*: like a client that asks again until it has all of it."""

        def one(agent: Agent) -> Answer:
            if not resume:
                return agent.pull(digest, seconds)
            last, took, tried = agent.insist(digest, seconds)
            self.answers.extend((digest, answer) for answer in tried[:-1])
            last.first = next((answer.first for answer in tried if answer.first), 0.0)
            last.seconds = took
            return last

        return [Later(lambda agent=self.agents[index]: one(agent)) for index in agents]  # type: ignore[misc]

    def end(self, digest: str, pulls: list[Later[Answer]]) -> list[Answer]:
        """The answers of pulls that have begun."""
        found = [later.get() for later in pulls]
        self.answers.extend((digest, answer) for answer in found)
        return found

    @property
    def wrong(self) -> int:
        """Complete bodies with other bytes than were asked for."""
        return sum(answer.wrong(digest) for digest, answer in self.answers)

    # -- parts -----------------------------------------------------------------------------------

    def every(self, number: int, parts: Sequence[Tracker | Agent]) -> None:
        """Send a signal to each of *parts*."""
        for part in parts:
            part.send(number)

    def mend(self) -> None:
        """All that was done is undone: filters, cables, moods, switches, frozen and dead processes."""
        self.switch.heal()
        self.up.mood, self.up.down = None, False
        for each in self.relays:
            each.spoil = {}
        if self.injector is not None:
            self.injector.clear()
        for part in (*self.trackers, *self.agents):
            part.send(signal.SIGCONT)
            if not part.alive:
                part.start()
                part.ready()

    def leftovers(self) -> str:
        """What the agents have more than before the fault, and files that belong to nothing."""
        now = [agent.use() for agent in self.agents]
        more = [
            Use(*(new - old for new, old in zip(*pair, strict=True))) for pair in zip(now, self.before, strict=True)
        ]
        strays = sum(agent.strays() for agent in self.agents)
        most = Use(*(max(column) for column in zip(*more, strict=True))) if more else Use(0, 0, 0)
        return f"{most.descriptors:+d} {most.threads:+d} {most.memory:+d} {strays}"


def bytes_of(size: int, seed: int) -> bytes:
    """Bytes that no two seeds share, made fast."""
    unit = hashlib.shake_256(str(seed).encode()).digest(1 << 14)
    out = bytearray()
    for number in range(-(-size // (len(unit) + 8))):
        out += number.to_bytes(8, "big") + unit
    return bytes(out[:size])


@contextlib.contextmanager
def scene(shape: Shape, *, keep: bool = False) -> Iterator[Scene]:
    """The cluster, all ready; everything is gone at exit. Raises NetError, StartError."""
    names = [f"a{index}" for index in range(shape.agents)]
    links = {name: net.Link(shape.link, shape.link) for name in names}
    others = [UPSTREAM, *(f"t{index}" for index in range(shape.trackers)), *shape.spare]
    links.update({name: net.Link(None, None) for name in others})
    work = Path(tempfile.mkdtemp(prefix=f"{net.PREFIX}-faults-{os.getpid()}-"))
    work.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(lambda: None if keep else shutil.rmtree(work, ignore_errors=True))
        stack.callback(_remove_groups)
        network = stack.enter_context(net.shaped(links))
        for name, host in network.hosts.items():
            network.hosts[name] = Mounted(host.name, host.ip, host.link, host.namespace, host.port_device)
        up = Upstream(network.hosts[UPSTREAM])
        up.rate = shape.rate * MIB
        stack.callback(up.close)
        store, disk, injector = work / "a0-store", None, None
        if shape.disk:
            disk = Disk(work, "disk", shape.disk, inodes=shape.inodes, options=shape.mount)
            stack.callback(disk.unmount)
            store = disk.path / "store"
        if shape.inject:
            injector = Injector(work, store if shape.inject == "store" else Path("/nowhere"), "a0")
        clock = injector.env if injector and shape.inject == "clock" else {}
        trackers = [Tracker(network.hosts[f"t{i}"], work, clock) for i in range(shape.trackers)]
        urls = [f"http://127.0.0.1:{relay.PORT}"] if shape.relay else [tracker.url for tracker in trackers]
        agents = [
            Agent(
                network.hosts[name], work, urls,
                up.name, f"--store-budget={shape.budget}", *shape.flags, store=None if index else store,
                env=injector.env if injector and not index else None, prefix=shape.prefix if not index else (),
            )
            for index, name in enumerate(names)
        ]  # fmt: skip
        for part in (*trackers, *agents):
            stack.callback(part.end)
        made = Scene(shape, work, network, Switch(network), up, trackers, agents, disk, injector)
        for agent in agents if shape.relay else ():
            made.relays.append(relay.Relay(agent.host, trackers[0].host.ip, TRACKER))
            stack.callback(made.relays[-1].close)
        made.seed = random.SystemRandom().randrange(1 << 30)
        for tracker in trackers:
            tracker.start()
        for tracker in trackers:
            tracker.ready()
        if shape.start:
            begin(made)
        yield made


def _remove_groups() -> None:
    """The cgroups that a case made, once their processes have ended."""
    for group in Path("/sys/fs/cgroup").glob(f"**/shoal-faults-{os.getpid()}"):
        with contextlib.suppress(OSError):
            group.rmdir()


def begin(made: Scene) -> None:
    """Start all agents, and remember what they have."""
    for agent in made.agents:
        agent.start()
    together([agent.ready for agent in made.agents])
    made.before = [agent.use() for agent in made.agents]


def wait_until(test: Callable[[], bool], seconds: float) -> bool:
    """Whether *test* came true in time."""
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
