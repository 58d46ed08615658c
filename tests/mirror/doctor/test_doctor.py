"""`shoal doctor`: broken set-ups are named rightly, each with what mends it; a healthy one has nothing wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from mirror.doctor import canary, kubectl, node, runtimes
from mirror.doctor.finding import Finding, line
from mirror.setup import containerd as setup
from mirror.upstream.reference import Image, parse_image
from tests.parts.cluster import Cluster, cluster
from tests.parts.containerd import containerd
from tests.parts.counter import Counter
from tests.parts.procs import free_port
from tests.parts.registry import Registry
from tracker.state.rivals import Rival, explain

CONFIG = 'version = {version}\n[plugins."{plugin}".registry]\nconfig_path = "{path}"\n'
CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One tracker and one agent for all tests here, which leave them as they are."""
    async with cluster(tmp_path_factory.mktemp("doctor")) as running:
        yield running


@dataclass
class Node:
    """A node's file system in a directory, and what `shoal doctor` is told about it."""

    root: Path
    mirror: str
    metrics: str
    flags: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def write(self, path: str, text: str) -> None:
        """A file below the root."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def containerd(self, version: int = 2, path: str = "/etc/containerd/certs.d", more: str = "") -> None:
        """A containerd that asks the agent, as `shoal containerd install` leaves it."""
        self.write("etc/containerd/config.toml", CONFIG.format(version=version, plugin=CRI[version], path=path) + more)
        setup.install(self.root / "etc/containerd/certs.d", self.mirror)

    async def examine(self, *words: str) -> tuple[list[Finding], int]:
        """What `shoal doctor --json` finds, and its exit status."""
        argv = [
            sys.executable, "-m", "mirror", "doctor", "--json", f"--host-root={self.root}", f"--mirror={self.mirror}",
            f"--metrics-listen={self.metrics}", f"--store={self.root / 'var/lib/shoal'}", "--store-budget=1MiB",
            *self.flags, *words,
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | self.env
        )
        out, errors = await process.communicate()
        assert not errors, errors.decode()
        return msgspec.json.decode(out, type=list[Finding]), process.returncode or 0


@pytest.fixture
def healthy(whole: Cluster, tmp_path: Path) -> Node:
    """A node where nothing is wrong; containerd is its runtime."""
    agent = whole.agents[0]
    made = Node(tmp_path, agent.url, f"127.0.0.1:{agent.metrics_port}", [f"--tracker={whole.tracker.url}"])
    made.containerd()
    return made


def wrong(findings: list[Finding]) -> list[Finding]:
    """Those that are faults; each names what mends it, in one line."""
    faults = [finding for finding in findings if finding.level == "wrong"]
    assert all(finding.mend and "\n" not in line(finding) for finding in faults)
    return faults


async def test_a_healthy_node_has_nothing_wrong(healthy: Node) -> None:
    """Each check says what it saw; exit status 0."""
    findings, status = await healthy.examine()
    assert (wrong(findings), status) == ([], 0)
    assert {finding.check for finding in findings} == {"containerd", "disk", "agent", "tracker"}


def no_config(made: Node) -> None:
    (made.root / "etc/containerd/config.toml").unlink()


def no_config_path(made: Node) -> None:
    made.write("etc/containerd/config.toml", "version = 2\n")


def another_config_path(made: Node) -> None:
    made.containerd(path="/etc/elsewhere")


def old_mirrors(made: Node) -> None:
    made.containerd(more='[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["x"]\n')


def not_installed(made: Node) -> None:
    setup.uninstall(made.root / "etc/containerd/certs.d")


def somebody_first(made: Node) -> None:
    text = f'[host."http://cache.example"]\n[host."{made.mirror}"]\n'
    made.write("etc/containerd/certs.d/_default/hosts.toml", text)


def hidden_default(made: Node) -> None:
    made.write("etc/containerd/certs.d/quay.io/hosts.toml", '[host."https://cache.example"]\n')


def broken_hosts(made: Node) -> None:
    made.write("etc/containerd/certs.d/quay.io/hosts.toml", "[host\n")


def two_directories_by_transfer(made: Node) -> None:
    made.containerd(version=3, path="/etc/containerd/certs.d:/etc/docker/certs.d")


def transfer_elsewhere(made: Node) -> None:
    made.containerd(version=3, more='[plugins."io.containerd.transfer.v1.local"]\nconfig_path = "/etc/other"\n')


def crio_without(made: Node) -> None:
    made.write("etc/crio/crio.conf", "")


def crio_by_tls(made: Node) -> None:
    place = made.mirror.removeprefix("http://")
    made.write("etc/crio/crio.conf", "")
    text = f'[[registry]]\nprefix = "quay.io"\n[[registry.mirror]]\nlocation = "{place}/quay.io"\n'
    made.write("etc/containers/registries.conf.d/50.conf", text)


def crio_without_registry(made: Node) -> None:
    place = made.mirror.removeprefix("http://")
    made.write("etc/crio/crio.conf", "")
    text = f'[[registry]]\nprefix = "quay.io"\n[[registry.mirror]]\nlocation = "{place}"\ninsecure = true\n'
    made.write("etc/containers/registries.conf.d/50.conf", text)


def crio_second(made: Node) -> None:
    place = made.mirror.removeprefix("http://")
    made.write("etc/crio/crio.conf", "")
    text = '[[registry]]\nprefix = "quay.io"\n[[registry.mirror]]\nlocation = "cache.example"\n'
    text += f'[[registry.mirror]]\nlocation = "{place}/quay.io"\ninsecure = true\n'
    made.write("etc/containers/registries.conf.d/50.conf", text)


def docker_without(made: Node) -> None:
    made.write("etc/docker/daemon.json", '{"registry-mirrors": []}')


def docker_broken(made: Node) -> None:
    made.write("etc/docker/daemon.json", "{")


def docker_second(made: Node) -> None:
    made.write("etc/docker/daemon.json", json.dumps({"registry-mirrors": ["https://cache.example", made.mirror]}))


def no_agent(made: Node) -> None:
    made.mirror = f"http://127.0.0.1:{free_port()}"
    made.containerd()


def no_tracker(made: Node) -> None:
    made.flags = [f"--tracker=http://127.0.0.1:{free_port()}"]


def unknown_tracker_name(made: Node) -> None:
    made.flags = ["--tracker=dns+http://tracker.invalid:6969"]


def too_large_a_budget(made: Node) -> None:
    made.flags.append("--store-budget=4096TiB")


BROKEN: list[tuple[Callable[[Node], None], str, str]] = [
    (no_config, "containerd", "is not there"),
    (no_config_path, "containerd", "sets no registry config_path"),
    (another_config_path, "containerd", "config_path is /etc/elsewhere"),
    (old_mirrors, "containerd", "registry.mirrors"),
    (not_installed, "containerd", "no hosts.toml"),
    (somebody_first, "containerd", "asks http://cache.example before"),
    (hidden_default, "containerd", "hides _default"),
    (broken_hosts, "containerd", "is no TOML"),
    (two_directories_by_transfer, "containerd", "transfer service takes for one name"),
    (transfer_elsewhere, "containerd", "/etc/other"),
    (crio_without, "cri-o", "no registry has"),
    (crio_by_tls, "cri-o", "asked by TLS"),
    (crio_without_registry, "cri-o", "does not say the registry"),
    (crio_second, "cri-o", "asks cache.example before"),
    (docker_without, "docker", "does not name"),
    (docker_broken, "docker", "cannot be read"),
    (docker_second, "docker", "asks https://cache.example before"),
    (no_agent, "agent", "no agent answers"),
    (no_tracker, "tracker", "cannot be reached"),
    (unknown_tracker_name, "dns", "tracker.invalid has no address"),
    (too_large_a_budget, "disk", "more than the whole disk"),
]


@pytest.mark.parametrize(("break_it", "check", "words"), BROKEN, ids=[what.__name__ for what, *_ in BROKEN])
async def test_a_broken_set_up_is_named_rightly(
    healthy: Node, break_it: Callable[[Node], None], check: str, words: str
) -> None:
    """The one fault, and no other; exit status 1."""
    break_it(healthy)
    findings, status = await healthy.examine()
    (fault,) = wrong(findings)
    assert fault.check == check
    assert words in fault.what
    assert status == 1


# --------------------------------------------------------------------------- agent, tracker, clock

RIVAL = Rival("10.0.0.9:6881", "a", "b", 0, 0, 3)


@asynccontextmanager
async def site(**answers: web.Response) -> AsyncIterator[str]:
    """An HTTP server that answers `/<name>` with *answers*; `host:port`."""

    async def answer(request: web.BaseRequest) -> web.Response:
        found = answers.get(request.path.strip("/"), web.Response(status=404))
        return web.Response(body=found.body, status=found.status, headers=found.headers)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("said", "check", "words"),
    [
        ({"refused": {"http://t:6969": "tracker http://t:6969: 10.0.0.9 is no member"}}, "tracker", "is no member"),
        (
            {
                "refused": {
                    "http://t:6969": "tracker http://t:6969: " + explain(Rival("10.0.0.9:6881", "a", "b", 0, 0, 3))
                }
            },
            "conflict",
            "a and b both announce 10.0.0.9:6881",
        ),
        ({"store": {"trouble": "Input/output error"}}, "disk", "Input/output error"),
    ],
    ids=["no-member", "one-address-twice", "store"],
)
async def test_what_the_agent_says_of_itself_is_told(
    healthy: Node, said: dict[str, object], check: str, words: str
) -> None:
    """Who is refused by a tracker works alone, and looks healthy otherwise."""
    status = {"member": False, "trackers": {"http://127.0.0.1:1": False} if "store" not in said else {}, **said}
    if "refused" in said:
        status["trackers"] = {"http://t:6969": False}
    healthy.flags = []
    async with site(status=web.json_response(status)) as place:
        healthy.metrics = place
        findings, _ = await healthy.examine()
    assert [fault.what for fault in wrong(findings) if fault.check == check and words in fault.what], findings


async def test_a_clock_that_differs_is_told(healthy: Node) -> None:
    """By the Date of the tracker's answer."""
    answer = web.Response(headers={"Date": "Sat, 01 Jan 2000 00:00:00 GMT"})
    async with site(readyz=answer) as place:
        healthy.flags = [f"--tracker=http://{place}"]
        findings, _ = await healthy.examine()
    (fault,) = wrong(findings)
    assert (fault.check, fault.mend) == ("clock", "timedatectl set-ntp true")


