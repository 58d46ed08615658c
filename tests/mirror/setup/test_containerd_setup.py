"""`shoal containerd`: what it writes, that it takes all of it back, and what it says is missing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import HostsInvalid, SetupError
from mirror.setup import containerd, criconfig, hoststoml
from mirror.setup.hoststoml import Certificates, with_mirror, without_mirror
from tests.parts.containerd import containerd as real_containerd
from tests.parts.procs import PartFailed

URL = "http://127.0.0.1:30000"
OTHER = "http://127.0.0.1:31000"

PLAIN = """server = "https://registry-1.docker.io"

# the old mirror
[host."https://old.example"]
  capabilities = ["pull"]
"""

FILES = {
    "nothing": "",
    "only a comment": "# nothing yet\n",
    "only a server": 'server = "https://registry.example"\n',
    "no line end": 'server = "https://registry.example"',
    "a mirror": PLAIN,
    "two mirrors": PLAIN + '[host."https://second.example"]\nskip_verify = true\n',
    "windows line ends": PLAIN.replace("\n", "\r\n"),
    "tabs and blanks": '\t[host."https://old.example"]\t\n\n\n',
    "certificates": 'ca = ["a.crt"]\nclient = [["c.cert", "c.key"]]\n[host."https://old.example"]\nca = "b.crt"\n',
    "headers of a host": '[host."https://old.example"]\n[host."https://old.example".header]\nx-a = ["b"]\n',
    "header of the server": 'server = "https://x"\n[header]\nx = "y"\n[host."https://old.example"]\n',
    "a list that looks like tables": 'capabilities = [\n"pull",\n[ ]\n]\n[host."https://old.example"]\n',
    "a text that looks like tables": 'server = """\n[host."https://fake"]\n"""\n[host."https://old.example"]\n',
    "hosts below one table": '[host]\n"https://old.example" = { capabilities = ["pull"] }\n',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_our_host_comes_first_and_everything_else_stays_in_order(text: str) -> None:
    """Read by a TOML parser: the same values in the same order, behind our entry."""
    before, after = tomllib.loads(text), tomllib.loads(with_mirror(text, URL))
    hosts = after["host"]
    assert list(hosts) == [URL, *before.get("host", {})]
    assert hosts.pop(URL) == {"capabilities": ["pull", "resolve"]}
    assert hosts == before.pop("host", {})
    del after["host"]
    assert after == before


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_taking_it_out_gives_back_the_very_bytes(text: str) -> None:
    """Also after a second install with another address, which replaces the first."""
    assert without_mirror(with_mirror(text, URL)) == text
    assert with_mirror(with_mirror(text, URL), URL) == with_mirror(text, URL)
    assert with_mirror(with_mirror(text, OTHER), URL) == with_mirror(text, URL)


hosts = st.lists(st.from_regex(r"https://[a-z]{1,8}\.example", fullmatch=True), max_size=4, unique=True)


@given(hosts, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from(["", "# a\n", 'server = "https://s"\n']))
def test_any_file_survives_the_round_trip(names: list[str], end: str, open_end: bool, head: str) -> None:
    """Generated files: first place for us, every byte back."""
    text = head + "".join(f'[host."{name}"]{end}capabilities = ["pull"]{end}{end}' for name in names)
    text = text.rstrip() if open_end else text
    changed = with_mirror(text, URL)
    assert hoststoml.hosts_of(changed) == [URL, *names]
    assert without_mirror(changed) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("server = ", "is no TOML"),
        ("host = 3", "no table"),
        (f'[host."https://first"]\n[host."{URL}"]\n', "not first"),
        ('host."https://old.example".capabilities = ["pull"]\n', "nothing can be put in front of"),
    ],
)
def test_what_cannot_be_added_to_is_refused(text: str, why: str) -> None:
    """A clear word instead of a file that containerd cannot read."""
    with pytest.raises(HostsInvalid, match=why):
        with_mirror(text, URL)


def test_an_entry_of_the_users_own_for_the_same_agent_stays_as_it_is() -> None:
    """Somebody wrote it by hand: nothing to do."""
    text = f'[host."{URL}"]\n'
    assert with_mirror(text, URL) == text


def test_certificates_by_name_are_named_in_a_new_file() -> None:
    """containerd looks at *.crt, *.cert and *.key only while there is no hosts.toml."""
    found = hoststoml.certificates(["b.crt", "a.crt", "c.cert", "c.key", "lonely.cert", "notes.txt"])
    assert found == Certificates(("a.crt", "b.crt"), (("c.cert", "c.key"),))
    text = with_mirror("", URL, found)
    parsed = tomllib.loads(text)
    assert parsed["ca"] == ["a.crt", "b.crt"]
    assert parsed["client"] == [["c.cert", "c.key"]]
    assert list(parsed["host"]) == [URL]
    assert without_mirror(text) == ""


# --------------------------------------------------------------------------- on disk


def _tree(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything below *root*: content, mode and time of each file."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        if path.is_file()
        else (b"", path.stat().st_mode, 0)
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """A certs.d as users have it: a mirror, certificates by name, a port, an odd mode and an old time."""
    root = tmp_path / "certs.d"
    for name, content in {
        "docker.io/hosts.toml": PLAIN,
        "private.example/ca.crt": "certificate",
        "private.example/client.cert": "certificate",
        "private.example/client.key": "key",
        "reg.example_5000_/hosts.toml": 'server = "http://reg.example:5000"',
        "empty.example/hosts.toml": "",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "docker.io/hosts.toml").chmod(0o640)
    os.utime(root / "docker.io/hosts.toml", ns=(10**18, 10**18))
    return root


def test_install_and_uninstall_leave_the_tree_as_it_was(certs: Path) -> None:
    """Contents, modes and times of every file, and no file or directory more."""
    before = _tree(certs)
    changed = containerd.install(certs, URL)
    assert {path.parent.name for path in changed} == {
        "_default", "docker.io", "private.example", "reg.example_5000_", "empty.example",
    }  # fmt: skip
    for path in changed:
        assert hoststoml.hosts_of(path.read_text())[0] == URL
    assert tomllib.loads((certs / "private.example/hosts.toml").read_text())["ca"] == ["ca.crt"]
    assert (certs / "docker.io/hosts.toml").stat().st_mode & 0o777 == 0o640
    containerd.uninstall(certs)
    assert _tree(certs) == before


def test_install_twice_changes_nothing_and_is_still_undone(certs: Path) -> None:
    """Idempotent, also with another address in between."""
    before = _tree(certs)
    containerd.install(certs, URL)
    once = _tree(certs)
    assert containerd.install(certs, URL) == []
    assert _tree(certs) == once
    assert len(containerd.install(certs, OTHER)) == 5
    containerd.install(certs, URL)
    assert containerd.uninstall(certs) != []
    assert _tree(certs) == before
    assert containerd.uninstall(certs) == []


def test_named_registries_only(certs: Path) -> None:
    """With a port, the directory that containerd looks at first is the one that counts."""
    changed = containerd.install(certs, URL, ["docker.io", "reg.example:5000", "new.example:443"])
    assert [path.parent.name for path in changed] == ["docker.io", "reg.example_5000_", "new.example:443"]
    assert not (certs / "_default").exists()


def test_a_machine_without_the_directory_gets_it_and_loses_it_again(tmp_path: Path) -> None:
    """Also the directories that we made go."""
    certs = tmp_path / "a" / "certs.d"
    certs.parent.mkdir()
    containerd.install(certs, URL)
    assert hoststoml.hosts_of((certs / "_default/hosts.toml").read_text()) == [URL]
    containerd.uninstall(certs)
    assert _tree(tmp_path) == {"a": (b"", (tmp_path / "a").stat().st_mode, 0)}


def test_one_file_that_cannot_be_changed_leaves_all_unchanged(certs: Path) -> None:
    """Planned whole before the first byte is written."""
    (certs / "broken.example").mkdir()
    (certs / "broken.example/hosts.toml").write_bytes(b"\xff\xfe")
    before = _tree(certs)
    with pytest.raises(SetupError, match=r"broken\.example"):
        containerd.install(certs, URL)
    assert _tree(certs) == before


def test_edits_made_since_are_kept(certs: Path) -> None:
    """Uninstall then takes out our block only."""
    containerd.install(certs, URL)
    path = certs / "docker.io/hosts.toml"
    path.write_text(path.read_text() + '[host."https://added.example"]\n')
    containerd.uninstall(certs)
    assert path.read_text() == PLAIN + '[host."https://added.example"]\n'


def test_a_file_put_back_by_somebody_is_kept_aside_anew(certs: Path) -> None:
    """Another tool (a machine configuration) wrote the file again: the new content is what uninstall restores."""
    containerd.install(certs, URL)
    (certs / "docker.io/hosts.toml").write_text('server = "https://new"\n')
    containerd.install(certs, URL)
    containerd.uninstall(certs)
    assert (certs / "docker.io/hosts.toml").read_text() == 'server = "https://new"\n'


@pytest.mark.parametrize("cut", range(40))
def test_a_run_that_was_cut_off_anywhere_can_be_completed_and_undone(certs: Path, cut: int) -> None:
    """A real process is killed at its n-th rename, mkdir or unlink; every file is old or new, never half."""
    before = _tree(certs)
    script = (
        "import os, sys; from pathlib import Path; from mirror.setup import containerd\n"
        "left = int(sys.argv[2])\n"
        "def hook(event, args):\n"
        "    global left\n"
        "    if event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir'):\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "sys.addaudithook(hook)\n"
        f"containerd.install(Path(sys.argv[1]), {URL!r})\n"
        "containerd.uninstall(Path(sys.argv[1]))\n"
    )
    status = subprocess.run([sys.executable, "-c", script, str(certs), str(cut)], check=False).returncode
    for path in certs.glob("*/hosts.toml"):
        hoststoml.hosts_of(path.read_text())
    containerd.install(certs, URL)
    containerd.uninstall(certs)
    assert _tree(certs) == before
    assert status in (0, 9)


def test_a_link_stays_a_link(certs: Path, tmp_path: Path) -> None:
    """Some distributions keep the files elsewhere."""
    real = tmp_path / "elsewhere.toml"
    real.write_text(PLAIN)
    (certs / "docker.io/hosts.toml").unlink()
    (certs / "docker.io/hosts.toml").symlink_to(real)
    containerd.install(certs, URL)
    assert (certs / "docker.io/hosts.toml").is_symlink()
    assert hoststoml.hosts_of(real.read_text())[0] == URL
    containerd.uninstall(certs)
    assert (certs / "docker.io/hosts.toml").is_symlink()
    assert real.read_text() == PLAIN


@pytest.mark.parametrize("link", ["docker.io/hosts.toml", "evil.example", ".shoal"])
def test_a_link_that_leaves_the_directory_is_not_followed(certs: Path, tmp_path: Path, link: str) -> None:
    """In a container, where the node's files are a mount, a link's target is one of the container's own files."""
    secret = tmp_path / "secret"
    target = secret / "hosts.toml" if link.endswith(".toml") else secret
    secret.mkdir()
    (secret / "hosts.toml").write_text("key")
    (certs / link).unlink(missing_ok=True)
    (certs / link).symlink_to(target)
    before = _tree(certs)
    with pytest.raises(SetupError, match="leads out of"):
        containerd.install(certs, URL, host_root=tmp_path)
    with pytest.raises(SetupError, match="leads out of"):
        containerd.uninstall(certs, tmp_path)
    assert (secret / "hosts.toml").read_text() == "key"
    assert sorted(path.name for path in secret.iterdir()) == ["hosts.toml"]
    if link != ".shoal":
        assert _tree(certs) == before


