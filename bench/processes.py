"""Processes on the hosts of a network: started, waited for, their CPU and memory read, ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from bench.net import Host

CLIENT = [sys.executable, "-I", "-S", str(Path(__file__).with_name("client.py"))]
_START = 30.0
_STOP = 10.0


class StartError(Exception):
    """A process did not come up; the text has the end of its log."""


class Process:
    """A long-running process on *host*, its output in *log*."""

    def __init__(self, host: Host, argv: Sequence[str], log: Path) -> None:
        self.host = host
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                host.command(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=_PROJECT
            )

    def cpu(self) -> float:
        """CPU-seconds so far, children included."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def threads(self) -> dict[int, float]:
        """Thread -> CPU-seconds so far; the first is Python's own."""
        try:
            return {t.id: t.user_time + t.system_time for t in psutil.Process(self.popen.pid).threads()}
        except psutil.Error:
            return {}

    def peak(self) -> int:
        """Bytes of the highest resident set so far (VmHWM), children added."""
        return sum(_high_water(process.pid) for process in self._family())

    def end(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.popen.terminate()
        try:
            self.popen.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def kill(self) -> None:
        """SIGKILL, to all of it."""
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.popen.wait()

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.popen.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []


_PROJECT = Path(__file__).parent.parent


def wait_listening(places: Iterable[tuple[Process, str, int]]) -> None:
    """Return when every (process, ip, port) accepts connections. Raises StartError."""
    waiting = []
    for process, ip, port in places:
        asker = subprocess.Popen(
            process.host.command(CLIENT), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert asker.stdin is not None
        with asker.stdin as said:
            said.write(json.dumps({"kind": "wait", "host": ip, "port": port, "timeout": _START}) + "\n")
        waiting.append((process, asker))
    for process, asker in waiting:
        if asker.wait(_START + 10):
            raise StartError(f"{process.log.stem} on {process.host.name} did not come up:\n{process.tail()}")


@contextlib.contextmanager
def running(processes: list[Process]) -> Iterator[list[Process]]:
    """End all of *processes* at exit, those added meanwhile too."""
    try:
        yield processes
    finally:
        for process in processes:
            process.popen.terminate()
        for process in reversed(processes):
            process.end()


def busy() -> float:
    """CPU-seconds that this machine has been busy since it started, the kernel's packet work included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _high_water(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
