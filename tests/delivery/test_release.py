"""Releases: what can be tried of one without publishing it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.parts import skips

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.skipif(shutil.which("actionlint") is None, reason=skips.lacking(["actionlint"]))
def test_actionlint_finds_no_fault() -> None:
    done = subprocess.run(["actionlint", *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_release_signs_what_it_pushes_for_both_architectures() -> None:
    """With SBOM and provenance, a fixed time, and no right that it does not need."""
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"contents": "read", "packages": "write", "id-token": "write"}
    (build,) = [step for step in publish["steps"] if step.get("uses", "").startswith("docker/build-push-action")]
    assert build["with"]["platforms"] == "linux/amd64,linux/arm64"
    assert build["with"]["sbom"] is True
    assert build["with"]["provenance"] == "mode=max"
    assert "rewrite-timestamp=true" in build["with"]["outputs"]
    assert "SOURCE_DATE_EPOCH" in build["env"]
    signed = [line for step in publish["steps"] for line in step.get("run", "").splitlines() if "cosign sign" in line]
    assert len(signed) == 2


def test_versions_agree() -> None:
    """Of the package, the chart, and the image that the chart names."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "charts/shoal/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


@pytest.mark.timeout(600)
def test_the_check_of_a_release_builds_twice_and_pushes_the_chart() -> None:
    """By the script that `make release-check` runs; what this machine lacks it says."""
    done = subprocess.run([ROOT / ".ci/release-check"], capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok: built twice" in done.stdout


def test_a_dependency_with_a_known_hole_stops_the_release() -> None:
    """What is audited is what the image gets, in the job that publishing needs."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    (audit,) = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "pip-audit" in step.get("run", "")]
    assert "--strict" in audit
    assert 'pip" install --quiet .' in audit
    assert workflow["jobs"]["publish"]["needs"] == "check"
