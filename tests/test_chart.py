"""The Helm chart: what real `helm` renders is what Kubernetes takes, what is promised, and what the program reads."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import trustme
import yaml
from aiohttp import web

from mirror.commands.agent import agent
from mirror.commands.containerd import ContainerdSettings
from mirror.settings import MirrorSettings
from swarm.base.flags import Setting, settings_of
from tests.parts import skips
from tracker.command import TrackerFlags, tracker

CHART = Path(__file__).parents[1] / "charts" / "shoal"
Object = dict[str, Any]

HELM = shutil.which("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason=skips.lacking(["helm"]))

SETTINGS: dict[str, type[Any]] = {
    "agent": MirrorSettings,
    "tracker": TrackerFlags,
    "containerd": ContainerdSettings,
}

VALUE_SETS: dict[str, Object] = {
    "defaults": {},
    "least": {
        "containerd": {"install": False},
        "agent": {"contentHostPath": "", "runAsUser": 0, "runAsGroup": 0},
        "tracker": {"replicas": 1, "antiAffinity": "none", "events": False, "podDisruptionBudget": {"create": False}},
        "serviceAccount": {"create": False, "name": "mine"},
        "rbac": {"create": False},
        "priorityClass": {"create": False},
        "networkPolicy": {"create": False},
    },
    "most": {
        "fullnameOverride": "layers",
        "image": {"repository": "registry.example/shoal", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "own"}],
        "agent": {
            "pullSecret": "registries",
            "registriesToml": '["ghcr.io"]\nurl = "https://cache.example"\n',
            "podAnnotations": {"a": "b"},
            "podLabels": {"team": "infra"},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/shoal/certs", "readOnly": True}],
            "affinity": {"nodeAffinity": {}},
            "settings": {"storeBudget": "200GiB", "tagTtl": ["10s", "ghcr.io=1m"], "sharePrivate": False},
        },
        "containerd": {"registries": ["docker.io", "ghcr.io"]},
        "tracker": {"replicas": 3, "antiAffinity": "required", "tolerations": [{"operator": "Exists"}]},
        "priorityClass": {"name": "system-node-critical"},
        "networkPolicy": {"scrapeFrom": []},
        "serviceMonitor": {"create": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"create": True, "labels": {"release": "prometheus"}},
        "dashboard": {"create": True},
        "preheat": {"secret": "heat", "images": ["quay.io/team/app:v1"], "arguments": ["--percent=50"]},
    },
    "host network": {"agent": {"hostNetwork": True}},
    "members by DNS": {"tracker": {"settings": {"discovery": "dns"}}},
    "fixed members": {"tracker": {"settings": {"discovery": "static", "member": ["10.0.0.0/8", "fd00::/8"]}}},
    "no zones": {"tracker": {"settings": {"zones": False}}},
    "IPv6": {
        "agent": {"settings": {"listen": "[::]:30000", "swarmListen": "[::]:6881", "metricsListen": "[::]:5004"}},
        "tracker": {"settings": {"listen": "[::]:6969"}},
    },
}


def helm(*arguments: str, values: Object | None = None) -> str:
    """What helm prints. Raises CalledProcessError with what it says."""
    assert HELM is not None
    done = subprocess.run(
        [HELM, *arguments, "-f", "-"],
        input=yaml.safe_dump(values or {}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


def render(values: Object | None = None) -> list[Object]:
    """Every object of the chart, hooks too."""
    text = helm("template", "shoal", str(CHART), "--namespace", "shoal", "--kube-version", "1.31.0", values=values)
    return [item for item in yaml.safe_load_all(text) if item]


def only(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(name of the owner, pod template) of everything that makes pods."""
    for item in objects:
        if item["kind"] in ("DaemonSet", "Deployment", "Job"):
            yield item["metadata"]["name"], item["spec"]["template"]
        if item["kind"] == "CronJob":
            yield item["metadata"]["name"], item["spec"]["jobTemplate"]["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """Every container of a pod template."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def container(objects: list[Object], kind: str, name: str, called: str) -> Object:
    """One container."""
    (found,) = [item for item in containers(only(objects, kind, name)["spec"]["template"]) if item["name"] == called]
    return found


def environment(item: Object) -> dict[str, str]:
    """The environment of a container, without what the API fills in."""
    return {entry["name"]: entry["value"] for entry in item.get("env", []) if "value" in entry}


def camel(field: str) -> str:
    """store_budget -> storeBudget."""
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def defaults() -> Object:
    """values.yaml."""
    values: Object = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


# -- rendered by helm -------------------------------------------------------------------------------


@needs_helm
@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_helm_finds_no_fault(values: Object) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), "--kube-version", "1.31.0", values=values)


