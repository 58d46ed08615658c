"""The templates of other mirrors: each parses, its placeholders are known, and a shell reads its script."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from bench import mirrors
from bench.net import Host, Link, Network
from bench.stage import Stage

HERE = Path(mirrors.__file__).parent / "templates"
FILES = sorted(HERE.glob("*.toml"))
SCRIPTS = sorted(HERE.glob("*.sh"))


def stage_of(work: Path) -> Stage:
    """Two nodes, of which nothing runs."""
    link = Link(200.0, 200.0)
    hosts = {name: Host(name, f"198.18.0.{place}", link, name) for place, name in enumerate(("n0", "n1", "up", "mid"))}
    every = list(hosts.values())
    return Stage(Network(hosts), work, every[:2], every[2], every[3], ("198.18.0.2", 5001), work / "gate", work)


def test_there_is_one_of_each() -> None:
    assert [path.stem for path in FILES] == ["dragonfly", "kraken", "spegel"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_parses_and_its_placeholders_are_known(path: Path, tmp_path: Path) -> None:
    assert list(mirrors.from_file(path)) == [path.stem]
    stage = stage_of(tmp_path)
    for keys in tomllib.loads(path.read_text()).values():
        template = mirrors.Template(**keys)
        for text in filter(None, (template.central, template.node, template.base)):
            filled = mirrors.filled(text, stage, stage.nodes[0], tmp_path, HERE)
            assert "{" not in filled
            argv = shlex.split(filled)
            assert len(argv) == 1 or Path(argv[1]).is_file()


def test_a_placeholder_that_is_none_is_refused(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    with pytest.raises(KeyError):
        mirrors.filled("other --at {node_address}", stage, stage.nodes[0], tmp_path, HERE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_shell_reads_its_script(path: Path) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n", str(path)], check=True)
