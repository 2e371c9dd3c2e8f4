from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny import CORPUS, byte_pairs, characters
from uphold.models.decoding import Answer, Ending, Sampling

quick = settings(max_examples=100, deadline=None, database=None)

FOUR = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()


def ending(*stop: str, most: int = 100, tokenizer: Any = None, ends: Any = None) -> Ending:
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
    return Ending(model, tokenizer or characters(), Sampling(most, stop))


def write(tokens: list[int], end: Ending) -> Answer:
    """An answer that `tokens` are added to until it ends."""
    answer = Answer(end)
    for token in tokens:
        if answer.add(token):
            break
    return answer


def ids(text: str, tokenizer: Any = None) -> list[int]:
    return list((tokenizer or characters())(text, add_special_tokens=False)["input_ids"])


# ---- choosing ----


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0], [5.0, 5.0, 1.0]])

    assert Sampling(1).choose(logits, [None, None]) == [1, 0]
    assert Sampling(1).generator("key") is None


@pytest.mark.parametrize(
    ("top_p", "temperature", "shares"),
    [
        (1.0, 1.0, [0.15, 0.5, 0.05, 0.3]),
        (0.9, 1.0, [0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
        (0.6, 1.0, [0.0, 0.625, 0.0, 0.375]),
        (0.49, 1.0, [0.0, 1.0, 0.0, 0.0]),
        (1e-9, 1.0, [0.0, 1.0, 0.0, 0.0]),
        # Temperature 0.5 squares the shares: 0.0225, 0.25, 0.0025 and 0.09 of 0.365.
        (1.0, 0.5, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
    ],
)
def test_draws_follow_the_nucleus_and_the_temperature(top_p: float, temperature: float, shares: list[float]) -> None:
    sampling = Sampling(1, temperature=temperature, top_p=top_p)
    draws = 2000
    picks = sampling.choose(FOUR.expand(draws, -1), [sampling.generator(f"key {index}") for index in range(draws)])

    counts = Counter(picks)
    for token, share in enumerate(shares):
        assert abs(counts[token] / draws - share) <= 4 * (share * (1 - share) / draws) ** 0.5


def test_a_row_draws_from_its_own_key_and_seed_alone() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))

    def draws(seed: int, key: str) -> list[int]:
        sampling = Sampling(1, temperature=1.0, seed=seed)
        generator = sampling.generator(key)
        return [sampling.choose(logits, [generator])[0] for _ in range(20)]

    assert draws(0, "a") == draws(0, "a")
    assert draws(0, "a") != draws(1, "a")
    assert draws(0, "a") != draws(0, "b")
    assert draws(1, "2 a") != draws(12, " a")


def test_neighbours_change_no_draw_and_the_global_generator_stays() -> None:
    sampling = Sampling(1, temperature=0.8, top_p=0.9)
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()

    together = sampling.choose(logits, [sampling.generator(str(row)) for row in range(5)])
    alone = [sampling.choose(logits[row : row + 1], [sampling.generator(str(row))])[0] for row in range(5)]

    assert together == alone
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- ending ----


def test_an_answer_ends_with_the_most_tokens_it_may_have() -> None:
    answer = write(ids("abcdef"), ending(most=4))

    assert (answer.text, len(answer.tokens)) == ("abcd", 4)


def test_an_answer_ends_where_the_model_has_room_for_no_more() -> None:
    for most, text in ((3, "abc"), (9, "abcd"), (None, "abcd")):
        answer = Answer(ending(most=4), most)
        for token in ids("abcdef"):
            if answer.add(token):
                break
        assert answer.text == text


def test_an_answer_goes_on_until_something_ends_it() -> None:
    answer = write(ids("abc"), ending("x"))

    assert answer.text is None
    assert not answer.add(ids("d")[0])
    assert answer.add(ids("x")[0])
    assert answer.text == "abcd"


def test_an_end_token_ends_an_answer_and_is_left_out() -> None:
    tokens = [*ids("ab"), characters().eos_token_id, *ids("cd")]

    assert write(tokens, ending()).text == "ab"
    assert write(tokens[2:], ending()).text == ""


@pytest.mark.parametrize("ends", [7, [6, 7]])
def test_the_models_own_end_tokens_count_too(ends: Any) -> None:
    assert write([4, 5, 7, 8], ending(ends=ends)).text == "ab"


def test_a_model_without_end_tokens_ends_by_length_or_text() -> None:
    tokenizer = SimpleNamespace(eos_token_id=None, decode=characters().decode)
    model: Any = SimpleNamespace()
    end = Ending(model, tokenizer, Sampling(3))  # type: ignore[arg-type]

    assert write([4, 2, 5, 6], end).text == "ab"
    assert len(write([4, 2, 5, 6], end).tokens) == 3


def test_a_stop_string_may_span_many_tokens_and_is_left_out() -> None:
    answer = write(ids("one two stop here. more"), ending("stop here"))

    assert answer.text == "one two "
    assert len(answer.tokens) == len("one two stop here")


@pytest.mark.parametrize(
    ("stop", "text"), [(("b", "ab"), "x "), (("ab", "b"), "x "), (("c", "q"), "x ab"), ((" ",), "x"), (("x",), "")]
)
def test_the_first_of_several_stop_strings_ends_an_answer(stop: tuple[str, ...], text: str) -> None:
    assert write(ids("x abc q"), ending(*stop)).text == text


def test_an_empty_stop_string_stops_nothing() -> None:
    assert write(ids("abcd"), ending("", "c")).text == "ab"
    assert write(ids("abcd"), ending("")).text is None


def test_a_stop_string_within_one_token_cuts_it() -> None:
    tokenizer = byte_pairs()
    tokens = ids("the question is", tokenizer)
    assert "question" in tokenizer.convert_ids_to_tokens(tokens)

    answer = write(tokens, ending("est", tokenizer=tokenizer))

    assert answer.text == "the qu"
    assert answer.tokens == tokens[: len(answer.tokens)]


def test_a_stop_string_of_half_characters() -> None:
    """An accented letter is two byte tokens; it is there when the second one is."""
    tokenizer = byte_pairs()
    tokens = ids("zz é é", tokenizer)

    answer = write(tokens, ending("é", tokenizer=tokenizer))

    assert answer.text == "zz "


def test_end_and_stop_at_once() -> None:
    tokens = [*ids("ab"), characters().eos_token_id]

    assert write(tokens, ending("ab")).text == ""
    assert write(ids("abcd"), ending("d", most=4)).text == "abc"
    assert write(ids("abcd"), ending("e", most=4)).text == "abcd"


pieces = st.text(alphabet="the qusion?é7 \n", min_size=0, max_size=30)


@quick
@given(st.lists(st.one_of(pieces, st.sampled_from(CORPUS)), max_size=3), st.lists(pieces, max_size=3))
def test_looking_at_the_last_tokens_is_enough(written: list[str], stops: list[str]) -> None:
    """An answer ends as soon as its whole text holds a stop string, neither before nor after."""
    tokenizer = byte_pairs()
    tokens = ids("".join(written), tokenizer)
    stop = tuple(text for text in stops if text)

    answer = write(tokens, ending(*stop, tokenizer=tokenizer))

    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end])
        cuts = [text.find(one) for one in stop if one in text]
        if cuts:
            assert (answer.text, len(answer.tokens)) == (text[: min(cuts)], end)
            return
    assert answer.text is None
