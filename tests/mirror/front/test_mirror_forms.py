"""The registry API's own forms: paths, names, manifests' types, links and error documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import Refusal
from mirror.front import oci
from mirror.front.access import AuthCache, Standing, fingerprint
from mirror.front.oci import Route
from mirror.upstream import manifests
from mirror.upstream.transport import HOP_HEADER
from tests.parts.front import file_agent

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
SHA512 = f"sha512:{HEX}{HEX}"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/", Route("check")),
        ("/v2", Route("check")),
        ("/v2/a/manifests/latest", Route("manifest", "a", "latest")),
        ("/v2/a/b/c/d/e/f/manifests/v1.2_3-x", Route("manifest", "a/b/c/d/e/f", "v1.2_3-x")),
        (f"/v2/a/manifests/{DIGEST}", Route("manifest", "a", DIGEST)),
        (f"/v2/a/blobs/{DIGEST}", Route("blob", "a", DIGEST)),
        (f"/v2/a/blobs/sha256%3A{HEX}", Route("blob", "a", DIGEST)),
        (f"/v2/a/blobs/{SHA512}", Route("blob", "a", SHA512)),
        (f"/v2/a/referrers/{DIGEST}", Route("referrers", "a", DIGEST)),
        ("/v2/a/tags/list", Route("tags", "a")),
        # names may hold the words of the API
        ("/v2/blobs/manifests/manifests/manifests", Route("manifest", "blobs/manifests", "manifests")),
        ("/v2/a__b/c.d/e---f/manifests/x", Route("manifest", "a__b/c.d/e---f", "x")),
    ],
)
def test_what_a_path_asks_for(path: str, route: Route) -> None:
    """Names have as many slashes as they like."""
    assert oci.route("GET", path) == route


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/Upper/manifests/x", 400, "NAME_INVALID"),
        ("GET", "/v2/a//b/manifests/x", 400, "NAME_INVALID"),
        ("GET", "/v2/../etc/manifests/x", 400, "NAME_INVALID"),
        ("GET", "/v2/a_/manifests/x", 400, "NAME_INVALID"),
        ("GET", "/v2/" + "a" * 256 + "/manifests/x", 400, "NAME_INVALID"),
        ("GET", "/v2/a%0d%0ab/manifests/x", 400, "NAME_INVALID"),
        ("GET", f"/v2/a/blobs/sha256:{HEX[:-1]}", 400, "DIGEST_INVALID"),
        ("GET", f"/v2/a/blobs/sha256:{HEX.upper()}", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/latest", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/manifests/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/manifests/.x", 400, "TAG_INVALID"),
        ("GET", "/v2/a/manifests/" + "x" * 129, 400, "TAG_INVALID"),
        ("GET", "/v2/_catalog", 404, "UNSUPPORTED"),
        ("GET", "/v2/a/tags/nothing", 404, "UNSUPPORTED"),
        ("GET", "/v2/a/blobs/uploads/1234", 405, "UNSUPPORTED"),
        ("POST", "/v2/a/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PUT", "/v2/a/manifests/x", 405, "UNSUPPORTED"),
        ("PATCH", "/v2/a/blobs/uploads/1", 405, "UNSUPPORTED"),
        ("DELETE", f"/v2/a/blobs/{DIGEST}", 405, "UNSUPPORTED"),
        ("DELETE", "/v2/", 405, "UNSUPPORTED"),
        ("BREW", "/v2/a/manifests/x", 405, "UNSUPPORTED"),
    ],
)
def test_what_is_refused(method: str, path: str, status: int, code: str) -> None:
    """With a code of the specification, in its document."""
    with pytest.raises(Refusal) as refused:
        oci.route(method, path)
    assert refused.value.status == status
    document = json.loads(refused.value.body())
    assert [error["code"] for error in document["errors"]] == [code]
    assert document["errors"][0]["message"]


@given(st.text(max_size=60))
def test_no_path_breaks_it(path: str) -> None:
    """Anything is a route or a refusal."""
    try:
        oci.route("GET", f"/v2/{path}")
    except Refusal as refusal:
        json.loads(refusal.body())


@pytest.mark.parametrize(
    ("ns", "registry"),
    [
        (None, "docker.io"),
        ("", "docker.io"),
        ("GHCR.io", "ghcr.io"),
        ("registry.example:5000", "registry.example:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_which_registry_is_meant(ns: str | None, registry: str) -> None:
    """Without `ns`: docker.io."""
    assert oci.registry(ns) == registry


@pytest.mark.parametrize(
    ("name", "ns", "registry", "repository"),
    [
        ("quay.io/team/app", None, "quay.io", "team/app"),
        ("quay.io/team/app", "", "quay.io", "team/app"),
        ("registry.example_5000/team/app", None, "registry.example:5000", "team/app"),
        ("127.0.0.1_5000/a", None, "127.0.0.1:5000", "a"),
        ("localhost_5000/a", None, "localhost:5000", "a"),
        ("localhost/a", None, "localhost", "a"),
        ("docker.io/library/alpine", None, "docker.io", "library/alpine"),
        # whoever says ns has said it
        ("quay.io/team/app", "ghcr.io", "ghcr.io", "quay.io/team/app"),
        # no registry, so Docker Hub's
        ("library/alpine", None, "docker.io", "library/alpine"),
        ("team/quay.io/app", None, "docker.io", "team/quay.io/app"),
        ("alpine.old", None, "docker.io", "alpine.old"),
        ("kind-registry_5000/team/app", None, "kind-registry:5000", "team/app"),
        ("harbor/team/app", None, "harbor", "team/app"),
        ("harbor", None, "docker.io", "harbor"),
        ("harbors/app", None, "docker.io", "harbors/app"),
        ("a__b.c/app", None, "docker.io", "a__b.c/app"),
    ],
)
def test_a_registry_in_the_name(name: str, ns: str | None, registry: str, repository: str) -> None:
    """For clients that cannot say `ns`: CRI-O, podman, skopeo, Docker."""
    assert oci.meant(Route("manifest", name, "v1"), ns, {"harbor"}.__contains__) == (
        registry,
        Route("manifest", repository, "v1"),
    )


@pytest.mark.parametrize(
    ("route", "path"),
    [
        (Route("tags", "a/b"), "/v2/a/b/tags/list"),
        (Route("blob", "a/b", SHA512), f"/v2/a/b/blobs/{SHA512}"),
        (Route("manifest", "a", "v1"), "/v2/a/manifests/v1"),
        (Route("referrers", "a", DIGEST), f"/v2/a/referrers/{DIGEST}"),
    ],
)
def test_the_path_of_a_route(route: Route, path: str) -> None:
    """As the registry itself is asked; and it is the route again."""
    assert route.path == path
    assert oci.route("GET", path) == route


@pytest.mark.parametrize("ns", ["a/b", "user@host", "host:port", "a b", "http://x", "x\r\ny", "h?q", "#", "a" * 300])
def test_what_is_no_registry(ns: str) -> None:
    """A host and a port, nothing that would change the URL that is asked."""
    with pytest.raises(Refusal):
        oci.registry(ns)


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({"mediaType": "application/x.own+json"}, "application/x.own+json"),
        ({"mediaType": manifests.OCI_INDEX, "manifests": []}, manifests.OCI_INDEX),
        ({"schemaVersion": 2, "manifests": []}, manifests.OCI_INDEX),
        ({"schemaVersion": 2, "manifests": [{"mediaType": manifests.DOCKER_MANIFEST}]}, manifests.DOCKER_LIST),
        ({"schemaVersion": 2, "config": {"mediaType": "x/y"}, "layers": []}, manifests.OCI_MANIFEST),
        (
            {"config": {"mediaType": "application/vnd.docker.container.image.v1+json"}, "layers": []},
            manifests.DOCKER_MANIFEST,
        ),
        ({"schemaVersion": 1, "signatures": []}, manifests.DOCKER_SCHEMA1_SIGNED),
        ({"schemaVersion": 1}, manifests.DOCKER_SCHEMA1),
        ({"artifactType": "x/y", "blobs": []}, manifests.OCI_ARTIFACT),
        ({"mediaType": "no type\r\nX-Evil: 1", "config": {}, "layers": []}, manifests.OCI_MANIFEST),
        ({"mediaType": 5, "manifests": []}, manifests.OCI_INDEX),
        ({}, None),
        ([], None),
        ("text", None),
    ],
)
def test_the_type_of_a_manifest(document: object, media_type: str | None) -> None:
    """What it declares; else what its structure implies; else it is none."""
    assert manifests.media_type(json.dumps(document).encode()) == media_type


@given(st.binary(max_size=100))
def test_no_bytes_break_it(content: bytes) -> None:
    """A blob that is asked for as a manifest is not one; that is all."""
    manifests.media_type(content)


def test_deep_nesting_is_no_manifest() -> None:
    """The parser's limit is not a traceback."""
    assert manifests.media_type(b"[" * 1_000_000) is None


