"""The Helm chart as real `helm` renders it, and ways to find an object in what comes out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "shoal"
Object = dict[str, Any]


def helm(*arguments: str, values: Object | None = None) -> str:
    """What helm prints. Raises CalledProcessError with what it says."""
    command = shutil.which("helm")
    assert command is not None
    done = subprocess.run(
        [command, *arguments, "-f", "-"],
        input=yaml.safe_dump(values or {}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


def render(values: Object | None = None, *, namespace: str = "shoal") -> list[Object]:
    """Every object of the chart, hooks too."""
    text = helm("template", "shoal", str(CHART), "--namespace", namespace, "--kube-version", "1.31.0", values=values)
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
