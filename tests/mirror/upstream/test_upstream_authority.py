"""A registry whose certificate authority was made years ago, as many a company's was."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from mirror.upstream.registries import Tls
from tests.parts.kubecluster.pki import Authority


@pytest.mark.parametrize("key_usage", [True, False], ids=["with key usage", "without key usage"])
async def test_an_authority_that_clients_take_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key_usage: bool
) -> None:
    """Python 3.13, the image's, refuses an authority without key usage by itself; containerd takes it."""
    made = ssl.create_default_context

    def strict(*arguments: Any, **words: Any) -> ssl.SSLContext:
        context = made(*arguments, **words)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    authority = await asyncio.to_thread(lambda: Authority(tmp_path, key_usage=key_usage))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*authority.issue("registry", "registry", "127.0.0.1"))
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=serving)
    async with server:
        context = Tls(ca=(authority.certificate,)).context()
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert writer.get_extra_info("peercert")
        writer.close()
        await writer.wait_closed()