async def test_a_tracker_that_knows_no_members_is_told(healthy: Node) -> None:
    """It may not watch pods, for one."""
    async with site(readyz=web.Response(status=503)) as place:
        healthy.flags = [f"--tracker=http://{place}"]
        findings, _ = await healthy.examine()
    assert [(fault.check, "does not know the members" in fault.what) for fault in wrong(findings)] == [
        ("tracker", True)
    ]


# --------------------------------------------------------------------------- images, proxies


async def test_an_image_that_the_agent_may_pull(healthy: Node, upstream: Counter, origin: Registry) -> None:
    """The agent gives its manifest; one that is not there is told with upstream's reason."""
    image = await origin.push_image("doctor/app", "v1", [100])
    findings, _ = await healthy.examine(f"{upstream.host}/{image.repository}:v1")
    assert wrong(findings) == []
    assert any(finding.check == "credentials" and finding.level == "ok" for finding in findings)
    findings, _ = await healthy.examine(f"{upstream.host}/doctor/none:v1")
    (fault,) = wrong(findings)
    assert fault.check == "credentials"
    assert "--docker-config" in fault.mend


async def test_a_proxy_that_swallows_requests_is_told() -> None:
    """It takes the connection and never answers."""
    held: list[asyncio.StreamWriter] = []

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    findings = await node.proxy(f"http://127.0.0.1:{port}", "registry.example:443")
    assert ["swallows requests" in fault.what for fault in wrong(findings)] == [True]
    for writer in held:
        writer.close()
    server.close()
    await server.wait_closed()
    findings = await node.proxy(f"http://127.0.0.1:{port}", "registry.example:443")
    assert ["cannot be reached" in fault.what for fault in wrong(findings)] == [True]


