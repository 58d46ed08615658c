"""The image that real nodes run is the one that the Dockerfile describes."""

from __future__ import annotations

import json
import shlex
import tarfile
from typing import Any

import pytest

from tests.delivery.test_dockerfile import of, stages
from tests.parts.kubecluster.images import NAME, shoal_image

pytestmark = [
    pytest.mark.needs_cluster,
    pytest.mark.busy_loop("it reads an archive"),
]


async def test_the_built_image_is_what_the_dockerfile_says() -> None:
    """User, command, ports, healthcheck and environment, read from the archive that nodes import."""
    with tarfile.open(await shoal_image()) as archive:

        def read(name: str) -> Any:
            member = archive.extractfile(name)
            assert member is not None
            return json.load(member)

        (manifest,) = read("manifest.json")
        config = read(manifest["Config"])["config"]
    final = stages()[-1]
    assert manifest["RepoTags"] == [NAME]
    assert [config["User"]] == of(final, "USER")
    assert config["Entrypoint"] == json.loads(of(final, "ENTRYPOINT")[0])
    assert config["Cmd"] == json.loads(of(final, "CMD")[0])
    assert {port.removesuffix("/tcp") for port in config["ExposedPorts"]} == set(of(final, "EXPOSE")[0].split())
    assert set(config["Volumes"]) == set(of(final, "VOLUME"))
    assert [config["StopSignal"]] == of(final, "STOPSIGNAL")
    given = dict(entry.split("=", 1) for entry in config["Env"])
    for entry in shlex.split(of(final, "ENV")[0]):
        key, value = entry.split("=", 1)
        assert given[key].startswith(value.replace("$PATH", ""))
    (text,) = of(final, "HEALTHCHECK")
    assert config["Healthcheck"]["Test"] == ["CMD", *json.loads(text.split("CMD", 1)[1])]
