"""Every setting is documented, is used, and has its environment twin."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mirror.cli import shoal
from mirror.commands.containerd import ContainerdSettings
from mirror.commands.doctor import DoctorSettings
from mirror.commands.preheat import PreheatSettings
from mirror.commands.status import StatusSettings
from mirror.commands.up import UpSettings
from mirror.settings import MirrorSettings
from swarm.base.flags import Setting, settings_of
from tracker.command import TrackerFlags

PROJECT = Path(__file__).parents[2]
SETTINGS = PROJECT / "docs" / "settings.md"
MARKS = ("<!-- settings: made by `make docs`, compared by tests/house/test_docs.py -->\n", "<!-- settings end -->")

COMMANDS: dict[str, tuple[type[Any], str]] = {
    "shoal agent": (MirrorSettings, ""),
    "shoal tracker": (TrackerFlags, ""),
    "shoal up": (UpSettings, "Every flag of `shoal agent`, and:"),
    "shoal status": (
        StatusSettings,
        "Also `--json` (everything, for programs) and `--watch` (stay, and show it anew).",
    ),
    "shoal doctor": (
        DoctorSettings,
        (
            "Takes images as arguments. Every flag of `shoal agent`, `--canary` (a pull by the node's runtime), "
            "`--kubectl` (every agent of a cluster), `--json`, and:"
        ),
    ),
    "shoal preheat": (
        PreheatSettings,
        (
            "Takes images as arguments. `--nodes`, `--zone`, `--count` and `--percent` choose nodes, `--platform` one "
            "of an index; `--keep` has the images stay on so many nodes (docs/api.md, Kept images), 0 lets them go; "
            "`--wait` stays, `--json` is for programs."
        ),
    ),
    "shoal containerd install, uninstall, show": (
        ContainerdSettings,
        "`install` takes registries as arguments; none: all.",
    ),
}


def table(settings: type[Any]) -> str:
    """The settings of one command as a table."""
    rows = ["| flag | environment | default | meaning | why this default |", "|---|---|---|---|---|"]
    for item in settings_of(settings):
        flag = f"{item.flag}, --no-{item.flag[2:]}" if item.kind is bool else item.flag
        default = f"`{item.default_text}`" if item.default_text else ""
        words = (f"`{flag}`", f"`{item.variable}`", default, f"{item.help} ({item.unit})", item.reason)
        rows.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
    return "\n".join(rows)


def section() -> str:
    """What stands between the marks of docs/settings.md."""
    parts = [
        f"### {name}\n\n{note + chr(10) * 2 if note else ''}{table(kind)}\n" for name, (kind, note) in COMMANDS.items()
    ]
    return "\n" + "\n".join(parts) + "\n"


def test_the_documentation_has_every_setting_with_its_default_and_reason() -> None:
    """`make docs` writes it."""
    text = SETTINGS.read_text(encoding="utf-8")
    assert text.partition(MARKS[0])[2].partition(MARKS[1])[0] == section(), "run: make docs"


def _leaves(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None, name
            if isinstance(command, click.Group):
                yield from _leaves(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command


LEAVES = dict(_leaves(shoal, "shoal"))


@pytest.mark.parametrize("name", LEAVES)
def test_every_flag_of_every_command_is_documented(name: str) -> None:
    """Also those that no settings class has."""
    text = SETTINGS.read_text(encoding="utf-8")
    for parameter in LEAVES[name].params:
        for flag in parameter.opts if isinstance(parameter, click.Option) else ():
            assert re.search(rf"`{re.escape(flag)}[`,]", text), f"{name} {flag}"


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_helps(name: str) -> None:
    """Each has a sentence, and `--help` needs nothing that only a running part needs."""
    done = CliRunner().invoke(shoal, [*name.split()[1:], "--help"])
    assert done.exit_code == 0, done.output
    assert LEAVES[name].help


SAMPLES = {
    "HOST:PORT": "[::1]:4242", "SIZE": "7GiB", "DURATION": "1h30m", "CIDR": "10.0.0.0/8", "URL": "http://10.0.0.1:4242",
    "LEVEL": "debug", "FORMAT": "json", "PATH": "/some/where", "TEXT": "text", "N": "7", "NUMBER": "2.5",
    "[HOST=]TTL": "reg.example=1m", "HOST[:PORT]": "reg.example:5000", "PATTERN": "reg.example/team/*", "KIND": "dns",
    "IP": "10.0.0.9",
}  # fmt: skip
"""By type: a value that is no setting's default."""

FLAGS = [
    pytest.param(command, item, id=f"{command.name} {item.flag}")
    for command, kind in [
        (LEAVES["shoal agent"], MirrorSettings),
        (LEAVES["shoal tracker"], TrackerFlags),
        (LEAVES["shoal up"], UpSettings),
        (LEAVES["shoal up"], MirrorSettings),
        (LEAVES["shoal status"], StatusSettings),
        (LEAVES["shoal containerd install"], ContainerdSettings),
        (LEAVES["shoal doctor"], DoctorSettings),
        (LEAVES["shoal preheat"], PreheatSettings),
    ]
    for item in settings_of(kind)
]


def _read(command: click.Command, item: Setting, arguments: list[str], environment: dict[str, str]) -> Any:
    """What the command would be given for *item*."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return command.make_context(command.name or "", arguments).params[item.field]


@pytest.mark.parametrize(("command", "item"), FLAGS)
def test_flag_and_environment_twin_say_the_same(command: click.Command, item: Setting) -> None:
    """SHOAL_<FLAG>, several by commas; a flag given wins over its twin."""
    if item.kind is bool:
        text, flag = ("off", f"--no-{item.flag[2:]}") if item.default else ("on", item.flag)
        assert _read(command, item, [flag], {}) == _read(command, item, [], {item.variable: text}) != item.default
        return
    sample = SAMPLES[str(item.kind.name)]
    by_flag = _read(command, item, [f"{item.flag}={sample}"], {})
    assert by_flag != item.default
    assert _read(command, item, [], {item.variable: sample}) == by_flag
    assert _read(command, item, [f"{item.flag}={sample}"], {item.variable: item.default_text}) == by_flag
    assert _read(command, item, item.arguments(by_flag), {}) == by_flag
    if item.repeatable:
        assert _read(command, item, [], {item.variable: f" {sample}, ,{sample}"}) == by_flag * 2


@pytest.mark.parametrize(
    ("kind", "folder", "own"),
    [(MirrorSettings, "mirror", "settings.py"), (TrackerFlags, "tracker", "")],
    ids=["agent", "tracker"],
)
def test_no_setting_is_accepted_and_dropped(kind: type[Any], folder: str, own: str) -> None:
    """Each is read somewhere in the package that it belongs to."""
    code = "".join(path.read_text() for path in (PROJECT / folder).rglob("*.py") if path.name != own)
    code += (PROJECT / folder / "settings.py").read_text().partition("def swarm")[2]
    unread = [
        item.field for item in settings_of(kind) if not re.search(rf"(settings|flags|self)\.{item.field}\b", code)
    ]
    assert unread == []


@pytest.mark.parametrize("path", ["README.md", "CHANGELOG.md", "docs/clients.md", "docs/settings.md"])
def test_links_and_files_named_are_there(path: str) -> None:
    """Relative links of the documentation."""
    text = (PROJECT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((PROJECT / path).parent / target).exists(), target


if __name__ == "__main__":  # make docs
    before, _, rest = SETTINGS.read_text(encoding="utf-8").partition(MARKS[0])
    SETTINGS.write_text(before + MARKS[0] + section() + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
    sys.exit(0)
