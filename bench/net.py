"""A cluster network on one machine: namespaces, veth pairs and a bridge, each link shaped both ways.

One namespace holds the bridge, one each host. No address, route or bridge appears in the namespace
of the machine itself. Plain `ip` and `tc` commands build it: whoever doubts a figure can look at the
same commands by hand.

Shaping is `tbf` on both ends of each veth pair: the host's end limits what it sends, the bridge's
end what it receives, each with a short drop-tail queue, as a switch port has. Delay needs the
kernel's `netem`; loss takes `netem`, else iptables' `statistic` match.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "shoalb"
"""Namespaces are named PREFIX-<pid of the run>-<host>: a later run finds those of dead runs."""

SUBNET = "198.18.0"
"""RFC 2544, section C.2.2: addresses set aside for benchmarks."""

GATEWAY = f"{SUBNET}.254"
"""Default route of every host, leading nowhere: software treats hosts without one as cut off (libtorrent
announces only within the subnet of such an address)."""

QUEUE_SECONDS = 0.02
"""What a shaped queue holds at most: a shallow switch port. Longer ones measure bufferbloat."""

BURST = 64 * 1024
"""Bytes that may leave at line rate: one GSO packet, so that the kernel need not cut it up."""

GSO = 32 * 1024
"""Longest GSO packet in bytes: 64 KiB ones occupy a 200 Mbit/s link for 2.6 ms each."""

_TOOLS = ("ip", "tc")


class NetError(Exception):
    """The network could not be built; the text says which command failed."""


@dataclass(frozen=True)
class Link:
    """One host's link. Rates in Mbit/s including all headers; None: unshaped."""

    up: float | None = 200.0
    down: float | None = 200.0
    delay: float = 0.0
    """One-way milliseconds added to what the host sends."""
    loss: float = 0.0
    """Share of packets lost of those that the host receives, 0..1."""


@dataclass(frozen=True)
class Host:
    """A host of the network, or of loopback (`namespace` is None)."""

    name: str
    ip: str
    link: Link
    namespace: str | None = None
    port_device: str = ""
    """The bridge's end of its veth pair; its counters are the host's, seen from outside."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """*argv* as it must be started to run on this host, and to die with the harness."""
        tied = ["setpriv", "--pdeathsig", "KILL", *argv]
        return tied if self.namespace is None else ["ip", "netns", "exec", self.namespace, *tied]


@dataclass
class Network:
    """The hosts by name, and the process that keeps the bridge's namespace readable."""

    hosts: dict[str, Host]
    notes: list[str] = field(default_factory=list)
    """What this machine cannot shape or show."""
    holder: int | None = None
    """A process in the bridge's namespace: /proc/<holder>/net/dev has the counters of all links."""

    def counters(self) -> dict[str, tuple[int, int]]:
        """Host -> (bytes sent, bytes received), headers included; empty on loopback."""
        if self.holder is None:
            return {}
        device = {host.port_device: host.name for host in self.hosts.values()}
        found = {}
        for line in Path(f"/proc/{self.holder}/net/dev").read_text().splitlines()[2:]:
            name, _, rest = line.partition(":")
            if (host := device.get(name.strip())) is not None:
                columns = rest.split()
                found[host] = (int(columns[0]), int(columns[8]))
        return found


def can_shape() -> str | None:
    """None if namespaces can be made here; else why not, in a sentence."""
    if os.geteuid() != 0:
        return "no root: loopback only; link rates, delay, loss and bytes per node cannot be shown"
    for tool in _TOOLS:
        if subprocess.run(["which", tool], capture_output=True, check=False).returncode:
            return f"no `{tool}` command (Debian: iproute2): loopback only; links cannot be shaped"
    return None


def loopback(names: Sequence[str]) -> Network:
    """All hosts on 127.0.0.1, nothing shaped."""
    note = can_shape() or "loopback: link rates, delay, loss and bytes per node cannot be shown"
    return Network({name: Host(name, "127.0.0.1", Link(None, None)) for name in names}, [note])


