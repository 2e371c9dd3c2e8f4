from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.models.tiny import characters, texts, tiny
from uphold.models import slots
from uphold.models.decoding import Answer, Ending, Sampling
from uphold.models.engine import Meter
from uphold.models.slots import Prompt, SlotDecoder, SlotLayer, SlotPositions

HEADER = "q: 1 + 1 =? a: 2. q: 2 + 3 =? a: 5. "
STOP = ("0", "1", "k", "tt")
"""Random models write these soon, and at different times."""


def prompts(written: Sequence[str], sampling: Sampling) -> list[Prompt]:
    encoded = characters()(list(written))["input_ids"]
    pairs = zip(written, encoded, strict=True)
    return [Prompt(index, ids, sampling.generator(text)) for index, (text, ids) in enumerate(pairs)]


def decoder(model: Any, sampling: Sampling, rows: int, capacity: int, meter: Meter | None = None) -> SlotDecoder:
    return SlotDecoder(model, Ending(model, characters(), sampling), sampling, rows, capacity, meter or Meter())


def run(
    model: Any, written: Sequence[str], sampling: Sampling, rows: int = 8, header: int = 0, meter: Meter | None = None
) -> dict[int, tuple[str | None, list[int]]]:
    """For each prompt its text and tokens; each may be answered once only."""
    asked = prompts(written, sampling)
    capacity = max(len(prompt.tokens) for prompt in asked) + sampling.max_new_tokens
    found: dict[int, tuple[str | None, list[int]]] = {}
    for prompt, answer in decoder(model, sampling, rows, capacity, meter).run(asked, asked[0].tokens[:header]):
        assert prompt.index not in found
        found[prompt.index] = (answer.text, answer.tokens)
    assert sorted(found) == list(range(len(written)))
    return found


def greedily(model: Any, text: str, sampling: Sampling) -> str | None:
    """Token after token, reading everything anew each time."""
    ids = characters()(text)["input_ids"]
    answer = Answer(Ending(model, characters(), sampling))
    while answer.text is None:
        with torch.inference_mode():
            answer.add(int(model(torch.tensor([ids + answer.tokens])).logits[0, -1].argmax()))
    return answer.text


@pytest.mark.parametrize(
    ("kind", "kernel"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("gemma2", "eager")]
)
def test_many_prompts_in_few_slots_are_each_continued_as_alone(kind: str, kernel: str) -> None:
    model = tiny(kind, kernel, sliding_window=256) if kind == "gemma2" else tiny(kind, kernel)
    sampling = Sampling(12, STOP)
    written = texts(30, 40, seed=1)

    found = run(model, written, sampling)

    assert {index: text for index, (text, _) in found.items()} == {
        index: greedily(model, text, sampling) for index, text in enumerate(written)
    }
    assert len({len(tokens) for _, tokens in found.values()}) > 1  # so slots fall empty at different times


def test_the_number_of_slots_changes_no_token() -> None:
    written = texts(30, 40, seed=1)
    for sampling in (Sampling(12, STOP), Sampling(12, STOP, temperature=1.0, top_p=0.9, seed=3)):
        found = [run(tiny("llama"), written, sampling, rows) for rows in (1, 9, 30)]
        assert found[0] == found[1] == found[2]


def test_a_common_header_changes_no_token_and_is_read_once() -> None:
    written = [HEADER + text for text in texts(20, 20, seed=2)]
    sampling = Sampling(10, STOP)
    apart, shared = Meter(), Meter()

    plain = run(tiny("llama"), written, sampling, meter=apart)

    for header in (1, 7, 8, len(HEADER)):
        assert run(tiny("llama"), written, sampling, header=header) == plain
    run(tiny("llama"), written, sampling, header=len(HEADER), meter=shared)
    assert apart.tokens - shared.tokens > 15 * len(HEADER)


