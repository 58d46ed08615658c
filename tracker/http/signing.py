"""Sign the certificates of agents in a cluster: a pod's own token in, a certificate of its name out.

The API server says whose token it is (TokenReview), discovery says whether that pod is a member, and the
authority signs for the pod's UID. A token that cannot be a member's never reaches the API server.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec

from swarm.blob.errors import IdentityError
from swarm.identity.authority import Authority
from swarm.identity.issued import LIFE, Asked, Signed
from swarm.identity.name import Role
from tracker.errors import Malformed, NotAMember, Unready

log = logging.getLogger("shoal.tracker")

AUDIENCE = "shoal-tracker"
"""What a token must be made for: one that was made for the API server is of no use here, nor ours there."""

AT_ONCE = 16
"""Tokens under review at once; whoever comes beside them asks again a moment later."""

Review = Callable[[str, str], Awaitable[str]]
"""Token, audience -> UID of the pod that the token is bound to; "": it is nobody's. Raises Unready."""


class _Bound(msgspec.Struct, frozen=True):
    uid: str = ""


class _Where(msgspec.Struct, frozen=True):
    pod: _Bound = _Bound()


class _Payload(msgspec.Struct, frozen=True):
    """What a service account token says of itself (kubernetes.io, "Managing Service Accounts")."""

    where: _Where = msgspec.field(name="kubernetes.io", default=_Where())


class Signing:
    """`answer` is the verb `certificate`. *named*: addresses of the member with that UID (Discovery.named)."""

    def __init__(self, authority: Authority, review: Review, named: Callable[[str], tuple[str, ...] | None]) -> None:
        self._authority = authority
        self._review = review
        self._named = named
        self._under_way = 0

    async def answer(self, body: bytes) -> bytes:
        """Asked -> Signed. Raises Malformed, NotAMember, Unready."""
        try:
            asked = msgspec.json.decode(body, type=Asked)
        except msgspec.MsgspecError as error:
            raise Malformed(str(error)) from None
        uid = stated_pod(asked.token)
        if not uid or not self._named(uid):
            raise NotAMember("the token is of no pod that is a member")
        if self._under_way >= AT_ONCE:
            raise Unready("many certificates are being signed")
        self._under_way += 1
        try:
            proven = await self._review(asked.token, AUDIENCE)
        finally:
            self._under_way -= 1
        if proven != uid or not self._named(uid):
            raise NotAMember("the API server does not know the token as that of a member's pod")
        try:
            made = await asyncio.to_thread(
                self._authority.sign, asked.request.encode(), Role.AGENT, uid, datetime.now(UTC), LIFE
            )
        except (IdentityError, ValueError) as error:
            raise Malformed(str(error)) from None
        log.info("agent.signed", extra={"fields": {"pod": uid}})
        return msgspec.json.encode(Signed(made.decode()))


def stated_pod(token: str) -> str:
    """The pod's UID that a token states, unproven; "": it states none."""
    if len(token) > 16 * 1024 or token.count(".") != 2:
        return ""
    part = token.split(".")[1]
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=_Payload).where.pod.uid
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        return ""
