from __future__ import annotations

import json

import pytest

from uphold.core.errors import UsageError
from uphold.models.endpoint_errors import api_key, one_line, read_error, redacted, unknown_model


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("UPHOLD_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("body", "message", "kind", "status", "field"),
    [
        ({"error": {"message": "no\n such", "type": "t", "param": "p", "code": "c"}}, "no such", "c", None, "p"),
        ({"error": {"message": "m", "type": "NotFoundError", "code": 404}}, "m", "NotFoundError", 404, ""),
        ({"error": "plain"}, "plain", "", None, ""),
        ({"object": "error", "message": "m", "type": "t", "code": "503"}, "m", "t", 503, ""),
        ({"detail": [{"msg": "bad"}]}, '[{"msg": "bad"}]', "", None, ""),
        ([1], "[1]", "", None, ""),
    ],
)
def test_errors_in_every_form(body: object, message: str, kind: str, status: int | None, field: str) -> None:
    said = read_error(json.dumps(body))

    assert (said.message, said.kind, said.status, said.field) == (message, kind, status, field)


def test_an_error_that_is_no_json() -> None:
    assert read_error("<html><head><title>502 Bad\nGateway</title></head></html>").message == "502 Bad Gateway"
    assert read_error("Internal Server Error").message == "Internal Server Error"


def test_a_line_is_one_printable_line() -> None:
    assert one_line("a\n\tb\x1b[31m c") == "a b [31m c"
    assert len(one_line("x" * 999)) == 203


def test_no_stretch_of_a_key_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPHOLD_API_KEY", "sk-proj-abcdefghijklmnop")
    monkeypatch.setenv("OPENAI_API_KEY", "xyz")

    assert redacted("Bearer sk-proj-abcdefghijklmnop!") == "Bearer [key]!"
    assert redacted("provided: sk-proj-***mnop, defghijk and xyz") == "provided: [key]***mnop, [key] and [key]"
    assert "sk-p" not in one_line("k" * 195 + " sk-proj-abcdefghijklmnop")


def test_the_key_comes_from_the_first_variable_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_key() == ""
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert api_key() == "theirs"
    monkeypatch.setenv("UPHOLD_API_KEY", " ours\n")
    assert api_key() == "ours"
    monkeypatch.setenv("UPHOLD_API_KEY", "")
    assert api_key() == ""


@pytest.mark.parametrize("key", ["sk-ab\ncd", "sk-äbcd"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPHOLD_API_KEY", key)

    with pytest.raises(UsageError, match="the key in UPHOLD_API_KEY holds characters") as caught:
        api_key()
    assert key not in str(caught.value)


def test_an_unknown_model_gets_the_nearest_or_some() -> None:
    assert "did you mean 'gpt-4o'?" in str(unknown_model("u", "gtp-4o", ["gpt-4o", "zzz"]))
    assert "it offers m00, m01" in str(unknown_model("u", "qqqq", [f"m{number:02}" for number in range(20)]))
    assert "and 8 more." in str(unknown_model("u", "qqqq", [f"m{number:02}" for number in range(20)]))
