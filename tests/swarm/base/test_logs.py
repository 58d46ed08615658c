"""Log lines: one line each, with fields, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from aiohttp.http_exceptions import BadStatusLine
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.logs import Formatter, configure, redact, redact_fields

SECRET = "s3cr3tV4lue0123"  # what no line may hold

LEAKS = [
    f"Authorization: Bearer {SECRET}",
    f"authorization=Basic {SECRET}==",
    f"{{'Authorization': 'Bearer {SECRET}', 'Accept': '*/*'}}",
    f'<CIMultiDictProxy("Proxy-Authorization": "Basic {SECRET}")>',
    f"Bearer {SECRET} was refused",
    f"GET https://user:{SECRET}@registry.example/v2/",
    f"https://{SECRET}@registry.example/v2/",
    f"https://blob.example/x?sv=2024-01-01&sig={SECRET}%3D&se=2030",
    f"https://s3.example/x?X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://gcs.example/x?X-Goog-Signature={SECRET}",
    f"/blobs/https://acr.example/x?d=sha256:00&s={SECRET}",
    f"https://host/x?{SECRET}",
    f'{{"access_token":"{SECRET}","expires_in":60}}',
    f'{{"token": "{SECRET}"}}',
    f"refresh_token={SECRET}&grant_type=x",
    f"identitytoken: {SECRET}",
    f"registry-token = {SECRET}",
    f"password={SECRET}",
    f'"auth": "{SECRET}"',
    f"client_secret='{SECRET} and more {SECRET}'",
    f"Set-Cookie: session={SECRET}",
    f"eyJhbGciOi{SECRET}.eyJzdWIi{SECRET}.{SECRET}",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_secret_stays_in_a_text(text: str) -> None:
    """Every form in which a library was seen to print a credential."""
    assert SECRET not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://registry.example:5000/v2/library/alpine/manifests/latest?ns=docker.io",
        "window 3 of sha256:0123 arrived from 10.0.0.1:6881",
        "listening on [::1]:30000",
        'Bearer realm="https://auth.example/token",service="registry"',
        "Cannot connect to host 127.0.0.1:5000",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    """Redaction that ate everything would be of no help to anybody."""
    assert redact(text) == text


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """What was taken out once is not mistaken for a secret again."""
    assert redact(redact(text)) == redact(text)


def test_fields_are_redacted_by_name_and_by_content_at_any_depth() -> None:
    """Structured values too, not only texts."""
    fields = {
        "token": SECRET,
        "headers": {"Authorization": SECRET, "Accept": "x"},
        "urls": [f"https://h/p?sig={SECRET}", b"\x01"],
        "bytes": 7,
    }
    plain = redact_fields(fields)
    assert SECRET not in json.dumps(plain)
    assert plain["bytes"] == 7
    assert plain["headers"] == {"Authorization": "<redacted>", "Accept": "x"}


def _record(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("shoal.swarm", logging.INFO, __file__, 1, message, None, None)
    record.created = 1_700_000_000.5
    record.msecs = 500.0
    record.fields = fields
    return record


def test_a_line_of_text() -> None:
    """Event and fields as key=value, quoted where a blank or a line break would break the line."""
    line = Formatter(as_json=False).format(
        _record("claimed", window=3, digest="sha256:00", why="two words\nand a line")
    )
    assert line == (
        '2023-11-14T22:13:20.500Z info    shoal.swarm claimed window=3 digest=sha256:00 why="two words\\nand a line"'
    )


def test_a_line_of_json() -> None:
    """The same as one JSON object; a field cannot overwrite the line's own keys."""
    line = Formatter(as_json=True).format(_record("claimed", window=3, level="x"))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "info",
        "logger": "shoal.swarm",
        "event": "claimed",
        "window": 3,
        "level_": "x",
    }


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.binary() | st.floats() | st.none()))
@pytest.mark.parametrize("as_json", [True, False])
def test_a_record_is_always_one_line(as_json: bool, message: str, fields: dict[str, object]) -> None:
    """Nothing that a peer or an upstream says can begin a line of its own (log injection)."""
    line = Formatter(as_json=as_json).format(_record(message.replace("%", ""), f=fields))
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_is_a_redacted_field(log_format: str) -> None:
    """An exception of a foreign library may quote a signed URL."""
    try:
        raise RuntimeError(f"cannot fetch https://h/p?sig={SECRET}")
    except RuntimeError:
        record = _record("failed")
        record.exc_info = sys.exc_info()
    line = Formatter(as_json=log_format == "json").format(record)
    assert SECRET not in line
    assert "RuntimeError" in line
    assert len(line.splitlines()) == 1


def test_configure_sends_every_logger_to_one_stream() -> None:
    """Level and format hold for the whole process; request lines of aiohttp stay out."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        configure("info", "json", stream)
        logging.getLogger("shoal.mirror").info("started", extra={"fields": {"port": 1}})
        logging.getLogger("shoal.mirror").debug("unseen")
        logging.getLogger("aiohttp.access").info("unseen")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["started"]


@pytest.mark.parametrize(("level", "lines"), [("info", 2), ("warning", 1)])
def test_what_is_no_http_is_a_line_and_no_traceback(level: str, lines: int) -> None:
    """A port scanner is no defect of ours; an exception of a handler is one."""
    root = logging.getLogger()
    before, former = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        configure(level, "json", stream)
        for problem in (BadStatusLine("SSH-2.0"), RuntimeError("a defect")):
            logging.getLogger("aiohttp.server").error("Error handling request", exc_info=problem)
    finally:
        root.handlers[:] = before
        root.setLevel(former)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(told) == lines
    assert told[-1]["level"] == "error"
    assert "a defect" in told[-1]["exception"]
    if lines == 2:
        assert (told[0]["level"], told[0]["problem"], "exception" in told[0]) == ("info", "BadStatusLine", False)
