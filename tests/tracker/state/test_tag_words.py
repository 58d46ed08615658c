"""What agents say of tags is signed: a tracker that lies can hold back, but not make a meaning up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from mirror.front.tags import asker
from mirror.upstream.client import Upstream
from mirror.upstream.registries import Registries
from swarm.blob.errors import SourceBroken, SourceError, SourceRefused
from swarm.identity import words
from swarm.identity.authority import Authority, key_pem, make_authority, new_key, request
from swarm.identity.name import Role
from swarm.identity.tls import Credentials, Identity
from swarm.protocol import wire
from swarm.tracking.tags import Meaning, Tags
from swarm.tracking.trackers import Link, Trackers
from swarm.tracking.witness import SKEW, Witness
from tests.parts.harbour import Nobody
from tests.swarm.tracking.test_names import NAME, NEW, OLD

A = TypeVar("A", bound=wire.Wire)

NOW = datetime.now(UTC)
AT = NOW.timestamp()
LIFE = timedelta(hours=1)
AUTHORITY = Authority(*make_authority(NOW, LIFE))
STRANGERS = Authority(*make_authority(NOW, LIFE))
SAID = wire.Name(name=NAME, digest=NEW, media_type="type", size=5, age=0.0)


def identity(name: str, *, role: Role = Role.AGENT, by: Authority = AUTHORITY) -> Identity:
    """Somebody whose certificate *by* signed; everybody trusts AUTHORITY."""
    return Identity(Credentials(AUTHORITY.certificate, *by.issue(role, name, NOW, LIFE)))


async def word(name: str, *, role: Role = Role.AGENT, by: Authority = AUTHORITY, asked: float = AT) -> wire.Proof:
    """What it says: SAID."""
    given = await Witness(identity(name, role=role, by=by)).give(SAID, asked)
    assert given is not None
    return given


async def holds(*proofs: wire.Proof, said: wire.Name = SAID, since: float = AT - 10, now: float = AT) -> bool:
    """Whether an agent called "me" takes it."""
    return await Witness(identity("me")).holds("tracker", said, proofs, since, now)


async def test_two_agents_are_enough_and_one_is_not_but_for_itself() -> None:
    assert await holds(await word("a"), await word("b"))
    assert not await holds(await word("a"))
    assert not await holds(await word("a"), await word("a"))
    assert await holds(await word("me"))
    assert not await holds()


@pytest.mark.parametrize("changed", ["name", "digest", "media_type", "size"])
async def test_a_word_holds_for_what_was_said_and_nothing_else(changed: str) -> None:
    other = {"name": "registry.example/app:other", "digest": OLD, "media_type": "another", "size": 6}[changed]
    said = wire.Name(**{**{f: getattr(SAID, f) for f in SAID.__struct_fields__}, changed: other})
    assert not await holds(await word("a"), await word("b"), said=said)


async def test_who_is_no_agent_of_this_authority_has_no_word() -> None:
    assert not await holds(await word("a", by=STRANGERS), await word("b", by=STRANGERS))
    assert not await holds(await word("a", role=Role.TRACKER), await word("b", role=Role.TRACKER))


async def test_an_old_word_does_not_count_again() -> None:
    proofs = [await word(name, asked=AT - 100) for name in "ab"]
    assert not await holds(*proofs)
    assert await holds(*proofs, since=AT - 100)
    assert not await holds(*[await word(name, asked=AT + SKEW + 1) for name in "ab"]), "nor one from the future"


async def test_a_certificate_that_has_ended_speaks_for_nobody() -> None:
    proofs = [await word(name) for name in "ab"]
    assert not await holds(*proofs, since=0, now=AT + 2 * LIFE.total_seconds())


async def test_what_makes_no_sense_is_nobodys_word() -> None:
    right = await word("a")
    for broken in (
        wire.Proof(asked=AT, certificates=(), signature=b""),
        wire.Proof(asked=AT, certificates=(b"x",), signature=right.signature),
        wire.Proof(asked=AT, certificates=right.certificates, signature=b"x"),
        wire.Proof(asked=float("nan"), certificates=right.certificates, signature=right.signature),
    ):
        assert not await holds(right, broken)


def made(
    issuer: x509.Certificate | None, key: rsa.RSAPrivateKey, by: rsa.RSAPrivateKey, *, ca: bool
) -> x509.Certificate:
    """A certificate with an RSA key, as other authorities than ours make them."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{ca} {key.public_key().public_numbers().n % 9973}")])
    names = [x509.UniformResourceIdentifier("shoal://agent/far"), x509.DNSName("agent.shoal.internal")]
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name if issuer is None else issuer.subject)
    return (
        builder.public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - LIFE)
        .not_valid_after(NOW + LIFE)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(by, hashes.SHA256())
    )


@pytest.mark.parametrize("may_sign", [True, False])
def test_a_chain_counts_where_each_link_may_sign(may_sign: bool) -> None:
    """An intermediate authority is one; an agent that signs for others is none."""
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
    root = made(None, keys[0], keys[0], ca=True)
    middle = made(root, keys[1], keys[0], ca=may_sign)
    leaf = made(middle, keys[2], keys[1], ca=False)
    pem = [one.public_bytes(serialization.Encoding.PEM) for one in (root, middle, leaf)]
    key = keys[2].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificates, signature = words.sign(Credentials(pem[0], pem[2] + pem[1], key), b"word")
    assert words.signer(pem[0], certificates, signature, b"word", NOW) == ("agent/far" if may_sign else None)