def test_a_link_inside_the_directory_is_followed(certs: Path, tmp_path: Path) -> None:
    (certs / "docker.io/hosts.toml").rename(certs / "docker.io/real.toml")
    (certs / "docker.io/hosts.toml").symlink_to("real.toml")
    containerd.install(certs, URL, host_root=tmp_path)
    assert hoststoml.hosts_of((certs / "docker.io/real.toml").read_text())[0] == URL


def test_certificates_in_a_later_directory_stay_in_use(certs: Path, tmp_path: Path) -> None:
    """containerd asks the first directory that knows a registry, and `_default` knows every one."""
    docker = tmp_path / "docker"
    (docker / "far.example").mkdir(parents=True)
    (docker / "far.example/ca.crt").write_text("x")
    containerd.install(certs, URL, later=[docker], host_root=tmp_path)
    parsed = tomllib.loads((certs / "far.example/hosts.toml").read_text())
    assert parsed["ca"] == ["/docker/far.example/ca.crt"]
    containerd.uninstall(certs)
    assert not (certs / "far.example").exists()


# --------------------------------------------------------------------------- containerd's own configuration

V1 = '[plugins.cri.registry]\nconfig_path = "/c"\n[plugins.cri.containerd]\ndiscard_unpacked_layers = true\n'
V2 = (
    'version = 2\nroot = "/data"\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/c:/d"\n'
    '[plugins."io.containerd.grpc.v1.cri".containerd]\ndiscard_unpacked_layers = true\n'
)
V3 = (
    "version = 3\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n"
    "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/c'\n"
)