def test_a_runtime_whose_proxy_takes_the_agents_requests(tmp_path: Path) -> None:
    """Loopback is never proxied; an agent at another address is, without NO_PROXY."""
    made = Node(tmp_path, "http://10.0.0.5:30000", "")
    made.containerd()
    drop_in = "etc/systemd/system/containerd.service.d/proxy.conf"
    made.write(drop_in, '[Service]\nEnvironment="HTTP_PROXY=http://proxy:3128"\nEnvironment="NO_PROXY=10.0.0.6"\n')
    certs, config = tmp_path / "etc/containerd/certs.d", tmp_path / "etc/containerd/config.toml"
    found = wrong(list(runtimes.check(tmp_path, certs, config, made.mirror)))
    assert [fault.check for fault in found] == ["proxy"]
    made.write(drop_in, '[Service]\nEnvironment="HTTP_PROXY=http://proxy:3128"\nEnvironment="NO_PROXY=10.0.0.5"\n')
    assert wrong(list(runtimes.check(tmp_path, certs, config, made.mirror))) == []


# --------------------------------------------------------------------------- the canary


@pytest.mark.needs_containerd
async def test_a_canary_says_who_served_its_bytes(
    healthy: Node, upstream: Counter, origin: Registry, tmp_path: Path
) -> None:
    """By the real containerd; once through the agent, once past it."""
    image = await origin.push_image("doctor/canary", "v1", [100_000])
    name = f"{upstream.host}/{image.repository}:v1"
    async with containerd(tmp_path, name="c") as daemon:
        healthy.env = {"CONTAINERD_ADDRESS": str(daemon.socket), "CONTAINERD_SNAPSHOTTER": "native"}
        healthy.env["PATH"] = _only("ctr", tmp_path)
        healthy.flags += ["--host-root=/", f"--containerd-certs={daemon.hosts}"]
        healthy.flags.append(f"--containerd-config={daemon.base / 'config.toml'}")
        findings, _ = await healthy.examine("--canary", name)
        (past,) = [finding for finding in findings if finding.check == "canary"]
        assert "never asked the agent" in past.what
        await daemon.forget([name])
        setup.install(daemon.hosts, healthy.mirror)
        findings, _ = await healthy.examine("--canary", name)
        (through,) = [finding for finding in findings if finding.check == "canary"]
        assert through.level == "ok"
        assert "bytes from upstream" in through.what


