"""Credentials from Docker's config.json: what is matched, what helpers say, what happens when files change."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import DockerConfigInvalid
from mirror.upstream.auth import Credential
from mirror.upstream.dockerconfig import Config, DockerConfig, find, key_of, parse, run_helper


def auth(user: str, password: str = "pw") -> dict[str, str]:
    """An entry of `auths` as `docker login` writes it."""
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def config(**keys: object) -> Config:
    """A parsed configuration."""
    return parse(json.dumps(keys), "config.json")


# kubelet's documentation, "Interpretation of config.json", has the first rows
@pytest.mark.parametrize(
    ("key", "host", "repository", "fits"),
    [
        ("my-registry.io/images", "my-registry.io", "images/my-image", True),
        ("my-registry.io/images", "my-registry.io", "images", True),
        ("my-registry.io/images", "my-registry.io", "images2/my-image", False),
        ("my-registry.io/images", "my-registry.io", "other/my-image", False),
        ("*.my-registry.io/images", "sub.my-registry.io", "images/my-image", True),
        ("*.my-registry.io", "sub.my-registry.io", "anything", True),
        ("*.my-registry.io", "my-registry.io", "anything", False),
        ("*.my-registry.io", "a.sub.my-registry.io", "anything", False),
        ("*.*.my-registry.io", "a.sub.my-registry.io", "anything", True),
        ("prefix.*.io", "prefix.my-registry.io", "x", True),
        ("*-good.my-registry.io", "prefix-good.my-registry.io", "x", True),
        ("app?.example", "app1.example", "x", True),
        ("reg.example:5000", "reg.example:5000", "x", True),
        ("reg.example", "reg.example:5000", "x", False),
        ("reg.example:443", "reg.example", "x", True),
        ("https://reg.example", "reg.example", "x", True),
        ("https://reg.example/v2/", "reg.example", "x", True),
        ("http://127.0.0.1:5000", "127.0.0.1:5000", "x", True),
        ("REG.example", "reg.example", "x", True),
        ("https://index.docker.io/v1/", "docker.io", "library/alpine", True),
        ("docker.io", "docker.io", "library/alpine", True),
        ("registry-1.docker.io", "docker.io", "library/alpine", True),
        ("docker.io/team", "docker.io", "team/app", True),
        ("docker.io/team", "docker.io", "library/alpine", False),
        ("*", "reg.example", "x", False),
        ("", "reg.example", "x", False),
    ],
)
def test_which_repositories_a_key_covers(key: str, host: str, repository: str, fits: bool) -> None:
    assert key_of(key).matches(host, repository) is fits


@given(st.text(max_size=60))
def test_any_text_is_a_key(text: str) -> None:
    key_of(text).matches("reg.example:5000", "a/b")


def test_the_narrowest_key_wins_and_then_the_earlier_file() -> None:
    first = config(
        auths={
            "*.example": auth("glob"),
            "reg.example": auth("host"),
            "reg.example/team": auth("team"),
            "reg.example/team/app": auth("app"),
        }
    )
    second = config(auths={"reg.example": auth("second"), "reg.example/team/app/deep": auth("deep")})

    def user(repository: str, host: str = "reg.example") -> str:
        found = find([first, second], host, repository)[0]
        assert isinstance(found, Credential)
        return found.username

    assert user("x") == "host"
    assert user("team/x") == "team"
    assert user("team/app") == "app"
    assert user("team/app/deep/er") == "deep"
    assert user("x", "other.example") == "glob"
    assert find([first, second], "reg.test", "x") == []


def test_helpers_named_for_a_host_come_first_and_the_store_last() -> None:
    found = config(
        auths={"reg.example": auth("file"), "ghcr.io": {}},
        credHelpers={"gcr.io": "gcloud", "*.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"},
        credsStore="desktop",
    )
    assert find([found], "gcr.io", "a/b") == [("gcloud", "gcr.io"), ("desktop", "gcr.io")]
    ecr = "123.dkr.ecr.eu-west-1.amazonaws.com"
    assert find([found], ecr, "a") == [("ecr-login", ecr), ("desktop", ecr)]
    assert find([found], "ghcr.io", "a") == [("desktop", "ghcr.io")]
    assert find([found], "docker.io", "library/a") == [("desktop", "https://index.docker.io/v1/")]
    assert isinstance(find([found], "reg.example", "a")[0], Credential)


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        (auth("me", "a:b"), Credential("me", "a:b")),
        ({"username": "me", "password": "pw"}, Credential("me", "pw")),
        ({"auth": auth("me")["auth"], "identitytoken": "idt"}, Credential("me", "pw", identity_token="idt")),
        ({"identitytoken": "idt"}, Credential(identity_token="idt")),
        ({"registrytoken": "ready"}, Credential(registry_token="ready")),
    ],
)
def test_forms_of_an_entry(entry: dict[str, str], credential: Credential) -> None:
    assert find([config(auths={"reg.example": entry})], "reg.example", "x") == [credential]
    assert find([parse(json.dumps({"reg.example": {"auth": ""} | entry}), "legacy")], "reg.example", "x") == [
        credential
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"secret"',
        '{"auths": []}',
        '{"auths": {"a.example": "secret"}}',
        '{"auths": {"a.example": {"auth": 5}}}',
        '{"auths": {"a.example": {"auth": "secret!"}}}',
        '{"auths": {"a.example": {"auth": "c2VjcmV0"}}}',
        '{"credHelpers": {"a.example": "../secret"}}',
        '{"credsStore": "secret; rm"}',
        '{"credsStore": 1}',
        b"\xff\xfe",
    ],
)
def test_a_bad_file_is_one_line_without_its_content(text: str | bytes) -> None:
    with pytest.raises(DockerConfigInvalid) as caught:
        parse(text, "config.json")
    assert str(caught.value).startswith("config.json")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(text: bytes) -> None:
    try:
        parse(text, "config.json")
    except DockerConfigInvalid:
        return


def test_a_credential_does_not_show_itself() -> None:
    credential = Credential("user", "hush", "hush", "hush")
    assert "hush" not in repr(credential)
    assert credential.basic() == "Basic dXNlcjpodXNo"


# ---------------------------------------------------------------------- files that change


def write(directory: Path, version: int, content: str) -> None:
    """A new version of a mounted Secret: a new directory, and `..data` swapped to it, as kubelet does."""
    fresh = directory / f"..v{version}"
    fresh.mkdir()
    (fresh / "config.json").write_text(content)
    link = directory / "..data_tmp"
    link.symlink_to(fresh.name)
    link.rename(directory / "..data")
    if not (directory / "config.json").is_symlink():
        (directory / "config.json").symlink_to("..data/config.json")


async def test_a_mounted_secret_that_changes_is_read_again_and_a_broken_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    write(tmp_path, 1, json.dumps({"auths": {"reg.example": auth("one")}}))
    credentials = DockerConfig([tmp_path / "config.json"], clock=lambda: now)
    await credentials.load()

    async def user() -> str:
        found = await credentials.find("reg.example", "x")
        return "" if found is None else found.username

    assert await user() == "one"
    write(tmp_path, 2, json.dumps({"auths": {"reg.example": auth("two")}}))
    assert await user() == "one", "looked a moment ago"
    now = 2.0
    assert await user() == "two"
    write(tmp_path, 3, '{"auths": {"reg')
    now = 4.0
    with caplog.at_level(logging.WARNING, "shoal.mirror"):
        assert await user() == "two"
    assert [record.message for record in caplog.records] == ["docker_config_kept"]
    (tmp_path / "config.json").unlink()
    now = 6.0
    assert await user() == "two"
    write(tmp_path, 4, "{}")
    now = 8.0
    assert await user() == ""


async def test_a_file_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DockerConfigInvalid, match="No such file"):
        await DockerConfig([tmp_path / "none.json"]).load()


# ---------------------------------------------------------------------- helpers


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a directory in front of PATH and returns the file `docker-credential-test` in it, to be written."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "docker-credential-test"


def script(file: Path, text: str) -> None:
    """Make *file* a shell script that also counts its calls."""
    file.write_text(f"#!/bin/sh\necho $1 >> {file}.calls\n{text}\n")
    file.chmod(0o755)


GIVES = 'read server; echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"%s\\",\\"Secret\\":\\"for $server\\"}"'


async def test_a_helper_is_asked_once_for_many_and_again_when_its_answer_is_old(helper: Path, tmp_path: Path) -> None:
    script(helper, GIVES % "robot")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"credHelpers": {"reg.example": "test"}}))
    now = 0.0
    credentials = DockerConfig([file], clock=lambda: now)
    found = await asyncio.gather(*(credentials.find("reg.example", f"r{n}") for n in range(10)))
    assert set(found) == {Credential("robot", "for reg.example")}
    assert Path(f"{helper}.calls").read_text() == "get\n"
    now = 400.0
    await credentials.find("reg.example", "x")
    assert Path(f"{helper}.calls").read_text() == "get\nget\n"


async def test_a_helper_may_give_an_identity_token(helper: Path) -> None:
    script(helper, GIVES % "<token>")
    assert await run_helper("test", "reg.example") == Credential(identity_token="for reg.example")


@pytest.mark.parametrize(
    ("text", "warns"),
    [
        ('cat > /dev/null; echo "credentials not found in native keychain"; exit 1', False),
        ("cat > /dev/null; echo hush >&2; exit 3", True),
        ("cat > /dev/null; echo hush", True),
        ("cat > /dev/null; echo '[\"hush\"]'", True),
        ("exit 0", True),
    ],
)
async def test_a_helper_that_has_nothing_means_anonymous(
    helper: Path, caplog: pytest.LogCaptureFixture, text: str, warns: bool
) -> None:
    script(helper, text)
    with caplog.at_level(logging.INFO, "shoal.mirror"):
        assert await run_helper("test", "reg.example") is None
    assert bool(caplog.records) is warns
    assert not any("hush" in str(record.__dict__) for record in caplog.records)


async def test_a_helper_that_hangs_is_killed_at_its_deadline(helper: Path, caplog: pytest.LogCaptureFixture) -> None:
    script(helper, "exec sleep 600")
    with caplog.at_level(logging.WARNING, "shoal.mirror"):
        assert await run_helper("test", "reg.example", deadline=0.3) is None
    assert [record.message for record in caplog.records] == ["credential_helper_failed"]


async def test_a_helper_that_is_not_installed_means_anonymous(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "shoal.mirror"):
        assert await run_helper("not-there", "reg.example") is None
    assert [record.message for record in caplog.records] == ["credential_helper_failed"]
