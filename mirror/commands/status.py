"""`shoal status`: what the trackers' page shows, as text for 80 columns or as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.live import Live

from mirror.commands.asking import Asking, addresses, bearer, place, secured
from mirror.commands.telling import Page, Told, render
from swarm.base import bounded
from swarm.base.flags import PATH, options, setting

ANSWER_WITHIN = 5.0
"""Seconds for a tracker to answer one question."""

MAX_ANSWER = 16 << 20
"""Bytes of an answer at most: a page of 500 entries takes a few hundred KiB."""

PAGE = 500
"""Entries asked for at once; what a tracker gives at most."""

REDRAW = 1.0
"""Seconds between two looks with --watch: as often as a person reads."""


@dataclass(frozen=True)
class StatusSettings(Asking):
    """Every flag of `shoal status` that has an environment twin."""

    tls_cert: Path | None = setting(
        None,
        PATH,
        "Certificate of a member (PEM): trackers with keys are read by members, or by who has their page's token.",
        unit="file",
        reason="None: whoever asks is a stranger.",
    )
    tls_key: Path | None = setting(
        None,
        PATH,
        "Key of --tls-cert (PEM).",
        unit="file",
        reason="A file, since arguments and environments are seen by others.",
    )
    page_token_file: Path | None = setting(
        None,
        PATH,
        "File with the token that the trackers' --page-token-file holds.",
        unit="file",
        reason="A file, since arguments and environments are seen by others.",
    )


@click.command()
@options(StatusSettings)
@click.option("--json", "as_json", is_flag=True, help="Everything the trackers tell, as one JSON object.")
@click.option("--watch", is_flag=True, help="Stay, and show it anew every second.")
def status(*, as_json: bool, watch: bool, **values: Any) -> Coroutine[Any, Any, None]:
    """Show images, agents and layers as the trackers know them."""
    if as_json and watch:
        raise click.UsageError("--watch is for people, --json for programs: choose one")
    return _status(StatusSettings(**values), as_json=as_json, watch=watch)


async def _status(settings: StatusSettings, *, as_json: bool, watch: bool) -> None:
    console = Console()
    how = secured(settings.tls_ca, settings.tls_cert, settings.tls_key)
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN)
    async with aiohttp.ClientSession(timeout=timeout, headers=bearer(settings.page_token_file)) as session:
        desk = _Desk(session, settings.tracker, how)
        told = await desk.ask()
        if not any("state" in one for one in told):
            raise click.ClickException("; ".join(f"{one['url']}: {one['error']}" for one in told))
        if as_json:
            click.echo(json.dumps({"trackers": told}, indent=2))
        elif not watch:
            console.print(render(told))
        else:
            with Live(render(told), console=console, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(REDRAW)
                    live.update(render(await desk.ask()), refresh=True)


class _Desk:
    """Asks each tracker. *how*: to connect by TLS; empty: in clear."""

    def __init__(self, session: aiohttp.ClientSession, trackers: Sequence[str], how: Mapping[str, Any]) -> None:
        self._session, self._trackers, self._how = session, trackers, dict(how)

    async def ask(self) -> list[dict[str, Any]]:
        """What each tracker tells: url, and either state, images, agents and boards, or error."""
        urls = [url for urls in await asyncio.gather(*(addresses(one) for one in self._trackers)) for url in urls]
        return list(await asyncio.gather(*(self._ask(place(url, self._how)) for url in dict.fromkeys(urls))))

    async def _ask(self, url: str) -> dict[str, Any]:
        try:
            told = {
                "url": url,
                "state": await self._get(f"{url}/api/v1/state"),
                "images": await self._images(url),
                "agents": await self._pages(f"{url}/api/v1/agents"),
                "boards": await self._pages(f"{url}/api/v1/boards"),
            }
            msgspec.convert(told, Told)
            return told
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            return {"url": url, "error": _why(problem)}

    async def _images(self, url: str) -> dict[str, Any]:
        """The first images, as the tracker's page lists them."""
        view = (await self._get(f"{url}/api/v1/cluster/images?part=1&limit={PAGE}")).get("view", {})
        found = view.get("list", {})
        rows = found.get("rows", {})
        return {
            "now": view.get("now", 0.0),
            "total": found.get("total", 0),
            "items": [rows[manifest] for manifest in found.get("order", ())],
        }

    async def _pages(self, url: str) -> list[Any]:
        items: list[Any] = []
        while True:
            page = await self._get(f"{url}?offset={len(items)}&limit={PAGE}")
            part = msgspec.convert(page, Page)
            items += part.items
            if not part.items or len(items) >= part.total:
                return items

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._session.get(url, allow_redirects=False, **self._how) as answer:
            answer.raise_for_status()
            return msgspec.json.decode(await bounded.read(answer, MAX_ANSWER), type=dict[str, Any])


def _why(problem: Exception) -> str:
    match problem:
        case aiohttp.ClientResponseError(status=401):
            return "it is read with a token: name it with --page-token-file"
        case aiohttp.ClientResponseError(status=403):
            return "it is not read here by strangers: ask its --page-listen, or show --tls-cert or --page-token-file"
        case aiohttp.ClientResponseError():
            return f"HTTP {problem.status}"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "its certificate is not signed by --tls-ca"
        case aiohttp.ClientConnectorError():
            return "no answer: nothing listens there, or it is not reachable"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "it hung up: one that has keys speaks by TLS only (--tls-ca)"
        case TimeoutError():
            return f"no answer within {ANSWER_WITHIN:g} s"
        case msgspec.MsgspecError():
            return f"the answer is none of a tracker ({problem})"
        case _:
            return str(problem) or type(problem).__name__
