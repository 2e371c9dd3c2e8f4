"""What a server says when it does not answer, in one line that never holds the key."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from uphold.core.errors import ModelError, UsageError

KEY_VARIABLES = ("UPHOLD_API_KEY", "OPENAI_API_KEY")
"""Where the key is read from: the first that is set; set but empty means that none is sent."""
MOST_SAID = 200
"""Characters of a server's words that are repeated."""
MOST_LISTED = 12
_TELLING = 6
"""As many characters of a key in a row are not repeated."""
_ABOUT_MODEL = re.compile(r"(?i)model.{0,120}(not exist|not found|unknown)|(unknown|invalid|no such) model")


@dataclass(frozen=True)
class ServerError:
    """The body of an answer that is an error."""

    message: str = ""
    """In one line, without the key."""
    kind: str = ""
    """Its code or its type, e.g. `model_not_found`."""
    status: int | None = None
    """An HTTP status in the body, where some servers put it."""
    field: str = ""
    """The field of the request that it is about."""

    @property
    def is_about_model(self) -> bool:
        """Whether the server does not know the model."""
        return self.kind == "model_not_found" or bool(_ABOUT_MODEL.search(self.message))

    def unsupported(self, fields: Collection[str]) -> str | None:
        """Which of `fields` the server does not take."""
        words = f"{self.kind} {self.message}".lower()
        if "unsupported" not in words and "not supported" not in words:
            return None
        return next((field for field in fields if field == self.field or f"'{field}'" in self.message), None)


def read_error(text: str) -> ServerError:
    """The error in an answer's body, in any of the forms that servers use."""
    try:
        body: Any = json.loads(text)
    except ValueError:
        title = re.search(r"(?is)<title>(.*?)</title>", text)
        return ServerError(one_line(title[1] if title else text))
    error = body.get("error") or body if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return ServerError(one_line(error if isinstance(error, str) else json.dumps(error)))
    said = error.get("message") or error.get("detail") or ""
    code, kind = str(error.get("code") or ""), str(error.get("type") or "")
    return ServerError(
        one_line(said if isinstance(said, str) else json.dumps(said)),
        code if code and not code.isdecimal() else kind,
        int(code) if code.isdecimal() else None,
        str(error.get("param") or ""),
    )


def api_key() -> str:
    """The key for the server; empty where there is none.

    Raises:
        UsageError: it cannot be sent in a header.
    """
    name = next((name for name in KEY_VARIABLES if name in os.environ), KEY_VARIABLES[0])
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        # Checked here, since the HTTP library's own message would show it.
        raise UsageError(f"the key in {name} holds characters that cannot be sent: copy it again")
    return key


def access_error(url: str, status: int) -> ModelError:
    """What to do about a server that refuses access; its own words are left out, since they may hold the key."""
    name = next((name for name in KEY_VARIABLES if os.environ.get(name)), None)
    problem = f"refuses the key in {name}" if name and api_key() else "wants a key"
    return ModelError(f"{url} {problem} ({status}): set UPHOLD_API_KEY to a key for this server")


def unknown_model(url: str, model: str, offered: Sequence[str]) -> ModelError:
    """A message that names the nearest of the models that a server offers."""
    names = sorted(map(one_line, offered))
    near = difflib.get_close_matches(model, names, n=1, cutoff=0.5)
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    hint = f"did you mean '{near[0]}'?" if near else f"it offers {', '.join(names[:MOST_LISTED])}{rest}."
    return ModelError(f"{url} has no model '{model}': {hint} Type the id after the #")


def one_line(text: str) -> str:
    """`text` in one line, printable, without the key, cut to `MOST_SAID` characters."""
    line = redacted(" ".join("".join(letter if letter.isprintable() else " " for letter in text).split()))
    return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}..."


def redacted(text: str) -> str:
    """`text` with every stretch of six or more characters of a key replaced."""
    hidden = [False] * len(text)
    for key in (os.environ.get(name, "").strip() for name in KEY_VARIABLES):
        size = min(_TELLING, len(key))
        for start in range(len(text) - size + 1 if size else 0):
            if text[start : start + size] in key:
                hidden[start : start + size] = [True] * size
    shown = "".join("\0" if hide else letter for hide, letter in zip(hidden, text, strict=True))
    return re.sub("\0+", "[key]", shown)
