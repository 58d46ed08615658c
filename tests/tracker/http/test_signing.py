"""Certificates of agents in a cluster: only a member's own token gets one, and only for that member."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from cryptography import x509

from swarm.identity.authority import Authority, key_pem, make_authority, new_key, request
from swarm.identity.issued import Asked, EnrolledIdentity, IssuedIdentity, Signed
from swarm.identity.name import Role
from swarm.identity.tls import Credentials, Identity
from swarm.protocol import wire
from tests.parts.talk import JSON, until
from tracker.errors import Malformed, NotAMember, Refused, Unready
from tracker.http.server import TrackerServer
from tracker.http.signing import AUDIENCE, Signing, stated_pod
from tracker.members.discovery import OnChange
from tracker.members.gate import Claim, Gate
from tracker.members.static import StaticDiscovery
from tracker.settings import TrackerSettings

NOW = datetime.now(UTC)
PODS = {"uid-1": ("127.0.0.1",), "uid-2": ("10.0.0.2", "fd00::2")}


def token_of(uid: str, *, rest: str = "signature") -> str:
    """A token as a service account's looks; the API server alone knows whether it is right."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    payload = {"aud": [AUDIENCE], "kubernetes.io": {"namespace": "shoal", "pod": {"name": "a", "uid": uid}}}
    return f"{part({'alg': 'RS256'})}.{part(payload)}.{rest}"


class Pods(StaticDiscovery):
    """Members by the UID of their pod, and an API server that knows the tokens ending in "signature"."""

    def __init__(self) -> None:
        super().__init__([])
        self.reviewed: list[str] = []
        self.pods = dict(PODS)

    def named(self, name: str) -> tuple[str, ...]:
        return self.pods.get(name, ())

    def is_member(self, ip: str) -> bool:
        return any(ip in ips for ips in self.pods.values())

    async def review(self, token: str, audience: str) -> str:
        self.reviewed.append(token)
        return stated_pod(token) if token.endswith("signature") and audience == AUDIENCE else ""

    async def run(self, on_change: OnChange) -> None:
        """Nothing changes by itself."""


def authority() -> Authority:
    return Authority(*make_authority(NOW, timedelta(days=1)))


def asked(token: str, csr: bytes | None = None) -> bytes:
    return msgspec.json.encode(Asked(token, (csr or request(new_key())).decode()))


