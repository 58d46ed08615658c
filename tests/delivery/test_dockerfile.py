"""Facts about the Dockerfile that hold without an engine to build it, and its healthcheck at work."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

ROOT = Path(__file__).parents[2]


class Step(NamedTuple):
    """One instruction, continuation lines joined."""

    verb: str
    rest: str


def steps() -> list[Step]:
    """Every instruction of the Dockerfile."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [Step(*line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages() -> list[list[Step]]:
    """The instructions of each stage."""
    found: list[list[Step]] = []
    for step in steps():
        if step.verb == "FROM":
            found.append([])
        if found:
            found[-1].append(step)
    return found


def of(stage: list[Step], verb: str) -> list[str]:
    """What follows each *verb* of a stage."""
    return [step.rest for step in stage if step.verb == verb]


def test_the_base_is_slim_and_pinned_to_a_python_that_the_project_supports() -> None:
    (version,) = [step.rest.removeprefix("PYTHON=") for step in steps() if step.rest.startswith("PYTHON=")]
    assert re.fullmatch(r"3\.\d+", version)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    assert [of(stage, "FROM")[0].split(" AS ")[0] for stage in stages()] == ["python:${PYTHON}-slim${BASE_DIGEST}"] * 2


def test_the_release_pins_the_base_by_its_digest() -> None:
    """A tag means something else tomorrow: both stages and both machines are built on what was looked up once."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    assert "imagetools inspect" in workflow
    assert "BASE_DIGEST=@${{ steps.base.outputs.digest }}" in workflow


def test_the_final_image_runs_as_a_number_that_is_not_root() -> None:
    final = stages()[-1]
    (user,) = of(final, "USER")
    uid, gid = user.split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    runs = " ".join(of(final, "RUN"))
    assert f"--uid {uid}" in runs
    assert f"--gid {gid}" in runs
    after = final[final.index(Step("USER", user)) :]
    assert not [step for step in after if step.verb in ("RUN", "COPY", "ADD")]


def test_the_user_is_the_one_of_the_chart() -> None:
    values = (ROOT / "charts/shoal/values.yaml").read_text()
    (user,) = of(stages()[-1], "USER")
    assert f"runAsUser: {user.split(':')[0]}" in values
    assert f"runAsGroup: {user.split(':')[1]}" in values


def test_no_stage_compiles_or_keeps_a_cache() -> None:
    for stage in stages():
        for run in of(stage, "RUN"):
            assert not re.search(r"\b(gcc|g\+\+|build-essential|cmake|cargo|apt-get|apk)\b", run)
            if "pip" in run and "install" in run:
                assert "--no-cache-dir" in run
                assert "--only-binary=:all:" in run
    assert "--without-pip" in " ".join(of(stages()[0], "RUN"))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_dependency_comes_as_a_wheel_for_both_machines(machine: str, tmp_path: Path) -> None:
    """What the build stage installs, for the base image's Python and libc: nothing has to be compiled."""
    (version,) = [step.rest.removeprefix("PYTHON=") for step in steps() if step.rest.startswith("PYTHON=")]
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    platforms = [f"--platform=manylinux_{libc}_{machine}" for libc in ("2_17", "2_28")]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:",
            f"--python-version={version}", *platforms, f"--target={tmp_path}", *needed,
        ],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    if done.returncode and "connection" in done.stderr.lower():
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr


def test_everything_that_is_copied_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for copied in of(stages()[0], "COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored
    assert of(stages()[-1], "COPY") == ["--from=build /opt/shoal /opt/shoal"]


def test_every_package_of_the_project_but_the_benchmarks_is_in_the_image() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"bench", "tests"}
    copied = {word for rest in of(stages()[0], "COPY") for word in rest.split()[:-1]}
    assert packages <= copied


def test_the_command_is_shoal_and_its_ports_are_those_of_the_design() -> None:
    final = stages()[-1]
    assert json.loads(of(final, "ENTRYPOINT")[0]) == ["shoal"]
    assert of(final, "STOPSIGNAL") == ["SIGTERM"]
    assert set(of(final, "EXPOSE")[0].split()) == {"30000", "6881", "6882", "6969", "5004"}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "shoal" in scripts


def healthcheck() -> list[str]:
    """The command of the HEALTHCHECK."""
    (text,) = of(stages()[-1], "HEALTHCHECK")
    command: list[str] = json.loads(text.split("CMD", 1)[1])
    return command


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)], ids=["answers", "unwell", "nobody there"])
async def test_the_healthcheck_says_whether_agent_or_tracker_answers(status: int | None, code: int) -> None:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=status or 500)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    if status is None:
        await site.stop()
    _, option, script = healthcheck()
    # Port 1 stands for the other one of the two, where nobody listens.
    here = script.replace("(5004, 6969)", f"(1, {port})")
    assert here != script
    process = await asyncio.create_subprocess_exec(sys.executable, option, here, stderr=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(30):
        assert await process.wait() == code
    await runner.cleanup()
