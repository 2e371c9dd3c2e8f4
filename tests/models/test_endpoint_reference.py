from __future__ import annotations

import json

import pytest

from uphold.core.errors import UsageError
from uphold.core.runs import run_key
from uphold.models.endpoint_reference import Endpoint, is_endpoint, parse_endpoint


def test_the_short_form() -> None:
    endpoint = parse_endpoint("http://localhost:8000/v1#meta-llama/Llama-3.2-1B")

    assert endpoint == Endpoint(
        "http://localhost:8000/v1#meta-llama/Llama-3.2-1B", "http://localhost:8000/v1", "meta-llama/Llama-3.2-1B"
    )
    assert (endpoint.chat, endpoint.concurrency) == (False, 8)
    assert endpoint.address("/completions") == "http://localhost:8000/v1/completions"


def test_our_options_are_taken_out_of_the_url_and_others_stay() -> None:
    endpoint = parse_endpoint(
        "HTTPS://Host/v1/?chat=true&concurrency=3&timeout=1.5&retries=0&input_price=0.15&output_price=0.6&revision=may"
        "&api-version=2026-01#m:v+1"
    )

    assert endpoint.url == "https://host/v1?api-version=2026-01"
    assert endpoint.address("/chat/completions") == "https://host/v1/chat/completions?api-version=2026-01"
    assert (endpoint.chat, endpoint.concurrency, endpoint.timeout, endpoint.retries) == (True, 3, 1.5, 0)
    assert (endpoint.input_price, endpoint.output_price, endpoint.revision) == (0.15, 0.6, "may")
    assert endpoint.model == "m:v+1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("http://a/v1#m", True), ("HTTPS://a/v1#m", True), ("org/name", False), ("./http:/x", False), (None, False)],
)
def test_what_is_an_endpoint(text: object, expected: bool) -> None:
    assert is_endpoint(text) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://localhost:8000/v1", "names no model"),
        ("http://localhost:8000/v1#", "names no model"),
        ("ftp://localhost/v1#m", "is not an endpoint"),
        ("http://#m", "is not a URL"),
        ("http://host:port/v1#m", "is not a URL"),
        ("http://ho st/v1#m", "is not a URL"),
        ("http://[::1/v1#m", "is not a URL"),
        ("http://a/v1/chat/completions#m", "without /chat/completions, and the option chat=true"),
        ("http://a/v1/completions/#m", "without /completions"),
        ("http://a/v1?concurrency=0#m", "expected a whole number from 1 to 1024"),
        ("http://a/v1?concurrency=two#m", "concurrency is 'two'"),
        ("http://a/v1?timeout=nan#m", "timeout is 'nan': expected seconds"),
        ("http://a/v1?input_price=-1#m", "currency units"),
        ("http://a/v1?chat=maybe#m", "expected true or false"),
        ("http://a/v1?chat=true&chat=false#m", "gives chat twice"),
        ("http://a/v1?concurency=2#m", "did you mean 'concurrency'?"),
    ],
)
def test_bad_forms_say_the_right_one(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoint(text)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["http://me:sk-secret@host/v1#m", "http://sk-secret@host#m", "https://host/v1?api_key=sk-secret#m"]
)
def test_a_key_in_the_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="UPHOLD_API_KEY") as caught:
        parse_endpoint(text)

    assert "secret" not in str(caught.value)


def test_the_fingerprint_tells_models_apart_by_what_is_asked_not_by_how() -> None:
    def key(text: str) -> str:
        return run_key({"model": parse_endpoint(text).fingerprint(), "task": {}})

    same = {key("http://a/v1#m"), key("http://A/v1/#m"), key("http://a/v1?concurrency=2&input_price=1#m")}
    others = ["http://a/v1?chat=1#m", "http://a/v1#n", "http://b/v1#m", "http://a/v1?revision=2#m", "http://a/v1?x=1#m"]

    assert len(same) == 1
    assert len(same | set(map(key, others))) == 6
    fingerprint = parse_endpoint("http://a/v1#m").fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["weights"].startswith("endpoint:")
    assert fingerprint["name"] == "http://a/v1#m"
