"""Identity by key: who is let in, by whom, and what happens to open connections when certificates are renewed."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from swarm.blob.errors import IdentityError
from swarm.identity import files
from swarm.identity.authority import Authority, expiry, key_pem, make_authority, new_key, request
from swarm.identity.files import IdentityFiles
from swarm.identity.name import Role, from_uri, identity, name_of, role_of, uri
from swarm.identity.tls import Credentials, Identity, peer_name

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def authority() -> Authority:
    return Authority(*make_authority(NOW, 24 * HOUR))


def of(ca: Authority, role: Role = Role.AGENT, name: str = "node-1", life: timedelta = HOUR) -> Identity:
    certificate, key = ca.issue(role, name, NOW, life)
    return Identity(Credentials(ca.certificate, certificate, key))


Told = tuple[str, str]


@asynccontextmanager
async def listening(server: Identity, *, strangers: bool = False) -> AsyncIterator[tuple[int, asyncio.Queue[Told]]]:
    """A listener that says what it read and from whom, and sends it back."""
    heard: asyncio.Queue[Told] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            who = peer_name(writer.get_extra_info("ssl_object"))
        except IdentityError:
            who = "stranger"
        while line := await reader.readline():
            heard.put_nowait((who, line.decode().strip()))
            writer.write(line)
        writer.close()

    context = server.server_context(strangers=strangers)
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1], heard


async def say(port: int, context: ssl.SSLContext | None, role: Role = Role.AGENT, word: str = "hello") -> str:
    """One line said and heard back on a connection of its own; raises what TLS raises."""
    host = role.host if context is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    try:
        writer.write(word.encode() + b"\n")
        back = await reader.readline()  # TLS 1.3: that the server refused is heard with the first read
        if not back:
            raise ConnectionResetError("closed")
        return peer_name(writer.get_extra_info("ssl_object")) if context is not None else "plain"
    finally:
        writer.close()


async def test_both_ends_know_each_other_by_name() -> None:
    ca = authority()
    async with listening(of(ca, name="node-1")) as (port, heard):
        assert await say(port, of(ca, name="node-2").client_context()) == "agent/node-1"
        assert await heard.get() == ("agent/node-2", "hello")


def stranger(kind: str, ca: Authority) -> ssl.SSLContext | None:
    """What a stranger dials with."""
    if kind == "plain":
        return None
    if kind == "another authority":
        return of(authority()).client_context()
    if kind == "a certificate that ended":
        certificate, key = ca.issue(Role.AGENT, "old", NOW - 3 * HOUR, HOUR)
        return Identity(Credentials(ca.certificate, certificate, key)).client_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if kind == "a web certificate":
        trustme.CA().issue_cert(Role.AGENT.host).configure_cert(context)
    return context


@pytest.mark.parametrize(
    "kind", ["plain", "no certificate", "another authority", "a certificate that ended", "a web certificate"]
)
async def test_a_stranger_gets_no_byte(kind: str) -> None:
    ca = authority()
    async with listening(of(ca)) as (port, heard):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await say(port, stranger(kind, ca))
        assert heard.empty()


async def test_who_dials_a_tracker_does_not_take_an_agent_for_it() -> None:
    ca = authority()
    async with listening(of(ca, Role.AGENT)) as (port, heard):
        with pytest.raises(ssl.SSLCertVerificationError):
            await say(port, of(ca).client_context(), Role.TRACKER)
        assert heard.empty()
    async with listening(of(ca, Role.TRACKER, "t")) as (port, heard):
        assert await say(port, of(ca).client_context(), Role.TRACKER) == "tracker/t"


async def test_a_listener_for_strangers_says_that_they_have_no_name() -> None:
    ca = authority()
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(cadata=ca.certificate.decode())
    async with listening(of(ca, Role.TRACKER, "t"), strangers=True) as (port, heard):
        assert await say(port, bare, Role.TRACKER) == "tracker/t"
        assert await heard.get() == ("stranger", "hello")
        assert await say(port, of(ca, name="node-9").client_context(), Role.TRACKER) == "tracker/t"
        assert await heard.get() == ("agent/node-9", "hello")


async def test_a_renewed_certificate_is_shown_to_new_connections_and_open_ones_go_on() -> None:
    ca = authority()
    server = of(ca, name="before")
    client = of(ca, name="node-2")
    async with listening(server) as (port, _):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client.client_context(), server_hostname=Role.AGENT.host
        )
        certificate, key = ca.issue(Role.AGENT, "after", NOW, HOUR)
        server.renew(Credentials(ca.certificate, certificate, key))
        assert await say(port, client.client_context()) == "agent/after"
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        assert peer_name(writer.get_extra_info("ssl_object")) == "agent/before"
        writer.close()


async def test_a_new_authority_is_trusted_beside_the_old_one() -> None:
    old, new = authority(), authority()
    server, client = of(old, name="a"), of(old, name="b")
    certificate, key = new.issue(Role.AGENT, "b", NOW, HOUR)
    async with listening(server) as (port, _):
        client.renew(Credentials(new.certificate + old.certificate, certificate, key))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await say(port, client.client_context())
        server.renew(Credentials(old.certificate + new.certificate, *reversed_pair(server)))
        assert await say(port, client.client_context()) == "agent/a"


def reversed_pair(of_: Identity) -> tuple[bytes, bytes]:
    return of_.credentials.certificate, of_.credentials.key


async def test_what_cannot_be_used_leaves_the_old_in_use() -> None:
    ca = authority()
    server = of(ca, name="good")
    certificate, _ = ca.issue(Role.AGENT, "bad", NOW, HOUR)
    _, other = ca.issue(Role.AGENT, "other", NOW, HOUR)
    for bad in (
        Credentials(ca.certificate, certificate, other),
        Credentials(ca.certificate, certificate, b""),
        Credentials(ca.certificate, b"nonsense", other),
    ):
        with pytest.raises(IdentityError, match="cannot be used") as told:
            server.renew(bad)
        assert "PRIVATE" not in str(told.value)
    async with listening(server) as (port, _):
        assert await say(port, of(ca).client_context()) == "agent/good"


def write(directory: Path, credentials: Credentials) -> tuple[Path, Path, Path]:
    paths = (directory / "ca.crt", directory / "tls.crt", directory / "tls.key")
    for path, text in zip(paths, (credentials.authority, credentials.certificate, credentials.key), strict=True):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.rename(path)
    return paths


async def test_files_are_read_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "LOOK", 0.0)
    caplog.set_level(logging.INFO, "shoal.identity")
    ca = authority()
    paths = write(tmp_path, of(ca, name="before").credentials)
    server = IdentityFiles(*paths).identity
    client = of(ca, name="c").client_context()
    async with listening(server) as (port, _):
        assert await say(port, client) == "agent/before"
        write(tmp_path, of(ca, name="after").credentials)
        await say(port, client)  # the handshake during which the change is seen may show either
        assert await say(port, client) == "agent/after"
        paths[2].write_bytes(b"half a file")
        await say(port, client)
        assert await say(port, client) == "agent/after"
    told = [record.message for record in caplog.records]
    assert told == ["identity-renewed", "identity-not-renewed"]
    with pytest.raises(IdentityError, match=r"none: No such file"):
        IdentityFiles(tmp_path / "none", paths[1], paths[2])


def test_the_key_of_the_process_is_in_no_file_and_in_no_text() -> None:
    ca = authority()
    one = of(ca)
    secret = one.credentials.key.decode().splitlines()[2]
    assert secret not in repr(one.credentials)
    gc.collect()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    targets = [str(link.readlink()) for link in links if link.is_symlink()]
    assert not [target for target in targets if target.startswith("/memfd:shoal")]


def test_only_the_key_is_taken_from_a_request() -> None:
    ca = authority()
    key = new_key()
    made = ca.sign(request(key), Role.AGENT, "pod-1", NOW, HOUR)
    assert expiry(made) <= NOW + HOUR
    assert Identity(Credentials(ca.certificate, made, key_pem(key))).client_context() is not None
    for bad in (b"", b"x" * 20_000, request(key).replace(b"M", b"N", 3)):
        with pytest.raises(IdentityError):
            ca.sign(bad, Role.AGENT, "pod-1", NOW, HOUR)


def test_a_certificate_does_not_outlive_its_authority() -> None:
    ca = Authority(*make_authority(NOW, HOUR))
    certificate, _ = ca.issue(Role.AGENT, "a", NOW, 100 * HOUR)
    assert expiry(certificate) <= NOW + HOUR


def test_an_authority_needs_its_own_key() -> None:
    one, other = make_authority(NOW, HOUR), make_authority(NOW, HOUR)
    with pytest.raises(IdentityError):
        Authority(one[0], other[1])
    with pytest.raises(IdentityError):
        Authority(b"", one[1])


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "\n", "x" * 300, "ü"])
def test_what_is_no_name_gets_no_certificate(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        uri(Role.AGENT, name)


def test_a_name_comes_back_from_its_uri() -> None:
    assert from_uri(uri(Role.AGENT, "node-1.example")) == "agent/node-1.example"
    assert from_uri("shoal://somebody/x") is None
    assert from_uri("spiffe://cluster/ns/x") is None
    known = identity(Role.TRACKER, "t-0")
    assert (role_of(known), name_of(known)) == (Role.TRACKER, "t-0")


async def test_an_authority_of_another_make_is_taken_as_it_is() -> None:
    """RSA, and a key identifier of its own: as Helm's genCA and cert-manager make them."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "made elsewhere")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(b"an identifier of its own"), critical=False)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    ca = Authority(made.public_bytes(Encoding.PEM), secret)
    async with listening(of(ca, name="a")) as (port, _):
        assert await say(port, of(ca, name="b").client_context()) == "agent/a"
