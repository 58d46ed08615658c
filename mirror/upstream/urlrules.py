"""Which hosts a streaming URL may name: the rule that keeps the agent from being an open proxy. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from yarl import URL

from mirror.upstream.registries import DOCKER_HUB, fits, matches, place_of

KNOWN = (
    # registries
    "registry-1.docker.io",
    "ghcr.io",
    "quay.io",
    "gcr.io",
    "*.gcr.io",
    "*.pkg.dev",
    "mcr.microsoft.com",
    "*.azurecr.io",
    "*.azurecr.cn",
    "*.azurecr.us",
    "public.ecr.aws",
    "*.dkr.ecr.*.amazonaws.com",
    "registry.k8s.io",
    "registry.gitlab.com",
    "*.ocir.io",
    "*.cr.aliyuncs.com",
    # and where they redirect to
    "production.cloudflare.docker.com",
    "docker-images-prod.*.r2.cloudflarestorage.com",
    "*.r2.cloudflarestorage.com",
    "pkg-containers.githubusercontent.com",
    "cdn.quay.io",
    "cdn0?.quay.io",
    "storage.googleapis.com",
    "*.blob.core.windows.net",
    "*.blob.core.chinacloudapi.cn",
    "*.blob.core.usgovcloudapi.net",
    "*.data.mcr.microsoft.com",
    "*.cdn.mscr.io",
    "*.s3.amazonaws.com",
    "*.s3.*.amazonaws.com",
    "*.s3.dualstack.*.amazonaws.com",
    "*.cloudfront.net",
    "*.oss-*.aliyuncs.com",
)
"""Public registries and the blob stores behind them."""


@dataclass(frozen=True)
class UrlRules:
    """The hosts that may be fetched from for a caller who names a URL."""

    named: tuple[str, ...] = ()
    """Globs, `HOST[:PORT][/PATH]`, that somebody set: any port, and private addresses too."""

    known: tuple[str, ...] = KNOWN
    """Globs of hosts; on the usual ports and public addresses only."""

    def is_named(self, url: URL) -> bool:
        """Whether somebody set a pattern that covers *url*."""
        host, path = place_of(url), url.raw_path.removeprefix("/")
        return any(matches(pattern, host, path) for pattern in self.named)

    def allows(self, url: URL) -> bool:
        """Whether *url* may be fetched."""
        if self.is_named(url):
            return True
        if url.explicit_port not in (None, 80, 443):
            return False
        host = (url.host or "").rstrip(".")
        return any(fits(glob, host) for glob in self.known)


def named_hosts(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns among an allow-list's that name a host: `*` alone mirrors whatever comes by `ns`, and opens
    nothing to URLs. A repository in a pattern is left out: URLs of blobs need not contain it."""
    hosts = (pattern.partition("/")[0] for pattern in patterns)
    return tuple("registry-1.docker.io" if host == DOCKER_HUB else host for host in hosts if host.strip("*?.:"))