def test_a_yes_is_fresh_then_old_then_forgotten() -> None:
    """By the clock that is passed in."""
    accepted = AuthCache(10.0, keep=100.0)
    assert accepted.standing("k", 0.0) is Standing.NONE
    accepted.note("k", 0.0)
    table = {0.0: Standing.FRESH, 9.9: Standing.FRESH, 10.0: Standing.OLD, 99.9: Standing.OLD}
    assert {now: accepted.standing("k", now) for now in table} == table
    assert accepted.standing("k", 100.0) is Standing.NONE
    assert len(accepted) == 0
    accepted.note("k", 100.0)
    accepted.forget("k")
    assert accepted.standing("k", 100.0) is Standing.NONE


def test_the_memory_of_yes_is_bounded() -> None:
    """The one that was noted longest ago goes first."""
    accepted = AuthCache(10.0, bound=2)
    for key in "abac":
        accepted.note(key, 0.0)
    assert [accepted.standing(key, 0.0) is Standing.FRESH for key in "abc"] == [True, False, True]


def test_a_fingerprint_tells_apart_and_tells_nothing() -> None:
    """Parts do not run into each other; the secret is not in it."""
    assert fingerprint("a", "bc") != fingerprint("ab", "c")
    assert fingerprint("a", "b") == fingerprint("a", "b")
    assert b"secret" not in fingerprint("secret", "")


async def test_an_agent_that_is_asked_by_an_agent_sends_it_away_at_once(tmp_path: Path) -> None:
    """Its own address as a registry, or a ring of mirrors: nothing is asked upstream for it."""
    async with file_agent(tmp_path) as (agent, swarm):
        digest = swarm.add(b"content")
        for path in (f"/v2/a/blobs/{digest}", "/v2/a/manifests/v1", "/v2/a/tags/list", "/blobs/http://127.0.0.1:1/x"):
            status, _, _ = await agent.ask(path, headers={HOP_HEADER: "1"})
            assert status == 404
        assert swarm.opened == 0
        assert (await agent.ask("/v2/", headers={HOP_HEADER: "1"}))[0] == 200
