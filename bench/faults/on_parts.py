"""Faults of processes, trackers, clocks, limits and clients."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

from bench.faults.case import Case, Deed
from bench.faults.client import ask
from bench.faults.hosts import Later, inside, together
from bench.faults.parts import MIRROR, SWARM, Agent
from bench.faults.scene import Scene, Shape, begin
from bench.faults.upstream import MIB

THREE = Shape(agents=3, rate=8)
RELAYED = Shape(agents=3, rate=12, relay=True)
CGROUPS = Path("/sys/fs/cgroup")


def agents(number: int, *which: int) -> Deed:
    """A signal to agents."""
    return lambda stage: stage.every(number, [stage.agents[index] for index in which])


def trackers(number: int) -> Deed:
    """A signal to all trackers."""
    return lambda stage: stage.every(number, stage.trackers)


def first_tracker(number: int) -> Deed:
    """A signal to one tracker."""
    return lambda stage: stage.every(number, stage.trackers[:1])


def frozen_for(seconds: float) -> Deed:
    """The first agent stands still for a while."""

    def deed(stage: Scene) -> None:
        stage.agents[0].send(signal.SIGSTOP)
        timer = threading.Timer(seconds, stage.agents[0].send, [signal.SIGCONT])
        timer.daemon = True
        timer.start()

    return deed


def killed_again_and_again(stage: Scene) -> None:
    """The first agent is killed every two seconds, six times, and started at once."""

    def work() -> None:
        for _ in range(6):
            time.sleep(2)
            stage.agents[0].kill()
            stage.agents[0].start()
            stage.agents[0].ready(joined=False)

    Later(work)


def rolling(stage: Scene) -> None:
    """Every agent is restarted in turn, then the trackers."""

    def work() -> None:
        for part in (*stage.agents, *stage.trackers):
            time.sleep(1)
            part.kill(signal.SIGTERM)
            part.start()
            part.ready()

    Later(work)


def clock(seconds: int) -> Deed:
    """The wall clock of the first agent and the tracker jumps."""

    def deed(stage: Scene) -> None:
        assert stage.injector is not None
        stage.injector.set(clock=seconds)

    return deed


def no_thread(stage: Scene) -> None:
    """The first agent may start no further thread."""
    group = CGROUPS / "pids" if (CGROUPS / "pids").exists() else CGROUPS
    group = group / f"shoal-faults-{os.getpid()}"
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text(str(stage.agents[0].pid))
    (group / "pids.max").write_text((group / "pids.current").read_text())


def threads_again(stage: Scene) -> None:
    """The limit is gone."""
    group = CGROUPS / "pids" if (CGROUPS / "pids").exists() else CGROUPS
    (group / f"shoal-faults-{os.getpid()}" / "pids.max").write_text("max")
    stage.mend()


def idle_clients(stage: Scene) -> None:
    """300 clients connect to the first agent, and say nothing."""

    def work() -> list[socket.socket]:
        links = []
        for _ in range(300):
            link = socket.socket()
            link.settimeout(1)
            try:
                link.connect(("127.0.0.1", MIRROR))
            except OSError:
                link.close()
                continue
            links.append(link)
        return links

    held = inside(stage.agents[0].host, work)

    def leave() -> None:
        for link in held:
            link.close()

    threading.Timer(6.0, leave).start()


def small_log(stage: Scene) -> list[str]:
    """What the first agent wrote about it."""
    size = stage.agents[0].log.stat().st_size
    return [] if size < MIB else [f"a log of {size // 1024} KiB"]


def readers_leave(stage: Scene) -> None:
    """150 clients leave in mid-body."""
    digest = stage.held(6, 0)
    agent = stage.agents[0]
    together([lambda n=n: agent.pull(digest, 20, leave_after=n * 65536 + 1) for n in range(90)])  # type: ignore[misc]


def slow_readers(stage: Scene) -> None:
    """20 clients read slowly while the store turns over."""
    digest = stage.held(6, 0)
    agent, rate = stage.agents[0], stage.up.rate
    readers = [Later(lambda: agent.pull(digest, 10, rate=2000, keep=65536)) for _ in range(20)]
    stage.up.rate = 0
    for _ in range(6):
        stage.pull(stage.blob(16), 0, 30)
    stage.up.rate = rate
    right = stage.up.content(digest)
    for answer in [reader.get() for reader in readers]:
        if not answer.body:
            raise RuntimeError(f"a slow reader got nothing: {answer}")
        if not right.startswith(answer.body):
            raise RuntimeError(f"a slow reader got wrong bytes: {answer}")


def terminated_with_readers(stage: Scene) -> None:
    """The first agent is told to end while slow readers hang on it."""
    digest = stage.held(6, 0)
    readers = [Later(lambda: stage.agents[0].pull(digest, 30, rate=2000)) for _ in range(20)]
    time.sleep(1)
    began = time.monotonic()
    code = stage.agents[0].kill(signal.SIGTERM)
    if code not in (0, -signal.SIGTERM) or time.monotonic() - began > 10:
        raise RuntimeError(f"exit {code} after {time.monotonic() - began:.1f} s")
    for reader in readers:
        reader.get()
    stage.agents[0].start()
    stage.agents[0].ready()


def spoil(verb: str, how: str) -> Deed:
    """What every agent hears of its tracker in answer to a verb."""

    def deed(stage: Scene) -> None:
        for relay in stage.relays:
            relay.spoil = {verb: how}

    return deed


def replaced_by_empty(stage: Scene) -> None:
    """The holder dies, and an agent with an empty store gets its address."""
    old = stage.agents[0]
    old.kill()
    new = Agent(
        old.host, stage.work, [t.url for t in stage.trackers], stage.up.name, store=stage.work / "another-store"
    )
    stage.agents[0] = new
    new.start()
    new.ready()


def replaced_by_something(stage: Scene) -> None:
    """The holder dies, and something that is no agent answers at its port."""
    old = stage.agents[0]
    old.kill()
    server = inside(old.host, lambda: socket.create_server((old.host.ip, SWARM)))

    def work() -> None:
        server.settimeout(15)
        try:
            while True:
                link, _ = server.accept()
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                link.close()
        except OSError:
            server.close()

    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)


def replaced_back(stage: Scene) -> None:
    """The agent comes back once the port is free."""
    time.sleep(8)
    stage.mend()


def second_process(stage: Scene) -> None:
    """Another agent is started on the first one's store: it must refuse, and harm nothing."""
    first = stage.agents[0]
    flags = ["--listen=127.0.0.1:30001", f"--swarm-listen={first.host.ip}:6882", "--metrics-listen=127.0.0.1:5005"]
    second = Agent(first.host, stage.work / "second", [], stage.up.name, *flags, store=first.store)
    second.start()
    end = time.monotonic() + 20
    while second.alive and time.monotonic() < end:
        time.sleep(0.1)
    alive = second.alive
    second.end()
    if alive or inside(first.host, lambda: ask(30001, "/v2/", seconds=1)).status == 200:
        raise RuntimeError("two processes on one store")


