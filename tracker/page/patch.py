"""What changed between two JSON values, as a JSON Merge Patch (RFC 7386). Pure.

Views hold no null, since a patch says by null that a member is gone; lists are replaced whole, so
what changes one by one is an object by key.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def diff(old: Json, new: Json) -> Json:
    """The patch that makes *new* of *old*; empty if they are equal."""
    patch: Json = dict.fromkeys(key for key in old if key not in new)
    for key, value in new.items():
        if key not in old:
            patch[key] = value
            continue
        before = old[key]
        if before == value:
            continue
        patch[key] = diff(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return patch


def apply(old: Json, patch: Json) -> Json:
    """*old* with *patch* applied (RFC 7386, section 2): what the page does with it."""
    new = dict(old)
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            before = new.get(key)
            new[key] = apply(before if isinstance(before, dict) else {}, value)
        else:
            new[key] = value
    return new
