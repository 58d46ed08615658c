"""Certificates and kubeconfigs of a cluster: one authority, one pair of files for each part.

The authority's certificate has no key usage, as on clusters that were made years ago. What a strict TLS context
makes of that is one of the things a real cluster has to show.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = dt.timedelta(days=7)
"""How long the certificates are good: a cluster of a test does not live as long."""


class Authority:
    """The cluster's certificate authority; its files are all in *directory*."""

    def __init__(self, directory: Path, *, key_usage: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        made = self._draft(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        if key_usage:
            made = made.add_extension(_usage(signs=True), critical=True)
        self._write("ca", self._key, made.sign(self._key, hashes.SHA256()))
        service = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._write("sa", service, None)
        (directory / "sa.pub").write_bytes(
            service.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    @property
    def certificate(self) -> Path:
        """The authority's own certificate, PEM."""
        return self.directory / "ca.crt"

    def issue(self, name: str, common_name: str, *hosts: str, organization: str = "") -> tuple[Path, Path]:
        """(certificate, key) for a server at *hosts* (names or addresses), a client, or both."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organization:
            subject.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        made = self._draft(x509.Name(subject), key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(_usage(signs=False), critical=True)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = made.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = made.add_extension(issuer, critical=False)
        if hosts:
            names = x509.SubjectAlternativeName([_general(host) for host in hosts])
            made = made.add_extension(names, critical=False)
        return self._write(name, key, made.sign(self._key, hashes.SHA256()))

    def kubeconfig(self, name: str, server: str, common_name: str, *, organization: str = "") -> Path:
        """A kubeconfig file with a client certificate of its own."""
        certificate, key = self.issue(name, common_name, organization=organization)
        user = {"client-certificate": str(certificate), "client-key": str(key)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": name}}],
            "clusters": [
                {"name": "here", "cluster": {"server": server, "certificate-authority": str(self.certificate)}}
            ],
            "users": [{"name": name, "user": user}],
        }
        file = self.directory / f"{name}.kubeconfig"
        file.write_text(yaml.safe_dump(document))
        return file

    def _draft(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, certificate: x509.Certificate | None
    ) -> tuple[Path, Path]:
        private = self.directory / f"{name}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        private.chmod(0o600)
        public = self.directory / f"{name}.crt"
        if certificate is not None:
            public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return public, private


def _general(host: str) -> x509.GeneralName:
    """A subject's alternative name: an address if it is one."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    """What a key is for: signing certificates, or speaking TLS."""
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
