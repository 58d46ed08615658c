"""Words that an agent signs with the key of its certificate, so that who passes them on cannot make them up.

The one word so far is what a tag means. A tracker gathers such words and hands them on; whoever is told checks that
agents said it whose certificates the authority signed. Loads `cryptography`: import it only where there is an identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from swarm.blob.errors import IdentityError
from swarm.identity.name import Role, from_uri, role_of
from swarm.identity.tls import Credentials

MOST_CERTIFICATES = 4
"""An agent's own and what stands between it and the authority."""


def tag_word(name: str, digest: str, media_type: str, size: int, asked: float) -> bytes:
    """The bytes that are signed: upstream, asked *asked* seconds after 1970, said that *name* means this manifest."""
    return b"shoal tag 1\n" + msgspec.json.encode([name, digest, media_type, size, asked])


def sign(credentials: Credentials, word: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """(certificates in DER, the agent's first; signature) of *word*. Raises IdentityError."""
    try:
        shown = x509.load_pem_x509_certificates(credentials.certificate)[:MOST_CERTIFICATES]
        key = serialization.load_pem_private_key(credentials.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError("the certificate or its key cannot be read") from None
    certificates = tuple(one.public_bytes(serialization.Encoding.DER) for one in shown)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return certificates, key.sign(word, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return certificates, key.sign(word, padding.PKCS1v15(), hashes.SHA256())
    raise IdentityError("the key is neither an elliptic curve's nor RSA")


def signer(authority: bytes, certificates: Sequence[bytes], signature: bytes, word: bytes, now: datetime) -> str | None:
    """`agent/<name>` that signed *word*; None: nobody that *authority* (PEM) vouches for at time *now*."""
    try:
        chain = [x509.load_der_x509_certificate(one) for one in certificates[:MOST_CERTIFICATES]]
        trusted = x509.load_pem_x509_certificates(authority)
        if not chain or not _vouched(chain, trusted, now.astimezone(UTC)):
            return None
        public = chain[0].public_key()
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, word, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, word, padding.PKCS1v15(), hashes.SHA256())
        else:
            return None
        return _agent(chain[0])
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return None


def own_name(credentials: Credentials) -> str | None:
    """`agent/<name>` in one's own certificate; None: there is none yet."""
    with contextlib.suppress(ValueError, x509.ExtensionNotFound):
        return _agent(x509.load_pem_x509_certificate(credentials.certificate))
    return None


def _vouched(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate], now: datetime) -> bool:
    """Whether the first of *chain* leads to one of *trusted*, each signed by the next, all of them valid at *now*."""
    for index, one in enumerate(chain):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            return False
        if index and not _may_sign(one):
            return False
        if any(_signed(one, by) and by.not_valid_before_utc <= now <= by.not_valid_after_utc for by in trusted):
            return True
        if index + 1 >= len(chain) or not _signed(one, chain[index + 1]):
            return False
    return False


def _signed(one: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _may_sign(one: x509.Certificate) -> bool:
    try:
        return one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _agent(certificate: x509.Certificate) -> str | None:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if (known := from_uri(uri)) is not None:
            return known if role_of(known) is Role.AGENT else None
    return None