async def test_before_a_tracker_has_signed_an_agents_word_is_nobodys() -> None:
    nobody, key = Authority(*make_authority(NOW, LIFE)), new_key()
    unsigned = Credentials(
        AUTHORITY.certificate, nobody.sign(request(key), Role.AGENT, "unsigned", NOW, LIFE), key_pem(key)
    )
    given = await Witness(Identity(unsigned)).give(SAID, AT)
    assert given is not None
    assert not await holds(given, await word("a"))


# -- an agent and a tracker that lies ------------------------------------------------------------------------


class Liar(Link):
    """A tracker that answers what the test says."""

    answer: wire.NameAnswer
    told: list[wire.Wire]

    async def ask(self, path: str, message: wire.Wire, kind: type[A], wait: float = 0.0) -> A:
        """Its answer to a lookup."""
        return cast("A", self.answer)

    async def call(
        self, path: str, message: wire.Wire, kind: type[A], wait: float = 0.0, patience: float | None = None
    ) -> A:
        """Takes everything."""
        self.told.append(message)
        return cast("A", wire.Ok())


class Asker:
    """An agent with a key, whose only tracker lies, and an upstream that the test moves."""

    def __init__(self, directory: Path, answer: wire.NameAnswer) -> None:
        self.link = Liar("tracker", None)  # type: ignore[arg-type]  # it speaks no HTTP
        self.link.answer, self.link.told = answer, []
        trackers = Trackers((), "node", Nobody())
        trackers.pick = lambda digest: self.link  # type: ignore[method-assign]
        self.asked = 0
        self.upstream: Callable[[], Meaning] = lambda: Meaning(OLD, "type", 5)
        self.names = Tags(directory / "names.json", 1000.0, trackers, lambda: AT, identity=identity("me"))

    async def ask(self) -> Meaning:
        """Upstream."""
        self.asked += 1
        return self.upstream()


async def test_a_tracker_that_makes_a_meaning_up_is_not_believed(tmp_path: Path) -> None:
    for proofs in ((), (await word("a"),), (await word("a", by=STRANGERS), await word("b", by=STRANGERS))):
        asker = Asker(tmp_path, wire.NameAnswer(known=SAID, fresh=True, proofs=proofs))
        found = await asker.names.resolve(NAME, 10.0, asker.ask)
        assert (found.meaning.digest, asker.asked) == (OLD, 1)


async def test_what_two_agents_signed_spares_upstream_the_question(tmp_path: Path) -> None:
    asker = Asker(tmp_path, wire.NameAnswer(known=SAID, fresh=True, proofs=(await word("a"), await word("b"))))
    found = await asker.names.resolve(NAME, 10.0, asker.ask)
    assert (found.meaning.digest, asker.asked) == (NEW, 0)


async def test_with_upstream_away_a_made_up_meaning_is_none(tmp_path: Path) -> None:
    def away() -> Meaning:
        raise SourceBroken("away")

    asker = Asker(tmp_path, wire.NameAnswer(known=SAID, fresh=False))
    asker.upstream = away
    with pytest.raises(SourceBroken):
        await asker.names.resolve(NAME, 10.0, asker.ask)


async def test_an_agent_that_was_chosen_asks_signs_and_tells(tmp_path: Path) -> None:
    asker = Asker(tmp_path, wire.NameAnswer())

    async def upstream(_name: str) -> Meaning:
        return Meaning(NEW, "type", 5)

    asker.names.ask_upstream = upstream
    await asker.names.chosen(asker.link, NAME)
    (told,) = asker.link.told
    assert isinstance(told, wire.NameTold)
    assert told.proof is not None
    assert told.digest == NEW
    assert await holds(told.proof, await word("b"))


@pytest.mark.parametrize(("status", "gone", "declined"), [(404, True, False), (401, False, True), (None, False, True)])
async def test_an_agent_that_may_not_ask_says_so(
    tmp_path: Path, status: int | None, gone: bool, declined: bool
) -> None:
    asker = Asker(tmp_path, wire.NameAnswer())

    async def upstream(_name: str) -> Meaning:
        raise SourceRefused("no", status=status)

    asker.names.ask_upstream = upstream
    await asker.names.chosen(asker.link, NAME)
    (told,) = asker.link.told
    assert isinstance(told, wire.NameFailed)
    assert (told.gone, told.declined) == (gone, declined)


# -- what a chosen agent asks ---------------------------------------------------------------------------------


class Asked(Upstream):
    """An upstream that says what it was asked."""

    def __init__(self, registries: Registries) -> None:
        self._known = registries
        self.seen: list[tuple[str | None, str, str]] = []

    @property
    def registries(self) -> Registries:
        """Which it asks."""
        return self._known

    async def head_manifest(self, ns: str | None, repository: str, reference: str) -> Meaning:
        """Any tag means NEW."""
        self.seen.append((ns, repository, reference))
        return Meaning(NEW, "type", 5)


async def test_a_chosen_agent_asks_where_it_would_ask_for_its_own_clients() -> None:
    upstream = Asked(Registries())
    ask = asker(upstream)
    assert (await ask("registry.example:5000/team/app:v1")).digest == NEW
    assert upstream.seen == [("registry.example:5000", "team/app", "v1")]


@pytest.mark.parametrize(
    "name", ["denied.example/app:v1", "left.example/app:v1", "", "x", "a/b", "http://a/b:c", "../../etc:passwd"]
)
async def test_a_tracker_cannot_send_a_chosen_agent_elsewhere(name: str) -> None:
    """Not past the rules of its registries, and to nothing that is no registry."""
    left = replace(Registries().registry("left.example"), tag_ttl=None)
    upstream = Asked(Registries(deny=("denied.example",), configured={"left.example": left}))
    with pytest.raises(SourceError):
        await asker(upstream)(name)
    assert upstream.seen == []
