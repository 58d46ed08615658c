"""Processes of a test: started with a deadline, output kept in a file, ended whatever happens.

Nothing here belongs to an event loop: a process outlives the loop of the test that started it, so
that a session may share one. Readiness is an event: a line that the process prints.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

READY = 30.0
"""Seconds for which a process may take until it is ready: generous, since machines of CI are slow."""

STOP = 12.0
"""Seconds between SIGTERM and SIGKILL: `shoal` promises to end within 10."""

running: list[Process] = []
"""Every process of this test run that was not stopped, in order of start; conftest shows their output on failure."""

recent: list[Process] = []
"""What was started since the test began, stopped or not."""


class PartFailed(Exception):
    """A part did not do what the test needs of it. The message carries the end of its output."""


def ready(descriptor: int, events: int, seconds: float) -> bool:
    """Whether one of *events* (select.POLLIN, ...) comes within *seconds*. select() takes no descriptor above 1,023."""
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(seconds * 1000))


def guard() -> list[str]:
    """What a command begins with that is to die with this process, even if that is killed."""
    # setpriv is in util-linux; without it only an orderly end ends the command
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def weigh(pid: int, nice: int) -> None:
    """Give the session of *pid* the processor's share that *nice* stands for, where this user may and the kernel can.

    Nice alone counts among the processes of one session, where the kernel groups them so (sched(7), autogroup).
    """
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


class Process:
    """One process. Output (both streams) goes line by line to *log*, without lines that *hush* is found in."""

    def __init__(
        self, argv: Sequence[str], *, name: str, log: Path, env: Mapping[str, str] | None = None, hush: str = r"(?!)"
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.log = log
        self.env = dict(os.environ) | {"PYTHONUNBUFFERED": "1"} | dict(env or {})
        self._hush = re.compile(hush.encode())
        self._popen: subprocess.Popen[bytes] | None = None
        self._ended: Future[int] = Future()
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._waits: list[tuple[re.Pattern[str], Future[str]]] = []

    def start(self) -> None:
        """Start it (again). It dies with the test run, even if that is killed."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._ended = Future()
        with self._lock:
            self._lines.clear()
        self._popen = subprocess.Popen(
            [*guard(), *self.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.env,
            start_new_session=True,
        )
        running.append(self)
        if self not in recent:
            recent.append(self)
        threading.Thread(target=self._pump, args=(self._popen, self._ended), name=f"pump {self.name}").start()

    @property
    def pid(self) -> int:
        """Process id. Raises PartFailed if it was never started."""
        if self._popen is None:
            raise PartFailed(f"{self.name} was not started")
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen is not None and not self._ended.done()

    def output(self, last: int | None = None) -> str:
        """What it printed since its last start; the last *last* lines."""
        with self._lock:
            return "\n".join(self._lines if last is None else self._lines[-last:])

    @property
    def lines(self) -> int:
        """How many lines it has printed since its last start."""
        with self._lock:
            return len(self._lines)

    async def says(self, pattern: str, *, deadline: float = READY, after: int = 0) -> re.Match[str]:
        """The first line, printed already or to come, that *pattern* is found in, not counting the first *after*
        lines. Raises PartFailed at the deadline (seconds), or when the process ends first."""
        wanted = re.compile(pattern)
        found: Future[str] = Future()
        with self._lock:
            for line in self._lines[after:]:
                if (match := wanted.search(line)) is not None:
                    return match
            self._waits.append((wanted, found))
        try:
            await _either(found, self._ended, deadline)
        except TimeoutError:
            raise PartFailed(f"{self.name} did not say {pattern!r} in {deadline} s:\n{self.output(40)}") from None
        finally:
            with self._lock:
                self._waits = [entry for entry in self._waits if entry[1] is not found]
        if not found.done():
            raise PartFailed(f"{self.name} ended with {self._ended.result()}:\n{self.output(40)}")
        match = wanted.search(found.result())
        assert match is not None
        return match

    async def ended(self, *, deadline: float = STOP) -> int:
        """Its exit code (negative: the signal), once it has ended. Raises PartFailed at the deadline."""
        try:
            await _either(self._ended, self._ended, deadline)
        except TimeoutError:
            raise PartFailed(f"{self.name} did not end in {deadline} s:\n{self.output(40)}") from None
        return self._ended.result()

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children; nothing if it has ended."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def kill(self) -> None:
        """kill -9, and wait until the kernel has taken it away."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM; SIGKILL if that does not end it in time. Its exit code."""
        if self._popen is None:
            return 0
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        try:
            return await self.ended()
        except PartFailed:
            return -signal.SIGKILL
        finally:
            # also children that outlived it, and a process that a cancelled test no longer waits for
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def peak_rss(self) -> int:
        """The most bytes that were ever resident (VmHWM of proc(5)) in the running process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise PartFailed(f"{self.name}: no VmHWM")

    def cpu_seconds(self) -> float:
        """User and system time of the running process so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def local_ports(self) -> set[int]:
        """The local TCP ports of its established connections: says which client a server speaks to."""
        found = psutil.Process(self.pid).net_connections(kind="tcp")
        return {entry.laddr.port for entry in found if entry.status == psutil.CONN_ESTABLISHED}

    def _pump(self, popen: subprocess.Popen[bytes], ended: Future[int]) -> None:
        assert popen.stdout is not None
        with self.log.open("ab") as file, popen.stdout as pipe:
            for raw in pipe:
                if self._hush.search(raw):
                    continue
                file.write(raw)
                file.flush()
                line = raw.decode(errors="replace").rstrip("\n")
                with self._lock:
                    self._lines.append(line)
                    due = [found for wanted, found in self._waits if wanted.search(line)]
                for found in due:
                    if not found.done():
                        found.set_result(line)
        code = popen.wait()
        with suppress(ValueError):
            running.remove(self)
        ended.set_result(code)


async def _either(one: Future[str] | Future[int], other: Future[int], deadline: float) -> None:
    """Return when one of the two is done. (asyncio.wrap_future would cancel what others wait for, too.)"""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: object) -> None:
        with suppress(RuntimeError):  # that loop is closed: nobody waits any more
            loop.call_soon_threadsafe(event.set)

    for future in (one, other):
        future.add_done_callback(wake)
    async with asyncio.timeout(deadline):
        await event.wait()


