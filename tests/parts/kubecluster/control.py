"""The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and the cluster's DNS."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.parts.kubecluster import network
from tests.parts.kubecluster.binaries import directory
from tests.parts.kubecluster.network import Network
from tests.parts.kubecluster.pki import Authority
from tests.parts.procs import PartFailed, Process, run

ADDRESS = network.address(network.CONTROL)
SERVER = f"https://{ADDRESS}:6443"
PLACE = "control"

COREFILE = """\
.:53 {{
    bind {addresses}
    errors
    hosts {{
{hosts}
        fallthrough
    }}
    kubernetes cluster.local {{
        kubeconfig {kubeconfig} here
        ttl 1
    }}
}}
"""


class ControlPlane:
    """The processes of the control plane, in a network namespace of their own."""

    def __init__(self, base: Path, lan: Network, authority: Authority, *, patient: bool = False) -> None:
        """*patient*: a node that is silent for less than an hour is no reason to do anything."""
        self._grace = "1h" if patient else "15s"
        self._base = base
        self._lan = lan
        self._authority = authority
        self.parts: dict[str, Process] = {}
        self.admin = authority.kubeconfig("admin", SERVER, "admin", organization="system:masters")

    async def up(self, hosts: dict[str, str]) -> None:
        """Start everything. *hosts*: names outside Kubernetes (a registry's) that the cluster's DNS knows."""
        await self._lan.join(PLACE, network.CONTROL)
        for name, words in (await asyncio.to_thread(self._commands, hosts)).items():
            self.parts[name] = Process(
                self._lan.enter(PLACE, "nice", "-n", "5", *words), name=name, log=self._base / "log" / f"{name}.log"
            )
        await self.start("etcd")
        await self.start("kube-apiserver")
        for name in ("kube-controller-manager", "kube-scheduler", "coredns"):
            self.parts[name].start()

    async def down(self) -> None:
        """End everything, the API server last but one."""
        for name in reversed(list(self.parts)):
            await self.parts[name].kill()

    async def start(self, name: str) -> None:
        """Start a part (again), and wait until it works."""
        part = self.parts[name]
        part.start()
        if name == "etcd":
            await part.says("ready to serve client requests", deadline=60)
        if name == "kube-apiserver":
            await self._answers()

    async def _answers(self) -> None:
        """Until every check of the API server is well. It prints no line that says so, so it is asked."""
        asked = [str(directory() / "kubectl"), "--kubeconfig", str(self.admin), "get", "--raw", "/readyz"]
        async with asyncio.timeout(120):
            while self.parts["kube-apiserver"].alive:
                try:
                    await run(self._lan.enter(PLACE, *asked), deadline=10)
                except PartFailed:
                    await asyncio.sleep(0.3)
                else:
                    return
        raise PartFailed(self.parts["kube-apiserver"].output(40))

    def _commands(self, hosts: dict[str, str]) -> dict[str, list[str]]:
        """Part -> command line, in the order in which they are started."""
        pki, programs, data = self._authority.directory, directory(), self._base / "etcd"
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "10.96.0.1", "127.0.0.1"]
        certificate, key = self._authority.issue("apiserver", "kube-apiserver", *names, ADDRESS)
        node, node_key = self._authority.issue("apiserver-client", "apiserver", organization="system:masters")
        manager = self._authority.kubeconfig("manager", SERVER, "system:kube-controller-manager")
        scheduler = self._authority.kubeconfig("scheduler", SERVER, "system:kube-scheduler")
        services = f"--service-cluster-ip-range={','.join(network.SERVICES)}"
        corefile = self._base / "Corefile"
        table = "\n".join(f"        {address} {name}" for name, address in hosts.items())
        addresses = f"{ADDRESS} {network.address6(network.CONTROL)}"
        corefile.write_text(COREFILE.format(addresses=addresses, hosts=table, kubeconfig=self.admin))
        return {
            "etcd": [
                f"{programs}/etcd", f"--data-dir={data}", "--unsafe-no-fsync", "--log-level=info",
                "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
            ],
            "kube-apiserver": [
                f"{programs}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--advertise-address={ADDRESS}",
                "--secure-port=6443", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
                f"--client-ca-file={pki}/ca.crt", f"--service-account-key-file={pki}/sa.pub",
                f"--service-account-signing-key-file={pki}/sa.key",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--kubelet-client-certificate={node}", f"--kubelet-client-key={node_key}",
                f"--kubelet-certificate-authority={pki}/ca.crt", "--kubelet-preferred-address-types=InternalIP",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction", services, "--allow-privileged", "--profiling=false",
            ],
            "kube-controller-manager": [
                f"{programs}/kube-controller-manager", f"--kubeconfig={manager}",
                f"--authentication-kubeconfig={manager}", f"--authorization-kubeconfig={manager}",
                f"--service-account-private-key-file={pki}/sa.key", f"--root-ca-file={pki}/ca.crt",
                "--use-service-account-credentials", "--leader-elect=false", services,
                "--kube-api-qps=200", "--kube-api-burst=400",
                # A node that is gone is noticed in seconds.
                f"--node-monitor-grace-period={self._grace}", "--node-monitor-period=2s",
            ],
            "kube-scheduler": [
                f"{programs}/kube-scheduler", f"--kubeconfig={scheduler}", f"--authentication-kubeconfig={scheduler}",
                f"--authorization-kubeconfig={scheduler}", "--leader-elect=false",
                "--kube-api-qps=500", "--kube-api-burst=1000",
            ],
            "coredns": [f"{programs}/coredns", "-conf", str(corefile)],
        }  # fmt: skip
