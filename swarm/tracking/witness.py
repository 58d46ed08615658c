"""Signed words about tags: what this agent says, and whether what a tracker passes on was said by agents."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from types import ModuleType

from swarm.base.seldom import Seldom
from swarm.blob.errors import IdentityError
from swarm.identity.tls import Identity
from swarm.protocol import wire

log = logging.getLogger("shoal.swarm")

AGREE = 2
"""Agents that must have said the same, each with a name of its own. One's own word is enough for oneself."""

SKEW = 10.0
"""Seconds by which clocks of agents may differ, and for which an answer may be on its way. Where they differ by more,
agents do not take each other's word and ask upstream themselves."""


class Witness:
    """See the module. On the event loop; a word costs a tenth of a millisecond to sign, and two to check."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._seldom = Seldom()

    async def give(self, said: wire.Name, asked: float) -> wire.Proof | None:
        """The signature of this agent under *said*, for which it asked upstream *asked* seconds after 1970."""
        words = await _words()
        try:
            certificates, signature = words.sign(self._identity.credentials, _word(words, said, asked))
        except IdentityError:
            return None
        return wire.Proof(asked=asked, certificates=certificates, signature=signature)

    async def holds(
        self, tracker: str, said: wire.Name, proofs: Iterable[wire.Proof], since: float, now: float
    ) -> bool:
        """Whether AGREE agents, or this one, said *said* no earlier than *since*. *tracker*: who passes it on."""
        words = await _words()
        shown, at = self._identity.credentials, datetime.fromtimestamp(now, UTC)
        signers = set()
        for proof in proofs:
            if since - SKEW <= proof.asked <= now + SKEW:
                word = _word(words, said, proof.asked)
                signers.add(words.signer(shown.authority, proof.certificates, proof.signature, word, at))
        signers.discard(None)
        if len(signers) >= AGREE or words.own_name(shown) in signers:
            return True
        if (before := self._seldom.due(tracker, now)) is not None:
            fields = {"tracker": tracker, "name": said.name, "signed_by": len(signers), "held_back": before}
            log.warning("tag-unproven", extra={"fields": fields})
        return False


def _word(words: ModuleType, said: wire.Name, asked: float) -> bytes:
    word: bytes = words.tag_word(said.name, said.digest, said.media_type, said.size, asked)
    return word


async def _words() -> ModuleType:
    """swarm.identity.words: 15 MiB that only agents with keys need, and a tenth of a second."""
    return await asyncio.to_thread(importlib.import_module, "swarm.identity.words")