def _only(command: str, directory: Path) -> str:
    """A PATH with that one command of this machine on it."""
    place = directory / "bin"
    place.mkdir()
    found = next(path / command for path in map(Path, os.environ["PATH"].split(":")) if (path / command).exists())
    (place / command).symlink_to(found)
    return str(place)


def test_a_canary_without_new_bytes_or_counters_is_no_fault() -> None:
    """It proves nothing, and says so."""
    assert canary.judge("ctr", "x", "", None, None).level == "note"
    assert canary.judge("ctr", "x", "", {"requests": 1}, {"requests": 2}).level == "note"
    assert canary.judge("ctr", "x", "no such host", None, None).level == "wrong"


# --------------------------------------------------------------------------- from a laptop


KUBECTL = """#!{python}
import json, subprocess, sys
words = sys.argv[1:]
pod = lambda name, node, ready: {{"metadata": {{"name": name}}, "spec": {{"nodeName": node}}, "status": {{
    "phase": "Running" if ready else "Pending", "conditions": [{{"type": "Ready", "status": str(ready)}}],
    "containerStatuses": [] if ready else [{{"state": {{"waiting": {{"reason": "ImagePullBackOff"}}}}}}]}}}}
if "pods" in words:
    print(json.dumps({{"items": [pod("shoal-a", "one", True), pod("shoal-b", "two", False)]}}))
elif "nodes" in words:
    print(json.dumps({{"items": [{{"metadata": {{"name": name}}}} for name in ("one", "two", "three")]}}))
else:
    assert words[:6] == ["-n", "shoal", "exec", "shoal-a", "-c", "agent"], words
    sys.exit(subprocess.run([sys.executable, "-m", "mirror", *words[8:], *{flags!r}]).returncode)
"""


async def test_from_a_laptop_every_node_is_examined(healthy: Node, tmp_path: Path) -> None:
    """Inside each running pod by the real command; pods that wait, and nodes without one, are told with their node."""
    flags = [f"--host-root={tmp_path}", f"--mirror={healthy.mirror}", f"--store={tmp_path}", "--store-budget=1MiB"]
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/kubectl"
    script.write_text(KUBECTL.format(python=sys.executable, flags=[*flags, f"--metrics-listen={healthy.metrics}"]))
    script.chmod(0o755)
    healthy.env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    findings, status = await healthy.examine("--kubectl")
    assert [(fault.where, fault.check) for fault in wrong(findings)] == [("two", "pod"), ("three", "pod")]
    assert "ImagePullBackOff" in wrong(findings)[0].what
    assert {finding.check for finding in findings if finding.where == "one"} >= {"containerd", "agent", "tracker"}
    assert status == 1


