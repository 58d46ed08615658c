"""A report says how fast its machine was, and has all of its pictures."""

from __future__ import annotations

from pathlib import Path

from bench.phases import Row
from bench.pulls import Measured, Pulled
from bench.report import facts, save


def test_a_report_says_how_fast_the_machine_was(tmp_path: Path) -> None:
    speed = facts({}, [], tmp_path)["machine"]["speed"]
    assert set(speed) == {"python_loops_per_second", "sha1_mib_per_second", "new_file_mib_per_second"}
    assert min(speed.values()) > 0
    assert not list(tmp_path.iterdir())


def test_images_whose_size_has_a_dot_have_pictures_of_their_own(tmp_path: Path) -> None:
    pulled = Pulled("n0", 0.0, 1.0, 0.1, 100, [(0.0, 0), (1.0, 100)], 0, 0, [], 0.0, "")
    links = [(float(second), {"n0": (second, second)}) for second in range(3)]
    upstream = {"bytes": 100, "blob_requests": 1, "connections": 1}
    measured = Measured([pulled], upstream, {}, {}, links, 0.0, 0.1, 0.1)
    images = [f"95.3674 MiB, {layers} layers" for layers in (1, 4)]
    save([Row("direct", "cold", image, 100, 1.0, measured, 1) for image in images], tmp_path, {})
    kinds = [f"{kind}.{ending}" for kind in ("completion", "links") for ending in ("png", "svg")]
    names = {f"cold-95.3674-MiB-{layers}-layers-{kind}" for layers in (1, 4) for kind in kinds}
    assert {path.name for path in tmp_path.iterdir()} == names | {"results.json"}
