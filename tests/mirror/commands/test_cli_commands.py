"""`shoal` as a person and a service manager meet it: exit codes, one-line errors, signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.parts.procs import Process, free_port, python


def shoal(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mirror", *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def agent_flags(directory: Path) -> list[str]:
    """Flags of an agent on free ports."""
    return [
        f"--listen=127.0.0.1:{free_port()}", f"--swarm-listen=127.0.0.1:{free_port()}",
        f"--metrics-listen=127.0.0.1:{free_port()}", f"--store={directory / 'store'}",
    ]  # fmt: skip


def test_version() -> None:
    """One line."""
    done = shoal("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"shoal, version \d+\.\d+\.\d+\S*\n", done.stdout)


def test_help_names_every_command() -> None:
    """Agent and tracker alike."""
    done = shoal("--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == [
        "agent",
        "ca",
        "containerd",
        "doctor",
        "preheat",
        "status",
        "tracker",
        "up",
    ]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "command"),
        (["swim"], "swim"),
        (["agent", "--swim"], "--swim"),
        (["agent", "--listen"], "--listen"),
        (["agent", "--listen", "somewhere"], "somewhere"),
        (["agent", "--listen", "a\nb:1"], "--listen"),
        (["agent", "--store-budget", "much"], "much"),
        (["agent", "--tracker", "here:1"], "here:1"),
        (["agent", "extra"], "extra"),
        (["tracker", "--member", "10.0.0.0/40"], "10.0.0.0/40"),
        (["tracker", "--discovery", "guess"], "guess"),
        (["tracker", "--discovery", "dns"], "--member-name"),
        (["up", "--tracker-listen", "x"], "x"),
        (["status", "--json", "--watch"], "--watch"),
        (["containerd"], "command"),
        (["containerd", "install", "--mirror", "x"], "x"),
        (["doctor", "--canary"], "IMAGE"),
        (["doctor", "UPPER/case"], "UPPER/case"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], word: str) -> None:
    """Nothing on stdout, no traceback."""
    done = shoal(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert word in done.stderr


def test_a_wrong_environment_twin_is_wrong_usage_too() -> None:
    """It names the flag."""
    done = shoal("agent", SHOAL_STORE_BUDGET="much")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--store-budget" in done.stderr


@pytest.mark.parametrize("command", ["tracker", "agent"])
def test_a_port_in_use_is_one_line(command: str, tmp_path: Path) -> None:
    """Exit 1: the flags were right, the machine was not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = [*(agent_flags(tmp_path) if command == "agent" else []), f"--listen={listen}", "--log-level=error"]
        done = shoal(command, *flags)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "in use" in done.stderr


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_a_store_that_cannot_be_is_one_line(where: str, tmp_path: Path) -> None:
    """A file stands where the directory should."""
    (tmp_path / "x").write_text("")
    store = tmp_path / "x" if where == "file" else tmp_path / "x" / "y"
    done = shoal("agent", *agent_flags(tmp_path), f"--store={store}", "--log-level=error")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(store) in done.stderr


async def test_two_agents_on_one_store_is_one_line(tmp_path: Path) -> None:
    """The second says so and ends; the first goes on."""
    first = Process(python("mirror", "agent", *agent_flags(tmp_path)), name="first", log=tmp_path / "first.log")
    first.start()
    try:
        await first.says("mirror-listening")
        done = await asyncio.to_thread(shoal, "agent", *agent_flags(tmp_path), "--log-level=error")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert str(tmp_path / "store") in done.stderr
        assert first.alive
    finally:
        await first.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["tracker", "agent"])
async def test_a_signal_ends_it_with_0(command: str, number: signal.Signals, tmp_path: Path) -> None:
    """Within the 10 s that are promised: `ended` has that deadline."""
    flags = agent_flags(tmp_path) if command == "agent" else [f"--listen=127.0.0.1:{free_port()}"]
    part = Process(python("mirror", command, *flags), name=command, log=tmp_path / "log")
    part.start()
    try:
        await part.says("mirror-listening" if command == "agent" else "tracker.started")
        part.signal(number)
        assert await part.ended(deadline=10.0) == 0
    finally:
        await part.stop()


def up_flags(directory: Path) -> tuple[list[str], int]:
    """Flags of `shoal up` on free ports, and the tracker's port."""
    port = free_port()
    return [*agent_flags(directory), f"--tracker-listen=127.0.0.1:{port}", "--log-format=json"], port


async def test_up_runs_both_and_status_shows_them(tmp_path: Path) -> None:
    """One command: the agent joins the tracker, `shoal status` sees it, SIGTERM ends all with 0."""
    flags, port = up_flags(tmp_path)
    part = Process(
        python("mirror", "up", *flags), name="up", log=tmp_path / "log", env={"SHOAL_NODE_NAME": "a-node"},
    )  # fmt: skip
    part.start()
    try:
        await part.says("tracker-up")
        children = psutil.Process(part.pid).children(recursive=True)
        url = f"http://127.0.0.1:{port}"
        text = await asyncio.to_thread(shoal, "status", f"--tracker={url}", COLUMNS="80")
        assert text.returncode == 0, text.stderr
        assert "1 agent;" in text.stdout
        assert "a-node" in text.stdout
        told = json.loads((await asyncio.to_thread(shoal, "status", "--json", SHOAL_TRACKER=url)).stdout)
        assert [agent["name"] for agent in told["trackers"][0]["agents"]] == ["a-node"]
        by_name = await asyncio.to_thread(shoal, "status", "--json", f"--tracker=dns+http://localhost:{port}")
        assert any("state" in one for one in json.loads(by_name.stdout)["trackers"])
        part.signal(signal.SIGTERM)
        assert await part.ended(deadline=10.0) == 0
        assert len(children) >= 2
        assert not any(child.is_running() for child in children)
    finally:
        await part.stop()


@pytest.mark.parametrize("victim", ["tracker", "agent"])
async def test_up_ends_when_one_of_both_dies(victim: str, tmp_path: Path) -> None:
    """A service manager then starts both again."""
    flags, _ = up_flags(tmp_path)
    part = Process(python("mirror", "up", *flags), name="up", log=tmp_path / "log")
    part.start()
    try:
        await part.says("tracker-up")
        children = psutil.Process(part.pid).children(recursive=True)
        next(child for child in children if victim in child.cmdline()).kill()
        assert await part.ended(deadline=10.0) == 1
        assert f"the {victim} ended (exit status -9)" in part.output()
        assert not any(child.is_running() for child in children)
    finally:
        await part.stop()


def test_status_without_a_tracker_is_one_line() -> None:
    """Exit 1, and the address that was asked."""
    done = shoal("status", "--tracker=http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "http://127.0.0.1:1" in done.stderr


def test_an_agent_never_loads_what_only_the_tracker_needs() -> None:
    """Kubernetes' client costs 20-35 MB; the tracker in turn needs no libtorrent."""
    script = "import sys\n{}\nprint(sorted({{'kubernetes', 'libtorrent', 'tracker', 'mirror'}} & set(sys.modules)))"
    for module, loaded in [("import mirror.serve", ["libtorrent", "mirror"]), ("import tracker.serve", ["tracker"])]:
        done = subprocess.run([sys.executable, "-c", script.format(module)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(loaded)
