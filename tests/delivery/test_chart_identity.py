"""The chart's identities: an authority that signs, a token for trackers alone, and only the rights that this needs."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm.identity.authority import Authority
from swarm.identity.name import Role
from swarm.identity.tls import Credentials, Identity
from tests.swarm.identity.test_identity import listening, say
from tracker.http.signing import AUDIENCE

CHART = Path(__file__).parents[2] / "charts/shoal"
pytestmark = pytest.mark.needs_helm

Object = dict[str, Any]


def rendered(*values: str) -> list[Object]:
    """The objects of a release with `--set` *values*."""
    flags = [word for value in values for word in ("--set", value)]
    done = subprocess.run(
        ["helm", "template", "shoal", str(CHART), "--kube-version", "1.31.0", *flags],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind and name."""
    (found,) = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def pod(objects: list[Object], kind: str, name: str) -> tuple[Object, Object, dict[str, str]]:
    """Pod spec, container and environment of a workload."""
    spec = one(objects, kind, name)["spec"]["template"]["spec"]
    (item,) = spec["containers"]
    return spec, item, {entry["name"]: entry.get("value", "") for entry in item["env"]}


@pytest.mark.busy_loop("helm runs between two awaits")
async def test_the_authority_that_helm_makes_signs_for_both_ends_of_a_connection() -> None:
    data = one(await asyncio.to_thread(rendered), "Secret", "shoal-authority")["data"]
    ca = Authority(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))

    def made(role: Role, name: str) -> Identity:
        certificate, key = ca.issue(role, name, datetime.now(UTC), timedelta(hours=1))
        return Identity(Credentials(ca.certificate, certificate, key))

    async with listening(made(Role.TRACKER, "t")) as (port, heard):
        assert await say(port, made(Role.AGENT, "pod-1").client_context(), Role.TRACKER) == "tracker/t"
        assert (await heard.get())[0] == "agent/pod-1"


def test_an_agent_has_a_token_for_trackers_and_the_certificate_of_the_authority_and_nothing_else() -> None:
    objects = rendered()
    spec, item, environment = pod(objects, "DaemonSet", "shoal-agent")
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "identity"]
    secret, token = volume["projected"]["sources"]
    assert secret["secret"] == {"name": "shoal-authority", "items": [{"key": "tls.crt", "path": "ca.crt"}]}
    assert token["serviceAccountToken"]["audience"] == AUDIENCE
    (mount,) = [mount for mount in item["volumeMounts"] if mount["name"] == "identity"]
    assert environment["SHOAL_TLS_CA"] == f"{mount['mountPath']}/ca.crt"
    assert environment["SHOAL_TLS_TOKEN"] == f"{mount['mountPath']}/token"
    assert spec["automountServiceAccountToken"] is False
    fields = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in item["env"] if "valueFrom" in entry
    }
    assert (fields["SHOAL_ADDRESS"], fields["SHOAL_POD"]) == ("status.podIP", "metadata.uid")


def test_only_trackers_have_the_key_and_strangers_reach_health_and_metrics_alone() -> None:
    objects = rendered("serviceMonitor.create=true")
    spec, item, environment = pod(objects, "Deployment", "shoal-tracker")
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "authority"]
    assert (volume["secret"]["secretName"], volume["secret"]["defaultMode"]) == ("shoal-authority", 0o440)
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    assert environment["SHOAL_PAGE_LISTEN"] == "127.0.0.1:6970"
    assert environment["SHOAL_METRICS_LISTEN"] == "0.0.0.0:6971"
    assert {item[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "metrics"
    }
    agents, scrapers = one(objects, "NetworkPolicy", "shoal-tracker")["spec"]["ingress"]
    assert (agents["ports"][0]["port"], scrapers["ports"][0]["port"]) == ("tracker", "metrics")
    assert len(agents["from"]) == 2, "agents and trackers"
    assert {port["name"] for port in one(objects, "Service", "shoal-tracker")["spec"]["ports"]} == {
        "tracker",
        "metrics",
    }
    monitor = one(objects, "ServiceMonitor", "shoal-tracker")
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == ["metrics"]


def test_an_authority_of_ones_own_is_used_as_it_is() -> None:
    objects = rendered("identity.existingSecret=ours")
    assert not [item for item in objects if item["kind"] == "Secret"]
    spec, _, _ = pod(objects, "Deployment", "shoal-tracker")
    assert {"ours"} == {volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}


@pytest.mark.parametrize("values", [("identity.enabled=false",), ("tracker.settings.discovery=dns",)])
def test_without_keys_there_is_neither_authority_nor_token_nor_right(values: tuple[str, ...]) -> None:
    objects = rendered(*values)
    assert not [item for item in objects if item["kind"] == "Secret"]
    assert "tokenreviews" not in str(objects)
    for kind, name in (("DaemonSet", "shoal-agent"), ("Deployment", "shoal-tracker")):
        spec, _, environment = pod(objects, kind, name)
        assert not [key for key in environment if key.startswith("SHOAL_TLS")]
        assert not [volume for volume in spec["volumes"] if volume["name"] in ("identity", "authority")]
