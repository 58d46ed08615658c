"""Faults of upstream: silent, slow, refusing, lying, for a while and for good."""

from __future__ import annotations

import time

from bench.faults.case import Case, Deed
from bench.faults.scene import Scene, Shape
from bench.faults.upstream import MIB, Asked, Spoilt

THREE = Shape(agents=3, rate=8)
TWO = Shape(agents=2, rate=8)
ALONE = Shape(agents=1, rate=8)


def always(spoilt: Spoilt) -> Deed:
    """Every blob request is answered so."""

    def deed(stage: Scene) -> None:
        stage.up.mood = lambda asked: spoilt if "/blobs/" in asked.path else None

    return deed


def meanwhile(spoilt: Spoilt, start: float, stop: float) -> Deed:
    """Between *start* and *stop* seconds from now."""

    def deed(stage: Scene) -> None:
        began = time.monotonic()
        stage.up.mood = lambda asked: (
            spoilt if "/blobs/" in asked.path and start < time.monotonic() - began < stop else None
        )

    return deed


def every_third(spoilt: Spoilt) -> Deed:
    """Each third blob request."""

    def deed(stage: Scene) -> None:
        stage.up.mood = lambda asked: spoilt if "/blobs/" in asked.path and asked.number % 3 == 0 else None

    return deed


def once_sent(mib: float, spoilt: Spoilt, *, times: int = 1 << 30, seconds: float = 1e9) -> Deed:
    """From the moment on that upstream has sent so much: *times* requests, for *seconds*."""

    def deed(stage: Scene) -> None:
        left, since = [times], [0.0]

        def mood(asked: Asked) -> Spoilt | None:
            if "/blobs/" not in asked.path or sum(stage.up.sent.values()) < mib * MIB or left[0] <= 0:
                return None
            since[0] = since[0] or time.monotonic()
            left[0] -= 1
            return spoilt if time.monotonic() - since[0] < seconds else None

        stage.up.mood = mood

    return deed


def for_one(index: int, spoilt: Spoilt) -> Deed:
    """What one agent gets."""

    def deed(stage: Scene) -> None:
        ip = stage.agents[index].host.ip
        stage.up.mood = lambda asked: spoilt if asked.ip == ip and "/blobs/" in asked.path else None

    return deed


def slow_lines(rate: float) -> Deed:
    """Every connection gets so many bytes per second."""
    return always(Spoilt(rate=rate))


def branch_line(rate: float) -> Deed:
    """All connections together."""

    def deed(stage: Scene) -> None:
        stage.up.rate = rate

    return deed


def away(stage: Scene) -> None:
    """Every connection is closed unanswered."""
    stage.up.down = True


def tag_then_away(stage: Scene) -> None:
    """A tag is known, upstream is gone; see `last_known_tag`."""
    stage.up.tag("v1", [b"layer"])
    stage.agents[0].manifest("v1")
    stage.up.down = True


def last_known_tag(stage: Scene) -> list[str]:
    """The tag's last meaning is still answered."""
    answer = stage.agents[0].manifest("v1", 15)
    return [] if answer.status == 200 else [f"the tag: {answer}"]


BUSY = Spoilt(status=429, headers={"Retry-After": "3"})
KB = 1000

