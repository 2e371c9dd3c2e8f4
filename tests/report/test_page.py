from __future__ import annotations

import base64
import hashlib
import json
import re

from uphold.report.page import render_page, script_json

HOSTILE = "</script><script>alert(1)</script>\u202egnp\u2028 & {{ 7*7 }}"


def test_script_json_can_end_neither_its_element_nor_a_line() -> None:
    text = script_json({"a": HOSTILE})
    assert json.loads(text) == {"a": HOSTILE}
    assert not set("<>&\u2028\u2029") & set(text)


def test_the_policy_allows_exactly_the_script_of_the_page() -> None:
    page = render_page("index.html.j2", ["index.css"], ["index.js"], HOSTILE, **_nothing())
    [script] = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'")
    assert page.policy.replace("'", "&#39;") in page.html


def test_texts_are_escaped_and_invisible_characters_written_out() -> None:
    html = render_page("index.html.j2", [], [], None, **_nothing(HOSTILE)).html
    assert "alert(1)&lt;/script&gt;⟨U+202E⟩gnp⟨U+2028⟩ &amp; {{ 7*7 }}" in html
    assert "\u202e" not in html


def _nothing(root: str = "/results") -> dict[str, object]:
    from uphold.report.listing import Found

    return {"found": Found((), 0, ()), "root": root, "rows": [], "verdicts": [], "kinds": []}
