from __future__ import annotations

from typing import Any

import pytest

from tests.models.tiny import characters, tiny
from uphold.models import endpoint as http
from uphold.models import engine as module
from uphold.models.decoding import Generated, Sampling
from uphold.models.encode import Encoder
from uphold.models.endpoint import Completion, Usage, instance_seeds, parse_endpoint
from uphold.models.engine import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    EndpointEngine,
    LocalEngine,
    Meter,
    default_batch_tokens,
)
from uphold.models.generate import GenerationEngine
from uphold.models.likelihood import LikelihoodEngine, OptionScore, Scored
from uphold.models.load import Loaded

QUESTIONS = [[("a:", "b"), ("a:", "cd")], [("what?", "x"), ("what?", "y")]]
PROMPTS = ["a:", "what?", "a:"]


def loaded() -> Loaded:
    return Loaded(tiny("llama"), characters(), "mine", {}, None)


# ---- a model that is loaded here ----


def test_a_local_engine_scores_and_writes() -> None:
    engine = LocalEngine(loaded(), 128)
    parts = (tiny("llama"), Encoder(characters()), 128, Meter())
    sampling = Sampling(5, temperature=1.0, seed=4)

    assert engine.name == "mine"
    assert engine.score(QUESTIONS) == LikelihoodEngine(*parts).score(QUESTIONS)
    written = engine.write(PROMPTS, sampling, ["x", "y", "z"])
    assert written == GenerationEngine(*parts).write(PROMPTS, sampling, ["x", "y", "z"])
    assert written[0] != written[2]


def test_scoring_and_writing_share_an_encoder_and_a_meter() -> None:
    encoder, meter = Encoder(characters()), Meter()
    engine = LocalEngine(loaded(), 128, encoder, meter)

    engine.score(QUESTIONS)
    scored = meter.tokens
    engine.write(PROMPTS, Sampling(3), PROMPTS)

    assert 0 < scored < meter.tokens
    assert {"a:", "a:cd", "what?"} <= set(encoder._known)


@pytest.mark.parametrize(("device", "tokens"), [("cpu", CPU_BATCH_TOKENS), ("cuda", GPU_BATCH_TOKENS)])
def test_batches_are_as_large_as_the_device_likes(device: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "default_device", lambda: device)

    assert default_batch_tokens() == tokens
    assert LocalEngine(loaded())._likelihood.batch_tokens == tokens
    assert LocalEngine(loaded(), 7)._generation.batch_tokens == 7


def test_a_meter_tells_its_listener() -> None:
    heard: list[int] = []
    meter = Meter()
    meter.add(5)
    meter.listener = lambda: heard.append(meter.tokens)
    meter.add(7)
    meter.add(1)

    assert heard == [12, 13]
    assert (meter.tokens, meter.requests, meter.cost) == (13, 0, None)


# ---- a model behind a server ----

ENDPOINT = "http://localhost:9/v1#some-model"


def answering(monkeypatch: pytest.MonkeyPatch, name: str, answers: list[Any]) -> list[dict[str, Any]]:
    """`uphold.models.endpoint.<name>`, answering at once: ten tokens read and two written per request."""
    asked: list[dict[str, Any]] = []

    def function(endpoint: Any, what: Any, *, usage: Usage, progress: Any, **options: Any) -> list[Any]:
        asked.append({"endpoint": endpoint, "what": what, **options})
        for done in range(len(answers)):
            usage.requests += 1
            usage.input_tokens += 10
            usage.output_tokens += 2
            progress("asking", done + 1, len(answers))
        return answers

    monkeypatch.setattr(http, name, function)
    return asked


def test_an_endpoint_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Scored((OptionScore(-1.0, 1, True),), 11, False)] * 2
    asked = answering(monkeypatch, "option_logprobs", answers)
    heard: list[int] = []
    meter = Meter()
    meter.listener = lambda: heard.append(meter.tokens)
    endpoint = parse_endpoint(ENDPOINT)
    engine = EndpointEngine(endpoint, meter)

    assert engine.name == endpoint.name
    assert engine.score(QUESTIONS) == answers
    assert asked == [{"endpoint": endpoint, "what": QUESTIONS}]
    assert heard == [12, 24]
    assert (meter.tokens, meter.requests, meter.cost) == (24, 2, None)
    engine.score(QUESTIONS)
    assert (meter.tokens, meter.requests) == (48, 4)


def test_an_endpoint_writes_with_a_seed_of_its_own_for_every_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "complete", [Completion(text, 10, 2, "stop") for text in "xyz"])
    meter = Meter()
    sampling = Sampling(5, ("\n",), temperature=0.5, top_p=0.9, seed=3)

    written = EndpointEngine(parse_endpoint(ENDPOINT), meter).write(PROMPTS, sampling, ["1", "2", "3"])

    assert written == [Generated(text, 12) for text in "xyz"]
    assert asked == [
        {
            "endpoint": parse_endpoint(ENDPOINT),
            "what": PROMPTS,
            "max_new_tokens": 5,
            "stop": ("\n",),
            "temperature": 0.5,
            "top_p": 0.9,
            "seeds": instance_seeds(3, ["1", "2", "3"]),
        }
    ]
    assert meter.tokens == 36


def test_prices_become_cost_and_endpoints_that_share_a_meter_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "complete", [Completion("x", 10, 2, "stop")] * 2)
    meter = Meter()
    priced = "http://localhost:9/v1?input_price=1000&output_price=5000#"
    first, second = (EndpointEngine(parse_endpoint(priced + name), meter) for name in ("old", "new"))

    first.write(["a", "b"], Sampling(2), ["a", "b"])
    assert (meter.tokens, meter.requests) == (24, 2)
    assert meter.cost == pytest.approx(2 * (10 * 1000 + 2 * 5000) / 1e6)
    second.write(["a", "b"], Sampling(2), ["a", "b"])

    assert (meter.tokens, meter.requests) == (48, 4)
    assert meter.cost == pytest.approx(4 * (10 * 1000 + 2 * 5000) / 1e6)
