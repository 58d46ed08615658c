"""What a browser may ask of mirror and tracker: nothing for a stranger's page, whatever it calls itself."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from swarm.base.browser import is_json, known_host, objection

EVIL = "http://evil.example"


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:30000", True),
        ("[::1]:6969", True),
        ("10.3.4.5", True),
        ("localhost:30000", True),
        ("shoal-tracker:6969", True),
        ("shoal-tracker.shoal.svc:6969", True),
        ("shoal-tracker.shoal.svc.cluster.local", True),
        ("shoal.example.com", True),
        ("SHOAL.example.com:443", True),
        ("evil.example:30000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("svc.evil.example", False),
        ("shoal.example.com.evil.example", False),
        ("evil.example.", False),
        ("", False),
        ("a b", False),
        ("a/../b", False),
        ("[::1", False),
        ("x" * 300, False),
    ],
)
def test_a_name_counts_if_no_stranger_can_own_it(host: str, known: bool) -> None:
    assert known_host(host, {"shoal.example.com"}) is known


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {"Origin": EVIL}),
        ("GET", {"Origin": EVIL}),
        ("GET", {"Origin": "null"}),
        ("OPTIONS", {"Origin": EVIL, "Access-Control-Request-Method": "POST"}),
        ("GET", {"Host": "evil.example"}),
        ("GET", {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}),
        ("GET", {"Sec-Fetch-Site": "same-site"}),
        ("GET", {"Origin": "https://127.0.0.1:6969.evil.example"}),
    ],
)
def test_what_a_page_of_another_site_sends_is_refused(method: str, headers: dict[str, str]) -> None:
    assert objection(method, CIMultiDict({"Host": "127.0.0.1:6969"} | headers))


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("POST", {"Content-Type": "application/json"}),
        ("GET", {"Origin": "http://127.0.0.1:6969"}),
        ("GET", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}),
        ("GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}),
    ],
)
def test_containerd_agents_and_the_page_itself_are_answered(method: str, headers: dict[str, str]) -> None:
    assert objection(method, CIMultiDict({"Host": "127.0.0.1:6969"} | headers)) == ""


def test_a_client_that_names_no_host_is_no_browser() -> None:
    assert objection("GET", CIMultiDict()) == ""


@pytest.mark.parametrize(
    ("kind", "json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("text/plain;charset=UTF-8", False),
        ("text/plain; application/json", False),
        ("application/x-www-form-urlencoded", False),
        ("", False),
    ],
)
def test_only_json_is_json(kind: str, json: bool) -> None:
    assert is_json(kind) is json