def out_of_memory(mib: int) -> tuple[str, ...]:
    """A command that runs an agent in a memory cgroup of *mib* MiB."""
    group = CGROUPS / "memory" if (CGROUPS / "memory").exists() else CGROUPS
    limit = "memory.limit_in_bytes" if (CGROUPS / "memory").exists() else "memory.max"
    place = group / f"shoal-faults-{os.getpid()}"
    script = f'mkdir -p {place}; echo {mib}M > {place}/{limit}; echo $$ > {place}/cgroup.procs; exec "$@"'
    return ("sh", "-c", script, "sh")


def start_late(stage: Scene) -> None:
    """Every agent is started only now, all at once."""
    begin(stage)


def nothing(stage: Scene) -> None:
    """The shape of the scene is the fault."""


CASES = [
    Case("P1 claimant killed", "process", "kill -9 of one of four in mid-pull", agents(signal.SIGKILL, 0), Shape(agents=4, rate=6), 24, after=1.5, ask=[1, 2, 3], seconds=11, copies=1.2, quick=True),
    Case("P1 sole seed killed", "process", "kill -9 of the sole seed in mid-pull", agents(signal.SIGKILL, 0), Shape(agents=3, rate=12, link=100), 48, holders=[0], after=1.5, seconds=14, copies=1.1),
    Case("N11 sole seed frozen", "process", "the sole seed accepts and never answers", agents(signal.SIGSTOP, 0), Shape(agents=3, rate=12), 24, holders=[0], seconds=6, copies=1.1),
    Case("P2 one of two trackers killed", "process", "kill -9 of a tracker in mid-pull", first_tracker(signal.SIGKILL), Shape(trackers=2, rate=8), 24, after=1.0, seconds=8, copies=1.3),
    Case("P2 one of two trackers frozen", "process", "a tracker is frozen in mid-pull", first_tracker(signal.SIGSTOP), Shape(trackers=2, rate=8), 24, after=1.0, seconds=9, copies=1.3),
    Case("P3 all trackers frozen", "process", "all trackers are frozen in mid-pull", trackers(signal.SIGSTOP), Shape(trackers=2, rate=8), 32, after=1.5, seconds=10, copies=2.1),
    Case("P3 all frozen, new blob", "process", "the same, a new blob", trackers(signal.SIGSTOP), Shape(trackers=2, rate=8), 16, ask=[1], seconds=6, copies=1.1, quick=True),
    Case("P4 claimant frozen for 12 s", "process", "one of four stands still for 12 s in mid-pull", frozen_for(12), Shape(agents=4, rate=6), 36, after=1.5, ask=[1, 2, 3], seconds=12, copies=1.3),
    Case("P5 killed again and again", "process", "kill -9 every two seconds; its client resumes", killed_again_and_again, Shape(agents=1, rate=4), 32, resume=True, seconds=80, copies=2.0),
    Case("P6 out of memory", "process", "a memory cgroup of 56 MiB", nothing, Shape(agents=2, rate=12, prefix=out_of_memory(56)), 32, resume=True, seconds=60, copies=3),
    Case("P7 clock + 1 day", "process", "the wall clock jumps by a day in mid-pull", clock(86_400), Shape(agents=3, rate=8, inject="clock"), 16, after=0.8, seconds=6),
    Case("P7 clock - 30 years", "process", "the wall clock jumps back by 30 years", clock(-946_080_000), Shape(agents=3, rate=8, inject="clock"), 16, after=0.8, seconds=6),
    Case("P8 256 descriptors", "process", "256 open files at most, 300 idle clients for six seconds", idle_clients, Shape(agents=2, rate=8, prefix=("prlimit", "--nofile=256:256")), 8, ask=[0], resume=True, seconds=25, copies=1.2, more=small_log, quick=True),
    Case("P9 no further thread", "process", "no further thread may start", no_thread, Shape(agents=2, rate=8), 8, ask=[0], answer="told", seconds=12, copies=None, mend=threads_again),
    Case("P11 SIGTERM with slow readers", "process", "an agent is told to end with 20 slow readers", terminated_with_readers, Shape(agents=2, rate=8), 8, seconds=6),
    Case("P12 two processes on one store", "process", "a second agent on the same store", second_process, Shape(agents=1), 8, seconds=5),
    Case("C1 ten at once", "cluster", "ten agents start at the same moment, and pull", start_late, Shape(agents=10, trackers=2, rate=8, start=False), 16, resume=True, seconds=25, copies=1.1),
    Case("C2 rolling restart", "cluster", "every agent and tracker is restarted in turn, under a pull", rolling, Shape(agents=3, trackers=2, rate=3), 24, resume=True, seconds=45, copies=1.3),
    Case("C3 unknown fields", "cluster", "the tracker answers with fields of another version", spoil("", "fields"), RELAYED, 24, seconds=6),
    Case("C4 publish 404", "cluster", "the tracker knows no publications", spoil("publish", "404"), RELAYED, 24, seconds=8, copies=3.2, quick=True),
    Case("C4 board 500", "cluster", "the tracker fails on boards", spoil("board", "500"), RELAYED, 24, seconds=8, copies=3.2),
    Case("C4 board silent", "cluster", "the tracker is silent on boards", spoil("board", "silent"), RELAYED, 24, seconds=8, copies=3.2),
    Case("C4 board is a page", "cluster", "the tracker's boards are HTML", spoil("board", "page"), RELAYED, 24, seconds=8, copies=3.2),
    Case("C4 progress silent", "cluster", "the tracker is silent on progress", spoil("progress", "silent"), RELAYED, 24, seconds=8, copies=1.5),
    Case("C4 seal 500", "cluster", "the tracker fails on seals", spoil("seal", "500"), RELAYED, 24, seconds=8, copies=1.5),
    Case("C5 login page", "cluster", "all of the tracker is HTML", spoil("", "page"), RELAYED, 24, seconds=8, copies=3.2),
    Case("C7 address reused, empty", "cluster", "the holder dies, an empty agent gets its address", replaced_by_empty, THREE, 12, holders=[0], ask=[1, 2], seconds=6, copies=1.1, quick=True),
    Case("C7 address reused, no agent", "cluster", "the holder dies, something else answers there", replaced_by_something, THREE, 12, holders=[0], ask=[1, 2], seconds=6, copies=1.1, mend=replaced_back),
    Case("K1 clients leave", "client", "90 clients leave in mid-body", readers_leave, Shape(agents=2, rate=8), 8, seconds=6),
    Case("K2 slow readers", "client", "20 slow readers while a store of 64 MiB turns over", slow_readers, Shape(agents=2, rate=8, budget="64MiB"), 8, seconds=6),
]  # fmt: skip
