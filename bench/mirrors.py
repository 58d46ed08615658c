"""What a user could set up on the same links: direct, two caches, Shoal, and any other by a template.

A mirror is a function (stage) -> context of Running. Each is started anew, with an empty store,
for every run, and ended after it.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.net import Host
from bench.processes import Process, running, wait_listening
from bench.stage import CENTRAL_PORT, METRICS_PORT, MIRROR_PORT, SWARM_PORT, TRACKER_PORT, Stage, registry_config


@dataclass
class Running:
    """A mirror that is up."""

    base: Callable[[Host], str]
    """URL that a client on a host sends /v2/... to."""
    processes: list[Process] = field(default_factory=list)
    namespaced: bool = False
    """Whether requests carry ?ns=, as containerd does towards a mirror."""
    range_path: str = "/v2/{repository}/blobs/{digest}"
    """Path for range readers."""
    logs: Path | None = None
    kept: bool = False
    """Clients check the sha256 and write what they get, as a node does: a yardstick."""
    replace: Callable[[Host], None] | None = None
    """Kill what runs on a node, and start it anew with nothing on its disk; returns once it takes requests. None:
    nothing runs there."""


Mirror = Callable[[Stage], AbstractContextManager[Running]]


@contextlib.contextmanager
def direct(stage: Stage) -> Iterator[Running]:
    """Every node by itself."""
    yield Running(lambda _host: stage.upstream_url)


@contextlib.contextmanager
def direct_kept(stage: Stage) -> Iterator[Running]:
    """Every node by itself, and what it gets is checked and kept: the yardstick of an agent that nobody helps."""
    yield Running(lambda _host: stage.upstream_url, kept=True)


_NGINX_FILES = """
daemon off; worker_processes auto; pid {root}/pid; error_log {root}/error.log; user root;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 1m;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4;
  scgi_temp_path {root}/t5;
  server {{
    listen {address};
    location ~ ^/v2/.+/blobs/sha256:(?<two>..)(?<rest>.+)$ {{
      alias {files}/docker/registry/v2/blobs/sha256/$two/$two$rest/data;
    }}
    location / {{ proxy_set_header Host {upstream}; proxy_pass http://{upstream}; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx_files(stage: Stage) -> Iterator[Running]:
    """The first node gives its files by nginx and sendfile; who takes them checks and keeps them: the yardstick of
    one holder and one seeker."""
    root, host = stage.fresh("nginx-kept"), stage.nodes[0]
    port = stage.port(CENTRAL_PORT, host)
    config = root / "nginx.conf"
    upstream = stage.upstream_url.removeprefix("http://")
    config.write_text(_NGINX_FILES.format(root=root, files=stage.files, upstream=upstream, address=f"{host.ip}:{port}"))
    with running([]) as processes:
        argv = ["nginx", "-p", str(root), "-e", str(root / "error.log"), "-c", str(config)]
        processes.append(Process(host, argv, root / "log"))
        wait_listening([(processes[0], host.ip, port)])
        yield Running(lambda _host: f"http://{host.ip}:{port}", processes, logs=root, kept=True)


@contextlib.contextmanager
def registry_cache(stage: Stage) -> Iterator[Running]:
    """One docker-registry as pull-through cache, on a host with a node's link."""
    root, host, port = stage.fresh("cache"), stage.central, stage.port(CENTRAL_PORT, stage.central)
    config = registry_config(root, f"{host.ip}:{port}", f"proxy: {{remoteurl: {stage.upstream_url}}}")
    with running([]) as processes:
        processes.append(Process(host, ["docker-registry", "serve", str(config)], root / "cache.log"))
        wait_listening([(processes[0], host.ip, port)])
        yield Running(lambda _host: f"http://{host.ip}:{port}", processes, logs=root)


_NGINX = """
daemon off; worker_processes auto; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4;
  scgi_temp_path {root}/t5;
  proxy_cache_path {root}/cache levels=1:2 keys_zone=blobs:16m max_size=100g inactive=1d use_temp_path=off;
  upstream registry {{ server {upstream}; keepalive 32; }}
  server {{
    listen {address};
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host {upstream};
    proxy_cache blobs; proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;
    location ~ /blobs/ {{
      slice 1m; proxy_set_header Range $slice_range; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 1d;
      proxy_pass http://registry;
    }}
    location / {{ proxy_cache_key $uri; proxy_cache_valid 200 1m; proxy_pass http://registry; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx_slice(stage: Stage) -> Iterator[Running]:
    """One nginx with `slice` and `proxy_cache`, on a host with a node's link."""
    root, host, port = stage.fresh("nginx"), stage.central, stage.port(CENTRAL_PORT, stage.central)
    upstream = stage.upstream_url.removeprefix("http://")
    config = root / "nginx.conf"
    config.write_text(_NGINX.format(root=root, upstream=upstream, address=f"{host.ip}:{port}"))
    root.chmod(0o777)  # its workers give up root
    with running([]) as processes:
        processes.append(
            Process(host, ["nginx", "-p", str(root), "-e", str(root / "error.log"), "-c", str(config)], root / "log")
        )
        wait_listening([(processes[0], host.ip, port)])
        yield Running(lambda _host: f"http://{host.ip}:{port}", processes, logs=root)


def certified(command: str, root: Path) -> Callable[[str, str], list[str]]:
    """An authority below *root*: from a role and a name to the flags by which a process is that."""

    def made(*argv: str) -> None:
        subprocess.run([command, "ca", *argv], check=True, capture_output=True)

    made("init", str(root / "ca"))

    def of(role: str, name: str) -> list[str]:
        where = root / f"{role}-{name}.keys"
        made("issue", "--ca", str(root / "ca"), role, name, str(where))
        return [f"--tls-ca={where}/ca.crt", f"--tls-cert={where}/tls.crt", f"--tls-key={where}/tls.key"]

    return of


def shoal(agent_flags: tuple[str, ...] = (), *, keys: bool = False) -> Mirror:
    """Shoal as installed here: a tracker, and an agent on every node. *agent_flags* are added. *keys*: they know each
    other by key, and speak TLS only."""

    @contextlib.contextmanager
    def start(stage: Stage) -> Iterator[Running]:
        root, central = stage.fresh("shoal"), stage.central
        command = str(Path(sys.executable).with_name("shoal"))
        tracker_port = stage.port(TRACKER_PORT, central)
        upstream = stage.upstream_url.removeprefix("http://")
        member = "198.18.0.0/24" if central.namespace else "127.0.0.0/8"
        key_of = certified(command, root) if keys else lambda _role, _name: []
        with running([]) as processes:
            argv = [command, "tracker", "--listen", f"{central.ip}:{tracker_port}", "--discovery", "static"]
            processes.append(
                Process(central, [*argv, "--member", member, *key_of("tracker", "tracker")], root / "tracker.log")
            )
            places = [(processes[0], central.ip, tracker_port)]

            def agent(host: Host, name: str) -> Process:
                port = stage.port(MIRROR_PORT, host)
                argv = [
                    command, "agent", "--listen", f"127.0.0.1:{port}",
                    "--swarm-listen", f"{host.ip}:{stage.port(SWARM_PORT, host)}",
                    "--tracker", f"http://{central.ip}:{tracker_port}",
                    "--store", str(root / name), "--store-budget", "20GiB", "--plain-http", upstream,
                    "--metrics-listen", f"127.0.0.1:{stage.port(METRICS_PORT, host)}", "--node-name", name,
                    "--blob-host", upstream,
                    *key_of("agent", name), *agent_flags,
                ]  # fmt: skip
                return Process(host, argv, root / f"{name}.log")

            def replace(host: Host) -> None:
                place = next(place for place, one in enumerate(processes) if one.host is host)
                processes[place].kill()
                processes[place] = agent(host, f"{host.name}-new")
                wait_listening([(processes[place], "127.0.0.1", stage.port(MIRROR_PORT, host))])

            for host in stage.nodes:
                processes.append(agent(host, host.name))
                places.append((processes[-1], "127.0.0.1", stage.port(MIRROR_PORT, host)))
            wait_listening(places)
            yield Running(
                lambda host: f"http://127.0.0.1:{stage.port(MIRROR_PORT, host)}",
                processes,
                namespaced=True,
                range_path=f"/blobs/{stage.upstream_url}/v2/{{repository}}/blobs/{{digest}}",
                logs=root,
                replace=replace,
            )

    return start


@dataclass(frozen=True)
class Template:
    """A mirror described in a TOML file (bench/README.md). `{...}` is filled in; empty: not started."""

    central: str = ""
    """Command on the central host."""
    node: str = ""
    """Command on every node."""
    base: str = "http://{central_ip}:8081"
    """URL that clients on a node send /v2/... to."""
    central_port: int = 8081
    node_port: int = 30000
    namespaced: bool = False


def from_file(path: Path) -> dict[str, Mirror]:
    """The mirrors of the TOML file *path*, by name. Raises TypeError for keys that are none."""
    here = path.resolve().parent
    return {name: _templated(name, Template(**keys), here) for name, keys in tomllib.loads(path.read_text()).items()}


def filled(text: str, stage: Stage, host: Host, root: Path, here: Path) -> str:
    """*text* of a template with what its placeholders stand for on *host*. Raises KeyError for others.

    *root*: where the mirror's directories are; *here*: where the template is.
    """
    return text.format(
        upstream=stage.upstream_url, upstream_host=stage.upstream_url.removeprefix("http://"),
        central_ip=stage.central.ip, node=host.name, node_ip=host.ip, dir=root / host.name, here=here,
        node_ips=",".join(node.ip for node in stage.nodes),
    )  # fmt: skip


def _templated(name: str, template: Template, here: Path) -> Mirror:
    @contextlib.contextmanager
    def start(stage: Stage) -> Iterator[Running]:
        root = stage.fresh(name)

        with running([]) as processes:
            places = []
            wanted = [(stage.central, template.central, stage.central.ip, template.central_port)]
            wanted += [(host, template.node, "127.0.0.1", template.node_port) for host in stage.nodes]
            for host, command, ip, port in wanted:
                if command:
                    (root / host.name).mkdir()
                    argv = shlex.split(filled(command, stage, host, root, here))
                    processes.append(Process(host, argv, root / f"{host.name}.log"))
                    places.append((processes[-1], ip, port))
            wait_listening(places)
            yield Running(
                lambda host: filled(template.base, stage, host, root, here),
                processes,
                namespaced=template.namespaced,
                logs=root,
            )

    return start


YARDSTICKS = ("direct-kept", "nginx-kept")
"""What a node without limits on its links is measured against: no set-ups that anybody would use."""

KEYED = "shoal-keys"
"""Shoal with keys: for who asks what they cost."""

BUILT_IN: dict[str, Mirror] = {
    "direct": direct,
    "direct-kept": direct_kept,
    "nginx-kept": nginx_files,
    "registry-cache": registry_cache,
    "nginx-slice": nginx_slice,
    "shoal": shoal(),
}
