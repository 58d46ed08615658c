"""Credentials from kubelet's own providers: the configuration file, programs that speak the exec API, caches."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import ProvidersInvalid, SettingsInvalid
from mirror.serve import credentials_of
from mirror.settings import MirrorSettings
from mirror.upstream.auth import Credential
from mirror.upstream.kubelet import KubeletProviders, duration, load, parse

ECR = "123.dkr.ecr.eu-west-1.amazonaws.com"
VERSION = "credentialprovider.kubelet.k8s.io/v1"

PROGRAM = """#!{python}
import json, os, sys
request = json.load(sys.stdin)
with open({asked!r}, "a") as file:
    file.write(json.dumps([request, sys.argv[1:], os.environ.get("REGION")]) + "\\n")
print(open({answer!r}).read())
sys.exit(int(os.environ.get("FAIL", "0")))
"""


class Plugin:
    """A provider's program in *directory*, and what it was asked."""

    def __init__(self, directory: Path, name: str = "ecr") -> None:
        self.bin = directory / "bin"
        self.bin.mkdir(exist_ok=True)
        self.asked_file, self.answer = directory / f"{name}.asked", directory / f"{name}.answer"
        program = self.bin / name
        text = PROGRAM.format(python=sys.executable, asked=str(self.asked_file), answer=str(self.answer))
        program.write_text(text)
        program.chmod(0o755)
        self.says({"*.dkr.ecr.*.amazonaws.com": {"username": "AWS", "password": "token"}})

    def says(self, auth: dict[str, Any], kind: str = "Registry", **more: Any) -> None:
        """What it answers from now on."""
        document = {"kind": "CredentialProviderResponse", "apiVersion": VERSION, "cacheKeyType": kind, "auth": auth}
        self.answer.write_text(json.dumps(document | more))

    @property
    def asked(self) -> list[Any]:
        """[request, arguments, REGION] of each run."""
        if not self.asked_file.exists():
            return []
        return [json.loads(line) for line in self.asked_file.read_text().splitlines()]


def written(directory: Path, *providers: dict[str, Any]) -> Path:
    """A configuration file, as people write it in YAML (of which JSON is a part)."""
    entry = {"name": "ecr", "matchImages": ["*.dkr.ecr.*.amazonaws.com"], "apiVersion": VERSION}
    entries = [entry | {"defaultCacheDuration": "12h"} | provider for provider in providers or ({},)]
    document = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": entries}
    path = directory / "config.yaml"
    path.write_text("# kubelet's\n" + json.dumps(document))
    return path


async def test_an_image_is_asked_for_as_kubelet_asks(tmp_path: Path) -> None:
    """On standard input, with the provider's arguments and environment; only where a pattern fits."""
    plugin = Plugin(tmp_path)
    variables = {"args": ["get"], "env": [{"name": "REGION", "value": "eu"}]}
    providers = load(written(tmp_path, variables), plugin.bin)
    assert await providers.find(ECR, "team/app") == Credential("AWS", "token")
    assert await providers.find(ECR, "team/app", 1) is None
    assert await providers.find("ghcr.io", "team/app") is None
    request = {"apiVersion": VERSION, "kind": "CredentialProviderRequest", "image": f"{ECR}/team/app"}
    assert plugin.asked == [[request, ["get"], "eu"]]


@pytest.mark.parametrize(("kind", "runs"), [("Image", 3), ("Registry", 2), ("Global", 1)])
async def test_answers_are_kept_for_what_they_say_they_are_for(tmp_path: Path, kind: str, runs: int) -> None:
    plugin = Plugin(tmp_path)
    plugin.says({"*.dkr.ecr.*.amazonaws.com": {"username": "AWS", "password": "token"}}, kind)
    providers = load(written(tmp_path), plugin.bin)
    for host, repository in ((ECR, "a"), (ECR, "a"), (ECR, "b"), (f"4{ECR}", "a")):
        assert await providers.find(host, repository) == Credential("AWS", "token")
    assert len(plugin.asked) == runs


async def test_for_how_long_an_answer_holds(tmp_path: Path) -> None:
    """What it says, else what the configuration says; 0 is not kept. Those that come together share one run."""
    now = 0.0
    plugin = Plugin(tmp_path)
    providers = KubeletProviders(parse(written(tmp_path).read_bytes(), "file"), plugin.bin, clock=lambda: now)
    await asyncio.gather(*(providers.find(ECR, "a") for _ in range(10)))
    now = 12 * 3600.0 - 1
    await providers.find(ECR, "a")
    assert len(plugin.asked) == 1
    plugin.says({ECR: {"username": "AWS", "password": "new"}}, cacheDuration="0")
    now += 2
    for _ in range(2):
        assert await providers.find(ECR, "a") == Credential("AWS", "new")
    assert len(plugin.asked) == 3


async def test_several_logins_are_tried_from_the_narrowest_on(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    login = {name: {"username": name, "password": "p"} for name in ("*.dkr.ecr.*.amazonaws.com", f"{ECR}/team", ECR)}
    plugin.says(login | {"other.example": {"username": "no", "password": "p"}})
    providers = load(written(tmp_path), plugin.bin)
    found = [await providers.find(ECR, "team/app", skip) for skip in range(4)]
    assert [entry and entry.username for entry in found] == [f"{ECR}/team", ECR, "*.dkr.ecr.*.amazonaws.com", None]


@pytest.mark.parametrize("answer", ["", "no JSON", "{}", '{"cacheKeyType":"Planet","auth":{}}', '{"cacheKeyType":7}'])
async def test_a_provider_that_fails_opens_nothing_and_says_why_without_its_words(
    tmp_path: Path, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Plugin(tmp_path)
    plugin.answer.write_text(answer)
    providers = load(written(tmp_path), plugin.bin)
    for _ in range(3):
        assert await providers.find(ECR, "a") is None
    assert len(plugin.asked) == 1, "not again for each request"
    assert [record.message for record in caplog.records] == ["credential-provider-failed"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind: [", "config.yaml"),
        ("kind: Pod\napiVersion: v1\nproviders: []", "CredentialProviderConfig"),
        ("providers: 3", "config.yaml"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ProvidersInvalid, match=why) as caught:
        load(path, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [{"name": "../ecr"}, {"name": "absent"}, {"apiVersion": "v2"}, {"defaultCacheDuration": "soon"}],
)
def test_a_provider_that_cannot_be_used_is_one_line(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(ProvidersInvalid):
        load(written(tmp_path, entry), Plugin(tmp_path).bin)


def test_a_provider_that_wants_a_pods_token_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, {"tokenAttributes": {"serviceAccountTokenAudience": "x"}})
    assert parse(path.read_bytes(), "file") == ()


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("12h", 43200.0), ("1h30m", 5400.0), ("1.5s", 1.5)])
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert duration(text) == seconds


async def test_dockers_file_comes_first_and_both_flags_belong_together(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"auths": {ECR: {"username": "file", "password": "p"}}}))
    settings = MirrorSettings(
        docker_config=tmp_path / "config.json",
        credential_provider_config=written(tmp_path),
        credential_provider_bin_dir=plugin.bin,
    )
    credentials = await credentials_of(settings)
    found = [await credentials.find(ECR, "a", skip) for skip in range(3)]
    assert [entry and entry.username for entry in found] == ["file", "AWS", None]
    with pytest.raises(SettingsInvalid, match="belong together"):
        await credentials_of(MirrorSettings(credential_provider_bin_dir=plugin.bin))
