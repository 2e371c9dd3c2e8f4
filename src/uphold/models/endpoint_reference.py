"""Endpoint references: how a user names a model behind the OpenAI-compatible HTTP protocol.

    http://localhost:8000/v1#MODEL
    https://host/v1?chat=true&concurrency=8&input_price=0.15&output_price=0.6#MODEL

MODEL is the id under which the server knows it. The options before it are ours (`OPTIONS`) and are not sent; any
other one, such as Azure's `api-version`, stays in the URL. Keys come from the environment only, since a reference ends
up in stored runs.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from uphold.core.errors import UsageError, unknown_name
from uphold.core.hashing import sha256_of

FORM = "http://localhost:8000/v1#MODEL or https://host/v1?chat=true&concurrency=8#MODEL"
"""What a reference looks like, for messages."""
MOST_CONCURRENT = 1024
_SCHEMES = ("http://", "https://")
_PATHS = ("/chat/completions", "/completions", "/models")
_SECRET = re.compile(r"(?i)key|token|secret|passw|auth|signature|credential")


@dataclass(frozen=True)
class Endpoint:
    """A model behind an HTTP server, and how to ask it."""

    name: str
    """The reference as typed."""
    url: str
    """Base URL that `/completions` is appended to, without our options."""
    model: str
    """The model's id on the server."""
    chat: bool = False
    """Ask through `/chat/completions`, each prompt as one user message."""
    concurrency: int = 8
    """Requests in flight at once."""
    timeout: float = 300.0
    """Seconds that a server may be silent."""
    retries: int = 5
    """How often a request is sent again before the run gives up."""
    input_price: float | None = None
    """Currency units per million tokens read."""
    output_price: float | None = None
    """Currency units per million tokens written."""
    revision: str = ""
    """What the user calls the state of the server; not sent, it only keeps runs apart."""

    def address(self, path: str) -> str:
        """The URL of one of the protocol's paths, e.g. `/completions`."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path + path))

    def fingerprint(self) -> dict[str, Any]:
        """The model part of a run's fingerprint, as plain JSON.

        A server does not show its weights, so URL, model id, chat flag and revision stand for them.
        """
        asked = {"url": self.url, "model": self.model, "chat": self.chat, "revision": self.revision}
        return {
            "name": self.name,
            **asked,
            "weights": f"endpoint:{sha256_of(asked)}",
            "config": None,
            "tokenizer": None,
            "adapter": None,
        }


def is_endpoint(text: object) -> bool:
    """Whether `text` is meant as an endpoint: a string that starts with `http://` or `https://`."""
    return isinstance(text, str) and text.strip().lower().startswith(_SCHEMES)


def parse_endpoint(text: str) -> Endpoint:
    """Read an endpoint reference; nothing is sent.

    Raises:
        UsageError: it is not of the form `FORM`, or an option has a value that cannot be.
    """
    name = text.strip()
    base, _, model = name.partition("#")
    parts = _split(base)
    if not model.strip():
        raise UsageError(f"'{name}' names no model: type the model's id after a #, as {FORM}")
    options, others = _options(name, parts.query)
    path = parts.path.rstrip("/")
    for ending in _PATHS:
        if path.endswith(ending):
            raise UsageError(
                f"'{name}' names a path of the protocol: type the base URL, without {ending}"
                + (", and the option chat=true" if ending == _PATHS[0] else "")
            )
    url = urlunsplit((parts.scheme.lower(), parts.netloc.lower(), path, urlencode(others), ""))
    return Endpoint(name, url, model.strip(), **options)


def _split(base: str) -> SplitResult:
    if not is_endpoint(base):
        raise UsageError(f"'{base}' is not an endpoint: type it as {FORM}")
    if "@" in base.partition("//")[2].partition("/")[0]:
        # Not quoted: what stands before the @ may be a password.
        raise UsageError(
            "an endpoint may not hold a user or a password, they would be stored with the run: "
            "leave out what stands before the @ and set UPHOLD_API_KEY"
        )
    try:
        parts = urlsplit(base)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"'{base}' is not a URL ({error}): type it as {FORM}") from None
    if not host or re.search(r"[\s\x00-\x1f]", base):
        raise UsageError(f"'{base}' is not a URL: type it as {FORM}")
    return parts


def _options(name: str, query: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Our options with their values, and the parameters that stay in the URL."""
    ours: dict[str, Any] = {}
    others: list[tuple[str, str]] = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in OPTIONS:
            if key in ours:
                raise UsageError(f"'{name}' gives {key} twice: type it once")
            ours[key] = _value(key, value)
        elif _SECRET.search(key):
            raise UsageError(
                f"an endpoint may not hold a key ('{key}'), it would be stored with the run: set UPHOLD_API_KEY"
            )
        elif difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.75):
            raise unknown_name("endpoint option", key, OPTIONS)
        else:
            others.append((key, value))
    return ours, others


def _value(key: str, value: str) -> Any:
    read, expected = OPTIONS[key]
    try:
        return read(value)
    except ValueError:
        raise UsageError(f"the endpoint option {key} is '{value}': expected {expected}, as {FORM}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError
    return text.lower() in ("true", "1")


def _within(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = kind(text)
        if not (math.isfinite(number) and least <= number <= most):
            raise ValueError
        return number

    return read


OPTIONS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "chat": (_flag, "true or false"),
    "concurrency": (_within(int, 1, MOST_CONCURRENT), f"a whole number from 1 to {MOST_CONCURRENT}"),
    "timeout": (_within(float, 0.001, 86_400), "seconds, up to 86400"),
    "retries": (_within(int, 0, 100), "a whole number from 0 to 100"),
    "input_price": (_within(float, 0, math.inf), "currency units per million tokens"),
    "output_price": (_within(float, 0, math.inf), "currency units per million tokens"),
    "revision": (str, "any text"),
}
"""Our options: how each is read, and what is expected of it."""