CANARY = """#!{python}
import json, pathlib, sys, urllib.request
words = sys.argv[1:]
log = pathlib.Path({log!r})
if "--raw" in words:
    assert words[2] == "/api/v1/namespaces/shoal/pods/shoal-a:5004/proxy/metrics", words
    print(urllib.request.urlopen("{metrics}/metrics").read().decode())
elif "pods" in words:
    print(json.dumps({{"items": [{{"metadata": {{"name": "shoal-a"}}, "spec": {{"nodeName": "one"}}, "status": {{
        "phase": "Running", "conditions": [{{"type": "Ready", "status": "True"}}]}}}}]}}))
elif "nodes" in words:
    print(json.dumps({{"items": [{{"metadata": {{"name": "one"}}}}]}}))
elif "run" in words:
    (overrides,) = [word for word in words if word.startswith("--overrides=")]
    spec = json.loads(overrides.partition("=")[2])["spec"]
    assert spec["nodeName"] == "one" and spec["containers"][0]["imagePullPolicy"] == "Always"
    log.write_text(words[words.index("run") + 1])
    urllib.request.urlopen("{pull}").read()
elif "delete" in words:
    assert words[words.index("pod") + 1] == log.read_text()
    log.write_text("deleted")
elif "exec" in words:
    print("[]")
else:
    print(json.dumps({{"status": {{"containerStatuses": [{{"state": {{"waiting": {state!r}}}}}]}}}}))
"""


@pytest.mark.needs_registry
@pytest.mark.parametrize("there", [True, False], ids=["pulled", "not to be had"])
async def test_a_canary_from_a_laptop_is_pulled_by_each_nodes_kubelet_and_goes_away(
    healthy: Node, origin: Registry, upstream: Counter, tmp_path: Path, there: bool
) -> None:
    """A script stands in for kubectl and kubelet; the agent that is asked, and its counters, are real."""
    (tmp_path / "bin").mkdir()
    script, log = tmp_path / "bin/kubectl", tmp_path / "pod"
    state = {"reason": "RunContainerError"} if there else {"reason": "ErrImagePull", "message": "no such\nhost"}
    image = await origin.push_image("doctor/laptop", "v1", [3000])
    pull = f"{healthy.mirror}/v2/doctor/laptop/manifests/v1?ns={upstream.host}" if there else f"{healthy.mirror}/v2/"
    script.write_text(
        CANARY.format(python=sys.executable, log=str(log), metrics=f"http://{healthy.metrics}", pull=pull, state=state)
    )
    script.chmod(0o755)
    healthy.env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    findings, status = await healthy.examine(
        "--kubectl", "--canary", f"{upstream.host}/{image.repository}:v1", "--metrics-listen=0.0.0.0:5004"
    )
    (canary_found,) = [found for found in findings if found.check == "canary"]
    assert canary_found.where == "one"
    assert log.read_text() == "deleted"
    if there:
        assert (canary_found.level, status) == ("ok", 0), canary_found
        assert "kubelet pulled" in canary_found.what
    else:
        assert (canary_found.level, status) == ("wrong", 1)
        assert "ErrImagePull: no such host" in canary_found.what


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ({}, None),
        ({"state": {"waiting": {"reason": "ContainerCreating"}}}, None),
        ({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "later"}}}, "ImagePullBackOff: later"),
        ({"state": {"terminated": {"reason": "StartError"}}}, ""),
        ({"imageID": "sha256:1", "state": {}}, ""),
    ],
)
def test_what_a_canarys_pod_tells(status: dict[str, object], outcome: str | None) -> None:
    assert kubectl.pulled({"status": {"containerStatuses": [status]}}) == outcome


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("alpine", Image("docker.io", "library/alpine", "latest")),
        ("team/app:v1", Image("docker.io", "team/app", "v1")),
        ("quay.io/team/app", Image("quay.io", "team/app", "latest")),
        ("localhost/app:1", Image("localhost", "app", "1")),
        ("reg:5000/a/b:t@sha256:" + "0" * 64, Image("reg:5000", "a/b", "sha256:" + "0" * 64)),
    ],
)
def test_images_are_named_as_runtimes_name_them(text: str, image: Image) -> None:
    """And printed so that they mean the same again."""
    assert parse_image(text) == image
    assert parse_image(str(image)) == image


@pytest.mark.parametrize("text", ["", "A/b", "a:b:c", "a@sha256:1", "reg.example/", "a b"])
def test_what_is_no_image_is_refused(text: str) -> None:
    """With one line that says what would be one."""
    with pytest.raises(ValueError, match="is no image"):
        parse_image(text)
