"""Content codings that a proxy put on although none was asked for (RFC 9110, 8.4): undone, or refused. Pure."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from mirror.errors import CodingInvalid

STEP = 256 * 1024
"""Bytes that one step gives at most: a kilobyte of input can stand for a megabyte."""


class Decoder(Protocol):
    """Undoes one coding, chunk by chunk."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """What *chunk* stands for, in parts of at most STEP bytes where the coding allows. Raises CodingInvalid."""

    def end(self) -> bytes:
        """What is left after the last chunk. Raises CodingInvalid if bytes are missing."""


class _Zlib:
    """gzip of one or more members, or deflate as a zlib stream or bare (RFC 9110, 8.4.1)."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._inner: Any = zlib.decompressobj(16 + zlib.MAX_WBITS if gzip else zlib.MAX_WBITS)
        self._begun = False

    def feed(self, chunk: bytes) -> list[bytes]:
        parts = []
        while chunk:
            if self._inner.eof:
                if not self._gzip or not chunk.strip(b"\0"):
                    break  # padding behind the last member
                self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)
            try:
                parts.append(self._inner.decompress(chunk, STEP))
            except zlib.error:
                if self._gzip or self._begun:
                    raise CodingInvalid("not in the coding that its header names") from None
                self._inner, self._begun = zlib.decompressobj(-zlib.MAX_WBITS), True
                continue
            self._begun = True
            chunk = self._inner.unconsumed_tail or (self._inner.unused_data if self._inner.eof else b"")
        return parts

    def end(self) -> bytes:
        if not self._inner.eof:
            raise CodingInvalid("cut short inside its coding")
        return b""


class _Library:
    """A coding of a library that need not be there; *call* takes a chunk."""

    def __init__(self, call: Callable[[bytes], bytes], complete: Callable[[], bool]) -> None:
        self._call = call
        self._complete = complete

    def feed(self, chunk: bytes) -> list[bytes]:
        try:
            return [self._call(chunk)]
        except Exception:  # noqa: BLE001  (each library has an error of its own)
            raise CodingInvalid("not in the coding that its header names") from None

    def end(self) -> bytes:
        if not self._complete():
            raise CodingInvalid("cut short inside its coding")
        return b""


def is_identity(value: str | None) -> bool:
    """Whether the Content-Encoding *value* says that there is no coding."""
    return (value or "").strip().lower() in ("", "identity")


def decoder(value: str) -> Decoder:
    """What undoes the Content-Encoding *value*. Raises CodingInvalid where that cannot be done here."""
    name = value.strip().lower()
    if name in ("gzip", "x-gzip"):
        return _Zlib(gzip=True)
    if name == "deflate":
        return _Zlib(gzip=False)
    if name == "br" and (library := _library("brotli", "brotlicffi")):
        inner = library.Decompressor()
        return _Library(getattr(inner, "process", None) or inner.decompress, inner.is_finished)
    if name == "zstd" and (library := _library("compression.zstd", "backports.zstd")):
        zstd = library.ZstdDecompressor()
        return _Library(zstd.decompress, lambda: bool(zstd.eof))
    raise CodingInvalid("a coding that cannot be undone here")


def _library(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
