"""The Helm chart: what real `helm` renders is what Kubernetes takes, what is promised, and what the program reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from mirror.commands.agent import agent
from mirror.commands.containerd import ContainerdSettings
from mirror.settings import MirrorSettings
from swarm.base.flags import Setting, settings_of
from tests.parts.chart import CHART, Object, container, containers, environment, helm, only, pods, render
from tracker.command import TrackerFlags, tracker

needs_helm = pytest.mark.needs_helm

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
        "preheat": {"secret": "heat", "images": ["quay.io/team/app:v1"], "arguments": ["--percent=50"], "keep": 3},
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
@pytest.mark.parametrize(("keep", "words"), [(None, []), (0, ["--keep=0"]), (3, ["--keep=3"])])
def test_the_cronjob_keeps_as_many_copies_as_its_value_says(keep: int | None, words: list[str]) -> None:
    (job,) = [
        item
        for item in render({"preheat": {"secret": "heat", "images": ["quay.io/team/app:v1"], "keep": keep}})
        if item["kind"] == "CronJob"
    ]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["shoal", "preheat", "--wait", *words, "quay.io/team/app:v1"]


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
@pytest.mark.parametrize(("grace", "waits"), [(60, "/idle?within=45"), (16, "/idle?within=1"), (15, None)])
def test_an_agent_finishes_what_its_node_pulls_within_its_grace(grace: int, waits: str | None) -> None:
    values = {"agent": {"terminationGracePeriodSeconds": grace}}
    spec = only(render(values), "DaemonSet", "shoal-agent")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == grace
    hook = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("httpGet")
    assert hook == (waits and {"path": waits, "port": "metrics"})


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
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {"swarm", "lane", "metrics"}


@needs_helm
def test_without_the_window_lane_no_port_is_open_for_it() -> None:
    objects = render({"agent": {"settings": {"windowLane": False}}})
    item = container(objects, "DaemonSet", "shoal-agent", "agent")
    assert environment(item)["SHOAL_WINDOW_LANE"] == "false"
    assert "lane" not in {port["name"] for port in item["ports"]}
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
            case "Service" if name.endswith("-mirror-port"):
                assert "selector" not in spec  # it only holds a number
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
def test_releases_of_one_name_in_two_namespaces_share_nothing() -> None:
    """What belongs to no namespace has the namespace in its name."""

    def shared(namespace: str) -> set[tuple[str, str]]:
        objects = [item for item in render(namespace=namespace) if "namespace" not in item["metadata"]]
        return {(item["kind"], item["metadata"]["name"]) for item in objects}

    assert {kind for kind, _ in shared("one")} == {"PriorityClass", "ClusterRole", "ClusterRoleBinding"}
    assert not shared("one") & shared("other")


@needs_helm
@pytest.mark.parametrize(
    ("agent", "held"),
    [({}, 30000), ({"ports": {"mirror": 29999}}, None), ({"reserveNodePort": False}, None)],
    ids=["the default port", "a port out of the range", "switched off"],
)
def test_a_mirror_port_that_a_service_might_get_is_held(agent: Object, held: int | None) -> None:
    """By a Service that selects nothing and that kube-proxy passes over: it only makes the API refuse others."""
    services = [item for item in render({"agent": agent}) if item["kind"] == "Service"]
    ports = [port.get("nodePort") for item in services for port in item["spec"]["ports"]]
    assert [port for port in ports if port is not None] == ([] if held is None else [held])
    for item in services:
        if item["metadata"]["name"] == "shoal-mirror-port":
            assert "selector" not in item["spec"]
            assert item["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] == "none"


RECIPES = sorted((CHART / "recipes").glob("*.yaml"))


@needs_helm
@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_is_taken_by_helm_and_by_kubernetes(recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), "--kube-version", "1.31.0", values=values)
    for item in render(values):
        kubernetes_validate.validate(item, "1.31", strict=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_says_whether_it_was_tried(recipe: Path) -> None:
    head = " ".join(line.removeprefix("#").strip() for line in recipe.read_text().splitlines() if line.startswith("#"))
    assert "Status: not tried" in head or "Status: tried" in head
    assert f"[{recipe.name}]({recipe.name})" in (CHART / "recipes" / "README.md").read_text()


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
