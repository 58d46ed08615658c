"""Each alert has its runbook entry, and becomes true when its fault happens: by a real Prometheus, and by promtool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from swarm.base.flags import Endpoint
from swarm.blob.geometry import MIB
from swarm.protocol import wire
from tests.house.test_docs_metrics import EVERY
from tests.parts.cluster import cluster
from tests.parts.counter import Counter, Rule
from tests.parts.front import agent
from tests.parts.procs import free_port
from tests.parts.prometheus import ALERTS, prometheus, rules
from tests.parts.registry import Registry
from tests.parts.talk import Refusal, digest_of, town
from tracker.members.static import StaticDiscovery
from tracker.state.rivals import PROOF

PROJECT = Path(__file__).parents[2]
NAMES = [rule["alert"] for rule in rules()]
DASHBOARD = PROJECT / "charts" / "shoal" / "files" / "dashboard.json"


def test_each_alert_has_a_runbook_entry_and_no_other_has() -> None:
    """With what to look at, and what mends it."""
    text = (PROJECT / "docs" / "runbook.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(entries) == NAMES
    for name, entry in entries.items():
        assert "* Look: " in entry and "* Mend: " in entry, name


def test_alerts_and_dashboard_name_only_metrics_that_there_are() -> None:
    """A renamed metric would silence them without a word."""
    known = {metric.name for metric in EVERY}
    expressions = [rule["expr"] for rule in rules()]
    expressions += [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
    ]
    for expression in expressions:
        for name in re.findall(r"shoal_[a-z_]+", expression):
            assert name.removesuffix("_bucket") in known, name


# --------------------------------------------------------------------------- promtool

STEADY = "0+0x60"
RISING = "0+1x60"


def series(name: str, values: str = STEADY, **labels: str) -> dict[str, str]:
    """One input series: a sample a minute."""
    inside = ", ".join(f'{key}="{value}"' for key, value in {"instance": "i", **labels}.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


HEALTHY = [
    series("shoal_swarm_member", "1+0x60"),
    series("shoal_tracker_agents", "3+0x60"),
    series("shoal_tracker_strangers_total"),
    series("shoal_tracker_conflicts"),
    series("shoal_upstream_breaker_open", host="r"),
    series("shoal_upstream_pauses_total", "4+0x60", host="r", by="upstream"),
    series("shoal_front_outcomes_total", RISING, kind="blob", outcome="whole"),
    series("shoal_front_outcomes_total", kind="blob", outcome="broken"),
    series("shoal_front_overload_total"),
    series("shoal_swarm_bad_pieces_total"),
    series("shoal_tracker_rejections_total"),
    series("shoal_tracker_quarantines_total"),
    series("shoal_tracker_kept_images_short"),
    series("shoal_swarm_stalls_total"),
    series("shoal_front_first_byte_seconds_bucket", RISING, kind="blob", le="1.0"),
    series("shoal_front_first_byte_seconds_bucket", RISING, kind="blob", le="+Inf"),
    series("shoal_loop_lag_seconds_bucket", RISING, le="0.1"),
    series("shoal_loop_lag_seconds_bucket", RISING, le="+Inf"),
]
"""What a cluster shows in which nothing is wrong; the pauses are of yesterday."""

FAULTS = {
    "ShoalAgentAlone": [series("shoal_swarm_member")],
    "ShoalNoTracker": [],
    "ShoalStrangers": [series("shoal_tracker_strangers_total", RISING)],
    "ShoalConflict": [series("shoal_tracker_conflicts", "1+0x60")],
    "ShoalUpstreamDown": [series("shoal_upstream_breaker_open", "1+0x60", host="r")],
    "ShoalUpstreamThrottles": [series("shoal_upstream_pauses_total", "_x25 1+0x35", host="r", by="upstream")],
    "ShoalBodiesBroken": [
        series("shoal_front_outcomes_total", RISING, kind="blob", outcome="broken"),
        series("shoal_front_outcomes_total", "0+40x60", kind="blob", outcome="whole"),
    ],
    "ShoalOverload": [series("shoal_front_overload_total", RISING)],
    "ShoalWrongBytes": [series("shoal_swarm_bad_pieces_total", RISING)],
    "ShoalWrongDigest": [series("shoal_tracker_rejections_total", RISING)],
    "ShoalQuarantine": [series("shoal_tracker_quarantines_total", RISING)],
    "ShoalKeptShort": [series("shoal_tracker_kept_images_short", "1+0x60")],
    "ShoalPeersStall": [series("shoal_swarm_stalls_total", RISING)],
    "ShoalSlowFirstByte": [
        series("shoal_front_first_byte_seconds_bucket", STEADY, kind="blob", le="5.0"),
        series("shoal_front_first_byte_seconds_bucket", RISING, kind="blob", le="10.0"),
        series("shoal_front_first_byte_seconds_bucket", RISING, kind="blob", le="+Inf"),
    ],
    "ShoalLoopLag": [
        series("shoal_loop_lag_seconds_bucket", STEADY, le="0.25"),
        series("shoal_loop_lag_seconds_bucket", RISING, le="1.0"),
        series("shoal_loop_lag_seconds_bucket", RISING, le="+Inf"),
    ],
}
"""What each fault shows, beside a tracker that is there."""


@pytest.mark.needs_promtool
def test_promtool_finds_no_fault_in_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, capture_output=True)


@pytest.mark.needs_promtool
def test_each_alert_fires_for_its_fault_and_for_no_other(tmp_path: Path) -> None:
    """After half an hour of it; and none in a healthy cluster."""
    assert list(FAULTS) == NAMES
    tests = []
    for fault, wrong in [("", HEALTHY), *FAULTS.items()]:
        tracker = [series("shoal_tracker_agents", "3+0x60")] if fault not in ("", "ShoalNoTracker") else []
        checks = [
            {"expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)', "eval_time": "30m",
             "exp_samples": [{"labels": "{}", "value": float(name == fault)}]}
            for name in NAMES
        ]  # fmt: skip
        tests.append({"interval": "1m", "input_series": [*tracker, *wrong], "promql_expr_test": checks})
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------------------- the faults themselves


@pytest.mark.needs_prometheus
async def test_an_agent_that_is_refused_raises_the_alarm(tmp_path: Path) -> None:
    """A tracker whose members it is none of; nothing else is wrong."""
    async with cluster(tmp_path, agents=0, discovery=["--discovery=static", "--member=10.0.0.0/8"]) as whole:
        alone = whole.prepare()
        await alone.start(joined=False)
        targets = [f"127.0.0.1:{alone.metrics_port}", f"127.0.0.1:{whole.tracker.port}"]
        async with prometheus(tmp_path, targets) as watching:
            found = await watching.fires("ShoalAgentAlone", "ShoalStrangers")
            assert found == {"ShoalAgentAlone", "ShoalStrangers"}


@pytest.mark.needs_prometheus
async def test_a_registry_that_fails_or_throttles_raises_the_alarm(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """One is broken, one asks to wait; and there is no tracker."""
    blobs = [origin.plant("alerts/failing", MIB, 930 + number) for number in range(10)]
    throttled = f"localhost:{upstream.port}"
    site = free_port()
    async with agent(tmp_path / "agent", metrics_listen=Endpoint("127.0.0.1", site)) as running:

        async def ask(number: int, ns: str) -> None:
            blob = blobs[number]
            await running.ask(f"/v2/{blob.repository}/blobs/{blob.digest}?ns={ns}")

        async with prometheus(tmp_path, [f"127.0.0.1:{site}"]) as watching:
            await watching.fires("ShoalNoTracker")
            await upstream.rules(Rule(status=429, headers={"Retry-After": "5"}))
            await ask(0, throttled)
            await upstream.rules(Rule(status=500))
            for number in range(10):
                await ask(number, upstream.host)
            await watching.fires("ShoalUpstreamThrottles", "ShoalUpstreamDown")
            running.front.most = 0
            await ask(0, upstream.host)
            await watching.fires("ShoalOverload")


@pytest.mark.needs_prometheus
async def test_wrong_words_raise_the_alarm(tmp_path: Path) -> None:
    """A blob whose digest does not match, an agent found corrupt, and two agents with one address."""
    digest, size = digest_of("blob"), MIB
    async with town(StaticDiscovery(["127.0.0.0/8"]), strikes=1) as here:
        place = here.server.url.removeprefix("http://")
        async with prometheus(tmp_path, [place]) as watching:
            await watching.scraped()
            one, two, three = (here.agent(name, 1000 + n, f"127.0.0.{n}") for n, name in enumerate("abc", 1))
            for each in (one, two, three):
                await each.hello()
            await one.bring_in(digest, size)
            await one.reject(digest)
            await two.hello(copy=size)
            for each in (one, three):
                corrupt = wire.Corrupt(**each.me, digest=digest_of("copy"), peer_ip="127.0.0.2", peer_port=1002)
                await each.say("corrupt", corrupt, wire.Ok)
            rival = here.agent("d", 1001, "127.0.0.1")
            rival.me["session"] = "of another process"
            await rival.hello()
            for _ in range(PROOF):
                with pytest.raises(Refusal):
                    await one.poll()
            await watching.fires("ShoalWrongDigest", "ShoalConflict", "ShoalQuarantine")
