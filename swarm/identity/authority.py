"""Make keys, requests and certificates (X.509, RFC 5280; P-256). Who may have one is decided elsewhere."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarm.blob.errors import IdentityError
from swarm.identity.name import Role, uri

SKEW = timedelta(minutes=5)
"""A certificate counts from this long before it was made: clocks of nodes differ."""

MOST_REQUEST = 16 * 1024
"""Bytes of the largest certificate request that is looked at; one of ours has 400."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key. P-256: the fastest curve that every TLS library has."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """*key* as PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request (PKCS #10) that proves possession of *key*; who asks is proved otherwise."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def make_authority(now: datetime, lifetime: timedelta) -> tuple[bytes, bytes]:
    """A new authority: (certificate, key) as PEM."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Shoal authority")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM), key_pem(key)


class Authority:
    """What signs certificates. Holds the key in memory only."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        """PEM of both. Raises IdentityError."""
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
            loaded = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise IdentityError("the authority's certificate or key cannot be read") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise IdentityError("the authority's key is neither an elliptic curve's nor RSA")
        if loaded.public_key() != self._certificate.public_key():
            raise IdentityError("the authority's key is not the one of its certificate")
        self._key = loaded
        self.certificate = certificate
        """PEM: what everybody trusts."""

    def sign(self, asked: bytes, role: Role, name: str, now: datetime, lifetime: timedelta) -> bytes:
        """The certificate (PEM) of *name* for the key in the request *asked*. Raises IdentityError, ValueError.

        Only the key is taken from the request: names and rights are what the caller proved.
        """
        if len(asked) > MOST_REQUEST:
            raise IdentityError("the certificate request is too long")
        try:
            wanted = x509.load_pem_x509_csr(asked)
            public = wanted.public_key()
            right = wanted.is_signature_valid
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            raise IdentityError("the certificate request cannot be read") from None
        if not right or not isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise IdentityError("the certificate request is not signed by its own key")
        return self._made(public, role, name, now, lifetime)

    def issue(self, role: Role, name: str, now: datetime, lifetime: timedelta) -> tuple[bytes, bytes]:
        """A new key and its certificate: (certificate, key) as PEM. Raises ValueError if *name* is none."""
        key = new_key()
        return self._made(key.public_key(), role, name, now, lifetime), key_pem(key)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """As the authority's own certificate spells it: others than this file make it by another hash."""
        try:
            own = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)

    def _made(
        self,
        public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        role: Role,
        name: str,
        now: datetime,
        life: timedelta,
    ) -> bytes:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri(role, name)), x509.DNSName(role.host)]
        if role is Role.AGENT:
            names.append(x509.DNSName("*"))  # libtorrent asks for the torrent's name or this (SSL torrents)
        end = min(now + life, self._certificate.not_valid_after_utc.astimezone(now.tzinfo))
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"shoal {role.value}")]))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


def expiry(certificate: bytes) -> datetime:
    """When the first certificate of a PEM text ends (UTC). Raises IdentityError."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError:
        raise IdentityError("the certificate cannot be read") from None


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