@needs_helm
@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_kubernetes_takes_every_object(values: Object) -> None:
    objects = render(values)
    assert objects
    for item in objects:
        if item["kind"] in ("ServiceMonitor", "PrometheusRule"):  # the Prometheus operator's, not Kubernetes' own
            continue
        for version in ("1.25", "1.31", "1.37"):
            kubernetes_validate.validate(item, version, strict=True)


@needs_helm
@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_every_container_has_only_the_rights_it_needs(values: Object) -> None:
    for owner, pod in pods(render(values)):
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for item in containers(pod):
            rights = item["securityContext"]
            assert rights["readOnlyRootFilesystem"], item["name"]
            assert not rights["allowPrivilegeEscalation"], item["name"]
            assert rights["capabilities"]["drop"] == ["ALL"], item["name"]
            assert rights["capabilities"].get("add", []) == (["CHOWN", "FOWNER"] if item["name"] == "store" else [])
            assert "resources" in item, item["name"]
            user = rights.get("runAsUser", pod["spec"]["securityContext"].get("runAsUser"))
            may_be_root = item["name"] in ("store", "containerd") or values == VALUE_SETS["least"]
            assert user != 0 or may_be_root, f"{owner}: {item['name']}"


@needs_helm
def test_an_agent_has_no_token_and_is_asked_only_by_its_node() -> None:
    objects = render()
    spec = only(objects, "DaemonSet", "shoal-agent")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    ports = {port["name"]: port for port in spec["containers"][0]["ports"]}
    assert (ports["mirror"]["hostPort"], ports["mirror"]["hostIP"]) == (30000, "127.0.0.1")
    assert [name for name, port in ports.items() if "hostPort" in port] == ["mirror"]
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["content"]["readOnly"] is True
    assert "certs" not in mounts
    policy = only(objects, "NetworkPolicy", "shoal-agent")["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {"swarm", "metrics"}


@needs_helm
def test_on_the_host_network_the_mirror_listens_on_loopback_itself() -> None:
    objects = render(VALUE_SETS["host network"])
    item = container(objects, "DaemonSet", "shoal-agent", "agent")
    assert environment(item)["SHOAL_LISTEN"] == "127.0.0.1:30000"
    assert all("hostPort" not in port for port in item["ports"])
    assert (
        only(objects, "DaemonSet", "shoal-agent")["spec"]["template"]["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"
    )
    rule, _metrics = only(objects, "NetworkPolicy", "shoal-tracker")["spec"]["ingress"]
    assert "from" not in rule


@needs_helm
@pytest.mark.parametrize(
    ("name", "pods_role", "events", "nodes", "token"),
    [
        ("defaults", True, True, True, True),
        ("no zones", True, True, False, True),
        ("members by DNS", False, False, False, False),
        ("fixed members", False, False, False, False),
        ("least", False, False, False, True),
    ],
)
def test_the_trackers_may_do_what_their_settings_need(
    name: str, pods_role: bool, events: bool, nodes: bool, token: bool
) -> None:
    objects = [
        item for item in render(VALUE_SETS[name]) if "helm.sh/hook" not in item["metadata"].get("annotations", {})
    ]
    rules = [rule for item in objects if item["kind"] in ("Role", "ClusterRole") for rule in item["rules"]]
    allowed = {rule["resources"][0]: rule["verbs"] for rule in rules}
    expected: dict[str, list[str]] = {}
    if pods_role:
        expected["pods"] = ["get", "list", "watch"]
    if events:
        expected["events"] = ["create"]
    if nodes:
        expected["nodes"] = ["get", "list", "watch"]
    if pods_role:  # Kubernetes discovery: whose token an agent shows
        expected["tokenreviews"] = ["create"]
    assert allowed == expected
    spec = only(objects, "Deployment", "shoal-tracker")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is token


@needs_helm
@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_what_selects_pods_finds_them(values: Object) -> None:
    objects = render(values)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects)}
    ports = {
        name: {port["name"] for item in containers(pod) for port in item.get("ports", [])}
        for name, pod in pods(objects)
    }

    def found(selector: dict[str, str]) -> list[str]:
        return [name for name, has in labels.items() if selector.items() <= has.items()]

    for item in objects:
        name, spec = item["metadata"]["name"], item.get("spec", {})
        match item["kind"]:
            case "Service":
                assert found(spec["selector"]) == [name]
                assert {port["targetPort"] for port in spec["ports"]} <= ports[name]
            case "PodDisruptionBudget" | "DaemonSet" | "Deployment":
                assert found(spec["selector"]["matchLabels"]) == [name]
            case "NetworkPolicy":
                assert found(spec["podSelector"]["matchLabels"]) == [name]
                named = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
                assert named <= ports[name]
                for rule in spec["ingress"]:
                    for peer in rule.get("from", []):
                        assert "podSelector" not in peer or found(peer["podSelector"]["matchLabels"])
            case "ServiceMonitor":
                chosen = spec["selector"]["matchLabels"].items()
                (service,) = [
                    each
                    for each in objects
                    if each["kind"] == "Service" and chosen <= each["metadata"]["labels"].items()
                ]
                assert spec["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


@needs_helm
@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_every_volume_is_mounted_and_every_probe_has_its_port(values: Object) -> None:
    objects = render(values)
    for name, pod in pods(objects):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        mounted = {mount["name"] for item in containers(pod) for mount in item.get("volumeMounts", [])}
        assert mounted == volumes, name
        for item in containers(pod):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in item:
                    assert item[probe]["httpGet"]["port"] in {port["name"] for port in item["ports"]}


@needs_helm
def test_the_trackers_look_for_exactly_the_agents() -> None:
    objects = render(VALUE_SETS["most"])
    selector = environment(container(objects, "Deployment", "layers-tracker", "tracker"))["SHOAL_SELECTOR"]
    labels = dict(pods(objects))["layers-agent"]["metadata"]["labels"]
    assert dict(part.split("=") for part in selector.split(",")).items() <= labels.items()
    trackers = only(objects, "Service", "layers-tracker")
    address = environment(container(objects, "DaemonSet", "layers-agent", "agent"))["SHOAL_TRACKER"]
    assert address == f"dns+http://{trackers['metadata']['name']}.shoal.svc:{trackers['spec']['ports'][0]['port']}"
    assert trackers["spec"]["clusterIP"] == "None"
    assert trackers["spec"]["publishNotReadyAddresses"] is False


@needs_helm
def test_what_is_said_of_single_registries_reaches_the_agent_as_it_was_written() -> None:
    objects = render(VALUE_SETS["most"])
    item = container(objects, "DaemonSet", "layers-agent", "agent")
    (mount,) = [each for each in item["volumeMounts"] if each["name"] == "registries"]
    path, name = environment(item)["SHOAL_REGISTRIES"].rsplit("/", 1)
    assert path == mount["mountPath"]
    assert only(objects, "ConfigMap", "layers-agent")["data"][name] == VALUE_SETS["most"]["agent"]["registriesToml"]


@needs_helm
@pytest.mark.parametrize(
    "values",
    [
        {"agnet": {}},
        {"agent": {"settings": {"storeBudgt": "1GiB"}}},
        {"agent": {"settings": {"storeBudget": "much"}}},
        {"agent": {"settings": {"tagKeep": "1 day"}}},
        {"agent": {"ports": {"mirror": 0}}},
        {"tracker": {"replicas": 0}},
        {"tracker": {"settings": {"discovery": "guess"}}},
        {"image": {"digest": "sha256:short"}},
    ],
    ids=json.dumps,
)
def test_values_that_make_no_sense_are_refused(values: Object) -> None:
    with pytest.raises(RuntimeError, match=r"values don't meet the specifications of the schema"):
        render(values)


# -- what the program reads ---------------------------------------------------------------------------


def given(setting: Setting) -> Object:
    """A value other than the default for a setting, as somebody would write it in values.yaml, and what it means."""
    samples: dict[str, Any] = {
        "size": "3GiB", "duration": "90s", "endpoint": "0.0.0.0:7777", "level": "debug", "format": "text",
    }  # fmt: skip
    by_field: dict[str, Any] = {
        "store": "/data", "tag_ttl": ["5s", "ghcr.io=1m"], "log_level": "debug", "log_format": "json",
        "tracker": ["http://10.0.0.1:6969", "http://10.0.0.2:6969"], "discovery": "dns", "member_name": ["a.example"],
        "peer": ["dns+http://trackers.example:6969"],
        "member": ["10.0.0.0/8", "fd00::/8"], "address": "10.0.0.9", "upstream_rate": 2.5, "upstream_connections": 7,
    }  # fmt: skip
    if setting.field in by_field:
        return {camel(setting.field): by_field[setting.field]}
    if setting.kind is bool:
        return {camel(setting.field): not setting.default}
    name = setting.kind.name.lower() if not isinstance(setting.kind, type) else ""
    if setting.repeatable:
        return {camel(setting.field): ["one.example", "two.example"]}
    for key, sample in samples.items():
        if key in name or (key == "endpoint" and "listen" in setting.field):
            return {camel(setting.field): sample}
    if "path" in name or "dir" in name or "file" in name:
        return {camel(setting.field): "/somewhere"}
    return {camel(setting.field): "something"}


@needs_helm
@pytest.mark.parametrize(
    ("part", "kind", "command"),
    [("agent", "DaemonSet", agent), ("tracker", "Deployment", tracker)],
    ids=["agent", "tracker"],
)
def test_every_setting_reaches_the_program_as_it_was_given(
    part: str, kind: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: Object = {}
    for setting in settings_of(SETTINGS[part]):
        values |= given(setting)
    objects = render({part: {"settings": values}})
    rendered = environment(container(objects, kind, f"shoal-{part}", part))
    for setting in settings_of(SETTINGS[part]):
        assert setting.variable in rendered
        monkeypatch.setenv(setting.variable, rendered[setting.variable])
    read = command.make_context(part, []).params
    for setting in settings_of(SETTINGS[part]):
        wanted = values[camel(setting.field)]
        words = setting.text(read[setting.field])
        if isinstance(wanted, bool):
            assert read[setting.field] is wanted
        elif isinstance(wanted, list):
            assert words == ",".join(wanted)
        else:
            again = setting.kind.convert(str(wanted), None, None) if not isinstance(setting.kind, type) else wanted
            assert read[setting.field] == again, setting.field


@pytest.mark.parametrize(("part", "settings"), SETTINGS.items(), ids=SETTINGS)
def test_every_setting_of_the_program_has_its_value_and_no_value_is_for_nothing(part: str, settings: type[Any]) -> None:
    fields = {camel(setting.field) for setting in settings_of(settings)}
    assert set(defaults()[part]["settings"]) == fields
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"][part]["properties"]["settings"]["properties"]) == fields


def leaves(values: Object, documented: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, default) of every value; a map that is documented as a whole is one."""
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value and name not in documented:
            yield from leaves(value, documented, name)
        else:
            yield name, value


def test_the_readme_documents_every_value_with_its_default() -> None:
    rows = [line.split(" | ") for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| `")]
    documented = {row[0].removeprefix("| ").strip("`"): (row[1], row[2]) for row in rows}
    program = {
        f"{part}.settings.{camel(setting.field)}": setting
        for part, settings in SETTINGS.items()
        for setting in settings_of(settings)
    }
    values = dict(leaves(defaults(), set(documented)))
    assert set(documented) == set(values)
    for name, (default, meaning) in documented.items():
        assert len(meaning) > 10, name
        if name in program:
            assert f"`{program[name].flag}`" in meaning
        if values[name] is not None:
            assert default == f"`{json.dumps(values[name])}`".replace("|", "\\|"), name
        elif default.startswith("`"):
            assert default == f"`{program[name].default_text}`", name
        elif default == "none":
            assert program[name].default_text == "", name


def test_the_schema_names_every_value_and_nothing_else() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Object, properties: Object, path: str) -> None:
        assert set(values) == set(properties) - {"global"}, path
        for key, value in values.items():
            if "properties" in properties[key]:
                inner = properties[key]["properties"]
                if key == "resources":
                    continue
                assert properties[key]["additionalProperties"] is False
                compare(value, inner, f"{path}.{key}")

    compare(defaults(), schema["properties"], "")


# -- install and uninstall, for real -----------------------------------------------------------------


def run_as_rendered(item: Object, root: Path) -> str:
    """Run a container's command here, with the node's file system under *root*."""
    env = {"PATH": os.environ["PATH"], **environment(item), "SHOAL_HOST_ROOT": str(root)}
    mounts = {mount["name"]: mount["mountPath"] for mount in item["volumeMounts"]}
    assert mounts["certs"] == environment(item)["SHOAL_HOST_ROOT"] + environment(item)["SHOAL_CONTAINERD_CERTS"]
    command = [sys.executable, "-m", "mirror", *item["command"][1:]]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=CHART.parents[1]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_helm
def test_what_install_writes_on_a_node_uninstall_takes_back(tmp_path: Path) -> None:
    certs = tmp_path / "etc/containerd/certs.d"
    kept = certs / "ghcr.io/hosts.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text('server = "https://ghcr.io"\n\n[host."https://mine.example"]\n')
    (tmp_path / "etc/containerd/config.toml").write_text("version = 2\n")
    before = {path: path.read_bytes() for path in certs.rglob("*") if path.is_file()}
    objects = render({"agent": {"ports": {"mirror": 31000}}, "containerd": {"registries": ["ghcr.io", "docker.io"]}})
    run_as_rendered(container(objects, "DaemonSet", "shoal-agent", "containerd"), tmp_path)
    assert "http://127.0.0.1:31000" in kept.read_text()
    assert "http://127.0.0.1:31000" in (certs / "docker.io/hosts.toml").read_text()
    run_as_rendered(container(objects, "DaemonSet", "shoal-restore", "containerd"), tmp_path)
    assert {path: path.read_bytes() for path in certs.rglob("hosts.toml")} == before


@needs_helm
def test_the_restore_is_a_hook_after_the_deletion_in_the_right_order() -> None:
    hooks = {
        (item["kind"], item["metadata"]["name"]): item["metadata"]["annotations"]
        for item in render()
        if "helm.sh/hook" in item["metadata"].get("annotations", {})
    }
    assert {note["helm.sh/hook"] for note in hooks.values()} == {"post-delete"}
    order = sorted(hooks, key=lambda key: int(hooks[key]["helm.sh/hook-weight"]))
    assert [kind for kind, _ in order][-2:] == ["DaemonSet", "Job"]
    assert all("hook-succeeded" in note["helm.sh/hook-delete-policy"] for note in hooks.values())
    assert not [item for item in render(VALUE_SETS["least"]) if "annotations" in item["metadata"]]


@needs_helm
@pytest.mark.parametrize("comes", [True, False], ids=["all nodes", "one node is away"])
async def test_the_uninstall_waits_for_the_nodes_but_not_for_ever(tmp_path: Path, comes: bool) -> None:
    job = container(render(), "Job", "shoal-restore-wait", "wait")
    python, option, script, namespace, name, _ = job["command"]
    assert (python, option) == ("python", "-c")
    asked: list[web.Request] = []

    async def watch(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        response = web.StreamResponse()
        await response.prepare(request)
        states = [{"desiredNumberScheduled": 2, "numberReady": ready, "observedGeneration": 1} for ready in (0, 1, 2)]
        for status in states if comes else states[1:2]:
            event = {"type": "MODIFIED", "object": {"metadata": {"generation": 1}, "status": status}}
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("a-token")
    app = web.Application()
    app.router.add_get("/apis/apps/v1/namespaces/{namespace}/daemonsets", watch)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    env = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(runner.addresses[0][1]),
        "SERVICE_ACCOUNT": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, namespace, name, "30" if comes else "0.5",
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    await runner.cleanup()
    assert process.returncode == 0, err.decode()
    assert ("restored on 2 nodes" if comes else "restored on 1 of 2 nodes in time") in out.decode()
    assert asked[0].headers["Authorization"] == "Bearer a-token"
    assert asked[0].query["fieldSelector"] == "metadata.name=shoal-restore"
    assert asked[0].match_info["namespace"] == "shoal"
