"""What can be done to a host of the bench's network: cables, packets, and work in its namespace."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from bench.net import Host, NetError, Network

CLONE_NEWNET = 0x40000000  # <sched.h>
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Later(Generic[T]):
    """Work in a thread of its own. *host*: the thread enters its namespace first."""

    def __init__(self, work: Callable[[], T], host: Host | None = None) -> None:
        self._work, self._host = work, host
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._host is not None:
                enter(self._host)
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - told to whoever asks for the result
            self._error = error

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def get(self) -> T:
        """What *work* returned, once it has. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


def enter(host: Host) -> None:
    """This thread is on *host* from now on."""
    if host.namespace is None:
        return
    fd = os.open(f"/var/run/netns/{host.namespace}", os.O_RDONLY)
    try:
        if _libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


def inside(host: Host, work: Callable[[], T]) -> T:
    """What *work* returns, done on *host*."""
    return Later(work, host).get()


def run(*argv: str) -> str:
    """What a command prints. Raises NetError."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Mounted(Host):
    """A host whose processes see the mounts of this machine, also those that change later.

    `ip netns exec` gives each process a copy of them, which keeps a disk mounted that was taken out.
    """

    def command(self, argv: Sequence[str]) -> list[str]:
        """*argv* as it must be started to run on this host, and to die with the bench."""
        tied = ["setpriv", "--pdeathsig", "KILL", *argv]
        return tied if self.namespace is None else ["nsenter", f"--net=/var/run/netns/{self.namespace}", *tied]


class Switch:
    """The cables and packet filters of a network's hosts, and the way back."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._touched: set[str] = set()
        self._pulled: set[str] = set()

    def host(self, name: str) -> Host:
        """A host by its name."""
        return self._network.hosts[name]

    def rule(self, name: str, rule: str) -> None:
        """An iptables rule (without -A) on host *name*."""
        self._touched.add(name)
        run("ip", "netns", "exec", self._space(name), "iptables", "-w", "-A", *rule.split())

    def cut(self, one: str, other: str) -> None:
        """No packet passes between two hosts, and nobody is told."""
        ip = self.host(other).ip
        self.rule(one, f"INPUT -s {ip} -j DROP")
        self.rule(one, f"OUTPUT -d {ip} -j DROP")

    def swallow(self, one: str, other: str, length: int = 1000) -> None:
        """Packets of *length* bytes and more vanish between two hosts: a path MTU that nobody was told."""
        ip = self.host(other).ip
        for rule in (f"INPUT -s {ip}", f"OUTPUT -d {ip}"):
            self.rule(one, f"{rule} -m length --length {length}:65535 -j DROP")

    def lose(self, name: str, share: float) -> None:
        """Each packet that *name* receives is lost with this probability."""
        self.rule(name, f"INPUT -i eth0 -m statistic --mode random --probability {share} -j DROP")

    def cable(self, name: str, *, plugged: bool) -> None:
        """Pull or plug the cable of a host at the switch: no FIN, no RST."""
        (self._pulled.discard if plugged else self._pulled.add)(name)
        bridge = self._space(name).rsplit("-", 1)[0] + "-bridge"
        run("ip", "-n", bridge, "link", "set", self.host(name).port_device, "up" if plugged else "down")

    def narrow(self, name: str, kbit: int | None) -> None:
        """What the host can send from now on, in kbit/s; None: all."""
        space = self._space(name)
        subprocess.run(["tc", "-n", space, "qdisc", "del", "dev", "eth0", "root"], capture_output=True, check=False)
        if kbit is not None:
            self._touched.add(name)
            run("tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", "tbf",
                "rate", f"{kbit}kbit", "burst", "32768", "limit", "65536")  # fmt: skip

    def heal(self) -> None:
        """All cables plugged, all filters gone."""
        for name in list(self._pulled):
            self.cable(name, plugged=True)
        for name in self._touched:
            run("ip", "netns", "exec", self._space(name), "iptables", "-w", "-F")
            self.narrow(name, None)
        self._touched.clear()

    def _space(self, name: str) -> str:
        space = self.host(name).namespace
        assert space is not None
        return space


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """What each of *works* returns, all done at once."""
    return [later.get() for later in [Later(work) for work in works]]
