from __future__ import annotations

import email.utils
import logging
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from tests.models.toy_server import Reply, Toy, serving
from uphold.core.errors import ModelError, UsageError
from uphold.models import endpoint_http
from uphold.models.endpoint import complete
from uphold.models.endpoint_http import Server, Usage
from uphold.models.endpoint_reference import Endpoint, parse_endpoint

KEY = "sk-test-0123456789abcdef"
PROMPTS = ["the cat", "a mat", "on the", "sat"]


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_http, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("UPHOLD_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toy() -> Iterator[Toy]:
    with serving(Toy()) as served:
        yield served


def at(toy: Toy, options: str = "", model: str = "toy") -> Endpoint:
    return parse_endpoint(f"{toy.url}?{options}#{model}")


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    return status, headers or {}, {"error": {"message": message, **fields}}


def ask(toy: Toy, options: str = "", prompts: list[str] = PROMPTS, **arguments: Any) -> list[str]:
    endpoint = at(toy, options, arguments.pop("model", "toy"))
    return [answer.text for answer in complete(endpoint, prompts, max_new_tokens=2, **arguments)]


def failure(toy: Toy, options: str = "", **arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        ask(toy, options, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_answers_are_in_order_and_never_too_many_at_once(toy: Toy) -> None:
    prompts = [f"{'the ' * (number % 5)}cat{number}" for number in range(40)]
    expected = ask(toy, "concurrency=1", prompts)
    assert toy.most_at_once == 1

    toy.delay = lambda prompt: sum(map(ord, prompt)) % 7 / 500
    told: list[tuple[str, int, int]] = []
    assert ask(toy, "concurrency=6", prompts, progress=lambda *state: told.append(state[:3])) == expected
    assert 1 < toy.most_at_once <= 6
    assert told == [("asking toy", count, 40) for count in range(1, 41)]


@pytest.mark.parametrize("trouble", [error(500), error(503), error(429), error(408), None, (200, {}, {"error": "no"})])
def test_what_may_pass_is_tried_again(toy: Toy, trouble: Reply | None) -> None:
    toy.replies = [trouble, trouble]
    usage = Usage()

    assert ask(toy, "concurrency=1", usage=usage) == ask(toy)
    assert (usage.requests, usage.retries) == (4, 2)


def test_it_gives_up_after_the_retries(toy: Toy) -> None:
    toy.always = lambda headers, body: error(500, "out of memory")

    message = failure(toy, "retries=2", prompts=["a"])
    assert message.startswith(f"{toy.url} failed 3 times, the last: 500, out of memory; type the same command again")
    assert len(toy.seen) == 3


def test_a_wait_that_is_asked_for_is_kept_by_all_threads(toy: Toy) -> None:
    def busy_once(headers: dict[str, str], body: dict[str, Any]) -> Reply | None:
        first = body["prompt"] == PROMPTS[0] and toy.prompts.count(PROMPTS[0]) == 1
        return error(429, headers={"Retry-After": "0.4"}) if first else None

    toy.always = busy_once
    toy.delay = lambda prompt: 0.1 if prompt != PROMPTS[0] else 0.0
    ask(toy, "concurrency=2")

    assert sorted(toy.prompts) == sorted([*PROMPTS, PROMPTS[0]])
    assert toy.times[2] - toy.times[0] >= 0.4


def test_a_wait_may_be_given_as_a_date_and_a_long_one_is_not_kept(toy: Toy) -> None:
    toy.replies = [error(429, "slow down", {"Retry-After": email.utils.formatdate(time.time() + 3600)})]

    assert "asks to wait 3" in failure(toy, prompts=["a"])
    toy.replies = [error(503, headers={"Retry-After": email.utils.formatdate(time.time() - 9, usegmt=True)})]
    assert len(ask(toy)) == 4


def test_a_silent_server_is_given_up(toy: Toy) -> None:
    toy.delay = lambda prompt: 0.5
    began = time.monotonic()

    assert "failed 2 times, the last: nothing came within 0.1 s" in failure(toy, "timeout=0.1&retries=1", prompts=["a"])
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "content", [b'{"choices": [{"te', b"<html>hello</html>", {"choices": []}, {"choices": [5]}, [1]]
)
def test_what_is_not_the_protocol_fails_at_once_unless_it_worked_before(toy: Toy, content: Any) -> None:
    toy.replies = [(200, {}, content)]
    assert "is no OpenAI-compatible server, its answer" in failure(toy, "concurrency=1")
    assert len(toy.seen) == 1

    with Server(at(toy)) as server:
        body = {"model": "toy", "prompt": "a", "max_tokens": 1}
        server.post("/completions", body)
        toy.replies = [(200, {}, content)]
        assert server.post("/completions", body)["choices"]
        assert server.usage.retries == 1


def test_nothing_there_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ModelError, match=f"nothing answers at {url} .*: start the server"):
            complete(parse_endpoint(f"{url}#m"), ["a"], max_new_tokens=1)


def test_refusals_say_what_to_do(toy: Toy) -> None:
    for reply, message in (
        (error(401), "wants a key (401): set UPHOLD_API_KEY"),
        (error(400, "prompt too long"), "refuses a request to 'toy' (400): prompt too long"),
        (error(404, "File Not Found"), "has no /completions for 'toy' (404, File Not Found): add ?chat=true"),
        (error(429, code="insufficient_quota"), "no credit left"),
        ((308, {"Location": "https://there/v1"}, {}), "sends on to https://there/v1 (308)"),
        (error(501), "refuses a request to 'toy' (501)"),
    ):
        toy.replies = [reply]
        assert message in failure(toy, "concurrency=1")
    assert len(toy.seen) == 6


@pytest.mark.parametrize(
    "reply", [error(404, "The model `tox` does not exist."), error(400, "what?", code="model_not_found")]
)
def test_an_unknown_model_gets_the_nearest(toy: Toy, reply: Reply) -> None:
    toy.models, toy.replies = ["zebra", "toy"], [reply]

    assert "has no model 'tox': did you mean 'toy'?" in failure(toy, "concurrency=1", model="tox")


def test_newer_names_of_fields_are_found_out(toy: Toy) -> None:
    def refuse(headers: dict[str, str], body: dict[str, Any]) -> Reply | None:
        if "max_tokens" in body:
            return error(
                400, "Unsupported parameter: 'max_tokens' is not supported with this model.", param="max_tokens"
            )
        return error(400, "Unsupported parameter: 'stop'", code="unsupported_parameter") if "stop" in body else None

    expected = ask(toy, "chat=1", stop=["mat"])
    toy.always, usage = refuse, Usage()

    assert ask(toy, "chat=1", stop=["mat"], usage=usage) == expected
    assert toy.bodies[-1]["max_completion_tokens"] == 2
    assert not {"max_tokens", "stop"} & set(toy.bodies[-1])
    assert usage.retries == 0


def test_a_field_that_cannot_be_left_out_is_an_error(toy: Toy) -> None:
    toy.always = lambda headers, body: error(400, "'temperature' is not supported", param="temperature")

    assert "'temperature' is not supported" in failure(toy)


def test_the_key_is_sent_and_shown_nowhere(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other-key-987654")
    monkeypatch.setenv("UPHOLD_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    shown = [repr(at(toy)), str(at(toy).fingerprint()), repr(vars(at(toy)))]
    for status in (400, 401, 403, 404, 422, 429, 500, 200):

        def echo(headers: dict[str, str], body: dict[str, Any], status: int = status) -> Reply:
            said = f"bad {headers['authorization']} {KEY[:15]}*** {KEY}"
            return status, {}, {"error": {"message": said, "type": KEY, "param": KEY}}

        toy.always = echo
        toy.models = [f"like-{KEY}"]
        with pytest.raises(ModelError) as caught:
            ask(toy, "retries=1")
        shown += [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
        with Server(at(toy)) as server:
            shown += [repr(server), repr(vars(server)), repr(server.usage)]
    toy.always = lambda headers, body: (200, {}, f"<html>{headers['authorization']}".encode())
    shown += [caplog.text, failure(toy)]
    toy.always = lambda headers, body: (307, {"Location": f"http://x/{KEY}"}, {})
    shown.append(failure(toy))
    assert {headers["authorization"] for _, headers, _ in toy.seen} == {f"Bearer {KEY}"}
    everything = "\n".join(shown)
    assert "refuses the key in UPHOLD_API_KEY (401)" in everything
    assert not [KEY[start : start + 8] for start in range(len(KEY) - 7) if KEY[start : start + 8] in everything]


def test_without_a_key_none_is_sent(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(toy)
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    ask(toy, prompts=["the"])
    monkeypatch.setenv("UPHOLD_API_KEY", "")
    ask(toy, prompts=["the"])

    assert [headers.get("authorization") for _, headers, _ in toy.seen[3:]] == [None, "Bearer theirs", None]


def test_usage_adds_up_over_threads_and_calls(toy: Toy) -> None:
    usage = Usage(1.0, 10.0)
    ask(toy, prompts=["the cat sat"] * 50, usage=usage)
    ask(toy, prompts=["a"], usage=usage)
    toy.usage = False
    ask(toy, prompts=["a", "a"], usage=usage)

    assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.uncounted) == (53, 151, 102, 2)
    assert usage.cost() == pytest.approx((151 + 1020) / 1e6)
    assert Usage().cost() is None
    assert Usage(None, 2.0).cost() == 0.0
    assert "uncounted=2" in repr(usage)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_raised_at_once_and_nothing_more_is_sent(toy: Toy, kind: type[BaseException]) -> None:
    gate = threading.Event()
    toy.delay = lambda prompt: float(prompt != "first" and not gate.wait(10))

    def interrupt(what: str, done: int, total: int, note: str = "") -> None:
        raise kind

    began = time.monotonic()
    with pytest.raises(kind):
        ask(toy, "concurrency=3", prompts=["first", *PROMPTS * 10], progress=interrupt)
    assert time.monotonic() - began < 5
    gate.set()
    time.sleep(0.3)
    assert len(toy.seen) <= 4


def test_control_c_while_waiting_for_an_answer_and_for_the_next_try(toy: Toy) -> None:
    main, gate = threading.main_thread().ident, threading.Event()
    assert main is not None
    toy.replies = [error(429, headers={"Retry-After": "60"})]
    toy.delay = lambda prompt: float(prompt != PROMPTS[0] and not gate.wait(10))
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask(toy, "concurrency=2")
    assert time.monotonic() - began < 5
    gate.set()
    timer.join()


def test_without_httpx2_the_extra_is_named(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)

    with pytest.raises(UsageError, match=r"pip install 'uphold\[api\]'"):
        ask(toy)
