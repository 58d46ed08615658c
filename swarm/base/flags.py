"""How the text of a flag becomes a value, for every command: pure parsing, and the click types around it.

A refusal is one sentence that names the text and what would have been right.
Settings are dataclass fields made by `setting`, and `options` turns such a dataclass into flags with
their environment twins, so a flag, its default and its documentation are written once.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import urlsplit

import click

ENVIRONMENT = "SHOAL"
"""Every flag `--x-y` has the environment twin `SHOAL_X_Y`."""

_SIZES = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3, "t": 1000**4, "tb": 1000**4,
    "kib": 1 << 10, "ki": 1 << 10, "mib": 1 << 20, "mi": 1 << 20,
    "gib": 1 << 30, "gi": 1 << 30, "tib": 1 << 40, "ti": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_HOST = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", re.IGNORECASE | re.ASCII)


class Endpoint(NamedTuple):
    """A host name or IP address (without brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_size(text: str) -> int:
    """Bytes: `20GiB`, `20Gi`, `500MB`, `1048576`. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size; write 20GiB, 500MB or a number of bytes")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def format_size(count: int) -> str:
    """The shortest text that `parse_size` reads back as exactly *count* bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        step = _SIZES[unit.lower()]
        if count and count % step == 0:
            return f"{count // step}{unit}"
    return str(count)


def parse_duration(text: str) -> float:
    """Seconds: `10s`, `1h30m`, `250ms`, `0`, or a plain number of seconds. Raises ValueError."""
    plain = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", plain, re.ASCII):
        return float(plain)
    parts = _DURATION_PART.findall(plain)
    if not parts or "".join(number + unit for number, unit in parts) != plain:
        raise ValueError(f"{text!r} is no duration; write 10s, 250ms, 1h30m or a number of seconds")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back as *seconds*."""
    if seconds == 0:
        return "0"
    for unit in ("d", "h", "m", "s"):
        if seconds % _SECONDS[unit] == 0 and seconds >= _SECONDS[unit] and not (unit == "d" and seconds < 2 * 86400):
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"


def parse_endpoint(text: str, *, port: int | None = None) -> Endpoint:
    """`host:port`, `1.2.3.4:80`, `[::1]:80`; without a port only if *port* is given. Raises ValueError."""
    wrong = ValueError(f"{text!r} is no address; write HOST:PORT, with an IPv6 address in brackets: [::1]:PORT")
    plain = text.strip()
    if plain.startswith("["):
        host, bracket, rest = plain[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise wrong
        number = rest[1:] if rest else None
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise wrong from None
    else:
        host, colon, rest = plain.partition(":")
        number = rest if colon else None
        if not _HOST.fullmatch(host):
            raise wrong
    if number is None:
        if port is None:
            raise wrong
        return Endpoint(host, port)
    if not re.fullmatch(r"\d{1,5}", number, re.ASCII) or int(number) > 65535:
        raise ValueError(f"{text!r} has no port between 0 and 65535")
    return Endpoint(host, int(number))


def parse_network(text: str) -> str:
    """A CIDR or one address (`10.0.0.0/8`, `fd00::/8`, `127.0.0.1`), in canonical form. Raises ValueError."""
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise ValueError(f"{text!r} is no network; write a CIDR such as 10.0.0.0/8 or an address") from None


def parse_tracker(text: str) -> str:
    """`http://host:port`, or `dns+http://name:port` where every address of the name is a tracker. Raises ValueError."""
    wrong = ValueError(f"{text!r} is no tracker; write http://HOST:PORT or dns+http://NAME:PORT")
    plain = text.strip().rstrip("/")
    try:
        url = urlsplit(plain)
        number = url.port
    except ValueError:
        raise wrong from None
    if url.scheme not in ("http", "https", "dns+http", "dns+https") or not url.hostname or url.username is not None:
        raise wrong
    if url.path or url.query or url.fragment or number == 0:
        raise wrong
    return plain


def tracker_urls(url: str, addresses: Iterable[str]) -> tuple[str, ...]:
    """The trackers behind a `dns+http://name:port` whose name has these *addresses*, in order.

    On a dual-stack network a tracker has an address of each family, and must not be taken for two: IPv4 counts
    where there is any, for every agent alike, since all must agree on which tracker a digest belongs to.
    """
    parts = urlsplit(url.removeprefix("dns+"))
    port = parts.port or 6969
    every: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = {
        ipaddress.ip_address(text.partition("%")[0]) for text in addresses
    }
    chosen = {ip for ip in every if ip.version == 4} or every
    ordered = sorted(chosen, key=lambda ip: ip.packed)
    return tuple(f"{parts.scheme}://{Endpoint(str(ip), port)}" for ip in ordered)


def parse_log_level(text: str) -> str:
    """`debug`, `info`, `warning` or `error`. Raises ValueError."""
    plain = text.strip().lower()
    if plain not in ("debug", "info", "warning", "error"):
        raise ValueError(f"{text!r} is no log level; write debug, info, warning or error")
    return plain


def parse_log_format(text: str) -> str:
    """`text` or `json`. Raises ValueError."""
    plain = text.strip().lower()
    if plain not in ("text", "json"):
        raise ValueError(f"{text!r} is no log format; write text or json")
    return plain


# --------------------------------------------------------------------------- settings as flags

Parsed = TypeVar("Parsed")


class Flag(click.ParamType[Any]):
    """A click type around a parser that raises ValueError; its environment twin separates several by commas."""

    envvar_list_splitter: ClassVar[str] = ","

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """*value* itself if it is a value already (a default), else what the parser makes of the text."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Items between commas, without blanks and without empty ones."""
        return [item.strip() for item in rv.split(",") if item.strip()]


SIZE = Flag("SIZE", parse_size)
DURATION = Flag("DURATION", parse_duration)
ENDPOINT = Flag("HOST:PORT", parse_endpoint)
NETWORK = Flag("CIDR", parse_network)
TRACKER = Flag("URL", parse_tracker)
LOG_LEVEL = Flag("LEVEL", parse_log_level)
LOG_FORMAT = Flag("FORMAT", parse_log_format)
PATH = Flag("PATH", lambda text: Path(text).expanduser())
TEXT = Flag("TEXT", str)


def parse_count(text: str) -> int:
    """A whole number, 0 or more. Raises ValueError."""
    if not re.fullmatch(r"\d{1,15}", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def parse_number(text: str) -> float:
    """A number, 0 or more. Raises ValueError."""
    if not re.fullmatch(r"\d{1,15}(\.\d+)?", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is no number of 0 or more")
    return float(text)


COUNT = Flag("N", parse_count)
NUMBER = Flag("NUMBER", parse_number)


def setting(
    default: Any, kind: Flag | type[bool], text: str, *, unit: str, reason: str, flag: str | None = None
) -> Any:  # the dataclass field has the type; this only carries it
    """A dataclass field that is also a flag. *flag*: its name where that is not the field's; a tuple is repeatable."""
    return dataclasses.field(
        default=default, metadata={"kind": kind, "help": text, "unit": unit, "reason": reason, "flag": flag}
    )


class Setting(NamedTuple):
    """What the documentation says of one flag."""

    field: str
    flag: str
    variable: str
    kind: Flag | type[bool]
    default: Any
    help: str
    unit: str
    reason: str

    @property
    def repeatable(self) -> bool:
        """May be given more than once."""
        return isinstance(self.default, tuple) and not isinstance(self.default, Endpoint)

    @property
    def default_text(self) -> str:
        """The default as somebody would type it; empty for none."""
        return self.text(self.default)

    def text(self, value: Any) -> str:
        """*value* as the environment twin would hold it; empty for none."""
        if self.kind is bool:
            return "on" if value else "off"
        return ",".join(self._words(value))

    def arguments(self, value: Any) -> list[str]:
        """*value* as arguments of the command; none for the default."""
        if value == self.default:
            return []
        if self.kind is bool:
            return [self.flag if value else f"--no-{self.flag[2:]}"]
        return [f"{self.flag}={word}" for word in self._words(value)]

    def _words(self, value: Any) -> list[str]:
        items = value if self.repeatable else () if value is None else (value,)
        write = format_size if self.kind is SIZE else format_duration if self.kind is DURATION else str
        return [write(item) for item in items]


def settings_of(settings: type[Any]) -> Iterator[Setting]:
    """The flags of a settings dataclass in their order; fields that are not made by `setting` are none."""
    for field in dataclasses.fields(settings):
        if "kind" not in field.metadata:
            continue
        data = field.metadata
        name = data["flag"] or field.name.replace("_", "-")
        yield Setting(
            field.name, f"--{name}", f"{ENVIRONMENT}_{name.replace('-', '_').upper()}",
            data["kind"], field.default, data["help"], data["unit"], data["reason"],
        )  # fmt: skip


Command = TypeVar("Command", bound=Callable[..., Any])


def options(settings: type[Any]) -> Callable[[Command], Command]:
    """Gives a click command the flags of *settings*; their values arrive under the names of its fields."""

    def decorate(command: Command) -> Command:
        for item in reversed(list(settings_of(settings))):
            shown = item.default_text
            text = item.help + (f" [{item.variable}; default {shown}]" if shown else f" [{item.variable}]")
            if item.kind is bool:
                names = (f"{item.flag}/--no-{item.flag[2:]}", item.field)
                option = click.option(*names, default=item.default, envvar=item.variable, help=text)
            else:
                option = click.option(
                    item.flag, item.field, type=item.kind, default=item.default, multiple=item.repeatable,
                    envvar=item.variable, help=text, metavar=item.kind.name if isinstance(item.kind, Flag) else None,
                )  # fmt: skip
            command = option(command)
        return command

    return decorate