@pytest.mark.parametrize(
    ("texts", "config_path", "discards", "root"),
    [
        ([V1], ("/c",), True, "/var/lib/containerd"),
        ([V2], ("/c", "/d"), True, "/data"),
        ([V3], ("/c",), True, "/var/lib/containerd"),
        (["version = 3\n"], (), False, "/var/lib/containerd"),
        ([V2, V3], ("/c",), True, "/data"),
        ([V3.replace("version = 3", "version = 2")], (), False, "/var/lib/containerd"),
        (["plugins = 3\nversion = 'x'\n"], (), False, "/var/lib/containerd"),
    ],
)
def test_config_toml_of_every_version(
    texts: list[str], config_path: tuple[str, ...], discards: bool, root: str
) -> None:
    """The keys moved twice; a later file wins."""
    found = criconfig.read([criconfig.parse(text) for text in texts])
    assert (found.config_path, found.discards_layers, found.root) == (config_path, discards, root)


class _Agent(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def agent() -> Iterator[str]:
    """Something that answers GET /v2/ as an agent does."""
    server = HTTPServer(("127.0.0.1", 0), _Agent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_is_missing_where_all_is_set(tmp_path: Path, agent: str) -> None:
    """Also when config_path comes from an imported file, and under another root."""
    config = tmp_path / "etc/containerd/config.toml"
    (config.parent / "conf.d").mkdir(parents=True)
    config.write_text('version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    (config.parent / "conf.d/90.toml").write_text(V2.replace("/c:/d", "/etc/containerd/certs.d/"))
    certs = tmp_path / "etc/containerd/certs.d"
    assert list(containerd.problems(certs, config, agent, tmp_path)) == []
    notes = " ".join(containerd.notes(config, tmp_path))
    assert "discard_unpacked_layers" in notes
    assert "/data/io.containerd.content.v1.content" in notes


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is not there"),
        ("version = ", "is no TOML"),
        ("version = 2\n", "sets no registry config_path"),
        (V3, "has config_path /c, not"),
        (V3 + "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'x']\n", "registry.mirrors"),
    ],
)
def test_each_missing_prerequisite_is_one_line(tmp_path: Path, agent: str, text: str | None, why: str) -> None:
    """It names the file and says what to do."""
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_text(text)
    lines = list(containerd.problems(tmp_path / "certs.d", config, agent, Path("/")))
    assert any(why in line for line in lines)
    assert all(str(config) in line and "\n" not in line for line in lines)


def test_an_agent_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """Port 1 of loopback: nobody listens."""
    config = tmp_path / "config.toml"
    config.write_text(V3.replace("/c", f"{tmp_path}"))
    (line,) = containerd.problems(tmp_path, config, "http://127.0.0.1:1", Path("/"))
    assert "the agent does not answer at http://127.0.0.1:1 (Connection refused)" in line


def _shoal(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mirror", "containerd", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_from_install_to_uninstall(certs: Path, tmp_path: Path, agent: str) -> None:
    """What a person sees, and what scripts test."""
    config = tmp_path / "config.toml"
    config.write_text(V3.replace("/c", str(certs)))
    before = _tree(certs)
    flags = (f"--containerd-certs={certs}", f"--containerd-config={config}", f"--mirror={agent}")
    assert _shoal("show", *flags).returncode == 1
    done = _shoal("install", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wrote {certs}/_default/hosts.toml" in done.stdout
    shown = _shoal("show", *flags)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"docker.io: {agent} -> https://old.example -> the registry itself (shoal)" in shown.stdout
    again = _shoal(
        "install", SHOAL_CONTAINERD_CERTS=str(certs), SHOAL_CONTAINERD_CONFIG=str(config), SHOAL_MIRROR=agent
    )
    assert "nothing to change" in again.stdout
    undone = _shoal("uninstall", *flags)
    assert undone.returncode == 0
    assert f"removed {certs}/_default/hosts.toml" in undone.stdout
    assert _tree(certs) == before


@pytest.mark.parametrize(
    "arguments", [["install", "UPPER/x"], ["install", "--mirror=ftp://x"], ["install", "--nope"], []]
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str]) -> None:
    """Nothing is touched."""
    done = _shoal(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_directory_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    """A file where the directory should be stands for any error of the system."""
    (tmp_path / "certs.d").write_text("x")
    done = _shoal("install", f"--containerd-certs={tmp_path / 'certs.d'}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert hashlib.sha256((tmp_path / "certs.d").read_bytes()).hexdigest() == hashlib.sha256(b"x").hexdigest()


@pytest.mark.needs_containerd
async def test_the_real_containerd_asks_the_agent_first_and_then_who_was_there_before(tmp_path: Path) -> None:
    """Two listeners that know nothing: the order in which a pull asks them is containerd's own reading of our file."""
    asked: list[tuple[str, str]] = []
    handlers: list[type[BaseHTTPRequestHandler]] = []
    for role in ("agent", "old"):

        class Unknowing(BaseHTTPRequestHandler):
            name = role

            def do_HEAD(self) -> None:
                asked.append((self.name, self.path))
                self.send_error(404)

            def do_GET(self) -> None:
                self.do_HEAD()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        handlers.append(Unknowing)
    with ExitStack() as stack:
        urls = []
        for handler in handlers:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            urls.append(f"http://127.0.0.1:{server.server_port}")
        async with real_containerd(tmp_path) as daemon:
            place = daemon.hosts / "127.0.0.1:1"
            place.mkdir()
            before = f'server = "http://127.0.0.1:1"\n[host."{urls[1]}"]\ncapabilities = ["pull", "resolve"]\n'
            (place / "hosts.toml").write_text(before)
            await asyncio.to_thread(containerd.install, daemon.hosts, urls[0])
            with pytest.raises(PartFailed):
                await daemon.pull("127.0.0.1:1/team/app:v1")
            assert asked[0] == ("agent", "/v2/team/app/manifests/v1?ns=127.0.0.1%3A1")
            assert list(dict.fromkeys(name for name, _ in asked)) == ["agent", "old"]
            asked.clear()
            with pytest.raises(grpc.RpcError):
                await daemon.cri_pull("127.0.0.1:2/team/app:v1")  # no directory of its own: _default
            assert {name for name, _ in asked} == {"agent"}
            asked.clear()
            await asyncio.to_thread(containerd.uninstall, daemon.hosts)
            with pytest.raises(PartFailed):
                await daemon.pull("127.0.0.1:1/team/app:v1")
            assert {name for name, _ in asked} == {"old"}