def test_empty_slots_are_filled_before_the_rows_beside_them_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as the slots need, not as the longest row of each batch would."""
    steps, fills = [], []
    step, fill = SlotDecoder._step, SlotDecoder._fill
    monkeypatch.setattr(SlotDecoder, "_step", lambda self: steps.append(len(self._rows)) or step(self))
    monkeypatch.setattr(SlotDecoder, "_fill", lambda self, new, *rest: fills.append(len(new)) or fill(self, new, *rest))
    written = texts(48, 20, seed=4)

    found = run(tiny("llama"), written, Sampling(24, STOP))

    lengths = [len(tokens) for _, tokens in found.values()]
    batches = sum(max(lengths[start : start + 8]) for start in range(0, 48, 8))
    assert len(steps) < 0.8 * batches
    assert fills[0] == 8
    assert len(fills) > 6
    assert sum(fills) == 48


def test_slots_are_given_up_near_the_end_and_no_token_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = SlotDecoder._step
    monkeypatch.setattr(SlotDecoder, "_step", lambda self: sizes.append(len(self._rows)) or step(self))
    written = texts(40, 30, seed=6)
    sampling = Sampling(40, STOP)

    shrunk = run(tiny("llama"), written, sampling, 40)
    assert sizes[0] == 40
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 8
    assert len(set(sizes)) > 2
    monkeypatch.setattr(SlotDecoder, "_shrink", lambda self, free: None)

    assert run(tiny("llama"), written, sampling, 40) == shrunk


def test_prompts_of_like_length_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    read = SlotDecoder._read

    def noted(self: SlotDecoder, rows: Any, at: Any, length: int, *rest: Any) -> torch.Tensor:
        shapes.append((len(rows), length))
        return read(self, rows, at, length, *rest)

    monkeypatch.setattr(SlotDecoder, "_read", noted)

    run(tiny("llama"), ["a" * length for length in (3, 8, 9, 5, 17)], Sampling(2))

    assert shapes == [(3, 8), (1, 16), (1, 24)]


def test_the_meter_counts_prompts_headers_and_empty_slots() -> None:
    meter = Meter()

    run(tiny("llama"), ["abcd", "abce", "ab"], Sampling(3), header=1, meter=meter)

    assert meter.tokens == 1 + 3 * 8 + 2 * 8  # header, three padded prompts, two steps of eight slots


def test_answers_of_one_token_leave_their_slot_at_once() -> None:
    written = texts(20, 12, seed=8)
    sampling = Sampling(1)

    found = run(tiny("llama"), written, sampling)

    assert [len(tokens) for _, tokens in found.values()] == [1] * 20
    assert found[3][0] == greedily(tiny("llama"), written[3], sampling)


def test_a_row_may_fill_its_slot_to_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "VISIBLE", 8)
    sampling = Sampling(9)
    written = ["a" * 7, "b" * 3, "c" * 7, *"defghijkl"]  # seven and nine tokens are sixteen

    found = run(tiny("llama"), written, sampling)

    assert [found[index][0] for index in range(12)] == [greedily(tiny("llama"), text, sampling) for text in written]


def test_one_after_the_other_the_slots_are_used_again() -> None:
    """A decoder may be run again; what is left in its slots is never seen."""
    sampling = Sampling(6)
    one = decoder(tiny("llama"), sampling, 8, 64)
    for written in (texts(9, 30, seed=1), texts(5, 8, seed=2)):
        found = {prompt.index: answer.text for prompt, answer in one.run(prompts(written, sampling))}
        assert found == {index: greedily(tiny("llama"), text, sampling) for index, text in enumerate(written)}


def test_a_layer_stores_one_token_per_slot_where_its_row_ends() -> None:
    at = SlotPositions(3, 128)
    at.lengths = torch.tensor([2, 0, 70])
    layer = SlotLayer(torch.zeros(3, 1, 128, 2), torch.zeros(3, 1, 128, 2), at)
    at.begin_step()

    keys, values = layer.update(torch.ones(3, 1, 1, 2), 2 * torch.ones(3, 1, 1, 2))

    assert at.visible == 128
    assert keys.shape == values.shape == (3, 1, 128, 2)
    assert [torch.nonzero(keys[row, 0, :, 0]).flatten().tolist() for row in range(3)] == [[2], [0], [70]]
    assert values.sum() == 2 * keys.sum() == 12
    assert (layer.get_seq_length(), layer.get_mask_sizes(1)) == (127, (128, 0))

    at.lengths = torch.tensor([2, 0, 63])
    at.begin_step()
    assert at.visible == 64
    keys, _ = layer.update(torch.ones(3, 1, 1, 2), torch.ones(3, 1, 1, 2))
    assert keys.shape == (3, 1, 64, 2)
    assert keys[2, 0, 63, 0] == 1