CASES = [
    Case("U0 429 for one node", "upstream", "one of three agents is throttled by address", for_one(2, Spoilt(status=429, headers={"Retry-After": "2"})), THREE, seconds=8, copies=1.1),
    Case("U2 429 for 3 s", "upstream", "429 with Retry-After 3 for three seconds in mid-pull", meanwhile(BUSY, 1, 4), THREE, seconds=14, copies=1.1, quick=True),
    Case("U2 429 for 6 s", "upstream", "429 without Retry-After for six seconds", meanwhile(Spoilt(status=429), 1, 7), THREE, resume=True, seconds=20, copies=1.3),
    Case("U3 dropped for 3 s", "upstream", "connections closed unanswered for three seconds", meanwhile(Spoilt(drop=True), 0.3, 3), THREE, resume=True, seconds=12, copies=1.2, quick=True),
    Case("U3 every third short", "upstream", "each third body ends early", every_third(Spoilt(short=100 * KB)), THREE, seconds=10, copies=1.3),
    Case("U4 every third 503", "upstream", "each third request is 503", every_third(Spoilt(status=503)), THREE, seconds=10, copies=1.1),
    Case("U4 every third reset", "upstream", "each third connection is closed unanswered", every_third(Spoilt(drop=True)), THREE, seconds=10, copies=1.1),
    Case("U4 every third hangs", "upstream", "each third body is silent after 50 KB", every_third(Spoilt(hang=50 * KB)), THREE, seconds=25, copies=1.6),
    Case("U5 500 for 6 s", "upstream", "500 for six seconds in mid-pull", meanwhile(Spoilt(status=500), 1, 7), THREE, resume=True, seconds=20, copies=1.3),
    Case("U6 deleted in mid-pull", "upstream", "404 from 8 MiB on, for good", once_sent(8, Spoilt(status=404)), THREE, answer="told", seconds=15, copies=None),
    Case("U6 deleted for 5 s", "upstream", "404 from 8 MiB on, for five seconds", once_sent(8, Spoilt(status=404), seconds=5), THREE, resume=True, seconds=25, copies=1.5),
    Case("U6 size changes", "upstream", "another size from 8 MiB on", once_sent(8, Spoilt(extra=1)), THREE, answer="told", seconds=15, copies=None),
    Case("U6 redirects to itself", "upstream", "a redirect loop from 8 MiB on", once_sent(8, Spoilt(status=307, headers={"Location": "/v2/loop"})), THREE, answer="told", seconds=15, copies=None),
    Case("U7 corrupt once", "upstream", "one body has wrong bytes", once_sent(6, Spoilt(flip=5000), times=1), THREE, resume=True, seconds=20, copies=2.1),
    Case("U8 corrupt for one node, resumed", "upstream", "what one of four brings in is wrong; its client resumes", for_one(1, Spoilt(flip=5000)), Shape(agents=4, rate=16), 16, resume=True, seconds=25, copies=3.1),
    Case("U9 rotten for good", "upstream", "every body has wrong bytes", always(Spoilt(flip=1000)), TWO, 6, answer="told", seconds=20, copies=None),
    Case("U10 silent after headers, alone", "upstream", "headers and then nothing, one agent", always(Spoilt(hang=0)), ALONE, answer="told", seconds=13, copies=None),
    Case("U10 silent after headers, three", "upstream", "the same, three agents", always(Spoilt(hang=0)), THREE, answer="told", seconds=13, copies=None),
    Case("U11 headers byte by byte", "upstream", "headers at one byte per second", always(Spoilt(header_rate=1)), ALONE, answer="told", seconds=13, copies=None),
    Case("U12 silent after 300 KB", "upstream", "each body is silent after 300 KB", always(Spoilt(hang=300 * KB)), ALONE, 8, answer="told", seconds=60, copies=None),
    Case("U12 silence in mid-body, one node of two", "upstream", "the same for one of two agents", for_one(0, Spoilt(hang=300 * KB)), TWO, 16, seconds=15, copies=1.5),
    Case("U13 10 KB/s, two", "upstream", "10 KB/s per connection, 400 KB, two agents (direct 40 s)", slow_lines(10 * KB), TWO, 0.39, seconds=46, copies=1.3),
    Case("U13 30 KB/s, three", "upstream", "30 KB/s per connection, 600 KB, three agents (direct 20 s)", slow_lines(30 * KB), THREE, 0.57, seconds=24, copies=1.3),
    Case("U14 branch line of 700 KB/s", "upstream", "700 KB/s in all, 16 MiB, three agents (direct 24 s)", branch_line(700 * KB), THREE, 16, seconds=29, copies=1.1),
    Case("U14 branch line of 300 KB/s", "upstream", "300 KB/s in all, 6 MiB, three agents (direct 21 s)", branch_line(300 * KB), THREE, 6, seconds=26, copies=1.1),
    Case("U15 reset after 100 KB", "upstream", "each connection is reset after 100 KB", always(Spoilt(cut=100 * KB)), ALONE, 8, resume=True, seconds=20, copies=1.3),
    Case("U15 reset after 300 KB", "upstream", "the same after 300 KB, three agents", always(Spoilt(cut=300 * KB)), THREE, 12, resume=True, seconds=20, copies=1.3),
    Case("U16 ranges ignored", "upstream", "upstream never sees Range", always(Spoilt(no_range=True)), THREE, 12, seconds=15, copies=2.1),
    Case("U16 first byte after 6 s", "upstream", "every answer begins after six seconds", always(Spoilt(delay=6)), THREE, 8, seconds=20, copies=1.1),
    Case("U17 login page", "upstream", "everything is a page, 200", always(Spoilt(status=200, headers={"Content-Type": "text/html"}, body=b"<html>log in</html>")), TWO, 6, answer="told", seconds=15, copies=None),
    Case("U19 upstream gone, held elsewhere", "upstream", "no answer at all; a peer has the blob, a tag is known", tag_then_away, THREE, 16, holders=[0], seconds=5, copies=0.0, more=last_known_tag, quick=True),
    Case("U19 upstream gone, nobody has it", "upstream", "no answer at all, nobody has the blob", away, THREE, 8, answer="refused", seconds=5, copies=0.0, quick=True),
]  # fmt: skip
