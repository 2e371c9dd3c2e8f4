from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.models.toy_server import Toy, likeliest, logprob, serving, share
from uphold.core.errors import ModelError, UsageError
from uphold.models import endpoint_http
from uphold.models.endpoint import (
    Completion,
    Endpoint,
    Usage,
    complete,
    instance_seeds,
    option_logprobs,
    parse_endpoint,
)

QUESTIONS = [
    [("the cat", " sat"), ("the cat", " on the mat."), ("the cat", " zebra")],
    [("on a ", "mat"), ("on a ", "the end")],
    [("a mat.", "the"), ("a mat.", " the")],
]


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


def at(toy: Toy, options: str = "") -> Endpoint:
    return parse_endpoint(f"{toy.url}?{options}#toy")


def greedy(before: str, count: int) -> str:
    words = [before]
    for _ in range(count):
        words.append(likeliest(words[-1]))
    return "".join(words[1:])


def silence(toy: Toy, questions: Sequence[Sequence[tuple[str, str]]] = QUESTIONS, options: str = "") -> str:
    with pytest.raises(ModelError) as caught:
        option_logprobs(at(toy, options), questions)
    return str(caught.value)


def test_completions_are_what_the_model_writes(toy: Toy) -> None:
    assert complete(at(toy), ["the cat", "a"], max_new_tokens=3) == [
        Completion(greedy("cat", 3), 2, 3, "length"),
        Completion(greedy("a", 3), 1, 3, "length"),
    ]
    path, _, body = toy.seen[0]
    assert path == "/v1/completions"
    assert body == {"model": "toy", "prompt": body["prompt"], "max_tokens": 3, "temperature": 0.0}


def test_chat_sends_one_user_message(toy: Toy) -> None:
    assert [answer.text for answer in complete(at(toy, "chat=true"), ["the cat"], max_new_tokens=3)] == [
        greedy("cat", 3)
    ]
    path, _, body = toy.seen[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "the cat"}]
    assert "prompt" not in body


def test_an_answer_is_cut_at_the_first_stop_whether_the_server_knows_it_or_not(toy: Toy) -> None:
    whole = complete(at(toy), ["the cat"], max_new_tokens=6)[0].text
    fifth = whole.split()[2]
    stops = ["0", "1", "", "2", "3", fifth]

    (answer,) = complete(at(toy), ["the cat"], max_new_tokens=6, stop=stops)
    assert toy.bodies[-1]["stop"] == ["0", "1", "2", "3"]
    assert answer.text == whole[: whole.index(fifth)]
    # This server keeps the stop string, as transformers' own does.
    (answer,) = complete(at(toy), ["the cat"], max_new_tokens=6, stop=[fifth])
    assert answer.text == whole[: whole.index(fifth)]


def test_every_sampled_prompt_is_sent_its_seed(toy: Toy) -> None:
    prompts = ["the", "the", "a"]
    arguments: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9}
    first = complete(at(toy), prompts, seeds=[5, 6, 5], **arguments)

    assert sorted((body["prompt"], body["seed"]) for body in toy.bodies) == [("a", 5), ("the", 5), ("the", 6)]
    assert {(body["temperature"], body["top_p"]) for body in toy.bodies} == {(0.7, 0.9)}
    assert first == complete(at(toy), prompts, seeds=[5, 6, 5], **arguments)
    assert first[0] != first[1]
    with pytest.raises(UsageError, match="one seed per prompt: found 0 for 3"):
        complete(at(toy), prompts, **arguments)


def test_seeds_depend_on_run_and_instance_and_fit_every_server() -> None:
    keys = [f"instance {number}" for number in range(1000)]

    assert len(set(instance_seeds(0, keys)) | set(instance_seeds(1, keys))) == 2000
    assert instance_seeds(0, keys)[3] == instance_seeds(0, keys[3:])[0]
    assert all(0 <= seed < 2**31 for seed in instance_seeds(0, keys))


def test_missing_counts_and_null_texts(toy: Toy) -> None:
    toy.usage = False
    assert complete(at(toy), ["the"], max_new_tokens=1)[0][1:3] == (0, 0)
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "length"}
    toy.replies = [(200, {}, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})]
    assert complete(at(toy, "chat=1"), ["a"], max_new_tokens=9) == [Completion("", 3, 9, "length")]
    toy.replies = [(200, {}, {"choices": [{"message": {}}]})]
    with pytest.raises(ModelError, match="an answer without text"):
        complete(at(toy), ["a"], max_new_tokens=9)


def test_an_answer_is_what_a_model_loaded_here_returns() -> None:
    generated = Completion("x", 3, 4, "stop").generated()

    assert (generated.text, generated.tokens) == ("x", 7)


