"""Which bytes a reader of ranges may be given, before and after somebody has seen the sha256."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.fetch.proof import Proof, origin_of, suffices

REAL, OTHER = origin_of("registry.example"), origin_of("https://bucket.example/sha256:00")

word = st.sampled_from(["", REAL, OTHER])
state = st.fixed_dictionaries(
    {
        "mine": word,
        "had": st.sampled_from([None, "upstream", "peer", "disk"]),
        "told": st.one_of(st.none(), word),
        "sealed": st.booleans(),
        "vouched": st.just(False),
    }
)


@pytest.mark.parametrize(
    ("had", "told", "mine", "given_by_origin", "given_strictly"),
    [
        (None, None, REAL, True, True),  # nobody has it: somebody is to ask upstream
        (None, REAL, REAL, True, False),  # another has it, of the same place
        (None, OTHER, REAL, False, False),
        (None, "", REAL, False, False),
        ("upstream", None, REAL, True, True),  # this node asked the reader's place
        ("upstream", OTHER, REAL, True, True),
        ("upstream", None, OTHER, False, False),
        ("upstream", None, "", False, False),
        ("disk", None, REAL, True, False),  # a former process may have had it from a peer
        ("disk", None, OTHER, False, False),
        ("peer", REAL, REAL, True, False),
        ("peer", REAL, "", True, False),
        ("peer", OTHER, REAL, False, False),
        ("peer", None, REAL, False, False),  # the board has other hashes by now, or none
    ],
)
def test_before_the_sha256_was_seen_only_bytes_of_the_readers_own_origin_are_given(
    had: str | None, told: str | None, mine: str, given_by_origin: bool, given_strictly: bool
) -> None:
    for proof, expected in ((Proof.ORIGIN, given_by_origin), (Proof.OWN, given_strictly), (Proof.NONE, True)):
        assert suffices(proof, REAL, mine=mine, had=had, told=told, sealed=False, vouched=False) is expected


@given(state)
def test_what_is_strict_enough_is_enough_and_a_whole_reader_is_told_by_its_sha256(now: dict[str, object]) -> None:
    loose, strict = (suffices(proof, REAL, **now) for proof in (Proof.ORIGIN, Proof.OWN))  # type: ignore[arg-type]
    assert loose or not strict
    assert suffices(Proof.NONE, REAL, **now)  # type: ignore[arg-type]


def test_a_seal_proves_what_the_board_says_and_nothing_else() -> None:
    def given(proof: Proof, told: str | None, *, vouched: bool) -> bool:
        return suffices(proof, REAL, mine=OTHER, had="upstream", told=told, sealed=True, vouched=vouched)

    assert given(Proof.ORIGIN, "", vouched=False)
    assert not given(Proof.OWN, "", vouched=False)
    assert given(Proof.OWN, "", vouched=True)
    assert not given(Proof.ORIGIN, None, vouched=True)


def test_an_origin_shows_nothing_of_its_place() -> None:
    assert re.fullmatch("[0-9a-f]{40}", REAL)
    assert len({origin_of(place) for place in ("a", "b", "https://a/", "https://a")}) == 4
