"""A node: a network, mount and process namespace with its own containerd, kubelet and kube-proxy.

The paths of the node that anybody touches are private to its mount namespace. The process namespace makes the end
certain: with its first process everything in it is gone, containers too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.parts.kubecluster import groups, network
from tests.parts.kubecluster.binaries import directory
from tests.parts.kubecluster.network import Network
from tests.parts.kubecluster.pki import Authority
from tests.parts.procs import Process, run

PRIVATE = (
    "/etc/containerd", "/var/lib/containerd", "/run/containerd", "/var/lib/kubelet", "/etc/cni/net.d", "/var/lib/cni",
    "/var/lib/shoal", "/var/log/pods", "/var/log/containers", "/run/netns",
)  # fmt: skip
"""Paths of the machine that each node has to itself."""

PAUSE = "registry.k8s.io/pause:shoal"
"""The image of a pod's first process."""

CONTAINERD = """\
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
"""


class Node:
    """One node of the cluster. *number* is its place in the network."""

    def __init__(self, base: Path, lan: Network, authority: Authority, number: int, *, zone: str = "") -> None:
        self.number = number
        self.name = f"node-{number - network.FIRST_NODE + 1}"
        self.address = network.address(number)
        self.base = base / self.name
        self._shared = base
        self._zone = zone
        self._lan = lan
        self._authority = authority
        self._log = base / "log"
        self._holder: Process | None = None
        self._first = 0
        self.parts: dict[str, Process] = {}

    @property
    def cgroup(self) -> str:
        """The control group that everything of this node is in."""
        return f"/{self._lan.prefix}-{self.name}"

    def path(self, path: str) -> Path:
        """Where this machine sees a path of the node's."""
        for private in PRIVATE:
            if path == private or path.startswith(f"{private}/"):
                return self.base / private[1:].replace("/", "-") / path[len(private) :].lstrip("/")
        raise ValueError(f"{path} is not this node's alone")

    def enter(self, *words: str) -> list[str]:
        """A command line that is run on the node."""
        return ["nsenter", "-t", str(self._first), "-m", "-p", "-n", "--", *words]

    async def run(self, *words: str, deadline: float = 60.0) -> str:
        """Output of a command that is run on the node. Raises PartFailed if it fails."""
        return await run(self.enter(*words), deadline=deadline)

    async def ctr(self, *words: str, deadline: float = 120.0) -> str:
        """Output of `ctr` in kubelet's namespace."""
        return await self.run("ctr", "-n", "k8s.io", *words, deadline=deadline)

    async def up(self, server: str, dns: str, images: list[Path]) -> None:
        """Start the node, and load *images* into its containerd before kubelet asks for any."""
        await self._lan.join(self.name, self.number, node=True)
        await asyncio.to_thread(self._prepare, server, dns)
        await self._hold()
        await self._start("containerd", "containerd", "--log-level", "debug", ready="containerd successfully booted")
        for image in images:
            await self.load(image)
        kubeconfig = self._authority.directory / f"{self.name}.kubeconfig"
        proxy = self._authority.directory / f"proxy-{self.name}.kubeconfig"
        programs = directory()
        await self._start(
            "kube-proxy", f"{programs}/kube-proxy", "--kubeconfig", str(proxy), "--hostname-override", self.name,
            "--cluster-cidr", ",".join(network.PODS), "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
        )  # fmt: skip
        labels = f"--node-labels=topology.kubernetes.io/zone={self._zone}" if self._zone else "--node-labels="
        await self._start(
            "kubelet", f"{programs}/kubelet", "--config", str(self.base / "kubelet.yaml"),
            "--kubeconfig", str(kubeconfig), "--hostname-override", self.name,
            "--node-ip", f"{self.address},{network.address6(self.number)}", labels, "--v=1",
        )  # fmt: skip

    async def down(self) -> None:
        """End everything on the node. Its network goes with the cluster's."""
        for part in reversed(list(self.parts.values())):
            await part.kill()
        if self._holder is not None:
            with suppress(ProcessLookupError):
                os.kill(self._first, 9)
            await self._holder.stop()
        await asyncio.to_thread(self._clean)

    async def load(self, image: Path) -> None:
        """Import an image archive (docker's or OCI's) into the node's containerd."""
        await self.ctr("images", "import", "--snapshotter", "overlayfs", str(image), deadline=300)

    async def restart(self, part: str) -> None:
        """Kill one part of the node and start it again."""
        await self.parts[part].kill()
        self.parts[part].start()

    async def _start(self, name: str, *words: str, ready: str | None = None) -> None:
        part = Process(
            self.enter("nice", "-n", "5", *words), name=f"{self.name}-{name}", log=self._log / f"{self.name}-{name}.log"
        )
        self.parts[name] = part
        part.start()
        if ready is not None:
            await part.says(ready)

    async def _hold(self) -> None:
        """Make the namespaces. Their first process does nothing but bury orphans; all else is entered into them."""
        binds = [f"mkdir -p {path} && mount --bind {self.path(path)} {path}" for path in PRIVATE]
        binds.append(f"mount --bind {self.base}/resolv.conf /etc/resolv.conf")
        binds.append(f"mount --bind {self.base}/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt")
        script = " && ".join(["mount --make-rshared /", *binds, "echo held", f"exec {directory()}/pause"])
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        self._holder = Process(
            [*self._lan.enter(self.name, *words), "sh", "-c", script],
            name=f"{self.name}-holder", log=self._log / f"{self.name}-holder.log",
        )  # fmt: skip
        self._holder.start()
        await self._holder.says("held")
        (child,) = psutil.Process(self._holder.pid).children()
        self._first = child.pid

    def _prepare(self, server: str, dns: str) -> None:
        """Write every file that the node begins with."""
        for path in PRIVATE:
            self.path(path).mkdir(parents=True, exist_ok=True)
        groups.make(self.cgroup[1:])
        user = f"system:node:{self.name}"
        hosts = (self.name, self.address, network.address6(self.number))
        self._authority.kubeconfig(self.name, server, user, organization="system:nodes")
        certificate, key = self._authority.issue(f"{self.name}-serving", user, *hosts, organization="system:nodes")
        self._authority.kubeconfig(f"proxy-{self.name}", server, "system:kube-proxy")
        (self.base / "resolv.conf").write_text(f"nameserver {dns}\noptions timeout:2 attempts:2\n")
        bundle = Path("/etc/ssl/certs/ca-certificates.crt")
        known = bundle.read_text() if bundle.exists() else ""
        (self.base / "ca-certificates.crt").write_text(known + self._authority.certificate.read_text())
        self.path("/etc/containerd/config.toml").write_text(CONTAINERD.format(pause=PAUSE))
        self.path("/etc/containerd/certs.d").mkdir(exist_ok=True)
        self.path("/etc/cni/net.d/10-bridge.conflist").write_text(json.dumps(self._cni()))
        (self.base / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet(certificate, key, dns)))

    def _cni(self) -> dict[str, object]:
        """What gives pods their addresses: the bridge plugin, and portmap for host ports."""
        ranges = [[{"subnet": subnet}] for subnet in network.pods(self.number)]
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        bridge = {
            "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
        }  # fmt: skip
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "shoal", "plugins": [bridge, portmap]}

    def _kubelet(self, certificate: Path, key: Path, dns: str) -> dict[str, object]:
        """Kubelet's configuration."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "clusterDNS": [dns],
            "clusterDomain": "cluster.local",
            "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "/etc/resolv.conf",
            "nodeStatusUpdateFrequency": "4s",
            "serializeImagePulls": False,
        }

    def _clean(self) -> None:
        groups.remove(self.cgroup[1:])
        shutil.rmtree(self.base, ignore_errors=True)
