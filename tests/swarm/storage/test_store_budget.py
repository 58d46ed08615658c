"""P8: the store never outgrows its budget and never evicts what is read, whatever the order of events."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from swarm.blob.digest import Digest, parse
from swarm.blob.errors import StoreFull
from swarm.blob.geometry import geometry
from swarm.storage.evict import Candidate, choose, cost
from swarm.storage.held import BlobHandle
from swarm.storage.sidecar import (
    HEADER,
    Stamp,
    decode_meta,
    encode_meta,
    log_header,
    log_records,
    log_removals,
    parse_log,
)
from swarm.storage.staged import Staged
from swarm.storage.store import Store
from tests.parts.data import blob, digest_of
from tests.parts.storing import hashes_of, pieces_of, taken

T = TypeVar("T")
KIB = 1024
BUDGET = 3 * KIB * KIB
BLOBS = [blob(size * KIB + size, size) for size in (0, 1, 100, 400, 900, 1500, 2500)]

digests = st.integers(0, 9).map(lambda n: parse("sha256:" + f"{n}" * 64))
candidates = st.lists(
    st.builds(Candidate, digests, st.integers(0, 20).map(float), st.integers(0, 1000), st.booleans()), max_size=12
)


@given(candidates, st.integers(0, 3000))
def test_the_choice_frees_enough_and_spares_the_needless(given_up: list[Candidate], need: int) -> None:
    plan = choose(given_up, need)
    if plan is None:
        assert sum(candidate.frees for candidate in given_up) < need
        return
    freed = sum(candidate.frees for candidate in plan)
    assert freed >= need
    assert all(freed - candidate.frees < need for candidate in plan)


@given(candidates, st.integers(1, 3000))
def test_nothing_younger_goes_unless_all_that_is_older_is_not_enough(given_up: list[Candidate], need: int) -> None:
    plan = choose(given_up, need)
    if plan:
        youngest = max(candidate.used for candidate in plan)
        older = [candidate for candidate in given_up if candidate.used < youngest]
        assert sum(candidate.frees for candidate in older) < need


def test_a_manifest_does_not_go_for_a_layer() -> None:
    digest = parse("sha256:" + "0" * 64)
    manifest, layer = Candidate(digest, 1.0, 100), Candidate(digest, 2.0, 10_000)
    assert choose([layer, manifest], 9_950) == [layer]
    assert choose([layer, manifest], 10_050) == [manifest, layer]


hashes = st.binary(min_size=20, max_size=20).filter(any)


@given(st.integers(0, 2**40), st.dictionaries(st.integers(0, 2**20), hashes, max_size=8), st.data())
def test_a_piece_log_says_what_was_written_up_to_where_it_was_torn(
    size: int, pieces: dict[int, bytes], data: st.DataObject
) -> None:
    gone = data.draw(st.sets(st.sampled_from(sorted(pieces)))) if pieces else set()
    text = log_header(size) + log_records(pieces) + log_removals(gone)
    left = {piece: sha1 for piece, sha1 in pieces.items() if piece not in gone}
    assert parse_log(text) == (size, left)
    torn = parse_log(text[: data.draw(st.integers(0, len(text)))])
    assert torn is None or torn[1].items() <= pieces.items()
    at = data.draw(st.integers(HEADER, max(HEADER, len(text) - 1)))
    flipped = parse_log(text[:at] + bytes(b ^ 1 for b in text[at : at + 1]) + text[at + 1 :])
    assert flipped is not None
    assert flipped[1].items() <= pieces.items()


@given(st.binary(max_size=200))
def test_rubbish_is_no_sidecar(data: bytes) -> None:
    assert decode_meta(data) is None
    assert parse_log(data) is None


def test_a_meta_survives_its_text() -> None:
    stamp = Stamp(5, 6, 7)
    meta = decode_meta(encode_meta(stamp, b"h" * 20))
    assert meta is not None
    assert (meta.stamp, meta.hashes) == (stamp, b"h" * 20)


class Life(RuleBasedStateMachine):
    """Stage, write, finish, read, punch, abandon and restart in any order, on a real directory."""

    staged = Bundle("staged")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.reading: list[tuple[BlobHandle, bytes]] = []
        self.coming: list[tuple[Staged, bytes]] = []
        self.lost: set[Digest] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def call(self, work: Callable[..., T], *args: Any) -> T:
        """Call *work* on the event loop."""

        async def called() -> T:
            return work(*args)

        return self.run(called())

    def clock(self) -> float:
        self.now += 1
        return self.now

    @initialize()
    def begin(self) -> None:
        self.store = Store(self.root, BUDGET, reserve_free=0, clock=self.clock)
        self.store.on_change(lambda digest, size: self.lost.add(digest) if size is None else None)
        self.run(self.store.open())

    @rule(target=staged, data=st.sampled_from(BLOBS))
    def stage(self, data: bytes) -> Any:
        digest = parse(digest_of(data))
        if any(staged.digest == digest for staged, _ in self.coming) or self.store.size_of(digest) is not None:
            return multiple()
        pinned = {held.digest for held, _ in self.reading} | {staged.digest for staged, _ in self.coming}
        try:
            staged = self.run(self.store.stage(digest, len(data)))
        except StoreFull:
            busy = {digest: len(data)}
            busy |= {held.digest: held.size for held, _ in self.reading}
            busy |= {staged.digest: staged.size for staged, _ in self.coming}
            assert sum(map(cost, busy.values())) > BUDGET, "refused although only what is in use had to stay"
            return multiple()
        assert not pinned & self.lost
        for piece, sha1 in staged.pieces.items():
            assert pieces_of(data)[piece] == sha1
        self.coming.append((staged, data))
        return staged, data

    @rule(one=staged, part=st.floats(0, 1))
    def write(self, one: tuple[Staged, bytes], part: float) -> None:
        staged, data = one
        if one in self.coming and not staged.done:
            count = int(staged.geometry.pieces * part)
            end = min(count * staged.geometry.piece_length, len(data))
            self.run(staged.write(data[:end], 0))
            self.run(staged.note({piece: sha1 for piece, sha1 in pieces_of(data).items() if piece < count}))

    @rule(one=staged, start=st.integers(0, 10), length=st.integers(1, 10))
    def punch(self, one: tuple[Staged, bytes], start: int, length: int) -> None:
        staged, _ = one
        if not staged.done or one not in self.coming:
            self.run(self.store.punch(staged.digest, start * 256 * KIB, length * 256 * KIB))

    @rule(target=held, one=consumes(staged))
    def finish(self, one: tuple[Staged, bytes]) -> Any:
        staged, data = one
        if one not in self.coming:
            return multiple()
        self.run(staged.write(data, 0))
        held = self.run(staged.finish(hashes_of(data)))
        self.call(staged.forget)
        self.coming.remove(one)
        self.reading.append((held, data))
        self.lost.discard(staged.digest)
        return held, data

    @rule(one=consumes(staged), keep=st.booleans())
    def abandon(self, one: tuple[Staged, bytes], keep: bool) -> None:
        if one in self.coming:
            self.run(one[0].abandon(keep))
            self.coming.remove(one)

    @rule(target=held, data=st.sampled_from(BLOBS))
    def read(self, data: bytes) -> Any:
        held = self.call(self.store.get, parse(digest_of(data)))
        if held is None:
            return multiple()
        self.reading.append((held, data))
        return held, data

    @rule(one=consumes(held))
    def leave(self, one: tuple[BlobHandle, bytes]) -> None:
        if one in self.reading:
            self.call(one[0].close)
            self.reading.remove(one)

    @rule()
    def restart(self) -> None:
        for held, _ in self.reading:
            self.call(held.close)
        self.reading, self.coming = [], []
        before = sorted(self.store.complete())
        self.run(self.store.close())
        self.begin()
        assert sorted(self.store.complete()) == before

    @invariant()
    def within_the_budget(self) -> None:
        assert self.store.used <= BUDGET
        self.run(self.store.emptied())
        assert taken(self.root) <= self.store.used

    @invariant()
    def what_is_read_stays(self) -> None:
        for held, data in self.reading:
            assert not held.lost
            assert self.store.size_of(held.digest) == held.size
            assert os.pread(held.fd, held.size, 0) == data

    @invariant()
    def pieces_are_in_the_file(self) -> None:
        for staged, data in self.coming:
            for piece in staged.pieces:
                offset, length = geometry(staged.size).piece_span(piece)
                assert os.pread(staged.fd, length, offset) == data[offset : offset + length]

    def teardown(self) -> None:
        for held, _ in self.reading:
            self.call(held.close)
        self.run(self.store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.root)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=5, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