async def test_a_members_token_gets_a_certificate_of_its_pod(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shoal.tracker")
    ca, pods, key = authority(), Pods(), new_key()
    signing = Signing(ca, pods.review, pods.named)
    answer = msgspec.json.decode(await signing.answer(asked(token_of("uid-2"), request(key))), type=Signed)
    assert "uid-2" in str(ssl_names(ca, answer.certificate.encode(), key_pem(key)))
    assert [record.message for record in caplog.records] == ["agent.signed"]


def ssl_names(ca: Authority, certificate: bytes, key: bytes) -> object:
    """The alternative names that the other end of a connection would see."""
    Identity(Credentials(ca.certificate, certificate, key))  # it is a pair
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value


@pytest.mark.parametrize(
    ("body", "refusal", "reviews"),
    [
        (b"", Malformed, 0),
        (b'{"token": 1}', Malformed, 0),
        (asked(""), NotAMember, 0),
        (asked("a.b.c"), NotAMember, 0),
        (asked("a" * 20_000), NotAMember, 0),
        (asked(token_of("uid-of-another-pod")), NotAMember, 0),
        (asked(token_of("uid-1", rest="forged")), NotAMember, 1),
        (asked(token_of("uid-1"), b"no request"), Malformed, 1),
    ],
    ids=["empty", "no token", "blank", "no token at all", "long", "no member", "forged", "no request"],
)
async def test_whoever_is_no_member_gets_none_and_costs_the_api_server_nothing(
    caplog: pytest.LogCaptureFixture, body: bytes, refusal: type[Refused], reviews: int
) -> None:
    caplog.set_level(logging.INFO, "shoal.tracker")
    pods = Pods()
    signing = Signing(authority(), pods.review, pods.named)
    with pytest.raises(refusal) as told:
        await signing.answer(body)
    assert len(pods.reviewed) == reviews
    assert "agent.signed" not in caplog.text
    assert "signature" not in str(told.value), "a token is in no error"


async def test_a_pod_that_was_deleted_meanwhile_gets_none() -> None:
    pods = Pods()

    async def slow(token: str, audience: str) -> str:
        pods.pods.clear()
        return await pods.review(token, audience)

    with pytest.raises(NotAMember):
        await Signing(authority(), slow, pods.named).answer(asked(token_of("uid-1")))


async def test_an_agent_enrols_and_is_known_by_its_pods_uid(tmp_path: Path) -> None:
    """The whole way: an agent that has a token and the authority's certificate, and a tracker that signs."""
    ca, pods = authority(), Pods()
    issued = IssuedIdentity(ca, Role.TRACKER, "tracker-0")
    settings = TrackerSettings(listen=("127.0.0.1", 0))
    server = TrackerServer(settings, pods, identity=issued.identity, authority=ca)
    await server.start()
    (tmp_path / "ca.crt").write_bytes(ca.certificate)
    (tmp_path / "token").write_text(token_of("uid-1"))
    agent = EnrolledIdentity(tmp_path / "ca.crt", tmp_path / "token")
    running = asyncio.create_task(agent.run(lambda: [server.url]))
    try:
        await asyncio.wait_for(agent.enrolled.wait(), 20)
        assert pods.reviewed == [token_of("uid-1")]
        poll = wire.AgentPoll(node="n", port=6881, session="s", full=True)
        secure = {"ssl": agent.identity.client_context(), "server_hostname": Role.TRACKER.host}
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{server.url}/v1/agent", data=wire.encode(poll), headers=JSON, **secure) as answer:  # type: ignore[arg-type]
                assert answer.status == 200
            pods.pods.clear()
            server._changed()
            async with http.post(f"{server.url}/v1/agent", data=wire.encode(poll), headers=JSON, **secure) as answer:  # type: ignore[arg-type]
                assert answer.status == 403, "the certificate is good, the pod is gone"
        await until(lambda: not server.cluster.agents.all())
    finally:
        running.cancel()
        await asyncio.wait([running])
        await server.close()


def gate(pods: dict[str, tuple[str, ...]], *, by_key: bool) -> Gate:
    discovery = Pods()
    discovery.pods = pods
    return Gate(discovery, by_key=by_key)


Case = tuple[str, Claim, bool, str, str]
KEY = "agent/uid-2"


@pytest.mark.parametrize(
    ("remote", "claim", "by_key", "ip", "identity"),
    [
        ("192.0.2.1", Claim(KEY), True, "10.0.0.2", KEY),
        ("192.0.2.1", Claim(KEY, "fd00::2"), True, "fd00::2", KEY),
        ("192.0.2.1", Claim(KEY, "10.0.0.99"), True, "10.0.0.2", KEY),
        ("10.0.0.2", Claim(), True, "", ""),
        ("10.0.0.2", Claim("", "10.0.0.2", "uid-2"), True, "", ""),
        ("10.0.0.2", Claim("agent/uid-9"), True, "", ""),
        ("10.0.0.2", Claim("tracker/uid-2"), True, "", ""),
        ("10.0.0.2", Claim(), False, "10.0.0.2", "10.0.0.2"),
        ("192.0.2.1", Claim("", "10.0.0.2", "uid-2"), False, "10.0.0.2", "pod/uid-2"),
        ("192.0.2.1", Claim("", "10.0.0.2", "uid-1"), False, "", ""),
        ("192.0.2.1", Claim("", "10.0.0.2", ""), False, "", ""),
        ("192.0.2.1", Claim(), False, "", ""),
        ("nonsense", Claim(), False, "", ""),
        ("10.0.0.2", Claim("", "nonsense", "uid-2"), False, "", ""),
    ],
)
def test_a_member_is_who_proves_it(remote: str, claim: Claim, by_key: bool, ip: str, identity: str) -> None:
    """By key, whatever the address; without keys by the address, or by pod and address that discovery knows."""
    visitor = gate(dict(PODS), by_key=by_key).visitor(remote, claim)
    assert (visitor.member, visitor.ip if visitor.member else "") == (bool(ip), ip)
    if ip:
        assert visitor.identity == identity


def test_two_pods_behind_one_address_are_two_members() -> None:
    """As behind a NAT, and with hostNetwork on a bridge: neither takes the other's place."""
    pods: dict[str, tuple[str, ...]] = {"uid-1": ("10.0.0.1",), "uid-2": ("10.0.0.2",)}
    known = gate(pods, by_key=False)
    first = known.visitor("192.0.2.1", Claim("", "10.0.0.1", "uid-1"))
    second = known.visitor("192.0.2.1", Claim("", "10.0.0.2", "uid-2"))
    assert (first.member, second.member) == (True, True)
    assert (first.ip, second.ip) == ("10.0.0.1", "10.0.0.2")
    assert first.identity != second.identity
    assert known.still("10.0.0.1") == first
    del pods["uid-1"]
    known.forget()
    assert not known.still("10.0.0.1").member
    assert known.still("10.0.0.2").member


def test_a_tracker_renews_its_own_certificate_before_it_ends() -> None:
    clock = [NOW]
    ca = Authority(*make_authority(NOW, timedelta(days=400)))
    issued = IssuedIdentity(ca, Role.TRACKER, "t", lambda: clock[0])
    before = issued.identity.credentials
    issued.refresh()
    assert issued.identity.credentials is before
    clock[0] += timedelta(hours=9)
    issued.refresh()
    assert issued.identity.credentials.certificate != before.certificate
    assert isinstance(issued.identity.client_context(), ssl.SSLContext)


async def test_an_unready_api_server_is_said_as_such() -> None:
    async def away(_token: str, _audience: str) -> str:
        raise Unready("the Kubernetes API does not say whose token it is")

    with pytest.raises(Unready):
        await Signing(authority(), away, Pods().named).answer(asked(token_of("uid-1")))