@pytest.mark.parametrize("style", ["vllm", "sglang", "sentencepiece"])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("usage", [False, True])
def test_log_likelihoods_are_the_models_own(toy: Toy, style: str, start: bool, usage: bool) -> None:
    toy.style, toy.start, toy.usage = style, start, usage
    if style == "sentencepiece" and not usage:
        assert "its tokens do not add up to the text" in silence(toy)
        return
    scores = option_logprobs(at(toy), QUESTIONS)

    for question, scored in zip(QUESTIONS, scores, strict=True):
        for (context, continuation), score in zip(question, scored.options, strict=True):
            assert score.logprob == pytest.approx(logprob(context, continuation), abs=1e-12)
    assert [[score.tokens for score in scored.options] for scored in scores] == [[1, 4, 1], [1, 2], [1, 1]]
    assert [scored.tokens for scored in scores] == (
        [12 + 3 * start, 7 + 2 * start, 8 + 2 * start] if usage else [0] * 3
    )
    assert not any(scored.truncated for scored in scores)


def test_greedy_is_what_greedy_decoding_would_write(toy: Toy) -> None:
    best = greedy("cat", 3)
    other = next(word for word in (" sat", " mat", " end") if share("cat", word) < share("cat", likeliest("cat")))
    (scored,) = option_logprobs(at(toy), [[("the cat", best), ("the cat", other), ("the cat", best[:-1] + "x")]])

    assert [score.greedy for score in scored.options] == [True, False, False]


def test_equal_requests_are_sent_once_and_told_of(toy: Toy) -> None:
    told: list[tuple[int, int]] = []
    usage = Usage()
    scores = option_logprobs(
        at(toy),
        [QUESTIONS[0], QUESTIONS[0]],
        usage=usage,
        progress=lambda what, done, total, note="": told.append((done, total)),
    )

    assert scores[0] == scores[1]
    assert usage.requests == 3
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_token_that_shows_nothing_at_the_end_is_no_prompt_token(toy: Toy) -> None:
    # llama-cpp-python writes no token where the text ends: then none may be dropped.
    toy.write = lambda *arguments: []  # type: ignore[method-assign]

    (scored,) = option_logprobs(at(toy), QUESTIONS[:1])
    assert scored.options[0].logprob == pytest.approx(logprob("the cat", " sat"))


def test_a_token_across_the_border_is_the_contexts_as_in_models_loaded_here(toy: Toy) -> None:
    (scored,) = option_logprobs(at(toy), [[("the ca", "t sat")]])

    assert scored.options[0].tokens == 1
    assert scored.options[0].logprob == pytest.approx(math.log(share("cat", "sat")))
    assert "the answer 't' has no tokens of its own after 'the ca': use a delimiter" in silence(
        toy, [[("the ca", "t")]]
    )


def test_without_a_context_a_text_starts_from_the_start_token(toy: Toy) -> None:
    assert "a text needs a token to start from" in silence(toy, [[("", "the cat")]])
    toy.start = True
    (scored,) = option_logprobs(at(toy), [[("", "the cat")]])

    assert scored.options[0].logprob == pytest.approx(logprob("", "the cat"))
    assert scored.options[0].tokens == 2


@pytest.mark.parametrize("style", ["llama.cpp", "plain"])
@pytest.mark.parametrize("usage", [False, True])
def test_a_server_that_does_not_read_back_is_an_error_and_no_zero(toy: Toy, style: str, usage: bool) -> None:
    toy.style, toy.usage = style, usage

    message = silence(toy)
    assert "gives no log-likelihoods of a prompt" in message
    assert "use a generate task, or a server with echo and logprobs such as vLLM" in message


def test_a_server_that_says_so_is_quoted_and_others_are_too(toy: Toy) -> None:
    toy.always = lambda headers, body: (400, {}, {"error": {"message": "echo with logprobs is not supported"}})
    assert "of a prompt (echo with logprobs is not supported): use a generate task" in silence(toy)
    toy.always = lambda headers, body: (400, {}, {"error": {"message": "prompt too long"}})
    assert "refuses a request to 'toy' (400): prompt too long" in silence(toy)


def test_without_the_likeliest_tokens_greedy_is_unknown(toy: Toy) -> None:
    answer = toy.answer("", {"model": "toy", "prompt": "the cat sat", "max_tokens": 1, "echo": True, "logprobs": 1})
    del answer["choices"][0]["logprobs"]["top_logprobs"]
    toy.replies = [(200, {}, answer)]

    assert "it returns no top_logprobs" in silence(toy, [[("the cat", " sat")]])


def test_chat_has_no_log_likelihoods(toy: Toy) -> None:
    with pytest.raises(UsageError, match="leave out chat=true, or use a generate task"):
        option_logprobs(at(toy, "chat=true"), QUESTIONS)
    assert not toy.seen
