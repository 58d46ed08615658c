"""A real Prometheus that scrapes once a second, with the chart's alerts loaded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.parts.procs import Process, free_port

ALERTS = Path(__file__).parents[2] / "charts" / "shoal" / "files" / "alerts.yaml"


def rules() -> list[dict[str, Any]]:
    """The chart's alerts, in their order."""
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@dataclass
class Prometheus:
    """A running one."""

    url: str

    async def scraped(self, times: int = 2, deadline: float = 60.0) -> None:
        """Until every target has been scraped so often: a counter's growth needs a value to grow from."""
        query = f"{self.url}/api/v1/query?query=min(count_over_time(up[5m]))"
        async with asyncio.timeout(deadline), aiohttp.ClientSession() as session:
            while True:
                async with session.get(query) as answer:
                    found = (await answer.json())["data"]["result"]
                if found and int(found[0]["value"][1]) >= times:
                    return
                await asyncio.sleep(0.3)  # it scrapes by its own clock: no event of ours

    async def firing(self) -> set[str]:
        """The alerts whose expression is true now."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/api/v1/alerts") as answer:
            return {alert["labels"]["alertname"] for alert in (await answer.json())["data"]["alerts"]}

    async def fires(self, *names: str, deadline: float = 60.0) -> set[str]:
        """Until all of *names* are true; every alert that is then. Raises TimeoutError at the deadline (seconds)."""
        found: set[str] = set()
        try:
            async with asyncio.timeout(deadline):
                while not found >= set(names):
                    await asyncio.sleep(0.3)  # it evaluates by its own clock: no event of ours
                    found = await self.firing()
        except TimeoutError:
            raise TimeoutError(f"of {names} only {found} became true") from None
        return found


@asynccontextmanager
async def prometheus(directory: Path, targets: Sequence[str]) -> AsyncIterator[Prometheus]:
    """Scrapes *targets* (`host:port`). Alerts are told without the `for` that keeps people asleep."""
    base = directory / "prometheus"
    base.mkdir()
    text = re.sub(r"(?m)^\s+for: .*\n", "", ALERTS.read_text(encoding="utf-8"))
    (base / "alerts.yaml").write_text(text)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(base / "alerts.yaml")],
        "scrape_configs": [{"job_name": "shoal", "static_configs": [{"targets": list(targets)}]}],
    }
    (base / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    argv = [
        "prometheus", f"--config.file={base / 'prometheus.yml'}", f"--storage.tsdb.path={base / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    part = Process(argv, name="prometheus", log=directory / "prometheus.log")
    part.start()
    try:
        await part.says("ready to receive web requests")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        await part.stop()
