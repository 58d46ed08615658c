"""Which registries and repositories the agent goes to, and how it reaches each of them."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from yarl import URL

from mirror.errors import Forbidden, RegistriesInvalid
from mirror.upstream.limits import Limits

DOCKER_HUB = "docker.io"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
HUB_URL = "https://registry-1.docker.io"
DEFAULT_TAG_TTL = 10.0

_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LONGEST_NAME = 255
_V6 = re.compile(r"\[(?P<address>[0-9A-Fa-f:.]+)\](?P<port>:[0-9*]{1,5})?")


@dataclass(frozen=True)
class Tls:
    """How a host proves itself to us, and we to it."""

    ca: tuple[Path, ...] = ()
    """PEM files with further authorities; beside the system's own."""

    certificate: Path | None = None
    """PEM file of our client certificate."""

    key: Path | None = None
    """PEM file of its key; None: it is in *certificate*."""

    def stamp(self) -> tuple[object, ...]:
        """What changes when a file does: mounted Secrets are renewed under their old names. Reads directories."""
        stamps: list[object] = []
        for file in (*self.ca, self.certificate, self.key):
            try:
                status = None if file is None else file.stat()
            except OSError:
                status = None
            stamps.append(status and (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(stamps)

    def context(self) -> ssl.SSLContext:
        """The context for connections. Raises RegistriesInvalid if a file cannot be used. Reads files."""
        context = ssl.create_default_context()
        # Python 3.13 refuses a CA without key usage, which containerd takes: then every pull would go past the agent.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        at: Path | None = None
        try:
            for at in self.ca:
                context.load_verify_locations(cafile=at)
            if self.certificate is not None:
                at = self.certificate
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise RegistriesInvalid(f"{at}: {error.strerror or error}") from None
        return context


@dataclass(frozen=True)
class Registry:
    """One registry as clients name it, and how it is reached."""

    host: str
    """`host` or `host:port` as in `ns`, in lower case; Docker Hub is always `docker.io`."""

    url: str
    """Scheme, host and port (and path, if it lives below one) of its API, without a slash at the end."""

    override_path: bool = False
    """The URL's path is where repositories begin; no `/v2` is put behind it (containerd docs/hosts.md)."""

    tag_ttl: float | None = DEFAULT_TAG_TTL
    """Seconds for which a tag's digest answers without asking again. 0: always ask. None: left to containerd."""

    tls: Tls = field(default_factory=Tls)
    """Empty: what Registries.certs has, and the system's authorities."""

    connections: int | None = None
    """Requests under way at once; None: the agent's general bound."""

    rate: float | None = None
    """Requests per second; None: the agent's general bound; 0: no bound."""

    @property
    def api(self) -> str:
        """The URL that repositories follow. A path that says `/v2` already is taken as it is, as containerd does."""
        path = URL(self.url).raw_path
        if self.override_path or path.startswith("/v2/") or path.endswith("/v2"):
            return self.url
        return f"{self.url}/v2"

    def repository(self, name: str) -> str:
        """The repository as upstream calls it: Docker Hub keeps single-component names below `library/`."""
        if self.host == DOCKER_HUB and "/" not in name:
            return f"library/{name}"
        return name


def canonical(ns: str | None) -> str:
    """The registry that *ns* means, in the one spelling we use. Raises Forbidden if it is no host name.

    No `ns` means Docker Hub (docs/contract.md); all of Docker Hub's names mean `docker.io`.
    """
    host = literal((ns or DOCKER_HUB).lower())
    if len(host) > _LONGEST_NAME or not _HOST.fullmatch(host) or ".." in host:
        raise Forbidden("no registry has such a name")
    name, _, port = host.rpartition(":")
    if name and port.isdigit():
        if not 0 < int(port) < 65536:
            raise Forbidden("no registry has such a port")
        if port == "443" and name in _HUB_NAMES:
            return DOCKER_HUB
    return DOCKER_HUB if host in _HUB_NAMES else host


def literal(host: str) -> str:
    """*host* (`host`, `host:port`) with an IPv6 address in the one spelling we use (RFC 5952, in brackets)."""
    match = _V6.fullmatch(host)
    address, port = (match["address"], match["port"] or "") if match else (host, "")
    if address.count(":") < 2:
        return host  # no address, but perhaps a name with a port
    try:
        return f"[{ipaddress.IPv6Address(address)}]{port}"
    except ValueError:
        return host


def is_loopback(host: str) -> bool:
    """Whether *host* (`host`, `host:port`, `[v6]:port`) is this machine by its name alone, as containerd decides."""
    name = URL(f"http://{host}").host or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def matches(pattern: str, host: str, repository: str) -> bool:
    """Whether the glob *pattern* (`HOST[:PORT][/REPOSITORY]`, `*` and `?`) covers *repository* at *host*.

    Without a slash the pattern means every repository; without a port, every port; `*` also covers slashes.
    """
    host_glob, slash, repository_glob = pattern.partition("/")
    host_glob = literal(host_glob.lower())
    bare = re.sub(r":\d+$", "", host)
    if not (fits(host_glob, host) or fits(host_glob, bare)):
        return False
    return not slash or fits(repository_glob, repository)


def fits(glob: str, text: str) -> bool:
    """Whether *glob* (`*`, `?`) covers *text*. A bracket is a bracket: it belongs to an IPv6 address."""
    return fnmatch.fnmatchcase(text, glob.replace("[", "[[]"))


def place_of(url: URL) -> str:
    """Host and (unusual) port of *url*: what a log or metric may show."""
    host = (url.host_subcomponent or "?").lower()
    port = url.explicit_port
    return host if port is None else f"{host}:{port}"


@dataclass(frozen=True)
class Registries:
    """The registries that the agent serves; an immutable value."""

    configured: Mapping[str, Registry] = field(default_factory=dict)
    """By canonical host. Everything else is reached by the general rules."""

    allow: tuple[str, ...] = ("*",)
    """Globs of registries and repositories that are mirrored."""

    deny: tuple[str, ...] = ()
    """Globs of those that are not, whatever *allow* says."""

    plain_http: frozenset[str] = frozenset()
    """Hosts (`host` or `host:port`) that speak plain HTTP. Loopback hosts always do."""

    certs: Path | None = None
    """Directory with `<host[:port]>/*.crt, client.cert, client.key`, as Docker's certs.d."""

    tag_ttl: float | None = DEFAULT_TAG_TTL
    """For registries that are not configured; see Registry.tag_ttl."""

    def registry(self, ns: str | None) -> Registry:
        """The registry that *ns* means. Raises Forbidden if there can be none."""
        host = canonical(ns)
        known = self.configured.get(host)
        if known is not None:
            return known
        url = HUB_URL if host == DOCKER_HUB else f"{self.scheme(host)}://{host}"
        return Registry(host=host, url=url, tag_ttl=self.tag_ttl)

    def find(self, ns: str | None, repository: str) -> Registry:
        """The registry for *repository*. Raises Forbidden if it is not mirrored or the name is impossible."""
        registry = self.registry(ns)
        if len(repository) > _LONGEST_NAME or not _REPOSITORY.fullmatch(repository):
            raise Forbidden("no repository has such a name")
        if not self.allows(registry.host, registry.repository(repository)):
            raise Forbidden(f"{registry.host} or this repository is not mirrored")
        return registry

    def allows(self, host: str, repository: str) -> bool:
        """Whether *repository* at canonical *host* is mirrored."""
        if any(matches(pattern, host, repository) for pattern in self.deny):
            return False
        return any(matches(pattern, host, repository) for pattern in self.allow)

    def scheme(self, host: str) -> str:
        """`http` or `https` for *host* (`host` or `host:port`)."""
        return "http" if self.is_plain(host) else "https"

    def is_plain(self, host: str) -> bool:
        """Whether plain HTTP may be spoken with *host* (`host` or `host:port`)."""
        return is_loopback(host) or host in self.plain_http

    def is_named(self, host: str) -> bool:
        """Whether somebody named canonical *host*: in the registries file, or by a flag; a glob names nothing."""
        flags = (pattern.partition("/")[0] for pattern in self.allow)
        return host in self.configured or host in self.plain_http or host in map(literal, flags)

    def tls(self, host: str) -> Tls:
        """How to make TLS with *host* (`host` or `host:port`), which need not be a registry. Reads directories."""
        for registry in self.configured.values():
            if host == place_of(URL(registry.url)) and registry.tls != Tls():
                return registry.tls
        return tls_in(self.certs, host)

    def limits(self, host: str, general: Limits) -> Limits:
        """What *host* may be asked, *general* where its configuration says nothing."""
        registry = self.configured.get(host)
        if registry is None:
            return general
        connections = general.connections if registry.connections is None else registry.connections
        return replace(general, connections=connections, rate=general.rate if registry.rate is None else registry.rate)


def tls_in(certs: Path | None, host: str) -> Tls:
    """The files for *host* in a certs.d directory: `*.crt` are authorities, `client.cert` and `client.key` ours."""
    if certs is None or host.startswith(".") or not (directory := certs / host).is_dir():
        return Tls()
    certificate, key = directory / "client.cert", directory / "client.key"
    return Tls(
        ca=tuple(sorted(directory.glob("*.crt"))),
        certificate=certificate if certificate.exists() else None,
        key=key if key.exists() else None,
    )
