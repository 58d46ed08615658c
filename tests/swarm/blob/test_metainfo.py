"""Torrents are functions of the bytes: every node arrives at the same info-hash."""

from __future__ import annotations

import hashlib

import bencodepy
import pytest

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import BadHashes, DigestInvalid
from swarm.blob.geometry import geometry
from swarm.blob.metainfo import FILLER, info_hash, sealed_info, torrent_file, window_info

DIGEST = parse("sha256:" + "ab" * 32)
CUT = geometry(5 * 1024**2)
HASHES = b"".join(hashlib.sha1(bytes([n])).digest() for n in range(CUT.pieces))


def test_the_sealed_info_says_what_the_design_says() -> None:
    info = bencodepy.decode(sealed_info(DIGEST, CUT, HASHES))
    assert info[b"name"] == DIGEST.encode()
    assert info[b"length"] == CUT.size
    assert info[b"private"] == 1
    assert info[b"pieces"] == HASHES
    assert info[b"piece length"] == CUT.piece_length


def test_a_window_names_the_whole_file_and_fills_the_rest() -> None:
    window = CUT.windows[2]
    part = HASHES[20 * window.first_piece : 20 * (window.last_piece + 1)]
    info = bencodepy.decode(window_info(DIGEST, CUT, window, part))
    assert info[b"length"] == CUT.size
    assert info[b"pieces"][: 20 * window.first_piece] == FILLER * window.first_piece
    assert info[b"pieces"][20 * window.first_piece : 20 * (window.last_piece + 1)] == part
    assert info[b"pieces"].endswith(FILLER * (CUT.pieces - window.last_piece - 1))


def test_other_hashes_are_another_torrent() -> None:
    window = CUT.windows[0]
    part = HASHES[: 20 * window.pieces]
    other = HASHES[20 : 20 * (window.pieces + 1)]
    assert info_hash(window_info(DIGEST, CUT, window, part)) != info_hash(window_info(DIGEST, CUT, window, other))


@pytest.mark.parametrize("hashes", [b"", HASHES[:-1], HASHES + bytes(20), FILLER + HASHES[20:]])
def test_hashes_that_cannot_be_right_are_refused(hashes: bytes) -> None:
    with pytest.raises(BadHashes):
        sealed_info(DIGEST, CUT, hashes)


def test_an_empty_blob_has_no_torrent() -> None:
    with pytest.raises(BadHashes):
        sealed_info(DIGEST, geometry(0), b"")


def test_the_torrent_file_carries_its_trackers() -> None:
    info = sealed_info(DIGEST, CUT, HASHES)
    torrent = bencodepy.decode(torrent_file(info, ["http://a/announce", "http://b/announce"]))
    assert torrent[b"announce"] == b"http://a/announce"
    assert torrent[b"announce-list"] == [[b"http://a/announce"], [b"http://b/announce"]]
    assert bencodepy.encode(torrent[b"info"]) == info


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "AB" * 32, "sha512:" + "ab" * 64, "sha256:" + "ab" * 31 + "\n"]
)
def test_what_is_no_sha256_digest(text: str) -> None:
    with pytest.raises(DigestInvalid):
        parse(text)
    assert Digest(text) == text
