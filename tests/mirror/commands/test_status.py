"""`shoal status`: readable at 80 columns, images first, who has no tracker and why; by TLS and with a token."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from mirror.commands.asking import secured
from mirror.commands.telling import render
from mirror.doctor import agent as doctor
from mirror.doctor.finding import failed
from tests.parts.cluster import cluster
from tests.parts.keys import Keys
from tests.parts.talk import digest_of

STATE: dict[str, Any] = {
    "uptime": 10000.0, "ready": True, "agents": 2, "boards": {"sealed": 3, "entering": 1}, "names": 1, "rate": 1e6,
    "totals": {"upstream_bytes": 3e9, "peer_bytes_in": 9e10}, "blame": [], "upstreams": [],
}  # fmt: skip
LONG = "ip-10-120-130-140.eu-central-1.compute.internal"
AGENT: dict[str, Any] = {
    "key": "[2001:db8:1234:5678:9abc:def0:1234:5678]:6881", "name": LONG, "zone": "eu-central-1a", "seen": 3.0,
    "held": 1234, "quarantined": 0.0,
    "stats": {"store_bytes": 1.9e10, "store_budget": 2e10, "upstream_bytes": 1e9, "peer_bytes_in": 1e10},
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "manifest": digest_of("m"), "names": ["registry.example.internal:5000/platform/team/service/app:2026.11.26-1"],
    "platform": "linux/amd64", "size": 3 << 30, "blobs": 12, "nodes": 3, "of": 4, "fetching": 7,
    "fetchers": {str(n): LONG for n in range(5)}, "began": 1000.0, "ends": 1090.0, "moved": (3 << 30, 9 << 30),
}  # fmt: skip
BOARD: dict[str, Any] = {
    "digest": digest_of("layer"), "state": "entering", "size": 1 << 30, "windows": 100, "published": 12, "holders": 3,
    "participants": 9, "claims": 8, "rate": 1e8,
}  # fmt: skip


def told(**said: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "url": "http://127.0.0.1:6969", "state": STATE, "agents": [AGENT], "boards": [BOARD],
        "images": {"now": 1030.0, "total": 1, "items": [IMAGE]},
    }  # fmt: skip
    return usual | said


def text(*trackers: dict[str, Any]) -> str:
    """What 80 columns show."""
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render(trackers))
    return capture.get()


def test_nothing_is_cut_at_80_columns_and_images_come_first() -> None:
    shown = text(told())
    assert max(map(len, shown.splitlines())) <= 80, shown
    assert "…" not in shown
    for word in (AGENT["key"], LONG, IMAGE["names"][0], BOARD["digest"], "3.0 GiB", "17.7 GiB"):
        assert word in shown, word  # on one line, not wrapped within
    flat = " ".join(shown.split())
    assert "3 of 4 nodes have all of it; 3.0 GiB came from upstream, 9.0 GiB from peers" in flat
    assert f"{LONG} and 2 more for 30 s, about 60 s left" in flat
    assert "12 of 100 windows are in the cluster" in flat
    assert shown.index("images (1)") < shown.index("agents (1)") < shown.index("layers on the way in (1)")


def test_who_keeps_an_image_and_who_does_not() -> None:
    keepers = {LONG: "whole", "node-b": "fetching", "node-c": "away"}
    one = {
        "image": IMAGE["names"][0], "platform": "", "copies": 3, "whole": 1, "keepers": keepers,
        "failed": {"node-d": "it takes 6.0 MiB beside 0.0 MiB that are kept already"},
    }  # fmt: skip
    shown = text(told(state=STATE | {"kept": [one]}))
    assert max(map(len, shown.splitlines())) <= 80, shown
    flat = " ".join(shown.split())
    assert f"1 of 3 copies, by {LONG}, node-b (fetching), node-c (away)" in flat
    assert "! node-d does not keep it: it takes 6.0 MiB" in flat


def test_who_has_no_tracker_is_named_with_the_reason() -> None:
    turned = {"address": "10.0.0.9", "reason": "10.0.0.9 is no member"}
    rival = {"key": "10.0.0.7:6881", "taken": "node-a", "refused": "node-b"}
    other = AGENT | {"key": "10.0.0.8:6881", "name": "node-c"}
    here = told(state=STATE | {"refused": [turned], "conflicts": [rival]})
    flat = " ".join(text(here, told(url="http://127.0.0.2:6969", agents=[AGENT, other])).split())
    assert "without this tracker: 10.0.0.9, refused: 10.0.0.9 is no member" in flat
    assert "without this tracker: node-b, since node-a announces 10.0.0.7:6881 as well" in flat
    assert "without this tracker: node-c (10.0.0.8:6881), which another tracker knows" in flat


def test_a_terminal_is_told_nothing_by_names() -> None:
    image = IMAGE | {"names": ["evil\x1b]0;owned\x07/[red]app"]}
    shown = text(told(images={"now": 0.0, "total": 1, "items": [image]}), {"url": "http://x", "error": "\x1b[2J"})
    assert "\x1b" not in shown
    assert "[red]app" in shown


def test_nothing_yet_says_what_to_do() -> None:
    shown = text(told(agents=[], boards=[], images={}))
    assert "shoal agent --tracker URL" in shown
    assert "no image yet" in shown


async def status(*words: str) -> tuple[int, str, str]:
    """Exit status, output, errors of `shoal status`."""
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-m", "mirror", "status", *words]
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, env=os.environ | {"COLUMNS": "80"})
    out, errors = await process.communicate()
    return process.returncode or 0, out.decode(), errors.decode()


async def test_it_reads_trackers_that_have_keys_as_a_member_or_with_their_token(tmp_path: Path) -> None:
    """And says what is missing to whoever is neither."""
    keys, others = await Keys(tmp_path / "keys").make(), await Keys(tmp_path / "others").make()
    (tmp_path / "token").write_text("open sesame\n")
    (tmp_path / "wrong").write_text("guess\n")
    discovery = ["--discovery=static", "--member=127.0.0.0/8", f"--page-token-file={tmp_path / 'token'}"]
    discovery += await keys.of("tracker", "tracker-0")
    async with cluster(tmp_path, agents=0, discovery=discovery) as whole:
        member = await keys.of("agent", "agent-0")
        await whole.add(*member)
        url = f"--tracker={whole.tracker.url}"
        code, out, errors = await status(url, *member)
        assert (code, "agent-0" in out) == (0, True), errors
        code, out, errors = await status(url, member[0], f"--page-token-file={tmp_path / 'token'}", "--json")
        assert code == 0, errors
        (tracker,) = json.loads(out)["trackers"]
        assert (tracker["images"]["total"], len(tracker["agents"])) == (0, 1)
        for words, said in (
            ((member[0],), "--page-token-file"),
            ((member[0], f"--page-token-file={tmp_path / 'wrong'}"), "--page-token-file"),
            (((await others.of("agent", "x"))[0],), "not signed by --tls-ca"),
            ((), "--tls-ca"),
        ):
            code, out, errors = await status(url, *words)
            assert (code, out) == (1, "")
            assert said in errors, (words, errors)
            assert "sesame" not in errors
        secure = whole.tracker.url.replace("http", "https")
        async with aiohttp.ClientSession() as session:  # shoal doctor asks in the same way
            right, foreign = [(await one.of("agent", "y"))[0].removeprefix("--tls-ca=") for one in (keys, others)]
            assert not failed(await doctor.tracker(session, secure, secured(Path(right))))
            (finding,) = await doctor.tracker(session, secure, secured(Path(foreign)))
            assert (failed([finding]), "--tls-ca did not sign" in finding.what) == (True, True)
            (finding,) = await doctor.tracker(session, secure)
            assert (failed([finding]), "name its authority" in finding.what) == (False, True)


@pytest.mark.parametrize("words", [["--tls-cert=/x"], ["--tls-cert=/x", "--tls-key=/y"]])
async def test_half_an_identity_is_refused(words: list[str]) -> None:
    code, _, errors = await status("--tracker=http://127.0.0.1:1", *words)
    assert code == 2
    assert "--tls-ca" in errors
