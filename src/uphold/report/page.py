"""What every page is made with: one file, nothing fetched, every text escaped and its invisible characters written out.

A page extends `page.html.j2`; its content security policy allows the one inline script by hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from uphold.report.text import visible


class Page(NamedTuple):
    """A rendered page."""

    html: str
    policy: str
    """Its content security policy, which is also in the page itself."""


def render_page(
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    payload: Any,
    filters: Mapping[str, Callable[..., str]] | None = None,
    **values: Any,
) -> Page:
    """A self-contained HTML page.

    Args:
        template: file name of the Jinja template in this package.
        styles: file names of style sheets, written into the page after `page.css`.
        scripts: file names of scripts, written into the page after `page.js`.
        payload: plain JSON for the scripts, which find it in the element `#data`.
        filters: what the template may send values through, by name.
        values: what the template prints.
    """
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    script = "\n".join(_asset(name) for name in ("page.js", *scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page_policy(f"'sha256-{digest}'")
    html = environment.get_template(template).render(
        style=Markup("\n".join(_asset(name) for name in ("page.css", *styles))),
        script=Markup(script),
        payload=Markup(script_json(payload)),
        policy=policy,
        **values,
    )
    return Page(html, policy)


def page_policy(scripts: str) -> str:
    """A content security policy that loads nothing and runs only `scripts`."""
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> str:
    """`value` as JSON that may stand inside a `<script>` element: it can end neither the element nor a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _finalize(value: Any) -> Any:
    """What a template prints: every plain text with its invisible characters written out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return files("uphold.report").joinpath(name).read_text(encoding="utf-8")