@contextlib.contextmanager
def shaped(links: dict[str, Link], congestion: str = "cubic") -> Iterator[Network]:
    """The network of the named hosts, torn down at exit, whatever ended it. Raises NetError."""
    run = f"{PREFIX}-{os.getpid()}"
    bridge = f"{run}-bridge"
    hosts = {
        name: Host(name, f"{SUBNET}.{index + 1}", link, f"{run}-{name}", f"p{index}")
        for index, (name, link) in enumerate(links.items())
    }
    network = Network(hosts)
    holder: subprocess.Popen[bytes] | None = None
    try:
        _batch("ip", _topology(bridge, hosts))
        with contextlib.suppress(NetError):  # where the kernel has it: a switch does not look into packets
            _inside(bridge, "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables")
        for host in hosts.values():
            assert host.namespace is not None
            with _allow(congestion):
                _inside(host.namespace, f"echo {congestion} > /proc/sys/net/ipv4/tcp_congestion_control")
            _inside(host.namespace, "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")
            _shape(host, bridge, network.notes)
        holder = subprocess.Popen(
            ["ip", "netns", "exec", bridge, "setpriv", "--pdeathsig", "KILL", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
        )
        network.holder = holder.pid
        yield network
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
        _remove(run)


def sweep() -> list[str]:
    """Remove what runs left behind that are no longer alive; returns the namespaces removed."""
    gone: list[str] = []
    for run in {m[1] for name in _namespaces() if (m := re.match(rf"({PREFIX}-\d+)-", name))}:
        if not Path(f"/proc/{run.rsplit('-', 1)[1]}").exists():
            gone += _remove(run)
    return gone


def raise_on_signals() -> None:
    """SIGTERM and SIGHUP end the run like SIGINT does: through every `finally`."""

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def check(network: Network, sender: str, receiver: str, seconds: float = 1.0) -> float:
    """Payload Mbit/s of one plain TCP connection between two hosts of *network*."""
    to, of = network.hosts[receiver], network.hosts[sender]
    sink = subprocess.Popen(
        to.command([sys.executable, "-c", _SINK, to.ip]), stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert sink.stdout is not None
    try:
        port = sink.stdout.readline().strip()
        subprocess.run(
            of.command([sys.executable, "-c", _FLOOD, to.ip, port, str(seconds)]),
            check=True, timeout=seconds + 15, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return float(sink.stdout.readline())
    finally:
        sink.kill()
        sink.wait()
        sink.stdout.close()


_SINK = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
link, _ = server.accept()
buffer = bytearray(1 << 20)
start, got = time.monotonic(), 0
while n := link.recv_into(buffer):
    got += n
print(got * 8 / (time.monotonic() - start) / 1e6, flush=True)
"""

_FLOOD = """
import socket, sys, time
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    link.sendall(bytes(1 << 18))
"""


def _topology(bridge: str, hosts: dict[str, Host]) -> list[str]:
    lines = [
        f"netns add {bridge}",
        f"-n {bridge} link add br0 type bridge",
        f"-n {bridge} link set br0 type bridge stp_state 0 forward_delay 0",
        f"-n {bridge} link set br0 up",
        f"-n {bridge} addr add {GATEWAY}/24 dev br0",
    ]
    for host in hosts.values():
        ns, port = host.namespace, host.port_device
        lines += [
            f"netns add {ns}",
            f"-n {bridge} link add {port} gso_max_size {GSO} type veth peer name eth0 gso_max_size {GSO} netns {ns}",
            f"-n {bridge} link set {port} master br0 up",
            f"-n {ns} link set lo up",
            f"-n {ns} addr add {host.ip}/24 dev eth0",
            f"-n {ns} link set eth0 gso_max_size {GSO} up",
            f"-n {ns} route add default via {GATEWAY}",
        ]
    return lines


def _shape(host: Host, bridge: str, notes: list[str]) -> None:
    assert host.namespace is not None
    for namespace, device, rate in ((host.namespace, "eth0", host.link.up), (bridge, host.port_device, host.link.down)):
        if rate is not None:
            limit = max(BURST, int(rate * 1e6 / 8 * QUEUE_SECONDS))
            _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "handle", "1:",
                 "tbf", "rate", f"{rate}mbit", "burst", str(BURST), "limit", str(limit))  # fmt: skip
    if host.link.delay:
        parent = ["root"] if host.link.up is None else ["parent", "1:"]
        try:
            _run("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", *parent,
                 "netem", "delay", f"{host.link.delay}ms", "limit", "10000")  # fmt: skip
        except NetError:
            _note(notes, "this kernel has no netem: delay is not shaped")
    if host.link.loss:
        try:
            _inside(
                host.namespace,
                f"iptables -A INPUT -i eth0 -m statistic --mode random --probability {host.link.loss} -j DROP",
            )
        except NetError:
            _note(notes, "neither netem nor iptables' statistic match: loss is not shaped")


@contextlib.contextmanager
def _allow(congestion: str) -> Iterator[None]:
    """A namespace may only choose what the machine allows to the unprivileged: allow it meanwhile."""
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    with (Path(tempfile.gettempdir()) / f"{PREFIX}-congestion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run would put back what it found meanwhile
        before = allowed.read_text().strip()
        if congestion in before.split():
            yield
            return
        allowed.write_text(f"{before} {congestion}")
        try:
            yield
        finally:
            allowed.write_text(before)


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def _namespaces() -> list[str]:
    done = subprocess.run(["ip", "-j", "netns", "list"], capture_output=True, text=True, check=False)
    return [entry["name"] for entry in json.loads(done.stdout or "[]")]


def _remove(run: str) -> list[str]:
    """End what runs in the namespaces of *run*, and take them away with all their devices."""
    names = [name for name in _namespaces() if name.startswith(f"{run}-")]
    for name in names:
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        for pid in pids.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return names


def _batch(tool: str, lines: list[str]) -> None:
    """Lines may begin with `-n NS`, which a batch does not understand: one process per such line."""
    for line in lines:
        _run(tool, *line.split())


def _inside(namespace: str, shell: str) -> None:
    _run("ip", "netns", "exec", namespace, "sh", "-c", shell)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