@asynccontextmanager
async def process(
    argv: Sequence[str],
    *,
    name: str,
    directory: Path,
    ready: str | None = None,
    env: Mapping[str, str] | None = None,
    deadline: float = READY,
) -> AsyncIterator[Process]:
    """A process that has printed a line matching *ready* when the block is entered, and is gone after it."""
    part = Process(argv, name=name, log=directory / f"{name}.log", env=env)
    part.start()
    try:
        if ready is not None:
            await part.says(ready, deadline=deadline)
        yield part
    finally:
        await part.stop()


def python(module: str, *arguments: str) -> list[str]:
    """The command line of *module* in the interpreter that runs the tests."""
    return [sys.executable, "-m", module, *arguments]


async def run(argv: Sequence[str], *, deadline: float = 60.0, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command. Raises PartFailed if it fails or lasts longer than *deadline* seconds."""
    child = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ) | dict(env or {}),
    )
    try:
        async with asyncio.timeout(deadline):
            out, err = await child.communicate()
    except TimeoutError:
        raise PartFailed(f"{' '.join(map(str, argv))}: no end in {deadline} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise PartFailed(f"{' '.join(map(str, argv))}: exit {child.returncode}\n{out.decode()}{err.decode()}")
    return out.decode()


_given: set[int] = set()


def free_port() -> int:
    """A TCP port on which nobody listens on 127.0.0.1.

    Taken from below the range that the kernel gives to outgoing connections: a port of that range
    may be taken by one between the answer of this function and the start of the server.
    """
    dice = random.SystemRandom()
    for _ in range(200):
        port = dice.randrange(10240, 32768)
        if port in _given:
            continue  # its server may not listen yet
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise PartFailed("no free port")
